//! Label selectors. One that cannot be read is an error and never "no restriction" (docs/semantics.md 4).

use std::collections::BTreeSet;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};

use super::FieldError;
use crate::selector::{Operator, Requirement, Selector};

/// Reads an API selector. The error's path is relative to it (`matchExpressions[1].operator`).
pub(super) fn read_selector(selector: &LabelSelector) -> Result<Selector, FieldError> {
    let mut requirements = Vec::new();
    for (key, value) in selector.match_labels.iter().flatten() {
        if key.is_empty() {
            return Err(FieldError::new("matchLabels", "must not have an empty key"));
        }
        let operator = Operator::In(BTreeSet::from([value.as_str().into()]));
        requirements.push(Requirement { key: key.as_str().into(), operator });
    }
    for (index, expression) in selector.match_expressions.iter().flatten().enumerate() {
        let requirement = read_expression(expression)
            .map_err(|error| error.under(format_args!("matchExpressions[{index}]")))?;
        requirements.push(requirement);
    }
    Ok(Selector::new(requirements))
}

fn read_expression(expression: &LabelSelectorRequirement) -> Result<Requirement, FieldError> {
    if expression.key.is_empty() {
        return Err(FieldError::new("key", "must not be empty"));
    }
    let values: BTreeSet<Arc<str>> =
        expression.values.iter().flatten().map(|value| value.as_str().into()).collect();
    let needed = |values: BTreeSet<Arc<str>>| {
        if values.is_empty() {
            let cause = "must be given when the operator is In or NotIn";
            return Err(FieldError::new("values", cause));
        }
        Ok(values)
    };
    let operator = match expression.operator.as_str() {
        "In" => Operator::In(needed(values)?),
        "NotIn" => Operator::NotIn(needed(values)?),
        "Exists" | "DoesNotExist" if !values.is_empty() => {
            let cause = "must not be given when the operator is Exists or DoesNotExist";
            return Err(FieldError::new("values", cause));
        }
        "Exists" => Operator::Exists,
        "DoesNotExist" => Operator::DoesNotExist,
        other => {
            let cause = format!("must be In, NotIn, Exists or DoesNotExist, is {other:?}");
            return Err(FieldError::new("operator", cause));
        }
    };
    Ok(Requirement { key: expression.key.as_str().into(), operator })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(yaml: serde_json::Value) -> Result<Selector, FieldError> {
        read_selector(&serde_json::from_value(yaml).unwrap())
    }

    #[test]
    fn prints_as_kubectl_does() {
        let selector = read(serde_json::json!({
            "matchLabels": {"app": "web"},
            "matchExpressions": [
                {"key": "tier", "operator": "In", "values": ["b", "a"]},
                {"key": "env", "operator": "NotIn", "values": ["prod"]},
                {"key": "old", "operator": "DoesNotExist"},
                {"key": "team", "operator": "Exists"},
            ],
        }))
        .unwrap();
        assert_eq!(selector.to_string(), "app=web,env notin (prod),!old,team,tier in (a,b)");
        assert_eq!(Selector::everything().to_string(), "<none>");
    }

    #[test]
    fn one_meaning_is_one_value() {
        let labels = read(serde_json::json!({"matchLabels": {"a": "1", "b": "2"}}));
        let expressions = read(serde_json::json!({"matchExpressions": [
            {"key": "b", "operator": "In", "values": ["2", "2"]},
            {"key": "a", "operator": "In", "values": ["1"]},
            {"key": "a", "operator": "In", "values": ["1"]},
        ]}));
        assert_eq!(labels, expressions);
    }

    #[test]
    fn an_unreadable_selector_is_an_error_that_names_the_field() {
        for (expression, path) in [
            (serde_json::json!({"key": "a", "operator": "Gt", "values": ["1"]}), "operator"),
            (serde_json::json!({"key": "a", "operator": "", "values": ["1"]}), "operator"),
            (serde_json::json!({"key": "a", "operator": "In"}), "values"),
            (serde_json::json!({"key": "a", "operator": "NotIn", "values": []}), "values"),
            (serde_json::json!({"key": "a", "operator": "Exists", "values": ["x"]}), "values"),
            (serde_json::json!({"key": "", "operator": "Exists"}), "key"),
        ] {
            let error = read(serde_json::json!({"matchExpressions": [expression]})).unwrap_err();
            assert_eq!(error.path, format!("matchExpressions[0].{path}"));
        }
    }
}
