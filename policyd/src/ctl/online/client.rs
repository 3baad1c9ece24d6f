//! HTTP over policyd's unix socket.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::{Method, Request, Response, StatusCode, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::runtime;

use crate::api::types::ApiError;
use crate::ctl::Failure;

/// Talks to one policyd, one request at a time.
#[derive(Debug)]
pub(super) struct Client {
    socket: PathBuf,
    runtime: runtime::Runtime,
}

/// A question and its answer.
type Answer = Result<(StatusCode, Bytes), Failure>;

impl Client {
    pub(super) fn new(socket: &Path) -> Result<Self, Failure> {
        let runtime = runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|e| Failure(format!("start a runtime: {e}")))?;
        Ok(Self { socket: socket.to_path_buf(), runtime })
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
        // its own words name the object and the field already
        let told = match serde_json::from_slice::<ApiError>(&answer) {
            Ok(ApiError { error, .. }) => error,
            Err(_) => format!("{what}: {status}: {}", String::from_utf8_lossy(&answer).trim()),
        };
        Err(Failure(told))
    }

    async fn exchange(&self, method: Method, path: &str, body: Option<String>) -> Answer {
        let response = self.send(method, path, body).await?;
        let status = response.status();
        let body = response.into_body().collect().await;
        let body = body.map_err(|e| Failure(format!("read the answer of policyd: {e}")))?;
        Ok((status, body.to_bytes()))
    }

    /// Hands over each line of an answer that does not end by itself, until `take` says stop.
    pub(super) fn lines(
        &self,
        path: &str,
        mut take: impl FnMut(&str) -> Result<bool, Failure>,
    ) -> Result<(), Failure> {
        self.runtime.block_on(async {
            let mut response = self.send(Method::GET, path, None).await?;
            if !response.status().is_success() {
                return Err(Failure(format!("get {path}: {}", response.status())));
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
    ) -> Result<Response<Incoming>, Failure> {
        let socket = self.socket.display();
        let stream = UnixStream::connect(&self.socket).await.map_err(|e| {
            Failure(match e.kind() {
                ErrorKind::NotFound | ErrorKind::ConnectionRefused => format!(
                    "connect to {socket}: {e}: is policyd running on this node? (offline, give --manifests DIR)"
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
        sender.send_request(request).await.map_err(|e| failed(&e))
    }
}

/// Reads an answer; a policyd of another version may not speak the same.
pub(super) fn decode<T: DeserializeOwned>(path: &str, answer: &[u8]) -> Result<T, Failure> {
    serde_json::from_slice(answer).map_err(|e| {
        Failure(format!("read the answer to {path}: {e} (is policyd of this version?)"))
    })
}
