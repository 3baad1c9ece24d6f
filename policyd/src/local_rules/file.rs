//! The state file of the local rules: versioned JSON, replaced whole.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use podgate_contract::api::{DefaultMode, RuleSpec};
use podgate_policy::convert::FieldError;
use podgate_policy::model::ObjectKey;
use serde::{Deserialize, Serialize};

use super::rule::Rule;
use super::state::{Modes, PodEntry, State};

/// The layout of this build. Another number is refused: a rule must not be read as something that it does not say.
const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    version: u32,
    /// The number of the next rule.
    next: u32,
    node: FileModes,
    pods: Vec<FilePod>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileModes {
    ingress: DefaultMode,
    egress: DefaultMode,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FilePod {
    namespace: String,
    name: String,
    defaults: FileModes,
    rules: Vec<FileRule>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileRule {
    id: u32,
    rule: RuleSpec,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    comment: Option<String>,
    /// Seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expires: Option<u64>,
}

impl From<Modes> for FileModes {
    fn from(Modes { ingress, egress }: Modes) -> Self {
        Self { ingress, egress }
    }
}

impl From<FileModes> for Modes {
    fn from(FileModes { ingress, egress }: FileModes) -> Self {
        Self { ingress, egress }
    }
}

/// Reads the file. Nothing has been said yet if there is none. The error says what is wrong, and where.
pub(super) fn read(path: &Path) -> Result<State, String> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(State::default()),
        Err(error) => return Err(error.to_string()),
    };
    #[derive(Deserialize)]
    struct Version {
        version: u32,
    }
    let Version { version } = serde_json::from_slice(&text).map_err(|error| error.to_string())?;
    if version != VERSION {
        return Err(format!("version is {version}, this policyd reads {VERSION}"));
    }
    let File { version: _, next, node, pods } =
        serde_json::from_slice(&text).map_err(|error| error.to_string())?;
    let mut of = BTreeMap::new();
    for pod in pods {
        let key = ObjectKey::new(pod.namespace, pod.name);
        let read = |rule: FileRule| {
            let FileRule { id, rule, comment, expires } = rule;
            let read = Rule::read(id, rule, comment, expires);
            read.map_err(|field: FieldError| format!("rule {id} of {key}: {field}"))
        };
        let rules = pod.rules.into_iter().map(read).collect::<Result<Vec<_>, _>>()?;
        of.insert(key, PodEntry { rules, defaults: pod.defaults.into() });
    }
    let used = of.values().flat_map(|pod: &PodEntry| &pod.rules).map(Rule::id).max();
    // no number twice, whoever has edited the file
    Ok(State { next: next.max(used.unwrap_or(0).saturating_add(1)), node: node.into(), pods: of })
}

/// Replaces the file in one step: a crash leaves the old one or the new one.
pub(super) fn write(path: &Path, state: &State) -> io::Result<()> {
    let pods = state.pods.iter().map(|(key, pod)| FilePod {
        namespace: key.namespace.to_string(),
        name: key.name.to_string(),
        defaults: pod.defaults.into(),
        rules: pod.rules.iter().map(file_rule).collect(),
    });
    let file =
        File { version: VERSION, next: state.next, node: state.node.into(), pods: pods.collect() };
    let new = path.with_extension("json.new");
    let mut out =
        fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    serde_json::to_writer_pretty(&mut out, &file)?;
    out.write_all(b"\n")?;
    out.sync_all()?;
    fs::rename(&new, path)?;
    match path.parent() {
        Some(dir) => fs::File::open(dir)?.sync_all(),
        None => Ok(()),
    }
}

fn file_rule(rule: &Rule) -> FileRule {
    FileRule {
        id: rule.id(),
        rule: rule.spec.clone(),
        comment: rule.comment.clone(),
        expires: rule.expires,
    }
}
