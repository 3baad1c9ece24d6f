//! What the tests of every crate share, as a dev-dependency: no test touches the machine that it runs on.
//!
//! [`sandbox`] gives namespaces and a BPF file system to a test binary or a thread, [`net`] further network namespaces held by
//! descriptor, [`packet`] builds frames, [`wait`] waits, always bounded.

pub mod net;
pub mod packet;
pub mod sandbox;
pub mod wait;
