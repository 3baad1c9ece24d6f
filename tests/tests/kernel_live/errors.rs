//! ICMP errors reach those whom they concern, whatever policy says of ICMP.

use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::thread;

use nix::sys::socket::{setsockopt, sockopt};
use podgate_bpf::abi::Reason;
use podgate_testkit::net::Net;
use podgate_testkit::wait::{WAIT_TIMEOUT, eventually};
use podgate_tests::netlab::Lab;

use crate::Test;
use crate::talk::*;

pub(crate) const TESTS: &[Test] = &[
    ("path_mtu_discovery_works_at_an_isolated_sender", path_mtu),
    ("path_mtu_discovery_works_at_an_isolated_server", path_mtu_of_a_server),
    ("a_closed_port_refuses_datagrams_through_both_gates", closed_udp_port),
    ("a_closed_port_refuses_connections_through_both_gates", closed_tcp_port),
    ("time_exceeded_reaches_an_isolated_sender", time_exceeded),
];

/// How much has to get through.
const LOAD: usize = 1 << 20;

/// A pod, and a namespace behind a link that takes less at a time than the pod's own.
struct Narrow {
    pod: Pod,
    far: Net,
    _router: Pod,
}

impl Narrow {
    fn new(lab: &Lab, policy: &Policy) -> Self {
        let (router, far) = lab.behind_router(1280);
        let pod = lab.gated(policy);
        lab.route(&pod, &router);
        Self { pod, far, _router: router }
    }
}

/// Sends [`LOAD`] one way; the receiver must get all of it.
fn carry(sender: std::net::TcpStream, receiver: std::net::TcpStream) {
    thread::scope(|scope| {
        scope.spawn(move || {
            let mut sender = sender;
            sender.set_write_timeout(Some(WAIT_TIMEOUT)).unwrap();
            sender.write_all(&vec![7; LOAD]).unwrap();
        });
        let mut receiver = receiver;
        receiver.set_read_timeout(Some(WAIT_TIMEOUT)).unwrap();
        let mut got = vec![0; LOAD];
        receiver.read_exact(&mut got).unwrap_or_else(|e| panic!("the transfer stalls: {e}"));
        assert!(got.iter().all(|byte| *byte == 7));
    });
}

fn path_mtu(lab: &Lab, family: Family) {
    let net = Narrow::new(lab, &port(Policy::isolated(), Policed::Egress));
    let to = SocketAddr::new(Lab::far_address(family), PORT);
    let listener = listen(&net.far, to.ip(), PORT);
    let sender = dial(&net.pod.net, to, WAIT_TIMEOUT).unwrap();
    carry(sender, accept(&listener));
    assert!(lab.count(Ingress, Reason::AllowRelated) > 0, "{:?}", lab.counted());
    nothing_denied(lab);
}

/// The pod answers: the error quotes a packet of a flow that somebody else opened.
fn path_mtu_of_a_server(lab: &Lab, family: Family) {
    let net = Narrow::new(lab, &port(Policy::isolated(), Policed::Ingress));
    let to = SocketAddr::new(net.pod.address(family), PORT);
    let listener = listen(&net.pod.net, to.ip(), PORT);
    let receiver = dial(&net.far, to, WAIT_TIMEOUT).unwrap();
    carry(accept(&listener), receiver);
    assert!(lab.count(Ingress, Reason::AllowRelated) > 0, "{:?}", lab.counted());
    nothing_denied(lab);
}

/// Neither pod may do anything but this: the server may not even send.
fn guarded(lab: &Lab) -> (Pod, Pod) {
    let client = lab.gated(&port(Policy::isolated(), Policed::Egress));
    let server = lab.gated(&port(Policy::isolated(), Policed::Ingress));
    (client, server)
}

fn closed_udp_port(lab: &Lab, family: Family) {
    let (client, server) = guarded(lab);
    let socket = datagrams(&client.net, client.address(family), 0);
    socket.connect((server.address(family), PORT)).unwrap();
    socket.set_read_timeout(Some(WAIT_TIMEOUT)).unwrap();
    socket.send(b"anybody?").unwrap();
    let answer = socket.recv(&mut [0; 8]).map_err(|e| e.kind());
    assert_eq!(answer, Err(ErrorKind::ConnectionRefused), "{:?}", lab.counted());
    // once from the server, once to the client
    assert_eq!(lab.count(Egress, Reason::AllowRelated), 1);
    assert_eq!(lab.count(Ingress, Reason::AllowRelated), 1);
    nothing_denied(lab);
}

fn closed_tcp_port(lab: &Lab, family: Family) {
    let (client, server) = guarded(lab);
    let to = SocketAddr::new(server.address(family), PORT);
    let refused = dial(&client.net, to, WAIT_TIMEOUT).map_err(|e| e.kind());
    assert_eq!(refused.err(), Some(ErrorKind::ConnectionRefused), "{:?}", lab.counted());
    nothing_denied(lab);
}

/// What traceroute lives on.
fn time_exceeded(lab: &Lab, family: Family) {
    let net = Narrow::new(lab, &port(Policy::isolated(), Policed::Egress));
    let socket = datagrams(&net.pod.net, net.pod.address(family), 0);
    socket.connect((Lab::far_address(family), PORT)).unwrap();
    match family {
        Family::V4 => {
            setsockopt(&socket, sockopt::Ipv4RecvErr, &true).unwrap();
            setsockopt(&socket, sockopt::Ipv4Ttl, &1).unwrap();
        }
        Family::V6 => {
            setsockopt(&socket, sockopt::Ipv6RecvErr, &true).unwrap();
            setsockopt(&socket, sockopt::Ipv6Ttl, &1).unwrap();
        }
    }
    socket.set_nonblocking(true).unwrap();
    socket.send(b"how far?").unwrap();
    eventually(
        "the router's answer",
        || matches!(socket.recv(&mut [0; 8]), Err(e) if e.kind() == ErrorKind::HostUnreachable),
    );
    assert_eq!(lab.count(Ingress, Reason::AllowRelated), 1, "{:?}", lab.counted());
    nothing_denied(lab);
}
