//! The node operator's API: HTTP with JSON on a unix socket that only root may use.
//!
//! Reads come from what the writer publishes; changes go to the writer and are answered once they are in force.

mod answer;
mod audit;
mod cluster_policies;
mod counters;
#[cfg(test)]
mod docs;
mod endpoints;
mod enforcement;
mod explain;
mod flows;
mod limits;
mod pod_traffic_policies;
mod policies;
mod rules;
mod services;
mod status;
mod usage;

use std::sync::Arc;

use axum::Router;
use axum::routing::{MethodRouter, delete, get, put};
use tokio::net::UnixListener;
use tokio::sync::Semaphore;

use crate::events::Subscriptions;
use crate::listen::{self, API_CONNECTIONS, Limits};
use crate::local_rules::LocalRuleBook;
use crate::snapshot::NodeState;
use crate::sources::local::LocalPolicies;
use crate::writer::Handle;
use answer::Refusal;
pub(crate) use counters::packets;

/// What the API's handlers work with.
#[derive(Clone)]
pub struct Api {
    /// What the writer publishes.
    pub shared: Arc<NodeState>,
    /// The writer itself.
    pub writer: Handle,
    /// The policies that were given to this API.
    pub local: Arc<LocalPolicies>,
    /// The rules and modes that were given to this API.
    pub local_rules: Arc<LocalRuleBook>,
    /// Verdict events.
    pub subscriptions: Subscriptions,
    /// Permits for streams of verdicts: [`crate::listen::API_STREAMS`].
    pub streams: Arc<Semaphore>,
}

impl Api {
    /// Serves until the task is dropped.
    pub async fn serve(self, listener: UnixListener) {
        listen::serve_unix(listener, API_CONNECTIONS, self.router(), Limits::API).await;
    }

    fn router(self) -> Router {
        routes()
            .into_iter()
            .fold(Router::new(), |router, (_, path, handler)| router.route(path, handler))
            .method_not_allowed_fallback(|| async {
                Refusal::wrong_method("use route: it has no such method in API v1")
            })
            .fallback(|| async { Refusal::not_found("find route: no such route in API v1") })
            .with_state(self)
    }
}

/// Every route, by method and path: what is served, and what `docs/api.md` has to describe.
fn routes() -> Vec<(&'static str, &'static str, MethodRouter<Api>)> {
    vec![
        ("GET", "/v1/status", get(status::get)),
        ("GET", "/v1/endpoints", get(endpoints::list)),
        ("GET", "/v1/endpoints/{namespace}/{pod}", get(endpoints::get)),
        ("GET", "/v1/endpoints/{namespace}/{pod}/limits", get(limits::get)),
        ("GET", "/v1/endpoints/{namespace}/{pod}/rules", get(rules::get)),
        ("PUT", "/v1/endpoints/{namespace}/{pod}/rules", put(rules::put)),
        ("DELETE", "/v1/endpoints/{namespace}/{pod}/rules", delete(rules::delete)),
        ("PUT", "/v1/endpoints/{namespace}/{pod}/defaults", put(rules::put_defaults)),
        ("GET", "/v1/rules", get(rules::list)),
        ("GET", "/v1/defaults", get(rules::node_defaults)),
        ("PUT", "/v1/defaults", put(rules::put_node_defaults)),
        ("GET", "/v1/policies", get(policies::list)),
        ("PUT", "/v1/policies/{namespace}/{name}", put(policies::put)),
        ("DELETE", "/v1/policies/{namespace}/{name}", delete(policies::delete)),
        ("PUT", "/v1/policies/{namespace}/{name}/mode", put(policies::put_mode)),
        ("GET", "/v1/cluster-policies", get(cluster_policies::list)),
        ("PUT", "/v1/cluster-policies/{name}", put(cluster_policies::put)),
        ("DELETE", "/v1/cluster-policies/{name}", delete(cluster_policies::delete)),
        ("PUT", "/v1/cluster-policies/{name}/mode", put(cluster_policies::put_mode)),
        ("GET", "/v1/pod-traffic-policies", get(pod_traffic_policies::list)),
        ("PUT", "/v1/pod-traffic-policies/{namespace}/{name}", put(pod_traffic_policies::put)),
        (
            "DELETE",
            "/v1/pod-traffic-policies/{namespace}/{name}",
            delete(pod_traffic_policies::delete),
        ),
        ("GET", "/v1/services", get(services::list)),
        ("GET", "/v1/counters", get(counters::get)),
        ("GET", "/v1/explain", get(explain::get)),
        ("GET", "/v1/flows", get(flows::get)),
        ("GET", "/v1/usage", get(usage::get)),
        ("GET", "/v1/audit", get(audit::get)),
        ("DELETE", "/v1/audit", delete(audit::delete)),
        ("GET", "/v1/enforcement", get(enforcement::get)),
        ("PUT", "/v1/enforcement", put(enforcement::put)),
    ]
}
