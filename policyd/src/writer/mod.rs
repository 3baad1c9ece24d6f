//! The one thread that decides what the maps hold.
//!
//! It takes every message that is waiting, then commits once: a burst costs one look at each thing that changed
//! and one RCU grace period, and a lone event waits for nothing.

mod assume;
mod endpoints;
mod run;
mod services;
mod standing;
mod waiting;

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, mpsc};
use std::thread;

use podgate_bpf::handshake::{EndpointRef, Response};
use podgate_bpf::maps::{Net, host_net};
use podgate_policy::compile::Compiled;
use podgate_policy::engine::Engine;
use podgate_policy::index::Index;
use tokio::sync::oneshot;

use crate::sources::{Rank, Update};
use crate::sync::services::ServiceSync;
use crate::view::Shared;

/// What the writer is told.
pub enum Message {
    /// A source has something to say.
    Source(Rank, Update),
    /// The plugin has registered and gated these; it waits for the answer.
    Added {
        /// Which.
        endpoints: Vec<EndpointRef>,
        /// Gets [`Response::Ok`] once their policy is in force. Dropped by who no longer waits.
        reply: oneshot::Sender<Response>,
    },
    /// The plugin has removed these.
    Removed(Vec<EndpointRef>),
    /// This interface does not exist any more.
    LinkGone(u32),
    /// The node's addresses.
    NodeAddresses(NodeAddresses),
    /// Compare with the registry: a plugin's line may have been lost.
    Sweep,
    /// Gets an answer when everything sent before has been put in force, as far as it can be.
    Barrier(oneshot::Sender<()>),
    /// Runs a question on the writer's own state, between commits.
    Ask(Question),
    /// End the thread. The maps stay as they are.
    Stop,
}

/// The addresses of this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeAddresses {
    /// Every one, of all interfaces.
    pub all: BTreeSet<IpAddr>,
    /// Those of services, which kube-proxy put on an interface of its own in IPVS mode: there it is kube-proxy that
    /// answers, and translates.
    pub of_proxy: BTreeSet<IpAddr>,
    /// Prefixes that are none of its interfaces', and that count as its own where it sends from them.
    pub named: BTreeSet<Net>,
}

impl NodeAddresses {
    /// Everything that counts as its own in what it sends.
    pub fn nets(&self) -> BTreeSet<Net> {
        self.all.iter().copied().map(host_net).chain(self.named.iter().copied()).collect()
    }
}

/// Looks at the writer's state and sends its answer away.
pub type Question = Box<dyn FnOnce(&Answers<'_>) + Send>;

/// What a question may look at.
pub struct Answers<'a> {
    /// The cluster.
    pub index: &'a Index,
    /// What follows from it.
    pub engine: &'a Engine,
    /// The services and what the maps hold of them.
    pub services: &'a ServiceSync,
}

impl Answers<'_> {
    /// What the maps should hold.
    pub fn compiled(&self) -> &Compiled {
        self.engine.compiled()
    }
}

/// The writer is gone; policyd is stopping.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("ask the writer: it has stopped")]
pub struct Stopped;

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
    /// Sends; the answer, if any, comes through the message.
    pub fn send(&self, message: Message) -> Result<(), Stopped> {
        self.messages.send(message).map_err(|_| Stopped)
    }

    /// Where the source of this rank puts its updates.
    pub fn sink(&self, rank: Rank) -> impl FnMut(Update) + Send + 'static {
        let handle = self.clone();
        move |update| {
            // the writer only ends with the process
            let _ = handle.send(Message::Source(rank, update));
        }
    }

    /// Waits until everything sent before is in force, as far as it can be.
    pub async fn settled(&self) -> Result<(), Stopped> {
        let (reply, answer) = oneshot::channel();
        self.send(Message::Barrier(reply))?;
        answer.await.map_err(|_| Stopped)
    }

    /// Asks a question of the writer's state.
    pub async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&Answers<'_>) -> T + Send + 'static,
    ) -> Result<T, Stopped> {
        let (reply, answer) = oneshot::channel();
        let ask = Message::Ask(Box::new(move |answers| {
            // who asked may have gone away
            let _ = reply.send(question(answers));
        }));
        self.send(ask)?;
        answer.await.map_err(|_| Stopped)
    }
}

/// A running writer.
#[derive(Debug)]
pub struct Writer {
    handle: Handle,
    thread: Option<thread::JoinHandle<()>>,
    /// Its other end lives on the thread.
    alive: oneshot::Receiver<std::convert::Infallible>,
}

impl Writer {
    /// Takes over the maps and starts; `sources` are the names of all sources, by rank. Until each has spoken nothing
    /// is programmed: what an earlier policyd left stays in force, new endpoints stay in their startup state.
    pub fn start(
        shared: Arc<Shared>,
        sources: impl IntoIterator<Item = String>,
        observe: impl FnMut(std::time::Duration) + Send + 'static,
    ) -> Result<Self, StartError> {
        let (messages, inbox) = mpsc::channel();
        let mut run = run::Run::adopt(shared, sources, Box::new(observe))?;
        let (living, alive) = oneshot::channel();
        let thread = thread::Builder::new()
            .name("writer".into())
            .spawn(move || {
                let _living = living;
                run.run(&inbox);
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
    #[error("adopt the maps: {0}")]
    Adopt(#[from] podgate_bpf::Error),
    /// No thread.
    #[error("start the writer's thread: {0}")]
    Thread(io::Error),
}
