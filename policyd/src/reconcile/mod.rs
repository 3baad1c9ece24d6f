//! Compares what podgate holds with what the kernel has: links that vanished without a DEL, the node's addresses,
//! gates that somebody removed or overtook, flows of pods that are gone.

mod addresses;
mod flows;
mod gates;
mod links;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use podgate_bpf::attach::AttachMode;
use podgate_bpf::maps::Net;

use crate::view::Shared;
use crate::writer::{Handle, Message};

pub(crate) use addresses::now as addresses_now;

/// How often the registry is compared without an event: makes up for plugin's lines that got lost.
const SWEEP: Duration = Duration::from_secs(10);

/// The tasks that compare.
#[derive(Clone, Debug)]
pub struct Reconciler {
    /// Which endpoints there are.
    pub shared: Arc<Shared>,
    /// Who acts on links and addresses.
    pub writer: Handle,
    /// How gates are attached again.
    pub attach: AttachMode,
    /// What counts as the node's own beside the addresses of its interfaces.
    pub named: BTreeSet<Net>,
    /// How often everything is compared without an event.
    pub every: Duration,
    /// Gates attached again since the start.
    pub reattached: Arc<AtomicU64>,
}

impl Reconciler {
    /// Runs until the task is dropped.
    pub async fn run(self) {
        tokio::join!(links::watch(&self), gates::watch(&self), flows::watch(&self), self.sweep());
    }

    async fn sweep(&self) {
        loop {
            tokio::time::sleep(SWEEP).await;
            if self.writer.send(Message::Sweep).is_err() {
                return;
            }
        }
    }
}
