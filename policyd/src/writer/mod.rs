//! The one thread that decides what the maps hold.
//!
//! It takes every message that is waiting, then commits once: a burst costs one look at each thing that changed
//! and one RCU grace period, and a lone event waits for nothing.

mod endpoints;
mod nodes;
mod pending_adds;
mod placeholder_pods;
mod snapshot;
mod writer_loop;

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use podgate_bpf::maps::{Net, host_net};
use podgate_contract::handshake::{EndpointRef, Response};
use podgate_policy::compile::Engine;
use podgate_policy::index::Index;
use podgate_policy::tables::Compiled;
use tokio::sync::oneshot;

use crate::local_rules::LocalUpdate;
use crate::snapshot::NodeState;
use crate::sources::{Rank, Update};
use crate::sync::services::ServiceSync;

/// A message to the writer.
pub enum Message {
    /// A source reports an update.
    Source(Rank, Update),
    /// The node's operator says something else of a pod, or of the node.
    Local(LocalUpdate),
    /// The plugin has registered these and attached their gates; it waits for the answer.
    Added {
        /// The interfaces of the pod.
        endpoints: Vec<EndpointRef>,
        /// Gets [`Response::Ok`] once their policy is in force. Closed if the plugin has hung up.
        reply: oneshot::Sender<Response>,
    },
    /// The plugin has removed these.
    Removed(Vec<EndpointRef>),
    /// This interface does not exist any more.
    LinkGone(u32),
    /// The node's addresses.
    NodeAddresses(NodeAddresses),
    /// Compare with the map `endpoints`: a message of the plugin may have been lost.
    Sweep,
    /// Answered once everything sent before is in force, as far as it can be.
    Settle(oneshot::Sender<()>),
    /// Runs a query on the writer's state, between commits.
    Query(Query),
    /// End the thread. The maps stay as they are.
    Stop,
}

/// The addresses of this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeAddresses {
    /// All addresses, of all interfaces.
    pub all: BTreeSet<IpAddr>,
    /// Service addresses on the interface of kube-proxy's IPVS mode: kube-proxy translates those, no process listens.
    pub of_proxy: BTreeSet<IpAddr>,
    /// Configured prefixes, on none of its interfaces, that count as the node's own as a source.
    pub named: BTreeSet<Net>,
}

impl NodeAddresses {
    /// All addresses and prefixes that count as the node's own as a source.
    pub fn nets(&self) -> BTreeSet<Net> {
        self.all.iter().copied().map(host_net).chain(self.named.iter().copied()).collect()
    }
}

/// Reads the writer's state and sends the result itself.
pub type Query = Box<dyn FnOnce(&QueryContext<'_>) + Send>;

/// The state that a query reads.
pub struct QueryContext<'a> {
    /// The cluster.
    pub index: &'a Index,
    /// The engine, which follows the index.
    pub engine: &'a Engine,
    /// The services and what the maps hold of them.
    pub services: &'a ServiceSync,
}

impl QueryContext<'_> {
    /// What the maps should hold, apart from services.
    pub fn compiled(&self) -> &Compiled {
        self.engine.compiled()
    }
}

/// The writer is gone; policyd is stopping.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("query the writer: it has stopped")]
pub struct Stopped;

/// Called with the duration of each commit.
type Observe = Box<dyn FnMut(Duration) + Send>;

/// Sends messages to the writer.
#[derive(Clone)]
pub struct Handle {
    messages: mpsc::Sender<Message>,
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Handle")
    }
}

impl Handle {
    /// Sends a message; an answer comes through its channel.
    pub fn send(&self, message: Message) -> Result<(), Stopped> {
        self.messages.send(message).map_err(|_| Stopped)
    }

    /// The sink for the updates of the source of this rank.
    pub fn sink(&self, rank: Rank) -> impl FnMut(Update) + Send + 'static {
        let handle = self.clone();
        move |update| {
            // an error means that policyd is stopping
            let _ = handle.send(Message::Source(rank, update));
        }
    }

    /// The sink for what the node's operator says.
    pub fn local_sink(&self) -> impl FnMut(LocalUpdate) + Send + 'static {
        let handle = self.clone();
        move |update| {
            // an error means that policyd is stopping
            let _ = handle.send(Message::Local(update));
        }
    }

    /// Waits until everything sent before is in force, as far as it can be.
    pub async fn settled(&self) -> Result<(), Stopped> {
        let (reply, answer) = oneshot::channel();
        self.send(Message::Settle(reply))?;
        answer.await.map_err(|_| Stopped)
    }

    /// Runs a query on the writer's state.
    pub async fn query<T: Send + 'static>(
        &self,
        query: impl FnOnce(&QueryContext<'_>) -> T + Send + 'static,
    ) -> Result<T, Stopped> {
        let (reply, answer) = oneshot::channel();
        let message = Message::Query(Box::new(move |context| {
            // the caller may have gone away
            let _ = reply.send(query(context));
        }));
        self.send(message)?;
        answer.await.map_err(|_| Stopped)
    }
}

/// A running writer.
#[derive(Debug)]
pub struct Writer {
    handle: Handle,
    thread: Option<thread::JoinHandle<()>>,
    /// Closed when the thread ends: it holds the other end.
    alive: oneshot::Receiver<std::convert::Infallible>,
}

impl Writer {
    /// Recovers the state of the maps and starts. `sources`: the names of all sources, by rank. Until each is synced nothing
    /// is programmed: what an earlier policyd wrote stays in force, new endpoints stay in their startup state. `observe`
    /// gets the duration of each commit.
    pub fn start(
        shared: Arc<NodeState>,
        sources: impl IntoIterator<Item = String>,
        observe: impl FnMut(Duration) + Send + 'static,
    ) -> Result<Self, StartError> {
        let (messages, inbox) = mpsc::channel();
        let mut writer = writer_loop::WriterLoop::recover(shared, sources, Box::new(observe))?;
        let (living, alive) = oneshot::channel();
        let thread = thread::Builder::new()
            .name("writer".into())
            .spawn(move || {
                let _living = living;
                writer.run(&inbox);
            })
            .map_err(StartError::Thread)?;
        Ok(Self { handle: Handle { messages }, thread: Some(thread), alive })
    }

    /// For sending to it.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Resolves when the thread has ended, which by itself it does only by a panic.
    pub async fn ended(&mut self) {
        let _ = (&mut self.alive).await;
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let _ = self.handle.send(Message::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The writer cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The maps cannot be read.
    #[error("read the maps: {0}")]
    Maps(#[from] podgate_bpf::Error),
    /// The thread cannot be started.
    #[error("start the writer's thread: {0}")]
    Thread(io::Error),
}
