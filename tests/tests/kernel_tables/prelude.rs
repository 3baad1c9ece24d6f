//! What every file of tables uses.

pub(crate) use podgate_bpf::abi::Direction::{Egress, Ingress};
pub(crate) use podgate_bpf::abi::Reason::*;
pub(crate) use podgate_testkit::packet::protocol::{self, ICMP, SCTP, TCP, UDP};
pub(crate) use podgate_testkit::packet::{Ip, Transport, icmp, raw, sctp, tcp, udp};
pub(crate) use podgate_tests::kernel::{
    ANY, NODE, NODE6, PEER, PEER6, POD, POD6, Ports, Service, Table, Via, World, table,
};

/// The addresses of one family, so that a table is written once for both.
#[derive(Clone, Copy)]
pub(crate) struct Family {
    pub(crate) name: &'static str,
    pub(crate) pod: &'static str,
    /// Its second address, where a world registers it.
    pub(crate) second: &'static str,
    pub(crate) peer: &'static str,
    pub(crate) stranger: &'static str,
    pub(crate) node: &'static str,
    /// A service's address.
    pub(crate) service: &'static str,
    /// The protocol number of ICMP.
    pub(crate) icmp: u8,
    pub(crate) echo: u8,
    pub(crate) echo_reply: u8,
}

pub(crate) const V4: Family = Family {
    name: "v4",
    pod: POD,
    second: "10.0.0.6",
    peer: PEER,
    stranger: "192.0.2.7",
    node: NODE,
    service: "10.96.0.10",
    icmp: ICMP,
    echo: 8,
    echo_reply: 0,
};

pub(crate) const V6: Family = Family {
    name: "v6",
    pod: POD6,
    second: "fd00::6",
    peer: PEER6,
    stranger: "2001:db8::7",
    node: NODE6,
    service: "fd00:10:96::a",
    icmp: protocol::ICMPV6,
    echo: 128,
    echo_reply: 129,
};

/// Tables of both families.
pub(crate) fn both(tables: impl Fn(Family) -> Vec<Table>) -> Vec<Table> {
    [V4, V6].into_iter().flat_map(tables).collect()
}

impl Family {
    /// From the pod to the peer.
    pub(crate) fn out(self, transport: Transport) -> Ip {
        transport.between(self.pod, self.peer)
    }

    /// From the peer to the pod.
    pub(crate) fn back(self, transport: Transport) -> Ip {
        transport.between(self.peer, self.pod)
    }

    /// An echo request with this identifier.
    pub(crate) fn ping(self, id: u8) -> Transport {
        icmp(self.echo, 0, [0, id, 0, 1])
    }

    /// Its answer.
    pub(crate) fn pong(self, id: u8) -> Transport {
        icmp(self.echo_reply, 0, [0, id, 0, 1])
    }

    /// A table's name with the family.
    pub(crate) fn named(self, name: &str) -> String {
        format!("{name} ({})", self.name)
    }
}

/// An isolated pod that serves TCP port 80.
pub(crate) fn web() -> World {
    World::isolated().allow(Ingress, ANY, Ports::One(TCP, 80))
}

/// An isolated pod that may connect to TCP port 80 of others.
pub(crate) fn client() -> World {
    World::isolated().allow(Egress, ANY, Ports::One(TCP, 80))
}
