//! Real packets: a listener at the one end, a client at the other.
//!
//! All sockets are made on a thread inside the namespace they belong to and then used from the lab's
//! runtime: a socket keeps its namespace. A packet counts as having arrived when an answer came back,
//! because that takes the whole path: both gates, both directions.

mod answer;
mod icmp;
mod sctp;
mod socket;
mod tcp;
mod udp;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use podgate_contract::api::Verdict;
use podgate_policy::model::Protocol;
use podgate_policy::tables::Transport;
use tokio::time::Instant;

pub(crate) use answer::Answerers;

use super::error::{Error, Result};
use super::sandbox::Sandbox;

/// One try lasts this long. A gate answers nothing to a packet it drops, so silence is all there is to see.
const TRY: Duration = Duration::from_millis(600);

/// The network namespace that a socket is made in.
#[derive(Clone, Debug)]
pub(crate) enum Netns {
    /// In the node's own namespace, which is the lab's.
    Node,
    /// In a pod's, or in the one outside.
    Sandbox(Arc<Sandbox>),
}

impl Netns {
    /// Runs `work` there.
    fn run<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        match self {
            Self::Node => work(),
            Self::Sandbox(sandbox) => sandbox.inside(work)?,
        }
    }
}

/// A packet to send.
#[derive(Clone, Debug)]
pub(crate) struct PacketSpec {
    /// The namespace that it is sent from.
    pub netns: Netns,
    /// Its source address, one of the namespace's.
    pub from: IpAddr,
    /// Its destination.
    pub to: IpAddr,
    /// What it carries.
    pub transport: Transport,
}

/// What came back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Response {
    /// An answer came back; TCP and UDP say whose.
    Answered(Option<String>),
    /// Nothing came back.
    Silent,
    /// Nothing came back, but the question has arrived: not a gate on its way, its answer is missing.
    Unanswered,
    /// The network itself refused to carry it, which no gate does: a fault of the lab.
    Unroutable(String),
}

/// How long to wait for an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Patience {
    /// An answer is expected: a packet lost on a busy machine is no verdict, so ask again for a while.
    Answer,
    /// An answer is expected and did not come while many were asking: now asked alone, for longer.
    Alone,
    /// Silence is expected: one try.
    Silence,
}

/// Whether a datagram is repeated within a try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Retry {
    Never,
    Repeat,
}

impl Response {
    /// What the gates did: an answer takes both, in both directions.
    pub(super) fn verdict(&self) -> Verdict {
        match self {
            Self::Answered(_) => Verdict::Allow,
            Self::Silent | Self::Unanswered | Self::Unroutable(_) => Verdict::Deny,
        }
    }
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
pub(crate) async fn ask_once(packet: &PacketSpec) -> Result<Response> {
    one(packet, Retry::Never).await
}

async fn one(packet: &PacketSpec, retry: Retry) -> Result<Response> {
    let one = async {
        match packet.transport {
            Transport::Port(Protocol::Tcp, port) => tcp::ask(packet, port).await,
            Transport::Port(Protocol::Udp, port) => udp::ask(packet, port, retry).await,
            Transport::Port(Protocol::Sctp, port) => sctp::ask(packet, port).await,
            Transport::Number(protocol) => Err(Error::Missing {
                what: format!("send a packet of {protocol}"),
                hint: "the lab sends TCP, UDP, SCTP and ICMP only".into(),
            }),
            Transport::Other => icmp::ask(packet).await,
        }
    };
    match tokio::time::timeout(TRY, one).await {
        Ok(response) => response,
        Err(_) => Ok(Response::Silent),
    }
}

/// Sends until something comes back or the time is over.
pub(crate) async fn ask(packet: &PacketSpec, patience: Patience) -> Result<Response> {
    let end = Instant::now() + patience.total();
    loop {
        let response = one(packet, Retry::Repeat).await?;
        if matches!(response, Response::Answered(_)) || Instant::now() >= end {
            return Ok(response);
        }
        if matches!(response, Response::Unroutable(_)) {
            // at once, without using up the try
            tokio::time::sleep(TRY / 6).await;
        }
    }
}
