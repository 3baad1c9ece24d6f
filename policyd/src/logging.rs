//! Logging to stderr.

use clap::{Args, ValueEnum};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;

/// Logging, to stderr.
#[derive(Debug, Args)]
#[command(next_help_heading = "Logging, to stderr")]
pub struct Log {
    /// How log lines look
    #[arg(long, env = "PODGATE_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text, value_name = "FORMAT")]
    pub log_format: LogFormat,
    /// error, warn, info, debug, trace, or directives like `info,policyd=debug`
    #[arg(long, env = "PODGATE_LOG_LEVEL", default_value = "info", value_name = "LEVEL")]
    pub log_level: String,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// kube's client calls every failed request an error. The source says once that it cannot watch and why, and again
/// when it can; a directive that names `kube_client` brings the lines back.
const FAILED_REQUESTS: &str = "kube_client::client::builder=off";

/// Sets up the process's log. To be called once.
pub fn start(log: &Log) -> Result<(), ParseError> {
    let Log { log_format, log_level } = log;
    let mut filter = EnvFilter::try_new(log_level)?;
    if !log_level.contains("kube_client") {
        filter = filter.add_directive(FAILED_REQUESTS.parse()?);
    }
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match log_format {
        LogFormat::Text => {
            lines.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).init()
        }
        LogFormat::Json => lines.json().init(),
    }
    Ok(())
}
