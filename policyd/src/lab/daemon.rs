//! The real policyd, as its own process.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use clap::{Arg, CommandFactory};
use podgate_bpf::handshake::{self, Request, Response};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};

use super::error::{Error, Result};
use super::isolate::STATE;
use super::plan::NODE;
use crate::args::Cli;

/// How long it may take to read the manifests and load the programs, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);
/// Lines of its log that an error shows.
const LOG_LINES: usize = 15;

/// A running policyd.
#[derive(Debug)]
pub(crate) struct Daemon {
    child: Child,
    log: PathBuf,
}

impl Daemon {
    /// Starts it on the manifests and waits until it is ready.
    ///
    /// `services`: a manifest of the world's services, more complete than those of `manifests`.
    pub(crate) async fn start(
        binary: &Path,
        manifests: &Path,
        services: Option<String>,
    ) -> Result<Self> {
        let log = Path::new(STATE).join("policyd.log");
        let io = |e| Error::io("write", log.display().to_string(), e);
        let (out, err) = File::create(&log).and_then(|f| Ok((f.try_clone()?, f))).map_err(io)?;
        let services = services.map(keep_services).transpose()?;
        let mut command = Command::new(binary);
        // settings of the machine's own policyd are not meant
        let run = Cli::command().find_subcommand("run").cloned().unwrap_or_default();
        for setting in run.get_arguments().filter_map(Arg::get_env) {
            command.env_remove(setting);
        }
        let child = command
            .args(["run", "--node-name", NODE, "--metrics-addr", "off"])
            // a busy machine is no reason for an ADD to fail
            .args(["--cni-wait-ms", "15000"])
            // of two sources that know a service the first one is believed
            .args(services.iter().flat_map(|dir| ["--source".into(), spec(dir)]))
            .args(["--source".into(), spec(manifests)])
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            .kill_on_drop(true)
            .spawn()
            .map_err(|e| Error::io("start", binary.display().to_string(), e))?;
        let mut daemon = Self { child, log };
        let end = Instant::now() + PATIENCE;
        loop {
            daemon.check()?;
            let last = match timeout(Duration::from_secs(1), ready()).await {
                Ok(Ok(Response::Ok)) => return Ok(daemon),
                Ok(Ok(Response::Pending { reason })) => reason,
                Ok(Ok(Response::Error { message })) => message,
                Ok(Err(error)) => error.to_string(),
                Err(_) => "no answer".to_owned(),
            };
            if Instant::now() > end {
                return Err(daemon.failed(format!("not ready after {PATIENCE:?}: {last}")));
            }
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// That it still runs.
    pub(crate) fn check(&mut self) -> Result<()> {
        match self.child.try_wait() {
            Ok(None) => Ok(()),
            Ok(Some(status)) => Err(self.failed(format!("it ended with {status}"))),
            Err(e) => Err(Error::io("ask after", "policyd", e)),
        }
    }

    /// An error with the end of its log.
    pub(crate) fn failed(&self, reason: String) -> Error {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines = log.lines().collect::<Vec<_>>();
        let last = lines[lines.len().saturating_sub(LOG_LINES)..].join("\n");
        Error::Daemon { reason, log: last }
    }
}

fn spec(dir: &Path) -> String {
    format!("dir:{}", dir.display())
}

/// Writes a manifest of services where policyd can read it; returns its directory.
fn keep_services(manifest: String) -> Result<PathBuf> {
    let dir = Path::new(STATE).join("services");
    let written =
        fs::create_dir_all(&dir).and_then(|()| fs::write(dir.join("services.json"), manifest));
    written.map_err(|e| Error::io("write", dir.display().to_string(), e))?;
    Ok(dir)
}

/// Asks what the plugin's STATUS verb asks.
async fn ready() -> std::io::Result<Response> {
    let mut stream = UnixStream::connect(handshake::DEFAULT_SOCKET).await?;
    let line = serde_json::to_string(&Request::Status)? + "\n";
    stream.write_all(line.as_bytes()).await?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).await?;
    Ok(serde_json::from_str(&answer)?)
}
