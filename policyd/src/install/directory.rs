//! The runtime's directories as they are now: what [`super::active`] decides on.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::active::{Candidate, Choice, Rules, Runtime, Surroundings, Verdict, is_read};
use super::libcni::{self, Beside, Library, Unfit};
use super::plugins::Plugins;
use super::{InstallError, active, failed};

/// More than any runtime reads.
const LARGEST: u64 = 2 << 20;

/// A configuration directory and the directory of its plugins.
#[derive(Debug)]
pub struct Directory {
    conf: PathBuf,
    plugins: Plugins,
}

impl Directory {
    /// Reads nothing yet.
    pub fn new(conf: PathBuf, bin: PathBuf) -> Self {
        Self { conf, plugins: Plugins::new(bin) }
    }

    /// The configuration directory.
    pub fn conf(&self) -> &Path {
        &self.conf
    }

    /// The directory of plugins.
    pub fn bin(&self) -> &Path {
        self.plugins.dir()
    }

    /// Every file that a runtime would read.
    pub fn files(&self) -> Result<Vec<Candidate>, InstallError> {
        read_all(&self.conf)
    }

    /// What new pods get of these files.
    pub fn choose(&self, files: &[Candidate], rules: &Rules) -> Choice {
        self.around(|around| active::choose(files, rules, around))
    }

    /// What one runtime with one version of the library gives them.
    pub fn verdict(
        &self,
        files: &[Candidate],
        runtime: Runtime,
        library: Library,
        rules: &Rules,
    ) -> Verdict {
        self.around(|around| active::verdict(files, runtime, library, rules, around))
    }

    fn around<T>(&self, decide: impl FnOnce(Surroundings<'_>) -> T) -> T {
        decide(Surroundings {
            beside: &|name| beside(&self.conf, name),
            plugin: &|kind| self.plugins.ask(kind),
        })
    }
}

/// What libcni 1.3 finds under a network's name.
fn beside(conf: &Path, name: &str) -> Beside {
    // Go appends what begins with a slash, too
    let dir = conf.join(name.trim_start_matches('/'));
    let list = || -> io::Result<Vec<String>> {
        let mut files = Vec::new();
        for entry in fs::read_dir(&dir)? {
            let entry = entry?;
            let file = entry.file_name().to_string_lossy().into_owned();
            if file.ends_with(".conf") && !entry.file_type()?.is_dir() {
                files.push(file);
            }
        }
        files.sort();
        Ok(files)
    };
    let files = match list() {
        Ok(files) if files.is_empty() => return Beside::Nothing,
        Ok(files) => files,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Beside::Nothing,
        Err(e) => return Beside::Broken(e.to_string()),
    };
    for file in &files {
        let checked = match read(&dir.join(file)) {
            Err(e) => Err(e.to_string()),
            Ok(text) => libcni::plugin(&text).map_err(Unfit::reason),
        };
        if let Err(reason) = checked {
            return Beside::Broken(format!("{file}: {reason}"));
        }
    }
    Beside::Plugins(files)
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
