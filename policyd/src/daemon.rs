//! `policyd run`: puts the parts together and takes them apart again.

use std::fs::{self, File};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use podgate_bpf::loader::Sizes;
use podgate_bpf::{Gate, PinRoot};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::adopt::{Adopter, Places, Takeover};
use crate::api::Api;
use crate::args::{Events, MetricsAddr, Run, Server};
use crate::cni::CniServer;
use crate::events;
use crate::install::STATE_FILE;
use crate::listen::{API_STREAMS, descriptors};
use crate::metrics::{self, Metrics};
use crate::reconcile::Reconciler;
use crate::report::Reporter;
use crate::socket;
use crate::sources::dir::DirSource;
use crate::sources::kubernetes::{self, ConnectError, Health, KubernetesSource, Pacing};
use crate::sources::local::{LOCAL_SOURCE, LocalError, LocalPolicies};
use crate::sources::{Rank, SourceSpec};
use crate::ungated::Lookout;
use crate::view::Shared;
use crate::writer::{Message, StartError, Writer};

/// How often to look whether another policyd has stopped.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// policyd cannot run, or cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The kernel's side.
    #[error(transparent)]
    Bpf(#[from] podgate_bpf::Error),
    /// The writer.
    #[error(transparent)]
    Writer(#[from] StartError),
    /// A socket.
    #[error(transparent)]
    Listen(#[from] socket::ListenError),
    /// The API's policies.
    #[error(transparent)]
    Local(#[from] LocalError),
    /// The metrics' port.
    #[error("serve metrics on {addr}: {source}")]
    Metrics {
        /// Where.
        addr: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// A source's directory.
    #[error("watch source {name}: {source}")]
    Source {
        /// Which.
        name: String,
        /// Why not.
        source: io::Error,
    },
    /// A source's API server.
    #[error("watch source {name}: {source}")]
    Connect {
        /// Which.
        name: String,
        /// Why not.
        source: ConnectError,
    },
    /// Some call of the system.
    #[error("{what}: {source}")]
    Io {
        /// "verb object".
        what: String,
        /// Why not.
        source: io::Error,
    },
    /// A part that runs as long as policyd does has ended.
    #[error("run policyd: {0}; the policies in force stay, start it again")]
    Ended(String),
}

fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> RunError {
    let what = what.into();
    move |source| RunError::Io { what, source }
}

/// Runs until a signal says stop.
pub async fn run(args: Run) -> Result<(), RunError> {
    let Run {
        sources,
        bpf_root,
        cni_socket,
        api_socket,
        metrics_addr,
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
    let gate = Arc::new(Gate::open_current(&root, &Sizes::from(&sizes))?);
    // in the order of their numbers, so that two that wait for each other cannot be
    let mut only = Vec::new();
    for layout in root.layouts()? {
        only.push(only_one(&layout.dir()).await?);
    }
    make_state_dir(&state_dir)?;

    let shared = Arc::new(Shared::new(gate, node, services, state_dir.join(STATE_FILE)));
    let durations = metrics::durations();
    let names: Vec<String> = sources.iter().map(ToString::to_string).collect();
    let all = names.iter().cloned().chain([LOCAL_SOURCE.to_owned()]);
    let observed = durations.clone();
    let mut writer =
        Writer::start(shared.clone(), all, move |took| observed.observe(took.as_secs_f64()))?;
    let handle = writer.handle();
    let local = Arc::new(LocalPolicies::open(&state_dir, handle.sink(Rank(names.len())))?);
    let mut parts = JoinSet::new();
    let watched = watch_sources(sources, &writer, &shared, &server, &mut parts).await?;
    let (reader, listeners) =
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
        places: Places { cni_cache: adopt.cni_cache, netns: adopt.netns_dirs },
        root: root.clone(),
        anti_spoofing: adopt.adopt_anti_spoofing,
    });
    if adopter.is_none() {
        shared.set_lookout(Lookout::off());
    }
    let takeover =
        Takeover { shared: shared.clone(), writer: handle.clone(), attach, root: root.clone() };
    if let MetricsAddr::At(addr) = metrics_addr {
        let reattached = reconciler.reattached.clone();
        let metrics = Metrics::new(shared.clone(), handle.clone(), reattached, durations);
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
    let api = Api { shared: shared.clone(), writer: handle, local, listeners, streams };
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
        signal = stop => {
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
    // no new work, then the writer finishes what it has begun, then the sockets go
    parts.shutdown().await;
    drop((watched, reader, writer, only));
    for path in [&cni_socket, &api_socket] {
        // another may have removed it; a left one is replaced at the next start
        let _ = fs::remove_file(path);
    }
    match ended {
        Some(why) => Err(RunError::Ended(why)),
        None => Ok(()),
    }
}

/// Watches all sources: API servers among `parts`, directories for as long as what is returned is held.
async fn watch_sources(
    sources: Vec<SourceSpec>,
    writer: &Writer,
    shared: &Arc<Shared>,
    server: &Server,
    parts: &mut JoinSet<String>,
) -> Result<Vec<DirSource>, RunError> {
    let mut watched = Vec::new();
    for (rank, spec) in sources.into_iter().enumerate() {
        let (rank, name) = (Rank(rank), spec.to_string());
        match spec {
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
                    "the look for kinds that are not enforced ended".to_owned()
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

/// Where the watches of an API server, several at a time, put their updates.
fn sink(writer: &Writer, rank: Rank) -> kubernetes::Sink {
    let handle = writer.handle();
    Arc::new(move |update| {
        // the writer only ends with the process
        let _ = handle.send(Message::Source(rank, update));
    })
}

/// A restart can wait a little: what was in force stays so. Without that, pods wait for us.
fn pacing(server: &Server, shared: &Shared) -> Pacing {
    let Server { list_page_size, start_jitter_seconds, events: _ } = *server;
    let jitter = match shared.view().rules {
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

/// One policyd per pin root. The kernel releases the lock when the process ends, however it ends.
async fn only_one(dir: &Path) -> Result<Flock<File>, RunError> {
    let mut told = false;
    loop {
        let opened = File::open(dir).map_err(io(format!("open {}", dir.display())))?;
        match Flock::lock(opened, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            // However long it takes: one that was killed may stay in the kernel for a while, and a
            // supervisor that starts this one again gains nothing.
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => {
                if !told {
                    tracing::warn!(dir = %dir.display(), "another policyd is still running: waiting for it to stop");
                    told = true;
                }
                tokio::time::sleep(LOOK_AGAIN).await;
            }
            Err((_, error)) => {
                return Err(io(format!("lock {}", dir.display()))(error.into()));
            }
        }
    }
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
