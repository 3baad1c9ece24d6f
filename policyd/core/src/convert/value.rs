//! Reading JSON values so that no field is passed over.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::FieldError;
use super::selector::read_selector;
use crate::selector::Selector;

/// Why a value says nothing that podgate can enforce.
#[derive(Debug)]
pub(super) enum Unread {
    /// A later version of the API may mean something by it: what it is part of fails closed.
    Unknown(FieldError),
    /// The API's schema does not allow it.
    Invalid(FieldError),
}

impl Unread {
    pub(super) fn unknown(path: impl Into<String>, cause: impl Into<String>) -> Self {
        Self::Unknown(FieldError::new(path, cause))
    }

    /// For where nothing can fail closed.
    pub(super) fn into_field(self) -> FieldError {
        match self {
            Self::Unknown(error) | Self::Invalid(error) => error,
        }
    }
}

impl From<FieldError> for Unread {
    fn from(error: FieldError) -> Self {
        Self::Invalid(error)
    }
}

/// The fields of an object. One that is null is not given.
pub(super) struct Fields<'a> {
    of: &'a Map<String, Value>,
    path: &'a str,
}

impl<'a> Fields<'a> {
    pub(super) fn of(value: &'a Value, path: &'a str) -> Result<Self, Unread> {
        match value {
            Value::Object(of) => Ok(Self { of, path }),
            other => Err(FieldError::new(path, mistyped(other, "an object")).into()),
        }
    }

    pub(super) fn get(&self, name: &str) -> Option<&'a Value> {
        self.of.get(name).filter(|value| !value.is_null())
    }

    fn given(&self) -> impl Iterator<Item = (&'a str, &'a Value)> {
        let given = self.of.iter().filter(|(_, value)| !value.is_null());
        given.map(|(name, value)| (name.as_str(), value))
    }

    /// An error that names the first field that is none of these.
    pub(super) fn no_other_than(&self, known: &[&str]) -> Result<(), Unread> {
        match self.given().find(|(name, _)| !known.contains(name)) {
            None => Ok(()),
            Some((name, _)) => Err(Unread::unknown(self.path, format!("unknown field {name:?}"))),
        }
    }

    /// The only field, which is one of these.
    pub(super) fn exactly_one(&self, known: &[&str]) -> Result<(&'a str, &'a Value), Unread> {
        self.no_other_than(known)?;
        let mut given = self.given();
        let must = || format!("must have exactly one of {}", known.join(", "));
        match (given.next(), given.next()) {
            (Some(only), None) => Ok(only),
            (None, _) => Err(Unread::unknown(self.path, must())),
            (Some(_), Some(_)) => Err(FieldError::new(self.path, must()).into()),
        }
    }
}

/// A list of 1 to `most` items.
pub(super) fn items<'a>(
    value: &'a Value,
    path: &str,
    most: usize,
) -> Result<&'a [Value], FieldError> {
    let Value::Array(items) = value else {
        return Err(FieldError::new(path, mistyped(value, "a list")));
    };
    if items.is_empty() || items.len() > most {
        let cause = format!("must have 1 to {most} items, has {}", items.len());
        return Err(FieldError::new(path, cause));
    }
    Ok(items)
}

pub(super) fn text<'a>(value: &'a Value, path: &str) -> Result<&'a str, FieldError> {
    value.as_str().ok_or_else(|| FieldError::new(path, mistyped(value, "a string")))
}

/// What is wrong with a value that is not what is expected.
pub(super) fn mistyped(value: &Value, expected: &str) -> String {
    let is = match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    };
    format!("must be {expected}, is {is}")
}

/// A label selector. The API's schema does not check its operators, so that also those may be of a later version.
pub(super) fn selector(value: &Value, path: &str) -> Result<Selector, Unread> {
    let fields = Fields::of(value, path)?;
    fields.no_other_than(&["matchLabels", "matchExpressions"])?;
    if let Some(Value::Array(expressions)) = fields.get("matchExpressions") {
        for (nth, expression) in expressions.iter().enumerate() {
            let path = format!("{path}.matchExpressions[{nth}]");
            Fields::of(expression, &path)?.no_other_than(&["key", "operator", "values"])?;
        }
    }
    let selector = LabelSelector::deserialize(value)
        .map_err(|error| FieldError::new(path, error.to_string()))?;
    read_selector(&selector).map_err(|error| Unread::Unknown(error.under(path)))
}

/// The selectors of namespaces and of pods in a `pods`.
pub(super) fn pods(value: &Value, path: &str) -> Result<(Selector, Selector), Unread> {
    let fields = Fields::of(value, path)?;
    fields.no_other_than(&["namespaceSelector", "podSelector"])?;
    let namespaces = match fields.get("namespaceSelector") {
        Some(value) => selector(value, &format!("{path}.namespaceSelector"))?,
        None => Selector::everything(),
    };
    let pods_path = format!("{path}.podSelector");
    match fields.get("podSelector") {
        Some(value) => Ok((namespaces, selector(value, &pods_path)?)),
        None => Err(FieldError::new(pods_path, "must be given").into()),
    }
}
