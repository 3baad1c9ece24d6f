//! Metrics and health over HTTP. Everything is read when it is asked for; labels are bounded.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use podgate_bpf::abi::Note;
use podgate_bpf::features::Feature;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};
use tokio::net::TcpListener;
use tokio::sync::{Mutex, Semaphore};

use crate::api::types::PacketCount;
use crate::api::{count_endpoints, count_entries, count_objects, packets};
use crate::install::{NewPods, new_pods};
use crate::listen::{self, Limits, METRICS_FROM_NODE, METRICS_FROM_ONE, METRICS_FROM_OTHERS, Room};
use crate::shares;
use crate::sources::kubernetes;
use crate::sources::unenforced::UnenforcedKind;
use crate::ungated::Gating;
use crate::view::Shared;
use crate::writer::Handle;

/// How long a health check waits for the writer.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long its answer counts.
const FRESH: Duration = Duration::from_millis(500);

/// Serves /metrics, /healthz and /readyz.
#[derive(Clone)]
pub struct Metrics {
    registry: Arc<Registry>,
    shared: Arc<Shared>,
    writer: Handle,
    room: Room,
    /// One scrape is written at a time: it reads maps of all CPUs, and the plugin's socket shares our threads.
    scrapes: Arc<Semaphore>,
    /// The last answer of the writer. Each look has it publish its state: clients that ask often share one.
    looked: Arc<Mutex<Option<Look>>>,
}

/// When the writer was asked, and what is wrong.
type Look = (Instant, Result<(), &'static str>);

impl Metrics {
    /// Metrics of this node. `reattached` counts gates attached again; `commits` is [`durations`].
    pub fn new(
        shared: Arc<Shared>,
        writer: Handle,
        reattached: Arc<AtomicU64>,
        commits: Histogram,
    ) -> Self {
        let mut registry = Registry::with_prefix("podgate");
        let build = Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("build", "Which policyd this is", build);
        registry.register_with_unit(
            "commit_duration",
            "From a change to its being in force, compilation included",
            Unit::Seconds,
            commits,
        );
        let room = Room::new(METRICS_FROM_NODE, METRICS_FROM_OTHERS, METRICS_FROM_ONE);
        let at_scrape = AtScrape { shared: shared.clone(), reattached, room: room.clone() };
        registry.register_collector(Box::new(at_scrape));
        let scrapes = Arc::new(Semaphore::new(1));
        let looked = Arc::default();
        Self { registry: Arc::new(registry), shared, writer, room, scrapes, looked }
    }

    /// Serves until the task is dropped.
    pub async fn serve(self, listener: TcpListener) {
        let room = self.room.clone();
        let router = Router::new()
            .route("/metrics", get(metrics))
            .route("/healthz", get(healthz))
            .route("/readyz", get(readyz))
            .with_state(self);
        listen::serve_tcp(listener, room, router, Limits::METRICS).await;
    }
}

/// Commit durations, 0.1 ms to 3 s.
pub fn durations() -> Histogram {
    Histogram::new(exponential_buckets(0.0001, 2.0, 16))
}

async fn metrics(State(metrics): State<Metrics>) -> impl IntoResponse {
    let _turn = metrics.scrapes.acquire().await;
    let registry = metrics.registry.clone();
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
        Some((at, health)) if at.elapsed() < FRESH => health,
        _ => {
            let health = match tokio::time::timeout(PATIENCE, metrics.writer.settled()).await {
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
    let Gating { view, unenforced, ready } = metrics.shared.gating();
    if ready {
        return (StatusCode::OK, "ok\n".to_owned());
    }
    let mut reasons = view.problems();
    reasons.extend(unenforced.into_iter().map(|each| format!("{}: {}", each.pod, each.reason)));
    (StatusCode::SERVICE_UNAVAILABLE, reasons.join("\n") + "\n")
}

struct AtScrape {
    shared: Arc<Shared>,
    reattached: Arc<AtomicU64>,
    room: Room,
}

impl fmt::Debug for AtScrape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AtScrape")
    }
}

impl Collector for AtScrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Gating { view, unenforced, ready } = self.shared.gating();
        let objects = count_objects(&self.shared);
        let endpoints = count_endpoints(&view);
        let entries = count_entries(&view);
        self.packets(&mut encoder)?;
        shares::encode(&self.shared, &mut encoder)?;
        gauges(
            &mut encoder,
            "endpoints",
            "Gated interfaces, by whether their policy is in force",
            "state",
            &[
                ("enforced", endpoints.enforced),
                ("pending", endpoints.pending),
                ("degraded", endpoints.degraded),
            ],
        )?;
        gauges(
            &mut encoder,
            "objects",
            "Objects known from all sources",
            "kind",
            &[
                ("pod", objects.pods),
                ("namespace", objects.namespaces),
                ("policy", objects.policies),
            ],
        )?;
        gauges(
            &mut encoder,
            "map_entries",
            "Entries that policyd wrote",
            "map",
            &[("peers", entries.peers), ("nets", entries.nets), ("policies", entries.rules)],
        )?;
        let missing = &self.shared.kernel.missing;
        gauges(
            &mut encoder,
            "kernel_feature",
            "Whether this kernel has what podgate can do without, see `policyd check`",
            "feature",
            &Feature::ALL.map(|feature| (feature.name(), usize::from(!missing.contains(&feature)))),
        )?;
        let services = view.services;
        gauges(
            &mut encoder,
            "services",
            "Services that are translated: they, their addresses and ports, the endpoints behind those, and what could not be written",
            "kind",
            &[
                ("service", services.services),
                ("frontend", services.frontends),
                ("backend", services.backends),
                ("degraded", services.degraded),
            ],
        )?;
        let sources: Vec<_> = view
            .sources
            .iter()
            .map(|source| (source.name.as_str(), source.problems.len()))
            .collect();
        gauges(
            &mut encoder,
            "source_problems",
            "Things a source could not read",
            "source",
            &sources,
        )?;
        let synced: Vec<_> = view
            .sources
            .iter()
            .map(|source| (source.name.as_str(), usize::from(source.synced)))
            .collect();
        gauges(
            &mut encoder,
            "source_synced",
            "Whether a source has been read whole",
            "source",
            &synced,
        )?;
        for server in self.shared.servers() {
            kubernetes::metrics::encode(&server, &mut encoder)?;
        }
        self.shared.reports.encode(&mut encoder)?;
        let kinds = view.unenforced();
        let kinds: Vec<_> = UnenforcedKind::ALL
            .iter()
            .map(|kind| (kind.name(), kinds.get(kind).copied().unwrap_or_default()))
            .collect();
        gauges(
            &mut encoder,
            "objects_unenforced",
            "Policies of kinds that podgate knows of and does not enforce",
            "kind",
            &kinds,
        )?;
        let gated = match new_pods(&self.shared.install_state) {
            NewPods::Yes { .. } => Some(1),
            NewPods::No { .. } => Some(0),
            NewPods::Unknown { .. } => None,
        };
        if let Some(gated) = gated {
            one_gauge(
                &mut encoder,
                "new_pods_gated",
                "Whether the node's CNI configuration gives new pods a gate; missing where no `policyd install` says",
                gated,
            )?;
        }
        one_gauge(
            &mut encoder,
            "local_pods_unenforced",
            "Pods of this node that no gate stands at",
            i64::try_from(unenforced.len()).unwrap_or(i64::MAX),
        )?;
        one_gauge(
            &mut encoder,
            "ready",
            "Whether the sources' policies are in force, for every pod that ran before too unless it is known why not",
            ready.into(),
        )?;
        one_gauge(
            &mut encoder,
            "classes_stopped",
            "Whether the classes of addresses could not all be written",
            view.stopped.is_some().into(),
        )?;
        counter(&mut encoder, "commits", "Changes put in force", view.commits.count)?;
        counter(
            &mut encoder,
            "commits_incomplete",
            "Commits that left something undone",
            view.commits.incomplete,
        )?;
        counter(
            &mut encoder,
            "connections_refused",
            "Connections to the metrics port that found no place: too many at once, of all or of one address",
            self.room.refused(),
        )?;
        counter(
            &mut encoder,
            "gates_reattached",
            "Gates that somebody removed or overtook, attached again",
            self.reattached.load(Ordering::Relaxed),
        )
    }
}

impl AtScrape {
    fn packets(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let counters = self.shared.gate.maps.counters().map_err(|error| {
            tracing::error!(%error, "cannot read the counters");
            fmt::Error
        })?;
        let mut each =
            |name: &str, help: &str, unit: Option<&Unit>, of: fn(&PacketCount) -> u64| {
                let mut family =
                    encoder.encode_descriptor(name, help, unit, MetricType::Counter)?;
                for count in packets(&counters) {
                    let labels = [
                        ("direction", count.direction.as_str()),
                        ("verdict", count.verdict.as_str()),
                        ("reason", count.reason.as_str()),
                    ];
                    ConstCounter::new(of(&count)).encode(family.encode_family(&labels)?)?;
                }
                Ok(())
            };
        each("packets", "Packets by verdict", None, |count| count.packets)?;
        let bytes = Some(&Unit::Bytes);
        each("packet", "Bytes of packets by verdict", bytes, |count| count.bytes)?;
        let mut family = encoder.encode_descriptor(
            "datapath_notes",
            "What the programs met that is no verdict",
            None,
            MetricType::Counter,
        )?;
        for note in Note::ALL {
            let labels = [("note", note.name())];
            ConstCounter::new(counters.note(*note)).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

fn gauges(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    label: &str,
    values: &[(&str, usize)],
) -> fmt::Result {
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for (value, count) in values {
        let labels = [(label, *value)];
        let count = i64::try_from(*count).unwrap_or(i64::MAX);
        ConstGauge::new(count).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}

fn one_gauge(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    value: i64,
) -> fmt::Result {
    let gauge = ConstGauge::new(value);
    gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)
}

fn counter(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: u64) -> fmt::Result {
    let counter = ConstCounter::new(value);
    counter.encode(encoder.encode_descriptor(name, help, None, counter.metric_type())?)
}
