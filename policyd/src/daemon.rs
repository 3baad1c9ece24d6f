//! `policyd run`: starts the parts of the daemon and stops them in order.

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use podgate_bpf::PinRoot;
use podgate_bpf::loader::Sizes;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::adopt::{Adopter, SearchPaths, Takeover};
use crate::api::Api;
use crate::args::{Events, MetricsAddr, Run, Server};
use crate::cannot_enforce::{EventServer, NodeSide};
use crate::cni::CniServer;
use crate::events;
use crate::install::STATE_FILE;
use crate::listen::{API_STREAMS, descriptors};
use crate::local_rules::LocalRuleBook;
use crate::metrics::{self, Metrics};
use crate::reconcile::Reconciler;
use crate::report::Reporter;
use crate::run_error::{RunError, io};
use crate::snapshot::NodeState;
use crate::socket;
use crate::sources::dir::DirSource;
use crate::sources::kubernetes::{self, Health, KubernetesSource, Pacing};
use crate::sources::local::{LOCAL_SOURCE, LocalPolicies};
use crate::sources::{Rank, SourceSpec};
use crate::start::{Start, Started};
use crate::ungated::AdoptionStatus;
use crate::writer::{Message, Writer};

/// How long blocking work (reading counters, attaching a gate) may take at the end.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(5);

/// Runs until SIGTERM or SIGINT, on a runtime of its own.
///
/// The runtime is here and not in `main`: an `async fn` is compiled where it is polled, so a binary that did would compile
/// the daemon once more.
pub fn run(args: Run) -> Result<(), RunError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(io("start the runtime"))?;
    let result = runtime.block_on(serve(args));
    runtime.shutdown_timeout(SHUTDOWN_TIMEOUT);
    result
}

async fn serve(args: Run) -> Result<(), RunError> {
    let Run {
        sources,
        bpf_root,
        cni_socket,
        api_socket,
        metrics_addr,
        accounted_pods,
        node_name,
        state_dir,
        attach,
        services,
        cni_wait_ms,
        reconcile_seconds,
        node_addresses,
        server,
        adopt,
        sizes,
        log: _,
    } = args;
    let stop = stop_signal()?;
    descriptors::raise();
    let node = node_name.map_or_else(host_name, Ok)?;
    let root = PinRoot::new(bpf_root);
    make_state_dir(&state_dir)?;
    let node_side = NodeSide {
        node: node.clone(),
        install_state: state_dir.join(STATE_FILE),
        cni_socket: cni_socket.clone(),
        api_socket: api_socket.clone(),
        metrics_addr,
        events: event_server(&sources, &server),
    };
    let durations = metrics::durations();
    if sources.len() > 1 && sources.contains(&SourceSpec::Local) {
        return Err(RunError::NotAlone);
    }
    let watched = sources.iter().filter(|source| **source != SourceSpec::Local);
    let names: Vec<String> = watched.map(ToString::to_string).collect();
    let start = Start {
        root: root.clone(),
        sizes: Sizes::from(&sizes),
        node,
        services,
        install_state: state_dir.join(STATE_FILE),
        sources: names.iter().cloned().chain([LOCAL_SOURCE.to_owned()]).collect(),
        commits: durations.clone(),
    };
    let mut stop = pin!(stop);
    let Started { only, shared, mut writer } = tokio::select! {
        started = start.until_it_can(node_side) => started?,
        signal = &mut stop => {
            tracing::info!(signal, "stopping");
            return Ok(());
        }
    };
    let handle = writer.handle();
    // before the last source is synced, so that the first commit has them
    let local_rules =
        Arc::new(LocalRuleBook::open(&state_dir, SystemTime::now(), handle.local_sink())?);
    let local = Arc::new(LocalPolicies::open(&state_dir, handle.sink(Rank(names.len())))?);
    let mut parts = JoinSet::new();
    let watched = watch_sources(sources, &writer, &shared, &server, &mut parts).await?;
    let (reader, subscriptions) =
        events::Reader::start(shared.clone()).map_err(io("start the thread of events"))?;

    let reconciler = Reconciler {
        shared: shared.clone(),
        writer: handle.clone(),
        attach,
        named: node_addresses.iter().flat_map(|named| named.nets().iter().copied()).collect(),
        every: Duration::from_secs(reconcile_seconds.max(1)),
        reattached: Arc::default(),
    };
    let adopter = adopt.adopt.then(|| Adopter {
        shared: shared.clone(),
        writer: handle.clone(),
        attach,
        paths: SearchPaths { cni_cache: adopt.cni_cache, netns: adopt.netns_dirs },
        root: root.clone(),
        anti_spoofing: adopt.adopt_anti_spoofing,
    });
    if adopter.is_none() {
        shared.set_adoption(AdoptionStatus::off());
    }
    let takeover =
        Takeover { shared: shared.clone(), writer: handle.clone(), attach, root: root.clone() };
    if let MetricsAddr::At(addr) = metrics_addr {
        let reattached = reconciler.reattached.clone();
        let metrics =
            Metrics::new(shared.clone(), handle.clone(), reattached, durations, accounted_pods);
        let fault = |source| RunError::Metrics { addr, source };
        let listener = TcpListener::bind(addr).await.map_err(fault)?;
        parts.spawn(async move {
            metrics.serve(listener).await;
            "the metrics' server ended".to_owned()
        });
    }
    let cni = socket::listen(&cni_socket)?;
    let plugin = CniServer {
        shared: shared.clone(),
        writer: handle.clone(),
        wait: Duration::from_millis(cni_wait_ms),
    };
    parts.spawn(async move {
        plugin.serve(cni).await;
        "the plugin's server ended".to_owned()
    });
    let listener = socket::listen(&api_socket)?;
    let streams = Arc::new(Semaphore::new(API_STREAMS));
    parts.spawn({
        let rules = local_rules.clone();
        async move {
            rules.end_in_time().await;
            "the end of local rules' lifetimes is not watched any more".to_owned()
        }
    });
    let api =
        Api { shared: shared.clone(), writer: handle, local, local_rules, subscriptions, streams };
    parts.spawn(async move {
        api.serve(listener).await;
        "the API's server ended".to_owned()
    });
    parts.spawn(async move {
        reconciler.run().await;
        "the reconciler ended".to_owned()
    });
    parts.spawn(async move {
        takeover.run().await;
        "the takeover of other layouts' pods ended".to_owned()
    });
    if let Some(adopter) = adopter {
        parts.spawn(async move {
            adopter.run().await;
            "the adopter of running pods ended".to_owned()
        });
    }
    tracing::info!(
        node = shared.node, sources = names.join(", "), cni_socket = %cni_socket.display(),
        api_socket = %api_socket.display(), "policyd is up"
    );

    let ended = tokio::select! {
        signal = &mut stop => {
            tracing::info!(signal, "stopping; the policies in force stay");
            None
        }
        part = parts.join_next() => Some(match part {
            Some(Ok(why)) => why,
            Some(Err(error)) => error.to_string(),
            None => "nothing runs".to_owned(),
        }),
        () = writer.ended() => Some("the writer has ended, see the log".to_owned()),
    };
    // no new work, then the writer finishes its commit, then the sockets are removed
    parts.shutdown().await;
    drop((watched, reader, writer, only));
    for path in [&cni_socket, &api_socket] {
        // it may be gone already; one that stays is replaced at the next start
        let _ = fs::remove_file(path);
    }
    match ended {
        Some(why) => Err(RunError::Ended(why)),
        None => Ok(()),
    }
}

/// The API server that Events go to: that of the first cluster, which is the one this node belongs to.
fn event_server(sources: &[SourceSpec], server: &Server) -> Option<EventServer> {
    let first = sources.iter().find_map(|source| match source {
        SourceSpec::Kubernetes(kubeconfig) => Some(EventServer { kubeconfig: kubeconfig.clone() }),
        SourceSpec::Dir(_) | SourceSpec::Local => None,
    });
    first.filter(|_| server.events == Events::On)
}

/// Watches all sources: API servers in tasks of `parts`, directories until the returned sources are dropped.
async fn watch_sources(
    sources: Vec<SourceSpec>,
    writer: &Writer,
    shared: &Arc<NodeState>,
    server: &Server,
    parts: &mut JoinSet<String>,
) -> Result<Vec<DirSource>, RunError> {
    let mut watched = Vec::new();
    for (rank, spec) in sources.into_iter().enumerate() {
        let (rank, name) = (Rank(rank), spec.to_string());
        match spec {
            // the API is a source already, and stands alone
            SourceSpec::Local => {}
            SourceSpec::Dir(dir) => {
                let source = DirSource::start(dir, writer.handle().sink(rank));
                watched.push(source.map_err(|source| RunError::Source { name, source })?);
            }
            SourceSpec::Kubernetes(kubeconfig) => {
                let client = kubernetes::client(kubeconfig.as_deref())
                    .await
                    .map_err(|source| RunError::Connect { name: name.clone(), source })?;
                let health = Arc::new(Health::new(name.clone()));
                // the first cluster is the one this node belongs to
                if server.events == Events::On && shared.servers().is_empty() {
                    let reporter = Reporter { shared: shared.clone(), client: client.clone() };
                    parts.spawn(async move {
                        reporter.run().await;
                        "the reports of events ended".to_owned()
                    });
                }
                shared.watch(health.clone());
                let unenforced = kubernetes::follow_unenforced(client.clone(), sink(writer, rank));
                parts.spawn(async move {
                    unenforced.await;
                    "the count of kinds that are not enforced ended".to_owned()
                });
                let source = KubernetesSource::start(
                    client,
                    pacing(server, shared),
                    health,
                    sink(writer, rank),
                );
                parts.spawn(async move {
                    format!("a watch of source {name} ended: {}", source.ended().await)
                });
            }
        }
    }
    Ok(watched)
}

/// Sends the updates of an API server's watches to the writer.
fn sink(writer: &Writer, rank: Rank) -> kubernetes::Sink {
    let handle = writer.handle();
    Arc::new(move |update| {
        // the writer only ends with the process
        let _ = handle.send(Message::Source(rank, update));
    })
}

/// After a restart the lists are spread over time, because the policies from before stay in force. Without such policies
/// pods wait for the first list, so it starts at once.
fn pacing(server: &Server, shared: &NodeState) -> Pacing {
    let Server { list_page_size, start_jitter_seconds, events: _ } = *server;
    let jitter = match shared.snapshot().rules {
        0 => Duration::ZERO,
        _ => Duration::from_secs(start_jitter_seconds),
    };
    Pacing { page_size: list_page_size, jitter }
}

/// Resolves at the first SIGTERM or SIGINT; the second ends the process at once.
fn stop_signal() -> Result<impl Future<Output = &'static str>, RunError> {
    let mut term = signal(SignalKind::terminate()).map_err(io("watch SIGTERM"))?;
    let mut int = signal(SignalKind::interrupt()).map_err(io("watch SIGINT"))?;
    Ok(async move {
        let first = tokio::select! {
            _ = term.recv() => "SIGTERM",
            _ = int.recv() => "SIGINT",
        };
        tokio::spawn(async move {
            tokio::select! {
                _ = term.recv() => std::process::exit(143),
                _ = int.recv() => std::process::exit(130),
            }
        });
        first
    })
}

fn make_state_dir(dir: &Path) -> Result<(), RunError> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.map_err(io(format!("create state directory {}", dir.display())))
}

fn host_name() -> Result<String, RunError> {
    let name = nix::unistd::gethostname()
        .map_err(|error| io("read the host name (or give --node-name)")(error.into()))?;
    Ok(name.to_string_lossy().into_owned())
}
