//! Reads one configuration file as the runtimes do: containerd and CRI-O both use libcni, whose versions differ. Pure; `tests/tests/runtime_install_rules.rs` compares it with the library itself.
//!
//! If the library accepts a file that podgate cannot edit, podgate must report that file and not use the next one. So this is
//! as lenient as the library, not as strict as [`super::conflist`].

use serde_json::{Map, Value};

/// A version of the library.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Library {
    /// libcni up to 1.1: containerd 1.6 and 1.7, CRI-O up to 1.29.
    Before,
    /// libcni 1.3: containerd 2.1. Loads plugins from a directory beside the list, reads `cniVersions`.
    Since,
}

impl Library {
    /// Both versions. One between them (libcni 1.2) has some of the rules of the one and some of the other.
    pub const ALL: [Self; 2] = [Self::Before, Self::Since];
}

/// The directory with the network's name in the configuration directory: libcni 1.3 loads plugins from there, unless the
/// list has `loadOnlyInlinedPlugins`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum PluginDir {
    /// No such directory, or no `.conf` in it.
    Nothing,
    /// These files.
    Plugins(Vec<String>),
    /// It cannot be listed, or one of the files is no plugin's configuration.
    Broken(String),
}

/// A network that new pods may get.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Network {
    /// Its name, as the file gives it: may be empty.
    pub(super) name: String,
    /// The `cniVersion` that its plugins are called with: may be empty.
    pub(super) version: String,
    /// The types of the plugins in the file itself, in order.
    pub(super) kinds: Vec<String>,
    /// The plugins that libcni 1.3 loads after them; older versions do not.
    pub(super) plugin_dir: PluginDir,
}

/// Why a file gives no network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Unfit {
    /// The library refuses it.
    Invalid(String),
    /// This program cannot read it, and the library may.
    Unknown(String),
}

impl Unfit {
    /// The cause as text.
    pub(super) fn reason(self) -> String {
        match self {
            Self::Invalid(reason) | Self::Unknown(reason) => reason,
        }
    }
}

const INLINED_ONLY: &str = "loadOnlyInlinedPlugins";

fn invalid<T>(reason: impl Into<String>) -> Result<T, Unfit> {
    Err(Unfit::Invalid(reason.into()))
}

/// Parses JSON as Go does, as far as possible.
fn json(text: &str) -> Result<Map<String, Value>, Unfit> {
    match serde_json::from_str(text) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(_) => invalid("it is no object"),
        Err(error) => {
            let error = error.to_string();
            // Go allows deeper nesting, and replaces half a surrogate pair by U+FFFD
            let differs =
                ["recursion limit", "surrogate", "hex escape"].iter().any(|e| error.contains(e));
            Err(if differs { Unfit::Unknown(error) } else { Unfit::Invalid(error) })
        }
    }
}

/// Reads a `.conflist`. `plugin_dir` reads the directory with a network's name.
pub(super) fn list(
    text: &str,
    library: Library,
    plugin_dir: impl Fn(&str) -> PluginDir,
) -> Result<Network, Unfit> {
    let map = json(text)?;
    let Some(Value::String(name)) = map.get("name") else { return invalid("it has no name") };
    let version = match map.get("cniVersion") {
        None => "",
        Some(Value::String(version)) => version,
        Some(other) => return invalid(format!("its cniVersion is {other}")),
    };
    let version = version_of(version, map.get("cniVersions"), library)?;
    match library {
        Library::Before => match map.get("disableCheck") {
            None | Some(Value::Bool(_)) => {}
            Some(other) => return invalid(format!("its disableCheck is {other}")),
        },
        Library::Since => {
            for key in ["disableCheck", "disableGC", INLINED_ONLY] {
                flag(&map, key)?;
            }
        }
    }
    let inlined_only = flag(&map, INLINED_ONLY).unwrap_or_default();
    let kinds = match (map.get("plugins"), library) {
        (None, Library::Since) if !inlined_only => Vec::new(),
        (None, _) => return invalid("it has no plugins"),
        (Some(Value::Array(plugins)), _) if plugins.is_empty() => {
            return invalid("its list of plugins is empty");
        }
        (Some(Value::Array(plugins)), _) => {
            plugins.iter().map(|plugin| kind(plugin, "a plugin in it")).collect::<Result<_, _>>()?
        }
        (Some(_), _) => return invalid("its plugins are no list"),
    };
    let plugin_dir = if inlined_only { PluginDir::Nothing } else { plugin_dir(name) };
    match (&plugin_dir, library) {
        (PluginDir::Broken(reason), Library::Since) => {
            return invalid(format!("libcni 1.3 loads plugins from {name:?} beside it: {reason}"));
        }
        (PluginDir::Nothing, _) if kinds.is_empty() => return invalid("it has no plugins"),
        _ => {}
    }
    Ok(Network { name: name.clone(), version, kinds, plugin_dir })
}

/// Checks a plugin's configuration in the directory with the network's name.
pub(super) fn plugin(text: &str) -> Result<(), Unfit> {
    kind(&Value::Object(json(text)?), "it").map(drop)
}

/// Reads a `.conf` or `.json` for a single plugin. The library converts it to a list and loads no other plugins.
pub(super) fn single(text: &str) -> Result<Network, Unfit> {
    let map = json(text)?;
    let kind = kind(&Value::Object(map.clone()), "it").map_err(|unfit| match unfit {
        Unfit::Invalid(reason) if map.contains_key("plugins") => {
            Unfit::Invalid(format!("{reason} (a list belongs into a .conflist)"))
        }
        other => other,
    })?;
    let text = |key| Ok::<_, Unfit>(string(&map, key)?.unwrap_or_default());
    let (name, version) = (text("name")?, text("cniVersion")?);
    Ok(Network { name, version, kinds: vec![kind], plugin_dir: PluginDir::Nothing })
}

/// `true`, `false`, or one of these as a string of any case.
fn flag(map: &Map<String, Value>, key: &str) -> Result<bool, Unfit> {
    match map.get(key) {
        None => Ok(false),
        Some(Value::Bool(value)) => Ok(*value),
        Some(Value::String(text)) if text.eq_ignore_ascii_case("true") => Ok(true),
        Some(Value::String(text)) if text.eq_ignore_ascii_case("false") => Ok(false),
        Some(other) => invalid(format!("its {key} is {other}")),
    }
}

/// The version that plugins are called with, of `cniVersion` ("" for none) and `cniVersions`.
pub(super) fn version_of(
    one: &str,
    several: Option<&Value>,
    library: Library,
) -> Result<String, Unfit> {
    let (Some(several), Library::Since) = (several, library) else { return Ok(one.to_owned()) };
    let Value::Array(several) = several else {
        return invalid(format!("its cniVersions are {several}"));
    };
    let mut known: Vec<(Vec<i64>, &str)> = Vec::new();
    let all = several.iter().map(|value| value.as_str().ok_or(value));
    for text in all.chain((!one.is_empty()).then_some(Ok(one))) {
        let parsed = text.ok().and_then(|text| Some((parsed(text)?, text)));
        match parsed {
            None => return invalid("its cniVersions hold something that is no version"),
            // the newest that libcni 1.3 knows
            Some((numbers, text)) if numbers <= vec![1, 1, 0] => known.push((numbers, text)),
            Some(_) => {}
        }
    }
    known.sort();
    known.dedup();
    if let [.., (before, _), (last, _)] = &known[..]
        && before == last
    {
        // the order in which the library sorts these two is not defined
        return Err(Unfit::Unknown("its cniVersions spell one version in two ways".into()));
    }
    Ok(known.last().map_or(one, |(_, text)| text).to_owned())
}

/// Up to three numbers, of which the first must be there; nothing at all means 0.1.0.
fn parsed(text: &str) -> Option<Vec<i64>> {
    if text.is_empty() {
        return Some(vec![0, 1, 0]);
    }
    let mut numbers = text.split('.').map(|part| part.parse().ok()).collect::<Option<Vec<_>>>()?;
    if numbers.len() > 3 {
        return None;
    }
    numbers.resize(3, 0);
    Some(numbers)
}

/// The type of a plugin's configuration. Go decodes it into a struct: keys match in any case, values must have the field's
/// type.
fn kind(plugin: &Value, what: &str) -> Result<String, Unfit> {
    let empty = Map::new();
    let map = match plugin {
        Value::Object(map) => map,
        Value::Null => &empty,
        _ => return invalid(format!("{what} is no object")),
    };
    for key in ["name", "cniVersion"] {
        string(map, key)?;
    }
    object(map, what, "capabilities", |inner| {
        match inner.iter().find(|(_, value)| !matches!(value, Value::Null | Value::Bool(_))) {
            None => Ok(()),
            Some((name, value)) => invalid(format!("{what} has the capability {name} {value}")),
        }
    })?;
    object(map, what, "ipam", |inner| string(inner, "type").map(drop))?;
    object(map, what, "dns", |inner| {
        string(inner, "domain")?;
        for key in ["nameservers", "search", "options"] {
            let strings = |value: &Value| match value {
                Value::Null => true,
                Value::Array(all) => {
                    all.iter().all(|v| matches!(v, Value::Null | Value::String(_)))
                }
                _ => false,
            };
            if !any_case(inner, key).all(strings) {
                return invalid(format!("{what} has {key} that are no strings"));
            }
        }
        Ok(())
    })?;
    object(map, what, "prevResult", |_| Ok(()))?;
    match string(map, "type")? {
        Some(kind) if !kind.is_empty() => Ok(kind),
        _ => invalid(format!("{what} has no type")),
    }
}

/// An object, which may be missing or `null`, and is checked otherwise.
fn object(
    map: &Map<String, Value>,
    what: &str,
    key: &str,
    check: impl Fn(&Map<String, Value>) -> Result<(), Unfit>,
) -> Result<(), Unfit> {
    for value in any_case(map, key) {
        match value {
            Value::Null => {}
            Value::Object(inner) => check(inner)?,
            other => return invalid(format!("{what} has {key} {other}")),
        }
    }
    Ok(())
}

/// A string, which may be missing or `null`.
fn string(map: &Map<String, Value>, key: &str) -> Result<Option<String>, Unfit> {
    let mut found = None;
    for value in any_case(map, key) {
        match value {
            Value::Null => {}
            Value::String(text) => found = Some(text.clone()),
            other => return invalid(format!("{key} is {other}")),
        }
    }
    Ok(found)
}

fn any_case<'a>(map: &'a Map<String, Value>, key: &str) -> impl Iterator<Item = &'a Value> {
    map.iter().filter(move |(found, _)| found.eq_ignore_ascii_case(key)).map(|(_, value)| value)
}
