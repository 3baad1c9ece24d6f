//! Sockets that talk, and how one tells whether they still can.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, setsockopt, socket, sockopt,
};
use podgate_bpf::abi::Reason;
use podgate_testkit::net::Net;
use podgate_testkit::wait::WAIT_TIMEOUT;
use podgate_tests::netlab::{Lab, Tap};

pub(crate) use podgate_bpf::abi::Direction::{Egress, Ingress};
pub(crate) use podgate_policy::model::Direction as Policed;
pub(crate) use podgate_policy::model::Protocol;
pub(crate) use podgate_tests::netlab::{Family, Pod, Policy};

/// The port that policies speak of.
pub(crate) const PORT: u16 = 80;

/// How long silence has to last to be believed: several retransmissions of a young connection.
pub(crate) const SILENCE: Duration = Duration::from_millis(900);

/// A listening socket of a namespace.
pub(crate) fn listen(net: &Net, address: IpAddr, port: u16) -> TcpListener {
    bound(net, address, port, TcpListener::bind)
}

/// A UDP socket of a namespace.
pub(crate) fn datagrams(net: &Net, address: IpAddr, port: u16) -> UdpSocket {
    bound(net, address, port, UdpSocket::bind)
}

/// A port that this test has just let go can be taken for a moment yet: a child that a test on another thread
/// starts holds all of this process's sockets between fork and exec.
fn bound<T: Send>(
    net: &Net,
    address: IpAddr,
    port: u16,
    bind: fn(SocketAddr) -> io::Result<T>,
) -> T {
    let to = SocketAddr::new(address, port);
    let deadline = Instant::now() + WAIT_TIMEOUT;
    loop {
        match net.run(|| bind(to)) {
            Ok(socket) => return socket,
            Err(e) if e.kind() == ErrorKind::AddrInUse && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(e) => panic!("bind {to}: {e}"),
        }
    }
}

/// A connection from a namespace.
pub(crate) fn dial(net: &Net, to: SocketAddr, patience: Duration) -> io::Result<TcpStream> {
    net.run(|| TcpStream::connect_timeout(&to, patience))
}

/// A connection from a certain port, which an earlier one may have used; that one's last packets may be under way yet.
pub(crate) fn dial_from(net: &Net, from: SocketAddr, to: SocketAddr) -> io::Result<TcpStream> {
    let deadline = Instant::now() + WAIT_TIMEOUT;
    loop {
        match dial_once_from(net, from, to) {
            Err(e) if e.kind() == ErrorKind::AddrNotAvailable && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(1));
            }
            dialled => return dialled,
        }
    }
}

fn dial_once_from(net: &Net, from: SocketAddr, to: SocketAddr) -> io::Result<TcpStream> {
    let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let made = net.run(|| socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None))?;
    setsockopt(&made, sockopt::ReuseAddr, &true)?;
    bind(made.as_raw_fd(), &SockaddrStorage::from(from))?;
    let stream = TcpStream::from(made);
    stream.set_write_timeout(Some(Duration::from_secs(3)))?; // SO_SNDTIMEO limits connect(2) too
    match connect(stream.as_raw_fd(), &SockaddrStorage::from(to)) {
        Ok(()) => Ok(stream),
        Err(Errno::EINPROGRESS) => Err(ErrorKind::TimedOut.into()),
        Err(e) => Err(e.into()),
    }
}

/// The other end of a connection that was just made.
pub(crate) fn accept(listener: &TcpListener) -> TcpStream {
    listener.set_nonblocking(true).unwrap();
    let deadline = Instant::now() + WAIT_TIMEOUT;
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false).unwrap();
                return stream;
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(e) => panic!("accept a connection: {e}"),
        }
    }
}

/// Whether a listener has a connection waiting. Not for one that must be there: the dialler knows of it first.
pub(crate) fn is_dialled(listener: &TcpListener) -> bool {
    listener.set_nonblocking(true).unwrap();
    listener.accept().is_ok()
}

/// Both ends of something.
#[derive(Debug)]
pub(crate) struct Ends<T> {
    pub(crate) client: T,
    pub(crate) server: T,
}

/// A TCP connection, open.
pub(crate) fn tcp(client: &Pod, server: &Pod, family: Family, port: u16) -> Ends<TcpStream> {
    let listener = listen(&server.net, server.address(family), port);
    let to = SocketAddr::new(server.address(family), port);
    let stream =
        dial(&client.net, to, WAIT_TIMEOUT).unwrap_or_else(|e| panic!("connect to {to}: {e}"));
    Ends { client: stream, server: accept(&listener) }
}

/// Two UDP sockets, connected to each other.
pub(crate) fn udp(client: &Pod, server: &Pod, family: Family, port: u16) -> Ends<UdpSocket> {
    let client = datagrams(&client.net, client.address(family), 0);
    let server = datagrams(&server.net, server.address(family), port);
    client.connect(server.local_addr().unwrap()).unwrap();
    server.connect(client.local_addr().unwrap()).unwrap();
    Ends { client, server }
}

/// One end of a conversation.
pub(crate) trait End {
    /// Sends all of it.
    fn say(&self, what: &[u8]);
    /// What comes next, as far as it comes before the time is over.
    fn hear(&self, length: usize, within: Duration) -> Option<Vec<u8>>;
}

impl End for TcpStream {
    fn say(&self, what: &[u8]) {
        let mut stream = self;
        stream.write_all(what).unwrap_or_else(|e| panic!("write to {stream:?}: {e}"));
    }

    fn hear(&self, length: usize, within: Duration) -> Option<Vec<u8>> {
        let mut stream = self;
        stream.set_read_timeout(Some(within)).unwrap();
        let mut heard = vec![0; length];
        match stream.read_exact(&mut heard) {
            Ok(()) => Some(heard),
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => None,
            Err(e) => panic!("read from {stream:?}: {e}"),
        }
    }
}

impl End for UdpSocket {
    fn say(&self, what: &[u8]) {
        let sent = self.send(what).unwrap_or_else(|e| panic!("send from {self:?}: {e}"));
        assert_eq!(sent, what.len());
    }

    fn hear(&self, length: usize, within: Duration) -> Option<Vec<u8>> {
        self.set_read_timeout(Some(within)).unwrap();
        let mut heard = vec![0; length + 1];
        match self.recv(&mut heard) {
            Ok(received) => {
                heard.truncate(received);
                Some(heard)
            }
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => None,
            Err(e) => panic!("receive at {self:?}: {e}"),
        }
    }
}

impl<T: End> Ends<T> {
    /// A question and its answer; both must come through.
    #[track_caller]
    pub(crate) fn exchange(&self, what: &str) {
        self.client.say(b"question");
        assert_eq!(self.server.hear(8, WAIT_TIMEOUT).as_deref(), Some(&b"question"[..]), "{what}");
        self.server.say(b"answer");
        assert_eq!(self.client.hear(6, WAIT_TIMEOUT).as_deref(), Some(&b"answer"[..]), "{what}");
    }
}

/// Looks over the wire at both ends of a conversation.
pub(crate) struct Watch {
    at_client: Tap,
    at_server: Tap,
    client: Vec<u8>,
    server: Vec<u8>,
}

impl Watch {
    pub(crate) fn new(client: &Pod, server: &Pod, family: Family) -> Self {
        let bytes = |pod: &Pod| match pod.address(family) {
            IpAddr::V4(v4) => v4.octets().to_vec(),
            IpAddr::V6(v6) => v6.octets().to_vec(),
        };
        Self {
            at_client: Tap::new(&client.net, "eth0"),
            at_server: Tap::new(&server.net, "eth0"),
            client: bytes(client),
            server: bytes(server),
        }
    }

    /// Forgets what has passed so far.
    pub(crate) fn begin(&self) {
        self.at_client.drain();
        self.at_server.drain();
    }

    /// Packets with data ports (no neighbour discovery) that have arrived since: (at the client, at the server).
    pub(crate) fn arrived(&self) -> (usize, usize) {
        let count = |tap: &Tap, from: &[u8], to: &[u8]| {
            tap.drain().iter().filter(|frame| is_packet(frame, from, to)).count()
        };
        (
            count(&self.at_client, &self.server, &self.client),
            count(&self.at_server, &self.client, &self.server),
        )
    }
}

/// Whether it is an IP packet between these two, and no neighbour discovery.
fn is_packet(frame: &[u8], from: &[u8], to: &[u8]) -> bool {
    let (at, protocol_at) = if from.len() == 4 { (26, 23) } else { (22, 20) };
    let (ethertype, icmp6) = (&frame[12..14], 58);
    let right = if from.len() == 4 { [8, 0] } else { [0x86, 0xdd] };
    ethertype == right
        && frame.len() >= at + 2 * from.len()
        && frame[at..].starts_with(from)
        && frame[at + from.len()..].starts_with(to)
        && !(frame[protocol_at] == icmp6 && matches!(frame.get(54), Some(133..=137)))
}

/// Packets that were refused, at any gate.
pub(crate) fn denied(lab: &Lab) -> u64 {
    lab.counted().iter().filter(|(_, reason, _)| reason.is_denial()).map(|(.., n)| n).sum()
}

/// Asserts that no gate has refused anything.
#[track_caller]
pub(crate) fn nothing_denied(lab: &Lab) {
    assert_eq!(denied(lab), 0, "{:?}", lab.counted());
}

/// Packets refused by policy, in this direction.
pub(crate) fn refused(lab: &Lab, direction: podgate_bpf::abi::Direction) -> u64 {
    lab.count(direction, Reason::DenyPolicy)
}

/// Allows TCP and UDP to [`PORT`] in this direction.
pub(crate) fn port(policy: Policy, direction: Policed) -> Policy {
    policy.allow(direction, Protocol::Tcp, PORT).allow(direction, Protocol::Udp, PORT)
}

/// Has the kernel compute what it sends through this interface, checksums and segments, and verify what it receives.
#[track_caller]
pub(crate) fn without_offload(net: &Net, interface: &str) {
    let arguments = format!("-K {interface} tx off rx off tso off gso off gro off");
    net.run(|| podgate_testkit::sandbox::command("ethtool", &arguments))
        .unwrap_or_else(|e| panic!("turn checksum offload off: {e}"));
}
