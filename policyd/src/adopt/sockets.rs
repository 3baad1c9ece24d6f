//! The sockets of a pod: its open connections where conntrack has no entries, and which side opened each.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::ops::RangeInclusive;

use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6};
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, SocketId, StateFlags};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use podgate_bpf::abi::ip_protocol::{TCP, UDP};
use podgate_bpf::abi::{Direction, FlowState};
use podgate_link::netlink::Netlink;

/// States of `tcp_states.h`; a datagram socket that is connected is "established", any other "close".
const ESTABLISHED: u8 = 1;
const SYN_SENT: u8 = 2;
const SYN_RECV: u8 = 3;
const TIME_WAIT: u8 = 6;
const CLOSE: u8 = 7;
const LISTEN: u8 = 10;

/// A pod's open sockets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Sockets {
    /// Connected TCP and UDP sockets.
    pub(super) connected: Vec<Connected>,
    /// Protocol and port of TCP sockets in LISTEN and of unconnected UDP sockets.
    listening: BTreeSet<(u8, u16)>,
    /// `ip_local_port_range`: ports that the kernel chooses for sockets that bind none.
    ephemeral: RangeInclusive<u16>,
}

/// A connected socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Connected {
    /// TCP or UDP.
    pub(super) protocol: u8,
    /// The pod's side.
    pub(super) local: SocketAddr,
    /// The peer's side.
    pub(super) remote: SocketAddr,
    /// State of the connection.
    pub(super) state: FlowState,
}

impl Default for Sockets {
    fn default() -> Self {
        Self { connected: Vec::new(), listening: BTreeSet::new(), ephemeral: 32768..=60999 }
    }
}

impl Sockets {
    /// Reads those of the calling thread's network namespace. None on a kernel without sock_diag.
    pub(super) fn read() -> io::Result<Self> {
        let mut sockets = Self::default();
        if let Some(range) = ephemeral() {
            sockets.ephemeral = range;
        }
        let netlink = match Netlink::open(NETLINK_SOCK_DIAG) {
            Err(e) if e.raw_os_error() == Some(nix::libc::EPROTONOSUPPORT) => return Ok(sockets),
            opened => opened?,
        };
        for (family, socket_id) in [(AF_INET, SocketId::new_v4()), (AF_INET6, SocketId::new_v6())] {
            for protocol in [TCP, UDP] {
                let request = SockDiagMessage::InetRequest(InetRequest {
                    family,
                    protocol,
                    extensions: ExtensionFlags::empty(),
                    states: StateFlags::all(),
                    socket_id: socket_id.clone(),
                });
                match netlink.dump(request, |answer| sockets.take(protocol, answer)) {
                    // the kernel has no sock_diag module for this protocol
                    Err(e) if e.raw_os_error() == Some(nix::libc::ENOENT) => {}
                    listed => listed?,
                }
            }
        }
        Ok(sockets)
    }

    fn take(&mut self, protocol: u8, answer: SockDiagMessage) {
        let SockDiagMessage::InetResponse(response) = answer else { return };
        let id = &response.header.socket_id;
        // dual-stack sockets have IPv4-mapped addresses
        let local = SocketAddr::new(id.source_address.to_canonical(), id.source_port);
        let remote = SocketAddr::new(id.destination_address.to_canonical(), id.destination_port);
        let state = match (protocol, response.header.state) {
            (TCP, LISTEN) | (UDP, CLOSE) => {
                self.listening.insert((protocol, local.port()));
                return;
            }
            (TCP, SYN_SENT) => FlowState::New,
            (_, ESTABLISHED) | (TCP, SYN_RECV) => FlowState::Established,
            (TCP, TIME_WAIT) => FlowState::Closed,
            (TCP, CLOSE) => return,
            (TCP, _) => FlowState::Closing,
            _ => return,
        };
        self.connected.push(Connected { protocol, local, remote, state });
    }

    /// The direction in which the connection between these two ports was opened: towards a listening TCP port, or from an
    /// ephemeral UDP port to one that is not. `None` if this does not decide it.
    pub(super) fn opener(&self, protocol: u8, local: u16, remote: u16) -> Option<Direction> {
        if protocol == TCP {
            let listens = self.listening.contains(&(TCP, local));
            return Some(if listens { Direction::Ingress } else { Direction::Egress });
        }
        match (self.ephemeral.contains(&local), self.ephemeral.contains(&remote)) {
            (true, false) => Some(Direction::Egress),
            (false, true) => Some(Direction::Ingress),
            _ => None,
        }
    }
}

/// `ip_local_port_range` of the calling thread's network namespace.
fn ephemeral() -> Option<RangeInclusive<u16>> {
    let text = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").ok()?;
    let mut numbers = text.split_whitespace().map(str::parse);
    Some(numbers.next()?.ok()?..=numbers.next()?.ok()?)
}

#[cfg(test)]
impl Sockets {
    /// From listening ports and connected sockets.
    pub(super) fn of(listening: &[(u8, u16)], connected: &[(u8, &str, &str)]) -> Self {
        let connected = connected.iter().map(|(protocol, local, remote)| Connected {
            protocol: *protocol,
            local: local.parse().unwrap(),
            remote: remote.parse().unwrap(),
            state: FlowState::Established,
        });
        Self {
            connected: connected.collect(),
            listening: listening.iter().copied().collect(),
            ..Self::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};

    use super::*;

    #[test]
    fn the_kernel_lists_what_this_process_has_open() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let served = listener.local_addr().unwrap();
        let client = TcpStream::connect(served).unwrap();
        let asks = UdpSocket::bind("[::1]:0").unwrap();
        asks.connect("[::1]:9").unwrap();
        let found = Sockets::read().unwrap();
        let is = |protocol, local, remote| {
            let of = Connected { protocol, local, remote, state: FlowState::Established };
            found.connected.contains(&of)
        };
        let port = client.local_addr().unwrap();
        assert!(is(TCP, port, served) && is(TCP, served, port));
        assert!(is(UDP, asks.local_addr().unwrap(), asks.peer_addr().unwrap()));
        assert_eq!(found.opener(TCP, served.port(), port.port()), Some(Direction::Ingress));
        assert_eq!(found.opener(TCP, port.port(), served.port()), Some(Direction::Egress));
    }
}
