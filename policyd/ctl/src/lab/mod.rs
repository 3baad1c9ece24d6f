//! `podgatectl lab`: the cluster of some manifests, with real namespaces, the real CNI chain, the real
//! daemon and real packets; and what the packets say compared with what the compiled tables say.
//!
//! ```text
//!   isolate         install, plan                 node, chain, daemon        tries, wire
//!   namespaces  ->  binaries, and who has     ->  the cluster is built   ->  packets, verdicts
//!                   which address
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
pub(crate) mod plan;
mod report;
mod run;
mod sample_backends;
mod sandbox;
mod services;
mod tries;
mod wire;

pub(crate) use run::{Options, run};
