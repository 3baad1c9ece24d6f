//! The commands that ask this node's policyd, over its API socket.

mod ask;
mod client;
mod counters;
mod enforcement;
mod observe;
mod policies;
mod services;

pub(super) use ask::{endpoints, explain, rules, status};
pub(super) use client::Server;
pub(super) use counters::top;
pub(super) use enforcement::enforcement;
pub(crate) use observe::Observe;
pub(super) use observe::observe;
pub(super) use policies::{apply, delete, policies};
pub(super) use services::services;

/// Where policyd serves its API.
pub(crate) const SOCKET: &str = "/run/podgate/api.sock";
