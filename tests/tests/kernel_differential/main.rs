//! Random worlds, compiled, committed to real maps and judged by the real programs: every verdict is the oracle's.
//!
//! `PODGATE_SEED=<number>` runs the worlds of an earlier run again; a failure prints its number.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

mod services;

use std::cell::{Cell, RefCell};
use std::net::IpAddr;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use podgate_bpf::abi::Direction;
use podgate_testkit::packet::{Transport, icmp, sctp, tcp, udp};
use podgate_testkit::sandbox;
use podgate_tests::kernel::UPLINK;
use podgate_tests::oracle::{Gate, L4, World, policies_allow};
use podgate_tests::world_loader::Loader;
use podgate_tests::worlds::{
    config, probe_addresses, probe_ports, ranked_worlds, successive_ranked_worlds,
    successive_worlds, worlds,
};
use proptest::prelude::*;
use proptest::test_runner::{RngAlgorithm, TestCaseError, TestRng, TestRunner};

/// After this long no further world is begun, if enough was compared.
const TIME: Duration = Duration::from_secs(20);
/// What a run must have compared to prove anything.
const ENOUGH: u64 = 4000;

/// Among the addresses that the worlds' blocks contain.
const NODES: [&str; 2] = ["10.0.0.17", "fd00::11"];

fn main() -> ExitCode {
    sandbox::run(|| {
        vec![
            Trial::test("every_verdict_on_a_new_flow_is_the_oracles", || {
                new_flows(worlds());
                Ok(())
            }),
            Trial::test("every_verdict_of_ranked_rules_on_a_new_flow_is_the_oracles", || {
                new_flows(ranked_worlds());
                Ok(())
            }),
            Trial::test(
                "every_verdict_through_a_service_is_the_oracles_on_the_endpoint_picked",
                || {
                    services::through_services(successive_worlds());
                    Ok(())
                },
            ),
            Trial::test("so_it_is_where_rules_are_ranked_also_of_a_pod_that_gets_itself", || {
                services::through_services(successive_ranked_worlds());
                Ok(())
            }),
            Trial::test("every_live_flow_is_judged_again_as_the_oracle_says", || {
                live_flows(successive_worlds());
                Ok(())
            }),
            Trial::test("every_live_flow_is_judged_again_where_rules_are_ranked", || {
                live_flows(successive_ranked_worlds());
                Ok(())
            }),
        ]
    })
}

/// A flow that one gate of a pod may meet.
#[derive(Clone, Copy, Debug)]
struct Probe {
    pod: usize,
    gate: Gate,
    own: IpAddr,
    peer: IpAddr,
    l4: L4,
    /// The opener's port, or the identifier of its echo.
    source: u16,
    /// What comes to the pod comes from there.
    from: From,
}

/// Where a packet to a pod enters the node, which says more of its sender than its source address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum From {
    /// Through the pod's own interface: the pod speaks to itself, around a service.
    Pod,
    /// Through another interface.
    Elsewhere,
    /// Nowhere: the node's own stack sends it.
    Node,
}

/// Which of a flow's packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Packet {
    /// The first.
    Opener,
    /// The answer to it.
    Answer,
    /// A later one of the opener.
    Later,
}

impl Probe {
    /// The frame, and the direction in which it meets the gate.
    fn frame(&self, packet: Packet) -> (Direction, Vec<u8>) {
        let answer = packet == Packet::Answer;
        let (from_pod, from, to) = match (self.gate, answer) {
            (Gate::Egress, false) | (Gate::Ingress, true) => (true, self.own, self.peer),
            (Gate::Egress, true) | (Gate::Ingress, false) => (false, self.peer, self.own),
        };
        let transport = self.transport(packet, from.is_ipv6());
        let direction = if from_pod { Direction::Egress } else { Direction::Ingress };
        (direction, transport.between(&from.to_string(), &to.to_string()).frame())
    }

    fn transport(&self, packet: Packet, v6: bool) -> Transport {
        let ports = |port| match packet {
            Packet::Answer => (port, self.source),
            Packet::Opener | Packet::Later => (self.source, port),
        };
        match self.l4 {
            L4::Port(protocol, port) => {
                let (source, destination) = ports(port);
                match (protocol, packet) {
                    ("TCP", Packet::Opener) => tcp(source, destination).syn(),
                    ("TCP", Packet::Answer) => tcp(source, destination).syn_ack(),
                    ("TCP", Packet::Later) => tcp(source, destination).ack(),
                    ("UDP", _) => udp(source, destination).payload(b"datagram"),
                    _ => sctp(source, destination),
                }
            }
            L4::NoPorts => {
                let kind = match (packet, v6) {
                    (Packet::Answer, false) => 0,
                    (Packet::Answer, true) => 129,
                    (_, false) => 8,
                    (_, true) => 128,
                };
                let [high, low] = self.source.to_be_bytes();
                icmp(kind, 0, [high, low, 0, 1])
            }
        }
    }

    /// The flow that an answer to this one opens, where nobody knows what it answers.
    fn reversed(&self) -> Self {
        let gate = if self.gate == Gate::Ingress { Gate::Egress } else { Gate::Ingress };
        let l4 = match self.l4 {
            L4::Port(protocol, _) => L4::Port(protocol, self.source),
            L4::NoPorts => L4::NoPorts,
        };
        Self { gate, l4, ..*self }
    }

    fn passes(&self, loader: &Loader, packet: Packet) -> bool {
        let (direction, frame) = self.frame(packet);
        let received_on = match (direction, self.from) {
            // what the pod sends enters the node there
            (Direction::Egress, _) | (_, From::Pod) => loader.interface(self.pod),
            (Direction::Ingress, From::Elsewhere) => UPLINK,
            (Direction::Ingress, From::Node) => 0,
        };
        loader.passes(self.pod, direction, &frame, received_on)
    }

    /// What docs/semantics.md says of it, if the pod is the one that the world has at that interface.
    fn expected(&self, world: &World) -> bool {
        let addresses = addresses(world, self.pod);
        // 8: whatever its policies say, a pod sends and is sent to under its own addresses only (antiSpoofing)
        if !addresses.contains(&self.own) {
            return false;
        }
        // 1.5, of which somebody else can only have taken the address
        let (itself, node) = match self.gate {
            Gate::Egress => (true, false),
            Gate::Ingress => (self.from == From::Pod, self.from == From::Node),
        };
        if (itself && addresses.contains(&self.peer)) || (node && is_node(self.peer)) {
            return true;
        }
        policies_allow(world, &world.pods[self.pod], self.gate, self.peer, self.l4)
    }
}

fn is_node(address: IpAddr) -> bool {
    NODES.contains(&address.to_string().as_str())
}

fn addresses(world: &World, pod: usize) -> &[IpAddr] {
    let here = world.interfaces.iter().find(|(here, _)| *here == pod);
    here.map_or(&[], |(_, addresses)| addresses)
}

/// Every question about a world's gates, each with a source port that no other has for a long time.
fn probes<'a>(world: &'a World, sources: &'a Cell<u16>) -> impl Iterator<Item = Probe> + 'a {
    let gates = world.interfaces.iter().flat_map(|(pod, addresses)| {
        [Gate::Ingress, Gate::Egress].map(|gate| (*pod, addresses, gate))
    });
    gates.flat_map(move |(pod, addresses, gate)| {
        let peers = probe_addresses().into_iter();
        peers.flat_map(move |peer| {
            let mut own = addresses.iter().filter(|own| own.is_ipv4() == peer.is_ipv4());
            // the pod has none of this family: somebody else's
            let stranger = if peer.is_ipv4() { "10.0.0.99" } else { "fd00::99" };
            let own = own.next().copied().unwrap_or_else(|| stranger.parse().unwrap());
            probe_ports().into_iter().map(move |l4| {
                let source = 1024 + sources.get() % 60_000;
                sources.set(sources.get().wrapping_add(1));
                let from = match source % 3 {
                    0 if gate == Gate::Ingress => From::Node,
                    1 if addresses.contains(&peer) => From::Pod,
                    _ => From::Elsewhere,
                };
                Probe { pod, gate, own, peer, l4, source, from }
            })
        })
    })
}

/// How many verdicts were what.
#[derive(Debug, Default)]
struct Tally {
    worlds: Cell<u64>,
    allowed: Cell<u64>,
    denied: Cell<u64>,
}

impl Tally {
    fn count(&self, expected: bool) {
        let of = if expected { &self.allowed } else { &self.denied };
        of.set(of.get() + 1);
    }

    fn compared(&self) -> u64 {
        self.allowed.get() + self.denied.get()
    }
}

/// Judges worlds until there have been `cases` or the time is over.
fn run<S: Strategy>(
    cases: u32,
    strategy: S,
    judge: impl Fn(&S::Value, &Tally) -> Result<(), TestCaseError>,
) {
    let seed: u64 = match std::env::var("PODGATE_SEED") {
        Ok(text) => text.parse().unwrap_or_else(|e| panic!("PODGATE_SEED={text}: {e}")),
        Err(_) => rand_seed(),
    };
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let config = ProptestConfig { max_shrink_time: 20_000, ..config(cases, file!()) };
    let mut runner =
        TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
    let (begun, tally, failed) = (Instant::now(), Tally::default(), Cell::new(false));
    let judged = runner.run(&strategy, |value| {
        let enough = tally.compared() > ENOUGH;
        if begun.elapsed() > TIME && enough && !failed.get() {
            return Ok(());
        }
        tally.worlds.set(tally.worlds.get() + 1);
        judge(&value, &tally).inspect_err(|_| failed.set(true))
    });
    if let Err(failure) = judged {
        panic!("PODGATE_SEED={seed}: {failure}");
    }
    let (allowed, denied) = (tally.allowed.get(), tally.denied.get());
    println!(
        "{} worlds, {} verdicts of the programs compared: {allowed} allowed, {denied} denied",
        tally.worlds.get(),
        tally.compared(),
    );
    assert!(tally.compared() > ENOUGH, "too few verdicts compared: {tally:?}");
    assert!(allowed > tally.compared() / 20 && denied > tally.compared() / 20, "{tally:?}");
}

fn rand_seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(())
}

fn loader() -> Loader {
    let loader = Loader::new();
    for node in NODES {
        loader.own_node_address(node.parse().unwrap());
    }
    loader
}

fn new_flows(worlds: impl Strategy<Value = World>) {
    let loader = RefCell::new(loader());
    let sources = Cell::new(0);
    run(400, worlds, |world, tally| {
        let mut loader = loader.borrow_mut();
        loader.load(world);
        for probe in probes(world, &sources) {
            let expected = probe.expected(world);
            tally.count(expected);
            let found = probe.passes(&loader, Packet::Opener);
            prop_assert_eq!(found, expected, "{:?}", probe);
        }
        Ok(())
    });
}

/// From one world to another and back, with flows that live all the while.
fn live_flows(successive: impl Strategy<Value = (World, World)>) {
    let loader = RefCell::new(loader());
    let sources = Cell::new(0);
    run(200, (successive, any::<u64>()), |((old, new), choice), tally| {
        let mut loader = loader.borrow_mut();
        loader.load(old);
        // all would fill the map of flows, and forgotten flows are another test's
        let all: Vec<Probe> = probes(old, &sources).collect();
        let one_of = all.len() as u64 / 500 + 1;
        let chosen = |number: usize| (number as u64 ^ choice).is_multiple_of(one_of);
        let mut live = Vec::new();
        for (_, probe) in all.into_iter().enumerate().filter(|(number, _)| chosen(*number)) {
            // a pod's answer to its own address never leaves it, whoever has taken the address
            if addresses(old, probe.pod).contains(&probe.peer) && probe.from != From::Pod {
                continue;
            }
            let allowed = probe.passes(&loader, Packet::Opener);
            prop_assert_eq!(allowed, probe.expected(old), "new: {:?}", probe);
            if allowed {
                for packet in [Packet::Answer, Packet::Later] {
                    let passes = probe.passes(&loader, packet);
                    prop_assert!(passes, "{:?} of an allowed flow: {:?}", packet, probe);
                }
                live.push(probe);
            }
        }

        let stayed = loader.load(new);
        let is_here = |pod| new.interfaces.iter().any(|(here, _)| *here == pod);
        for (number, probe) in live.iter().enumerate() {
            if !stayed.contains(&probe.pod) {
                // nobody is there any more, or somebody else, whom nothing of this flow may serve: even
                // an answer to it is a question of its own
                let (packet, new_flow) = if number % 2 == 0 {
                    (Packet::Later, *probe)
                } else {
                    (Packet::Answer, probe.reversed())
                };
                // the node's own segment of a connection that nobody knows is no more than a peer's: a node's socket
                // that is connected would show, and a test run has none
                let unknown =
                    matches!(packet, Packet::Later) && matches!(probe.l4, L4::Port("TCP", _));
                let new_flow = match new_flow.from {
                    From::Node if unknown => Probe { from: From::Elsewhere, ..new_flow },
                    _ => new_flow,
                };
                let expected = is_here(probe.pod) && new_flow.expected(new);
                tally.count(expected);
                let found = probe.passes(&loader, packet);
                prop_assert_eq!(found, expected, "{:?} of an earlier pod: {:?}", packet, probe);
                continue;
            }
            let expected = probe.expected(new);
            tally.count(expected);
            let mut packets = [Packet::Later, Packet::Answer];
            if number % 2 == 0 {
                packets.reverse(); // whoever speaks first
            }
            for packet in packets.into_iter().chain(packets) {
                let found = probe.passes(&loader, packet);
                prop_assert_eq!(found, expected, "{:?} after the change: {:?}", packet, probe);
            }
        }

        let stayed_again = loader.load(old);
        let back =
            |probe: &&Probe| stayed.contains(&probe.pod) && stayed_again.contains(&probe.pod);
        for (number, probe) in live.iter().filter(back).enumerate() {
            tally.count(true);
            let mut packets = [Packet::Later, Packet::Answer];
            if number % 2 == 0 {
                packets.reverse();
            }
            for packet in packets {
                let passes = probe.passes(&loader, packet);
                prop_assert!(passes, "{:?} when allowed again: {:?}", packet, probe);
            }
        }
        Ok(())
    });
}
