//! The one thing of a node that lies outside its namespaces: the cgroups of its pods.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use podgate_testkit::wait::until;

const ROOT: &str = "/sys/fs/cgroup";

/// The directories of this name, one in each hierarchy that has it.
pub fn find(name: &str) -> Vec<PathBuf> {
    let hierarchies = fs::read_dir(ROOT).into_iter().flatten().flatten().map(|entry| entry.path());
    // cgroup v2 alone has no hierarchies below: its root is the one
    hierarchies
        .chain([PathBuf::from(ROOT)])
        .map(|hierarchy| hierarchy.join(name))
        .filter(|path| path.is_dir())
        .collect()
}

/// Makes them, ready to be filled: a kubelet expects the parent of its pods to be there.
pub fn create(name: &str) -> Result<()> {
    for hierarchy in fs::read_dir(ROOT).with_context(|| format!("read {ROOT}"))?.flatten() {
        let path = hierarchy.path().join(name);
        if path.is_dir() || !hierarchy.path().is_dir() {
            continue;
        }
        fs::create_dir(&path).with_context(|| format!("create {}", path.display()))?;
        // without these nothing can be put into a group of this hierarchy
        for file in ["cpuset.cpus", "cpuset.mems"] {
            let from = hierarchy.path().join(file);
            if let Ok(all) = fs::read(&from) {
                fs::write(path.join(file), all)
                    .with_context(|| format!("fill {file} of {name}"))?;
            }
        }
    }
    Ok(())
}

/// Removes them. The processes inside have ended, but the kernel lets go of them a little later.
pub fn remove(name: &str) -> Result<()> {
    let gone = until(Duration::from_secs(5), || {
        for path in find(name) {
            // what is still busy now is tried again
            let _ = remove_tree(&path);
        }
        find(name).is_empty()
    });
    if !gone {
        bail!("remove cgroup {name}: still there: {:?}", find(name));
    }
    Ok(())
}

/// The kernel's files in a cgroup cannot be removed and need not be; only the directories go, innermost first.
fn remove_tree(path: &Path) -> Result<()> {
    for entry in fs::read_dir(path).with_context(|| format!("read {}", path.display()))? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    match fs::remove_dir(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => {
            Err(e).with_context(|| format!("remove {}", path.display()))
        }
        _ => Ok(()),
    }
}
