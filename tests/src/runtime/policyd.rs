//! policyd in a node.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use podgate_contract::handshake::{DEFAULT_SOCKET, Request, Response};
use podgate_testkit::wait::until;
use serde_json::Value;

use super::holder::HOME;
use super::node::{Node, built};
use super::program::Daemon;

/// Where its API is, in the node.
pub const API: &str = "/run/podgate/api.sock";

/// Longest that it may take to be ready.
const READY_TIMEOUT: Duration = Duration::from_secs(90);

/// A running policyd that has read the world once.
#[derive(Debug)]
pub struct Policyd {
    /// The process, to be frozen or killed.
    pub daemon: Daemon,
    api: PathBuf,
    cni: PathBuf,
}

impl Policyd {
    /// Starts it on the node's world and waits until it says that it is ready.
    pub fn start(node: &Node) -> Result<Self> {
        Self::launch(node)?.when_ready()
    }

    /// Waits until it says that it is ready. It may have to wait itself, for its predecessor's end: see
    /// [`Daemon::kill`].
    pub fn when_ready(mut self) -> Result<Self> {
        let over = until(READY_TIMEOUT, || self.is_ready() || !self.daemon.is_running());
        if over && self.is_ready() {
            return Ok(self);
        }
        bail!("start policyd: it is not ready: {}", self.daemon.log())
    }

    /// Starts it and does not wait.
    pub fn launch(node: &Node) -> Result<Self> {
        Self::launch_with(node, &format!("dir:{HOME}/manifests"))
    }

    /// The same on another source, as `--source` names it.
    pub fn launch_with(node: &Node, source: &str) -> Result<Self> {
        let mut command = node.command(built("policyd")?);
        command
            .args(["run", "--source", source, "--node-name", "node"])
            .args(["--metrics-addr", "off"])
            // whether that is too long for an ADD its configuration says
            .args(["--cni-wait-ms", "15000"]);
        let daemon = node.start_daemon("policyd", command)?;
        Ok(Self { daemon, api: node.path(API), cni: node.path(DEFAULT_SOCKET) })
    }

    /// Whether the world has been read and is in force.
    pub fn is_ready(&self) -> bool {
        let answer =
            podgate_contract::client::send(&self.cni, &Request::Status, Duration::from_secs(1));
        matches!(answer, Ok(Response::Ok))
    }

    /// An answer of the API.
    pub fn get(&self, path: &str) -> Result<Value> {
        get(&self.api, path)
    }

    /// Each endpoint's pod name and its state.
    pub fn endpoint_states(&self) -> Result<Vec<(String, String)>> {
        let endpoints = self.get("/v1/endpoints")?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let list = endpoints.as_array().or_else(|| endpoints["items"].as_array());
        let list = list.with_context(|| format!("read endpoints: no list: {endpoints}"))?;
        Ok(list.iter().map(|item| (text(&item["name"]), text(&item["state"]))).collect())
    }
}

/// What the policyd behind a socket of the API answers.
pub fn get(socket: &Path, path: &str) -> Result<Value> {
    let ask = || -> Result<Value> {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: p\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("no end of the header")?;
        if !head.starts_with("HTTP/1.1 200") {
            bail!("{answer}");
        }
        Ok(serde_json::from_str(body)?)
    };
    ask().with_context(|| format!("GET {path} of policyd"))
}
