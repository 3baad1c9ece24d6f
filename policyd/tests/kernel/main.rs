//! policyd against the real kernel: real maps, real links, the real process. Needs root.
//!
//! Each test has a mount and a network namespace of its own, which end with it: see [`node`].

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod adoption;
mod affinity;
mod api;
mod cannot_enforce;
mod capabilities;
mod cni_socket;
mod commit_order;
mod commits;
mod degraded;
mod flows;
mod kill;
mod limits;
mod listeners;
mod node;
mod pod_limits;
mod programming;
mod reconcile;
mod running;
mod sandbox;
mod services;
mod services_nodes;
mod services_order;
mod stopped;
mod uninstall;
mod untranslated_services;
mod upgrade;
mod usage;
mod writing;
