//! Adds podgate's entry to the text of a conflist and removes it. All other bytes stay: order, spacing, numbers and unknown
//! keys. So removing the entry restores the text from before it was added.

use std::ops::Range;

use podgate_contract::plugin_conf::{BANDWIDTH, PLUGIN};
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::entry::Entry;
use super::libcni::{self, Library, Unfit};

/// The versions of the protocol that the plugin supports (`cni-plugin/src/spec/version.rs`; a test compares).
pub const VERSIONS: [&str; 4] = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// The text is no configuration that a runtime would accept.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NotAConflist(String);

/// A conflist's text, with the position of each plugin's configuration.
#[derive(Clone, Debug)]
pub struct Conflist<'a> {
    text: &'a str,
    plugins: Vec<Plugin>,
    /// The version that plugins are called with, for each version of the library.
    versions: [String; 2],
}

#[derive(Clone, Debug)]
struct Plugin {
    at: Range<usize>,
    kind: String,
}

/// Keys of lists and of single plugins' configurations. Others are ignored.
#[derive(Deserialize)]
struct Keys<'a> {
    name: Option<String>,
    #[serde(rename = "cniVersion")]
    version: Option<String>,
    #[serde(rename = "cniVersions")]
    versions: Option<Value>,
    #[serde(rename = "type")]
    kind: Option<String>,
    #[serde(borrow)]
    plugins: Option<Vec<&'a RawValue>>,
}

impl<'a> Keys<'a> {
    fn read(text: &'a str) -> Result<Self, NotAConflist> {
        // serde would read an array as the struct's fields in order
        if text.trim_start().starts_with('[') {
            return Err(NotAConflist("it is no object".into()));
        }
        serde_json::from_str(text).map_err(|e| NotAConflist(e.to_string()))
    }

    fn all_versions(&self) -> Result<[String; 2], NotAConflist> {
        let one = self.version.as_deref().unwrap_or_default();
        let of = |library| match libcni::version_of(one, self.versions.as_ref(), library) {
            // the version that plugins assume without one
            Ok(version) if version.is_empty() => Ok("0.1.0".to_owned()),
            Ok(version) => Ok(version),
            Err(Unfit::Invalid(reason) | Unfit::Unknown(reason)) => Err(NotAConflist(reason)),
        };
        Ok([of(Library::Before)?, of(Library::Since)?])
    }
}

impl<'a> Conflist<'a> {
    /// Reads a `.conflist` file.
    pub fn parse(text: &'a str) -> Result<Self, NotAConflist> {
        let keys = Keys::read(text)?;
        if keys.name.is_none() {
            return Err(NotAConflist("it has no name".into()));
        }
        let Some(list) = &keys.plugins else {
            return Err(NotAConflist("it has no plugins".into()));
        };
        let plugin = |raw: &&RawValue| {
            let start = raw.get().as_ptr() as usize - text.as_ptr() as usize;
            Ok(Plugin { at: start..start + raw.get().len(), kind: kind_of(raw.get())? })
        };
        let plugins = list.iter().map(plugin).collect::<Result<Vec<_>, _>>()?;
        if plugins.is_empty() {
            return Err(NotAConflist("its list of plugins is empty".into()));
        }
        Ok(Self { text, plugins, versions: keys.all_versions()? })
    }

    /// The plugins' types, in order.
    pub fn kinds(&self) -> impl Iterator<Item = &str> {
        self.plugins.iter().map(|plugin| plugin.kind.as_str())
    }

    /// Whether podgate is one of its plugins.
    pub fn has_podgate(&self) -> bool {
        self.kinds().any(|kind| kind == PLUGIN)
    }

    /// Why podgate cannot be in this list, if it cannot: every version of the runtimes' library must call it with a version
    /// that it supports, or no pod starts.
    pub fn refusal(&self) -> Option<String> {
        let [before, since] = &self.versions;
        let unknown = |version: &str| !VERSIONS.contains(&version);
        let supported = VERSIONS.join(", ");
        match (unknown(before), unknown(since)) {
            (false, false) => None,
            (true, false) => Some(format!(
                "runtimes with libcni before 1.2 do not read cniVersions and take its cniVersion to be {before}, \
                 podgate supports {supported}: write one of these as cniVersion too"
            )),
            (_, true) => {
                Some(format!("its cniVersion is {since}, podgate supports {supported}: raise it"))
            }
        }
    }

    /// The text with the entry, `None` if it has the right entry already.
    ///
    /// A missing entry is appended: the interfaces, addresses, qdiscs and programs of all other plugins exist by then, and no
    /// container has started yet. An existing one keeps its place if that is after another plugin and not before
    /// `bandwidth`, whose qdisc the gate must see to choose TCX.
    pub fn with(&self, entry: &Entry) -> Option<String> {
        let mut ours = (0..self.plugins.len()).filter(|&i| self.plugins[i].kind == PLUGIN);
        let Some(first) = ours.next() else { return Some(self.append(entry, None)) };
        let misplaced = first == 0
            || self.plugins[first..].iter().any(|plugin| plugin.kind == BANDWIDTH)
            || ours.next().is_some();
        let old = &self.text[self.plugins[first].at.clone()];
        if misplaced {
            let text = self.without()?;
            let rest = Conflist::parse(&text).ok()?;
            return Some(rest.append(entry, Some(old)));
        }
        let pairs = entry.in_place_of(Some(old))?;
        let at = &self.plugins[first].at;
        let mut text = self.text.to_owned();
        text.replace_range(at.clone(), &self.spell(&pairs, at.start));
        Some(text)
    }

    /// The text without podgate's entries. `None` if there is none, or no other plugin.
    pub fn without(&self) -> Option<String> {
        let ours = self.plugins.iter().position(|plugin| plugin.kind == PLUGIN)?;
        if self.kinds().all(|kind| kind == PLUGIN) {
            return None;
        }
        // with the comma that separates it from its neighbour
        let cut = match ours {
            0 => self.plugins[0].at.start..self.plugins[1].at.start,
            n => self.plugins[n - 1].at.end..self.plugins[n].at.end,
        };
        let mut text = self.text.to_owned();
        text.replace_range(cut, "");
        let again = Conflist::parse(&text).ok().and_then(|rest| rest.without());
        Some(again.unwrap_or(text))
    }

    fn append(&self, entry: &Entry, old: Option<&str>) -> String {
        let mut text = self.text.to_owned();
        // `parse` refuses an empty list
        let Some(last) = self.plugins.last() else { return text };
        // an entry that is right already is moved with its text
        let new = match (entry.in_place_of(old), old) {
            (Some(pairs), _) => self.spell(&pairs, last.at.start),
            (None, Some(old)) => old.to_owned(),
            (None, None) => return text,
        };
        let gap = match self.indent(last.at.start) {
            Some(indent) => format!(",\n{indent}"),
            None if text.contains('\n') => ", ".to_owned(),
            None => ",".to_owned(),
        };
        text.insert_str(last.at.end, &(gap + &new));
        text
    }

    /// The text before `at` on its line, if that is only white space.
    fn indent(&self, at: usize) -> Option<&str> {
        let line = self.text[..at].rfind('\n')? + 1;
        let before = &self.text[line..at];
        before.chars().all(|c| c == ' ' || c == '\t').then_some(before)
    }

    fn spell(&self, pairs: &[(String, String)], at: usize) -> String {
        let part =
            |(key, value): &(String, String)| format!("{}: {value}", Value::from(key.as_str()));
        let parts: Vec<_> = pairs.iter().map(part).collect();
        match self.indent(at) {
            Some(indent) if parts.len() > 1 => {
                let step = if indent.contains('\t') { "\t" } else { "  " };
                let gap = format!("\n{indent}{step}");
                format!("{{{gap}{}\n{indent}}}", parts.join(&format!(",{gap}")))
            }
            _ => format!("{{ {} }}", parts.join(", ")),
        }
    }
}

fn kind_of(plugin: &str) -> Result<String, NotAConflist> {
    let kind = Keys::read(plugin)?.kind.filter(|kind| !kind.is_empty());
    kind.ok_or_else(|| NotAConflist("a plugin in it has no type".into()))
}

/// Converts a single plugin's configuration (`.conf`, `.json`) to a list of one plugin, which a runtime treats alike.
pub fn from_conf(text: &str) -> Result<String, NotAConflist> {
    let keys = Keys::read(text)?;
    if keys.kind.as_deref().unwrap_or_default().is_empty() {
        let hint = if keys.plugins.is_some() { " (a list belongs into a .conflist)" } else { "" };
        return Err(NotAConflist(format!("it has no type{hint}")));
    }
    let mut list = "{\n".to_owned();
    let strings = [("cniVersion", keys.version), ("name", Some(keys.name.unwrap_or_default()))];
    for (key, value) in strings {
        if let Some(value) = value {
            list += &format!("  \"{key}\": {},\n", Value::from(value));
        }
    }
    list += &format!("  \"plugins\": [\n    {}\n  ]\n}}\n", text.trim().replace('\n', "\n    "));
    Ok(list)
}

#[cfg(test)]
mod tests;
