use serde_json::json;

use super::*;
use crate::model::{NamespaceScope, Peer, PolicyMode, Port, Protocol};

fn convert(source: &str, object: Value) -> Result<ClusterPolicy, FieldError> {
    cluster_policy(source, &serde_json::from_value::<ApiClusterPolicy>(object).unwrap())
}

fn of_spec(spec: Value) -> Result<ClusterPolicy, FieldError> {
    convert("kubernetes", json!({"metadata": {"name": "p"}, "spec": spec}))
}

/// A policy with one rule.
fn with_rule(direction: &str, rule: Value) -> Result<ClusterPolicy, FieldError> {
    of_spec(
        json!({"tier": "Admin", "priority": 5, "subject": {"namespaces": {}}, direction: [rule]}),
    )
}

/// A rule that can be read, and what was said about it.
fn rule(direction: &str, rule: Value) -> (RankedRule, Vec<String>) {
    let shown = rule.to_string();
    let mut policy = with_rule(direction, rule).unwrap_or_else(|error| panic!("{shown}: {error}"));
    let mut rules = if direction == "ingress" { policy.ingress } else { policy.egress };
    assert_eq!(rules.len(), 1);
    (rules.remove(0), std::mem::take(&mut policy.problems))
}

fn all_pods() -> Peer {
    let namespaces = NamespaceScope::Matching(Selector::everything());
    Peer::Pods { namespaces, pods: Selector::everything() }
}

fn block(cidr: &str) -> Peer {
    Peer::Block(crate::model::Block { cidr: cidr.parse().unwrap(), except: Vec::new() })
}

fn app(value: &str) -> Selector {
    let selector = json!({"matchLabels": {"app": value}});
    value::selector(&selector, "").unwrap()
}

#[test]
fn a_whole_policy_is_read() {
    let policy = convert(
        "dir",
        json!({
            "metadata": {"name": "p", "annotations": {"podgate.io/mode": "audit", "podgate.io/log": "a"}},
            "spec": {
                "tier": "Baseline",
                "priority": 1000,
                "subject": {"pods": {
                    "namespaceSelector": {"matchLabels": {"app": "n"}},
                    "podSelector": {"matchLabels": {"app": "p"}},
                }},
                "ingress": [
                    {"name": "first", "action": "Pass", "from": [{"namespaces": {}}]},
                    {"action": "Deny", "from": [{"pods": {"podSelector": {"matchLabels": {"app": "x"}}}}],
                     "protocols": [{"tcp": {"destinationPort": {"number": 80}}},
                                   {"udp": {"destinationPort": {"range": {"start": 5, "end": 6}}}},
                                   {"sctp": {}}]},
                ],
                "egress": [
                    {"action": "Accept", "protocols": [{"destinationNamedPort": "dns"}], "to": [
                        {"networks": ["10.0.0.0/8", "fd00::/8"]},
                        {"nodes": {"matchLabels": {"app": "gpu"}}},
                    ]},
                ],
            },
        }),
    )
    .unwrap();
    assert_eq!((policy.tier, policy.priority), (Tier::Baseline, 1000));
    assert_eq!(policy.subject, Subject { namespaces: app("n"), pods: app("p") });
    assert_eq!((&*policy.id.name, &*policy.id.source), ("p", "dir"));
    assert_eq!(
        (policy.settings.mode, policy.settings.log.as_deref()),
        (PolicyMode::Audit, Some("a"))
    );
    assert_eq!(policy.problems, [""; 0]);
    let namespaces = NamespaceScope::Matching(Selector::everything());
    let ports = [
        Port::Numbers(Protocol::Tcp, 80..=80),
        Port::Numbers(Protocol::Udp, 5..=6),
        Port::All(Protocol::Sctp),
    ];
    let rule = |name: Option<&str>, action, peers, ports| RankedRule {
        name: name.map(Into::into),
        action,
        peers,
        ports,
    };
    assert_eq!(
        policy.ingress,
        [
            rule(Some("first"), Action::Pass, Peers::of([all_pods()]), Ports::Any),
            rule(
                None,
                Action::Deny,
                Peers::of([Peer::Pods { namespaces, pods: app("x") }]),
                Ports::Of(ports.into())
            ),
        ]
    );
    let named = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
    let named = named.map(|protocol| Port::Named(protocol, "dns".into()));
    assert_eq!(
        policy.egress,
        [rule(
            None,
            Action::Accept,
            Peers::of([block("10.0.0.0/8"), block("fd00::/8"), Peer::Nodes(app("gpu"))]),
            Ports::Of(named.into()),
        )]
    );
}

/// Items that no version of the API that podgate knows has, with where and why they cannot be read.
fn unknown_items() -> Vec<(&'static str, Value, Option<Value>, &'static str)> {
    let port = |item: Value| Some(json!([{"udp": {}}, item]));
    let peers = |direction, item: Value| {
        let field = if direction == "ingress" { "from" } else { "to" };
        (direction, json!({field: [{"namespaces": {}}, item]}))
    };
    let peer = |direction, item: Value, problem| {
        let (direction, rule) = peers(direction, item);
        (direction, rule, None, problem)
    };
    let protocol =
        |item: Value, problem| ("egress", json!({"to": [{"namespaces": {}}]}), port(item), problem);
    vec![
        peer(
            "ingress",
            json!({"serviceAccounts": {}}),
            ".from[1]: unknown field \"serviceAccounts\"",
        ),
        peer("ingress", json!({"namespaces": {}, "sameLabels": ["a"]}), ".from[1]: unknown field"),
        peer("ingress", json!({}), ".from[1]: must have exactly one of namespaces, pods"),
        peer("ingress", json!({"namespaces": null}), ".from[1]: must have exactly one of"),
        peer(
            "ingress",
            json!({"networks": ["10.0.0.0/8"]}),
            ".from[1]: unknown field \"networks\"",
        ),
        peer("ingress", json!({"nodes": {}}), ".from[1]: unknown field \"nodes\""),
        peer("ingress", json!({"domainNames": ["a.example"]}), ".from[1]: unknown field"),
        peer("egress", json!({"services": {}}), ".to[1]: unknown field \"services\""),
        peer("egress", json!({}), ".to[1]: must have exactly one of"),
        peer(
            "egress",
            json!({"namespaces": {"matchFields": []}}),
            ".to[1].namespaces: unknown field",
        ),
        peer(
            "egress",
            json!({"nodes": {"matchExpressions": [{"key": "a", "operator": "Gt", "values": ["1"]}]}}),
            ".to[1].nodes.matchExpressions[0].operator: must be",
        ),
        peer(
            "egress",
            json!({"pods": {"podSelector": {}, "nodeSelector": {}}}),
            ".to[1].pods: unknown field \"nodeSelector\"",
        ),
        protocol(json!({"icmp": {}}), ".protocols[1]: unknown field \"icmp\""),
        protocol(json!({}), ".protocols[1]: must have exactly one of tcp, udp, sctp"),
        protocol(json!({"tcp": null}), ".protocols[1]: must have exactly one of"),
        protocol(json!({"tcp": {"flags": ["SYN"]}}), ".protocols[1].tcp: unknown field \"flags\""),
        protocol(
            json!({"tcp": {"destinationPort": {}}}),
            ".protocols[1].tcp.destinationPort: must have exactly one of number, range",
        ),
        protocol(
            json!({"tcp": {"destinationPort": {"number": 80, "step": 2}}}),
            ".protocols[1].tcp.destinationPort: unknown field \"step\"",
        ),
        protocol(
            json!({"udp": {"destinationPort": {"range": {"start": 1, "end": 9, "step": 2}}}}),
            ".protocols[1].udp.destinationPort.range: unknown field \"step\"",
        ),
        protocol(
            json!({"destinationNamedPort": ""}),
            ".protocols[1].destinationNamedPort: must not be empty",
        ),
        (
            "egress",
            json!({"to": [{"namespaces": {}}], "ports": []}),
            None,
            ": unknown field \"ports\"",
        ),
        ("ingress", json!({"to": [{"namespaces": {}}]}), None, ": unknown field \"to\""),
    ]
}

/// The rules of `unknown_items` with this action.
fn unknown_rules(action: &str) -> Vec<(&'static str, Value, &'static str)> {
    let with_action = |(direction, mut rule, protocols, problem): (_, Value, Option<Value>, _)| {
        rule["action"] = action.into();
        if let Some(protocols) = protocols {
            rule["protocols"] = protocols;
        }
        (direction, rule, problem)
    };
    unknown_items().into_iter().map(with_action).collect()
}

#[test]
fn s15_18_an_accept_rule_with_an_unknown_or_empty_item_matches_nothing() {
    for (direction, given, problem) in unknown_rules("Accept") {
        let (rule, problems) = rule(direction, given.clone());
        assert_eq!((rule.action, rule.peers), (Action::Accept, Peers::of([])), "{given}");
        let start = format!("spec.{direction}[0]{problem}");
        assert!(problems[0].starts_with(&start), "{start}: {problems:?}");
        assert!(problems[0].ends_with("the rule fails closed: it matches nothing"), "{problems:?}");
        assert_eq!(problems.len(), 1, "{problems:?}");
    }
}

#[test]
fn s15_19_a_deny_or_pass_rule_with_an_unknown_or_empty_item_denies_everything() {
    for action in ["Deny", "Pass"] {
        for (direction, given, problem) in unknown_rules(action) {
            let (rule, problems) = rule(direction, given.clone());
            let closed = (Action::Deny, Peers::Any, Ports::Any);
            assert_eq!((rule.action, rule.peers, rule.ports), closed, "{given}");
            let start = format!("spec.{direction}[0]{problem}");
            assert!(problems[0].starts_with(&start), "{start}: {problems:?}");
            assert!(
                problems[0].ends_with("the rule fails closed: it denies everything"),
                "{problems:?}"
            );
        }
    }
    // at its place and in its direction only
    let policy = of_spec(json!({
        "tier": "Admin", "priority": 5, "subject": {"namespaces": {}},
        "ingress": [
            {"action": "Accept", "from": [{"namespaces": {}}]},
            {"action": "Pass", "from": [{"new": {}}]},
            {"action": "Accept", "from": [{"namespaces": {}}]},
        ],
        "egress": [{"action": "Accept", "to": [{"namespaces": {}}]}],
    }))
    .unwrap();
    let actions: Vec<_> = policy.ingress.iter().map(|rule| rule.action).collect();
    assert_eq!(actions, [Action::Accept, Action::Deny, Action::Accept]);
    assert_eq!(policy.egress[0].action, Action::Accept);
    assert_eq!(policy.problems.len(), 1, "{:?}", policy.problems);
}

#[test]
fn s15_20_an_unknown_action_denies_what_the_rule_matches() {
    let given = json!({"action": "Log", "to": [{"namespaces": {}}], "protocols": [{"tcp": {}}]});
    let (read, problems) = rule("egress", given);
    assert_eq!((read.action, read.peers), (Action::Deny, Peers::of([all_pods()])));
    assert_eq!(read.ports, Ports::Of(vec![Port::All(Protocol::Tcp)]));
    let told = "spec.egress[0].action: must be Accept, Deny or Pass, is \"Log\"; the rule denies what it matches";
    assert_eq!(problems, [told]);
    let (read, problems) = rule("egress", json!({"action": "Log", "to": [{"new": {}}]}));
    assert_eq!((read.action, read.peers, problems.len()), (Action::Deny, Peers::Any, 2));
}

#[test]
fn s15_21_a_policy_of_an_unknown_tier_is_left_out() {
    let policy = of_spec(json!({
        "tier": "Tenant", "priority": 5, "subject": {"namespaces": {}},
        "ingress": [{"action": "Deny", "from": [{"new": {}}]}],
    }))
    .unwrap();
    assert_eq!((policy.ingress, policy.egress), (Vec::new(), Vec::new()));
    let told = "spec.tier: must be Admin or Baseline, is \"Tenant\"; the policy is left out";
    assert_eq!(policy.problems, [told]);
}

#[test]
fn s15_22_a_rule_with_domain_names_matches_nothing_until_names_are_resolved() {
    let names = json!({"domainNames": ["*.example.com", "a.example."]});
    let given = json!({"action": "Accept", "to": [{"namespaces": {}}, names]});
    let (read, problems) = rule("egress", given);
    assert_eq!((read.action, read.peers), (Action::Accept, Peers::of([])));
    let told =
        "spec.egress[0].to[1].domainNames: names are not resolved yet; the rule matches nothing";
    assert_eq!(problems, [told]);
    // the API allows them in Accept rules only
    let (read, problems) = rule("egress", json!({"action": "Deny", "to": [names]}));
    assert_eq!((read.action, read.peers, problems.len()), (Action::Deny, Peers::Any, 1));
}

#[test]
fn s15_23_what_the_schema_rejects_is_an_error_that_names_the_field() {
    let spec = |field: &str, value: Value| {
        let mut spec = json!({"tier": "Admin", "priority": 5, "subject": {"namespaces": {}}});
        spec[field] = value;
        spec
    };
    let many = |item: Value| Value::Array(vec![item; MAX_ITEMS + 1]);
    let ok = json!({"action": "Deny", "from": [{"namespaces": {}}]});
    for (path, cause, spec) in [
        ("spec.tier", "must be given", spec("tier", Value::Null)),
        ("spec.priority", "must be given", spec("priority", Value::Null)),
        ("spec.priority", "must be from 0 to 1000, is 1001", spec("priority", json!(1001))),
        ("spec.priority", "must be from 0 to 1000, is -1", spec("priority", json!(-1))),
        ("spec.priority", "must be from 0 to 1000", spec("priority", json!(1_u64 << 40))),
        ("spec.subject", "must be given", spec("subject", Value::Null)),
        ("spec.subject", "must have exactly one of", spec("subject", json!({}))),
        (
            "spec.subject",
            "must have exactly one of",
            spec("subject", json!({"namespaces": {}, "pods": {"podSelector": {}}})),
        ),
        ("spec.subject", "unknown field \"nodes\"", spec("subject", json!({"nodes": {}}))),
        ("spec.subject.pods.podSelector", "must be given", spec("subject", json!({"pods": {}}))),
        ("spec.ingress", "must have at most 25 items, has 26", spec("ingress", many(ok))),
    ] {
        let error = of_spec(spec).unwrap_err();
        assert_eq!(error.path, path, "{error}");
        assert!(error.cause.starts_with(cause), "{error}");
    }
    let to = |peer: Value| json!({"action": "Deny", "to": [peer]});
    let protocols =
        |item: Value| json!({"action": "Deny", "to": [{"namespaces": {}}], "protocols": [item]});
    let number = |number: Value| protocols(json!({"tcp": {"destinationPort": {"number": number}}}));
    let range = |start: i32, end: i32| {
        protocols(json!({"tcp": {"destinationPort": {"range": {"start": start, "end": end}}}}))
    };
    for (path, cause, rule) in [
        (".action", "must be given", json!({"to": [{"namespaces": {}}]})),
        (
            ".name",
            "must have at most 100",
            json!({"name": "x".repeat(101), "action": "Deny", "to": [{"namespaces": {}}]}),
        ),
        (".to", "must be given", json!({"action": "Deny"})),
        (".to", "must have 1 to 25 items, has 0", json!({"action": "Deny", "to": []})),
        (
            ".to",
            "must have 1 to 25 items, has 26",
            json!({"action": "Deny", "to": many(json!({"namespaces": {}}))}),
        ),
        (".to", "must be a list, is an object", json!({"action": "Deny", "to": {}})),
        (".to[0]", "must be an object, is a string", to(json!("x"))),
        (
            ".to[0]",
            "must have exactly one of",
            to(json!({"namespaces": {}, "networks": ["10.0.0.0/8"]})),
        ),
        (
            ".to[0].pods.podSelector",
            "must be given",
            to(json!({"pods": {"namespaceSelector": {}}})),
        ),
        (".to[0].networks", "must have 1 to 25 items", to(json!({"networks": []}))),
        (".to[0].networks[0]", "must be a CIDR like", to(json!({"networks": ["10.0.0.0/33"]}))),
        (".to[0].networks[0]", "must be a string", to(json!({"networks": [10]}))),
        (".to[0].domainNames[0]", "must not be empty", to(json!({"domainNames": [""]}))),
        (".to[0].namespaces", "must be an object", to(json!({"namespaces": []}))),
        (
            ".protocols",
            "must have 1 to 25 items, has 0",
            json!({"action": "Deny", "to": [{"namespaces": {}}], "protocols": []}),
        ),
        (".protocols[0]", "must have exactly one of", protocols(json!({"tcp": {}, "udp": {}}))),
        (
            ".protocols[0].tcp.destinationPort.number",
            "must be a number from 1 to 65535, is 0",
            number(json!(0)),
        ),
        (".protocols[0].tcp.destinationPort.number", "must be a number from", number(json!(65536))),
        (".protocols[0].tcp.destinationPort.number", "must be a number from", number(json!("80"))),
        (
            ".protocols[0].tcp.destinationPort.range.end",
            "must be greater than `start` 9, is 9",
            range(9, 9),
        ),
        (".protocols[0].tcp.destinationPort.range.start", "must be a number from", range(0, 9)),
        (
            ".protocols[0].tcp.destinationPort.range.end",
            "must be given",
            protocols(json!({"tcp": {"destinationPort": {"range": {"start": 1}}}})),
        ),
    ] {
        let error = with_rule("egress", rule).unwrap_err();
        assert_eq!(error.path, format!("spec.egress[0]{path}"), "{error}");
        assert!(error.cause.starts_with(cause), "{error}");
    }
    let nameless = convert("dir", json!({"spec": {}})).unwrap_err();
    assert_eq!(nameless.path, "metadata.name");
    let empty = convert("dir", json!({"metadata": {"name": "p"}})).unwrap_err();
    assert_eq!((empty.path.as_str(), empty.cause.as_str()), ("spec", "must be given"));
}

#[test]
fn no_rules_and_empty_rules_say_nothing_of_a_direction() {
    for rules in [Value::Null, json!([])] {
        let spec =
            json!({"tier": "Admin", "priority": 0, "subject": {"namespaces": {}}, "egress": rules});
        let policy = of_spec(spec).unwrap();
        assert_eq!((policy.ingress, policy.egress), (Vec::new(), Vec::new()));
    }
}

#[test]
fn an_unknown_mode_of_a_policy_of_an_api_server_leaves_it_in_force() {
    let object = json!({
        "metadata": {"name": "p", "annotations": {"podgate.io/mode": "dry-run"}},
        "spec": {"tier": "Admin", "priority": 5, "subject": {"namespaces": {}}},
    });
    let policy = convert("kubernetes", object.clone()).unwrap();
    assert_eq!(policy.settings.mode, PolicyMode::Enforce);
    assert_eq!(policy.settings.problems.len(), 1, "{:?}", policy.settings.problems);
    assert!(convert("dir", object).is_err());
}
