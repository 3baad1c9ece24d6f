//! Reads the runtime's directories, for [`super::active`] to decide.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::active::{Candidate, Choice, Environment, Rules, Runtime, Verdict, is_read};
use super::libcni::{self, Library, PluginDir, Unfit};
use super::plugins::Plugins;
use super::{InstallError, active, failed};

/// Larger than any file that a runtime reads, bytes.
const MAX_FILE_SIZE: u64 = 2 << 20;

/// A configuration directory and the directory of its plugins.
#[derive(Debug)]
pub struct Directory {
    conf: PathBuf,
    plugins: Plugins,
}

impl Directory {
    /// Does not read the directories yet.
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

    /// Which of these files new pods get.
    pub fn choose(&self, files: &[Candidate], rules: &Rules) -> Choice {
        self.with_environment(|environment| active::choose(files, rules, environment))
    }

    /// Which of them one runtime with one version of the library gives new pods.
    pub fn verdict(
        &self,
        files: &[Candidate],
        runtime: Runtime,
        library: Library,
        rules: &Rules,
    ) -> Verdict {
        self.with_environment(|environment| {
            active::verdict(files, runtime, library, rules, environment)
        })
    }

    fn with_environment<T>(&self, decide: impl FnOnce(Environment<'_>) -> T) -> T {
        decide(Environment {
            plugin_dir: &|name| plugin_dir(&self.conf, name),
            plugin: &|kind| self.plugins.versions_of(kind),
        })
    }
}

/// The plugins that libcni 1.3 finds in the directory with a network's name.
fn plugin_dir(conf: &Path, name: &str) -> PluginDir {
    // Go's filepath.Join ignores a leading slash, Rust's join would replace the path
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
        Ok(files) if files.is_empty() => return PluginDir::Nothing,
        Ok(files) => files,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return PluginDir::Nothing,
        Err(e) => return PluginDir::Broken(e.to_string()),
    };
    for file in &files {
        let checked = match read(&dir.join(file)) {
            Err(e) => Err(e.to_string()),
            Ok(text) => libcni::plugin(&text).map_err(Unfit::reason),
        };
        if let Err(reason) = checked {
            return PluginDir::Broken(format!("{file}: {reason}"));
        }
    }
    PluginDir::Plugins(files)
}

/// Every file that a runtime would read; none if the directory does not exist.
pub(super) fn read_all(dir: &Path) -> Result<Vec<Candidate>, InstallError> {
    let entries = match fs::read_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed(format!("read {}", dir.display())))?,
    };
    let mut files = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed(format!("read {}", dir.display())))?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        // reading a link to a directory fails, as it does for a runtime
        if !is_read(&name) || entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        match read(&entry.path()) {
            // removed since the directory was listed
            Err(e) if e.kind() == io::ErrorKind::NotFound && !entry.path().is_symlink() => {}
            text => files.push(Candidate { name, text: text.map_err(|e| e.to_string()) }),
        }
    }
    Ok(files)
}

fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(MAX_FILE_SIZE + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_FILE_SIZE {
        return Err(io::Error::other(format!("it is larger than {MAX_FILE_SIZE} bytes")));
    }
    Ok(text)
}
