//! What the plugin asks of policyd: is the policy in force, and is it ready?

use std::fmt;
use std::path::Path;
use std::time::Duration;

use podgate_contract::client::{self, NoAnswer};
use podgate_contract::handshake::{Request, Response};

/// How long DEL and GC wait for policyd to acknowledge a removal. It answers at once, and a removal that it misses it
/// finds when it compares its state with the registry.
pub const REMOVAL_TIMEOUT: Duration = Duration::from_millis(500);

/// Why policyd has not confirmed a request.
#[derive(Debug)]
pub enum NotEnforced {
    /// No response within the time.
    NoAnswer(NoAnswer),
    /// The response was `pending` or `error`, with this text.
    Refused(String),
}

impl fmt::Display for NotEnforced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoAnswer(cause) => write!(f, "{cause}"),
            Self::Refused(text) => write!(f, "{text}"),
        }
    }
}

/// Waits until policyd answers `ok`.
pub fn confirm(path: &Path, request: &Request, timeout: Duration) -> Result<(), NotEnforced> {
    match client::send(path, request, timeout) {
        Ok(Response::Ok) => Ok(()),
        Ok(Response::Pending { reason }) => {
            Err(NotEnforced::Refused(format!("policyd is not done yet: {reason}")))
        }
        Ok(Response::Error { message }) => {
            Err(NotEnforced::Refused(format!("policyd refuses: {message}")))
        }
        Err(no_answer) => Err(NotEnforced::NoAnswer(no_answer)),
    }
}
