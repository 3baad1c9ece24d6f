//! Real packets: somebody who answers at the one end, somebody who asks at the other.
//!
//! All sockets are made on a thread inside the namespace they belong to and then used from the lab's
//! runtime: a socket keeps its namespace. A packet counts as having arrived when an answer came back,
//! because that takes the whole way: both gates, both directions.

mod answer;
mod icmp;
mod sctp;
mod socket;
mod tcp;
mod udp;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use podgate_policy::compile::Transport;
use podgate_policy::model::Protocol;
use tokio::time::Instant;

pub use answer::Answerers;

use super::error::Result;
use super::sandbox::Sandbox;

/// One try lasts this long. A gate answers nothing to a packet it drops, so silence is all there is to see.
const TRY: Duration = Duration::from_millis(600);

/// Where a socket is made.
#[derive(Clone, Debug)]
pub enum Place {
    /// In the node's own namespace, which is the lab's.
    Node,
    /// In a pod's, or in the one outside.
    Inside(Arc<Sandbox>),
}

impl Place {
    /// Runs `work` there.
    fn run<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        match self {
            Self::Node => work(),
            Self::Inside(sandbox) => sandbox.inside(work)?,
        }
    }
}

/// One question to the network.
#[derive(Clone, Debug)]
pub struct Shot {
    /// Where it starts.
    pub place: Place,
    /// Its source address, one of the place's.
    pub from: IpAddr,
    /// Its destination.
    pub to: IpAddr,
    /// What it carries.
    pub transport: Transport,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// An answer came back; TCP and UDP say whose.
    Answered(Option<String>),
    /// Nothing came back.
    Silent,
    /// Nothing came back, but the question has arrived: not a gate on its way, its answer is missing.
    Unanswered,
    /// The network itself refused to carry it, which no gate does: a fault of the lab.
    Unroutable(String),
}

/// How long to wait before silence is believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    /// An answer is expected: a packet lost on a busy machine is no verdict, so ask again for a while.
    Answer,
    /// An answer is expected and did not come while many were asking: now asked alone, for longer.
    Alone,
    /// Silence is expected: one try.
    Silence,
}

/// Whether a datagram is repeated within a try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Often {
    Once,
    Again,
}

impl Patience {
    fn total(self) -> Duration {
        match self {
            Self::Answer => 5 * TRY,
            Self::Alone => 20 * TRY,
            Self::Silence => TRY,
        }
    }
}

/// Sends one packet; TCP and SCTP may repeat their first within its time.
pub async fn ask_once(shot: &Shot) -> Result<Outcome> {
    one(shot, Often::Once).await
}

async fn one(shot: &Shot, often: Often) -> Result<Outcome> {
    let one = async {
        match shot.transport {
            Transport::Port(Protocol::Tcp, port) => tcp::ask(shot, port).await,
            Transport::Port(Protocol::Udp, port) => udp::ask(shot, port, often).await,
            Transport::Port(Protocol::Sctp, port) => sctp::ask(shot, port).await,
            Transport::Other => icmp::ask(shot).await,
        }
    };
    match tokio::time::timeout(TRY, one).await {
        Ok(outcome) => outcome,
        Err(_) => Ok(Outcome::Silent),
    }
}

/// Sends until something comes back or patience ends.
pub async fn ask(shot: &Shot, patience: Patience) -> Result<Outcome> {
    let end = Instant::now() + patience.total();
    loop {
        let outcome = one(shot, Often::Again).await?;
        if matches!(outcome, Outcome::Answered(_)) || Instant::now() >= end {
            return Ok(outcome);
        }
        if matches!(outcome, Outcome::Unroutable(_)) {
            // at once, without using up the try
            tokio::time::sleep(TRY / 6).await;
        }
    }
}
