//! Compares the node's CNI directories with what they should hold, and edits them.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use podgate_bpf::features;
use podgate_contract::plugin_conf::PLUGIN;

use super::active::{Active, BACKUP_SUFFIX, Candidate, Choice, Rules};
use super::atomic_file::{Expected, MAX_ATTEMPTS, WriteOutcome, wait_for_writer};
use super::conflist::Conflist;
use super::directory::Directory;
use super::{Entry, InstallError, atomic_file, bandwidth, failed};
use crate::file_stamp::FileStamp;

/// Installs the plugin's binary and its entry in the conflist.
#[derive(Debug)]
pub struct Installer {
    dirs: Directory,
    rules: Rules,
    plugin: PathBuf,
    version: String,
    entry: Entry,
    installed: Option<FileStamp>,
    has_tcx: Option<bool>,
}

/// What to do with the entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Edit {
    /// Add it where it is missing.
    Add,
    /// Leave it as it is: policyd is not ready yet.
    Wait,
    /// Add it although policyd cannot enforce, for this reason: the plugin refuses pods or holds them.
    Refuse(String),
    /// Remove it because policyd cannot enforce, for this reason: pods start without a gate.
    Remove(String),
}

/// Whether new pods get a gate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InstallState {
    /// They do: every configuration file in use has the entry.
    InForce {
        /// Names of those files.
        files: Vec<String>,
    },
    /// They are refused or held by the plugin: the entry is there, and policyd cannot enforce.
    Refusing {
        /// policyd's error.
        reason: String,
    },
    /// They get none.
    Waiting {
        /// The cause.
        reason: String,
    },
}

/// Result of [`Installer::reconcile`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Whether new pods get a gate.
    pub state: InstallState,
    /// The edits, one line each.
    pub changes: Vec<String>,
    /// Invalid files, and files that a runtime skips.
    pub problems: Vec<String>,
    /// Why some new pods will fail with the files in use.
    pub warnings: Vec<String>,
    /// Other information.
    pub notes: Vec<String>,
}

impl Installer {
    /// Checks that the plugin's binary can be executed. Changes nothing.
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
        let has_tcx = features::btf_has_tcx();
        Ok(Self { dirs, rules, plugin, version, entry, installed: None, has_tcx })
    }

    /// The plugin's version.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Edits the files once. Idempotent: called again it changes nothing.
    pub fn reconcile(&mut self, edit: &Edit) -> Result<Report, InstallError> {
        let mut changes = Vec::new();
        // before the entry: one without its binary makes every pod fail, and CRI-O skip the whole file
        changes.extend(self.install_binary()?);
        for _ in 0..MAX_ATTEMPTS {
            if let Some(mut report) = self.inspect(edit)? {
                report.changes.splice(0..0, changes);
                return Ok(report);
            }
            wait_for_writer();
        }
        let state = waiting("another program keeps writing its configuration");
        Ok(Report { state, changes, problems: Vec::new(), warnings: Vec::new(), notes: Vec::new() })
    }

    /// Reads the files, edits those in use and reports. `None` if another program has written a file that was about to be
    /// replaced.
    fn inspect(&self, edit: &Edit) -> Result<Option<Report>, InstallError> {
        let files = self.dirs.files()?;
        let Choice { networks, problems, doubts, unused } = self.dirs.choose(&files, &self.rules);
        let mut report = Report {
            state: waiting(self.no_network(&files)),
            changes: Vec::new(),
            problems,
            warnings: Vec::new(),
            notes: doubts.into_iter().chain(not_edited(&unused)).collect(),
        };
        if let Edit::Remove(reason) = edit {
            report.problems.push(reason.clone());
        }
        let mut gated = Vec::new();
        for network in networks {
            let file = match network {
                Active::NoInterface { name } => {
                    let reason = "no plugin in it makes an interface for pods";
                    report.state = waiting(cannot_take(&name, reason));
                    continue;
                }
                Active::Refused { name, reason } => {
                    // the files after it are not edited: they may not be in use at all
                    report.state = waiting(cannot_take(&name, &reason));
                    return Ok(Some(report));
                }
                Active::List { name, text } => {
                    let list = self.parse(&name, &text)?;
                    let new = match edit {
                        Edit::Add | Edit::Refuse(_) => {
                            list.with(&bandwidth::entry_for(&self.entry, list.kinds()))
                        }
                        // the entry is there, perhaps with other options
                        Edit::Wait if list.has_podgate() => None,
                        Edit::Wait => {
                            report.state = waiting(NOT_READY);
                            return Ok(Some(report));
                        }
                        Edit::Remove(_) => {
                            report.state = waiting(ALLOWED);
                            if let Some(new) = list.without() {
                                if self.write(&name, &new, &text)? == WriteOutcome::Conflict {
                                    return Ok(None);
                                }
                                report.changes.push(format!("removed {PLUGIN} from {name}"));
                            }
                            continue;
                        }
                    };
                    report.warnings.extend(bandwidth::conflict(&name, list.kinds(), self.has_tcx));
                    let itself = bandwidth::limits_itself(&name, &self.entry, list.kinds());
                    report.warnings.extend(itself);
                    if let Some(new) = new {
                        if self.write(&name, &new, &text)? == WriteOutcome::Conflict {
                            return Ok(None);
                        }
                        report.changes.push(format!("added {PLUGIN} to {name}"));
                    }
                    name
                }
                Active::Single { name, list, text } => {
                    match edit {
                        Edit::Add | Edit::Refuse(_) => {}
                        Edit::Wait => {
                            report.state = waiting(NOT_READY);
                            return Ok(Some(report));
                        }
                        Edit::Remove(_) => {
                            report.state = waiting(ALLOWED);
                            continue;
                        }
                    }
                    let text = self.parse(&name, &text)?.with(&self.entry).unwrap_or(text);
                    if self.convert_to_list(
                        expected(&files, &name),
                        &name,
                        expected(&files, &list),
                        &list,
                        &text,
                    )? == WriteOutcome::Conflict
                    {
                        return Ok(None);
                    }
                    let change = format!("converted {name} to {list} with {PLUGIN} in it");
                    report.changes.push(change);
                    list
                }
            };
            gated.push(file);
        }
        if !gated.is_empty() {
            report.state = match edit {
                Edit::Refuse(reason) => InstallState::Refusing { reason: reason.clone() },
                _ => InstallState::InForce { files: gated },
            };
        }
        Ok(Some(report))
    }

    /// Why new pods get no network.
    fn no_network(&self, files: &[Candidate]) -> String {
        match &self.rules.default_network {
            Some(name) if !files.is_empty() => {
                format!("no CNI configuration there of the network {name} (--default-network) yet")
            }
            _ => "no CNI configuration there yet: the primary plugin writes it".to_owned(),
        }
    }

    fn parse<'a>(&self, name: &str, text: &'a str) -> Result<Conflist<'a>, InstallError> {
        Conflist::parse(text).map_err(|e| InstallError::NotInForce {
            dir: self.dirs.conf().display().to_string(),
            reason: format!("{name}: {e}"),
        })
    }

    /// Replaces a file of the directory if it still has the content `read`. Of a symbolic link it replaces the target.
    fn write(&self, name: &str, text: &str, read: &str) -> Result<WriteOutcome, InstallError> {
        let path = self.dirs.conf().join(name);
        let real = fs::canonicalize(&path).unwrap_or(path);
        atomic_file::write(&real, text.as_bytes(), 0o644, Expected::Text(read))
            .map_err(failed(format!("write {}", real.display())))
    }

    /// Replaces a single plugin's file by a list. The list is written first and the file renamed then: it sorts before the
    /// list, so the runtime uses it until then and never finds neither.
    fn convert_to_list(
        &self,
        single_expected: Expected<'_>,
        single: &str,
        list_expected: Expected<'_>,
        list: &str,
        text: &str,
    ) -> Result<WriteOutcome, InstallError> {
        let path = self.dirs.conf().join(single);
        let mode = fs::metadata(&path).map_or(0o644, |old| old.mode() & 0o7777);
        let list = self.dirs.conf().join(list);
        if atomic_file::write(&list, text.as_bytes(), mode, list_expected)
            .map_err(failed(format!("write {}", list.display())))?
            == WriteOutcome::Conflict
        {
            return Ok(WriteOutcome::Conflict);
        }
        let backup = self.dirs.conf().join(format!("{single}{BACKUP_SUFFIX}"));
        atomic_file::rename(&path, &backup, single_expected)
            .map_err(failed(format!("rename {}", path.display())))
    }

    fn install_binary(&mut self) -> Result<Option<String>, InstallError> {
        let path = self.dirs.bin().join(PLUGIN);
        if self.installed.is_some() && self.installed == FileStamp::at(&path) {
            return Ok(None);
        }
        let new = fs::read(&self.plugin)
            .map_err(failed(format!("read plugin {}", self.plugin.display())))?;
        let same = fs::read(&path).is_ok_and(|old| old == new) && is_executable(&path);
        if !same {
            // the directory may not exist before the first plugin is installed
            fs::create_dir_all(self.dirs.bin())
                .map_err(failed(format!("create {}", self.dirs.bin().display())))?;
            // an existing file keeps its mode when it is replaced, so one that is not executable is removed first
            if path.exists() && !is_executable(&path) {
                atomic_file::remove(&path).map_err(failed(format!("remove {}", path.display())))?;
            }
            // no other program writes a binary of this name
            let _: WriteOutcome = atomic_file::write(&path, &new, 0o755, Expected::Any)
                .map_err(failed(format!("write {}", path.display())))?;
        }
        self.installed = FileStamp::at(&path);
        Ok((!same).then(|| format!("installed {} {}", path.display(), self.version)))
    }
}

/// The content that a file of this name had when the directory was read.
fn expected<'a>(files: &'a [Candidate], name: &str) -> Expected<'a> {
    match files.iter().find(|file| file.name == name).map(|file| &file.text) {
        None => Expected::Absent,
        Some(Ok(text)) => Expected::Text(text),
        Some(Err(_)) => Expected::Any,
    }
}

fn not_edited(unused: &[String]) -> Option<String> {
    (!unused.is_empty()).then(|| {
        format!(
            "not edited, as new pods do not get it: {} (if the runtime is configured with max_conf_num or \
             cni_default_network, say so: --max-conf-num, --default-network)",
            unused.join(", ")
        )
    })
}

const NOT_READY: &str = "policyd has not answered yet";

const ALLOWED: &str = "policyd cannot enforce on this node, and --on-cannot-enforce is allow: new pods start without a gate";

fn cannot_take(name: &str, reason: &str) -> String {
    format!("{name} cannot take {PLUGIN}: {reason}")
}

fn waiting(reason: impl Into<String>) -> InstallState {
    InstallState::Waiting { reason: reason.into() }
}

fn is_executable(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|found| found.mode() & 0o111 == 0o111)
}

/// Runs the binary without CNI_COMMAND: it prints its version, which shows that it can be executed on this machine.
fn version_of(plugin: &Path) -> Result<String, InstallError> {
    let wrong =
        |reason: String| InstallError::Plugin { path: plugin.display().to_string(), reason };
    let output = Command::new(plugin)
        .env_remove("CNI_COMMAND")
        .stdin(Stdio::null())
        .output()
        .map_err(|e| wrong(e.to_string()))?;
    let printed = String::from_utf8_lossy(&output.stderr);
    let version = printed.strip_prefix(PLUGIN).and_then(|rest| rest.split_once(':'));
    let (version, _) = version.ok_or_else(|| {
        wrong(format!("it does not print that it is {PLUGIN}: {:?}", printed.trim()))
    })?;
    Ok(version.trim().to_owned())
}
