//! Random policies, and frames of every shape that speak of them: the oracle says what they allow.

use std::cell::OnceCell;
use std::net::IpAddr;
use std::time::Instant;

use podgate_bpf::loader::Sizes;
use podgate_testkit::packet::addr;
use podgate_tests::fuzz::dice::Dice;
use podgate_tests::fuzz::judge::{Pod, Policy};
use podgate_tests::fuzz::{Scene, seed, sequences};
use podgate_tests::oracle::{Gate, L4, World, policies_allow};
use podgate_tests::world_loader::Loader;
use podgate_tests::worlds::{probe_addresses, probe_ports, worlds};
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use crate::gate::{self, Tally, Target, TestRun};
use crate::report::Report;

/// Among the addresses that the worlds' blocks contain.
const NODES: [&str; 2] = ["10.0.0.17", "fd00::11"];
/// Sequences at each pod of a world.
const SEQUENCES: u64 = 150;

/// What a world's policies say of one of its pods.
struct Oracle<'a> {
    world: &'a World,
    pod: usize,
    all: [OnceCell<bool>; 2],
}

impl Policy for Oracle<'_> {
    fn allows(&self, gate: Gate, peer: IpAddr, l4: L4) -> bool {
        policies_allow(self.world, &self.world.pods[self.pod], gate, peer, l4)
    }

    fn allows_some(&self, gate: Gate, peer: Option<IpAddr>) -> bool {
        let peers = peer.map_or_else(probe_addresses, |peer| vec![peer]);
        let any = |peer| probe_ports().into_iter().any(|l4| self.allows(gate, peer, l4));
        peers.into_iter().any(any)
    }

    fn allows_all(&self, gate: Gate) -> bool {
        *self.all[usize::from(gate == Gate::Ingress)].get_or_init(|| {
            let all = |peer| probe_ports().into_iter().all(|l4| self.allows(gate, peer, l4));
            probe_addresses().into_iter().all(all)
        })
    }
}

pub(crate) fn run() {
    let (seed, begun) = (seed(), Instant::now());
    let (mut tally, mut report) = (Tally::default(), Report::default());
    let sizes = Sizes { flows4: 1024, flows6: 1024, frags: 256, ..Sizes::default() };
    let mut loader = Loader::of_sizes(&sizes);
    let nodes: Vec<IpAddr> = NODES.iter().map(|text| addr(text)).collect();
    nodes.iter().for_each(|node| loader.own_node_address(*node));
    let state = gate::state(loader.root());
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    for number in 0.. {
        if report.is_over(begun, &tally) {
            break;
        }
        let world = worlds().new_tree(&mut runner).unwrap().current();
        loader.load(&world);
        for (pod, addresses) in world.interfaces.iter().filter(|(_, own)| !own.is_empty()) {
            let policy = Oracle { world: &world, pod: *pod, all: Default::default() };
            let known = Pod {
                addresses: addresses.clone(),
                nodes: nodes.clone(),
                services: Vec::new(),
                anti_spoofing: true,
            };
            let scene = Scene {
                own: addresses.clone(),
                peers: probe_addresses(),
                nodes: nodes.clone(),
                ports: vec![52, 53, 79, 80, 81, 82, 443, 8080, 65535],
            };
            let ifindex = loader.interface(*pod);
            let datapath = loader.datapath();
            let fire = TestRun { datapath, ifindex };
            let target = Target { datapath, state: &state, fire: &fire, translates: false };
            for sequence in 0..SEQUENCES {
                let which = (number << 16) | ((*pod as u64) << 8) | sequence;
                let shots = sequences::sequence(&mut Dice::new(seed, which), &scene);
                if let Err(failure) = target.play(&known, &policy, &shots, &mut tally) {
                    let origin = format!("world {number}, pod {pod}: {world:?}");
                    report.add(&origin, &shots, &failure, |shots| {
                        target.play(&known, &policy, shots, &mut Tally::default())
                    });
                }
            }
        }
    }
    report.end(seed, &tally);
}
