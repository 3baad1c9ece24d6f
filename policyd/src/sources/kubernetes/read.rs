//! One object as the API server sends it, into the model.

use std::sync::Arc;

use podgate_policy::convert::FieldError;
use podgate_policy::model::{ObjectKey, PolicyId};
use serde_json::{Value, json};

use super::KUBERNETES_SOURCE;
use crate::sources::{Kind, Object, ObjectId, object};

/// Which object it is, as far as it says.
pub(super) fn id(kind: Kind, value: &Value) -> Option<ObjectId> {
    let text =
        |field: &str| Some(value.get("metadata")?.get(field)?.as_str()?).filter(|t| !t.is_empty());
    let key = || Some(ObjectKey::new(text("namespace")?, text("name")?));
    Some(match kind {
        Kind::Pod => ObjectId::Pod(key()?),
        Kind::Namespace => ObjectId::Namespace(text("name")?.into()),
        Kind::Policy => {
            ObjectId::Policy(PolicyId { source: KUBERNETES_SOURCE.into(), key: key()? })
        }
        Kind::Service => ObjectId::Service(key()?),
        Kind::EndpointSlice => ObjectId::EndpointSlice(key()?),
    })
}

/// Its uid, or nothing.
pub(super) fn uid(value: &Value) -> Arc<str> {
    metadata(value, "uid").into()
}

/// Its version, or nothing.
pub(super) fn version(value: &Value) -> &str {
    metadata(value, "resourceVersion")
}

fn metadata<'a>(value: &'a Value, field: &str) -> &'a str {
    let field = value.get("metadata").and_then(|metadata| metadata.get(field));
    field.and_then(Value::as_str).unwrap_or_default()
}

/// The object.
pub(super) fn object(kind: Kind, value: &Value) -> Result<Object, FieldError> {
    match kind {
        Kind::Pod => object::pod(value).map(Object::Pod),
        Kind::Namespace => object::namespace(value).map(Object::Namespace),
        Kind::Policy => object::policy(KUBERNETES_SOURCE, value).map(Object::Policy),
        Kind::Service => object::service(value).map(Object::Service),
        Kind::EndpointSlice => object::slice(value).map(Object::EndpointSlice),
    }
}

/// What stands in for a policy that cannot be read and never could: it isolates the pods it selects, for
/// the directions it names, and allows nothing. A policy only ever allows, so whatever it says, this lets
/// nothing through that it would not. What cannot even be told (selector, directions) is taken at its
/// strictest.
pub(super) fn closed(value: &Value) -> Option<Object> {
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
        object(Kind::Policy, &policy).ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use podgate_policy::model::Policy;

    fn policy(spec: Value) -> Policy {
        let value = json!({"metadata": {"name": "p", "namespace": "s"}, "spec": spec});
        assert!(object(Kind::Policy, &value).is_err(), "{value}");
        match closed(&value) {
            Some(Object::Policy(policy)) => policy,
            other => panic!("{other:?}"),
        }
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
        assert!(odd.selector.matches(&labels), "whom it selects cannot be told: everybody");
        assert_eq!((odd.ingress, odd.egress), (Some(vec![]), Some(vec![])));
    }
}
