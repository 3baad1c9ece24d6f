//! VERSION: needs nothing but the input's `cniVersion`, and not even that.

use crate::spec::{CniError, NetConf, SpecVersion};

/// The versions that this plugin speaks, in the caller's version if it is one of them.
pub fn version(input: &[u8]) -> (SpecVersion, Result<String, CniError>) {
    let version = NetConf::version_of(input).unwrap_or(SpecVersion::LATEST);
    (version, Ok(version.answer()))
}
