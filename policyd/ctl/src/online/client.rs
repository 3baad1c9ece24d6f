//! HTTP over policyd's unix socket.

use std::io::{self, ErrorKind};
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::{Method, Request, Response, StatusCode, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use podgate_contract::api::ApiError;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::runtime;
use tokio::time::{Instant, sleep, timeout_at};

use crate::Failure;

/// How often to try again while policyd takes no more connections.
const TRY_AGAIN: Duration = Duration::from_millis(50);

/// Where policyd is, and how long it may take.
#[derive(Clone, Debug, Args)]
pub(crate) struct Server {
    /// policyd's API socket
    #[arg(long, global = true, env = "PODGATE_API_SOCKET", default_value = super::SOCKET)]
    socket: PathBuf,
    /// Give up when policyd has not answered for so many seconds; a stream, once begun, has no limit
    #[arg(long, global = true, default_value_t = 30, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    timeout: u64,
}

/// Talks to one policyd, one request at a time.
#[derive(Debug)]
pub(super) struct Client {
    server: Server,
    runtime: runtime::Runtime,
}

/// A question and its answer.
type Answer = Result<(StatusCode, Bytes), Failure>;

impl Client {
    pub(super) fn new(server: &Server) -> Result<Self, Failure> {
        let runtime = runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|e| Failure(format!("start a runtime: {e}")))?;
        Ok(Self { server: server.clone(), runtime })
    }

    /// GET, as the type that the answer has.
    pub(super) fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        decode(path, &self.ask(Method::GET, path, None)?)
    }

    /// Any request that succeeds or fails; the answer as text.
    pub(super) fn ask(
        &self,
        method: Method,
        path: &str,
        body: Option<String>,
    ) -> Result<Bytes, Failure> {
        let what = format!("{} {path}", method.as_str().to_lowercase());
        let (status, answer) = self.runtime.block_on(self.exchange(method, path, body))?;
        if status.is_success() {
            return Ok(answer);
        }
        Err(refused(&what, status, &answer))
    }

    async fn exchange(&self, method: Method, path: &str, body: Option<String>) -> Answer {
        let deadline = self.deadline();
        let response = self.send(method, path, body, deadline).await?;
        let status = response.status();
        let body = timeout_at(deadline, response.into_body().collect()).await;
        let body = body.map_err(|_| self.late())?;
        let body = body.map_err(|e| Failure(format!("read the answer of policyd: {e}")))?;
        Ok((status, body.to_bytes()))
    }

    fn deadline(&self) -> Instant {
        Instant::now() + Duration::from_secs(self.server.timeout)
    }

    fn late(&self) -> Failure {
        Failure(format!(
            "ask policyd on {}: no answer within {} s: see its log, or give it longer with --timeout",
            self.server.socket.display(),
            self.server.timeout
        ))
    }

    /// Hands over each line of an answer that does not end by itself, until `take` says stop.
    pub(super) fn lines(
        &self,
        path: &str,
        mut take: impl FnMut(&str) -> Result<bool, Failure>,
    ) -> Result<(), Failure> {
        self.runtime.block_on(async {
            let deadline = self.deadline();
            let mut response = self.send(Method::GET, path, None, deadline).await?;
            if !response.status().is_success() {
                let status = response.status();
                let answer = timeout_at(deadline, response.into_body().collect()).await;
                let answer = answer.ok().and_then(Result::ok).unwrap_or_default().to_bytes();
                return Err(refused(&format!("get {path}"), status, &answer));
            }
            let mut pending = Vec::new();
            while let Some(frame) = response.frame().await {
                let frame = frame.map_err(|e| Failure(format!("read from policyd: {e}")))?;
                pending.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
                while let Some(end) = pending.iter().position(|byte| *byte == b'\n') {
                    let line = pending.drain(..=end).collect::<Vec<_>>();
                    if !take(String::from_utf8_lossy(&line).trim_end())? {
                        return Ok(());
                    }
                }
            }
            Err(Failure("policyd has ended the stream".into()))
        })
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<String>,
        deadline: Instant,
    ) -> Result<Response<Incoming>, Failure> {
        let socket = self.server.socket.display();
        let connected = timeout_at(deadline, self.connect()).await;
        let stream = connected.map_err(|_| self.late())?.map_err(|e| {
            Failure(match e.kind() {
                ErrorKind::NotFound | ErrorKind::ConnectionRefused => format!(
                    "connect to {socket}: {e}: is policyd running on this node? (explain, matrix and check answer without it, from --manifests DIR)"
                ),
                ErrorKind::PermissionDenied => format!("connect to {socket}: {e}: only root may"),
                _ => format!("connect to {socket}: {e}"),
            })
        })?;
        let failed =
            |e: &dyn std::error::Error| Failure(format!("talk to policyd on {socket}: {e}"));
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|e| failed(&e))?;
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "policyd")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body.unwrap_or_default())))
            .map_err(|e| failed(&e))?;
        let answered = timeout_at(deadline, sender.send_request(request)).await;
        answered.map_err(|_| self.late())?.map_err(|e| failed(&e))
    }

    /// Where the backlog is full the kernel says so at once, and a place in it may come free.
    async fn connect(&self) -> io::Result<UnixStream> {
        loop {
            match UnixStream::connect(&self.server.socket).await {
                Err(error) if error.kind() == ErrorKind::WouldBlock => sleep(TRY_AGAIN).await,
                connected => return connected,
            }
        }
    }
}

/// policyd's own words name the object and the field already.
fn refused(what: &str, status: StatusCode, answer: &[u8]) -> Failure {
    Failure(match serde_json::from_slice::<ApiError>(answer) {
        Ok(ApiError { error, .. }) => error,
        Err(_) => format!("{what}: {status}: {}", String::from_utf8_lossy(answer).trim()),
    })
}

/// Reads an answer; a policyd of another version may not speak the same.
pub(super) fn decode<T: DeserializeOwned>(path: &str, answer: &[u8]) -> Result<T, Failure> {
    serde_json::from_slice(answer).map_err(|e| {
        Failure(format!("read the answer to {path}: {e} (is policyd of this version?)"))
    })
}
