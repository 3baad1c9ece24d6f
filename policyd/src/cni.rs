//! The plugin's socket: one JSON line each way ([`podgate_bpf::handshake`]).
//!
//! Nothing here is state: the registration is in the kernel's map before the line is sent, and a line that
//! is lost is made up for by the writer's next sweep.

use std::sync::Arc;
use std::time::Duration;

use podgate_bpf::handshake::{EndpointRef, MAX_LINE, Request, Response};
use podgate_policy::compile::EndpointId;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, oneshot};

use crate::listen::{CNI_CONNECTIONS, accept_unix};
use crate::view::Shared;
use crate::writer::{Handle, Message};

/// How long a plugin may take to say its line.
const PATIENCE: Duration = Duration::from_secs(5);
/// An ADD that is not answered by then lacks something that somebody must tell.
const SOON: Duration = Duration::from_millis(100);

/// Answers plugins.
#[derive(Clone, Debug)]
pub struct CniServer {
    /// For the state of endpoints.
    pub shared: Arc<Shared>,
    /// For everything else.
    pub writer: Handle,
    /// How long an ADD waits before it is told "pending"; shorter than the plugin's own patience, so that
    /// the reason gets there.
    pub wait: Duration,
}

impl CniServer {
    /// Serves until the task is dropped.
    pub async fn serve(self, listener: UnixListener) {
        let places = Arc::new(Semaphore::new(CNI_CONNECTIONS));
        loop {
            let (stream, place) = accept_unix(&listener, &places).await;
            let server = self.clone();
            tokio::spawn(async move {
                server.talk(stream).await;
                drop(place);
            });
        }
    }

    async fn talk(&self, mut stream: UnixStream) {
        let response = match tokio::time::timeout(PATIENCE, read(&mut stream)).await {
            Ok(Ok(Some(request))) => self.answer(request).await,
            Ok(Ok(None)) => return,
            Ok(Err(message)) => Response::Error { message },
            Err(_) => Response::Error { message: "read request: no line within 5 s".to_owned() },
        };
        match serde_json::to_string(&response) {
            Ok(line) => {
                let line = format!("{line}\n");
                let written = tokio::time::timeout(PATIENCE, stream.write_all(line.as_bytes()));
                if !written.await.is_ok_and(|written| written.is_ok()) {
                    // the plugin gave up waiting; the pod is programmed all the same
                    tracing::debug!("a plugin did not wait for its answer");
                }
            }
            Err(error) => tracing::error!(%error, "cannot write an answer to a plugin"),
        }
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
                let view = self.shared.view();
                match view.ready {
                    true => Response::Ok,
                    false => Response::Pending { reason: view.problems().join("; ") },
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
        let soon = SOON.min(self.wait);
        let mut answered = tokio::time::timeout(soon, &mut answer).await;
        if answered.is_err() {
            // The kubelet knows the pod, so the API server may be there while our watches still wait, after a
            // failure, before they ask it again.
            self.shared.servers().iter().for_each(|server| server.hurry());
            answered = tokio::time::timeout(self.wait.saturating_sub(soon), answer).await;
        }
        match answered {
            Ok(Ok(response)) => response,
            Ok(Err(_)) => Response::Error { message: "ask the writer: it has stopped".to_owned() },
            Err(_) => Response::Pending { reason: self.missing(&endpoints) },
        }
    }

    fn missing(&self, endpoints: &[EndpointRef]) -> String {
        let view = self.shared.view();
        let state = |endpoint: &EndpointRef| {
            let view = view.endpoints.get(&EndpointId(endpoint.ifindex))?;
            view.state.reason().map(str::to_owned)
        };
        let mut reasons: Vec<String> = endpoints.iter().filter_map(state).collect();
        reasons.dedup();
        match reasons.is_empty() {
            true => "policyd is busy with other changes".to_owned(),
            false => reasons.join("; "),
        }
    }
}

/// The request, or nothing if the other side says nothing.
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
