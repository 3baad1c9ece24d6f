//! Reconciles podgate's state with the kernel's: links that vanished without a DEL, the node's addresses, gates that were
//! removed or are no longer first, flows of pods that are gone, counts of open connections.

mod addresses;
mod flows;
mod gates;
mod links;
mod open_connections;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use podgate_bpf::attach::AttachMode;
use podgate_bpf::maps::Net;

use crate::snapshot::NodeState;
use crate::writer::{Handle, Message};

pub(crate) use addresses::now as addresses_now;

/// How often the registry is read without an event, in case a plugin's line was lost.
const SWEEP_INTERVAL: Duration = Duration::from_secs(10);

/// The reconciling tasks.
#[derive(Clone, Debug)]
pub struct Reconciler {
    /// Which endpoints are registered.
    pub shared: Arc<NodeState>,
    /// The writer, which acts on links and addresses.
    pub writer: Handle,
    /// How gates are attached again.
    pub attach: AttachMode,
    /// `--node-address`: prefixes that count as the node's own beside the addresses of its interfaces.
    pub named: BTreeSet<Net>,
    /// Interval of a full comparison without an event.
    pub every: Duration,
    /// Number of gates attached again since the start.
    pub reattached: Arc<AtomicU64>,
}

impl Reconciler {
    /// Runs until the task is dropped.
    pub async fn run(self) {
        tokio::join!(
            links::watch(&self),
            gates::watch(&self),
            flows::watch(&self),
            open_connections::watch(&self),
            self.sweep()
        );
    }

    async fn sweep(&self) {
        loop {
            tokio::time::sleep(SWEEP_INTERVAL).await;
            if self.writer.send(Message::Sweep).is_err() {
                return;
            }
        }
    }
}
