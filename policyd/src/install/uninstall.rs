//! `policyd uninstall`. Every step is idempotent and leaves the node in its earlier or its later state.
//!
//! First it locks out `install --watch` and policyd, which would undo it. Then it restores the configuration, so that no
//! new pod gets a gate, removes the gates and the pins, and finally the binary, unless a runtime still needs it for the DEL
//! of running pods.

use std::thread;
use std::time::Duration;

use podgate_bpf::PinRoot;
use podgate_contract::plugin_conf::PLUGIN;

use super::args::{Dirs, Uninstall};
use super::{InstallError, atomic_file, failed, restore, state, unload, watch};
use crate::{cni_cache, lock};

const HOLDER: &str = "`policyd install --watch` is running and would put the entry back; stop it first \
    (kubectl delete daemonset podgate)";

/// How often the steps are repeated: an ADD that a runtime has started with the old configuration may attach a gate after
/// all others were removed.
const MAX_ROUNDS: usize = 5;

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
        .then(|| lock::acquire(&cni_conf_dir, Some(limit), HOLDER))
        .transpose()?;
    let _no_policyd = unload::lock(&root, limit)?;
    atomic_file::remove_stale(&cni_conf_dir);
    atomic_file::remove_stale(&cni_bin_dir);

    for _ in 0..MAX_ROUNDS {
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
    let attachments = cni_cache::count_with_podgate(&cni_cache_dir);
    if attachments > 0 && binary.exists() {
        tracing::warn!(
            attachments,
            "left {}: the runtime may call it when pods that started with podgate end; it does nothing any more. \
             run this again once they are gone",
            binary.display()
        );
    } else if binary.exists() {
        atomic_file::remove(&binary).map_err(failed(format!("remove {}", binary.display())))?;
        tracing::info!("removed {}", binary.display());
    }
    tracing::info!("podgate is not in this node's network any more");
    if let Some(signals) = signals {
        // a DaemonSet's container that ends would only be started again
        let _ = signals.wait();
    }
    Ok(())
}
