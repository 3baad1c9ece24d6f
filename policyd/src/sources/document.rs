//! One document of a manifest: an object or a list of them.

use std::path::Path;

use podgate_policy::convert::FieldError;
use serde_json::{Map, Value, json};

use super::Object;
use super::closed;
use super::manifest::{DIR_SOURCE, Lost, Manifest, ManifestError, Mark};
use super::object::{namespace, pod, policy, service, slice};
use super::text::{self, Fault, Item, Limits, Parsed, Stream};
use super::unenforced::{GROUP, UnenforcedKind};

/// Splits YAML into its documents and the line each starts at. `---` at the start of a line is a document
/// marker wherever it stands, in a block scalar too, so no parser is needed to see it.
pub(super) fn documents(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut lines = text.split_inclusive('\n').enumerate().peekable();
    let mut offset = 0;
    let documents = std::iter::from_fn(move || {
        let (start, first) = (offset, lines.peek()?.0 + 1);
        while let Some((_, line)) = lines.next_if(|(_, line)| offset == start || !is_marker(line)) {
            offset += line.len();
        }
        Some((first, &text[start..offset]))
    });
    documents.filter(|(_, text)| !is_blank(text))
}

fn is_marker(line: &str) -> bool {
    let rest = line.strip_prefix("---");
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
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
    /// From 1.
    pub(super) number: usize,
    /// Of the file, where it starts; from 1.
    pub(super) line: usize,
    pub(super) out: &'a mut Manifest,
}

/// Where an object stands in its document.
struct Place<'a> {
    /// With its dot: "items[3]."; nothing if it is the document.
    at: &'a str,
    /// The line of the file that it starts at, from 1.
    line: usize,
    /// The YAML that it is in, to look for the lines of its fields.
    yaml: Option<&'a str>,
}

impl Document<'_> {
    /// Reads YAML.
    pub(super) fn yaml(&mut self, text: &str, limits: &mut Limits) {
        let before = self.out.mark();
        let mut waiting = Waiting::default();
        let parsed = text::yaml(text, limits, &mut |list, item| {
            self.item(list, item, Some(text), &mut waiting);
        });
        match parsed.fault {
            None => self.whole(parsed, Some(text), waiting, before),
            Some(_) => {
                self.out.undo(before);
                self.broken(parsed);
            }
        }
    }

    /// Reads the next value of a JSON text. One that cannot be read to its end is returned: it may yet be YAML.
    pub(super) fn json(&mut self, stream: &mut Stream<'_>, limits: &mut Limits) -> Option<Parsed> {
        let before = self.out.mark();
        let mut waiting = Waiting::default();
        let parsed =
            stream.read(limits, &mut |list, item| self.item(list, item, None, &mut waiting));
        match parsed.fault {
            None => {
                self.whole(parsed, None, waiting, before);
                None
            }
            Some(_) => {
                self.out.undo(before);
                Some(parsed)
            }
        }
    }

    /// A document that cannot be read to its end.
    pub(super) fn broken(&mut self, parsed: Parsed) {
        let Parsed { value, fault, open, .. } = parsed;
        let Some(Fault { line, cause }) = fault else { return };
        let lost = self.lost(&value, Some(open.as_deref()));
        self.complain(self.line_of(line), describe(&value), String::new(), cause, lost);
    }

    fn line_of(&self, inside: usize) -> usize {
        self.line + inside.max(1) - 1
    }

    /// An item of a list, or of what may turn out to be one.
    fn item(
        &mut self,
        list: &Map<String, Value>,
        item: Item,
        yaml: Option<&str>,
        waiting: &mut Waiting,
    ) {
        let has = |field: &str| item.value.get(field).is_some();
        // kubectl writes the kind of a list last, the API server first and not at the items
        let is_known = ["kind", "apiVersion"].iter().all(|field| list.contains_key(*field));
        if !(is_known || has("kind") && has("apiVersion")) {
            return waiting.push(item);
        }
        let field = |field: &str| list.get(field).and_then(Value::as_str).unwrap_or_default();
        self.read_item(item, list_of(field("apiVersion"), field("kind")), yaml);
    }

    fn read_item(&mut self, item: Item, of: Option<(&str, &str)>, yaml: Option<&str>) {
        let Item { nth, line, value } = item;
        let line = line.map_or(self.line, |line| self.line_of(line));
        self.object(&Place { at: &format!("items[{nth}]."), line, yaml }, typed(value, of));
    }

    /// The document was read to its end.
    fn whole(&mut self, parsed: Parsed, yaml: Option<&str>, waiting: Waiting, before: Mark) {
        let Parsed { mut value, doubled, listed, .. } = parsed;
        let (version, kind) = (text_of(&value, "apiVersion"), text_of(&value, "kind"));
        let of = list_of(version, kind);
        let is_list = is_list(version, kind);
        if let Some(Fault { line, cause }) = doubled
            && (is_list || is_known(version, kind))
        {
            // the API server refuses it: half of a policy would be dropped without a word
            self.out.undo(before);
            let lost = self.lost(&value, None);
            return self.complain(self.line_of(line), describe(&value), String::new(), cause, lost);
        }
        if !is_list {
            if listed {
                self.out.undo(before);
            }
            return self.object(&Place { at: "", line: self.line, yaml }, value);
        }
        if waiting.is_too_much {
            let cause = "too much before it: write `kind` before `items`".to_owned();
            let lost = self.lost(&value, None);
            self.complain(self.line, None, "kind".to_owned(), cause, lost);
        }
        for item in waiting.items {
            self.read_item(item, of, yaml);
        }
        match value.get_mut("items").map(Value::take) {
            None | Some(Value::Null) => {}
            // an alias to a list
            Some(Value::Array(items)) => {
                for (nth, value) in items.into_iter().enumerate() {
                    self.read_item(Item { nth, line: None, value }, of, yaml);
                }
            }
            Some(_) => {
                let (field, cause) = ("items".to_owned(), "must be a list".to_owned());
                let lost = self.lost(&value, None);
                self.complain(self.line, None, field, cause, lost);
            }
        }
    }

    /// Reads an object, or a list inside a list.
    fn object(&mut self, place: &Place<'_>, mut value: Value) {
        let (version, kind) = (text_of(&value, "apiVersion"), text_of(&value, "kind"));
        if is_list(version, kind) {
            let of = list_of(version, kind);
            if let Some(Value::Array(items)) = value.get_mut("items").map(Value::take) {
                for (nth, item) in items.into_iter().enumerate() {
                    let at = format!("{}items[{nth}].", place.at);
                    self.object(&Place { at: &at, ..*place }, typed(item, of));
                }
            }
            return;
        }
        let object = match (version, kind) {
            (NETWORKING, "NetworkPolicy") => policy(DIR_SOURCE, &value).map(Object::Policy),
            ("v1", "Pod") => pod(&value).map(Object::Pod),
            ("v1", "Namespace") => namespace(&value).map(Object::Namespace),
            ("v1", "Service") => service(&value).map(Object::Service),
            (DISCOVERY, "EndpointSlice") => slice(&value).map(Object::EndpointSlice),
            ("extensions/v1beta1", "NetworkPolicy") => {
                Err(FieldError::new("apiVersion", format!("must be {NETWORKING}")))
            }
            ("", _) | (_, "") => match missing(&value) {
                Some(field) => Err(FieldError::new(field, "missing")),
                // only comments
                None if value.is_null() => return,
                None => return self.out.skip(self.file, self.number, place.line),
            },
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
            Ok(object) => self.out.push(object),
            Err(error) => {
                let field = format!("{}{}", place.at, error.path);
                let line = place.yaml.and_then(|text| text::locate(text, &field));
                let line = line.map_or(place.line, |line| self.line_of(line));
                let lost = self.lost(&value, None);
                self.complain(line, describe(&value), field, error.cause, lost);
            }
        }
    }

    fn complain(
        &mut self,
        line: usize,
        object: Option<String>,
        field: String,
        cause: String,
        lost: Lost,
    ) {
        self.out.complain(ManifestError {
            file: self.file.to_owned(),
            document: Some(self.number),
            line: Some(line),
            object,
            field,
            cause,
            lost,
        });
    }

    /// Which policies are missing without this object, by what could be read of it; what stands in for them is noted.
    /// `unread`: it could not be read to its end, and of this outermost field it may say only half.
    fn lost(&mut self, value: &Value, unread: Option<Option<&str>>) -> Lost {
        let version = value.get("apiVersion").and_then(Value::as_str);
        let is_group = |group: &str| version.is_none_or(|version| version.starts_with(group));
        match value.get("kind").and_then(Value::as_str) {
            Some("NetworkPolicy") if is_group("networking.k8s.io/") || is_group("extensions/") => {}
            Some("List") if is_group("v1") => return self.any(),
            Some("NetworkPolicyList") if is_group("networking.k8s.io/") => return self.any(),
            Some(_) => return Lost::Object,
            // kubectl writes the kind of a list last
            None if value.get("items").is_some() && is_group("v1") => return self.any(),
            None if is_group("networking.k8s.io/") => {}
            None if unread.is_some() && is_group("v1") => return self.any(),
            None => return Lost::Object,
        }
        let metadata = value.get("metadata").filter(|metadata| metadata.is_object());
        let text = |field: &str| metadata.and_then(|of| of.get(field)).and_then(Value::as_str);
        let is_half = |field: &str| unread.is_some_and(|open| open == Some(field));
        let namespace = match (text("namespace"), metadata) {
            (Some(namespace), _) => namespace,
            // what was not read may say it
            (None, None) if unread.is_some() => return self.any(),
            (None, Some(_)) if is_half("metadata") => return self.any(),
            (None, Some(of)) if of.get("namespace").is_some_and(|of| !of.is_null()) => {
                return self.any();
            }
            (None, None) if value.get("metadata").is_some() => return self.any(),
            (None, _) => "default",
        };
        let unnamed = || format!("(document {} of {})", self.number, self.file.display());
        let name = text("name").map_or_else(unnamed, str::to_owned);
        let mut known = json!({"metadata": {"namespace": namespace, "name": name}});
        let spec = value.get("spec").filter(|_| unread.is_none());
        let policy = match (spec, known.as_object_mut()) {
            (Some(spec), Some(fields)) => {
                fields.insert("spec".to_owned(), spec.clone());
                closed::instead_of(DIR_SOURCE, &known)
            }
            _ => None,
        };
        let all = || closed::namespace(DIR_SOURCE, namespace, name.as_str());
        self.out.closed.push(policy.unwrap_or_else(all));
        Lost::Policy
    }

    fn any(&mut self) -> Lost {
        self.out.incomplete = true;
        Lost::Any
    }
}

/// Items that do not say their kind, until the list does.
#[derive(Default)]
struct Waiting {
    items: Vec<Item>,
    /// Of them in memory.
    size: usize,
    is_too_much: bool,
}

impl Waiting {
    fn push(&mut self, item: Item) {
        self.size += text::size(&item.value);
        self.is_too_much |= self.size > text::MAX_OBJECT;
        if self.is_too_much {
            self.items.clear();
        } else {
            self.items.push(item);
        }
    }
}

const NETWORKING: &str = "networking.k8s.io/v1";
const DISCOVERY: &str = "discovery.k8s.io/v1";
const UNENFORCED: &str = "policy.networking.k8s.io/v1alpha2";
const GROUPS: [&str; 3] = ["v1", NETWORKING, DISCOVERY];
const KINDS: [&str; 5] = ["NetworkPolicy", "Pod", "Namespace", "Service", "EndpointSlice"];

fn is_known(version: &str, kind: &str) -> bool {
    KINDS.contains(&kind) && (GROUPS.contains(&version) || version == "extensions/v1beta1")
}

fn is_list(version: &str, kind: &str) -> bool {
    version == "v1" && kind == "List" || list_of(version, kind).is_some()
}

/// What the items of a typed list are.
fn list_of(version: &str, kind: &str) -> Option<(&'static str, &'static str)> {
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

/// The items of a typed list as the API server sends it do not repeat their kind.
fn typed(mut item: Value, of: Option<(&str, &str)>) -> Value {
    if let (Some((version, kind)), Value::Object(fields)) = (of, &mut item) {
        fields.entry("apiVersion").or_insert_with(|| version.into());
        fields.entry("kind").or_insert_with(|| kind.into());
    }
    item
}

fn text_of<'a>(value: &'a Value, field: &str) -> &'a str {
    value.get(field).and_then(Value::as_str).unwrap_or_default()
}

/// Which field is missing from what seems to be meant as an object of a kind that is read here. `None` if it is
/// something else: the values of a chart, a tool's settings.
fn missing(value: &Value) -> Option<&'static str> {
    let fields = value.as_object()?;
    match (text_of(value, "apiVersion"), text_of(value, "kind")) {
        ("", kind) if KINDS.contains(&kind) || kind == "List" => return Some("apiVersion"),
        (version, "") if GROUPS.contains(&version) => return Some("kind"),
        ("", "") => {}
        _ => return None,
    }
    // a misspelt `Kind:` must not make a policy vanish
    let of_objects = ["apiversion", "kind", "metadata", "spec"];
    let is_meant = fields.keys().any(|key| of_objects.contains(&key.to_lowercase().as_str()));
    is_meant.then_some("apiVersion")
}

/// "policy default/web", as far as it says.
fn describe(value: &Value) -> Option<String> {
    let kind = match text_of(value, "kind") {
        "" => return None,
        "NetworkPolicy" => "policy".to_owned(),
        other => other.to_lowercase(),
    };
    let metadata = value.get("metadata");
    let text = |field: &str| metadata.and_then(|m| m.get(field)).and_then(Value::as_str);
    Some(match (text("namespace"), text("name")) {
        (Some(namespace), Some(name)) => format!("{kind} {namespace}/{name}"),
        (None, Some(name)) => format!("{kind} {name}"),
        _ => kind,
    })
}
