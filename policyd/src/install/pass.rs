//! One look at the node, and what it takes to bring it where it should be.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::active::{Active, Candidate, KEPT, choose, is_read};
use super::conflist::Conflist;
use super::place::{Over, Put, TRIES, pause};
use super::{Entry, InstallError, PLUGIN, failed, place};

/// More than any runtime reads.
const LARGEST: u64 = 2 << 20;

/// Brings binary and entry to their places.
#[derive(Debug)]
pub struct Installer {
    conf_dir: PathBuf,
    bin_dir: PathBuf,
    plugin: PathBuf,
    version: String,
    entry: Entry,
    placed: Option<Stamp>,
}

/// Tells a file that somebody has written since.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp([i64; 5]);

/// Whether pods that start now get a gate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// They do: this file says so.
    InForce {
        /// Its name.
        file: String,
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
    /// What is wrong with other files.
    pub problems: Vec<String>,
}

impl Installer {
    /// Looks whether the plugin's binary runs here; touches nothing yet.
    pub fn new(
        conf_dir: PathBuf,
        bin_dir: PathBuf,
        plugin: Option<PathBuf>,
        entry: Entry,
    ) -> Result<Self, InstallError> {
        let beside = || Ok(std::env::current_exe()?.with_file_name(PLUGIN));
        let plugin = plugin
            .map_or_else(beside, Ok)
            .map_err(failed("find the plugin beside this program"))?;
        let version = version_of(&plugin)?;
        Ok(Self { conf_dir, bin_dir, plugin, version, entry, placed: None })
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
        Ok(Report { standing, changes, problems: Vec::new() })
    }

    /// What there is, what has been changed, and what is wrong with other files. `None` if somebody has written
    /// meanwhile what was about to be replaced.
    fn look(&self, edit: bool) -> Result<Option<Report>, InstallError> {
        let files = read_all(&self.conf_dir)?;
        let (active, problems) = choose(&files);
        let mut changes = Vec::new();
        let standing = match active {
            Active::None => waiting("no CNI configuration there yet: the primary plugin writes it"),
            Active::Refused { name, reason } => {
                waiting(format!("{name} cannot take podgate: {reason}"))
            }
            Active::List { name, text } => match self.with_entry(&text, &name)? {
                None => Standing::InForce { file: name },
                // with other options than now, but it is there
                Some(_) if !edit && Conflist::parse(&text).is_ok_and(|list| list.gates()) => {
                    Standing::InForce { file: name }
                }
                Some(_) if !edit => waiting("policyd has not answered yet"),
                Some(new) => {
                    if self.write(&name, &new, &text)? == Put::Overtaken {
                        return Ok(None);
                    }
                    changes.push(format!("put {PLUGIN} into {name}"));
                    Standing::InForce { file: name }
                }
            },
            Active::Single { .. } if !edit => waiting("policyd has not answered yet"),
            Active::Single { name, list, text } => {
                let text = self.with_entry(&text, &name)?.unwrap_or(text);
                if self.turn(over(&files, &name), &name, over(&files, &list), &list, &text)?
                    == Put::Overtaken
                {
                    return Ok(None);
                }
                changes.push(format!("turned {name} into {list} with {PLUGIN} in it"));
                Standing::InForce { file: list }
            }
        };
        Ok(Some(Report { standing, changes, problems }))
    }

    fn with_entry(&self, text: &str, name: &str) -> Result<Option<String>, InstallError> {
        let list = Conflist::parse(text).map_err(|e| InstallError::NotInForce {
            dir: self.conf_dir.display().to_string(),
            reason: format!("{name}: {e}"),
        })?;
        Ok(list.with(&self.entry))
    }

    /// Writes a file of the directory that has been read; of a symbolic link its target.
    fn write(&self, name: &str, text: &str, read: &str) -> Result<Put, InstallError> {
        let path = self.conf_dir.join(name);
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
        let path = self.conf_dir.join(single);
        let mode = fs::metadata(&path).map_or(0o644, |old| old.mode() & 0o7777);
        let list = self.conf_dir.join(list);
        if place::put(&list, text.as_bytes(), mode, list_read)
            .map_err(failed(format!("write {}", list.display())))?
            == Put::Overtaken
        {
            return Ok(Put::Overtaken);
        }
        let kept = self.conf_dir.join(format!("{single}{KEPT}"));
        place::rename(&path, &kept, single_read)
            .map_err(failed(format!("rename {}", path.display())))
    }

    fn place_binary(&mut self) -> Result<Option<String>, InstallError> {
        let path = self.bin_dir.join(PLUGIN);
        if self.placed.is_some() && self.placed == Stamp::of(&path) {
            return Ok(None);
        }
        let new = fs::read(&self.plugin)
            .map_err(failed(format!("read plugin {}", self.plugin.display())))?;
        let same = fs::read(&path).is_ok_and(|old| old == new) && is_executable(&path);
        if !same {
            // a runtime's directory may not be there before its first plugin is
            fs::create_dir_all(&self.bin_dir)
                .map_err(failed(format!("create {}", self.bin_dir.display())))?;
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

fn waiting(reason: impl Into<String>) -> Standing {
    Standing::Waiting { reason: reason.into() }
}

fn is_executable(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|found| found.mode() & 0o111 == 0o111)
}

impl Stamp {
    fn of(path: &Path) -> Option<Self> {
        let found = fs::metadata(path).ok()?;
        let number = |n: u64| n.cast_signed();
        Some(Self([
            number(found.ino()),
            number(found.size()),
            found.mtime(),
            found.mtime_nsec(),
            i64::from(found.mode()),
        ]))
    }
}

/// Every file that a runtime would read. A directory that is not there holds none.
pub(super) fn read_all(dir: &Path) -> Result<Vec<Candidate>, InstallError> {
    let entries = match fs::read_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed(format!("read {}", dir.display())))?,
    };
    let mut files = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed(format!("read {}", dir.display())))?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        // a link to a directory is read, and fails, as it does for a runtime
        if !is_read(&name) || entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        match read(&entry.path()) {
            // it has gone meanwhile
            Err(e) if e.kind() == io::ErrorKind::NotFound && !entry.path().is_symlink() => {}
            text => files.push(Candidate { name, text: text.map_err(|e| e.to_string()) }),
        }
    }
    Ok(files)
}

fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(LARGEST + 1).read_to_string(&mut text)?;
    if text.len() as u64 > LARGEST {
        return Err(io::Error::other(format!("it is larger than {LARGEST} bytes")));
    }
    Ok(text)
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
