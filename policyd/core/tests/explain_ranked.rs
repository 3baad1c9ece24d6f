//! What people are told of verdicts where ClusterNetworkPolicies and audits have a say.

#![allow(clippy::unwrap_used, reason = "a test that panics is a test that fails")]

mod cluster;

use cluster::Cluster;
use podgate_contract::api::{FailedOn, Verdict};
use podgate_policy::explain::Peer;
use podgate_policy::model::Direction;
use podgate_policy::object::{Event, Resource};
use podgate_policy::{convert, model};
use serde_json::{Value, json};

fn cluster_policy(cluster: &mut Cluster, name: &str, spec: Value) {
    let object = json!({"metadata": {"name": name}, "spec": spec});
    let object = serde_json::from_value(object).unwrap();
    let policy = <model::ClusterPolicy as Resource>::convert("kubernetes", &object).unwrap();
    cluster.index.apply(Event::from(policy));
}

/// A NetworkPolicy with these annotations.
fn annotated(cluster: &mut Cluster, name: &str, annotations: Value, spec: Value) {
    let object = json!({
        "metadata": {"namespace": "shop", "name": name, "annotations": annotations},
        "spec": spec,
    });
    let object = serde_json::from_value(object).unwrap();
    cluster.index.apply(Event::from(convert::policy("kubernetes", &object).unwrap()));
}

/// The Admin tier denies SSH to every pod and lets `ops` use port 9100; the Baseline denies what comes from `ops`.
fn tiers() -> Cluster {
    let mut cluster = Cluster::shop();
    let pods = json!({"namespaces": {}});
    let tcp = |number: u16| json!([{"tcp": {"destinationPort": {"number": number}}}]);
    let ops = json!([{"namespaces": {"matchLabels": {"team": "ops"}}}]);
    cluster_policy(
        &mut cluster,
        "house-rules",
        json!({"tier": "Admin", "priority": 7, "subject": pods, "ingress": [
            {"action": "Deny", "from": [pods], "protocols": tcp(22)},
            {"action": "Accept", "from": ops, "protocols": tcp(9100)},
        ]}),
    );
    cluster_policy(
        &mut cluster,
        "apart",
        json!({"tier": "Baseline", "priority": 0, "subject": pods, "ingress": [
            {"action": "Deny", "from": ops},
        ]}),
    );
    let ingress = json!([{"ports": [{"port": 22}, {"port": 80}]}]);
    cluster.policy(
        "shop/db",
        json!({"podSelector": {"matchLabels": {"app": "db"}}, "ingress": ingress}),
    );
    cluster
}

#[test]
fn tier_priority_policy_and_rule_are_named() {
    let cluster = tiers();
    for (pod, peer, l4, verdict, why) in [
        (
            "shop/db",
            "10.0.0.4",
            "22/TCP",
            Verdict::Deny,
            "denied by Admin policy house-rules (priority 7) ingress[0]",
        ),
        (
            "shop/db",
            "10.0.0.4",
            "9100/TCP",
            Verdict::Allow,
            "allowed by Admin policy house-rules (priority 7) ingress[1]",
        ),
        ("shop/db", "10.0.0.4", "80/TCP", Verdict::Allow, "allowed by shop/db ingress[0]"),
        (
            "shop/db",
            "10.0.0.4",
            "81/TCP",
            Verdict::Deny,
            "denied: isolated for ingress by shop/db; no rule allows 10.0.0.4 on 81/TCP",
        ),
        (
            "shop/web",
            "10.0.0.4",
            "81/TCP",
            Verdict::Deny,
            "denied by Baseline policy apart (priority 0) ingress[0]",
        ),
        ("shop/web", "10.0.0.2", "81/TCP", Verdict::Allow, "not isolated for ingress"),
        ("shop/web", "8.8.8.8", "22/TCP", Verdict::Allow, "not isolated for ingress"),
    ] {
        let told = cluster.explain(pod, Direction::Ingress, peer, l4).unwrap();
        assert_eq!((told.verdict, &*told.why), (verdict, why), "{pod} from {peer} on {l4}");
    }
}

#[test]
fn a_denial_comes_with_the_rule_that_is_nearest_to_allowing_it() {
    let cluster = tiers();
    for (pod, peer, l4, failed_on, text) in [
        (
            "shop/db",
            "10.0.0.4",
            "22/TCP",
            FailedOn::Order,
            "shop/db ingress[0] allows it, but comes after what denies",
        ),
        (
            "shop/db",
            "10.0.0.4",
            "81/TCP",
            FailedOn::Port,
            "shop/db ingress[0] allows this peer TCP 22, TCP 80",
        ),
        (
            "shop/db",
            "10.0.0.2",
            "9100/TCP",
            FailedOn::Port,
            "shop/db ingress[0] allows this peer TCP 22, TCP 80",
        ),
        (
            "shop/web",
            "10.0.0.4",
            "81/TCP",
            FailedOn::Port,
            "Admin policy house-rules (priority 7) ingress[1] allows this peer TCP 9100",
        ),
        (
            "shop/web",
            "10.0.0.2",
            "22/TCP",
            FailedOn::Both,
            "Admin policy house-rules (priority 7) ingress[1] allows TCP 9100, and not to this peer",
        ),
    ] {
        let told = cluster.explain(pod, Direction::Ingress, peer, l4).unwrap();
        assert_eq!(told.verdict, Verdict::Deny, "{pod} from {peer} on {l4}");
        let nearest = told.nearest.unwrap();
        assert_eq!((nearest.failed_on, nearest.to_string()), (failed_on, text.to_owned()));
    }
    let allowed = cluster.explain("shop/db", Direction::Ingress, "10.0.0.4", "80/TCP").unwrap();
    assert_eq!(allowed.nearest, None);
    let mut alone = Cluster::shop();
    alone.policy("shop/deny", json!({"podSelector": {}}));
    let told = alone.explain("shop/db", Direction::Ingress, "10.0.0.4", "80/TCP").unwrap();
    assert_eq!((told.verdict, told.nearest), (Verdict::Deny, None), "nothing allows anything");
}

#[test]
fn an_audited_policy_lets_pass_and_is_named() {
    let mut cluster = Cluster::shop();
    let audit = json!({"podgate.io/mode": "audit"});
    annotated(&mut cluster, "deny", audit.clone(), json!({"podSelector": {}}));
    let told = cluster.explain("shop/db", Direction::Ingress, "10.0.0.4", "80/TCP").unwrap();
    assert_eq!((told.verdict, told.audited), (Verdict::Allow, true));
    assert_eq!(
        told.why,
        "passes, as the policy is only audited: shop/deny isolates for ingress, and no rule allows 10.0.0.4 on 80/TCP"
    );
    assert_eq!(told.isolating, vec![], "it isolates nothing");

    // another policy denies it as well: that stays denied, and what the other allows is what the audited one denied
    let only_web = json!([{"from": [{"podSelector": {"matchLabels": {"app": "web"}}}]}]);
    cluster.policy("shop/enforced", json!({"podSelector": {}, "ingress": only_web}));
    assert!(!cluster.ingress("shop/db", "10.0.0.4", "80/TCP"));
    let told = cluster.explain("shop/db", Direction::Ingress, "10.0.0.1", "80/TCP").unwrap();
    assert_eq!((told.verdict, told.audited), (Verdict::Allow, false), "both allow it");
}

#[test]
fn a_pod_that_reaches_itself_by_a_service_is_judged_by_the_tiers_alone() {
    let mut cluster = Cluster::shop();
    cluster.policy("shop/deny", json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}));
    let judge = |cluster: &Cluster| {
        let pod = Some(cluster::key("shop/db"));
        let endpoint = cluster.endpoints.iter().find(|endpoint| endpoint.pod == pod).unwrap();
        let own = endpoint.addresses[0];
        let told = |peer| {
            let l4 = cluster::transport("80/TCP");
            cluster.engine().explain(endpoint, Direction::Ingress, peer, l4).unwrap()
        };
        (told(Peer::At(own)), told(Peer::ItselfByService(own)))
    };
    let (direct, by_service) = judge(&cluster);
    assert_eq!((direct.verdict, by_service.verdict), (Verdict::Allow, Verdict::Allow));
    cluster_policy(
        &mut cluster,
        "apart",
        json!({"tier": "Admin", "priority": 0, "subject": {"namespaces": {}}, "ingress": [
            {"action": "Deny", "from": [{"namespaces": {}}]},
        ]}),
    );
    let (direct, by_service) = judge(&cluster);
    assert_eq!(direct.verdict, Verdict::Allow, "its own address is nobody's business");
    assert_eq!(by_service.why, "denied by Admin policy apart (priority 0) ingress[0]");
}
