//! `podgatectl lab`: the world of some manifests, with real namespaces, the real CNI chain, the real
//! daemon and real packets; and what the packets say compared with what the compiled tables say.
//!
//! ```text
//!   isolate          install, plan                node, chain, daemon            wire
//!   walls first  ->  what is needed, who has  ->  the world is built   ->  packets, verdicts
//!                    which address
//! ```
//!
//! The order of building is that of a real node: network, policyd, pods. No verdict of a lab comes
//! from a table: the tables only say which answer to wait for longer, and whether the datapath is wrong.

mod build;
mod chain;
mod daemon;
mod error;
mod install;
mod isolate;
mod netlink;
mod node;
mod pick;
pub mod plan;
mod report;
mod run;
mod sandbox;
mod services;
mod wire;

pub use chain::{Attachment, Chain};
pub use error::{Error, Result};
pub use run::{Options, run};
pub use wire::{Answerers, Outcome, Patience, Place, Shot, ask, ask_once};
