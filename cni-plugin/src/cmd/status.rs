//! STATUS: would ADD give a pod its policy? Only if the configuration is sound and policyd is ready.

use std::time::Duration;

use podgate_contract::handshake::Request;

use crate::policyd_client;
use crate::spec::keys::{PluginPaths, Settings};
use crate::spec::{CniError, Code, NetConf};

/// A runtime calls STATUS every few seconds and waits for each result.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

pub(super) fn status(conf: &NetConf) -> Result<String, CniError> {
    conf.require_name()?;
    Settings::read(conf)?;
    let paths = PluginPaths::read(conf)?;
    policyd_client::confirm(&paths.socket, &Request::Status, ANSWER_TIMEOUT).map_err(|cause| {
        CniError::new(
            Code::NotAvailable,
            "podgate is not ready: pods would start in their startup state",
        )
        .because(cause)
    })?;
    Ok(String::new())
}
