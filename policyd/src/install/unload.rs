//! Removes gates and pins without losing a packet.
//!
//! 1. Enforcement is switched off for the whole node. A gate is two programs, which cannot be detached at the same moment:
//!    with one of them gone the other would see replies of flows that it does not know, and deny them.
//! 2. Every gate is detached, at every interface, registered or not: one without a registration drops everything.
//! 3. Only then the pins are removed. If it is killed at any point, a second run removes the rest.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::time::Duration;

use nix::fcntl::Flock;
use podgate_bpf::abi::Mode;
use podgate_bpf::handover::OtherLayout;
use podgate_bpf::loader::{LEAST_FLOWS, Sizes};
use podgate_bpf::{Datapath, PinRoot, clsact};
use podgate_link::netns::Route;

use super::{InstallError, failed};
use crate::lock;

const HOLDER: &str = "policyd is running and would put gates back; stop it first \
    (kubectl delete daemonset podgate, or systemctl stop policyd)";

/// Locks the pins of all layouts, after waiting for a policyd that runs on them.
pub(super) fn lock(root: &PinRoot, limit: Duration) -> Result<Vec<Flock<File>>, InstallError> {
    let layouts = root.layouts()?;
    let acquire = |layout: &PinRoot| Ok(lock::acquire(&layout.dir(), Some(limit), HOLDER)?);
    layouts.iter().map(acquire).collect()
}

/// Removes everything and returns what was done, one line each; nothing if there are no gates and no pins.
pub(super) fn unload(root: &PinRoot) -> Result<Vec<String>, InstallError> {
    let interfaces = interfaces()?;
    let mut stray = false;
    for interface in &interfaces {
        stray |= clsact::has_filters(*interface)?;
    }
    if root.layouts()?.is_empty() && !stray {
        return Ok(Vec::new());
    }
    // also recreates missing pins, without which gates cannot be removed
    let datapath = Datapath::open_or_load(
        root,
        &Sizes { flows4: LEAST_FLOWS, flows6: LEAST_FLOWS, ..Sizes::default() },
    )?;
    let before = datapath.maps.control().mode();
    datapath.maps.control().set_mode(Mode::Off);
    let others = OtherLayout::all(root)?;
    for other in &others {
        // one whose maps cannot be read is removed nevertheless
        if let Err(error) = other.set_mode(Mode::Off) {
            tracing::warn!(%error, "gates of another layout enforce until they are removed");
        }
    }
    let mut gated = 0;
    for interface in all(&datapath, interfaces)? {
        match (datapath.is_attached(interface), datapath.detach(interface)) {
            (present, Ok(())) => gated += usize::from(present),
            (_, Err(error)) => {
                // the gates that remain enforce again until the error is dealt with
                datapath.maps.control().set_mode(before);
                return Err(error.into());
            }
        }
    }
    drop(datapath);
    Datapath::unload(root)?;
    for other in root.others()? {
        // removing the pin of a TCX link detaches its program
        remove_all(&other.dir().join("links"))?;
        remove_all(&other.dir())?;
    }
    match fs::remove_dir(root.root()) {
        // it is a mount point, or holds other files
        Err(e) if !matches!(e.kind(), io::ErrorKind::NotFound) => {
            tracing::debug!(dir = %root.root().display(), %e, "directory kept");
        }
        _ => {}
    }
    Ok(vec![format!("removed {gated} gates and the pins below {}", root.root().display())])
}

/// All interfaces, with those that pins and registrations name.
fn all(datapath: &Datapath, mut interfaces: Vec<u32>) -> Result<Vec<u32>, InstallError> {
    interfaces.extend(datapath.maps.registrations()?.iter().map(|r| r.ifindex));
    interfaces.extend(datapath.linked_interfaces()?);
    interfaces.sort_unstable();
    interfaces.dedup();
    Ok(interfaces)
}

fn interfaces() -> Result<Vec<u32>, InstallError> {
    let list = || Route::here()?.links();
    let links = list().map_err(|e| failed("list interfaces")(io::Error::other(e)))?;
    Ok(links.into_iter().map(|link| link.index).collect())
}

fn remove_all(dir: &Path) -> Result<(), InstallError> {
    match fs::remove_dir_all(dir) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(failed(format!("remove {}", dir.display()))(e))
        }
        _ => Ok(()),
    }
}
