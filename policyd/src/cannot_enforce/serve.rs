//! What policyd serves while it cannot enforce.
//!
//! | where | answer |
//! |---|---|
//! | `/healthz` | 200: a restart would not help |
//! | `/readyz` | 503 with the cause |
//! | `/metrics` | `podgate_cannot_enforce` by reason, `podgate_ready` 0, what becomes of new pods |
//! | `api.sock` | status with the cause; 503 with the cause for everything else |
//! | `cni.sock` | an error with the cause: ADD goes by `onTimeout`, `policyd install` by `--on-cannot-enforce` |

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::routing::get;
use axum::{Json, Router};
use podgate_contract::api::{
    ApiError, EndpointCounts, Enforcement, FlowTables, MapCounts, ObjectCounts, ServiceCounts,
    Status,
};
use podgate_contract::handshake::{Request, Response};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use tokio::net::{TcpListener, UnixStream};
use tokio::task::JoinSet;

use super::{CannotEnforce, EventServer, NodeSide};
use crate::args::MetricsAddr;
use crate::listen::{
    self, API_CONNECTIONS, ConnectionLimit, Limits, METRICS_FROM_NODE, METRICS_FROM_ONE,
    METRICS_FROM_OTHERS,
};
use crate::run_error::RunError;
use crate::sources::kubernetes;
use crate::{cni, metrics, report, socket};

/// How long another policyd may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// How long to wait before a client of the API server is tried again.
const CLIENT_INTERVAL: Duration = Duration::from_secs(30);

/// Listeners and reports; they end when this is dropped.
#[derive(Debug)]
pub(super) struct Served {
    parts: JoinSet<()>,
    sockets: Vec<PathBuf>,
}

impl Drop for Served {
    fn drop(&mut self) {
        for path in &self.sockets {
            // another may have removed it; a left one is replaced at the next start
            let _ = fs::remove_file(path);
        }
    }
}

impl Served {
    /// Ends all parts and waits for that: a listener that is only asked to end still holds its port.
    pub(super) async fn stop(mut self) {
        self.parts.shutdown().await;
    }

    /// `None` if another policyd answers at the sockets: it may be one that can enforce, and keeps them.
    pub(super) async fn start(
        node_side: &NodeSide,
        state: &Arc<CannotEnforce>,
    ) -> Result<Option<Self>, RunError> {
        if is_served(&node_side.cni_socket).await {
            let socket = node_side.cni_socket.display();
            tracing::warn!(%socket, "another policyd listens there: its sockets are left to it");
            return Ok(None);
        }
        let mut parts = JoinSet::new();
        if let MetricsAddr::At(addr) = node_side.metrics_addr {
            let listener = TcpListener::bind(addr)
                .await
                .map_err(|source| RunError::Metrics { addr, source })?;
            parts.spawn(serve_metrics(listener, state.clone()));
        }
        let plugins = socket::listen(&node_side.cni_socket)?;
        let answering = state.clone();
        parts.spawn(cni::serve(plugins, move |request| {
            let response = answer_plugin(&answering, &request);
            async move { response }
        }));
        let operators = socket::listen(&node_side.api_socket)?;
        let router = api(state.clone());
        parts.spawn(listen::serve_unix(operators, API_CONNECTIONS, router, Limits::API));
        if let Some(server) = node_side.events.clone() {
            parts.spawn(send_events(server, state.clone()));
        }
        let sockets = vec![node_side.cni_socket.clone(), node_side.api_socket.clone()];
        Ok(Some(Self { parts, sockets }))
    }
}

async fn is_served(socket: &Path) -> bool {
    let connected = tokio::time::timeout(CONNECT_TIMEOUT, UnixStream::connect(socket)).await;
    // one that is too busy to accept is one
    !matches!(connected, Ok(Err(_)))
}

fn answer_plugin(state: &CannotEnforce, request: &Request) -> Response {
    match request {
        Request::Add { .. } | Request::Status => {
            Response::Error { message: state.failure().text.clone() }
        }
        // there is nothing to forget
        Request::Del { .. } => Response::Ok,
    }
}

fn api(state: Arc<CannotEnforce>) -> Router {
    let refused = |State(state): State<Arc<CannotEnforce>>| async move {
        let error = state.failure().text.clone();
        (StatusCode::SERVICE_UNAVAILABLE, Json(ApiError { error, field: None }))
    };
    Router::new()
        .route("/v1/status", get(async |State(state): State<Arc<CannotEnforce>>| status(&state)))
        .fallback(refused)
        .with_state(state)
}

fn status(state: &CannotEnforce) -> Json<Status> {
    let text = state.failure().text.clone();
    Json(Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        node: state.node.clone(),
        kernel: podgate_bpf::features::release(),
        kernel_lacks: Vec::new(),
        problems: vec![text.clone()],
        cannot_enforce: Some(text),
        ready: false,
        enforcement: Enforcement::Enforce,
        epoch: 0,
        uptime: state.started.elapsed().as_secs(),
        sources: Vec::new(),
        endpoints: EndpointCounts::default(),
        objects: ObjectCounts::default(),
        services: ServiceCounts::default(),
        maps: MapCounts::default(),
        flows: FlowTables::default(),
        commits: 0,
        last_commit: 0.0,
        pending: Vec::new(),
        unenforced: Vec::new(),
        unenforced_kinds: Vec::new(),
        new_pods: state.new_pods(),
    })
}

async fn serve_metrics(listener: TcpListener, state: Arc<CannotEnforce>) {
    let connections =
        ConnectionLimit::new(METRICS_FROM_NODE, METRICS_FROM_OTHERS, METRICS_FROM_ONE);
    let mut registry = metrics::registry();
    registry.register_collector(Box::new(AtScrape(state.clone())));
    let registry = Arc::new(registry);
    let scrape = get(async move || metrics::encoded(registry.clone()).await);
    let readyz = get(async |State(state): State<Arc<CannotEnforce>>| {
        (StatusCode::SERVICE_UNAVAILABLE, state.failure().text.clone() + "\n").into_response()
    });
    let router = Router::new()
        .route("/metrics", scrape)
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", readyz)
        .with_state(state);
    listen::serve_tcp(listener, connections, router, Limits::METRICS).await;
}

struct AtScrape(Arc<CannotEnforce>);

impl fmt::Debug for AtScrape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AtScrape")
    }
}

impl Collector for AtScrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Self(state) = self;
        metrics::cannot_enforce(&mut encoder, Some(state.failure().obstacle))?;
        metrics::families::READY.gauge(&mut encoder, 0)?;
        metrics::new_pods_gated(&mut encoder, &state.new_pods())?;
        state.reports.encode(&mut encoder)
    }
}

async fn send_events(server: EventServer, state: Arc<CannotEnforce>) {
    loop {
        match kubernetes::client(server.kubeconfig.as_deref()).await {
            Ok(client) => return report::cannot_enforce(client, state).await,
            Err(error) => tracing::warn!(%error, "cannot send an Event on the node, trying again"),
        }
        tokio::time::sleep(CLIENT_INTERVAL).await;
    }
}
