//! From the text of a manifest to plain data, as kubectl reads it, within bounds of memory and time.
//!
//! [`yaml`] and [`json`] both give a [`Parsed`]. The items of a list are handed on one by one: a dump of a whole cluster
//! is one document, and need not be in memory as a whole.

mod json;
mod limits;
mod scalar;
mod yaml;

use serde_json::{Map, Value};

pub(crate) use json::Stream;
pub use limits::is_shallow;
pub(crate) use limits::{Limits, MAX_OBJECT, size};
pub(crate) use scalar::boolean;
pub(crate) use yaml::{locate, read as yaml};

/// A mistake, and where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    /// Of the text that was read, from 1.
    pub(crate) line: usize,
    /// What is wrong.
    pub(crate) cause: String,
}

/// What was read of a document.
#[derive(Debug, Default)]
pub(crate) struct Parsed {
    /// The document; as far as it was read, if there is a fault. Items that were handed on are not in it.
    pub(crate) value: Value,
    /// Why the rest could not be read.
    pub(crate) fault: Option<Fault>,
    /// The field of the outermost object in which the fault is: what the value says of that one may be half of it.
    pub(crate) open: Option<String>,
    /// A key that occurs twice in one mapping. Its last value is in `value`.
    pub(crate) doubled: Option<Fault>,
    /// Whether items were handed on.
    pub(crate) listed: bool,
}

/// An item of the outermost object's `items`.
#[derive(Debug)]
pub(crate) struct Item {
    /// From 0.
    pub(crate) nth: usize,
    /// The line it starts at, from 1, if known.
    pub(crate) line: Option<usize>,
    /// It.
    pub(crate) value: Value,
}

/// Takes the items of a list as they are read, with what was read of the list before them. What comes of them counts
/// only if the whole document can be read, and is a list.
pub(crate) type Items<'a> = &'a mut dyn FnMut(&Map<String, Value>, Item);

/// Whether the items of the outermost object are handed on, by what has been read of it: kubectl writes `kind` last.
fn is_list(outermost: &Map<String, Value>) -> bool {
    match outermost.get("kind") {
        None => true,
        Some(kind) => kind.as_str().is_some_and(|kind| kind.ends_with("List")),
    }
}
