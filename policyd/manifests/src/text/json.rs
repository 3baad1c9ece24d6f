//! JSON values one after another, into plain data.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::limits::Limit;
use super::{Fault, Item, Items, Limits, Parsed, is_list};

/// The values of a text, as many as there are.
pub(crate) struct Stream<'t> {
    rest: &'t str,
    line: usize,
}

impl<'t> Stream<'t> {
    pub(crate) fn new(text: &'t str) -> Self {
        Self { rest: text, line: 1 }
    }

    /// What has not been read, without leading white space, and the line that it begins on; `None` if that is nothing.
    pub(crate) fn rest(&mut self) -> Option<(usize, &'t str)> {
        let rest = self.rest.trim_start_matches([' ', '\t', '\r', '\n']);
        self.skip(self.rest.len() - rest.len());
        (!rest.is_empty()).then_some((self.line, rest))
    }

    /// The next value, an object. After a fault there is no next one.
    pub(crate) fn read(&mut self, limits: &mut Limits, items: Items<'_>) -> Parsed {
        limits.begin();
        let mut parsed = Parsed::default();
        let mut deserializer = serde_json::Deserializer::from_str(self.rest);
        let root = Root { limits, items, parsed: &mut parsed };
        match root.deserialize(&mut deserializer) {
            Ok(()) => self.skip(deserializer.into_iter::<IgnoredAny>().byte_offset()),
            Err(error) => {
                let cause = match limits.met {
                    Some(limit) => limit.to_string(),
                    None => plain(&error),
                };
                parsed.fault = Some(Fault { line: error.line(), cause });
            }
        }
        parsed
    }

    fn skip(&mut self, bytes: usize) {
        let (read, rest) = self.rest.split_at(bytes);
        self.line += read.bytes().filter(|byte| *byte == b'\n').count();
        self.rest = rest;
    }
}

/// The error without the place.
fn plain(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.rsplit_once(" at line ").map_or(text.as_str(), |(cause, _)| cause).to_owned()
}

/// The outermost value. What is read of an object stays when the rest cannot be.
struct Root<'a, 'i> {
    limits: &'a mut Limits,
    items: Items<'i>,
    parsed: &'a mut Parsed,
}

impl<'de> DeserializeSeed<'de> for Root<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Root<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Self { limits, items, parsed } = self;
        limits.mapping().map_err(custom)?;
        parsed.value = Value::Object(Map::new());
        while let Some(key) = map.next_key::<String>()? {
            limits.entry(&key).map_err(custom)?;
            let Value::Object(fields) = &mut parsed.value else { break };
            let is_listed = key == "items" && is_list(fields);
            parsed.open = Some(key.clone());
            let mut doubled = parsed.doubled.take();
            let list = List { items, list: fields, listed: &mut parsed.listed };
            let list = is_listed.then_some(list);
            let value = map.next_value_seed(Node { limits, doubled: &mut doubled, depth: 2, list });
            parsed.doubled = doubled;
            let value = value?;
            note(&mut parsed.doubled, fields, &key);
            fields.insert(key, value);
            parsed.open = None;
        }
        Ok(())
    }
}

/// A value inside the outermost one.
struct Node<'a> {
    limits: &'a mut Limits,
    doubled: &'a mut Option<Fault>,
    depth: usize,
    /// Where its items go, if it is a list's.
    list: Option<List<'a>>,
}

struct List<'a> {
    items: Items<'a>,
    /// What was read of the list before.
    list: &'a Map<String, Value>,
    /// Set if there are any.
    listed: &'a mut bool,
}

impl<'de> DeserializeSeed<'de> for Node<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Node<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let Self { limits, doubled, depth, list: _ } = self;
        limits.depth(depth).and_then(|()| limits.mapping()).map_err(custom)?;
        let mut fields = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            limits.entry(&key).map_err(custom)?;
            let value = map.next_value_seed(inner(limits, doubled, depth))?;
            note(doubled, &fields, &key);
            fields.insert(key, value);
        }
        Ok(Value::Object(fields))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let Self { limits, doubled, depth, list } = self;
        limits.depth(depth).and_then(|()| limits.node(0)).map_err(custom)?;
        if let Some(List { items, list, listed }) = list {
            *listed = true;
            limits.begin();
            let mut nth = 0;
            while let Some(value) = seq.next_element_seed(inner(limits, doubled, depth))? {
                items(list, Item { nth, line: None, value });
                nth += 1;
                limits.begin();
            }
            return Ok(Value::Null);
        }
        let mut items = Vec::new();
        while let Some(item) = seq.next_element_seed(inner(limits, doubled, depth))? {
            items.push(item);
        }
        Ok(Value::Array(items))
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        self.scalar(0, value)
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        self.scalar(0, value)
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        self.scalar(0, value)
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        self.scalar(0, value)
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        self.scalar(value.len(), value)
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        self.scalar(0, Value::Null)
    }
}

fn inner<'a>(limits: &'a mut Limits, doubled: &'a mut Option<Fault>, depth: usize) -> Node<'a> {
    Node { limits, doubled, depth: depth + 1, list: None }
}

impl Node<'_> {
    fn scalar<E: Error>(self, text: usize, value: impl Into<Value>) -> Result<Value, E> {
        self.limits.node(text).map_err(custom)?;
        Ok(value.into())
    }
}

fn note(doubled: &mut Option<Fault>, fields: &Map<String, Value>, key: &str) {
    if doubled.is_none() && fields.contains_key(key) {
        *doubled = Some(Fault { line: 0, cause: format!("{key:?} is given twice") });
    }
}

fn custom<E: Error>(limit: Limit) -> E {
    E::custom(limit)
}
