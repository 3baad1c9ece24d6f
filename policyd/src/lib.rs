//! The daemon of a node: from policies to the kernel's maps.
//!
//! ```text
//!   sources --Update--> writer [ store -> index -> compile -> plan -> sync ] --steps--> maps <-- packets
//!                         ^   |
//!        cni.sock, links -+   +-- Shared --> api.sock, metrics
//! ```
//!
//! One thread, the [`writer`], owns everything that decides what the maps hold; every other part sends it
//! [`writer::Message`]s and reads what it publishes in [`view::Shared`]. So there is one order of events, and
//! "is in force" is a fact that one place knows.

pub mod adopt;
pub mod api;
pub mod args;
pub mod check;
pub mod cni;
pub mod ctl;
pub mod daemon;
pub mod encode;
pub mod events;
pub mod install;
pub mod lab;
pub mod listen;
pub mod logging;
pub mod metrics;
pub mod node_addresses;
pub mod reconcile;
pub mod report;
mod shares;
pub mod socket;
pub mod sources;
pub mod sync;
pub mod ungated;
pub mod view;
pub mod writer;
