//! One object of a manifest, from plain data: typed, with the path of what is wrong.

use std::borrow::Cow;

use k8s_openapi::api::core::v1::{Namespace, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use podgate_policy::convert::{self, FieldError};
use podgate_policy::model::Policy;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::text;

/// Reads a NetworkPolicy that a source of this name gives; the API's bodies come this way too.
pub fn policy(source: &str, value: &Value) -> Result<Policy, FieldError> {
    let (policy, unknown) = typed::<NetworkPolicy>(value)?;
    // `status` was part of NetworkPolicy in Kubernetes 1.24 to 1.27 and still stands in old dumps
    if let Some(field) = unknown.into_iter().find(|field| !field.starts_with("status")) {
        return Err(FieldError::new(field, "unknown field"));
    }
    convert::policy(source, &policy).map_err(|error| error.field)
}

pub(super) fn pod(value: &Value) -> Result<podgate_policy::model::Pod, FieldError> {
    let (pod, unknown) = typed::<Pod>(value)?;
    tracing::trace!(?unknown, "fields of a newer pod");
    convert::pod(&pod).map_err(|error| error.field)
}

pub(super) fn namespace(value: &Value) -> Result<podgate_policy::model::Namespace, FieldError> {
    convert::namespace(&typed::<Namespace>(value)?.0).map_err(|error| error.field)
}

pub(super) fn service(value: &Value) -> Result<podgate_policy::model::Service, FieldError> {
    convert::service(&typed::<Service>(value)?.0).map_err(|error| error.field)
}

pub(super) fn slice(value: &Value) -> Result<podgate_policy::model::EndpointSlice, FieldError> {
    convert::endpoint_slice(&typed::<EndpointSlice>(value)?.0).map_err(|error| error.field)
}

/// How many booleans of one object may be words: the object is read again for each.
const MAX_WORDS: usize = 100;

/// The typed object and the fields it does not know.
fn typed<T: DeserializeOwned>(value: &Value) -> Result<(T, Vec<String>), FieldError> {
    let mut value = without_nulls(value);
    let mut words = 0;
    loop {
        let mut unknown = Vec::new();
        let mut track = serde_path_to_error::Track::new();
        let deserializer = serde_path_to_error::Deserializer::new(value.as_ref(), &mut track);
        let object = serde_ignored::deserialize(deserializer, |path| unknown.push(spell(&path)));
        let error: serde_json::Error = match object {
            Ok(object) => return Ok((object, unknown)),
            Err(error) => error,
        };
        let (path, mut cause) = (track.path(), error.to_string());
        // `hostNetwork: yes` is a boolean to kubectl; one at a time, so that each is only looked at where it is wanted
        words += 1;
        if words <= MAX_WORDS
            && cause.ends_with(", expected a boolean")
            && set_boolean(value.to_mut(), &path)
        {
            continue;
        }
        // what is a number or a boolean unless it is quoted: 1.0, true
        if cause.starts_with("invalid type: ") && cause.ends_with(", expected a string") {
            cause += "; write it in quotes";
        }
        return Err(FieldError::new(path.to_string(), cause));
    }
}

/// Makes a boolean of a word at this place. False if it is none.
fn set_boolean(value: &mut Value, path: &serde_path_to_error::Path) -> bool {
    use serde_path_to_error::Segment;
    let place = path.iter().try_fold(value, |value, segment| match segment {
        Segment::Map { key } => value.get_mut(key),
        Segment::Seq { index } => value.get_mut(index),
        Segment::Enum { .. } | Segment::Unknown => None,
    });
    let Some(place) = place else { return false };
    let Some(word) = place.as_str().and_then(text::boolean) else { return false };
    *place = Value::Bool(word);
    true
}

/// The maps of an object whose values are text.
const TEXTS: [&[&str]; 4] = [
    &["metadata", "labels"],
    &["metadata", "annotations"],
    &["spec", "nodeSelector"],
    &["spec", "selector"],
];

/// The same with empty text where a map of text has `null`, as Go reads it: `role-db:` is a label without a value.
fn without_nulls(value: &Value) -> Cow<'_, Value> {
    let at = |path: &&[&str]| path.iter().try_fold(value, |value, field| value.get(field));
    let is_null = |map: &Value| map.as_object().is_some_and(|map| map.values().any(Value::is_null));
    if !TEXTS.iter().filter_map(at).any(is_null) && !has_null_match(value) {
        return Cow::Borrowed(value);
    }
    let mut value = value.clone();
    for path in TEXTS {
        let map = path.iter().try_fold(&mut value, |value, field| value.get_mut(field));
        fill(map);
    }
    fill_matches(&mut value);
    Cow::Owned(value)
}

const MATCH: &str = "matchLabels";

fn has_null_match(value: &Value) -> bool {
    match value {
        Value::Object(fields) => fields.iter().any(|(key, value)| match value {
            Value::Object(map) if key == MATCH => map.values().any(Value::is_null),
            value => has_null_match(value),
        }),
        Value::Array(items) => items.iter().any(has_null_match),
        _ => false,
    }
}

fn fill_matches(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                if key == MATCH { fill(Some(value)) } else { fill_matches(value) }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(fill_matches),
        _ => {}
    }
}

fn fill(map: Option<&mut Value>) {
    let map = map.and_then(Value::as_object_mut).into_iter();
    for value in map.flat_map(serde_json::Map::values_mut).filter(|value| value.is_null()) {
        *value = Value::String(String::new());
    }
}

/// A path as every other error here spells it: `spec.ingress[0].form`.
fn spell(path: &serde_ignored::Path<'_>) -> String {
    use serde_ignored::Path;
    match path {
        Path::Root => String::new(),
        Path::Seq { parent, index } => format!("{}[{index}]", spell(parent)),
        Path::Map { parent, key } => match spell(parent) {
            parent if parent.is_empty() => key.clone(),
            parent => format!("{parent}.{key}"),
        },
        Path::Some { parent }
        | Path::NewtypeStruct { parent }
        | Path::NewtypeVariant { parent } => spell(parent),
    }
}
