//! The real binary in worlds of its own: private mount and network namespaces, a private bpffs, the real
//! bridge plugin with host-local addresses before it, and a policyd that does what a test says.
//!
//! Needs root, the reference CNI plugins and iproute2; without them every test fails and names them.

// clippy's allow-expect-in-tests covers #[test] functions, not the helpers that they share
#![allow(clippy::expect_used)]

mod flows;
mod golden;
mod limits;
mod policyd;
mod policyd_client;
mod refusals;
mod removal;
mod reuse;
mod versions;
mod world;
