//! A node with pods, of real namespaces and veths, behind real gates.
//!
//! ```text
//!   node:  br0 10.0.0.1/24 fd00::1/64
//!            |-- v10 --- eth0 of pod 10: 10.0.0.10, fd00::10
//!            |-- v11 --- eth0 of pod 11: ...
//! ```
//!
//! Every lab has namespaces, programs and maps of its own, so labs run side by side in one process. What the
//! maps hold goes through policyd's own [`policyd::sync`]: a change of policy here is what it is on a node.
//! Nothing outlives the handles: a namespace goes with the last descriptor and takes its links along.

mod lab;
mod policy;
mod tap;

pub use lab::{Family, Lab, Pod};
pub use policy::Policy;
pub use tap::Tap;
