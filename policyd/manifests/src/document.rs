//! One document of a manifest: an object or a list of them.

use std::path::Path;

use podgate_policy::convert::FieldError;
use podgate_policy::model::Policy;
use podgate_policy::object::{Kind, Resource};
use serde_json::{Map, Value, json};

use crate::closed;
use crate::contents::{DIR_SOURCE, Lost, Manifest, ManifestError, Mark};
use crate::parse;
use crate::text::{self, Fault, Item, Limits, Parsed, Stream};
use crate::unenforced::{GROUP, UnenforcedKind};

/// Splits YAML into its documents and the line each starts at. `---` at the start of a line is a document
/// marker everywhere, also in a block scalar, so no parser is needed to find it.
pub(crate) fn documents(text: &str) -> impl Iterator<Item = (usize, &str)> {
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
pub(crate) struct Document<'a> {
    pub(crate) file: &'a Path,
    /// From 1.
    pub(crate) number: usize,
    /// Of the file, where it starts; from 1.
    pub(crate) line: usize,
    pub(crate) out: &'a mut Manifest,
}

/// The position of an object in its document.
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
    pub(crate) fn yaml(&mut self, text: &str, limits: &mut Limits) {
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
    pub(crate) fn json(&mut self, stream: &mut Stream<'_>, limits: &mut Limits) -> Option<Parsed> {
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
    pub(crate) fn broken(&mut self, parsed: Parsed) {
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
            ("extensions/v1beta1", "NetworkPolicy") => {
                Err(FieldError::new("apiVersion", format!("must be {}", Policy::API.version)))
            }
            ("", _) | (_, "") => match missing(&value) {
                Some(field) => Err(FieldError::new(field, "missing")),
                // only comments
                None if value.is_null() => return,
                None => return self.out.skip(self.file, self.number, place.line),
            },
            (version, kind) => match Kind::of_type(version, kind) {
                Some(kind) => parse::object(kind, DIR_SOURCE, &value),
                None => return self.pass_over(version, kind),
            },
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

    /// An object of a kind that is not read here. Kinds of policies that are not enforced are counted.
    fn pass_over(&mut self, version: &str, kind: &str) {
        match UnenforcedKind::of(version, kind) {
            Some(kind) => *self.out.unenforced.entry(kind).or_default() += 1,
            None => {
                tracing::debug!(file = %self.file.display(), version, kind, "ignoring an object");
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

    /// Which policies are missing without this object, as far as it could be read. Adds their substitutes to the output.
    /// `unread`: it could not be read to its end, and of this outermost field it may say only half.
    fn lost(&mut self, value: &Value, unread: Option<Option<&str>>) -> Lost {
        let version = value.get("apiVersion").and_then(Value::as_str);
        let is_group = |group: &str| version.is_none_or(|version| version.starts_with(group));
        match value.get("kind").and_then(Value::as_str) {
            Some("NetworkPolicy") if is_group("networking.k8s.io/") || is_group("extensions/") => {}
            Some("List") if is_group("v1") => return self.any(),
            Some("NetworkPolicyList") if is_group("networking.k8s.io/") => return self.any(),
            Some("ClusterNetworkPolicy" | "ClusterNetworkPolicyList") if is_group(GROUP) => {
                return Lost::ClusterPolicy;
            }
            Some(_) => return Lost::Object,
            // kubectl writes the kind of a list last
            None if value.get("items").is_some() && is_group("v1") => return self.any(),
            None if version.is_some_and(|version| version.starts_with(GROUP)) => {
                return Lost::ClusterPolicy;
            }
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

/// A version in which the unenforced kinds exist.
const UNENFORCED: &str = "policy.networking.k8s.io/v1alpha1";

fn is_known(version: &str, kind: &str) -> bool {
    is_known_kind(kind) && (is_known_version(version) || version == "extensions/v1beta1")
}

fn is_known_kind(kind: &str) -> bool {
    Kind::ALL.iter().any(|known| known.api().kind == kind)
}

fn is_known_version(version: &str) -> bool {
    Kind::ALL.iter().any(|known| known.versions().any(|known| known == version))
}

fn is_list(version: &str, kind: &str) -> bool {
    version == "v1" && kind == "List" || list_of(version, kind).is_some()
}

/// The `apiVersion` and `kind` of the items of a typed list: PodList, ...
fn list_of(version: &str, kind: &str) -> Option<(&'static str, &'static str)> {
    let item = kind.strip_suffix("List")?;
    if let Some(kind) = Kind::of_type(version, item) {
        return Some((kind.api().version, kind.api().kind));
    }
    if version.starts_with(GROUP) {
        let unenforced = UnenforcedKind::ALL.iter().find(|each| each.name() == item)?;
        // the version does not matter: none of them is enforced
        return Some((UNENFORCED, unenforced.name()));
    }
    None
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
        ("", kind) if is_known_kind(kind) || kind == "List" => return Some("apiVersion"),
        (version, "") if is_known_version(version) => return Some("kind"),
        ("", "") => {}
        _ => return None,
    }
    // a misspelt `Kind:` must not make a policy vanish
    let of_objects = ["apiversion", "kind", "metadata", "spec"];
    let is_meant = fields.keys().any(|key| of_objects.contains(&key.to_lowercase().as_str()));
    is_meant.then_some("apiVersion")
}

/// "policy default/web", or less if a field is missing.
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
