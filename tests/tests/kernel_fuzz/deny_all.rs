//! A pod that policy isolates in both directions and allows nothing: the case in which every mistake shows.

use std::net::IpAddr;
use std::time::Instant;

use libbpf_rs::MapHandle;
use podgate_bpf::abi::Startup;
use podgate_testkit::packet::addr;
use podgate_tests::fuzz::dice::Dice;
use podgate_tests::fuzz::judge::{DenyAll, Pod};
use podgate_tests::fuzz::{Scene, Shot, seed, sequences};
use podgate_tests::kernel::{Lab, NODE, NODE6, PEER, PEER6, POD, POD6, Service, World};

use crate::gate::{self, Failure, Tally, Target, TestRun};
use crate::report::Report;

/// The pod's second address of each family, where it has one.
const SECOND: [&str; 2] = ["10.0.0.6", "fd00::6"];
const SERVICE: &str = "10.96.0.10";

/// A gate, and what the evaluator is to know of it.
pub(crate) struct Case {
    name: &'static str,
    lab: Lab,
    state: Vec<MapHandle>,
    pub(crate) pod: Pod,
    translates: bool,
}

impl Case {
    fn new(name: &'static str, world: World, own: &[&str]) -> Self {
        let world = world.node(NODE).node(NODE6);
        let addresses = own.iter().map(|text| addr(text)).collect();
        let nodes = vec![addr(NODE), addr(NODE6)];
        let pod = Pod { addresses, nodes, services: Vec::new(), anti_spoofing: true };
        let lab = Lab::new(&world);
        let state = gate::state(lab.root());
        Self { name, lab, state, pod, translates: false }
    }

    /// The plain one.
    pub(crate) fn isolated() -> Self {
        Self::new("isolated", World::isolated(), &[POD, POD6])
    }

    /// Plays a sequence.
    pub(crate) fn play(&self, shots: &[Shot], tally: &mut Tally) -> Result<(), Failure> {
        let target = Target {
            datapath: self.lab.datapath(),
            state: &self.state,
            fire: &TestRun { datapath: self.lab.datapath(), ifindex: self.lab.ifindex },
            translates: self.translates,
        };
        target.play(&self.pod, &DenyAll, shots, tally)
    }
}

fn cases() -> Vec<Case> {
    let second = World::isolated().address(SECOND[0]).address(SECOND[1]);
    let loose = World::isolated().without_anti_spoofing();
    let mut loose = Case::new("isolated, antiSpoofing off", loose, &[POD, POD6]);
    loose.pod.anti_spoofing = false;
    // whose addresses nobody knows
    let mut unregistered = Case::new("unregistered", World::unregistered(), &[]);
    unregistered.pod.anti_spoofing = false;
    // an endpoint elsewhere, which policy denies, and the pod itself
    let service = World::isolated()
        .service(Service::new(SERVICE, 80, 6, &[(PEER, 80)]))
        .service(Service::new(SERVICE, 53, 17, &[(POD, 53)]));
    let mut service = Case::new("isolated, with services", service, &[POD, POD6]);
    service.pod.services = vec![addr(SERVICE)];
    service.translates = true;
    vec![
        Case::isolated(),
        Case::new("isolated, two addresses", second, &[POD, POD6, SECOND[0], SECOND[1]]),
        loose,
        Case::new("in hold", World::unprogrammed(Startup::Hold), &[POD, POD6]),
        unregistered,
        service,
    ]
}

fn scene(case: &Case) -> Scene {
    let texts = [PEER, PEER6, SECOND[0], SECOND[1], "192.0.2.7", "2001:db8::7", "fe80::9"];
    let mut peers: Vec<IpAddr> = texts.iter().map(|text| addr(text)).collect();
    peers.extend(&case.pod.services);
    let own = vec![addr(POD), addr(POD6)];
    Scene { own, peers, nodes: case.pod.nodes.clone(), ports: vec![22, 53, 80, 443, 10250] }
}

pub(crate) fn run() {
    let (seed, begun) = (seed(), Instant::now());
    let (mut tally, mut report) = (Tally::default(), Report::default());
    let cases = cases();
    for number in 0.. {
        if report.is_over(begun, &tally) {
            break;
        }
        let case = &cases[number as usize % cases.len()];
        let shots = sequences::sequence(&mut Dice::new(seed, number), &scene(case));
        if let Err(failure) = case.play(&shots, &mut tally) {
            let origin = format!("sequence {number}, {}:", case.name);
            report.add(&origin, &shots, &failure, |shots| case.play(shots, &mut Tally::default()));
        }
    }
    report.end(seed, &tally);
}
