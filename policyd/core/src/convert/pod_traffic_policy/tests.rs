use serde_json::json;

use super::*;

/// The policy `shop/web` with these fields, besides a selector that selects everything.
fn read(source: &str, fields: &Value) -> Result<PodTrafficPolicy, FieldError> {
    let mut spec = json!({"podSelector": {}});
    for (field, value) in fields.as_object().unwrap() {
        spec[field] = value.clone();
    }
    let object = json!({"metadata": {"namespace": "shop", "name": "web"}, "spec": spec});
    pod_traffic_policy(source, &serde_json::from_value(object).unwrap())
}

/// Every value as `ingress bandwidth: 10M bit/s, ... by spec.bandwidth.ingress`.
fn shown(limits: &Limits) -> Vec<String> {
    let all = limits.values().into_iter().map(|(direction, value, origin)| {
        assert_eq!(origin.object.to_string(), "podtrafficpolicy shop/web");
        let direction = direction.map(|of| format!("{of} ")).unwrap_or_default();
        format!("{direction}{}: {value} by {}", value.name(), origin.field)
    });
    all.collect()
}

#[test]
fn every_field_is_read() {
    let policy = read(
        "dir",
        &json!({
            "order": 5,
            "podSelector": {"matchLabels": {"app": "web"}},
            "bandwidth": {"ingress": {"rate": "10M", "burst": "2M"}, "egress": {"rate": 1_000_000_000}},
            "packets": {"egress": {"rate": 1000, "burst": 10}},
            "connections": {
                "ingress": {"max": 100, "newPerSecond": 20, "burst": 40, "onExceed": "Reject"},
                "egress": {"newPerSecond": 5, "onExceed": "Drop"},
            },
            "dscp": "AF11",
            "priority": 6,
            "mark": "0x10/0xf0",
            "accounting": true,
            "rules": [{
                "name": "backup",
                "direction": "Egress",
                "peers": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}}, {"podSelector": {}}],
                "ports": [{"protocol": "TCP", "port": 873, "endPort": 874}, {"port": "http"}],
                "bandwidth": {"egress": {"rate": "1M"}},
                "dscp": 8,
                "priority": 0,
                "mark": "1/1",
            }],
        }),
    );
    let policy = policy.unwrap();
    assert_eq!((policy.order, policy.problems.len()), (5, 0));
    assert!(!policy.selector.is_everything());
    assert_eq!(
        shown(&policy.limits),
        [
            "ingress bandwidth: 10M bit/s, burst 2M bit by spec.bandwidth.ingress",
            "ingress new connections: 20/s, burst 40 by spec.connections.ingress.newPerSecond",
            "ingress open connections: 100 by spec.connections.ingress.max",
            "ingress connections above a limit: rejected by spec.connections.ingress.onExceed",
            "egress bandwidth: 1G bit/s, burst 50M bit by spec.bandwidth.egress",
            "egress packets: 1k/s, burst 10 by spec.packets.egress",
            "egress new connections: 5/s, burst 5 by spec.connections.egress.newPerSecond",
            "egress connections above a limit: dropped by spec.connections.egress.onExceed",
            "DSCP: 10 by spec.dscp",
            "priority: 6 by spec.priority",
            "mark: 0x10/0xf0 by spec.mark",
            "accounting: on by spec.accounting",
        ]
    );
    let [rule] = policy.limits.rules.as_slice() else { panic!("{policy:?}") };
    assert_eq!((&*rule.name, rule.direction), ("backup", Direction::Egress));
    assert_eq!(rule.origin.to_string(), "podtrafficpolicy shop/web: spec.rules[0]");
    let values = rule.values();
    let values = values.iter().map(|(_, value, origin)| format!("{value} {}", origin.field));
    assert_eq!(
        values.collect::<Vec<_>>(),
        [
            "1M bit/s, burst 1048576 bit spec.rules[0].bandwidth.egress",
            "8 spec.rules[0].dscp",
            "0 spec.rules[0].priority",
            "0x1/0x1 spec.rules[0].mark",
        ]
    );
}

#[test]
fn what_is_not_said_is_not_there() {
    let policy = read("kubernetes", &json!({})).unwrap();
    assert_eq!(
        (policy.order, &*policy.limits, policy.problems.len()),
        (1000, &Limits::default(), 0)
    );
    let null = read("dir", &json!({"dscp": null, "bandwidth": {"ingress": null}, "rules": []}));
    assert_eq!(*null.unwrap().limits, Limits::default());
    let rule = json!({"name": "all", "direction": "Ingress", "peers": [], "ports": null});
    let rules = read("dir", &json!({"rules": [rule]})).unwrap().limits.rules;
    assert_eq!(
        (&rules[0].peers, &rules[0].ports),
        (&crate::model::Peers::Any, &crate::model::Ports::Any)
    );
}

/// (fields, the path of the error, its cause's start)
const INVALID: &str = r#"[
    [{"order": -1}, "spec.order", "must be a number from 0 to 1000000, is -1"],
    [{"order": 1000001}, "spec.order", "must be a number"],
    [{"order": "1"}, "spec.order", "must be a number"],
    [{"colour": 1}, "spec", "unknown field \"colour\""],
    [{"bandwidth": 1}, "spec.bandwidth", "must be an object, is a number"],
    [{"bandwidth": {"both": {}}}, "spec.bandwidth", "unknown field \"both\""],
    [{"bandwidth": {"ingress": {}}}, "spec.bandwidth.ingress.rate", "must be given"],
    [{"bandwidth": {"ingress": {"burst": "1M"}}}, "spec.bandwidth.ingress.rate", "must be given"],
    [{"bandwidth": {"ingress": {"rate": "1M", "peak": "2M"}}}, "spec.bandwidth.ingress", "unknown field"],
    [{"bandwidth": {"egress": {"rate": "999"}}}, "spec.bandwidth.egress.rate", "must be a quantity from 1k to 1P, is \"999\""],
    [{"bandwidth": {"egress": {"rate": 999}}}, "spec.bandwidth.egress.rate", "must be a quantity"],
    [{"bandwidth": {"egress": {"rate": "2P"}}}, "spec.bandwidth.egress.rate", "must be a quantity"],
    [{"bandwidth": {"egress": {"rate": "10Mbit"}}}, "spec.bandwidth.egress.rate", "must be a quantity"],
    [{"bandwidth": {"egress": {"rate": true}}}, "spec.bandwidth.egress.rate", "must be a quantity, is a boolean"],
    [{"bandwidth": {"egress": {"rate": "1M", "burst": "1"}}}, "spec.bandwidth.egress.burst", "must be a quantity from 1k"],
    [{"packets": {"egress": {"rate": 0}}}, "spec.packets.egress.rate", "must be a number from 1 to 1000000000, is 0"],
    [{"packets": {"egress": {"rate": 1.5}}}, "spec.packets.egress.rate", "must be a number"],
    [{"packets": {"egress": {"rate": 1000000001}}}, "spec.packets.egress.rate", "must be a number"],
    [{"packets": {"egress": {"rate": 1, "burst": 0}}}, "spec.packets.egress.burst", "must be a number"],
    [{"connections": {"ingress": {"max": 0}}}, "spec.connections.ingress.max", "must be a number from 1 to 4294967294, is 0"],
    [{"connections": {"ingress": {"max": 4294967295}}}, "spec.connections.ingress.max", "must be a number"],
    [{"connections": {"ingress": {"burst": 1}}}, "spec.connections.ingress.burst", "must not be given without `newPerSecond`"],
    [{"connections": {"ingress": {"newPerSecond": 0}}}, "spec.connections.ingress.newPerSecond", "must be a number"],
    [{"connections": {"ingress": {"onExceed": "drop"}}}, "spec.connections.ingress.onExceed", "must be Drop or Reject, is \"drop\""],
    [{"connections": {"ingress": {"open": 1}}}, "spec.connections.ingress", "unknown field"],
    [{"dscp": 64}, "spec.dscp", "must be a number from 0 to 63, is 64"],
    [{"dscp": "AF14"}, "spec.dscp", "must be a number from 0 to 63, or a name"],
    [{"priority": 16}, "spec.priority", "must be a number from 0 to 15, is 16"],
    [{"mark": 16}, "spec.mark", "must be a string, is a number"],
    [{"mark": "16"}, "spec.mark", "must be a value and a mask"],
    [{"mark": "0x4000/0x4000"}, "spec.mark", "must be within 0x30ff"],
    [{"accounting": "yes"}, "spec.accounting", "must be true or false, is a string"],
    [{"rules": {}}, "spec.rules", "must be a list, is an object"],
    [{"rules": [1]}, "spec.rules[0]", "must be an object"],
    [{"rules": [{"direction": "Egress"}]}, "spec.rules[0].name", "must be given"],
    [{"rules": [{"name": "", "direction": "Egress"}]}, "spec.rules[0].name", "must have 1 to 63 bytes, has 0"],
    [{"rules": [{"name": "a"}]}, "spec.rules[0].direction", "must be given"],
    [{"rules": [{"name": "a", "direction": "egress"}]}, "spec.rules[0].direction", "must be Ingress or Egress"],
    [{"rules": [{"name": "a", "direction": "Egress", "to": []}]}, "spec.rules[0]", "unknown field \"to\""],
    [{"rules": [{"name": "a", "direction": "Egress", "peers": [{}]}]}, "spec.rules[0].peers[0]", "must specify a peer"],
    [{"rules": [{"name": "a", "direction": "Egress", "peers": [{"pods": {}}]}]}, "spec.rules[0].peers[0]", "unknown field"],
    [{"rules": [{"name": "a", "direction": "Egress", "peers": [{"podSelector": {"labels": {}}}]}]}, "spec.rules[0].peers[0].podSelector", "unknown field"],
    [{"rules": [{"name": "a", "direction": "Egress", "peers": [{"podSelector": {}, "ipBlock": {"cidr": "10.0.0.0/8"}}]}]}, "spec.rules[0].peers[0].ipBlock", "must not be combined"],
    [{"rules": [{"name": "a", "direction": "Egress", "peers": [{"ipBlock": {"cidr": "10.0.0.0"}}]}]}, "spec.rules[0].peers[0].ipBlock.cidr", "must be a CIDR"],
    [{"rules": [{"name": "a", "direction": "Egress", "ports": [{"number": 1}]}]}, "spec.rules[0].ports[0]", "unknown field"],
    [{"rules": [{"name": "a", "direction": "Egress", "ports": [{"port": 0}]}]}, "spec.rules[0].ports[0].port", "must be from 1 to 65535"],
    [{"rules": [{"name": "a", "direction": "Egress", "ports": [{"endPort": 5}]}]}, "spec.rules[0].ports[0].endPort", "must not be given without"],
    [{"rules": [{"name": "a", "direction": "Egress", "bandwidth": {"egress": {"rate": "1"}}}]}, "spec.rules[0].bandwidth.egress.rate", "must be a quantity"],
    [{"rules": [{"name": "a", "direction": "Egress", "dscp": 99}]}, "spec.rules[0].dscp", "must be a number"],
    [{"rules": [{"name": "a", "direction": "Egress", "mark": "0x8000/0x8000"}]}, "spec.rules[0].mark", "must be within"],
    [{"rules": [{"name": "a", "direction": "Egress"}, {"name": "a", "direction": "Ingress"}]}, "spec.rules[1].name", "must be unique, is \"a\" again"]
]"#;

#[test]
fn what_cannot_be_read_is_an_error_of_a_manifest_and_a_problem_of_an_api_server() {
    let rows: Vec<(Value, String, String)> = serde_json::from_str(INVALID).unwrap();
    for (fields, path, cause) in rows {
        for source in ["dir", "local"] {
            let error = read(source, &fields).unwrap_err();
            assert_eq!(error.path, path, "{fields}: {error}");
            assert!(error.cause.starts_with(&cause), "{fields}: {error}");
        }
        // the rest of the object holds
        let mut beside = fields.clone();
        let rest = ("packets", json!({"ingress": {"rate": 7}}));
        if beside.get(rest.0).is_none() {
            beside[rest.0] = rest.1;
        }
        let policy = read("kubernetes", &beside).unwrap();
        let [problem] = policy.problems.as_slice() else {
            panic!("{fields}: {:?}", policy.problems)
        };
        assert!(problem.starts_with(&format!("{path}: {cause}")), "{fields}: {problem}");
        let told = ["; it has no effect", "; it is 1000", "; the rule matches nothing"];
        assert!(told.iter().any(|told| problem.ends_with(told)), "{problem}");
        let holds = policy.limits.each_way.ingress.packets.is_some();
        assert!(holds || fields.get("packets").is_some(), "{fields}");
        assert!(policy.limits.rules.len() <= 1, "{fields}");
    }
}

#[test]
fn a_rule_that_fails_takes_no_other_with_it() {
    let rule = |name: &str, more: Value| {
        let mut rule = json!({"name": name, "direction": "Egress"});
        rule.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        rule
    };
    let rules = json!([
        rule("a", json!({"dscp": 1})),
        rule("b", json!({"when": "night"})),
        rule("c", json!({"dscp": 3})),
    ]);
    let policy = read("kubernetes", &json!({"rules": rules})).unwrap();
    let names: Vec<_> = policy.limits.rules.iter().map(|rule| &*rule.name).collect();
    assert_eq!(names, ["a", "c"]);
    assert_eq!(&*policy.limits.rules[1].origin.field, "spec.rules[2]", "its place in the object");
    assert_eq!(
        policy.problems,
        ["spec.rules[1]: unknown field \"when\"; the rule matches nothing"]
    );
}

#[test]
fn lists_have_bounds() {
    let rule = |nth: usize| json!({"name": format!("r{nth}"), "direction": "Egress"});
    let rules = |count: usize| json!({"rules": (0..count).map(rule).collect::<Vec<_>>()});
    assert_eq!(read("dir", &rules(64)).unwrap().limits.rules.len(), 64);
    assert_eq!(read("dir", &rules(65)).unwrap_err().path, "spec.rules");
    let ports = vec![json!({"port": 1}); 65];
    let rule = json!({"name": "a", "direction": "Egress", "ports": ports});
    assert_eq!(read("dir", &json!({"rules": [rule]})).unwrap_err().path, "spec.rules[0].ports");
}

#[test]
fn without_a_selector_nothing_can_hold() {
    for (spec, path) in [
        (json!(null), "spec"),
        (json!([]), "spec"),
        (json!({}), "spec.podSelector"),
        (json!({"podSelector": []}), "spec.podSelector"),
        (json!({"podSelector": {"app": "web"}}), "spec.podSelector"),
        (
            json!({"podSelector": {"matchExpressions": [{"key": "a", "operator": "Near"}]}}),
            "spec.podSelector.matchExpressions[0].operator",
        ),
    ] {
        for source in ["dir", "kubernetes"] {
            let object = json!({"metadata": {"namespace": "shop", "name": "web"}, "spec": spec});
            let object = serde_json::from_value(object).unwrap();
            assert_eq!(pod_traffic_policy(source, &object).unwrap_err().path, path, "{spec}");
        }
    }
}
