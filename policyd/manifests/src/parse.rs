//! Parses one object: from a JSON value to the API's type and on to the model. An error names the field.

use std::borrow::Cow;

use podgate_policy::convert::FieldError;
use podgate_policy::object::{Kind, KindVisitor, Object, Resource};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::text;

/// Reads an object of a kind that `source` gives. Manifests, bodies of podgate's API and what an API server sends are read
/// alike. The error names the field.
pub fn object(kind: Kind, source: &str, value: &Value) -> Result<Object, FieldError> {
    struct Read<'a>(&'a str, &'a Value);

    impl KindVisitor for Read<'_> {
        type Output = Result<Object, FieldError>;

        fn visit<R: Resource>(self) -> Self::Output {
            object_as::<R>(self.0, self.1).map(Into::into)
        }
    }

    kind.visit(Read(source, value))
}

/// The same, for a kind that is known at compile time.
pub fn object_as<R: Resource>(source: &str, value: &Value) -> Result<R, FieldError> {
    let (object, unknown) = typed::<R::Api>(value)?;
    match unknown.into_iter().find(|field| !R::may_have(field)) {
        Some(field) => Err(FieldError::new(field, "unknown field")),
        None => R::convert(source, &object),
    }
}

/// How many booleans of one object may be written as words (`yes`): each costs another pass over the object.
const MAX_WORDS: usize = 100;

/// The value as the API's type, and the paths of fields that the type does not have.
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
        // `hostNetwork: yes` is a boolean to kubectl; one at a time, because only the error says where a boolean is expected
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

/// Replaces the word at a path by its boolean. False if it is no such word.
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

/// The maps from text to text of an object.
const TEXTS: [&[&str]; 4] = [
    &["metadata", "labels"],
    &["metadata", "annotations"],
    &["spec", "nodeSelector"],
    &["spec", "selector"],
];

/// The value with "" for `null` in maps from text to text, as Go reads them: `role-db:` is a label without a value.
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

/// A path in the form that all errors use: `spec.ingress[0].form`.
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
