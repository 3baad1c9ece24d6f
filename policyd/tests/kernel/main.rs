//! policyd against the real kernel: real maps, real links, the real process. Needs root.
//!
//! Each test has a mount and a network namespace of its own, which end with it: see [`node`].

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod adoption;
mod api;
mod capabilities;
mod cni_socket;
mod commits;
mod degraded;
mod flows;
mod kill;
mod limits;
mod listeners;
mod node;
mod programming;
mod reconcile;
mod running;
mod services;
mod services_left;
mod services_nodes;
mod services_order;
mod stopped;
mod uninstall;
mod upgrade;
mod writing;
