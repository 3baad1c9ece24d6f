//! A node with many pods, whose packets are handed to the programs.

use std::env;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::OnceLock;

use podgate_bpf::abi::{
    BackendState, CLASS_ANY, Direction, POLICY_PREFIX_ANY, POLICY_PREFIX_PORT, PolicyKey,
    PolicyValue, Ring, Startup, Stat, Verdict,
};
use podgate_bpf::loader::Sizes;
use podgate_bpf::maps::Registration;
use podgate_bpf::services::{Backend, Frontend, ServiceEntry};
use podgate_bpf::testrun::Context;
use podgate_bpf::{Datapath, PinRoot};
use podgate_testkit::packet::{Ip, Transport};
use podgate_testkit::sandbox::{Veth, pin_dir};

pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
/// TC_ACT_UNSPEC.
pub(crate) const NEXT: i32 = -1;

/// How many flows a flood has.
pub(crate) fn flood() -> u32 {
    number("PODGATE_FLOOD", 30_000)
}

/// How many flows of a family fit in the table.
pub(crate) fn table() -> u32 {
    number("PODGATE_FLOOD_TABLE", 8192)
}

fn number(name: &str, otherwise: u32) -> u32 {
    env::var(name).map_or(otherwise, |text| text.parse().unwrap())
}

/// Devices are numbers here: all nodes of the process share them.
fn devices(count: usize) -> &'static [Veth] {
    static DEVICES: OnceLock<Vec<Veth>> = OnceLock::new();
    let devices = DEVICES.get_or_init(|| (0..101).map(|_| Veth::new().unwrap()).collect());
    &devices[..count]
}

pub(crate) struct Pod {
    pub(crate) ifindex: u32,
    pub(crate) owner: u32,
    pub(crate) addresses: [String; 2],
}

pub(crate) struct Node {
    pub(crate) datapath: Datapath,
    root: PinRoot,
    pub(crate) pods: Vec<Pod>,
}

impl Drop for Node {
    fn drop(&mut self) {
        Datapath::unload(&self.root).unwrap();
    }
}

/// What an entry of a policy covers: every packet, or a port of a protocol.
pub(crate) type Covers = Option<(u8, u16)>;

impl Node {
    /// A node with pods that may do nothing.
    pub(crate) fn new(pods: usize) -> Self {
        let root = PinRoot::new(pin_dir());
        let sizes = Sizes { flows4: table(), flows6: table(), frags: 64, ..Sizes::default() };
        let datapath = Datapath::open_or_load(&root, &sizes).unwrap();
        let mut node = Self { datapath, root, pods: Vec::new() };
        for (number, veth) in devices(pods).iter().enumerate() {
            let owner = 1000 + number as u32;
            let addresses = [format!("10.1.0.{}", number + 1), format!("fd00:1::{:x}", number + 1)];
            let pod = Pod { ifindex: veth.ifindex, owner, addresses };
            node.register(&pod);
            node.pods.push(pod);
        }
        node.datapath.maps.control().set_event_limit(0);
        node
    }

    pub(crate) fn register(&self, pod: &Pod) {
        let registration = Registration {
            ifindex: pod.ifindex,
            owner: pod.owner,
            startup: Startup::Hold,
            anti_spoofing: true,
            addresses: pod.addresses.iter().map(|text| text.parse().unwrap()).collect(),
            netns_cookie: 0,
            container_id: "flood".into(),
            interface: "eth0".into(),
            host_interface: "host".into(),
            network: "flood".into(),
            pod: None,
            netns: String::new(),
            mac: None,
        };
        self.datapath.maps.register(&registration).unwrap();
    }

    /// Puts a policy in force: what is allowed by direction.
    pub(crate) fn allow(&self, pod: &Pod, entries: &[(Direction, Covers)]) {
        let spelled: Vec<_> = entries
            .iter()
            .map(|(direction, covers)| {
                let (prefixlen, (protocol, port)) = match covers {
                    None => (POLICY_PREFIX_ANY, (0, 0)),
                    Some(one) => (POLICY_PREFIX_PORT, *one),
                };
                let key = PolicyKey {
                    prefixlen,
                    owner: pod.owner,
                    class: CLASS_ANY,
                    direction: *direction as u8,
                    protocol,
                    port: port.to_be_bytes(),
                };
                let verdict = Verdict::Allow as u8;
                (key, PolicyValue { rule: 1, verdict, flags: 0, pad: [0; 2], hits: 0 })
            })
            .collect();
        let map = self.datapath.maps.new_policy_map(&spelled).unwrap();
        self.datapath.maps.install_policy_maps(&[(pod.ifindex, &map)]).unwrap();
    }

    /// Everything is allowed.
    pub(crate) fn open(&self, pod: &Pod) {
        self.allow(pod, &[(Direction::Egress, None), (Direction::Ingress, None)]);
    }

    pub(crate) fn serve(
        &self,
        id: u32,
        (address, port): (&str, u16),
        protocol: u8,
        to: (&str, u16),
    ) {
        let maps = self.datapath.maps.services();
        let ip = |text: &str| -> IpAddr { text.parse().unwrap() };
        let backend = Backend { address: ip(to.0), port: to.1 };
        maps.set_backend(id, backend, BackendState::Ready).unwrap();
        maps.set_slot(id, 0, backend).unwrap();
        let frontend = Frontend { address: ip(address), port, protocol };
        let entry = ServiceEntry { id, count: 1, affinity: None };
        maps.set_service(&frontend, entry).unwrap();
    }

    /// One packet: what becomes of it, and what it is afterwards.
    pub(crate) fn run(&self, pod: &Pod, direction: Direction, frame: &Ip) -> (i32, Vec<u8>) {
        let context = Context { ifindex: pod.ifindex, ingress_ifindex: 4242 };
        let outcome = self.datapath.test_run(direction, context, &frame.frame(), 1).unwrap();
        (outcome.action, outcome.packet)
    }

    /// The pod sends, or gets.
    #[track_caller]
    pub(crate) fn passes(&self, pod: &Pod, direction: Direction, frame: &Ip) {
        assert_eq!(self.run(pod, direction, frame).0, NEXT, "{direction:?}");
    }

    /// As [`Node::passes`], and it becomes something.
    #[track_caller]
    pub(crate) fn becomes(&self, pod: &Pod, direction: Direction, frame: &Ip, after: &Ip) {
        assert_eq!(self.run(pod, direction, frame), (NEXT, after.frame()), "{direction:?}");
    }

    /// Where a map is pinned.
    pub(crate) fn path(&self, map: &str) -> PathBuf {
        self.root.path(map)
    }

    /// A pod's ring of a family.
    pub(crate) fn ring(&self, pod: &Pod, family: usize) -> Ring {
        self.datapath.maps.flow_table().shares().unwrap()[&pod.ifindex].rings[family]
    }

    pub(crate) fn taken(&self, family: usize) -> u64 {
        self.datapath.maps.flow_table().usage().unwrap()[family].slots
    }

    pub(crate) fn stat(&self, stat: Stat) -> u64 {
        self.datapath.maps.counters().unwrap().stat(stat)
    }
}

impl Pod {
    /// From the pod.
    pub(crate) fn to(&self, family: usize, transport: Transport, peer: &str) -> Ip {
        transport.between(&self.addresses[family], peer)
    }

    /// To the pod.
    pub(crate) fn from(&self, family: usize, transport: Transport, peer: &str) -> Ip {
        transport.between(peer, &self.addresses[family])
    }
}

/// The n-th of many peers.
pub(crate) fn peer(family: usize, n: u32) -> String {
    let [_, a, b, c] = (n & 0x00ff_ffff).to_be_bytes();
    if family == 0 { format!("11.{a}.{b}.{c}") } else { format!("fd11::{a:x}:{b:x}{c:02x}") }
}
