//! Probes: which pod reaches which. Servers and clients are sockets of this process in the pods' network namespaces, so that
//! all pairs are tried at once and a round costs no more than the time that an unanswered one is given.

use std::collections::BTreeMap;
use std::net::{Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result};
use futures::future::join_all;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use crate::runtime::node::in_namespace;

/// How long an answer is waited for that should not come: what each refused try costs. An allowed one takes
/// milliseconds.
const DENIED_TIMEOUT: Duration = Duration::from_millis(700);

/// How long an answer is waited for that should come. On a busy machine it may be late; a round waits so long only for
/// what is out of reach.
const ALLOWED_TIMEOUT: Duration = Duration::from_secs(5);

/// How long before a datagram is sent again.
const RESEND_INTERVAL: Duration = Duration::from_millis(230);

/// What is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    /// A connection.
    Tcp,
    /// A datagram.
    Udp,
}

impl Protocol {
    /// As the API spells it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        }
    }
}

/// One try.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Probe {
    /// The client's network namespace.
    pub from: PathBuf,
    /// The destination.
    pub to: SocketAddr,
    /// How.
    pub protocol: Protocol,
    /// Whether it should be answered.
    pub allowed: bool,
}

/// What a server says: to a client of this address, at this port of its own.
type Answer = Arc<dyn Fn(SocketAddr, u16) -> String + Send + Sync>;

/// A pod that answers with its name on some ports, both protocols, both families. Dropped, it stops.
#[derive(Debug)]
pub struct Server {
    stop: Arc<Notify>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Listens in a network namespace.
    pub fn listen(netns: &Path, name: &str, ports: &[u16]) -> Result<Self> {
        let name = name.to_owned();
        Self::listen_as(netns, ports, move |_, _| name.clone())
    }

    /// Listens in a network namespace, and answers with what `says` makes of the client's address and its own port.
    pub fn listen_as(
        netns: &Path,
        ports: &[u16],
        says: impl Fn(SocketAddr, u16) -> String + Send + Sync + 'static,
    ) -> Result<Self> {
        let says: Answer = Arc::new(says);
        let stop = Arc::new(Notify::new());
        let (stopped, path) = (stop.clone(), netns.to_owned());
        let ports = ports.to_owned();
        let (told, ready) = mpsc::channel();
        let thread = thread::spawn(move || {
            let done = in_namespace(&path, || {
                let runtime = runtime()?;
                runtime.block_on(async {
                    for port in ports {
                        // both families: an IPv6 socket takes IPv4 too
                        let any = (Ipv6Addr::UNSPECIFIED, port);
                        tokio::spawn(accept(TcpListener::bind(any).await?, port, says.clone()));
                        tokio::spawn(answer(UdpSocket::bind(any).await?, port, says.clone()));
                    }
                    let _ = told.send(Ok(()));
                    stopped.notified().await;
                    Ok(())
                })
            });
            if let Err(error) = done.and_then(|done: Result<()>| done) {
                let _ = told.send(Err(error));
            }
        });
        ready.recv().context("start a server")?.context("listen in a pod")?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.notify_one();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn accept(listener: TcpListener, port: u16, says: Answer) {
    loop {
        if let Ok((mut stream, client)) = listener.accept().await {
            let text = says(client, port);
            tokio::spawn(async move {
                let _ = stream.write_all(text.as_bytes()).await;
                let _ = stream.shutdown().await;
                // until the client is done: a reset would take the answer away from it
                let _ = timeout(ALLOWED_TIMEOUT, stream.read(&mut [0; 1])).await;
            });
        }
    }
}

async fn answer(socket: UdpSocket, port: u16, says: Answer) {
    let mut data = [0; 16];
    loop {
        if let Ok((_, from)) = socket.recv_from(&mut data).await {
            let _ = socket.send_to(says(from, port).as_bytes(), from).await;
        }
    }
}

/// Tries all of them at once. Returns, in order, who answered.
pub fn run(probes: &[Probe]) -> Result<Vec<Option<String>>> {
    let mut by_client: BTreeMap<&Path, Vec<usize>> = BTreeMap::new();
    for (index, probe) in probes.iter().enumerate() {
        by_client.entry(&probe.from).or_default().push(index);
    }
    let mut answers = vec![None; probes.len()];
    thread::scope(|scope| {
        let clients: Vec<_> = by_client
            .iter()
            .map(|(netns, indices)| (indices, scope.spawn(|| ask_all(netns, probes, indices))))
            .collect();
        for (indices, client) in clients {
            let asked = client.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            for (index, answer) in indices.iter().zip(asked) {
                answers[*index] = answer;
            }
        }
        Ok(answers)
    })
}

fn ask_all(netns: &Path, probes: &[Probe], indices: &[usize]) -> Result<Vec<Option<String>>> {
    in_namespace(netns, || {
        let asked = indices.iter().map(|index| ask(&probes[*index]));
        Ok(runtime()?.block_on(join_all(asked)))
    })?
}

async fn ask(probe: &Probe) -> Option<String> {
    let asked = async {
        match probe.protocol {
            Protocol::Tcp => {
                let mut stream = TcpStream::connect(probe.to).await.ok()?;
                let mut name = String::new();
                stream.read_to_string(&mut name).await.ok()?;
                Some(name)
            }
            // A datagram that a busy machine has lost is not repeated. Nor one from a port that lately reached the same pod
            // through its service, which is refused for its answer's sake: from another port, then.
            Protocol::Udp => loop {
                if let Some(name) = ask_by_datagram(probe.to).await {
                    return Some(name);
                }
            },
        }
    };
    let limit = if probe.allowed { ALLOWED_TIMEOUT } else { DENIED_TIMEOUT };
    timeout(limit, asked).await.ok().flatten().filter(|name| !name.is_empty())
}

async fn ask_by_datagram(to: SocketAddr) -> Option<String> {
    let any: SocketAddr = if to.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0; 16], 0).into() };
    let socket = UdpSocket::bind(any).await.ok()?;
    socket.connect(to).await.ok()?;
    let mut data = [0; 128];
    for _ in 0..3 {
        // an earlier one may have been answered with an error
        let _ = socket.send(b"who?").await;
        match timeout(RESEND_INTERVAL, socket.recv(&mut data)).await {
            Ok(Ok(length)) => return String::from_utf8(data[..length].to_vec()).ok(),
            Ok(Err(_)) => sleep(RESEND_INTERVAL).await,
            Err(_) => {}
        }
    }
    None
}

pub(super) fn runtime() -> Result<Runtime> {
    Builder::new_current_thread().enable_all().build().context("make a runtime for probes")
}
