//! Gates and pins go, and no packet notices.
//!
//! 1. Denials pass, everywhere at once: a gate is two programs, which cannot be cut at the same moment. With one of
//!    them gone the other would see the answers of flows whose beginning it has not seen, and deny them.
//! 2. Every gate is detached, at every interface, registered or not: one that has lost its registration drops
//!    everything.
//! 3. Only then the pins are removed. Killed anywhere, a second run begins anew and finds what is left.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::time::Duration;

use nix::fcntl::Flock;
use podgate_bpf::abi::Mode;
use podgate_bpf::handover::OtherLayout;
use podgate_bpf::loader::{LEAST_FLOWS, Sizes};
use podgate_bpf::netns::Route;
use podgate_bpf::{Gate, PinRoot, attach};

use super::{InstallError, failed, lock};

const HOLDER: &str = "policyd is running and would put gates back; stop it first \
    (kubectl delete daemonset podgate, or systemctl stop policyd)";

/// Waits until no policyd runs on these pins, of whatever layout, and keeps it so.
pub(super) fn lock(root: &PinRoot, limit: Duration) -> Result<Vec<Flock<File>>, InstallError> {
    let layouts = root.layouts()?;
    layouts.iter().map(|layout| lock::only_one(&layout.dir(), Some(limit), HOLDER)).collect()
}

/// Removes everything; returns what it has done, one line each. Nothing there is fine.
pub(super) fn unload(root: &PinRoot) -> Result<Vec<String>, InstallError> {
    let interfaces = interfaces()?;
    let mut stray = false;
    for interface in &interfaces {
        stray |= attach::has_filters(*interface)?;
    }
    if root.layouts()?.is_empty() && !stray {
        return Ok(Vec::new());
    }
    // Completes pins of which some are missing: a gate cannot be taken away without.
    let gate = Gate::open_or_load(
        root,
        &Sizes { flows4: LEAST_FLOWS, flows6: LEAST_FLOWS, ..Sizes::default() },
    )?;
    let before = gate.maps.control().mode();
    gate.maps.control().set_mode(Mode::Off);
    let others = OtherLayout::all(root)?;
    for other in &others {
        // one that cannot be read is taken away as it is
        if let Err(error) = other.set_mode(Mode::Off) {
            tracing::warn!(%error, "gates of another layout deny until they are gone");
        }
    }
    let mut gated = 0;
    for interface in all(&gate, interfaces)? {
        match (gate.is_at(interface), gate.detach(interface)) {
            (present, Ok(())) => gated += usize::from(present),
            (_, Err(error)) => {
                // those that still stand enforce again, as long as somebody looks after the fault
                gate.maps.control().set_mode(before);
                return Err(error.into());
            }
        }
    }
    drop(gate);
    Gate::unload(root)?;
    for other in root.others()? {
        // a gate goes with the pin of its link
        remove_all(&other.dir().join("links"))?;
        remove_all(&other.dir())?;
    }
    match fs::remove_dir(root.root()) {
        // a mount point, or something of somebody else's in it
        Err(e) if !matches!(e.kind(), io::ErrorKind::NotFound) => {
            tracing::debug!(dir = %root.root().display(), %e, "left");
        }
        _ => {}
    }
    Ok(vec![format!("took {gated} gates away, and the pins below {}", root.root().display())])
}

/// The interfaces there are, and those that pins and registrations speak of.
fn all(gate: &Gate, mut interfaces: Vec<u32>) -> Result<Vec<u32>, InstallError> {
    interfaces.extend(gate.maps.registrations()?.iter().map(|r| r.ifindex));
    interfaces.extend(gate.linked()?);
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
