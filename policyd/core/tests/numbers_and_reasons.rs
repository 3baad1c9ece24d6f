//! The numbers that outlive a compilation, and what explanations say.

#![allow(clippy::unwrap_used, reason = "a test that panics is a test that fails")]

mod cluster;

use std::collections::BTreeSet;

use cluster::{Cluster, key};
use podgate_contract::api::Verdict;
use podgate_policy::compile::Engine;
use podgate_policy::model::Direction;
use podgate_policy::object::{Event, ObjectId};
use podgate_policy::tables::{Class, Compiled, RuleId, RuleOrigin};
use serde_json::json;

fn classes(compiled: &Compiled) -> BTreeSet<Class> {
    compiled.hosts.values().chain(compiled.nets.values()).copied().collect()
}

/// The shop, whose web lets in `app=api` on 80 and a block.
fn shop() -> Cluster {
    let mut cluster = Cluster::shop();
    let api = json!({"podSelector": {"matchLabels": {"app": "api"}}});
    let block = json!({"ipBlock": {"cidr": "10.9.0.0/16", "except": ["10.9.1.0/24"]}});
    cluster.policy(
        "shop/web",
        json!({
            "podSelector": {"matchLabels": {"app": "web"}},
            "ingress": [{"from": [api], "ports": [{"port": 80}]}, {"from": [block]}],
        }),
    );
    cluster
}

#[test]
fn a_class_keeps_its_number_and_no_number_is_given_twice() {
    let mut cluster = shop();
    let mut engine = Engine::above([Class(99)]);
    let first = cluster.update(&mut engine);
    assert_eq!(cluster.update(&mut engine), first);
    let numbers = classes(&first);
    assert!(numbers.iter().all(|class| *class == Class::ANY || class.0 >= 100), "{numbers:?}");
    let api = first.class_of("10.0.0.2".parse().unwrap());
    // another peer appears: those that were there keep their numbers, the new one gets a new number
    cluster.policy(
        "shop/more",
        json!({"ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "db"}}}]}]}),
    );
    let second = cluster.update(&mut engine);
    assert_eq!(second.class_of("10.0.0.2".parse().unwrap()), api);
    let db = second.class_of("10.0.0.3".parse().unwrap());
    assert!(!numbers.contains(&db));
    // and a set of atoms that is gone and returns does not get the number of another
    cluster.index.apply(Event::Gone(ObjectId::Pod(key("shop/api"))));
    let third = cluster.update(&mut engine);
    assert!(!classes(&third).contains(&api));
    cluster.pod("shop/api", &["10.0.0.2"], json!({"app": "api"}));
    let fourth = cluster.update(&mut engine);
    let again = fourth.class_of("10.0.0.2".parse().unwrap());
    assert!(again > api && again > db, "{again:?}");
}

#[test]
fn numbers_stay_unique_through_many_generations_of_peers() {
    let mut cluster = Cluster::shop();
    let mut engine = Engine::new();
    let (mut seen, mut last) = (BTreeSet::new(), Class::ANY);
    for generation in 0..3000 {
        let label = json!({"matchLabels": {"generation": generation.to_string()}});
        let spec = json!({"ingress": [{"from": [{"podSelector": label}]}]});
        cluster.policy("shop/it", spec);
        let labels = json!({"generation": generation.to_string()});
        cluster.pod("shop/peer", &["10.0.0.9"], labels);
        let class = cluster.update(&mut engine).class_of("10.0.0.9".parse().unwrap());
        assert!(seen.insert(class) && class > last, "{class:?} in generation {generation}");
        last = class;
    }
}

#[test]
fn each_class_number_is_of_one_range() {
    for (class, range) in [
        (Class::ANY, [true, false, false]),
        (Class(Class::TRANSIENT.0 - 1), [true, false, false]),
        (Class::TRANSIENT, [false, true, false]),
        (Class(Class::SELF_V4.0 - 1), [false, true, false]),
        (Class::SELF_V4, [false, false, false]),
        (Class(Class::VIP.0 - 1), [false, false, false]),
        (Class::VIP, [false, false, true]),
        (Class(u32::MAX), [false, false, true]),
    ] {
        let found = [class.is_compiled(), class.is_transient(), class.is_vip()];
        assert_eq!(found, range, "{class:?}");
    }
}

#[test]
fn a_restarted_engine_starts_above_what_the_maps_hold() {
    let mut cluster = shop();
    let held = [Class(7), Class(41), Class::TRANSIENT, Class(u32::MAX)];
    let compiled = cluster.update(&mut Engine::above(held));
    let given: Vec<Class> =
        classes(&compiled).into_iter().filter(|class| *class != Class::ANY).collect();
    assert_eq!(given.first(), Some(&Class(42)));
    let compiled = cluster.update(&mut Engine::above([]));
    assert!(classes(&compiled).contains(&Class(1)));
}

#[test]
fn numbers_that_run_out_leave_a_stranger_and_never_a_transient_class() {
    let mut cluster = shop();
    let mut engine = Engine::above([Class(Class::TRANSIENT.0 - 1)]);
    let compiled = cluster.update(&mut engine);
    assert_eq!(classes(&compiled), BTreeSet::from([Class::ANY]));
    let judged = compiled.judge(
        cluster.endpoints[0].id,
        Direction::Ingress,
        "10.0.0.2".parse().unwrap(),
        cluster::transport("80/TCP"),
    );
    assert!(!judged.unwrap().allowed());
}

#[test]
fn hosts_hold_only_what_nets_do_not_say() {
    let compiled = shop().compile();
    let hosts: Vec<String> = compiled.hosts.keys().map(ToString::to_string).collect();
    assert_eq!(hosts, ["10.0.0.2"]);
    let nets: Vec<(String, bool)> = compiled
        .nets
        .iter()
        .map(|(prefix, class)| (prefix.to_string(), *class == Class::ANY))
        .collect();
    assert_eq!(nets, [("10.9.0.0/16".into(), false), ("10.9.1.0/24".into(), true)]);
}

#[test]
fn policies_of_pods_elsewhere_give_no_atoms() {
    let mut cluster = shop();
    cluster.endpoints.retain(|endpoint| endpoint.pod != Some(key("shop/web")));
    let compiled = cluster.compile();
    assert!(compiled.hosts.is_empty() && compiled.nets.is_empty());
}

#[test]
fn the_first_rule_by_policy_and_index_is_the_one_that_is_named() {
    let mut cluster = Cluster::shop();
    let any = json!({"ports": [{"port": 80}]});
    cluster.policy("shop/b", json!({"ingress": [any]}));
    cluster.policy("shop/a", json!({"ingress": [{"ports": [{"port": 1}]}, any, any]}));
    let explained = cluster.explain("shop/web", Direction::Ingress, "10.0.0.2", "80/TCP").unwrap();
    assert_eq!(explained.why, "allowed by shop/a ingress[1]");
    let Some(RuleOrigin::Policy { policy, direction, index }) = explained.rule else { panic!() };
    assert_eq!((policy.to_string().as_str(), direction, index), ("shop/a", Direction::Ingress, 1));
}

#[test]
fn rule_numbers_are_stable_and_zero_is_none() {
    let mut cluster = shop();
    let mut engine = Engine::new();
    let first = cluster.update(&mut engine);
    cluster.policy("shop/a", json!({"ingress": [{}]}));
    let second = cluster.update(&mut engine);
    for (id, table) in &first.tables {
        for (entry, rule) in &table.entries {
            assert_ne!(rule.rule.0, 0);
            let origin = engine.origin(rule.rule).unwrap();
            if let Some(now) = second.tables[id].entries.get(entry) {
                let named = engine.origin(now.rule).unwrap();
                assert!(named == origin || named.to_string().starts_with("shop/a"), "{named}");
            }
        }
    }
    assert_eq!(engine.origin(RuleId(0)), None);
    assert_eq!(
        engine.origin(RuleId::not_isolated(Direction::Egress)),
        Some(&RuleOrigin::NotIsolated(Direction::Egress))
    );
}

#[test]
fn one_name_from_two_sources_is_two_policies() {
    let mut cluster = shop();
    let mut local = (**cluster.index.policies().next().unwrap()).clone();
    local.id.source = "local".into();
    local.ingress = Some(vec![]);
    cluster.index.apply(Event::from(local));
    let explained = cluster.explain("shop/web", Direction::Ingress, "10.0.0.2", "80/TCP").unwrap();
    assert_eq!((explained.verdict, explained.isolating.len()), (Verdict::Allow, 2));
}

#[test]
fn explanations_for_people() {
    let mut cluster = shop();
    cluster.policy("shop/deny-all", json!({"policyTypes": ["Ingress"]}));
    for (pod, direction, peer, l4, expected) in [
        ("web", Direction::Ingress, "10.0.0.2", "80/TCP", "allowed by shop/web ingress[0]"),
        ("web", Direction::Ingress, "10.9.0.1", "1/UDP", "allowed by shop/web ingress[1]"),
        (
            "web",
            Direction::Ingress,
            "10.0.0.3",
            "5432/TCP",
            "denied: isolated for ingress by shop/deny-all, web; no rule allows 10.0.0.3 on 5432/TCP",
        ),
        (
            "db",
            Direction::Ingress,
            "10.0.0.2",
            "ICMP",
            "denied: isolated for ingress by shop/deny-all; \
             no rule allows 10.0.0.2 on a protocol without ports",
        ),
        ("web", Direction::Egress, "10.0.0.3", "5432/TCP", "not isolated for egress"),
        ("web", Direction::Ingress, "10.0.0.1", "80/TCP", "a pod always reaches itself"),
    ] {
        let pod = format!("shop/{pod}");
        let explained = cluster.explain(&pod, direction, peer, l4).unwrap();
        assert_eq!(explained.why, expected);
        let denied = expected.starts_with("denied");
        assert_eq!(explained.verdict, if denied { Verdict::Deny } else { Verdict::Allow });
    }
    let explained = cluster.explain("shop/web", Direction::Ingress, "10.0.0.2", "80/TCP").unwrap();
    assert_eq!(
        serde_json::to_value(&explained).unwrap()["rule"]["Policy"]["policy"]["key"]["name"],
        "web"
    );
}
