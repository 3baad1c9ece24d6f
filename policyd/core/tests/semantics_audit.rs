//! docs/semantics.md 17: policies that are audited or logged.

#![allow(clippy::unwrap_used, reason = "a test that panics is a test that fails")]

mod cluster;

use cluster::{Cluster, STRANGER, key, transport};
use podgate_policy::convert;
use podgate_policy::model::{ClusterPolicy, Direction};
use podgate_policy::object::{Event, Resource};
use podgate_policy::tables::{Decision, RuleOrigin};
use serde_json::{Value, json};

const WEB: &str = "10.0.0.1";
const API: &str = "10.0.0.2";
const PROBE: &str = "10.0.0.4";

fn audit() -> Value {
    json!({"podgate.io/mode": "audit"})
}

fn policy(cluster: &mut Cluster, name: &str, annotations: &Value, spec: Value) {
    let key = key(name);
    let object = json!({
        "metadata": {"namespace": &*key.namespace, "name": &*key.name, "annotations": annotations},
        "spec": spec,
    });
    let object = serde_json::from_value(object).unwrap();
    cluster.index.apply(Event::from(convert::policy("kubernetes", &object).unwrap()));
}

fn cluster_policy(cluster: &mut Cluster, name: &str, annotations: &Value, spec: Value) {
    let object = json!({"metadata": {"name": name, "annotations": annotations}, "spec": spec});
    let object = serde_json::from_value(object).unwrap();
    let policy = <ClusterPolicy as Resource>::convert("kubernetes", &object).unwrap();
    cluster.index.apply(Event::from(policy));
}

fn namespace(cluster: &mut Cluster, name: &str, annotations: &Value) {
    let object = json!({"metadata": {"name": name, "annotations": annotations}});
    let object = serde_json::from_value(object).unwrap();
    cluster.index.apply(Event::from(convert::namespace("kubernetes", &object).unwrap()));
}

fn deny_all() -> Value {
    json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]})
}

fn from_app(app: &str) -> Value {
    json!({
        "podSelector": {},
        "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": app}}}]}],
    })
}

fn tier(tier: &str, action: &str) -> Value {
    json!({
        "tier": tier, "priority": 1, "subject": {"namespaces": {}},
        "ingress": [{"action": action, "from": [{"namespaces": {}}]}],
    })
}

/// What decides on port 80 of `shop/db` for this peer.
fn decision(cluster: &Cluster, peer: &str) -> Decision {
    let compiled = cluster.compile();
    let id = cluster.endpoints.iter().find(|of| of.pod == Some(key("shop/db"))).unwrap().id;
    let judged = compiled.judge(id, Direction::Ingress, peer.parse().unwrap(), transport("80/TCP"));
    judged.unwrap().decision.unwrap()
}

fn told(cluster: &Cluster, peer: &str) -> (bool, bool, Option<String>) {
    let answer = cluster.explain("shop/db", Direction::Ingress, peer, "80/TCP").unwrap();
    let passes = answer.verdict == podgate_contract::api::Verdict::Allow;
    (passes, answer.audited, answer.rule.map(|rule| rule.to_string()))
}

#[test]
fn s17_1_an_audited_policy_is_as_if_it_were_not_there() {
    let with = |change: &dyn Fn(&mut Cluster)| {
        let mut cluster = Cluster::shop();
        change(&mut cluster);
        [WEB, API, PROBE, STRANGER].map(|peer| cluster.ingress("shop/db", peer, "80/TCP"))
    };
    // it isolates and denies nothing
    assert_eq!(with(&|cluster| policy(cluster, "shop/a", &audit(), deny_all())), [true; 4]);
    assert_eq!(
        with(&|cluster| cluster_policy(cluster, "a", &audit(), tier("Admin", "Deny"))),
        [true; 4]
    );
    // it allows nothing
    let closed = |cluster: &mut Cluster| {
        cluster.policy("shop/closed", deny_all());
        policy(cluster, "shop/a", &audit(), from_app("web"));
        cluster_policy(cluster, "a", &audit(), tier("Admin", "Accept"));
    };
    assert_eq!(with(&closed), [false; 4]);
    // it passes nothing on
    let passed = |cluster: &mut Cluster| {
        cluster_policy(cluster, "a", &audit(), tier("Admin", "Pass"));
        cluster.cluster_policy("b", tier("Admin", "Deny"));
    };
    assert_eq!(with(&passed), [false, false, false, true]);
}

#[test]
fn s17_2_what_would_be_denied_is_reported_with_the_rule() {
    let mut cluster = Cluster::shop();
    policy(&mut cluster, "shop/a", &audit(), from_app("web"));
    assert_eq!(told(&cluster, WEB), (true, false, Some("not isolated for ingress".into())));
    assert_eq!(told(&cluster, API), (true, true, Some("shop/a isolates for ingress".into())));
    // all audited policies together: one that would allow it first leaves nothing to report
    cluster_policy(&mut cluster, "b", &audit(), tier("Admin", "Accept"));
    assert!(!told(&cluster, API).1);
    cluster_policy(&mut cluster, "b", &audit(), tier("Admin", "Deny"));
    assert_eq!(
        told(&cluster, API),
        (true, true, Some("Admin policy b (priority 1) ingress[0]".into()))
    );
}

#[test]
fn s17_3_what_others_deny_stays_denied() {
    let mut cluster = Cluster::shop();
    policy(&mut cluster, "shop/a", &audit(), from_app("api"));
    cluster.policy("shop/b", from_app("web"));
    assert!(told(&cluster, WEB).0);
    assert_eq!(told(&cluster, API), (false, false, Some("shop/b isolates for ingress".into())));
}

#[test]
fn s17_4_a_namespace_speaks_for_its_network_policies() {
    let mut cluster = Cluster::shop();
    cluster.policy("shop/closed", deny_all());
    assert!(!cluster.ingress("shop/db", WEB, "80/TCP"));
    namespace(&mut cluster, "shop", &audit());
    assert_eq!(told(&cluster, WEB), (true, true, Some("shop/closed isolates for ingress".into())));
    // neither order of events matters, nor another namespace
    cluster.policy("shop/later", deny_all());
    assert!(cluster.ingress("shop/db", WEB, "80/TCP"));
    cluster_policy(&mut cluster, "tier", &json!({}), tier("Admin", "Deny"));
    assert!(!cluster.ingress("shop/db", WEB, "80/TCP"));
    cluster.cluster_policy("tier", tier("Admin", "Pass"));
    namespace(&mut cluster, "shop", &json!({}));
    namespace(&mut cluster, "ops", &audit());
    assert!(!cluster.ingress("shop/db", WEB, "80/TCP"));
}

#[test]
fn s17_5_any_other_mode_enforces() {
    for mode in ["enforce", "Audit", "off", ""] {
        let mut cluster = Cluster::shop();
        policy(&mut cluster, "shop/a", &json!({"podgate.io/mode": mode}), deny_all());
        assert!(!cluster.ingress("shop/db", WEB, "80/TCP"), "{mode:?}");
    }
}

#[test]
fn s17_6_what_a_logged_policy_decides_is_reported_and_stays_as_it_was() {
    let mut cluster = Cluster::shop();
    cluster.policy("shop/a", from_app("web"));
    let plain = [WEB, API, PROBE].map(|peer| told(&cluster, peer).0);
    policy(&mut cluster, "shop/a", &json!({"podgate.io/log": "db"}), from_app("web"));
    assert_eq!([WEB, API, PROBE].map(|peer| told(&cluster, peer).0), plain);
    assert!(decision(&cluster, WEB).log, "allowed by its rule");
    let denied = decision(&cluster, API);
    let engine = cluster.engine();
    assert!(denied.log && matches!(engine.origin(denied.rule), Some(RuleOrigin::Isolated { .. })));
    // what another policy's rule allows is not its own
    cluster.policy("shop/b", from_app("api"));
    assert!(!decision(&cluster, API).log && decision(&cluster, WEB).log);
    // a namespace's label stands in for a policy's own
    namespace(&mut cluster, "shop", &json!({"podgate.io/log": "all"}));
    assert!(decision(&cluster, API).log);
    let label = |cluster: &Cluster, name: &str| {
        let policy = cluster.index.policies().find(|of| *of.id.key.name == *name).unwrap();
        policy.settings.log.as_deref().map(str::to_owned)
    };
    assert_eq!(label(&cluster, "a").as_deref(), Some("db"));
    assert_eq!(label(&cluster, "b").as_deref(), Some("all"));
}
