//! What cannot be programmed leaves the last complete policy in force.

use std::collections::BTreeMap;
use std::sync::Arc;

use podgate_bpf::loader::Sizes;
use podgate_bpf::maps::POLICY_MAP_MAX;
use podgate_bpf::{Gate, PinRoot};
use podgate_policy::compile::{Class, EndpointId, RuleId};
use podgate_policy::diff::EntryKey;
use policyd::encode::MapKey;
use policyd::sync::{Kernel, MapChange, MapState, Outcome, Owners};

use crate::node::{Node, eventually, on_a_node, on_a_node_of, pod, policy};

fn gate(node: &Node) -> Arc<Gate> {
    Arc::new(Gate::open(&PinRoot::new(node.root.root())).unwrap())
}

fn key(owner: u32, class: u32, port: u16) -> MapKey {
    let port = port.to_be_bytes();
    MapKey(podgate_bpf::abi::PolicyKey {
        prefixlen: 96,
        owner,
        class,
        direction: 1,
        protocol: 6,
        port,
    })
}

/// The kernel refuses a prefix that is longer than the key.
fn impossible(key: MapKey) -> MapKey {
    MapKey(podgate_bpf::abi::PolicyKey { prefixlen: 97, ..key.0 })
}

fn state(tables: &[(u32, &[MapKey])], hosts: &[(&str, u32)]) -> MapState {
    let table = |keys: &[MapKey]| keys.iter().map(|key| (*key, RuleId(7))).collect();
    MapState {
        hosts: hosts.iter().map(|(a, class)| (a.parse().unwrap(), Class(*class))).collect(),
        nets: Default::default(),
        tables: tables.iter().map(|(id, keys)| (EndpointId(*id), table(keys))).collect(),
    }
}

/// Changes what the maps hold into this.
fn commit(kernel: &mut Kernel, wanted: &MapState, owners: &Owners) -> Outcome {
    let change = MapChange::between(kernel.shadow(), wanted);
    kernel.commit(&change, owners, &BTreeMap::new())
}

#[test]
fn entries_that_cannot_be_added_cost_none_and_hold_nobody_else_up() {
    on_a_node(|node| {
        let (a, b) = (node.endpoint("s/a", "10.0.0.1"), node.endpoint("s/b", "10.0.0.2"));
        let owners = [(EndpointId(a.ifindex), a.owner), (EndpointId(b.ifindex), b.owner)].into();
        let mut kernel = Kernel::adopt(gate(node)).unwrap().kernel;
        let first = state(
            &[
                (a.ifindex, &[key(a.owner, 1, 80), key(a.owner, 1, 81)]),
                (b.ifindex, &[key(b.owner, 1, 80)]),
            ],
            &[("10.0.0.9", 1)],
        );
        assert!(commit(&mut kernel, &first, &owners).is_complete());
        assert!(node.allows(&a, "10.0.0.9", 6, 80));

        // the peer moves to a new class; a's new entries for it cannot all be written
        let second = state(
            &[
                (
                    a.ifindex,
                    &[key(a.owner, 2, 443), impossible(key(a.owner, 2, 444)), key(a.owner, 2, 445)],
                ),
                (b.ifindex, &[key(b.owner, 2, 443)]),
            ],
            &[("10.0.0.9", 2)],
        );
        let outcome = commit(&mut kernel, &second, &owners);
        assert_eq!(outcome.degraded.keys().collect::<Vec<_>>(), [&EndpointId(a.ifindex)]);
        assert_eq!(outcome.stopped, None);
        // a keeps what it had, for the same peer under its new class, and nothing of the new policy
        for (port, expected) in [(80, true), (81, true), (443, false), (445, false)] {
            assert_eq!(node.allows(&a, "10.0.0.9", 6, port), expected, "port {port}");
        }
        assert!(node.allows(&b, "10.0.0.9", 6, 443));
        assert!(!node.allows(&b, "10.0.0.9", 6, 80));

        // mended
        let third = state(
            &[(a.ifindex, &[key(a.owner, 2, 443)]), (b.ifindex, &[key(b.owner, 2, 443)])],
            &[("10.0.0.9", 2)],
        );
        assert!(commit(&mut kernel, &third, &owners).is_complete());
        let map = node.maps().policy_map(a.ifindex).unwrap().unwrap();
        assert_eq!(map.entries().unwrap().len(), 1);
        assert_eq!(kernel.shadow(), &third);
    });
}

#[test]
fn a_table_that_no_map_holds_is_refused_before_it_is_tried() {
    on_a_node(|node| {
        let a = node.endpoint("s/a", "10.0.0.1");
        let owners = [(EndpointId(a.ifindex), a.owner)].into();
        let mut kernel = Kernel::adopt(gate(node)).unwrap().kernel;
        let first = state(&[(a.ifindex, &[key(a.owner, 0, 80)])], &[]);
        assert!(commit(&mut kernel, &first, &owners).is_complete());
        let mut many = first.clone();
        let table = many.tables.get_mut(&EndpointId(a.ifindex)).unwrap();
        for n in 0..=POLICY_MAP_MAX {
            table.insert(key(a.owner, 0, n as u16).with_class(Class(n >> 16)), RuleId(7));
        }
        let outcome = commit(&mut kernel, &many, &owners);
        let reason = &outcome.degraded[&EndpointId(a.ifindex)];
        assert!(reason.contains("at most 1048576 fit"), "{reason}");
        let map = node.maps().policy_map(a.ifindex).unwrap().unwrap();
        assert_eq!(map.entries().unwrap().len(), 1);
    });
}

#[test]
fn a_first_table_that_cannot_be_made_leaves_the_endpoint_in_its_startup_state() {
    on_a_node(|node| {
        let (a, b) = (node.endpoint("s/a", "10.0.0.1"), node.endpoint("s/b", "10.0.0.2"));
        let owners = [(EndpointId(a.ifindex), a.owner), (EndpointId(b.ifindex), b.owner)].into();
        let mut kernel = Kernel::adopt(gate(node)).unwrap().kernel;
        let wanted = state(
            &[(a.ifindex, &[impossible(key(a.owner, 0, 80))]), (b.ifindex, &[key(b.owner, 0, 80)])],
            &[],
        );
        let outcome = commit(&mut kernel, &wanted, &owners);
        assert_eq!(outcome.degraded.len(), 1);
        assert!(node.maps().policy_map(a.ifindex).unwrap().is_none());
        assert!(!kernel.in_force(EndpointId(a.ifindex), a.owner));
        assert!(kernel.in_force(EndpointId(b.ifindex), b.owner));
        assert!(node.allows(&b, "10.0.0.9", 6, 80));
    });
}

#[test]
fn a_full_class_map_stops_the_change_and_is_told() {
    let sizes = Sizes { peers: 2, flows4: 1024, flows6: 1024, ..Sizes::default() };
    on_a_node_of(&sizes, |node| {
        let peer = |n: u8| pod(&format!("shop/web{n}"), "app: web", &format!("10.0.1.{n}"));
        let api = pod("shop/api", "app: api", "10.0.0.2");
        node.manifest("pods.yaml", &[api.clone(), peer(1), peer(2)].concat());
        node.manifest("policies.yaml", &policy("shop/p", "app: api", "app: web", 80));
        let endpoint = node.endpoint("shop/api", "10.0.0.2");
        let _policyd = node.policyd();
        node.ready();
        assert!(node.allows(&endpoint, "10.0.1.1", 6, 80));
        assert!(node.allows(&endpoint, "10.0.1.2", 6, 80));

        node.manifest("pods.yaml", &[api.clone(), peer(1), peer(2), peer(3)].concat());
        let problem = eventually("the full map is told", || {
            node.get("/v1/status")["problems"][0].as_str().map(str::to_owned)
        });
        assert!(problem.contains("peers4") && problem.contains("full"), "{problem}");
        // what was allowed still is
        assert!(node.allows(&endpoint, "10.0.1.1", 6, 80));
        assert!(node.allows(&endpoint, "10.0.1.2", 6, 80));
        assert!(!node.allows(&endpoint, "10.0.1.3", 6, 80));

        node.manifest("pods.yaml", &[api, peer(1), peer(2)].concat());
        eventually("all is well", || {
            node.get("/v1/status")["problems"].as_array().unwrap().is_empty().then_some(())
        });
    });
}
