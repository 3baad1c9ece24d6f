//! Random sequences of states: after each commit the maps hold exactly the requested state.

use std::collections::BTreeMap;
use std::sync::Arc;

use podgate_bpf::abi::PolicyKey;
use podgate_bpf::maps::Registration;
use podgate_bpf::{Datapath, PinRoot};
use podgate_policy::tables::{Class, Decision, EndpointId, RuleId};
use policyd::encode::MapKey;
use policyd::sync::{MapChange, MapState, PolicyMaps};
use proptest::prelude::*;

use crate::node::on_a_node;

/// A state over three endpoints, whose owners come from elsewhere.
fn state() -> impl Strategy<Value = MapState> {
    let key =
        (0u32..5, 0u8..4, 0u32..=16, any::<u16>()).prop_map(|(class, direction, bits, port)| {
            let mask = if bits == 0 { 0 } else { u16::MAX << (16 - bits) };
            let port = (port & mask).to_be_bytes();
            MapKey(PolicyKey {
                prefixlen: 80 + bits,
                owner: 0,
                class,
                direction,
                protocol: 6,
                port,
            })
        });
    let table = prop::collection::btree_map(
        key,
        (1u32..5).prop_map(|rule| Decision::allow(RuleId(rule))),
        0..12,
    );
    let tables = prop::collection::btree_map((0u32..3).prop_map(EndpointId), table, 0..=3);
    let class = || (1u32..5).prop_map(Class);
    let host = any::<[u8; 2]>().prop_map(|[a, b]| [10, 0, a % 2, b % 8].into());
    let hosts = prop::collection::btree_map(host, class(), 0..8);
    let net = (any::<u8>(), 8u8..=32).prop_map(|(a, length)| {
        ipnet::IpNet::new([10, 0, a % 4, 0].into(), length).unwrap().trunc()
    });
    let nets = prop::collection::btree_map(net, class(), 0..6);
    (hosts, nets, tables).prop_map(|(hosts, nets, tables)| MapState {
        hosts,
        nets: nets.into_iter().collect(),
        tables,
        ranked: false,
    })
}

/// The same with the real endpoints. Endpoints with a table keep one, as with the writer.
fn real(state: &MapState, endpoints: &[Registration], present: &MapState) -> MapState {
    let mut real = MapState { tables: BTreeMap::new(), ..state.clone() };
    for (nth, registration) in endpoints.iter().enumerate() {
        let id = EndpointId(registration.ifindex);
        let owned = |(key, rule): (&MapKey, &Decision)| {
            (MapKey(PolicyKey { owner: registration.owner, ..key.0 }), *rule)
        };
        match state.tables.get(&EndpointId(nth as u32)) {
            Some(table) => real.tables.insert(id, table.iter().map(owned).collect()),
            None => present.tables.get(&id).and_then(|kept| real.tables.insert(id, kept.clone())),
        };
    }
    real
}

#[test]
fn the_kernel_holds_what_was_asked_for_after_each_of_many_commits() {
    on_a_node(|node| {
        let datapath = Arc::new(Datapath::open(&PinRoot::new(node.root.root())).unwrap());
        let endpoints: Vec<_> =
            (0..3).map(|n| node.endpoint(&format!("s/p{n}"), &format!("10.9.0.{n}"))).collect();
        let owners = endpoints.iter().map(|r| (EndpointId(r.ifindex), r.owner)).collect();
        let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
            cases: 24,
            failure_persistence: None,
            ..ProptestConfig::default()
        });
        let ran = runner.run(&prop::collection::vec(state(), 1..8), |states| {
            let mut policy_maps = PolicyMaps::recover(datapath.clone()).unwrap().policy_maps;
            for state in &states {
                let wanted = real(state, &endpoints, policy_maps.shadow());
                let epoch = datapath.maps.control().epoch();
                let changed = policy_maps.shadow() != &wanted;
                let change = MapChange::between(policy_maps.shadow(), &wanted);
                let outcome = policy_maps.commit(&change, &owners, &BTreeMap::new());
                prop_assert!(outcome.is_complete(), "{:?}", outcome);
                prop_assert_eq!(policy_maps.shadow(), &wanted);
                prop_assert_eq!(datapath.maps.control().epoch() != epoch, changed);
                // what another policyd would find, even if this one were gone now
                let found = PolicyMaps::recover(datapath.clone()).unwrap();
                prop_assert_eq!(found.policy_maps.shadow(), &wanted);
            }
            Ok(())
        });
        ran.unwrap();
    });
}
