//! The node operator's API: HTTP with JSON on a unix socket that only root may use.
//!
//! Reads come from what the writer publishes; changes go to the writer and are answered once they are in force.

mod answer;
mod counters;
mod endpoints;
mod enforcement;
mod explain;
mod flows;
mod policies;
mod services;
mod status;
pub mod types;

use std::sync::Arc;

use axum::Router;
use axum::routing::{get, put};
use tokio::net::UnixListener;
use tokio::sync::Semaphore;

use crate::events::Listeners;
use crate::listen::{self, API_CONNECTIONS, Limits};
use crate::sources::local::LocalPolicies;
use crate::view::Shared;
use crate::writer::Handle;

use answer::Refusal;
pub(crate) use counters::packets;
pub(crate) use status::{count_endpoints, count_entries, count_objects};

/// Where policyd listens unless told otherwise.
pub const DEFAULT_SOCKET: &str = "/run/podgate/api.sock";

/// What the API's handlers work with.
#[derive(Clone)]
pub struct Api {
    /// What the writer publishes.
    pub shared: Arc<Shared>,
    /// The writer itself.
    pub writer: Handle,
    /// The policies that were given to this API.
    pub local: Arc<LocalPolicies>,
    /// Verdict events.
    pub listeners: Listeners,
    /// Places for streams of verdicts: [`crate::listen::API_STREAMS`].
    pub streams: Arc<Semaphore>,
}

impl Api {
    /// Serves until the task is dropped.
    pub async fn serve(self, listener: UnixListener) {
        listen::serve_unix(listener, API_CONNECTIONS, self.router(), Limits::API).await;
    }

    fn router(self) -> Router {
        Router::new()
            .route("/v1/status", get(status::get))
            .route("/v1/endpoints", get(endpoints::list))
            .route("/v1/endpoints/{namespace}/{pod}", get(endpoints::get))
            .route("/v1/policies", get(policies::list))
            .route("/v1/policies/{namespace}/{name}", put(policies::put).delete(policies::delete))
            .route("/v1/services", get(services::list))
            .route("/v1/counters", get(counters::get))
            .route("/v1/explain", get(explain::get))
            .route("/v1/flows", get(flows::get))
            .route("/v1/enforcement", get(enforcement::get).put(enforcement::put))
            .method_not_allowed_fallback(|| async {
                Refusal::wrong_method("use route: it has no such method in API v1")
            })
            .fallback(|| async { Refusal::not_found("find route: no such route in API v1") })
            .with_state(self)
    }
}
