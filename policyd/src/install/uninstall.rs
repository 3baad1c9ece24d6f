//! `policyd uninstall`: the way back. Each step is one that may be done twice, and each leaves the node with what it
//! had before or with what it will have.
//!
//! Nobody who would undo it may be at work; then the configuration, so that no new pod gets a gate; then the gates
//! and the pins; at last the binary, which a runtime may still want to call for pods that it was called for.

use std::thread;
use std::time::Duration;

use podgate_bpf::PinRoot;

use super::args::{Dirs, Uninstall};
use super::{InstallError, PLUGIN, cached, failed, lock, place, restore, state, unload, watch};

const HOLDER: &str = "`policyd install --watch` is running and would put the entry back; stop it first \
    (kubectl delete daemonset podgate)";

/// An ADD that a runtime has begun with the old configuration may stand a gate after all others are gone: so often
/// it is looked again.
const ROUNDS: usize = 5;

/// `policyd uninstall`.
pub fn uninstall(args: Uninstall) -> Result<(), InstallError> {
    let Uninstall {
        dirs: Dirs { cni_conf_dir, cni_bin_dir, install_state },
        bpf_root,
        cni_cache_dir,
        wait_seconds,
        settle_ms,
        stay,
        log: _,
    } = args;
    let signals = stay.then(watch::stop_signals).transpose()?;
    let limit = Duration::from_secs(wait_seconds);
    let root = PinRoot::new(bpf_root);
    let _no_watch = cni_conf_dir
        .is_dir()
        .then(|| lock::only_one(&cni_conf_dir, Some(limit), HOLDER))
        .transpose()?;
    let _no_policyd = unload::lock(&root, limit)?;
    place::sweep(&cni_conf_dir);
    place::sweep(&cni_bin_dir);

    for _ in 0..ROUNDS {
        let mut done = restore::restore(&cni_conf_dir)?;
        done.extend(unload::unload(&root)?);
        for line in &done {
            tracing::info!("{line}");
        }
        if done.is_empty() {
            break;
        }
        thread::sleep(Duration::from_millis(settle_ms));
    }

    state::remove(&install_state)?;
    let binary = cni_bin_dir.join(PLUGIN);
    let remembered = cached::count(&cni_cache_dir);
    if remembered > 0 && binary.exists() {
        tracing::warn!(
            attachments = remembered,
            "left {}: the runtime may call it when pods that started with podgate end; it does nothing any more. \
             run this again once they are gone",
            binary.display()
        );
    } else if binary.exists() {
        place::remove(&binary).map_err(failed(format!("remove {}", binary.display())))?;
        tracing::info!("removed {}", binary.display());
    }
    tracing::info!("podgate is not in this node's network any more");
    if let Some(signals) = signals {
        // the end of a container of a DaemonSet would only be its next start
        let _ = signals.wait();
    }
    Ok(())
}
