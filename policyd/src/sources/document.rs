//! One document of a manifest: an object or a list of them.

use std::path::Path;

use k8s_openapi::api::core::v1::{Namespace, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use podgate_policy::convert::FieldError;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::Object;
use super::manifest::{DIR_SOURCE, Manifest, ManifestError};
use super::object::{namespace, pod, policy, service, slice};
use super::unenforced::{GROUP, UnenforcedKind};

/// Splits YAML into its documents and the line each starts at. `---` at the start of a line is a document
/// marker wherever it stands, in a block scalar too, so no parser is needed to see it.
pub(super) fn documents(text: &str) -> Vec<(usize, &str)> {
    let mut documents = Vec::new();
    let (mut start, mut start_line, mut offset) = (0, 1, 0);
    for (nth, line) in text.split_inclusive('\n').enumerate() {
        let marker = line
            .strip_prefix("---")
            .is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']));
        if marker && offset > start {
            documents.push((start_line, &text[start..offset]));
        }
        if marker {
            (start, start_line) = (offset, nth + 1);
        }
        offset += line.len();
    }
    documents.push((start_line, &text[start..]));
    documents.retain(|(_, text)| !is_blank(text));
    documents
}

/// Nothing but comments, white space and markers.
fn is_blank(text: &str) -> bool {
    text.lines().all(|line| {
        let line = line.strip_prefix("---").unwrap_or(line).trim();
        line.is_empty() || line.starts_with('#') || line == "..."
    })
}

/// A document under reading; objects and mistakes go to `out`.
pub(super) struct Document<'a> {
    pub(super) file: &'a Path,
    pub(super) number: usize,
    pub(super) line: usize,
    pub(super) text: &'a str,
    pub(super) json: bool,
    pub(super) out: &'a mut Manifest,
}

impl Document<'_> {
    pub(super) fn parse(&self) -> Result<Value, (usize, String)> {
        if self.json {
            return serde_json::from_str(self.text).map_err(|e| (e.line(), e.to_string()));
        }
        yaml(self.text).map_err(|e| (self.line_of(&e), plain(&e)))
    }

    fn line_of(&self, error: &serde_saphyr::Error) -> usize {
        let inside = error.location().and_then(|at| usize::try_from(at.line()).ok());
        self.line + inside.unwrap_or(1).max(1) - 1
    }

    pub(super) fn complain(
        &mut self,
        line: Option<usize>,
        object: Option<String>,
        field: &str,
        cause: String,
    ) {
        self.out.errors.push(ManifestError {
            file: self.file.to_owned(),
            document: Some(self.number),
            line: line.or(Some(self.line)),
            object,
            field: field.to_owned(),
            cause,
        });
    }

    pub(super) fn read(&mut self, value: Value) {
        match value {
            // only comments
            Value::Null => {}
            Value::Object(_) => self.read_object("", value),
            _ => self.complain(None, None, "", "must be an object with apiVersion and kind".into()),
        }
    }

    /// Reads an object or a list of them; `at` is where it stands, with its dot: "items[3].".
    fn read_object(&mut self, at: &str, mut value: Value) {
        let text = |field: &str| value.get(field).and_then(Value::as_str).unwrap_or("").to_owned();
        let (version, kind) = (text("apiVersion"), text("kind"));
        if version == "v1" && kind == "List" || version_and_list(&version, &kind).is_some() {
            let of = version_and_list(&version, &kind);
            let items = match value.get_mut("items").map(Value::take) {
                Some(Value::Array(items)) => items,
                None | Some(Value::Null) => Vec::new(),
                Some(_) => {
                    return self.complain(
                        None,
                        None,
                        &format!("{at}items"),
                        "must be a list".into(),
                    );
                }
            };
            for (nth, mut item) in items.into_iter().enumerate() {
                // the items of a typed list as the API server sends it do not repeat their kind
                if let (Some((version, kind)), Value::Object(fields)) = (of, &mut item) {
                    fields.entry("apiVersion").or_insert_with(|| version.into());
                    fields.entry("kind").or_insert_with(|| kind.into());
                }
                self.read_object(&format!("{at}items[{nth}]."), item);
            }
            return;
        }
        let object = match (version.as_str(), kind.as_str()) {
            (NETWORKING, "NetworkPolicy") => policy(DIR_SOURCE, &value).map(Object::Policy),
            ("v1", "Pod") => pod(&value).map(Object::Pod),
            ("v1", "Namespace") => namespace(&value).map(Object::Namespace),
            ("v1", "Service") => service(&value).map(Object::Service),
            (DISCOVERY, "EndpointSlice") => slice(&value).map(Object::EndpointSlice),
            ("extensions/v1beta1", "NetworkPolicy") => {
                Err(FieldError::new("apiVersion", format!("must be {NETWORKING}")))
            }
            ("", _) => Err(FieldError::new("apiVersion", "missing")),
            (_, "") => Err(FieldError::new("kind", "missing")),
            (version, kind) => {
                if let Some(kind) = UnenforcedKind::of(version, kind) {
                    *self.out.unenforced.entry(kind).or_default() += 1;
                    return;
                }
                tracing::debug!(file = %self.file.display(), version, kind, "ignoring an object");
                return;
            }
        };
        match object {
            Ok(object) => self.out.objects.push(object),
            Err(error) => {
                let line = if at.is_empty() { self.typed_line(&kind) } else { None };
                self.complain(
                    line,
                    describe(&kind, &value),
                    &format!("{at}{}", error.path),
                    error.cause,
                );
            }
        }
    }

    /// The line of a field of the wrong type: the YAML reader knows it, once it is told the type.
    fn typed_line(&self, kind: &str) -> Option<usize> {
        fn error<T: DeserializeOwned>(text: &str) -> Option<serde_saphyr::Error> {
            serde_saphyr::from_str_with_options::<T>(text, options()).err()
        }
        if self.json {
            return None;
        }
        let error = match kind {
            "NetworkPolicy" => error::<NetworkPolicy>(self.text),
            "Pod" => error::<Pod>(self.text),
            "Namespace" => error::<Namespace>(self.text),
            "Service" => error::<Service>(self.text),
            "EndpointSlice" => error::<EndpointSlice>(self.text),
            _ => None,
        }?;
        error.location().is_some().then(|| self.line_of(&error))
    }
}

const NETWORKING: &str = "networking.k8s.io/v1";
const DISCOVERY: &str = "discovery.k8s.io/v1";
const UNENFORCED: &str = "policy.networking.k8s.io/v1alpha2";

/// What the items of a typed list are.
fn version_and_list(version: &str, kind: &str) -> Option<(&'static str, &'static str)> {
    match (version, kind) {
        _ if kind.ends_with("List") && version.starts_with(GROUP) => {
            let is_its = |each: &&UnenforcedKind| Some(each.name()) == kind.strip_suffix("List");
            let item = UnenforcedKind::ALL.iter().find(is_its)?;
            // the version does not matter: none of them is enforced
            Some((UNENFORCED, item.name()))
        }
        ("v1", "PodList") => Some(("v1", "Pod")),
        ("v1", "NamespaceList") => Some(("v1", "Namespace")),
        ("v1", "ServiceList") => Some(("v1", "Service")),
        (DISCOVERY, "EndpointSliceList") => Some((DISCOVERY, "EndpointSlice")),
        (NETWORKING, "NetworkPolicyList") => Some((NETWORKING, "NetworkPolicy")),
        _ => None,
    }
}

/// "policy default/web", as far as it says.
fn describe(kind: &str, value: &Value) -> Option<String> {
    if kind.is_empty() {
        return None;
    }
    let metadata = value.get("metadata");
    let text = |field: &str| metadata.and_then(|m| m.get(field)).and_then(Value::as_str);
    let kind = match kind {
        "NetworkPolicy" => "policy".to_owned(),
        other => other.to_lowercase(),
    };
    Some(match (text("namespace"), text("name")) {
        (Some(namespace), Some(name)) => format!("{kind} {namespace}/{name}"),
        (None, Some(name)) => format!("{kind} {name}"),
        _ => kind,
    })
}

fn options() -> serde_saphyr::Options {
    serde_saphyr::options! {
        // a dump of a whole cluster is one document; aliases have limits of their own
        budget: None,
        // "yes" in a label is text
        strict_booleans: true,
        with_snippet: false,
    }
}

/// Reads one YAML document as plain data.
fn yaml(text: &str) -> Result<Value, serde_saphyr::Error> {
    serde_saphyr::from_str_with_options(text, options())
}

/// The error without the place, which [`ManifestError`] gives.
fn plain(error: &serde_saphyr::Error) -> String {
    let text = error.to_string();
    // and without advice on options that the user does not have
    let end = [" at line ", ", set "].iter().filter_map(|end| text.find(end)).min();
    text[..end.unwrap_or(text.len())]
        .lines()
        .next()
        .unwrap_or("not YAML")
        .trim_start_matches("error: ")
        .to_owned()
}
