//! Metrics and health over HTTP. Everything is read at the request; the number of label values is bounded.

pub(crate) mod families;
mod limited;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use podgate_bpf::Obstacle;
use podgate_bpf::abi::Stat;
use podgate_bpf::features::Feature;
use podgate_contract::api::NewPods;
use podgate_contract::api::PacketCount;
use podgate_manifests::unenforced::UnenforcedKind;
use podgate_policy::index::Sort;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::sync::{Mutex, Semaphore};

use crate::api::packets;
use crate::audit::audited_policies;
use crate::install::new_pods;
use crate::listen::{
    self, ConnectionLimit, Limits, METRICS_FROM_NODE, METRICS_FROM_ONE, METRICS_FROM_OTHERS,
};
use crate::shares;
use crate::snapshot::NodeState;
use crate::sources::kubernetes;
use crate::ungated::Gating;
use crate::usage;
use crate::writer::Handle;
use families::*;

/// How long a health check waits for the writer.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long its answer counts.
const MAX_AGE: Duration = Duration::from_millis(500);

/// Serves /metrics, /healthz and /readyz.
#[derive(Clone)]
pub struct Metrics {
    registry: Arc<Registry>,
    shared: Arc<NodeState>,
    writer: Handle,
    connections: ConnectionLimit,
    /// One scrape is written at a time: it reads maps of all CPUs, and the plugin's socket shares our threads.
    scrapes: Arc<Semaphore>,
    /// The last answer of the writer. Each look has it publish its state: clients that ask often share one.
    looked: Arc<Mutex<Option<Look>>>,
}

/// The last health check of the writer: when, and its problems.
type Look = (Instant, Result<(), &'static str>);

impl Metrics {
    /// Metrics of this node. `reattached` counts gates attached again; `commits` is [`durations`]. Accounted
    /// pods have samples of their own up to this number, `accounted_pods`.
    pub fn new(
        shared: Arc<NodeState>,
        writer: Handle,
        reattached: Arc<AtomicU64>,
        commits: Histogram,
        accounted_pods: usize,
    ) -> Self {
        let mut registry = registry();
        let Family { name, help, unit, .. } = &COMMIT_DURATION;
        match unit {
            Some(unit) => registry.register_with_unit(*name, *help, unit.clone(), commits),
            None => registry.register(*name, *help, commits),
        }
        let connections =
            ConnectionLimit::new(METRICS_FROM_NODE, METRICS_FROM_OTHERS, METRICS_FROM_ONE);
        let at_scrape = AtScrape {
            shared: shared.clone(),
            reattached,
            connections: connections.clone(),
            accounted_pods,
        };
        registry.register_collector(Box::new(at_scrape));
        let scrapes = Arc::new(Semaphore::new(1));
        let looked = Arc::default();
        Self { registry: Arc::new(registry), shared, writer, connections, scrapes, looked }
    }

    /// Serves until the task is dropped.
    pub async fn serve(self, listener: TcpListener) {
        let connections = self.connections.clone();
        let router = Router::new()
            .route("/metrics", get(metrics))
            .route("/healthz", get(healthz))
            .route("/readyz", get(readyz))
            .with_state(self);
        listen::serve_tcp(listener, connections, router, Limits::METRICS).await;
    }
}

/// Commit durations, 0.1 ms to 3 s.
pub fn durations() -> Histogram {
    Histogram::new(exponential_buckets(0.0001, 2.0, 16))
}

async fn metrics(State(metrics): State<Metrics>) -> impl IntoResponse {
    let _turn = metrics.scrapes.acquire().await;
    encoded(metrics.registry.clone()).await
}

/// A registry that says which policyd this is.
pub(crate) fn registry() -> Registry {
    let mut registry = Registry::with_prefix(PREFIX);
    let build = Info::new(vec![(BUILD.labels[0].0, env!("CARGO_PKG_VERSION"))]);
    registry.register(BUILD.name, BUILD.help, build);
    registry
}

/// The answer to a scrape.
pub(crate) async fn encoded(registry: Arc<Registry>) -> impl IntoResponse + use<> {
    let encoded = tokio::task::spawn_blocking(move || {
        let mut text = String::new();
        encode(&mut text, &registry).map(|()| text)
    });
    match encoded.await {
        Ok(Ok(text)) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            (StatusCode::OK, [(header::CONTENT_TYPE, kind)], text)
        }
        Ok(Err(_)) | Err(_) => {
            let text =
                "encode metrics: cannot read the kernel's counters, see the log\n".to_owned();
            (StatusCode::INTERNAL_SERVER_ERROR, [(header::CONTENT_TYPE, "text/plain")], text)
        }
    }
}

/// Whether the writer still does its work; if not, a restart helps and costs no packet.
async fn healthz(State(metrics): State<Metrics>) -> (StatusCode, &'static str) {
    let mut looked = metrics.looked.lock().await;
    let health = match *looked {
        Some((at, health)) if at.elapsed() < MAX_AGE => health,
        _ => {
            let health = match tokio::time::timeout(SETTLE_TIMEOUT, metrics.writer.settled()).await
            {
                Ok(Ok(())) => Ok(()),
                Ok(Err(_)) => Err("the writer has stopped\n"),
                Err(_) => Err("the writer has not answered for 5 s\n"),
            };
            *looked = Some((Instant::now(), health));
            health
        }
    };
    match health {
        Ok(()) => (StatusCode::OK, "ok\n"),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, reason),
    }
}

async fn readyz(State(metrics): State<Metrics>) -> (StatusCode, String) {
    let Gating { snapshot, unenforced, ready } = metrics.shared.gating();
    if ready {
        return (StatusCode::OK, "ok\n".to_owned());
    }
    let mut reasons = snapshot.problems();
    reasons.extend(unenforced.into_iter().map(|each| format!("{}: {}", each.pod, each.reason)));
    (StatusCode::SERVICE_UNAVAILABLE, reasons.join("\n") + "\n")
}

struct AtScrape {
    shared: Arc<NodeState>,
    reattached: Arc<AtomicU64>,
    connections: ConnectionLimit,
    accounted_pods: usize,
}

impl fmt::Debug for AtScrape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AtScrape")
    }
}

impl Collector for AtScrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let encoder = &mut encoder;
        let Gating { snapshot, unenforced, ready } = self.shared.gating();
        let number = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        self.packets(encoder)?;
        self.audited(encoder)?;
        limited::encode(&self.shared, encoder)?;
        shares::encode(&self.shared, encoder)?;
        usage::encode(&self.shared, self.accounted_pods, encoder)?;
        let endpoints = snapshot.endpoint_counts();
        ENDPOINTS.gauges(
            encoder,
            [
                ("enforced", endpoints.enforced),
                ("pending", endpoints.pending),
                ("degraded", endpoints.degraded),
            ]
            .map(|(state, count)| (state, number(count))),
        )?;
        let objects = self.shared.object_counts();
        OBJECTS.gauges(
            encoder,
            [
                ("pod", objects.pods),
                ("namespace", objects.namespaces),
                ("policy", objects.policies),
                ("cluster_policy", objects.cluster_policies),
                ("pod_traffic_policy", objects.pod_traffic_policies),
            ]
            .map(|(kind, count)| (kind, number(count))),
        )?;
        let entries = snapshot.map_counts();
        MAP_ENTRIES.gauges(
            encoder,
            [("peers", entries.peers), ("nets", entries.nets), ("policies", entries.rules)]
                .map(|(map, count)| (map, number(count))),
        )?;
        let missing = &self.shared.kernel.missing;
        let has = |feature: Feature| (feature.name(), u64::from(!missing.contains(&feature)));
        KERNEL_FEATURE.gauges(encoder, Feature::ALL.map(has))?;
        let services = snapshot.services;
        SERVICES.gauges(
            encoder,
            [
                ("service", services.services),
                ("frontend", services.frontends),
                ("backend", services.backends),
                ("degraded", services.degraded),
            ]
            .map(|(kind, count)| (kind, number(count))),
        )?;
        let problems =
            snapshot.sources.iter().map(|source| (&*source.name, number(source.problems.len())));
        SOURCE_PROBLEMS.gauges(encoder, problems)?;
        let synced =
            snapshot.sources.iter().map(|source| (&*source.name, u64::from(source.synced)));
        SOURCE_SYNCED.gauges(encoder, synced)?;
        for server in self.shared.servers() {
            kubernetes::metrics::encode(&server, encoder)?;
        }
        self.shared.reports.encode(encoder)?;
        let problems = self.shared.index().problems();
        let of =
            |sort: Sort| number(problems.iter().filter(|problem| problem.sort == sort).count());
        POLICY_PROBLEMS.gauges(
            encoder,
            [
                ("not_understood", of(Sort::NotUnderstood)),
                ("equal_priority", of(Sort::EqualPriority)),
            ],
        )?;
        let kinds = snapshot.unenforced();
        OBJECTS_UNENFORCED.gauges(
            encoder,
            UnenforcedKind::ALL
                .iter()
                .map(|kind| (kind.name(), number(kinds.get(kind).copied().unwrap_or_default()))),
        )?;
        new_pods_gated(encoder, &new_pods(&self.shared.install_state))?;
        cannot_enforce(encoder, None)?;
        LOCAL_PODS_UNENFORCED.gauge(encoder, number(unenforced.len()))?;
        READY.gauge(encoder, ready.into())?;
        CLASSES_STOPPED.gauge(encoder, snapshot.stopped.is_some().into())?;
        COMMITS.counter(encoder, snapshot.commits.count)?;
        COMMITS_INCOMPLETE.counter(encoder, snapshot.commits.incomplete)?;
        CONNECTIONS_REFUSED.counter(encoder, self.connections.refused())?;
        GATES_REATTACHED.counter(encoder, self.reattached.load(Ordering::Relaxed))
    }
}

impl AtScrape {
    /// One sample for each policy that is audited now: a policy that is enforced says nothing here.
    fn audited(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let counts = self.shared.audit.flows_by_policy();
        let names = audited_policies(&self.shared.index());
        let samples = names.into_iter().map(|name| {
            let flows = counts.get(&name).copied().unwrap_or_default();
            ([name.namespace.to_string(), name.name.to_string()], ConstCounter::new(flows))
        });
        AUDITED_FLOWS.samples(encoder, samples)
    }

    fn packets(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let counters = self.shared.datapath.maps.counters().map_err(|error| {
            tracing::error!(%error, "cannot read the counters");
            fmt::Error
        })?;
        let samples = |of: fn(&PacketCount) -> u64| {
            packets(&counters).map(move |count| {
                let value = ConstCounter::new(of(&count));
                ([count.direction.to_string(), count.verdict.to_string(), count.reason], value)
            })
        };
        PACKETS.samples(encoder, samples(|count| count.packets))?;
        PACKET_BYTES.samples(encoder, samples(|count| count.bytes))?;
        let stats = Stat::ALL.iter().map(|stat| (stat.name(), counters.stat(*stat)));
        DATAPATH_NOTES.counters(encoder, stats)
    }
}

/// Whether policyd cannot enforce on this node at all, by what keeps it from that.
pub(crate) fn cannot_enforce(
    encoder: &mut DescriptorEncoder<'_>,
    obstacle: Option<Obstacle>,
) -> fmt::Result {
    CANNOT_ENFORCE
        .gauges(encoder, Obstacle::ALL.map(|each| (each.name(), u64::from(obstacle == Some(each)))))
}

pub(crate) fn new_pods_gated(
    encoder: &mut DescriptorEncoder<'_>,
    new_pods: &NewPods,
) -> fmt::Result {
    match new_pods {
        NewPods::Yes { .. } => NEW_PODS_GATED.gauge(encoder, 1),
        NewPods::No { .. } | NewPods::Refused { .. } => NEW_PODS_GATED.gauge(encoder, 0),
        NewPods::Unknown { .. } => Ok(()),
    }
}
