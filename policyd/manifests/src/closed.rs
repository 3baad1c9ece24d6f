//! The substitute of a policy of which no version could be read: it isolates and allows nothing.

use std::sync::Arc;

use podgate_policy::model::{ObjectKey, Policy, PolicyId, PolicySettings};
use podgate_policy::selector::Selector;
use serde_json::{Value, json};

use crate::parse;

/// Isolates the pods that the policy selects, in the directions it names, and allows nothing. A policy only ever allows, so
/// this is never more permissive than the policy itself. A selector or directions that cannot be read are taken at their
/// strictest. `None` if its name or its namespace is missing.
pub fn instead_of(source: &str, value: &Value) -> Option<Policy> {
    let metadata = json!({
        "name": value.get("metadata")?.get("name")?,
        "namespace": value.get("metadata")?.get("namespace")?,
    });
    let spec = value.get("spec");
    let field = |name: &str| spec.and_then(|spec| spec.get(name)).filter(|field| !field.is_null());
    // whether there are any egress rules matters for the default of policyTypes, what they say does not
    let egress = match field("egress") {
        None => json!([]),
        Some(Value::Array(rules)) if rules.is_empty() => json!([]),
        Some(_) => json!([{}]),
    };
    let types = field("policyTypes").unwrap_or(&Value::Null);
    let everything = json!({});
    let both = json!(["Ingress", "Egress"]);
    let selector = field("podSelector").unwrap_or(&everything);
    let strictness =
        [(selector, types), (selector, &both), (&everything, types), (&everything, &both)];
    strictness.into_iter().find_map(|(selector, types)| {
        let spec = json!({"podSelector": selector, "policyTypes": types, "egress": egress});
        let value = json!({"metadata": metadata, "spec": spec});
        let policy = parse::object_as::<Policy>(source, &value).ok()?;
        Some(Policy {
            ingress: policy.ingress.map(|_| Vec::new()),
            egress: policy.egress.map(|_| Vec::new()),
            ..policy
        })
    })
}

/// Isolates every pod of a namespace in both directions and allows nothing.
pub fn namespace(
    source: impl Into<Arc<str>>,
    namespace: impl Into<Arc<str>>,
    name: impl Into<Arc<str>>,
) -> Policy {
    Policy {
        id: PolicyId { source: source.into(), key: ObjectKey::new(namespace, name) },
        selector: Selector::everything(),
        ingress: Some(Vec::new()),
        egress: Some(Vec::new()),
        settings: PolicySettings::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(spec: Value) -> Policy {
        let value = json!({"metadata": {"name": "p", "namespace": "s"}, "spec": spec});
        assert!(parse::object_as::<Policy>("kubernetes", &value).is_err(), "{value}");
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

        let text = policy(json!({"podSelector": {}, "policyTypes": "Egress"}));
        assert_eq!((text.ingress, text.egress), (Some(vec![]), Some(vec![])), "both, to be safe");

        let odd = policy(json!({
            "podSelector": {"matchExpressions": [{"key": "a", "operator": "Near"}]},
            "policyTypes": ["Sideways"],
        }));
        assert!(odd.selector.matches(&labels), "whom it selects cannot be known: everybody");
        assert_eq!((odd.ingress, odd.egress), (Some(vec![]), Some(vec![])));
    }
}
