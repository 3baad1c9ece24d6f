//! The commands that ask this node's policyd, over its API socket.

mod advise;
mod ask;
mod audit;
mod client;
mod clock;
mod counters;
mod enforcement;
mod explain;
mod limits;
mod observe;
mod policies;
mod rule;
mod services;
mod usage;

pub(super) use advise::{Options as AdviseOptions, propose};
pub(super) use ask::{endpoints, rules, status};
pub(super) use audit::{Options as AuditOptions, audit};
pub(super) use client::Server;
pub(super) use counters::top;
pub(super) use enforcement::{Change, enforcement};
pub(super) use explain::explanation;
pub(super) use limits::limits;
pub(crate) use observe::Observe;
pub(super) use observe::observe;
pub(super) use policies::{apply, cluster_policies, delete, policies, traffic_policies};
pub(crate) use rule::{Rule, rule};
pub(super) use services::services;
pub(super) use usage::{Options as UsageOptions, usage};

/// Where policyd serves its API.
pub(crate) const SOCKET: &str = "/run/podgate/api.sock";
