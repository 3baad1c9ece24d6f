//! What cannot be programmed leaves the last complete policy in force.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use podgate_bpf::loader::Sizes;
use podgate_bpf::maps::POLICY_MAP_MAX;
use podgate_bpf::{Datapath, PinRoot};
use podgate_policy::diff::EntryKey;
use podgate_policy::tables::{Class, Decision, EndpointId, RuleId};
use podgate_testkit::wait::eventually;
use policyd::encode::MapKey;
use policyd::sync::{MapChange, MapState, Outcome, Owners, PolicyMaps};

use crate::node::{Node, on_a_node, on_a_node_of, pod, policy};

fn datapath(node: &Node) -> Arc<Datapath> {
    Arc::new(Datapath::open(&PinRoot::new(node.root.root())).unwrap())
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
    let table =
        |keys: &[MapKey]| keys.iter().map(|key| (*key, Decision::allow(RuleId(7)))).collect();
    MapState {
        hosts: hosts.iter().map(|(a, class)| (a.parse().unwrap(), Class(*class))).collect(),
        nets: Default::default(),
        tables: tables.iter().map(|(id, keys)| (EndpointId(*id), table(keys))).collect(),
        ranked: false,
    }
}

/// Changes what the maps hold into this.
fn commit(policy_maps: &mut PolicyMaps, wanted: &MapState, owners: &Owners) -> Outcome {
    let change = MapChange::between(policy_maps.shadow(), wanted);
    policy_maps.commit(&change, owners, &BTreeMap::new())
}

#[test]
fn entries_that_cannot_be_added_cost_none_and_hold_nobody_else_up() {
    on_a_node(|node| {
        let (a, b) = (node.endpoint("s/a", "10.0.0.1"), node.endpoint("s/b", "10.0.0.2"));
        let owners = [(EndpointId(a.ifindex), a.owner), (EndpointId(b.ifindex), b.owner)].into();
        let mut policy_maps = PolicyMaps::recover(datapath(node)).unwrap().policy_maps;
        let first = state(
            &[
                (a.ifindex, &[key(a.owner, 1, 80), key(a.owner, 1, 81)]),
                (b.ifindex, &[key(b.owner, 1, 80)]),
            ],
            &[("10.0.0.9", 1)],
        );
        assert!(commit(&mut policy_maps, &first, &owners).is_complete());
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
        let outcome = commit(&mut policy_maps, &second, &owners);
        assert_eq!(outcome.degraded.keys().collect::<Vec<_>>(), [&EndpointId(a.ifindex)]);
        assert_eq!(outcome.stopped, None);
        // a keeps what it had, for the same peer under its new class, and nothing of the new policy
        for (port, expected) in [(80, true), (81, true), (443, false), (445, false)] {
            assert_eq!(node.allows(&a, "10.0.0.9", 6, port), expected, "port {port}");
        }
        assert!(node.allows(&b, "10.0.0.9", 6, 443));
        assert!(!node.allows(&b, "10.0.0.9", 6, 80));

        // the cause is gone
        let third = state(
            &[(a.ifindex, &[key(a.owner, 2, 443)]), (b.ifindex, &[key(b.owner, 2, 443)])],
            &[("10.0.0.9", 2)],
        );
        assert!(commit(&mut policy_maps, &third, &owners).is_complete());
        let map = node.maps().policy_map(a.ifindex).unwrap().unwrap();
        assert_eq!(map.entries().unwrap().len(), 1);
        assert_eq!(policy_maps.shadow(), &third);
    });
}

/// From this number of changes on a policy map is replaced.
const MANY: u16 = 16_384;

/// Entries of a class for so many ports, from 1 on.
fn many(owner: u32, class: u32) -> Vec<MapKey> {
    (1..=MANY).map(|port| key(owner, class, port)).collect()
}

#[test]
fn a_kept_policy_stays_where_its_removal_would_be_a_swap() {
    on_a_node(|node| {
        let a = node.endpoint("s/a", "10.0.0.1");
        let owners = [(EndpointId(a.ifindex), a.owner)].into();
        let mut policy_maps = PolicyMaps::recover(datapath(node)).unwrap().policy_maps;
        let hosts = [("10.0.0.8", 1), ("10.0.0.9", 1)];
        let first = state(&[(a.ifindex, &many(a.owner, 1))], &hosts);
        assert!(commit(&mut policy_maps, &first, &owners).is_complete());
        assert!(node.allows(&a, "10.0.0.8", 6, MANY));

        // one peer moves to a new class, so the removals are a batch of their own; before that, the new entry for it
        // cannot be written
        let hosts = [("10.0.0.8", 1), ("10.0.0.9", 2)];
        let refused = impossible(key(a.owner, 2, 40_000));
        let outcome = commit(&mut policy_maps, &state(&[(a.ifindex, &[refused])], &hosts), &owners);
        for (peer, port) in
            [("10.0.0.8", 1), ("10.0.0.8", MANY), ("10.0.0.9", 1), ("10.0.0.9", MANY)]
        {
            assert!(node.allows(&a, peer, 6, port), "{peer} at {port}");
        }
        assert!(!node.allows(&a, "10.0.0.9", 6, 40_000));
        assert_eq!(outcome.degraded.keys().collect::<Vec<_>>(), [&EndpointId(a.ifindex)]);
        assert_eq!((outcome.swapped, outcome.stopped), (0, None));

        // the cause is gone: now the map is replaced
        let third = state(&[(a.ifindex, &[key(a.owner, 2, 40_000)])], &hosts);
        let outcome = commit(&mut policy_maps, &third, &owners);
        assert!(outcome.is_complete() && outcome.swapped == 1, "{outcome:?}");
        let map = node.maps().policy_map(a.ifindex).unwrap().unwrap();
        assert_eq!(map.entries().unwrap().len(), 1);
        assert_eq!(policy_maps.shadow(), &third);
    });
}

#[test]
fn what_is_held_is_not_put_in_force_by_a_swap() {
    on_a_node(|node| {
        let a = node.endpoint("s/a", "10.0.0.1");
        let owners = [(EndpointId(a.ifindex), a.owner)].into();
        let mut policy_maps = PolicyMaps::recover(datapath(node)).unwrap().policy_maps;
        let first = state(&[(a.ifindex, &[key(a.owner, 1, 40_000)])], &[("10.0.0.9", 1)]);
        assert!(commit(&mut policy_maps, &first, &owners).is_complete());
        let wanted = state(&[(a.ifindex, &many(a.owner, 1))], &[("10.0.0.9", 1)]);
        let change = MapChange::between(policy_maps.shadow(), &wanted);
        let held = [(EndpointId(a.ifindex), "it failed a moment ago".to_owned())].into();
        let outcome = policy_maps.commit(&change, &owners, &held);
        assert!(node.allows(&a, "10.0.0.9", 6, 40_000));
        assert!(!node.allows(&a, "10.0.0.9", 6, 1));
        assert_eq!((outcome.swapped, outcome.degraded), (0, held));
        assert_eq!(policy_maps.shadow(), &first);
    });
}

/// A class that gets entries while a member leaves is edited while no address has it: the members that stay are in a
/// transient class meanwhile.
/// A commit that stops then leaves the waiting where they are.
#[test]
fn a_kept_policy_holds_for_members_that_wait_in_a_transient_class() {
    let sizes = Sizes { nets: 1, peers: 2, flows4: 1024, flows6: 1024, ..Sizes::default() };
    on_a_node_of(&sizes, |node| {
        let (a, b) = (node.endpoint("s/a", "10.0.0.1"), node.endpoint("s/b", "10.0.0.2"));
        let owners = [(EndpointId(a.ifindex), a.owner), (EndpointId(b.ifindex), b.owner)].into();
        let mut policy_maps = PolicyMaps::recover(datapath(node)).unwrap().policy_maps;
        let with_nets = |mut state: MapState, nets: &[&str]| {
            state.nets = nets.iter().map(|net| (net.parse().unwrap(), Class(2))).collect();
            state
        };
        let mut first = state(
            &[(a.ifindex, &[key(a.owner, 1, 80)]), (b.ifindex, &[key(b.owner, 1, 80)])],
            &[("10.0.0.8", 1), ("10.0.0.9", 1)],
        );
        first = with_nets(first, &["192.0.2.0/24"]);
        assert!(commit(&mut policy_maps, &first, &owners).is_complete());

        // .8 leaves for a new class, .9 stays; a's new entries cannot all be written, and there is no room for the
        // second prefix, whose turn comes when .9 waits in the transient class
        let mut second = state(
            &[
                (a.ifindex, &[key(a.owner, 1, 80), impossible(key(a.owner, 1, 443))]),
                (b.ifindex, &[key(b.owner, 1, 80), key(b.owner, 1, 443)]),
            ],
            &[("10.0.0.8", 3), ("10.0.0.9", 1)],
        );
        second = with_nets(second, &["192.0.2.0/24", "198.51.100.0/24"]);
        let outcome = commit(&mut policy_maps, &second, &owners);
        assert_eq!(outcome.degraded.keys().collect::<Vec<_>>(), [&EndpointId(a.ifindex)]);
        assert!(outcome.stopped.unwrap().contains("nets4"));
        let of = |peer: &str| Class(node.maps().peer(peer.parse().unwrap()).unwrap().unwrap());
        assert!(of("10.0.0.9").is_transient(), "{:?}", of("10.0.0.9"));
        for peer in ["10.0.0.8", "10.0.0.9"] {
            assert!(node.allows(&a, peer, 6, 80), "{peer}: it keeps its policy");
            assert!(!node.allows(&a, peer, 6, 443), "{peer}");
        }
        assert!(node.allows(&b, "10.0.0.9", 6, 80) && node.allows(&b, "10.0.0.9", 6, 443));

        // the next one stops before .9's turn
        second = with_nets(second, &["192.0.2.0/24"]);
        let mut crowded = second.clone();
        crowded.hosts.insert("10.0.0.7".parse().unwrap(), Class(1));
        let outcome = commit(&mut policy_maps, &crowded, &owners);
        assert!(outcome.stopped.unwrap().contains("peers4"));
        assert!(of("10.0.0.9").is_transient(), "{:?}", of("10.0.0.9"));
        assert!(node.allows(&a, "10.0.0.9", 6, 80), "it keeps its policy");

        // with room for all the commit comes to its end; a still keeps its policy
        for _ in 0..2 {
            let outcome = commit(&mut policy_maps, &second, &owners);
            assert_eq!((outcome.degraded.len(), outcome.stopped), (1, None));
            assert_eq!(of("10.0.0.9"), Class(1));
            for peer in ["10.0.0.8", "10.0.0.9"] {
                assert!(node.allows(&a, peer, 6, 80), "{peer}: it keeps its policy");
                assert!(!node.allows(&a, peer, 6, 443), "{peer}");
            }
        }
        // the entries of the transient class go with the first commit that finds no address in it
        let entries = node.maps().policy_map(a.ifindex).unwrap().unwrap().entries().unwrap();
        let classes: BTreeSet<u32> = entries.iter().map(|(key, _)| key.class).collect();
        assert_eq!(classes, [1, 3].into());

        second.tables.insert(EndpointId(a.ifindex), first.tables[&EndpointId(a.ifindex)].clone());
        assert!(commit(&mut policy_maps, &second, &owners).is_complete());
        assert_eq!(policy_maps.shadow(), &second);
        assert!(node.allows(&a, "10.0.0.9", 6, 80) && !node.allows(&a, "10.0.0.8", 6, 80));
    });
}

/// Where entries may deny, all that moves waits in a transient class, what vanishes too: until it has gone, a kept policy
/// says of it what it says of the prefix around it.
#[test]
fn a_kept_policy_holds_for_what_vanishes_from_a_transient_class() {
    let sizes = Sizes { nets: 3, peers: 1, flows4: 1024, flows6: 1024, ..Sizes::default() };
    on_a_node_of(&sizes, |node| {
        let a = node.endpoint("s/a", "10.0.0.1");
        let owners = [(EndpointId(a.ifindex), a.owner)].into();
        let mut policy_maps = PolicyMaps::recover(datapath(node)).unwrap().policy_maps;
        let ranked = |keys: &[MapKey], hosts: &[(&str, u32)], nets: &[(&str, u32)]| {
            let mut state = state(&[(a.ifindex, keys)], hosts);
            let denied = (key(a.owner, 2, 22), Decision::deny(RuleId(8)));
            state.tables.get_mut(&EndpointId(a.ifindex)).unwrap().extend([denied]);
            let nets = nets.iter().map(|(net, class)| (net.parse().unwrap(), Class(*class)));
            MapState { nets: nets.collect(), ranked: true, ..state }
        };
        let old = [
            key(a.owner, 0, 22),
            key(a.owner, 1, 80),
            key(a.owner, 1, 81),
            key(a.owner, 2, 80),
            key(a.owner, 2, 82),
        ];
        let wide = ("10.0.0.0/16", 2);
        let first = ranked(&old, &[("10.0.0.9", 1)], &[wide, ("10.0.1.0/24", 1)]);
        assert!(commit(&mut policy_maps, &first, &owners).is_complete());

        // entries of every peer change, so both wait; a's for the new class cannot be written; there is no room for .10,
        // whose turn is after that of .9
        let refused = impossible(key(a.owner, 3, 444));
        let new = [old.as_slice(), &[key(a.owner, 0, 443), refused]].concat();
        let stopped = ranked(&new, &[("10.0.0.10", 3)], &[wide]);
        let outcome = commit(&mut policy_maps, &stopped, &owners);
        assert_eq!(outcome.degraded.keys().collect::<Vec<_>>(), [&EndpointId(a.ifindex)]);
        assert!(outcome.stopped.unwrap().contains("peers4"));
        let waiting = node.maps().peer("10.0.0.9".parse().unwrap()).unwrap().map(Class);
        assert!(waiting.is_some_and(Class::is_transient), "{waiting:?}");
        assert!(node.allows(&a, "10.0.0.9", 6, 80), "what it was allowed and will be");
        assert!(!node.allows(&a, "10.0.0.9", 6, 443), "what it is not allowed yet");

        // the same for a prefix, with no room for another one
        let stopped =
            ranked(&new, &[], &[wide, ("10.0.2.0/24", 3), ("10.0.3.0/24", 3), ("10.0.4.0/24", 3)]);
        let outcome = commit(&mut policy_maps, &stopped, &owners);
        assert_eq!(outcome.degraded.keys().collect::<Vec<_>>(), [&EndpointId(a.ifindex)]);
        assert!(outcome.stopped.unwrap().contains("nets4"));
        for peer in ["10.0.0.9", "10.0.1.9"] {
            for (port, expected) in [(80, true), (22, false), (443, false)] {
                assert_eq!(node.allows(&a, peer, 6, port), expected, "{peer} at {port}");
            }
        }
    });
}

/// Entries that a commit adds for a new class are no part of a complete policy before an address has that class.
#[test]
fn a_kept_policy_knows_nothing_of_a_commit_that_stopped_before_it() {
    let sizes = Sizes { peers: 1, flows4: 1024, flows6: 1024, ..Sizes::default() };
    on_a_node_of(&sizes, |node| {
        let a = node.endpoint("s/a", "10.0.0.1");
        let owners = [(EndpointId(a.ifindex), a.owner)].into();
        let mut policy_maps = PolicyMaps::recover(datapath(node)).unwrap().policy_maps;
        let first = state(&[(a.ifindex, &[key(a.owner, 1, 80)])], &[("10.0.0.9", 1)]);
        assert!(commit(&mut policy_maps, &first, &owners).is_complete());

        // there is no room for .8, whose turn is before that of .9
        let hosts = [("10.0.0.8", 2), ("10.0.0.9", 2)];
        let second = state(&[(a.ifindex, &[key(a.owner, 2, 443)])], &hosts);
        let outcome = commit(&mut policy_maps, &second, &owners);
        assert!(outcome.stopped.unwrap().contains("peers4"));
        assert!(node.allows(&a, "10.0.0.9", 6, 80) && !node.allows(&a, "10.0.0.9", 6, 443));

        let refused = impossible(key(a.owner, 2, 444));
        let third = [key(a.owner, 2, 8080), refused];
        let third = state(&[(a.ifindex, &third)], &[("10.0.0.9", 2)]);
        let outcome = commit(&mut policy_maps, &third, &owners);
        assert_eq!((outcome.degraded.len(), outcome.stopped), (1, None));
        assert_eq!(node.maps().peer("10.0.0.9".parse().unwrap()).unwrap(), Some(2));
        for (port, expected) in [(80, true), (443, false), (8080, false)] {
            assert_eq!(node.allows(&a, "10.0.0.9", 6, port), expected, "port {port}");
        }
    });
}

#[test]
fn a_table_that_no_map_holds_is_refused_before_it_is_tried() {
    on_a_node(|node| {
        let a = node.endpoint("s/a", "10.0.0.1");
        let owners = [(EndpointId(a.ifindex), a.owner)].into();
        let mut policy_maps = PolicyMaps::recover(datapath(node)).unwrap().policy_maps;
        let first = state(&[(a.ifindex, &[key(a.owner, 0, 80)])], &[]);
        assert!(commit(&mut policy_maps, &first, &owners).is_complete());
        let mut many = first.clone();
        let table = many.tables.get_mut(&EndpointId(a.ifindex)).unwrap();
        for n in 0..=POLICY_MAP_MAX {
            table.insert(
                key(a.owner, 0, n as u16).with_class(Class(n >> 16)),
                Decision::allow(RuleId(7)),
            );
        }
        let outcome = commit(&mut policy_maps, &many, &owners);
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
        let mut policy_maps = PolicyMaps::recover(datapath(node)).unwrap().policy_maps;
        let wanted = state(
            &[(a.ifindex, &[impossible(key(a.owner, 0, 80))]), (b.ifindex, &[key(b.owner, 0, 80)])],
            &[],
        );
        let outcome = commit(&mut policy_maps, &wanted, &owners);
        assert_eq!(outcome.degraded.len(), 1);
        assert!(node.maps().policy_map(a.ifindex).unwrap().is_none());
        assert!(!policy_maps.in_force(EndpointId(a.ifindex), a.owner));
        assert!(policy_maps.in_force(EndpointId(b.ifindex), b.owner));
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
