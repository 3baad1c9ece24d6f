//! Where the pins are, and the lock that lets one process at a time load or remove them.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use nix::sys::statfs::{self, FsType};

use crate::abi::ABI_VERSION;
use crate::{Error, Result, trust};

/// `bpfRoot` unless configured otherwise.
pub const DEFAULT_BPF_ROOT: &str = "/sys/fs/bpf/podgate";

/// BPF_FS_MAGIC of linux/magic.h.
const BPF_FS_MAGIC: i64 = 0xcafe_4a11;

/// The pin of the program at the pod's TC ingress hook.
pub const FROM_POD: &str = "from_pod";
/// The pin of the program at the pod's TC egress hook.
pub const TO_POD: &str = "to_pod";
/// The pin of the program that stands there at metered pods; not there before a pod needs it.
pub const FROM_POD_METERED: &str = "from_pod_metered";
/// As [`FROM_POD_METERED`].
pub const TO_POD_METERED: &str = "to_pod_metered";

/// The pins of one layout: `<bpfRoot>/v<ABI_VERSION>/`, with the links of TCX gates in `links/`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PinRoot {
    root: PathBuf,
    version: u32,
}

impl PinRoot {
    /// Pins of this build's layout under `bpf_root`; touches nothing yet.
    pub fn new(bpf_root: impl Into<PathBuf>) -> Self {
        Self::of_layout(bpf_root, ABI_VERSION)
    }

    /// Pins of the layout with this number under `bpf_root`; touches nothing yet.
    pub fn of_layout(bpf_root: impl Into<PathBuf>, version: u32) -> Self {
        Self { root: bpf_root.into(), version }
    }

    /// The directories of all layouts that are there, this one's too if it is, by number.
    pub fn layouts(&self) -> Result<Vec<Self>> {
        let fault = |e| Error::io("read", self.root.display().to_string(), e);
        let entries = match fs::read_dir(&self.root) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(fault)?,
        };
        let mut found = Vec::new();
        for entry in entries {
            let name = entry.map_err(fault)?.file_name();
            let Some(version) = name.to_str().and_then(version_of) else { continue };
            found.push(Self { root: self.root.clone(), version });
        }
        found.sort_by_key(|layout| layout.version);
        Ok(found)
    }

    /// As [`PinRoot::layouts`], without this one.
    pub fn others(&self) -> Result<Vec<Self>> {
        Ok(self.layouts()?.into_iter().filter(|layout| layout != self).collect())
    }

    /// `bpfRoot` itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The directory of the layout.
    pub fn dir(&self) -> PathBuf {
        self.root.join(format!("v{}", self.version))
    }

    /// The pin of a map or program.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir().join(name)
    }

    /// The pin of one direction's TCX link of an interface.
    pub(crate) fn link(&self, ifindex: u32, program: &str) -> PathBuf {
        self.dir().join("links").join(format!("{ifindex}-{program}"))
    }

    /// Makes the directories, on a mounted bpffs, where only root can.
    fn create(&self) -> Result<()> {
        // Checked before anything is made, as a directory on another file system would stay.
        let standing = self.root.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
        let found = statfs::statfs(standing)
            .map_err(|e| Error::io("examine", standing.display().to_string(), e.into()))?;
        if found.filesystem_type() != FsType(BPF_FS_MAGIC as _) {
            return Err(Error::Bpffs {
                path: self.root.clone(),
                reason: "not on a BPF file system (mount one: mount -t bpf bpf /sys/fs/bpf)".into(),
            });
        }
        trust::check_owner(self)?;
        let links = self.dir().join("links");
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&links)
            .map_err(|e| Error::io("create directory", links.display().to_string(), e))?;
        // in a directory that all may write, another may have been quicker
        trust::check_owner(self)
    }

    /// Whoever loads or removes pins holds this; released when dropped, also by a crash.
    pub fn lock(&self) -> Result<RootLock> {
        self.create()?;
        let dir = File::open(&self.root)
            .map_err(|e| Error::io("open", self.root.display().to_string(), e))?;
        Flock::lock(dir, FlockArg::LockExclusive)
            .map(|held| RootLock { _held: held })
            .map_err(|(_, e)| Error::io("lock", self.root.display().to_string(), e.into()))
    }
}

/// The number of a layout's directory: `v7`.
pub(crate) fn version_of(name: &str) -> Option<u32> {
    let number = name.strip_prefix('v')?;
    // "v07" and "v+7" are not what a loader writes
    number.parse().ok().filter(|version: &u32| version.to_string() == number)
}

/// The held lock of a pin root.
#[derive(Debug)]
pub struct RootLock {
    _held: Flock<File>,
}
