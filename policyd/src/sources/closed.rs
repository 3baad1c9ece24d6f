//! What stands in for a policy that cannot be read and never could.

use std::sync::Arc;

use podgate_policy::model::{ObjectKey, Policy, PolicyId};
use podgate_policy::selector::Selector;
use serde_json::{Value, json};

use super::object;

/// Isolates the pods that the policy selects, for the directions it names, and allows nothing. A policy only ever allows,
/// so whatever it says, this lets nothing through that it would not. What cannot even be known (selector, directions) is
/// taken at its strictest. `None` if its name or its namespace is missing.
pub(super) fn instead_of(source: &str, value: &Value) -> Option<Policy> {
    let metadata = json!({
        "name": value.get("metadata")?.get("name")?,
        "namespace": value.get("metadata")?.get("namespace")?,
    });
    let spec = value.get("spec");
    let field = |name: &str| spec.and_then(|spec| spec.get(name)).filter(|field| !field.is_null());
    let types = field("policyTypes")
        .cloned()
        .filter(|types| types.as_array().is_some_and(|types| !types.is_empty()));
    let types = types.unwrap_or_else(|| match field("egress") {
        Some(Value::Array(rules)) if rules.is_empty() => json!(["Ingress"]),
        Some(_) => json!(["Ingress", "Egress"]),
        None => json!(["Ingress"]),
    });
    let everything = json!({});
    let both = json!(["Ingress", "Egress"]);
    let selector = field("podSelector").unwrap_or(&everything);
    let strictness =
        [(selector, &types), (selector, &both), (&everything, &types), (&everything, &both)];
    strictness.into_iter().find_map(|(selector, types)| {
        let policy =
            json!({"metadata": metadata, "spec": {"podSelector": selector, "policyTypes": types}});
        object::policy(source, &policy).ok()
    })
}

/// Isolates every pod of a namespace in both directions and allows nothing.
pub(super) fn namespace(
    source: impl Into<Arc<str>>,
    namespace: impl Into<Arc<str>>,
    name: impl Into<Arc<str>>,
) -> Policy {
    Policy {
        id: PolicyId { source: source.into(), key: ObjectKey::new(namespace, name) },
        selector: Selector::everything(),
        ingress: Some(Vec::new()),
        egress: Some(Vec::new()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(spec: Value) -> Policy {
        let value = json!({"metadata": {"name": "p", "namespace": "s"}, "spec": spec});
        assert!(object::policy("kubernetes", &value).is_err(), "{value}");
        instead_of("kubernetes", &value).unwrap()
    }

    #[test]
    fn a_policy_that_cannot_be_read_allows_nothing() {
        let bad_rule = json!([{"from": [{"ipBlock": {"cidr": "nonsense"}}]}]);
        let both = policy(json!({
            "podSelector": {"matchLabels": {"app": "a"}},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": bad_rule,
        }));
        assert_eq!((both.ingress, both.egress), (Some(vec![]), Some(vec![])));
        let labels = [("app".into(), "b".into())].into_iter().collect();
        assert!(!both.selector.matches(&labels), "keeps its selector");

        let ingress = policy(json!({"podSelector": {}, "ingress": bad_rule}));
        assert_eq!((ingress.ingress, ingress.egress), (Some(vec![]), None));
        let egress = policy(json!({"egress": [{"to": [{"ipBlock": {"cidr": "nonsense"}}]}]}));
        assert_eq!((egress.ingress, egress.egress), (Some(vec![]), Some(vec![])));

        let odd = policy(json!({
            "podSelector": {"matchExpressions": [{"key": "a", "operator": "Near"}]},
            "policyTypes": ["Sideways"],
        }));
        assert!(odd.selector.matches(&labels), "whom it selects cannot be known: everybody");
        assert_eq!((odd.ingress, odd.egress), (Some(vec![]), Some(vec![])));
    }
}
