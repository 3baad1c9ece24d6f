//! The real policyd, as its own process.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use podgate_contract::client;
use podgate_contract::handshake::{DEFAULT_SOCKET, Request, Response};
use tokio::process::{Child, Command};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep};

use super::error::{Error, Result};
use super::isolate::STATE;
use super::plan::NODE;

/// How long policyd may take to read the manifests and load the programs, on a busy machine.
const READY_TIMEOUT: Duration = Duration::from_secs(90);
/// How long one request for its state may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);
/// What policyd gets of the environment: none of it is an option of its own.
const KEPT: [&str; 4] = ["PATH", "RUST_LOG", "RUST_BACKTRACE", "TMPDIR"];
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
    /// `services`: a manifest of the cluster's services, more complete than those of `manifests`.
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
        // every option of policyd can be given in the environment, and this machine's own policyd may have been
        command.env_clear().envs(env::vars_os().filter(|(name, _)| KEPT.iter().any(|k| name == k)));
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
        let end = Instant::now() + READY_TIMEOUT;
        loop {
            daemon.check()?;
            // the same request as that of the plugin's STATUS verb
            let request =
                || client::send(Path::new(DEFAULT_SOCKET), &Request::Status, ANSWER_TIMEOUT);
            let last = match spawn_blocking(request).await {
                Ok(Ok(Response::Ok)) => return Ok(daemon),
                Ok(Ok(Response::Pending { reason })) => reason,
                Ok(Ok(Response::Error { message })) => message,
                Ok(Err(no_answer)) => no_answer.to_string(),
                Err(error) => error.to_string(),
            };
            if Instant::now() > end {
                return Err(daemon.failed(format!("not ready after {READY_TIMEOUT:?}: {last}")));
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
