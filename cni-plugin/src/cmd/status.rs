//! STATUS: would ADD give a pod its policy? Only if the configuration is sound and policyd is ready.

use std::time::Duration;

use podgate_bpf::handshake::Request;

use crate::daemon;
use crate::spec::keys::{Places, Settings};
use crate::spec::{CniError, Code, NetConf};

/// A runtime asks every few seconds and waits for each answer.
const LIMIT: Duration = Duration::from_secs(1);

pub(super) fn status(conf: &NetConf) -> Result<String, CniError> {
    conf.require_name()?;
    Settings::read(conf)?;
    let places = Places::read(conf)?;
    daemon::confirm(&places.socket, &Request::Status, LIMIT).map_err(|cause| {
        CniError::new(
            Code::NotAvailable,
            "podgate is not ready: pods would start in their startup state",
        )
        .because(cause)
    })?;
    Ok(String::new())
}
