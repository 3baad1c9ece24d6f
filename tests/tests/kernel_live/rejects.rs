//! Who is rejected is told at once, by an error of its own socket: between pods, from the node, and by a pod behind a router.

use std::io::{ErrorKind, Read};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use nix::sys::socket::{getsockopt, setsockopt, sockopt};
use podgate_bpf::abi::Reason;
use podgate_testkit::net::Net;
use podgate_testkit::wait::{WAIT_TIMEOUT, eventually};
use podgate_tests::netlab::Lab;

use crate::Test;
use crate::talk::*;

pub(crate) const TESTS: &[Test] = &[
    ("rejects_a_connection_of_the_pod", egress_tcp),
    ("rejects_a_connection_to_the_pod", ingress_tcp),
    ("rejects_a_connection_of_the_node", tcp_of_the_node),
    ("rejects_a_connection_from_behind_a_router", tcp_from_afar),
    ("rejects_datagrams_of_the_pod", egress_udp),
    ("rejects_datagrams_to_the_pod", ingress_udp),
    ("rejects_datagrams_from_behind_a_router", udp_from_afar),
    ("rejects_an_open_connection", open_connection),
    ("takes_no_mark_of_the_pod_for_an_answer", marked_by_the_pod),
];

/// Less than the second after which the kernel sends a SYN again: who is refused by then was told at the first one.
const AT_ONCE: Duration = Duration::from_millis(900);

/// Connects, and is refused before a SYN is sent twice.
fn is_refused(lab: &Lab, from: &Net, to: SocketAddr) {
    // Link addresses are looked up first, which takes its time on a busy machine; an attempt that took long proves nothing.
    eventually("a refusal at once", || {
        let begun = Instant::now();
        let refused = dial(from, to, WAIT_TIMEOUT).map_err(|e| e.kind());
        assert_eq!(refused.err(), Some(ErrorKind::ConnectionRefused), "{:?}", lab.counted());
        begun.elapsed() < AT_ONCE
    });
}

/// Sends until the socket has an error, and says which.
fn error_of_sending(lab: &Lab, from: &Net, own: std::net::IpAddr, to: SocketAddr) -> ErrorKind {
    let socket = datagrams(from, own, 0);
    socket.connect(to).unwrap();
    socket.set_read_timeout(Some(WAIT_TIMEOUT)).unwrap();
    socket.send(b"anybody?").unwrap();
    let answer = socket.recv(&mut [0; 8]).map_err(|e| e.kind());
    answer.err().unwrap_or_else(|| panic!("an answer: {:?}", lab.counted()))
}

/// What the kernel makes of "administratively prohibited".
fn prohibited(family: Family) -> ErrorKind {
    match family {
        Family::V4 => ErrorKind::HostUnreachable,
        Family::V6 => ErrorKind::PermissionDenied,
    }
}

fn rejecting() -> Policy {
    Policy::isolated().rejecting()
}

fn egress_tcp(lab: &Lab, family: Family) {
    let (client, server) = (lab.gated(&rejecting()), lab.pod());
    let to = SocketAddr::new(server.address(family), PORT);
    let listener = listen(&server.net, to.ip(), PORT);
    is_refused(lab, &client.net, to);
    without_offload(&client.net, "eth0");
    is_refused(lab, &client.net, to);
    assert!(!is_dialled(&listener));
    assert!(lab.count(Egress, Reason::DenyPolicy) > 1);
    assert_eq!(refused(lab, Ingress), 0, "the answer passes the pod's gate: {:?}", lab.counted());
}

/// Through the gate of a client to which nothing but answers may come.
fn ingress_tcp(lab: &Lab, family: Family) {
    let client = lab.gated(&port(Policy::isolated(), Policed::Egress));
    let server = lab.gated(&rejecting());
    let to = SocketAddr::new(server.address(family), PORT);
    let listener = listen(&server.net, to.ip(), PORT);
    is_refused(lab, &client.net, to);
    assert!(!is_dialled(&listener));
    assert_eq!(refused(lab, Egress), 0, "the answer passes the pod's gate: {:?}", lab.counted());
}

fn tcp_of_the_node(lab: &Lab, family: Family) {
    let server = lab.gated(&rejecting());
    let to = SocketAddr::new(server.address(family), PORT);
    let _listener = listen(&server.net, to.ip(), PORT);
    is_refused(lab, &lab.node, to);
}

/// A rejecting pod and a namespace behind a router, whose device completes the checksums that senders left to one. The
/// namespace verifies them.
fn behind_a_device(lab: &Lab) -> (Pod, Net, Pod) {
    let (router, far) = lab.behind_router(1500);
    without_offload(&router.net, "far");
    let server = lab.gated(&rejecting());
    lab.route(&server, &router);
    (server, far, router)
}

fn tcp_from_afar(lab: &Lab, family: Family) {
    let (server, far, _router) = behind_a_device(lab);
    let to = SocketAddr::new(server.address(family), PORT);
    let _listener = listen(&server.net, to.ip(), PORT);
    is_refused(lab, &far, to);
    without_offload(&far, "eth0");
    is_refused(lab, &far, to);
}

fn egress_udp(lab: &Lab, family: Family) {
    let (client, server) = (lab.gated(&rejecting()), lab.pod());
    let to = SocketAddr::new(server.address(family), PORT);
    let told = || error_of_sending(lab, &client.net, client.address(family), to);
    assert_eq!(told(), prohibited(family), "{:?}", lab.counted());
    without_offload(&client.net, "eth0");
    assert_eq!(told(), prohibited(family), "{:?}", lab.counted());
    assert_eq!(refused(lab, Ingress), 0, "the answer passes the pod's gate: {:?}", lab.counted());
}

fn ingress_udp(lab: &Lab, family: Family) {
    let client = lab.gated(&Policy::isolated().allow(Policed::Egress, Protocol::Udp, PORT));
    let server = lab.gated(&rejecting());
    let to = SocketAddr::new(server.address(family), PORT);
    let told = error_of_sending(lab, &client.net, client.address(family), to);
    assert_eq!(told, prohibited(family), "{:?}", lab.counted());
    assert_eq!(lab.count(Ingress, Reason::AllowRelated), 1, "at the client: {:?}", lab.counted());
    assert_eq!(refused(lab, Egress), 0, "the answer passes the pod's gate: {:?}", lab.counted());
}

fn udp_from_afar(lab: &Lab, family: Family) {
    let (server, far, _router) = behind_a_device(lab);
    let to = SocketAddr::new(server.address(family), PORT);
    let told = || error_of_sending(lab, &far, Lab::far_address(family), to);
    assert_eq!(told(), prohibited(family), "{:?}", lab.counted());
    without_offload(&far, "eth0");
    assert_eq!(told(), prohibited(family), "{:?}", lab.counted());
}

/// Whoever sends next on a connection that is rejected from now on has it reset.
fn open_connection(lab: &Lab, family: Family) {
    let (client, server) = (lab.gated(&Policy::open()), lab.pod());
    let ends = tcp(&client, &server, family, PORT);
    ends.exchange("before");
    lab.set_policy(&client, &rejecting());
    std::io::Write::write_all(&mut &ends.client, b"more").unwrap();
    ends.client.set_read_timeout(Some(WAIT_TIMEOUT)).unwrap();
    let reset = (&ends.client).read(&mut [0; 8]).map_err(|e| e.kind());
    assert_eq!(reset, Err(ErrorKind::ConnectionReset), "{:?}", lab.counted());
}

/// The mark by which the gate knows its own answers, as the programs have it.
fn mark_of_answers() -> u32 {
    let source = include_str!("../../../bpf/c/reject.h");
    let defined = source.lines().find_map(|line| line.strip_prefix("#define PG_MARK_ANSWER 0x"));
    u32::from_str_radix(defined.expect("reject.h defines the mark"), 16).unwrap()
}

/// The kernel takes a socket's mark off what leaves the pod's namespace. If it did not, or the gate looked for the mark
/// elsewhere, a pod could send anything by calling it an answer.
fn marked_by_the_pod(lab: &Lab, family: Family) {
    let (client, server) = (lab.gated(&rejecting()), lab.pod());
    let to = SocketAddr::new(server.address(family), PORT);
    let (arrived, mark) = (datagrams(&server.net, to.ip(), PORT), mark_of_answers());
    let socket = datagrams(&client.net, client.address(family), 0);
    setsockopt(&socket, sockopt::Mark, &mark).unwrap();
    assert_eq!(getsockopt(&socket, sockopt::Mark), Ok(mark));
    socket.connect(to).unwrap();
    socket.set_read_timeout(Some(WAIT_TIMEOUT)).unwrap();
    socket.send(b"I am an answer").unwrap();
    let told = socket.recv(&mut [0; 8]).map_err(|e| e.kind());
    assert_eq!(told, Err(prohibited(family)), "{:?}", lab.counted());
    arrived.set_nonblocking(true).unwrap();
    let heard = arrived.recv(&mut [0; 64]).map_err(|e| e.kind());
    assert_eq!(heard, Err(ErrorKind::WouldBlock), "{:?}", lab.counted());
    assert_eq!(refused(lab, Egress), 1, "{:?}", lab.counted());
}
