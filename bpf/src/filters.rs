//! Lists what is attached at a device's TC hooks, over netlink: libbpf can make filters and qdiscs, but not list
//! them.

use std::io;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{TcAttribute, TcHandle, TcMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use podgate_link::netlink::Netlink;

/// What names a filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Filter {
    pub(crate) priority: u32,
    pub(crate) handle: u32,
}

/// A netlink socket. It belongs to the network namespace that the thread is in, so it is not kept for longer than one
/// query.
pub(crate) fn open() -> io::Result<Netlink> {
    Netlink::open(NETLINK_ROUTE)
}

/// Lists the filters under `parent` of an interface, in the order in which they run; none where there is no qdisc
/// for them.
pub(crate) fn list(route: &Netlink, ifindex: u32, parent: u32) -> io::Result<Vec<Filter>> {
    let mut message = TcMessage::with_index(ifindex as i32);
    message.header.parent = TcHandle::from(parent);
    let found = dump(route, RouteNetlinkMessage::GetTrafficFilter(message))?;
    // tcm_info: priority in the upper half, protocol in the lower. A chain is announced by a message without a
    // filter in it, which has no handle.
    Ok(found
        .iter()
        .map(|tc| Filter { priority: tc.header.info >> 16, handle: tc.header.handle.into() })
        .filter(|filter| filter.handle != 0)
        .collect())
}

/// The kind of the qdisc that holds the ingress hook of an interface: `clsact`, `ingress` (which has no
/// egress hook, whatever the parent of a filter says), or none.
pub(crate) fn ingress_qdisc(route: &Netlink, ifindex: u32) -> io::Result<Option<String>> {
    const INGRESS: u32 = 0xffff_0000;
    let mut found = qdiscs(route, ifindex)?.into_iter();
    Ok(found.find(|qdisc| qdisc.handle == INGRESS).map(|qdisc| qdisc.kind))
}

/// A queueing discipline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Qdisc {
    pub(crate) parent: u32,
    pub(crate) handle: u32,
    pub(crate) kind: String,
}

/// Lists those of an interface; none if there is no such interface.
pub(crate) fn qdiscs(route: &Netlink, ifindex: u32) -> io::Result<Vec<Qdisc>> {
    let message = TcMessage::with_index(ifindex as i32);
    // the kernel lists those of all interfaces
    let mut found = dump(route, RouteNetlinkMessage::GetQueueDiscipline(message))?;
    found.retain(|tc| tc.header.index == ifindex as i32);
    let qdisc = |tc: TcMessage| Qdisc {
        parent: tc.header.parent.into(),
        handle: tc.header.handle.into(),
        kind: tc
            .attributes
            .into_iter()
            .find_map(|attribute| match attribute {
                TcAttribute::Kind(kind) => Some(kind),
                _ => None,
            })
            .unwrap_or_default(),
    };
    Ok(found.into_iter().map(qdisc).collect())
}

fn dump(route: &Netlink, message: RouteNetlinkMessage) -> io::Result<Vec<TcMessage>> {
    let found = route.list(message)?;
    let tc = |message| match message {
        RouteNetlinkMessage::NewTrafficFilter(tc) | RouteNetlinkMessage::NewQueueDiscipline(tc) => {
            Some(tc)
        }
        _ => None,
    };
    Ok(found.into_iter().filter_map(tc).collect())
}
