//! Connections from the kernel's conntrack table.

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
use podgate_bpf::abi::ip_protocol::{ICMP, ICMPV6, SCTP, TCP, UDP};
use podgate_link::netlink::Netlink;

/// A conntrack entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tracked {
    /// IP protocol.
    pub(super) protocol: u8,
    /// Source and destination of the packets in the opener's direction.
    pub(super) original: Sides,
    /// Those of the replies. With address translation they are not `original` reversed.
    pub(super) reply: Sides,
    /// State of the connection.
    pub(super) state: FlowState,
    /// Picked up mid-stream, so `original` may be the direction of the replies.
    pub(super) picked_up: bool,
}

/// Source and destination. Ports are 0 where the protocol has none; for an echo both are its identifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sides {
    pub(super) source: SocketAddr,
    pub(super) destination: SocketAddr,
}

/// Calls `each` for every entry of this network namespace. A kernel without conntrack has none.
pub(super) fn each(mut each: impl FnMut(Tracked)) -> io::Result<()> {
    let header = NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, 0);
    let request = NetfilterMessage::new(header, ConntrackMessage::Get(Vec::new()));
    let listed = Netlink::open(NETLINK_NETFILTER).and_then(|netlink| {
        netlink.dump(request, |answer: NetfilterMessage| {
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
            tracing::debug!("this kernel has no connection tracking");
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
                            // set if conntrack has not seen the handshake and so does not know the window scale
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

/// From `enum tcp_conntrack` of the same header; `None` if the connection is over.
fn tcp_state(state: u8) -> Option<FlowState> {
    match state {
        1 | 9 => Some(FlowState::New), // SYN_SENT, SYN_SENT2 (simultaneous open)
        2 | 3 => Some(FlowState::Established), // SYN_RECV (both sides have sent), ESTABLISHED
        4..=6 => Some(FlowState::Closing), // FIN_WAIT, CLOSE_WAIT, LAST_ACK
        7 => Some(FlowState::Closed),  // TIME_WAIT: the last segments may be repeated
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
