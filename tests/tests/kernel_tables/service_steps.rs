//! What the tables of flows through services are made of.

use podgate_bpf::abi::Reason;
use podgate_tests::kernel::Lab;

use crate::prelude::*;

/// A TCP service on port 80 with these endpoints, on port 8080.
pub(crate) fn web_service(f: Family, endpoints: &[&str]) -> Service {
    let endpoints: Vec<_> = endpoints.iter().map(|address| (*address, 8080)).collect();
    Service::new(f.service, 80, TCP, &endpoints)
}

/// A UDP service on port 53 with these endpoints, on port 5353.
pub(crate) fn domain_service(f: Family, endpoints: &[&str]) -> Service {
    let endpoints: Vec<_> = endpoints.iter().map(|address| (*address, 5353)).collect();
    Service::new(f.service, 53, UDP, &endpoints)
}

/// A segment to the service, and the same to an endpoint.
pub(crate) fn to(f: Family, endpoint: &str, make: fn(Transport) -> Transport) -> (Ip, Ip) {
    (
        make(tcp(40000, 80)).between(f.pod, f.service),
        make(tcp(40000, 8080)).between(f.pod, endpoint),
    )
}

/// A segment from an endpoint, and the same from the service.
pub(crate) fn from(f: Family, endpoint: &str, make: fn(Transport) -> Transport) -> (Ip, Ip) {
    (
        make(tcp(8080, 40000)).between(endpoint, f.pod),
        make(tcp(80, 40000)).between(f.service, f.pod),
    )
}

pub(crate) fn ask(f: Family, endpoint: &str) -> (Ip, Ip) {
    (udp(40000, 53).between(f.pod, f.service), udp(40000, 5353).between(f.pod, endpoint))
}

pub(crate) fn answer(f: Family, endpoint: &str) -> (Ip, Ip) {
    (udp(5353, 40000).between(endpoint, f.pod), udp(53, 40000).between(f.service, f.pod))
}

pub(crate) trait Steps: Sized {
    /// The pod sends the first, the second leaves.
    fn out(self, packets: (Ip, Ip), reason: Reason) -> Self;
    /// The first comes, the pod receives the second.
    fn back(self, packets: (Ip, Ip)) -> Self;
    /// A whole handshake with this endpoint.
    fn connects(self, f: Family, endpoint: &str) -> Self;
}

impl Steps for Table {
    fn out(self, (sent, left): (Ip, Ip), reason: Reason) -> Self {
        self.from_pod_as(sent, reason, left)
    }

    fn back(self, (came, received): (Ip, Ip)) -> Self {
        self.to_pod_as(came, AllowFlow, received)
    }

    fn connects(self, f: Family, endpoint: &str) -> Self {
        self.out(to(f, endpoint, Transport::syn), AllowPolicy)
            .back(from(f, endpoint, Transport::syn_ack))
            .out(to(f, endpoint, Transport::ack), AllowFlow)
    }
}

/// The endpoints of the service are others from now on.
pub(crate) fn becomes(service: Service) -> impl FnOnce(&mut Lab) + Send {
    move |lab| {
        lab.serve(1, &service);
        lab.bump();
    }
}

/// A web service with this many endpoints beside the peer.
pub(crate) fn many(f: Family, count: u16) -> Service {
    let others: Vec<String> = (0..count)
        .map(|n| if f.icmp == ICMP { format!("10.7.0.{n}") } else { format!("fd00:7::{n:x}") })
        .collect();
    let all: Vec<&str> = others.iter().map(String::as_str).chain([f.peer]).collect();
    web_service(f, &all)
}

/// The source port and destination of what left.
pub(crate) fn left(f: Family, packet: &[u8]) -> (u16, u16, Vec<u8>) {
    let (l4, destination) = if f.icmp == ICMP { (34, 30..34) } else { (54, 38..54) };
    let port = |at: usize| u16::from_be_bytes([packet[at], packet[at + 1]]);
    (port(l4), port(l4 + 2), packet[destination].to_vec())
}
