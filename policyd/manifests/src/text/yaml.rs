//! One YAML document into plain data.
//!
//! The parser is libyaml's own in Rust: go-yaml, which kubectl reads with, is another port of the same, and accepts what
//! YAML 1.2 does not, as a multi-line quoted scalar whose last line starts at the key's column. What its events come to
//! is decided here, so that no alias is expanded before it is paid for.

use std::collections::{HashMap, HashSet};
use std::fmt::Write;
use std::io::{BufRead, BufReader, Read};
use std::panic::{AssertUnwindSafe, catch_unwind};

use libyaml_safer::{Event, EventData, Mark, Parser};
use serde_json::{Map, Value};

use super::limits::{Limit, measure};
use super::{Fault, Item, Items, Limits, Parsed, is_list, scalar};

/// The parser decodes a buffer at a time, four bytes for each character.
const BUFFER: usize = 16 * 1024;

/// Reads one document; `text` must not hold another.
pub(crate) fn read(text: &str, limits: &mut Limits, items: Items<'_>) -> Parsed {
    limits.begin();
    let mut composer = Composer {
        limits,
        items,
        frames: Vec::new(),
        anchors: HashMap::new(),
        root: None,
        doubled: None,
        listed: false,
    };
    // outside code that meets every byte of what people write: a slip of it must cost one document, not the thread
    let read = catch_unwind(AssertUnwindSafe(|| composer.read(text)));
    let fault = match read {
        Ok(Ok(())) => None,
        Ok(Err(fault)) => Some(fault),
        Err(_) => Some(Fault {
            line: 1,
            cause:
                "the YAML parser failed at this document; write it in another way, and report it"
                    .to_owned(),
        }),
    };
    composer.parsed(fault)
}

/// The line of the field at `path` (`spec.ingress[0].from`) in a document that can be read; of what is around it, if it
/// is not there.
pub(crate) fn locate(text: &str, path: &str) -> Option<usize> {
    catch_unwind(|| search(text, path)).ok().flatten()
}

fn search(text: &str, path: &str) -> Option<usize> {
    let mut parser = parser(text);
    let mut place = Place::default();
    let mut best = None;
    loop {
        let Event { data, start_mark, .. } = parser.parse().ok()?;
        let is_start = match &data {
            EventData::StreamEnd | EventData::DocumentEnd { .. } => return best,
            EventData::StreamStart { .. } | EventData::DocumentStart { .. } => continue,
            EventData::SequenceEnd | EventData::MappingEnd => {
                place.leave();
                continue;
            }
            EventData::SequenceStart { .. } => Some(Step::Item(None)),
            EventData::MappingStart { .. } => Some(Step::Key(None)),
            EventData::Scalar { .. } | EventData::Alias { .. } => None,
        };
        let scalar = match &data {
            EventData::Scalar { value, .. } => value,
            _ => "",
        };
        if place.step(scalar, is_start)
            && let Some(rest) = path.strip_prefix(place.path.as_str())
        {
            if rest.is_empty() {
                return Some(line(start_mark));
            }
            if rest.starts_with(['.', '[']) {
                best = Some(line(start_mark));
            }
        }
    }
}

/// Where [`search`] is.
#[derive(Default)]
struct Place {
    /// The collections around it, each with the length of the path up to it.
    around: Vec<(Step, usize)>,
    path: String,
}

/// Where it is inside one collection.
enum Step {
    /// The item, from 0.
    Item(Option<usize>),
    /// The key, if that has been read.
    Key(Option<()>),
}

impl Place {
    /// A node begins. True if it is an item or a key: `path` then leads to it.
    fn step(&mut self, scalar: &str, collection: Option<Step>) -> bool {
        let mut is_named = false;
        if let Some((step, length)) = self.around.last_mut() {
            match step {
                Step::Item(nth) => {
                    *nth = Some(nth.map_or(0, |nth| nth + 1));
                    self.path.truncate(*length);
                    let _ = write!(self.path, "[{}]", nth.unwrap_or_default());
                    is_named = true;
                }
                Step::Key(key @ None) => {
                    *key = Some(());
                    self.path.truncate(*length);
                    if *length > 0 {
                        self.path.push('.');
                    }
                    self.path.push_str(scalar);
                    is_named = true;
                }
                Step::Key(key) if collection.is_none() => *key = None,
                Step::Key(_) => {}
            }
        }
        if let Some(step) = collection {
            self.around.push((step, self.path.len()));
        }
        is_named
    }

    /// A collection ends.
    fn leave(&mut self) {
        if let Some((_, length)) = self.around.pop() {
            self.path.truncate(length);
        }
        if let Some((Step::Key(key), _)) = self.around.last_mut() {
            *key = None;
        }
    }
}

/// A parser of the text with a line end after its last line, as kubectl puts one there: the parser fails at a block scalar
/// that ends with the text.
fn parser(text: &str) -> Parser<impl BufRead> {
    let end: &[u8] = if text.ends_with('\n') { b"" } else { b"\n" };
    let mut parser = Parser::new();
    parser.set_input(BufReader::with_capacity(BUFFER, text.as_bytes().chain(end)));
    parser
}

fn line(mark: Mark) -> usize {
    usize::try_from(mark.line).unwrap_or(usize::MAX).saturating_add(1)
}

/// A collection that has not ended yet.
struct Frame {
    kind: FrameKind,
    anchor: Option<String>,
    line: usize,
}

enum FrameKind {
    Sequence(Vec<Value>),
    /// The items of a list: how many there were.
    Items(usize),
    Mapping {
        fields: Map<String, Value>,
        key: Option<String>,
        /// The value that comes is to be merged in.
        merge: bool,
        /// Keys that were merged in: they may be given once more.
        merged: HashSet<String>,
    },
}

struct Anchor {
    /// `None` while it has not ended.
    value: Option<Value>,
    size: usize,
    depth: usize,
}

struct Composer<'a> {
    limits: &'a mut Limits,
    items: Items<'a>,
    frames: Vec<Frame>,
    anchors: HashMap<String, Anchor>,
    root: Option<Value>,
    doubled: Option<Fault>,
    listed: bool,
}

impl Composer<'_> {
    fn read(&mut self, text: &str) -> Result<(), Fault> {
        let mut parser = parser(text);
        let mut documents = 0;
        loop {
            let event = parser.parse().map_err(|error| {
                let mark = error.problem_mark().or(error.context_mark());
                Fault { line: mark.map_or(1, line), cause: describe(&error) }
            })?;
            let at = line(event.start_mark);
            let fault = |cause: String| Fault { line: at, cause };
            match event.data {
                EventData::StreamStart { .. } | EventData::DocumentEnd { .. } => {}
                EventData::StreamEnd => return Ok(()),
                EventData::DocumentStart { .. } => {
                    documents += 1;
                    // kubectl reads no further, without a word: half a file would be in force
                    if documents > 1 {
                        return Err(fault("a second document must begin with \"---\"".to_owned()));
                    }
                }
                data => self.node(data, at).map_err(fault)?,
            }
        }
    }

    fn node(&mut self, data: EventData, line: usize) -> Result<(), String> {
        match data {
            EventData::Alias { anchor } => {
                let Some(known) = self.anchors.get(&anchor) else {
                    return Err(format!("no anchor &{anchor} before *{anchor}"));
                };
                let Some(value) = &known.value else {
                    return Err(format!("*{anchor} stands inside &{anchor}"));
                };
                let depth = self.frames.len() + known.depth;
                self.limits
                    .depth(depth)
                    .and_then(|()| self.limits.repeat(known.size))
                    .map_err(|limit| limit.to_string())?;
                let value = value.clone();
                self.put(value, line)
            }
            EventData::Scalar { anchor, tag, value, plain_implicit, .. } => {
                self.pay(|limits| limits.node(value.len()))?;
                if let Some(Frame {
                    kind: FrameKind::Mapping { key: key @ None, merge, .. }, ..
                }) = self.frames.last_mut()
                    && value == "<<"
                    && (plain_implicit || tag.as_deref() == Some("tag:yaml.org,2002:merge"))
                {
                    (*key, *merge) = (Some(value), true);
                    return Ok(());
                }
                let is_key = self.frames.last().is_some_and(|frame| {
                    matches!(frame.kind, FrameKind::Mapping { key: None, .. })
                });
                let value = match (tag, scalar::boolean(&value)) {
                    (None, _) if !plain_implicit => Value::String(value),
                    // as kubectl spells it
                    (None, Some(word)) if is_key => Value::Bool(word),
                    (tag, _) => scalar::resolve(tag.as_deref(), value)?,
                };
                self.keep(anchor, &value)?;
                self.put(value, line)
            }
            EventData::SequenceStart { anchor, .. } => {
                self.pay(|limits| limits.node(0))?;
                let kind = match self.frames.as_slice() {
                    [Frame { kind: FrameKind::Mapping { fields, key: Some(key), .. }, .. }]
                        if key == "items" && anchor.is_none() && is_list(fields) =>
                    {
                        self.listed = true;
                        self.limits.begin();
                        FrameKind::Items(0)
                    }
                    _ => FrameKind::Sequence(Vec::new()),
                };
                self.open(kind, anchor, line)
            }
            EventData::MappingStart { anchor, .. } => {
                self.pay(Limits::mapping)?;
                let fields = Map::new();
                self.open(
                    FrameKind::Mapping { fields, key: None, merge: false, merged: HashSet::new() },
                    anchor,
                    line,
                )
            }
            EventData::SequenceEnd | EventData::MappingEnd => {
                let Some(Frame { kind, anchor, line }) = self.frames.pop() else { return Ok(()) };
                let value = match kind {
                    FrameKind::Sequence(items) => Value::Array(items),
                    FrameKind::Items(_) => Value::Null,
                    FrameKind::Mapping { fields, .. } => Value::Object(fields),
                };
                self.keep(anchor, &value)?;
                self.put(value, line)
            }
            EventData::StreamStart { .. }
            | EventData::StreamEnd
            | EventData::DocumentStart { .. }
            | EventData::DocumentEnd { .. } => Ok(()),
        }
    }

    fn pay(&mut self, pay: impl FnOnce(&mut Limits) -> Result<(), Limit>) -> Result<(), String> {
        pay(self.limits).map_err(|limit| limit.to_string())
    }

    fn open(&mut self, kind: FrameKind, anchor: Option<String>, line: usize) -> Result<(), String> {
        let depth = self.frames.len() + 1;
        self.pay(|limits| limits.depth(depth))?;
        if let Some(anchor) = &anchor {
            self.anchors.insert(anchor.clone(), Anchor { value: None, size: 0, depth: 0 });
        }
        self.frames.push(Frame { kind, anchor, line });
        Ok(())
    }

    /// Remembers a value that has an anchor.
    fn keep(&mut self, anchor: Option<String>, value: &Value) -> Result<(), String> {
        let Some(anchor) = anchor else { return Ok(()) };
        let (size, depth) = measure(value);
        self.pay(|limits| limits.keep(size + anchor.len()))?;
        self.anchors.insert(anchor, Anchor { value: Some(value.clone()), size, depth });
        Ok(())
    }

    /// Puts a whole value where it belongs.
    fn put(&mut self, value: Value, line: usize) -> Result<(), String> {
        if let [Frame { kind: FrameKind::Mapping { fields, .. }, .. }, list] =
            self.frames.as_mut_slice()
            && let FrameKind::Items(count) = &mut list.kind
        {
            (self.items)(fields, Item { nth: *count, line: Some(line), value });
            *count += 1;
            self.limits.begin();
            return Ok(());
        }
        let Some(frame) = self.frames.last_mut() else {
            self.root = Some(value);
            return Ok(());
        };
        match &mut frame.kind {
            // handed on above
            FrameKind::Items(_) => {}
            FrameKind::Sequence(items) => items.push(value),
            FrameKind::Mapping { key: key @ None, .. } => {
                let new = scalar::key(value)?;
                self.limits.entry(&new).map_err(|limit| limit.to_string())?;
                *key = Some(new);
            }
            FrameKind::Mapping { fields, key, merge, merged } => {
                let key = key.take().unwrap_or_default();
                if std::mem::take(merge) {
                    return merge_into(fields, merged, value, self.limits);
                }
                let is_new = merged.remove(&key) || !fields.contains_key(&key);
                if !is_new && self.doubled.is_none() {
                    self.doubled = Some(Fault { line, cause: format!("{key:?} is given twice") });
                }
                fields.insert(key, value);
            }
        }
        Ok(())
    }

    /// What was read, also if that is not all.
    fn parsed(mut self, fault: Option<Fault>) -> Parsed {
        let mut open = None;
        let mut inner: Option<Value> = None;
        while let Some(frame) = self.frames.pop() {
            let value = match frame.kind {
                FrameKind::Sequence(items) => Value::Array(items),
                FrameKind::Items(_) => Value::Null,
                FrameKind::Mapping { mut fields, key, .. } => {
                    open = key.clone();
                    if let (Some(key), Some(inner)) = (key, inner.take()) {
                        fields.insert(key, inner);
                    }
                    Value::Object(fields)
                }
            };
            inner = Some(value);
        }
        Parsed {
            value: inner.or(self.root).unwrap_or_default(),
            fault,
            open,
            doubled: self.doubled,
            listed: self.listed,
        }
    }
}

/// `<<`: the fields of one mapping, or of several of which the first counts most. As in go-yaml v2, they replace what
/// stands before them.
fn merge_into(
    fields: &mut Map<String, Value>,
    merged: &mut HashSet<String>,
    value: Value,
    limits: &mut Limits,
) -> Result<(), String> {
    let from = match value {
        Value::Object(from) => vec![Value::Object(from)],
        Value::Array(all) => all,
        _ => Vec::new(),
    };
    if from.iter().any(|from| !from.is_object()) || from.is_empty() {
        return Err("\"<<\" merges mappings only".to_owned());
    }
    for (key, value) in from
        .into_iter()
        .rev()
        .filter_map(|from| match from {
            Value::Object(from) => Some(from),
            _ => None,
        })
        .flatten()
    {
        limits.entry(&key).map_err(|limit| limit.to_string())?;
        merged.insert(key.clone());
        fields.insert(key, value);
    }
    Ok(())
}

/// What the parser says, without the place.
fn describe(error: &libyaml_safer::Error) -> String {
    match error.context() {
        Some(context) => format!("{} {context}", error.problem()),
        None => error.problem().to_owned(),
    }
}
