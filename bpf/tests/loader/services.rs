//! The maps of services, seeded flows, and the programs' clock.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::num::NonZeroU32;

use podgate_bpf::abi::{BackendState, FLOW_NO_SLOT, FlowKind, FlowState};
use podgate_bpf::clock::coarse_now;
use podgate_bpf::seeding::{Seed, Seeded};
use podgate_bpf::services::{Affinity, Backend, Frontend, ServiceEntry};
use podgate_contract::handshake::EndpointRef;

use super::*;

fn backend(n: u32) -> Backend {
    let [_, _, high, low] = n.to_be_bytes();
    Backend { address: std::net::IpAddr::from([10, 1, high, low]), port: 8080 }
}

pub(crate) fn services() {
    let datapath = Datapath::open_or_load(&root(), &small()).unwrap();
    let maps = datapath.maps.services();
    let at =
        |address: &str, port| Frontend { address: address.parse().unwrap(), port, protocol: 6 };
    let number = |n| NonZeroU32::new(n);
    let affinity = |n| Some(Affinity { seconds: number(10_800)?, number: number(n) });
    let entry = |id, count| ServiceEntry { id, count, affinity: affinity(count - 2) };
    // the same number in both families, ports whose bytes differ, an address that only looks like IPv4
    let wanted: BTreeMap<_, _> = [
        (at("10.96.0.10", 53), entry(1, 2)),
        (Frontend { protocol: 17, ..at("10.96.0.10", 53) }, entry(2, 3)),
        (at("10.96.0.10", 0x3500), entry(3, 4)),
        (at("fd00:10:96::a", 53), entry(4, 5)),
        (at("::ffff:10.96.0.10", 53), entry(u32::MAX, u32::MAX)),
    ]
    .into();
    for (frontend, entry) in &wanted {
        maps.set_service(frontend, *entry).unwrap();
    }
    assert_eq!(maps.services().unwrap(), wanted);
    maps.set_service(&at("10.96.0.10", 53), entry(1, 9)).unwrap();
    assert_eq!(maps.services().unwrap()[&at("10.96.0.10", 53)], entry(1, 9));
    for frontend in wanted.keys().chain(wanted.keys()) {
        maps.remove_service(frontend).unwrap();
    }
    assert_eq!(maps.services().unwrap(), BTreeMap::new());

    let six = Backend { address: "fd00::7".parse().unwrap(), port: 53 };
    maps.set_slot(1, 0, backend(7)).unwrap();
    maps.set_slot(1, 1, six).unwrap();
    maps.set_slot(1, 0, backend(8)).unwrap();
    assert_eq!(maps.slots().unwrap(), [((1, 0), backend(8)), ((1, 1), six)].into());
    maps.set_backend(1, six, BackendState::Ready).unwrap();
    maps.set_backend(1, backend(8), BackendState::Ready).unwrap();
    maps.set_backend(1, six, BackendState::Serving).unwrap();
    let states = [((1, backend(8)), BackendState::Ready), ((1, six), BackendState::Serving)];
    assert_eq!(maps.backends().unwrap(), states.into());
    for _ in 0..2 {
        maps.remove_slot(1, 0).unwrap();
        maps.remove_backend(1, six).unwrap();
    }
    assert_eq!(maps.slots().unwrap(), [((1, 1), six)].into());
    assert_eq!(maps.backends().unwrap(), [states[0]].into());
}

pub(crate) fn services_in_batches() {
    let datapath = Datapath::open_or_load(&root(), &Sizes { backends: 1000, ..small() }).unwrap();
    let maps = datapath.maps.services();
    maps.set_slots(&[]).unwrap();
    maps.set_backends(&[]).unwrap();
    let slots: Vec<_> = (0..1000).map(|n| (5, n, backend(n))).collect();
    let backends: Vec<_> = (0..1000).map(|n| (5, backend(n), BackendState::Ready)).collect();
    maps.set_slots(&slots).unwrap();
    maps.set_backends(&backends).unwrap();
    let read = maps.slots().unwrap();
    assert!(read.into_iter().eq(slots.iter().map(|&(id, slot, backend)| ((id, slot), backend))));
    assert_eq!(maps.backends().unwrap().len(), 1000);
    for full in [maps.set_slots(&[(6, 0, backend(0))]), maps.set_slot(6, 0, backend(0))] {
        let told = full.unwrap_err();
        assert!(matches!(told, Error::Full { map: "slots", max_entries: 1000 }), "{told}");
    }
    let told = maps.set_backend(6, backend(0), BackendState::Ready).unwrap_err();
    assert!(matches!(told, Error::Full { map: "backends", .. }), "{told}");
}

/// A datagram flow from the pod, in either family.
fn seed(ifindex: u32, [pod, peer]: [&str; 2]) -> Seed {
    Seed {
        endpoint: EndpointRef { ifindex, owner: 77 },
        pod: SocketAddr::new(pod.parse().unwrap(), 1),
        peer: SocketAddr::new(peer.parse().unwrap(), 2),
        protocol: 17,
        kind: FlowKind::Plain,
        direction: Egress,
        state: FlowState::Established,
        by_own_node: false,
        translated_to: None,
    }
}

pub(crate) fn seeds() {
    let datapath = Datapath::open_or_load(&root(), &small()).unwrap();
    for ends in [["10.0.0.5", "10.0.0.9"], ["fd00::5", "fd00::9"]] {
        let seed = seed(5, ends);
        assert_eq!(datapath.maps.seed(&seed).unwrap(), Seeded::New);
        assert_eq!(datapath.maps.seed(&seed).unwrap(), Seeded::Known);
        let answers = Seed { direction: Ingress, ..seed };
        assert_eq!(datapath.maps.seed(&answers).unwrap(), Seeded::Corrected);
    }
    let table = datapath.maps.flow_table();
    let (v4, v6) = (table.flows4().unwrap(), table.flows6().unwrap());
    let ([(key4, flow4)], [(key6, flow6)]) = (&v4[..], &v6[..]) else { panic!("{v4:?} {v6:?}") };
    assert_eq!((key4.ifindex, key4.pod, key4.peer), (5, [10, 0, 0, 5], [10, 0, 0, 9]));
    assert_eq!((key6.ifindex, key6.pod_port, key6.peer_port), (5, [0, 1], [0, 2]));
    for flow in [flow4, flow6] {
        let got = (flow.owner, flow.direction, flow.state, flow.flags);
        let wanted = (77, Ingress as u8, FlowState::Established as u8, FLOW_NO_SLOT);
        assert_eq!(got, wanted);
    }
}

pub(crate) fn clock() {
    let datapath = Datapath::open_or_load(&root(), &small()).unwrap();
    let veth = Veth::new().unwrap();
    datapath.maps.register(&registration(veth.ifindex)).unwrap();
    let policy = datapath.maps.new_policy_map(&[everything(77)]).unwrap();
    datapath.maps.install_policy_maps(&[(veth.ifindex, &policy)]).unwrap();
    assert_eq!(send(&datapath, veth.ifindex, Ingress), (-1, 0));
    let (_, flow) = datapath.maps.flow_table().flows4().unwrap()[0];
    let ahead = flow.expires.wrapping_sub(coarse_now());
    // a new datagram flow lives for 60; the two clocks may be a few apart
    assert!((55..=65).contains(&ahead), "{ahead}");
    veth.delete().unwrap();
}
