//! Who owns the pins: a process that may write under `bpfRoot` can replace policies and programs.
//!
//! Directories that others than root may change are refused, and what is pinned is looked at before it is used: a program
//! under a map's name, a map of another program, a directory.

use std::fmt;
use std::fs::{self, Metadata};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::maps::PINNED;
use crate::pins::{FROM_POD, TO_POD, version_of};
use crate::programs::Pair;
use crate::{Error, PinRoot, Result, sys};

/// What can be pinned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Map,
    Program,
    Link,
}

impl Kind {
    /// By the name that the kernel gives to the descriptor's file.
    fn of(fd: &OwnedFd) -> io::Result<Option<Self>> {
        let file = fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))?;
        let file = file.to_string_lossy().into_owned();
        let is = |kind: &&(&str, Self)| file.contains(kind.0);
        let kinds = [("bpf-map", Self::Map), ("bpf-prog", Self::Program), ("bpf", Self::Link)];
        Ok(kinds.iter().find(is).map(|kind| kind.1))
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Map => "a map",
            Self::Program => "a program",
            Self::Link => "a link",
        })
    }
}

/// Opens a pin that must be of this kind.
pub(crate) fn open(path: &Path, wanted: Kind) -> Result<OwnedFd> {
    let fault = |e| Error::io("open pin", path.display().to_string(), e);
    let foreign = |found: &dyn fmt::Display| Error::Foreign {
        path: path.to_owned(),
        found: found.to_string(),
        wanted: wanted.to_string(),
    };
    let meta = fs::symlink_metadata(path).map_err(fault)?;
    if meta.is_dir() {
        return Err(foreign(&"a directory"));
    }
    if meta.is_symlink() {
        return Err(foreign(&"a symbolic link"));
    }
    let fd = sys::open_pin(path).map_err(fault)?;
    match Kind::of(&fd).map_err(fault)? {
        Some(kind) if kind == wanted => Ok(fd),
        Some(kind) => Err(foreign(&kind)),
        None => Err(foreign(&"no BPF object")),
    }
}

/// Refuses directories that others than root may write, from the layout's own up to the BPF file system's root.
/// What is not there yet is fine.
pub(crate) fn check_owner(root: &PinRoot) -> Result<()> {
    let dir = root.dir();
    let links = dir.join("links");
    for ours in [root.root(), dir.as_path(), links.as_path()] {
        match fs::symlink_metadata(ours) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            // bpfRoot itself may be a link: what counts is where it leads
            Ok(meta) if meta.is_symlink() && ours == root.root() => {}
            meta => {
                let meta = meta.map_err(|e| Error::io("examine", ours.display().to_string(), e))?;
                if !meta.is_dir() {
                    return Err(refuse(ours, "it is no directory".to_owned()));
                }
                check(ours, &meta, 0)?;
            }
        }
    }
    let standing = root.root().ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    // Up by "..": the kernel resolves it, also through a link into another mount namespace (/proc/PID/root), of which
    // canonicalize() gives the path as it is in there.
    let mut path = standing.to_owned();
    let mut below: Option<(u64, u64)> = None;
    loop {
        let meta =
            fs::metadata(&path).map_err(|e| Error::io("examine", path.display().to_string(), e))?;
        match below {
            // a mount point cannot be moved away, no matter who may write the directory it is in
            Some((device, _)) if device != meta.dev() => break,
            Some(found) if found == (meta.dev(), meta.ino()) => break, // the root
            _ => {}
        }
        let ours = below.is_none() && standing == root.root();
        let shown = fs::canonicalize(&path).unwrap_or_else(|_| path.clone());
        check(&shown, &meta, if ours { 0 } else { STICKY })?;
        below = Some((meta.dev(), meta.ino()));
        path.push("..");
    }
    Ok(())
}

/// Where it is set, what is root's can be removed or renamed by root alone: a BPF file system's root has it.
const STICKY: u32 = 0o1000;
const OTHERS_MAY_WRITE: u32 = 0o022;

fn check(path: &Path, meta: &Metadata, excuse: u32) -> Result<()> {
    let (owner, mode) = (meta.uid(), meta.mode() & 0o7777);
    if owner == 0 && (mode & OTHERS_MAY_WRITE == 0 || mode & excuse != 0) {
        return Ok(());
    }
    let path_ = path.display();
    Err(refuse(
        path,
        format!(
            "others than root may write it (owner {owner}, mode {mode:04o}) and so decide what passes the gates. \
             See what is in it, then: chown root:root {path_} && chmod 700 {path_}"
        ),
    ))
}

fn refuse(path: &Path, reason: String) -> Error {
    Error::Bpffs { path: path.to_owned(), reason }
}

/// What lies under `bpfRoot` and is not podgate's: names that no version uses, and links of no interface.
pub fn foreign(root: &PinRoot) -> Result<Vec<PathBuf>> {
    let links = root.dir().join("links");
    let mut found = entries(root.root(), |name| version_of(name).is_some())?;
    found.extend(entries(&root.dir(), |name| {
        let program = Pair::ALL.into_iter().any(|pair| pair.names().contains(&name));
        PINNED.contains(&name) || program || name == "links"
    })?);
    found.extend(entries(&links, is_link)?);
    found.sort();
    Ok(found)
}

/// `7-from_pod`.
fn is_link(name: &str) -> bool {
    let split = name.split_once('-');
    split.is_some_and(|(number, program)| {
        number.parse::<u32>().is_ok() && [FROM_POD, TO_POD].contains(&program)
    })
}

fn entries(dir: &Path, ours: impl Fn(&str) -> bool) -> Result<Vec<PathBuf>> {
    let fault = |e| Error::io("read", dir.display().to_string(), e);
    let entries = match fs::read_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(fault)?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(fault)?;
        if !entry.file_name().to_str().is_some_and(&ours) {
            found.push(entry.path());
        }
    }
    Ok(found)
}
