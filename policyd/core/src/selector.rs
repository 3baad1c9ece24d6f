//! Label selectors: our own type, so that two policies' equal selectors are one atom and a selector that
//! cannot be read is an error and never "no restriction" (semantics 4).

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};

use crate::convert::FieldError;
use crate::model::Labels;

/// What one requirement asks of its key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Operator {
    /// The key is there with one of these values. The empty string is a value.
    In(BTreeSet<Arc<str>>),
    /// The key is missing, or its value is none of these.
    NotIn(BTreeSet<Arc<str>>),
    /// The key is there, with any value.
    Exists,
    /// The key is missing.
    DoesNotExist,
}

/// One requirement of a [`Selector`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Requirement {
    /// The label's key.
    pub key: Arc<str>,
    /// What is asked of it.
    pub operator: Operator,
}

impl Requirement {
    /// Whether `labels` fulfil it.
    pub fn matches(&self, labels: &Labels) -> bool {
        self.accepts(labels.get(&self.key).map(|value| &**value))
    }

    /// Whether this value of its key fulfils it; `None`: the key is missing.
    pub fn accepts(&self, value: Option<&str>) -> bool {
        match &self.operator {
            Operator::In(values) => value.is_some_and(|value| values.contains(value)),
            Operator::NotIn(values) => !value.is_some_and(|value| values.contains(value)),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
        }
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |f: &mut fmt::Formatter<'_>, word: &str, values: &BTreeSet<Arc<str>>| {
            let values: Vec<&str> = values.iter().map(|value| &**value).collect();
            write!(f, "{} {word} ({})", self.key, values.join(","))
        };
        match &self.operator {
            Operator::In(values) => match (values.len(), values.first()) {
                (1, Some(only)) => write!(f, "{}={only}", self.key),
                _ => list(f, "in", values),
            },
            Operator::NotIn(values) => list(f, "notin", values),
            Operator::Exists => f.write_str(&self.key),
            Operator::DoesNotExist => write!(f, "!{}", self.key),
        }
    }
}

/// Requirements that must all hold. Sorted and without repetitions, so that equal meanings written in
/// another order compare equal. Prints as kubectl does.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Selector {
    requirements: Vec<Requirement>,
}

impl Selector {
    /// The selector without requirements: it matches everything.
    pub fn everything() -> Self {
        Self { requirements: Vec::new() }
    }

    /// A selector of these requirements.
    pub fn new(requirements: impl IntoIterator<Item = Requirement>) -> Self {
        let sorted: BTreeSet<Requirement> = requirements.into_iter().collect();
        Self { requirements: sorted.into_iter().collect() }
    }

    /// Reads an API selector. The error's path is relative to it (`matchExpressions[1].operator`).
    pub fn read(selector: &LabelSelector) -> Result<Self, FieldError> {
        let mut requirements = BTreeSet::new();
        for (key, value) in selector.match_labels.iter().flatten() {
            if key.is_empty() {
                return Err(FieldError::new("matchLabels", "must not have an empty key"));
            }
            let operator = Operator::In(BTreeSet::from([value.as_str().into()]));
            requirements.insert(Requirement { key: key.as_str().into(), operator });
        }
        for (index, expression) in selector.match_expressions.iter().flatten().enumerate() {
            let requirement = read_expression(expression)
                .map_err(|error| error.under(format_args!("matchExpressions[{index}]")))?;
            requirements.insert(requirement);
        }
        Ok(Self { requirements: requirements.into_iter().collect() })
    }

    /// Whether these labels fulfil every requirement.
    pub fn matches(&self, labels: &Labels) -> bool {
        self.requirements.iter().all(|requirement| requirement.matches(labels))
    }

    /// Whether it has no requirement.
    pub fn is_everything(&self) -> bool {
        self.requirements.is_empty()
    }

    /// Its requirements, sorted.
    pub fn requirements(&self) -> &[Requirement] {
        &self.requirements
    }
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

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.requirements.is_empty() {
            return f.write_str("<none>");
        }
        for (index, requirement) in self.requirements.iter().enumerate() {
            if index > 0 {
                f.write_str(",")?;
            }
            requirement.fmt(f)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(yaml: serde_json::Value) -> Result<Selector, FieldError> {
        Selector::read(&serde_json::from_value(yaml).unwrap())
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
