//! One look at the node, and what it takes to bring it where it should be.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::active::{Active, Candidate, Choice, KEPT, Rules};
use super::conflist::Conflist;
use super::directory::Directory;
use super::place::{Over, Put, TRIES, pause};
use super::plugins::Stamp;
use super::{Entry, InstallError, PLUGIN, failed, place};

/// Brings binary and entry to their places.
#[derive(Debug)]
pub struct Installer {
    dirs: Directory,
    rules: Rules,
    plugin: PathBuf,
    version: String,
    entry: Entry,
    placed: Option<Stamp>,
}

/// Whether pods that start now get a gate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// They do: these files say so, and no other is in use.
    InForce {
        /// Their names.
        files: Vec<String>,
    },
    /// They do not.
    Waiting {
        /// Why not.
        reason: String,
    },
}

/// What a pass has found and done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The outcome.
    pub standing: Standing,
    /// What it has changed, one line each.
    pub changes: Vec<String>,
    /// What is wrong with files, and which ones a runtime passes over.
    pub problems: Vec<String>,
    /// What else is worth knowing.
    pub notes: Vec<String>,
}

impl Installer {
    /// Looks whether the plugin's binary runs here; touches nothing yet.
    pub fn new(
        dirs: Directory,
        rules: Rules,
        plugin: Option<PathBuf>,
        entry: Entry,
    ) -> Result<Self, InstallError> {
        let beside = || Ok(std::env::current_exe()?.with_file_name(PLUGIN));
        let plugin = plugin
            .map_or_else(beside, Ok)
            .map_err(failed("find the plugin beside this program"))?;
        let version = version_of(&plugin)?;
        Ok(Self { dirs, rules, plugin, version, entry, placed: None })
    }

    /// The plugin's version.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// One pass. Doing it again finds nothing to do. With `edit` off only the binary is placed.
    pub fn pass(&mut self, edit: bool) -> Result<Report, InstallError> {
        let mut changes = Vec::new();
        // first: an entry whose binary is missing makes every pod fail, and CRI-O pass over the whole file
        changes.extend(self.place_binary()?);
        for _ in 0..TRIES {
            if let Some(mut report) = self.look(edit)? {
                report.changes.splice(0..0, changes);
                return Ok(report);
            }
            pause();
        }
        let standing = waiting("its configuration is being written again and again");
        Ok(Report { standing, changes, problems: Vec::new(), notes: Vec::new() })
    }

    /// What there is, what has been changed, and what is wrong with files. `None` if another program has written meanwhile
    /// what was about to be replaced.
    fn look(&self, edit: bool) -> Result<Option<Report>, InstallError> {
        let files = self.dirs.files()?;
        let Choice { networks, problems, doubts, unused } = self.dirs.choose(&files, &self.rules);
        let mut report = Report {
            standing: waiting(self.nothing(&files)),
            changes: Vec::new(),
            problems,
            notes: doubts.into_iter().chain(left_alone(&unused)).collect(),
        };
        let mut gated = Vec::new();
        for network in networks {
            let file = match network {
                Active::NoInterface { name } => {
                    let reason = "no plugin in it makes an interface for pods";
                    report.standing = waiting(cannot_take(&name, reason));
                    continue;
                }
                Active::Refused { name, reason } => {
                    // what is behind it in the order is left alone: it might not be in use at all
                    report.standing = waiting(cannot_take(&name, &reason));
                    return Ok(Some(report));
                }
                Active::List { name, text } => match self.with_entry(&text, &name)? {
                    None => name,
                    // with other options than now, but it is there
                    Some(_) if !edit && Conflist::parse(&text).is_ok_and(|list| list.gates()) => {
                        name
                    }
                    Some(_) if !edit => {
                        report.standing = waiting("policyd has not answered yet");
                        return Ok(Some(report));
                    }
                    Some(new) => {
                        if self.write(&name, &new, &text)? == Put::Overtaken {
                            return Ok(None);
                        }
                        report.changes.push(format!("put {PLUGIN} into {name}"));
                        name
                    }
                },
                Active::Single { .. } if !edit => {
                    report.standing = waiting("policyd has not answered yet");
                    return Ok(Some(report));
                }
                Active::Single { name, list, text } => {
                    let text = self.with_entry(&text, &name)?.unwrap_or(text);
                    if self.turn(over(&files, &name), &name, over(&files, &list), &list, &text)?
                        == Put::Overtaken
                    {
                        return Ok(None);
                    }
                    let change = format!("turned {name} into {list} with {PLUGIN} in it");
                    report.changes.push(change);
                    list
                }
            };
            gated.push(file);
        }
        if !gated.is_empty() {
            report.standing = Standing::InForce { files: gated };
        }
        Ok(Some(report))
    }

    /// Why new pods get no network.
    fn nothing(&self, files: &[Candidate]) -> String {
        match &self.rules.default_network {
            Some(name) if !files.is_empty() => {
                format!("no CNI configuration there of the network {name} (--default-network) yet")
            }
            _ => "no CNI configuration there yet: the primary plugin writes it".to_owned(),
        }
    }

    fn with_entry(&self, text: &str, name: &str) -> Result<Option<String>, InstallError> {
        let list = Conflist::parse(text).map_err(|e| InstallError::NotInForce {
            dir: self.dirs.conf().display().to_string(),
            reason: format!("{name}: {e}"),
        })?;
        Ok(list.with(&self.entry))
    }

    /// Writes a file of the directory that has been read; of a symbolic link its target.
    fn write(&self, name: &str, text: &str, read: &str) -> Result<Put, InstallError> {
        let path = self.dirs.conf().join(name);
        let real = fs::canonicalize(&path).unwrap_or(path);
        place::put(&real, text.as_bytes(), 0o644, Over::Text(read))
            .map_err(failed(format!("write {}", real.display())))
    }

    /// The list first, then the single file out of its way: it comes first in the order, so until then the
    /// runtime goes on with it, and it never finds neither.
    fn turn(
        &self,
        single_read: Over<'_>,
        single: &str,
        list_read: Over<'_>,
        list: &str,
        text: &str,
    ) -> Result<Put, InstallError> {
        let path = self.dirs.conf().join(single);
        let mode = fs::metadata(&path).map_or(0o644, |old| old.mode() & 0o7777);
        let list = self.dirs.conf().join(list);
        if place::put(&list, text.as_bytes(), mode, list_read)
            .map_err(failed(format!("write {}", list.display())))?
            == Put::Overtaken
        {
            return Ok(Put::Overtaken);
        }
        let kept = self.dirs.conf().join(format!("{single}{KEPT}"));
        place::rename(&path, &kept, single_read)
            .map_err(failed(format!("rename {}", path.display())))
    }

    fn place_binary(&mut self) -> Result<Option<String>, InstallError> {
        let path = self.dirs.bin().join(PLUGIN);
        if self.placed.is_some() && self.placed == Stamp::of(&path) {
            return Ok(None);
        }
        let new = fs::read(&self.plugin)
            .map_err(failed(format!("read plugin {}", self.plugin.display())))?;
        let same = fs::read(&path).is_ok_and(|old| old == new) && is_executable(&path);
        if !same {
            // a runtime's directory may not be there before its first plugin is
            fs::create_dir_all(self.dirs.bin())
                .map_err(failed(format!("create {}", self.dirs.bin().display())))?;
            // one that is there with another mode would keep it
            if path.exists() && !is_executable(&path) {
                place::remove(&path).map_err(failed(format!("remove {}", path.display())))?;
            }
            // nobody else has a binary of this name
            let _: Put = place::put(&path, &new, 0o755, Over::Anything)
                .map_err(failed(format!("write {}", path.display())))?;
        }
        self.placed = Stamp::of(&path);
        Ok((!same).then(|| format!("placed {} {}", path.display(), self.version)))
    }
}

/// What stood in a file of this name when the directory was read.
fn over<'a>(files: &'a [Candidate], name: &str) -> Over<'a> {
    match files.iter().find(|file| file.name == name).map(|file| &file.text) {
        None => Over::Nothing,
        Some(Ok(text)) => Over::Text(text),
        Some(Err(_)) => Over::Anything,
    }
}

fn left_alone(unused: &[String]) -> Option<String> {
    (!unused.is_empty()).then(|| {
        format!(
            "left alone, as new pods do not get it: {} (if the runtime is configured with max_conf_num or \
             cni_default_network, say so: --max-conf-num, --default-network)",
            unused.join(", ")
        )
    })
}

fn cannot_take(name: &str, reason: &str) -> String {
    format!("{name} cannot take {PLUGIN}: {reason}")
}

fn waiting(reason: impl Into<String>) -> Standing {
    Standing::Waiting { reason: reason.into() }
}

fn is_executable(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|found| found.mode() & 0o111 == 0o111)
}

/// Runs the binary as a person would: it says its version, and so that it can be executed on this machine.
fn version_of(plugin: &Path) -> Result<String, InstallError> {
    let wrong =
        |reason: String| InstallError::Plugin { path: plugin.display().to_string(), reason };
    let output = Command::new(plugin)
        .env_remove("CNI_COMMAND")
        .stdin(Stdio::null())
        .output()
        .map_err(|e| wrong(e.to_string()))?;
    let said = String::from_utf8_lossy(&output.stderr);
    let version = said.strip_prefix(PLUGIN).and_then(|rest| rest.split_once(':'));
    let (version, _) = version
        .ok_or_else(|| wrong(format!("it does not say that it is {PLUGIN}: {:?}", said.trim())))?;
    Ok(version.trim().to_owned())
}
