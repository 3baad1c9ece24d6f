//! The same through services: random ones stand in the maps, and every verdict is the oracle's on the endpoint that
//! the programs picked, which is read from the rewritten packet or, of a refused one, from its event.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use podgate_bpf::abi::{BackendState, Verdict};
use podgate_bpf::events::{Event, Events};
use podgate_bpf::services::{Backend, Frontend, ServiceEntry};
use podgate_testkit::wait::eventually;
use podgate_tests::kernel::{DROP, NEXT, REDIRECT};
use podgate_tests::oracle::{Policies, ruling_on_itself};
use podgate_tests::worlds::sole_addresses;

use super::*;

const PROTOCOLS: [(&str, u8); 3] = [("TCP", 6), ("UDP", 17), ("SCTP", 132)];
/// Where services listen and where their endpoints do; some policies speak of the ones, some of the others.
const PORTS: [u16; 6] = [53, 79, 80, 81, 443, 8080];

/// Numbers out of a seed (splitmix64).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % bound as u64) as usize
    }
}

type Services = BTreeMap<Frontend, Vec<Backend>>;

/// A few services of each protocol and family, with one to six endpoints: pods, strangers, the node.
fn random_services(random: &mut Random) -> Services {
    let mut services = Services::new();
    for (_, protocol) in PROTOCOLS {
        for (v4, prefix) in [(true, "10.96.0."), (false, "fd00:10:96::")] {
            let peers: Vec<IpAddr> =
                probe_addresses().into_iter().filter(|peer| peer.is_ipv4() == v4).collect();
            for number in 1..=6 {
                let address = format!("{prefix}{number}").parse().unwrap();
                let port = PORTS[random.below(PORTS.len())];
                let backends = (0..=random.below(6))
                    .map(|_| Backend {
                        address: peers[random.below(peers.len())],
                        port: PORTS[random.below(PORTS.len())],
                    })
                    .collect();
                services.insert(Frontend { address, port, protocol }, backends);
            }
        }
    }
    services
}

/// Puts services into the maps in place of what was there, under numbers from `first` on.
fn offer(loader: &Loader, services: &Services, first: u32) {
    let maps = loader.datapath().maps.services();
    for frontend in maps.services().unwrap().into_keys() {
        maps.remove_service(&frontend).unwrap();
    }
    for (id, (frontend, backends)) in (first..).zip(services) {
        for (slot, backend) in (0..).zip(backends) {
            maps.set_backend(id, *backend, BackendState::Ready).unwrap();
            maps.set_slot(id, slot, *backend).unwrap();
        }
        let count = backends.len() as u32;
        maps.set_service(frontend, ServiceEntry { id, count, affinity: None }).unwrap();
    }
}

/// Where a frame goes.
fn destination(frame: &[u8], v4: bool) -> Backend {
    let (address, port): (IpAddr, _) = if v4 {
        (<[u8; 4]>::try_from(&frame[30..34]).unwrap().into(), 36)
    } else {
        (<[u8; 16]>::try_from(&frame[38..54]).unwrap().into(), 56)
    };
    Backend { address, port: u16::from_be_bytes([frame[port], frame[port + 1]]) }
}

/// Whether a frame that came back is the gate's answer to one that is rejected, and not one to the pod itself: no flow begins
/// with a RST or an ICMP message here.
fn is_rejection(frame: &[u8], v4: bool) -> bool {
    let (protocol, tcp_flags) = if v4 { (frame[23], 47) } else { (frame[20], 67) };
    match protocol {
        1 | 58 => true,
        6 => frame[tcp_flags] & 4 != 0,
        _ => false,
    }
}

/// Whether a pod that gets itself as the endpoint may speak to itself, in both directions (docs/semantics.md 15.15).
fn meets_itself(world: &World, endpoint: &Probe) -> bool {
    let pod = &world.pods[endpoint.pod];
    [Gate::Egress, Gate::Ingress].into_iter().all(|gate| {
        let in_force = Policies::InForce;
        ruling_on_itself(world, pod, gate, endpoint.peer, endpoint.l4, in_force).passes
    })
}

/// A flow as its pod sees it, and as the others do.
struct Through {
    service: Probe,
    endpoint: Probe,
}

impl Through {
    fn send(&self, loader: &Loader, as_seen: &Probe, packet: Packet) -> (i32, Vec<u8>) {
        let (direction, frame) = as_seen.frame(packet);
        let received_on = match direction {
            Direction::Egress => 0,
            Direction::Ingress => UPLINK,
        };
        loader.run(self.service.pod, direction, &frame, received_on)
    }

    /// A later packet of the pod, or the endpoint's answer: whether it passes, as what it must leave.
    fn passes(&self, loader: &Loader, packet: Packet) -> Result<bool, TestCaseError> {
        let (came, leaves) = match packet {
            Packet::Answer => (&self.endpoint, &self.service),
            Packet::Opener | Packet::Later => (&self.service, &self.endpoint),
        };
        let (action, left) = self.send(loader, came, packet);
        if action == NEXT {
            prop_assert_eq!(left, leaves.frame(packet).1, "{:?} of {:?}", packet, self.endpoint);
        } else {
            // it may be rejected
            let refused = [DROP, REDIRECT].contains(&action);
            prop_assert!(refused, "{action}: {packet:?} of {:?}", self.endpoint);
        }
        Ok(action == NEXT)
    }
}

pub(crate) fn through_services(successive: impl Strategy<Value = (World, World)>) {
    let loader = RefCell::new(loader());
    let sources = Cell::new(0_u16);
    let ids = Cell::new(1_u32);
    loader.borrow().datapath().maps.control().set_event_limit(u32::MAX);
    let told: Arc<Mutex<Vec<Event>>> = Arc::default();
    let sink = told.clone();
    let ring = Events::new(&loader.borrow().datapath().maps, move |event| {
        // what is only audited or logged passes, and is told as well
        if event.verdict == Verdict::Deny {
            sink.lock().unwrap().push(event);
        }
    });
    let ring = ring.unwrap();
    run(150, (successive, any::<u64>()), |((old, new), seed), tally| {
        let mut loader = loader.borrow_mut();
        let services = random_services(&mut Random(*seed));
        offer(&loader, &services, ids.get());
        ids.set(ids.get() + services.len() as u32);
        loader.load(old);
        let mut live = Vec::new();
        for (pod, addresses) in &old.interfaces {
            for (frontend, backends) in &services {
                let v4 = frontend.address.is_ipv4();
                let Some(own) = addresses.iter().copied().find(|own| own.is_ipv4() == v4) else {
                    continue;
                };
                let (name, _) = *PROTOCOLS.iter().find(|(_, n)| *n == frontend.protocol).unwrap();
                let source = 1024 + sources.get() % 60_000;
                sources.set(sources.get().wrapping_add(1));
                let to = |peer, port| Probe {
                    pod: *pod,
                    gate: Gate::Egress,
                    own,
                    peer,
                    l4: L4::Port(name, port),
                    source,
                    from: From::Elsewhere,
                };
                let service = to(frontend.address, frontend.port);
                let (direction, frame) = service.frame(Packet::Opener);
                let (action, left) = loader.run(*pod, direction, &frame, 0);
                let refused = action == DROP || (action == REDIRECT && is_rejection(&left, v4));
                let picked = if refused {
                    eventually("the refusal's event", || {
                        ring.poll(Duration::ZERO).unwrap();
                        !told.lock().unwrap().is_empty()
                    });
                    let event = told.lock().unwrap().remove(0);
                    prop_assert_eq!(event.service, Some((frontend.address, frontend.port)));
                    Backend { address: event.peer.0, port: event.peer.1 }
                } else {
                    destination(&left, v4)
                };
                prop_assert!(backends.contains(&picked), "{picked:?} is not of {backends:?}");
                let endpoint = to(picked.address, picked.port);
                let itself = addresses.contains(&picked.address);
                if itself && !sole_addresses(addresses).contains(&picked.address) {
                    continue; // which of its addresses it is judged by is not specified
                }
                let expected =
                    if itself { meets_itself(old, &endpoint) } else { endpoint.expected(old) };
                tally.count(expected);
                prop_assert_eq!(!refused, expected, "{:?} through {:?}", endpoint, frontend);
                if action == NEXT {
                    prop_assert_eq!(left, endpoint.frame(Packet::Opener).1);
                    let through = Through { service, endpoint };
                    for packet in [Packet::Answer, Packet::Later] {
                        prop_assert!(through.passes(&loader, packet)?, "{:?}", endpoint);
                    }
                    live.push(through);
                } else if !refused {
                    prop_assert!(addresses.contains(&picked.address), "{:?}", endpoint);
                }
            }
        }
        let stayed = loader.load(new);
        for (number, through) in live.iter().enumerate() {
            if !stayed.contains(&through.service.pod) {
                continue;
            }
            let expected = through.endpoint.expected(new);
            tally.count(expected);
            let mut packets = [Packet::Later, Packet::Answer];
            if number % 2 == 0 {
                packets.reverse(); // whoever speaks first
            }
            for packet in packets.into_iter().chain(packets) {
                let passes = through.passes(&loader, packet)?;
                prop_assert_eq!(passes, expected, "{:?} of {:?}", packet, through.endpoint);
            }
        }
        // what was refused of those was told too
        ring.poll(Duration::ZERO).unwrap();
        told.lock().unwrap().clear();
        Ok(())
    });
}
