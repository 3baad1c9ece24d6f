//! The parts a lab is made of, and where they are on this machine.

use std::env;
use std::path::{Path, PathBuf};

use super::error::{Error, Result};

/// Where distributions and Kubernetes put the reference plugins.
const PLUGIN_DIRS: [&str; 3] = ["/opt/cni/bin", "/usr/lib/cni", "/usr/libexec/cni"];
/// The reference plugins of the chain.
const REFERENCE: [&str; 2] = ["bridge", "static"];

/// Paths of everything the lab runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Parts {
    /// The directory of the reference plugins.
    pub reference: PathBuf,
    /// The chained plugin, `podgate`.
    pub plugin: PathBuf,
    /// The daemon.
    pub policyd: PathBuf,
}

impl Parts {
    /// Looks for what was not given: our own binaries beside this one, the reference plugins in
    /// CNI_PATH and the usual places.
    pub(crate) fn find(
        cni_path: Option<&Path>,
        plugin: Option<&Path>,
        policyd: Option<&Path>,
    ) -> Result<Self> {
        let reference = match cni_path {
            Some(dir) => has_reference(dir).then(|| dir.to_path_buf()),
            None => {
                let set = env::var_os("CNI_PATH").unwrap_or_default();
                let usual = PLUGIN_DIRS.iter().map(PathBuf::from);
                env::split_paths(&set).chain(usual).find(|dir| has_reference(dir))
            }
        };
        let looked =
            cni_path.map_or_else(|| PLUGIN_DIRS.join(", "), |dir| dir.display().to_string());
        let reference = reference.ok_or_else(|| Error::Missing {
            what: format!("find the CNI plugins {} in {looked}", REFERENCE.join(" and ")),
            hint: "install the package containernetworking-plugins, or name their directory with --cni-path"
                .into(),
        })?;
        Ok(Self {
            reference,
            plugin: own(plugin, "podgate", "--plugin")?,
            policyd: own(policyd, "policyd", "--policyd")?,
        })
    }
}

fn has_reference(dir: &Path) -> bool {
    REFERENCE.iter().all(|name| dir.join(name).is_file())
}

fn own(given: Option<&Path>, name: &str, flag: &str) -> Result<PathBuf> {
    let beside = || Some(env::current_exe().ok()?.parent()?.join(name));
    let path = given.map(Path::to_path_buf).or_else(beside).unwrap_or_else(|| name.into());
    if path.is_file() {
        return Ok(path);
    }
    Err(Error::Missing {
        what: format!("find {name}: no file {}", path.display()),
        hint: format!("build it (make build), or say where it is with {flag}"),
    })
}
