//! The kernel's own table of connections, as far as it has one.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use netlink_packet_netfilter::conntrack::{
    ConntrackAttribute, ConntrackMessage, IPTuple, ProtoInfo, ProtoInfoTCP, ProtoTuple, Status,
    Tuple,
};
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
};
use netlink_sys::protocols::NETLINK_NETFILTER;
use podgate_bpf::abi::FlowState;
use podgate_bpf::netlink::Netlink;

use super::seeds::protocol::{ICMP, ICMPV6, SCTP, TCP, UDP};

/// An entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tracked {
    /// IP protocol.
    pub(super) protocol: u8,
    /// As its opener sent it.
    pub(super) original: Sides,
    /// As its answers are sent: address translation shows as a difference to `original` turned round.
    pub(super) reply: Sides,
    /// How far it is.
    pub(super) state: FlowState,
    /// Tracking began in its midst, so `original` may be an answer's.
    pub(super) picked_up: bool,
}

/// Who to whom. Ports are 0 where the protocol has none; an echo has its identifier for both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sides {
    pub(super) source: SocketAddr,
    pub(super) destination: SocketAddr,
}

/// Shows `each` every entry of this network namespace. A kernel without connection tracking has none.
pub(super) fn each(mut each: impl FnMut(Tracked)) -> io::Result<()> {
    let header = NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, 0);
    let question = NetfilterMessage::new(header, ConntrackMessage::Get(Vec::new()));
    let listed = Netlink::open(NETLINK_NETFILTER).and_then(|netlink| {
        netlink.dump(question, |answer: NetfilterMessage| {
            if let NetfilterMessageInner::Conntrack(ConntrackMessage::New(attributes)) =
                answer.inner
                && let Some(tracked) = read(&attributes)
            {
                each(tracked);
            }
        })
    });
    match listed {
        // no such socket family, or no such subsystem behind it
        Err(e)
            if matches!(
                e.raw_os_error(),
                Some(nix::libc::EPROTONOSUPPORT | nix::libc::EINVAL | nix::libc::EOPNOTSUPP)
            ) =>
        {
            tracing::debug!("this kernel tracks no connections");
            Ok(())
        }
        listed => listed,
    }
}

fn read(attributes: &[ConntrackAttribute]) -> Option<Tracked> {
    let (mut original, mut reply) = (None, None);
    let mut status = Status::empty();
    let (mut tcp, mut picked_up) = (None, false);
    for attribute in attributes {
        match attribute {
            ConntrackAttribute::CtaTupleOrig(tuple) => original = sides(tuple),
            ConntrackAttribute::CtaTupleReply(tuple) => reply = sides(tuple),
            ConntrackAttribute::CtaStatus(found) => status = *found,
            ConntrackAttribute::CtaProtoInfo(infos) => {
                for info in infos {
                    let ProtoInfo::TCP(infos) = info else { continue };
                    for info in infos {
                        match info {
                            ProtoInfoTCP::State(state) => tcp = Some(*state),
                            // who has not seen the handshake does not know the windows' scale
                            ProtoInfoTCP::OriginalFlags(flags) => {
                                picked_up = flags.flags & BE_LIBERAL != 0;
                            }
                            _ => {}
                        }
                    }
                }
            }
            _ => {}
        }
    }
    let ((protocol, original), (_, reply)) = (original?, reply?);
    let state = match (protocol, tcp) {
        (TCP, tcp) => tcp_state(tcp?)?,
        _ if status.contains(Status::SeenReply) => FlowState::Established,
        _ => FlowState::New,
    };
    Some(Tracked { protocol, original, reply, state, picked_up })
}

/// `IP_CT_TCP_FLAG_BE_LIBERAL` of nf_conntrack_tcp.h.
const BE_LIBERAL: u8 = 8;

/// `enum tcp_conntrack` of the same header; `None`: over.
fn tcp_state(state: u8) -> Option<FlowState> {
    match state {
        1 | 9 => Some(FlowState::New),         // SYN_SENT, and both at once
        2 | 3 => Some(FlowState::Established), // SYN_RECV: both have spoken
        4..=6 => Some(FlowState::Closing),     // FIN_WAIT, CLOSE_WAIT, LAST_ACK
        7 => Some(FlowState::Closed),          // TIME_WAIT: the last segments may be repeated
        _ => None,
    }
}

fn sides(tuples: &[Tuple]) -> Option<(u8, Sides)> {
    let nowhere = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    let (mut source, mut destination, mut protocol) = (nowhere, nowhere, 0);
    let (mut source_port, mut destination_port, mut echo) = (0, 0, None);
    for tuple in tuples {
        match tuple {
            Tuple::Ip(ips) => {
                for ip in ips {
                    match ip {
                        IPTuple::SourceAddress(ip) => source = *ip,
                        IPTuple::DestinationAddress(ip) => destination = *ip,
                        _ => {}
                    }
                }
            }
            Tuple::Proto(parts) => {
                for part in parts {
                    match part {
                        ProtoTuple::Protocol(number) => protocol = u8::from(*number),
                        ProtoTuple::SourcePort(port) => source_port = *port,
                        ProtoTuple::DestinationPort(port) => destination_port = *port,
                        ProtoTuple::Other(other) => {
                            echo = echo.or(echo_id(other));
                        }
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    let (source_port, destination_port) = match protocol {
        TCP | UDP | SCTP => (source_port, destination_port),
        ICMP | ICMPV6 => (echo?, echo?),
        _ => (0, 0),
    };
    let source = SocketAddr::new(source, source_port);
    let destination = SocketAddr::new(destination, destination_port);
    Some((protocol, Sides { source, destination }))
}

/// CTA_PROTO_ICMP_ID and CTA_PROTO_ICMPV6_ID of nfnetlink_conntrack.h.
fn echo_id(attribute: &impl netlink_packet_core::Nla) -> Option<u16> {
    let mut value = [0; 2];
    if !matches!(attribute.kind(), 4 | 7) || attribute.value_len() != value.len() {
        return None;
    }
    attribute.emit_value(&mut value);
    Some(u16::from_be_bytes(value))
}
