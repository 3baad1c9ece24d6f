//! Serves the plugin's socket: one JSON line each way ([`podgate_contract::handshake`]).
//!
//! No state depends on it: the registration is in the kernel's map before the line is sent, and the writer's next sweep
//! finds what a lost line would have announced.

use std::sync::Arc;
use std::time::Duration;

use podgate_contract::handshake::{EndpointRef, MAX_LINE, Request, Response};
use podgate_policy::tables::EndpointId;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, oneshot};

use crate::listen::{CNI_CONNECTIONS, accept_unix};
use crate::snapshot::NodeState;
use crate::writer::{Handle, Message, Stopped};

/// How long a plugin may take to send its line, or to receive the response.
const LINE_TIMEOUT: Duration = Duration::from_secs(5);
/// An ADD that takes longer is probably waiting for an object from a source.
const WAKE_SOURCES_AFTER: Duration = Duration::from_millis(100);

/// Answers plugins.
#[derive(Clone, Debug)]
pub struct CniServer {
    /// Has the state of the endpoints.
    pub shared: Arc<NodeState>,
    /// Executes ADD and DEL.
    pub writer: Handle,
    /// How long an ADD may wait before the response is "pending". Shorter than the plugin's own time-out, so that the
    /// reason reaches it.
    pub wait: Duration,
}

impl CniServer {
    /// Serves until the task is dropped.
    pub async fn serve(self, listener: UnixListener) {
        let answer = move |request| {
            let server = self.clone();
            async move { server.answer(request).await }
        };
        serve(listener, answer).await;
    }

    async fn answer(&self, request: Request) -> Response {
        match request {
            Request::Add { container_id, endpoints } => {
                tracing::debug!(container_id, ?endpoints, "a plugin added endpoints");
                self.add(endpoints).await
            }
            Request::Del { container_id, endpoints } => {
                tracing::debug!(container_id, ?endpoints, "a plugin removed endpoints");
                match self.writer.send(Message::Removed(endpoints)) {
                    Ok(()) => Response::Ok,
                    Err(stopped) => Response::Error { message: stopped.to_string() },
                }
            }
            Request::Status => {
                let snapshot = self.shared.snapshot();
                match snapshot.ready {
                    true => Response::Ok,
                    false => Response::Pending { reason: snapshot.problems().join("; ") },
                }
            }
        }
    }

    async fn add(&self, endpoints: Vec<EndpointRef>) -> Response {
        let (reply, mut answer) = oneshot::channel();
        let message = Message::Added { endpoints: endpoints.clone(), reply };
        if let Err(stopped) = self.writer.send(message) {
            return Response::Error { message: stopped.to_string() };
        }
        let first_wait = WAKE_SOURCES_AFTER.min(self.wait);
        let mut answered = tokio::time::timeout(first_wait, &mut answer).await;
        if answered.is_err() {
            // The kubelet knows the pod, so the API server is probably back, while our watches may still be in their
            // backoff after a failure.
            self.shared.servers().iter().for_each(|server| server.wake());
            answered = tokio::time::timeout(self.wait.saturating_sub(first_wait), answer).await;
        }
        match answered {
            Ok(Ok(response)) => response,
            Ok(Err(_)) => Response::Error { message: Stopped.to_string() },
            Err(_) => Response::Pending { reason: self.missing(&endpoints) },
        }
    }

    fn missing(&self, endpoints: &[EndpointRef]) -> String {
        let snapshot = self.shared.snapshot();
        let state = |endpoint: &EndpointRef| {
            let snapshot = snapshot.endpoints.get(&EndpointId(endpoint.ifindex))?;
            snapshot.state.reason().map(str::to_owned)
        };
        let mut reasons: Vec<String> = endpoints.iter().filter_map(state).collect();
        reasons.dedup();
        match reasons.is_empty() {
            true => "policyd is busy with other changes".to_owned(),
            false => reasons.join("; "),
        }
    }
}

/// Answers each plugin's line, until the task is dropped.
pub(crate) async fn serve<A, F>(listener: UnixListener, answer: A)
where
    A: Fn(Request) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response> + Send,
{
    let permits = Arc::new(Semaphore::new(CNI_CONNECTIONS));
    loop {
        let (stream, permit) = accept_unix(&listener, &permits).await;
        let answer = answer.clone();
        tokio::spawn(async move {
            serve_connection(stream, answer).await;
            drop(permit);
        });
    }
}

async fn serve_connection<F>(mut stream: UnixStream, answer: impl Fn(Request) -> F)
where
    F: Future<Output = Response>,
{
    let response = match tokio::time::timeout(LINE_TIMEOUT, read(&mut stream)).await {
        Ok(Ok(Some(request))) => answer(request).await,
        Ok(Ok(None)) => return,
        Ok(Err(message)) => Response::Error { message },
        Err(_) => Response::Error { message: "read request: no line within 5 s".to_owned() },
    };
    match serde_json::to_string(&response) {
        Ok(line) => {
            let line = format!("{line}\n");
            let written = tokio::time::timeout(LINE_TIMEOUT, stream.write_all(line.as_bytes()));
            if !written.await.is_ok_and(|written| written.is_ok()) {
                // the plugin timed out; the pod's policy is programmed nevertheless
                tracing::debug!("a plugin did not wait for its answer");
            }
        }
        Err(error) => tracing::error!(%error, "cannot write an answer to a plugin"),
    }
}

/// Reads the request; `None` if the client closed the connection without sending one.
async fn read(stream: &mut UnixStream) -> Result<Option<Request>, String> {
    let mut line = Vec::new();
    let limit = MAX_LINE as u64 + 1;
    BufReader::new(stream.take(limit))
        .read_until(b'\n', &mut line)
        .await
        .map_err(|error| format!("read request: {error}"))?;
    if line.len() > MAX_LINE {
        return Err(format!("read request: longer than {MAX_LINE} bytes"));
    }
    if line.is_empty() {
        return Ok(None);
    }
    serde_json::from_slice(&line).map(Some).map_err(|error| format!("read request: {error}"))
}
