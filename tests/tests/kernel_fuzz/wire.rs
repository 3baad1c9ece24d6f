//! The same frames over a real link: also those of which `BPF_PROG_TEST_RUN` makes no packets, for their IP header is cut
//! short, VLAN tags as the kernel keeps them, and frames longer than a page, whose headers are not in the linear part.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use podgate_bpf::abi::{Direction, Reason, Startup};
use podgate_bpf::attach::AttachMode;
use podgate_bpf::loader::Sizes;
use podgate_bpf::maps::Registration;
use podgate_bpf::{Datapath, PinRoot};
use podgate_testkit::net::Net;
use podgate_testkit::packet::addr;
use podgate_testkit::sandbox;
use podgate_tests::fuzz::dice::Dice;
use podgate_tests::fuzz::judge::{DenyAll, Pod};
use podgate_tests::fuzz::{Scene, Shot, Via, seed, sequences};
use podgate_tests::kernel::{DROP, NEXT, NODE, NODE6, PEER, PEER6, POD, POD6};
use podgate_tests::netlab::Tap;

use crate::gate::{self, Fire, Met, Tally, Target};
use crate::report::Report;

/// More than fits into the linear part of a packet.
const LONG: usize = 4200;

/// The kernel drops a frame with less behind its tag before any program sees it.
const SHORTEST_TAGGED: usize = 20;

fn is_tagged(frame: &[u8]) -> bool {
    matches!(frame[12..14], [0x81, 0] | [0x88, 0xa8])
}

/// A gate on a link between two namespaces in which nobody else speaks.
struct Link {
    datapath: Datapath,
    root: PinRoot,
    from_node: Tap,
    from_pod: Tap,
    /// They hold the link.
    _nets: [Net; 2],
}

impl Link {
    fn new() -> Self {
        let root = PinRoot::new(sandbox::pin_dir());
        let sizes = Sizes { flows4: 1024, flows6: 1024, frags: 256, ..Sizes::default() };
        let datapath = Datapath::open_or_load(&root, &sizes).unwrap();
        let (node, pod) = (Net::new(), Net::new());
        for net in [&node, &pod] {
            net.sysctl("ipv6/conf/default/disable_ipv6", "1");
        }
        node.veth("v0", &pod, "eth0");
        node.ip("link set v0 mtu 9000");
        pod.ip("link set eth0 mtu 9000");
        let ifindex = node.ifindex("v0");
        let registration = Registration {
            mac: None,
            ifindex,
            owner: 0x5eed,
            startup: Startup::Hold,
            anti_spoofing: true,
            addresses: vec![addr(POD), addr(POD6)],
            netns_cookie: 0,
            container_id: "wire".into(),
            interface: "eth0".into(),
            host_interface: "v0".into(),
            network: "wire".into(),
            pod: None,
            netns: String::new(),
        };
        datapath.maps.register(&registration).unwrap();
        let nothing = datapath.maps.new_policy_map(&[]).unwrap();
        datapath.maps.install_policy_maps(&[(ifindex, &nothing)]).unwrap();
        for node in [NODE, NODE6] {
            datapath.maps.add_node_addr(addr(node)).unwrap();
        }
        node.run(|| datapath.attach(ifindex, AttachMode::Auto)).unwrap();
        let (from_node, from_pod) = (Tap::new(&node, "v0"), Tap::new(&pod, "eth0"));
        Self { datapath, root, from_node, from_pod, _nets: [node, pod] }
    }

    /// Packets that passed and that did not.
    fn counted(&self, direction: Direction) -> (u64, u64) {
        let counters = self.datapath.maps.counters().unwrap();
        let of = |denied: bool| {
            let reasons = Reason::ALL.iter().filter(|reason| reason.is_denial() == denied);
            reasons.map(|reason| counters.get(direction, *reason).packets).sum()
        };
        (of(false), of(true))
    }
}

impl Fire for Link {
    fn fire(&self, shot: &Shot) -> Option<Met> {
        if is_tagged(&shot.frame) && shot.frame.len() < SHORTEST_TAGGED {
            return None;
        }
        let (passed, denied) = self.counted(shot.direction);
        let tap = match shot.direction {
            Direction::Egress => &self.from_pod,
            Direction::Ingress => &self.from_node,
        };
        match tap.offer(&shot.frame) {
            Ok(_) | Err(Errno::ENOBUFS) => {}
            Err(_) => return None,
        }
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let (now_passed, now_denied) = self.counted(shot.direction);
            let action = if now_denied > denied { DROP } else { NEXT };
            if now_passed > passed || now_denied > denied {
                return Some(Met { action, packet: shot.frame.clone() });
            }
            assert!(Instant::now() < deadline, "no gate has seen {shot:?}");
        }
    }

    /// The kernel takes a VLAN tag out of the bytes that come in.
    fn counts(&self, shot: &Shot, bytes: u64) -> bool {
        let length = shot.frame.len() as u64;
        bytes == length || (is_tagged(&shot.frame) && bytes + 4 == length)
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        let _ = Datapath::unload(&self.root);
    }
}

pub(crate) fn run() {
    let (seed, begun) = (seed(), Instant::now());
    let (mut tally, mut report) = (Tally::default(), Report::default());
    let link = Link::new();
    let state = gate::state(&link.root);
    let target = Target { datapath: &link.datapath, state: &state, fire: &link, translates: false };
    let nodes: Vec<IpAddr> = vec![addr(NODE), addr(NODE6)];
    let pod = Pod {
        addresses: vec![addr(POD), addr(POD6)],
        nodes: nodes.clone(),
        services: Vec::new(),
        anti_spoofing: true,
    };
    let peers = [PEER, PEER6, "192.0.2.7", "2001:db8::7"].map(addr).to_vec();
    let scene = Scene { own: pod.addresses.clone(), peers, nodes, ports: vec![22, 53, 80, 443] };
    for number in 0.. {
        if report.is_over(begun, &tally) {
            break;
        }
        // other frames than in the trials without a link
        let mut dice = Dice::new(seed, number | 1 << 63);
        let mut shots = sequences::sequence(&mut dice, &scene);
        for shot in &mut shots {
            if shot.direction == Direction::Ingress {
                shot.via = Via::Nothing;
            }
            if dice.chance(30) {
                let long = shot.frame.len().max(LONG);
                shot.frame.resize(long, 0);
            } else if dice.chance(10) {
                let short = 14 + dice.below(40);
                shot.frame.truncate(short);
            }
        }
        if let Err(failure) = target.play(&pod, &DenyAll, &shots, &mut tally) {
            report.add(&format!("sequence {number}:"), &shots, &failure, |shots| {
                target.play(&pod, &DenyAll, shots, &mut Tally::default())
            });
        }
    }
    report.end(seed, &tally);
}
