//! How much memory the text of a manifest may ask for.
//!
//! Aliases expand a kilobyte of YAML to gigabytes, and a few bytes of an ordinary mapping become several hundred in
//! memory. Each piece is paid for before it is made, so that a file is refused while it is still small.

use std::fmt;

use serde_json::Value;

/// How deeply collections may be nested. Objects of Kubernetes stay below 50; what reads them recurses.
const MAX_DEPTH: usize = 100;

/// What one object may take, in bytes of memory. The API server's own limit is about 1.5 MB of JSON for an object.
pub(crate) const MAX_OBJECT: usize = 64 << 20;

/// What anchors and aliases of one file may add by repeating, in bytes of memory.
const MAX_REPEATED: usize = 64 << 20;

/// The approximate size of a value, an empty mapping and an entry of a mapping beside its key's text.
const NODE: usize = 32;
const MAPPING: usize = 640;
const ENTRY: usize = 136;

/// What is left of the limits, for one file.
#[derive(Clone, Debug)]
pub(crate) struct Limits {
    object: usize,
    repeated: usize,
    /// The limit that was met.
    pub(super) met: Option<Limit>,
}

/// A limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Limit {
    Object,
    Repeated,
    Depth,
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Object => {
                write!(f, "one object needs more than {} MiB of memory; split it", MAX_OBJECT >> 20)
            }
            Self::Repeated => write!(
                f,
                "aliases repeat more than {} MiB in this file; write out what they stand for",
                MAX_REPEATED >> 20
            ),
            Self::Depth => write!(f, "nested more than {MAX_DEPTH} levels deep"),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self { object: MAX_OBJECT, repeated: MAX_REPEATED, met: None }
    }
}

impl Limits {
    /// Whether a limit was met.
    pub(crate) fn is_met(&self) -> bool {
        self.met.is_some()
    }

    /// An object of its own begins.
    pub(super) fn begin(&mut self) {
        self.object = MAX_OBJECT;
    }

    /// A scalar with this much text, or a sequence.
    pub(super) fn node(&mut self, text: usize) -> Result<(), Limit> {
        self.take(NODE + text)
    }

    /// A mapping.
    pub(super) fn mapping(&mut self) -> Result<(), Limit> {
        self.take(MAPPING)
    }

    /// An entry of a mapping, beside its value.
    pub(super) fn entry(&mut self, key: &str) -> Result<(), Limit> {
        self.take(ENTRY + key.len())
    }

    /// A copy of something for later use.
    pub(super) fn keep(&mut self, size: usize) -> Result<(), Limit> {
        pay(&mut self.repeated, size)
            .ok_or(Limit::Repeated)
            .inspect_err(|met| self.met = Some(*met))
    }

    /// A copy of something in another place.
    pub(super) fn repeat(&mut self, size: usize) -> Result<(), Limit> {
        self.keep(size)?;
        self.take(size)
    }

    /// Something at this depth, the outermost being 1.
    pub(super) fn depth(&mut self, depth: usize) -> Result<(), Limit> {
        if depth <= MAX_DEPTH {
            return Ok(());
        }
        self.met = Some(Limit::Depth);
        Err(Limit::Depth)
    }

    fn take(&mut self, size: usize) -> Result<(), Limit> {
        pay(&mut self.object, size).ok_or(Limit::Object).inspect_err(|met| self.met = Some(*met))
    }
}

fn pay(left: &mut usize, size: usize) -> Option<()> {
    *left = left.checked_sub(size)?;
    Some(())
}

/// What a value takes, and how deeply it is nested: 1 for a collection without collections.
pub(super) fn measure(value: &Value) -> (usize, usize) {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => (NODE, 0),
        Value::String(text) => (NODE + text.len(), 0),
        Value::Array(items) => items
            .iter()
            .map(measure)
            .fold((NODE, 1), |(size, depth), item| (size + item.0, depth.max(item.1 + 1))),
        Value::Object(fields) => fields.iter().fold((MAPPING, 1), |(size, depth), (key, value)| {
            let of = measure(value);
            (size + ENTRY + key.len() + of.0, depth.max(of.1 + 1))
        }),
    }
}

/// Whether a value is nested no deeper than manifests may be.
pub fn is_shallow(value: &Value) -> bool {
    measure(value).1 <= MAX_DEPTH
}

/// What a value takes.
pub(crate) fn size(value: &Value) -> usize {
    measure(value).0
}
