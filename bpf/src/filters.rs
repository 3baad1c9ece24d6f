//! The filters of a clsact hook, in the order in which they run.

use std::io;

use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{TcHandle, TcMessage};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

/// What names a filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Filter {
    pub(crate) priority: u32,
    pub(crate) handle: u32,
}

/// Lists the filters under `parent` of an interface; none where there is no clsact qdisc.
pub(crate) fn list(ifindex: u32, parent: u32) -> io::Result<Vec<Filter>> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;

    let mut message = TcMessage::with_index(ifindex as i32);
    message.header.parent = TcHandle::from(parent);
    let mut request = NetlinkMessage::from(RouteNetlinkMessage::GetTrafficFilter(message));
    request.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    request.finalize();
    let mut bytes = vec![0; request.buffer_len()];
    request.serialize(&mut bytes);
    socket.send(&bytes, 0)?;

    let mut filters = Vec::new();
    loop {
        let (answer, _) = socket.recv_from_full()?;
        let mut rest = answer.as_slice();
        while !rest.is_empty() {
            let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)
                .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e.to_string()))?;
            match message.payload {
                NetlinkPayload::Done(_) => return Ok(filters),
                NetlinkPayload::Error(error) => {
                    return match error.code {
                        Some(_) => Err(error.to_io()),
                        None => Ok(filters),
                    };
                }
                NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewTrafficFilter(tc)) => {
                    // tcm_info: priority in the upper half, protocol in the lower. A chain is announced by a
                    // message without a filter in it, which has no handle.
                    let handle = u32::from(tc.header.handle);
                    if handle != 0 {
                        filters.push(Filter { priority: tc.header.info >> 16, handle });
                    }
                }
                _ => {}
            }
            let length = (message.header.length as usize).next_multiple_of(4);
            if length == 0 || length >= rest.len() {
                break;
            }
            rest = &rest[length..];
        }
    }
}
