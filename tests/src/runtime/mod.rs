//! Nodes for the runtime tier: the real containerd, driven through CRI, with podgate in the conflist.
//!
//! A [`Node`] lives behind walls of its own (see [`holder`]): PID, mount and network namespaces, a bpffs, a
//! `/run` and a `/var/lib`, all of which end with it. Outside it has nothing but a directory in each cgroup
//! hierarchy, which is removed afterwards. So any number of nodes run side by side, and a test that panics, or is
//! killed, leaves as little as one that passes.

pub mod cgroup;
pub mod cnitool;
pub mod conflist;
pub mod cri;
pub mod holder;
pub mod image;
pub mod node;
pub mod outcome;
pub mod peer;
pub mod policyd;
pub mod program;
pub mod recorder;
pub mod traffic;
pub mod world;

pub use conflist::Conflist;
pub use cri::{Cri, Pod};
pub use node::Node;
pub use peer::Peer;
pub use policyd::Policyd;
