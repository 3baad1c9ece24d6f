//! The CNI protocol: what a runtime hands over and what it expects back. Knows nothing of gates.

pub mod args;
pub mod bandwidth;
pub mod config;
pub mod env;
pub mod error;
pub mod keys;
pub mod result;
pub mod version;

pub use config::NetConf;
pub use error::{CniError, Code};
pub use result::PrevResult;
pub use version::SpecVersion;
