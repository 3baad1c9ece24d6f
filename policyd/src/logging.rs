//! Logging to stderr.

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;

use crate::args::{Log, LogFormat};

/// Sets up the process's log. To be called once.
pub fn start(log: &Log) -> Result<(), ParseError> {
    let Log { log_format, log_level } = log;
    let filter = EnvFilter::try_new(log_level)?;
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match log_format {
        LogFormat::Text => {
            lines.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).init()
        }
        LogFormat::Json => lines.json().init(),
    }
    Ok(())
}
