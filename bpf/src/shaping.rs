//! Letting packets to a pod wait instead of dropping them: the queueing discipline that does, at the pod's host veth.
//!
//! The program at TC egress says when a packet is to depart (`c/meter.h`); `fq` keeps it until then. It is put where nothing
//! but the kernel's default is, and only what was put is removed.

use std::fmt;
use std::io;

use netlink_packet_core::{DefaultNla, NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{TcAttribute, TcHandle, TcMessage, TcOption};

use crate::filters::{self, Qdisc};
use crate::{Error, Result};

/// TC_H_ROOT of linux/pkt_sched.h.
const ROOT: u32 = 0xffff_ffff;
/// By which what podgate has put is told from others': "pg".
const HANDLE: u32 = 0x7067_0000;
const FQ: &str = "fq";

/// How the bandwidth to a pod is held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shaping {
    /// Packets wait.
    Shaped,
    /// Packets that exceed it are dropped.
    Policed {
        /// Why none can wait.
        reason: String,
    },
}

impl fmt::Display for Shaping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Shaped => f.write_str("shaped"),
            Self::Policed { reason } => write!(f, "policed: {reason}"),
        }
    }
}

/// What holds the place of an interface's root queueing discipline.
#[derive(Debug, PartialEq, Eq)]
enum Root {
    /// Nothing, or what the kernel puts there by itself.
    Default,
    Ours,
    /// Of this kind.
    Others(String),
}

/// The kernel's default has no handle.
fn root_of(found: &[Qdisc]) -> Root {
    match found.iter().find(|qdisc| qdisc.parent == ROOT) {
        None | Some(Qdisc { handle: 0, .. }) => Root::Default,
        Some(Qdisc { handle: HANDLE, kind, .. }) if kind == FQ => Root::Ours,
        Some(other) => Root::Others(other.kind.clone()),
    }
}

/// Has packets to the pod behind an interface wait for the time that the metered program gives them, where that can be; called
/// again, it finds that they do.
pub fn ensure_fq(ifindex: u32) -> Result<Shaping> {
    let fault = |e: io::Error| Error::Attach { verb: "shape", ifindex, reason: format!("fq: {e}") };
    let route = filters::open().map_err(fault)?;
    match root_of(&filters::qdiscs(&route, ifindex).map_err(fault)?) {
        Root::Ours => return Ok(Shaping::Shaped),
        Root::Others(kind) => {
            let reason = format!(
                "the interface has a root qdisc of kind {kind}, which is not podgate's (another plugin's, such as \
                 bandwidth) and stays"
            );
            return Ok(Shaping::Policed { reason });
        }
        Root::Default => {}
    }
    match route.change(new_fq(ifindex), NLM_F_CREATE | NLM_F_REPLACE) {
        Ok(()) => Ok(Shaping::Shaped),
        // what it answers for a kind that it does not know and has no module of
        Err(e) if e.raw_os_error() == Some(nix::libc::ENOENT) => {
            Ok(Shaping::Policed { reason: "this kernel has no fq (CONFIG_NET_SCH_FQ)".into() })
        }
        Err(e) => Err(fault(e)),
    }
}

/// Removes what [`ensure_fq`] has put; packets that wait are lost. Nothing there, or no such interface, is fine.
pub fn remove_fq(ifindex: u32) -> Result<()> {
    let fault =
        |e: io::Error| Error::Attach { verb: "unshape", ifindex, reason: format!("fq: {e}") };
    let route = filters::open().map_err(fault)?;
    if root_of(&filters::qdiscs(&route, ifindex).map_err(fault)?) != Root::Ours {
        return Ok(());
    }
    let mut message = TcMessage::with_index(ifindex as i32);
    message.header.parent = TcHandle::from(ROOT);
    message.header.handle = TcHandle::from(HANDLE);
    match route.change(RouteNetlinkMessage::DelQueueDiscipline(message), 0) {
        Err(e) if e.raw_os_error() != Some(nix::libc::ENODEV) => Err(fault(e)),
        _ => Ok(()),
    }
}

/// TCA_FQ_* of linux/pkt_sched.h.
const PACKETS: u16 = 1;
const PACKETS_OF_FLOW: u16 = 2;
const PACING: u16 = 5;
const HORIZON: u16 = 14;

/// The limit drops what would wait too long; fq itself drops nothing before: it has room for as many packets as senders may
/// have under way, and takes any time of departure. A socket's own pacing is for the device at which it leaves the node.
fn new_fq(ifindex: u32) -> RouteNetlinkMessage {
    const MANY_PACKETS: u32 = 100_000;
    const HOUR_IN_MICROSECONDS: u32 = 3_600_000_000;
    let options = [
        (PACKETS, MANY_PACKETS),
        (PACKETS_OF_FLOW, MANY_PACKETS),
        (PACING, 0),
        (HORIZON, HOUR_IN_MICROSECONDS),
    ];
    let option = |(kind, value): (u16, u32)| {
        TcOption::Other(DefaultNla::new(kind, value.to_ne_bytes().to_vec()))
    };
    let mut message = TcMessage::with_index(ifindex as i32);
    message.header.parent = TcHandle::from(ROOT);
    message.header.handle = TcHandle::from(HANDLE);
    message.attributes = vec![
        TcAttribute::Kind(FQ.into()),
        TcAttribute::Options(options.into_iter().map(option).collect()),
    ];
    RouteNetlinkMessage::NewQueueDiscipline(message)
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::{NetlinkHeader, NetlinkMessage, NetlinkPayload};

    use super::*;

    fn qdisc(parent: u32, handle: u32, kind: &str) -> Qdisc {
        Qdisc { parent, handle, kind: kind.into() }
    }

    #[test]
    fn only_the_kernels_default_makes_room() {
        let clsact = || qdisc(0xffff_fff1, 0xffff_0000, "clsact");
        for (root, found) in [
            (Root::Default, vec![]),
            (Root::Default, vec![clsact(), qdisc(ROOT, 0, "noqueue")]),
            (Root::Default, vec![qdisc(0x1, 0, "pfifo_fast"), qdisc(ROOT, 0, "mq")]),
            (Root::Ours, vec![qdisc(ROOT, HANDLE, "fq"), clsact()]),
            (Root::Others("fq".into()), vec![qdisc(ROOT, 0x8001_0000, "fq")]),
            (Root::Others("tbf".into()), vec![qdisc(ROOT, 0x0001_0000, "tbf"), clsact()]),
            (Root::Others("tbf".into()), vec![qdisc(ROOT, HANDLE, "tbf")]),
        ] {
            assert_eq!(root_of(&found), root, "{found:?}");
        }
    }

    #[test]
    fn the_request_is_what_the_kernel_reads() {
        let mut message =
            NetlinkMessage::new(NetlinkHeader::default(), NetlinkPayload::from(new_fq(7)));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        // behind nlmsghdr: struct tcmsg
        let word = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap());
        assert_eq!([word(20), word(24), word(28)], [7, HANDLE, ROOT]);
        // TCA_KIND, TCA_OPTIONS with one attribute of 4 bytes for each option
        let options = [(1, 100_000), (2, 100_000), (5, 0), (14, 3_600_000_000_u32)];
        let mut wanted = vec![7, 0, 1, 0, b'f', b'q', 0, 0, 36, 0, 2, 0];
        for (kind, value) in options {
            wanted.extend([8, 0, kind, 0]);
            wanted.extend(value.to_ne_bytes());
        }
        assert_eq!(bytes[36..], wanted);
    }
}
