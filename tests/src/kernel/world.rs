//! The content of the maps before a table's first packet.

use std::net::IpAddr;
use std::num::NonZeroU32;

use podgate_bpf::abi::{
    Direction, POLICY_PREFIX_ANY, POLICY_PREFIX_PORT, POLICY_PREFIX_PROTOCOL, PolicyFlag,
    PolicyKey, PolicyValue, SOME_PORT, Startup, Verdict,
};
use podgate_bpf::services::{Affinity, Backend, Frontend};
use podgate_testkit::packet::addr;

use super::{ANY, POD, POD6};

/// What an entry covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ports {
    /// Every protocol.
    Every,
    /// Every port of a protocol.
    All(u8),
    /// One port of a protocol.
    One(u8, u16),
    /// The ports that share this port's leading bits.
    Prefix(u8, u16, u32),
}

impl Ports {
    /// Prefix length, protocol and port of the key.
    fn spell(self) -> (u32, u8, u16) {
        match self {
            Self::Every => (POLICY_PREFIX_ANY, 0, 0),
            Self::All(protocol) => (POLICY_PREFIX_PROTOCOL, protocol, 0),
            Self::One(protocol, port) => (POLICY_PREFIX_PORT, protocol, port),
            Self::Prefix(protocol, port, bits) => (POLICY_PREFIX_PROTOCOL + bits, protocol, port),
        }
    }
}

/// One entry of the pod's table.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    pub(super) direction: Direction,
    pub(super) class: u32,
    pub(super) ports: Ports,
    pub(super) verdict: Verdict,
    pub(super) logged: bool,
    pub(super) rule: u32,
}

impl Entry {
    /// As map entries: policyd's encoder writes the "some port" twin of what passes too.
    pub(super) fn spell(&self, owner: u32) -> Vec<(PolicyKey, PolicyValue)> {
        let (prefixlen, protocol, port) = self.ports.spell();
        let key = PolicyKey {
            prefixlen,
            owner,
            class: self.class,
            direction: self.direction as u8,
            protocol,
            port: port.to_be_bytes(),
        };
        let value = PolicyValue {
            rule: self.rule,
            verdict: self.verdict as u8,
            flags: if self.logged { PolicyFlag::Log as u8 } else { 0 },
            pad: [0; 2],
            hits: 0,
        };
        let mut entries = vec![(key, value)];
        if matches!(self.verdict, Verdict::Allow | Verdict::Audit) {
            let twin = PolicyKey {
                prefixlen: prefixlen.min(POLICY_PREFIX_PROTOCOL),
                direction: key.direction + SOME_PORT,
                port: [0; 2],
                ..key
            };
            entries.push((twin, value));
        }
        entries
    }
}

/// A service and its endpoints.
#[derive(Clone, Debug)]
pub struct Service {
    /// Where it listens.
    pub frontend: Frontend,
    /// Session affinity.
    pub affinity: Option<Affinity>,
    /// Endpoints that may be picked.
    pub ready: Vec<Backend>,
    /// Endpoints that keep their flows.
    pub serving: Vec<Backend>,
}

impl Service {
    /// Without affinity, all endpoints ready.
    pub fn new(address: &str, port: u16, protocol: u8, endpoints: &[(&str, u16)]) -> Self {
        let frontend = Frontend { address: addr(address), port, protocol };
        let ready = endpoints.iter().map(|(ip, port)| Backend { address: addr(ip), port: *port });
        Self { frontend, affinity: None, ready: ready.collect(), serving: Vec::new() }
    }

    /// Clients keep their endpoint for so many coarse seconds, remembered under this number; 0: the service's own.
    pub fn affinity(self, seconds: u32, number: u32) -> Self {
        let number = NonZeroU32::new(number);
        let affinity = NonZeroU32::new(seconds).map(|seconds| Affinity { seconds, number });
        Self { affinity, ..self }
    }

    /// One more endpoint, which keeps the flows that it has.
    pub fn serving(mut self, address: &str, port: u16) -> Self {
        self.serving.push(Backend { address: addr(address), port });
        self
    }
}

/// The pod and everything that verdicts about it depend on.
#[derive(Clone, Debug)]
pub struct World {
    pub(super) registered: bool,
    pub(super) startup: Startup,
    pub(super) anti_spoofing: bool,
    pub(super) mac: Option<[u8; 6]>,
    pub(super) addresses: Vec<IpAddr>,
    /// `None`: policyd has not come to it yet.
    pub(super) entries: Option<Vec<Entry>>,
    pub(super) peers: Vec<(IpAddr, u32)>,
    pub(super) nets: Vec<((IpAddr, u8), u32)>,
    pub(super) nodes: Vec<IpAddr>,
    pub(super) services: Vec<Service>,
}

impl World {
    fn new(entries: Option<Vec<Entry>>) -> Self {
        Self {
            registered: true,
            startup: Startup::Hold,
            anti_spoofing: true,
            mac: None,
            addresses: vec![addr(POD), addr(POD6)],
            entries,
            peers: Vec::new(),
            nets: Vec::new(),
            nodes: Vec::new(),
            services: Vec::new(),
        }
    }

    /// A pod isolated in both directions, to which nothing is allowed.
    pub fn isolated() -> Self {
        Self::new(Some(Vec::new()))
    }

    /// A pod that no policy selects.
    pub fn open() -> Self {
        Self::isolated().not_isolated(Direction::Ingress).not_isolated(Direction::Egress)
    }

    /// A pod that policyd has not programmed.
    pub fn unprogrammed(startup: Startup) -> Self {
        Self { startup, ..Self::new(None) }
    }

    /// An interface without a registration.
    pub fn unregistered() -> Self {
        Self { registered: false, ..Self::new(None) }
    }

    /// Everything is allowed in this direction.
    pub fn not_isolated(self, direction: Direction) -> Self {
        self.allow(direction, ANY, Ports::Every)
    }

    /// Adds an entry that allows. Rules are numbered from 1 in the order of their entries.
    pub fn allow(self, direction: Direction, class: u32, ports: Ports) -> Self {
        self.entry(direction, class, ports, Verdict::Allow)
    }

    /// Adds an entry that denies.
    pub fn deny(self, direction: Direction, class: u32, ports: Ports) -> Self {
        self.entry(direction, class, ports, Verdict::Deny)
    }

    /// Adds an entry that denies and tells the sender.
    pub fn reject(self, direction: Direction, class: u32, ports: Ports) -> Self {
        self.entry(direction, class, ports, Verdict::Reject)
    }

    /// Adds an entry of a policy that is only audited and would deny.
    pub fn audit(self, direction: Direction, class: u32, ports: Ports) -> Self {
        self.entry(direction, class, ports, Verdict::Audit)
    }

    /// Has each new flow reported that the entry added last decides.
    pub fn logged(mut self) -> Self {
        if let Some(entry) = self.entries.as_mut().and_then(|entries| entries.last_mut()) {
            entry.logged = true;
        }
        self
    }

    fn entry(mut self, direction: Direction, class: u32, ports: Ports, verdict: Verdict) -> Self {
        let entries = self.entries.get_or_insert_default();
        let rule = entries.len() as u32 + 1;
        entries.push(Entry { direction, class, ports, verdict, logged: false, rule });
        self
    }

    /// The class of one address.
    pub fn peer(mut self, address: &str, class: u32) -> Self {
        self.peers.push((addr(address), class));
        self
    }

    /// The class of a prefix.
    pub fn net(mut self, address: &str, length: u8, class: u32) -> Self {
        self.nets.push(((addr(address), length), class));
        self
    }

    /// An address of the node.
    pub fn node(mut self, address: &str) -> Self {
        self.nodes.push(addr(address));
        self
    }

    /// One more service; they are numbered from 1 in this order.
    pub fn service(mut self, service: Service) -> Self {
        self.services.push(service);
        self
    }

    /// One more address of the pod.
    pub fn address(mut self, address: &str) -> Self {
        self.addresses.push(addr(address));
        self
    }

    /// The hardware address of the pod's interface.
    pub fn mac(self, mac: [u8; 6]) -> Self {
        Self { mac: Some(mac), ..self }
    }

    /// The pod may send from any address.
    pub fn without_anti_spoofing(mut self) -> Self {
        self.anti_spoofing = false;
        self
    }
}
