//! Real packets: listeners in pods that count what reaches them, and senders that never stop.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::socket::sockopt::ReceiveTimeout;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, setsockopt, socket,
};
use nix::sys::time::{TimeVal, TimeValLike};

use super::Node;

/// The port that everybody here listens on.
pub const PORT: u16 = 8080;

/// How long what is allowed may take on a busy machine. A refusal is given less: it shows in that time, or not at all.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How often a thread looks whether it should end.
const SEND_INTERVAL: Duration = Duration::from_millis(100);

/// A thread that ends when this is dropped.
#[derive(Debug, Default)]
struct Threads {
    stop: Arc<AtomicBool>,
    running: Vec<JoinHandle<()>>,
}

impl Threads {
    fn start(&mut self, work: impl FnOnce(&AtomicBool) + Send + 'static) {
        let stop = self.stop.clone();
        self.running.push(thread::spawn(move || work(&stop)));
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.running.drain(..) {
            let _ = thread.join();
        }
    }
}

/// A pod that answers: TCP connections and UDP datagrams on [`PORT`] get back what they sent. Whatever
/// reaches its interfaces, answered or not, is counted by its source.
#[derive(Debug)]
pub struct Target {
    seen: Arc<Mutex<BTreeMap<Ipv4Addr, u64>>>,
    accepted: Arc<AtomicU64>,
    _threads: Threads,
}

impl Target {
    /// Listens in a pod's network namespace.
    pub fn listen(node: &Node, netns: &str) -> Result<Self> {
        let (tcp, udp, tap) = node
            .inside_pod(netns, || {
                let any = (Ipv4Addr::UNSPECIFIED, PORT);
                Ok::<_, io::Error>((TcpListener::bind(any)?, UdpSocket::bind(any)?, tap()?))
            })?
            .with_context(|| format!("listen in {netns}"))?;
        let seen = Arc::new(Mutex::new(BTreeMap::new()));
        let accepted = Arc::new(AtomicU64::new(0));
        let mut threads = Threads::default();
        let counts = seen.clone();
        threads.start(move |stop| count_sources(&tap, &counts, stop));
        udp.set_read_timeout(Some(SEND_INTERVAL)).context("listen")?;
        threads.start(move |stop| answer_datagrams(&udp, stop));
        tcp.set_nonblocking(true).context("listen")?;
        let count = accepted.clone();
        threads.start(move |stop| answer_connections(&tcp, &count, stop));
        Ok(Self { seen, accepted, _threads: threads })
    }

    /// IPv4 packets that have arrived from this address, whatever became of them.
    pub fn packets_from(&self, source: IpAddr) -> u64 {
        let IpAddr::V4(source) = source else { return 0 };
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.get(&source).copied().unwrap_or_default()
    }

    /// Connections that were accepted.
    pub fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::Relaxed)
    }
}

/// A pod may take over another one's address within moments, with another MAC address. By default its peers
/// would send to the old one for seconds: attempts that fail would prove nothing. Once in doubt they ask for seconds:
/// a busy machine answers late, and what waits for the answer must not be lost.
fn doubt_neighbours() -> io::Result<()> {
    let settings = [
        ("base_reachable_time_ms", "20"),
        ("delay_first_probe_time", "0"),
        ("retrans_time_ms", "20"),
        ("ucast_solicit", "1"),
        ("mcast_solicit", "500"),
    ];
    for (name, value) in settings {
        fs::write(Path::new("/proc/sys/net/ipv4/neigh/eth0").join(name), value)?;
    }
    Ok(())
}

/// Sees every frame of the namespace that the calling thread is in.
fn tap() -> io::Result<OwnedFd> {
    let all = SockProtocol::EthAll;
    let tap = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, all)?;
    setsockopt(&tap, ReceiveTimeout, &TimeVal::milliseconds(SEND_INTERVAL.as_millis() as i64))?;
    Ok(tap)
}

fn count_sources(tap: &OwnedFd, seen: &Mutex<BTreeMap<Ipv4Addr, u64>>, stop: &AtomicBool) {
    let mut frame = [0; 64];
    while !stop.load(Ordering::Relaxed) {
        // the only error is the time-out
        let length = recv(tap.as_raw_fd(), &mut frame, MsgFlags::empty()).unwrap_or(0);
        let is_ipv4 = frame[12..14] == [0x08, 0x00];
        if length < 34 || !is_ipv4 {
            continue;
        }
        let source = Ipv4Addr::new(frame[26], frame[27], frame[28], frame[29]);
        *seen.lock().unwrap_or_else(PoisonError::into_inner).entry(source).or_default() += 1;
    }
}

fn answer_datagrams(udp: &UdpSocket, stop: &AtomicBool) {
    let mut data = [0; 2048];
    while !stop.load(Ordering::Relaxed) {
        if let Ok((length, from)) = udp.recv_from(&mut data) {
            let _ = udp.send_to(&data[..length], from);
        }
    }
}

fn answer_connections(tcp: &TcpListener, accepted: &AtomicU64, stop: &AtomicBool) {
    // dropped, and with it every connection, when the listener ends
    let mut connections = Threads::default();
    while !stop.load(Ordering::Relaxed) {
        match tcp.accept() {
            Ok((stream, _)) => {
                accepted.fetch_add(1, Ordering::Relaxed);
                connections.start(move |stop| echo(stream, stop));
            }
            Err(_) => thread::sleep(Duration::from_millis(2)),
        }
    }
}

fn echo(mut stream: TcpStream, stop: &AtomicBool) {
    let ready =
        stream.set_nonblocking(false).and_then(|()| stream.set_read_timeout(Some(SEND_INTERVAL)));
    let mut data = [0; 2048];
    while ready.is_ok() && !stop.load(Ordering::Relaxed) {
        match stream.read(&mut data) {
            Ok(0) => return,
            Ok(length) => {
                if stream.write_all(&data[..length]).is_err() {
                    return;
                }
            }
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
            Err(_) => return,
        }
    }
}

/// Opens a connection from a pod, says something and reads it back.
pub fn talk(node: &Node, netns: &str, to: IpAddr, limit: Duration) -> Result<io::Result<()>> {
    node.inside_pod(netns, || {
        doubt_neighbours()?;
        talk_here(to, limit)
    })
}

/// [`talk`] from the namespace that the calling thread is in.
pub fn talk_here(to: IpAddr, limit: Duration) -> io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&SocketAddr::new(to, PORT), limit)?;
    stream.set_read_timeout(Some(limit))?;
    stream.write_all(b"hello")?;
    let mut answer = [0; 5];
    stream.read_exact(&mut answer)
}

/// A request and its response, over and over on one TCP connection and one UDP socket: what is allowed
/// throughout loses nothing.
#[derive(Debug)]
pub struct Exchange {
    done: Arc<AtomicU64>,
    faults: Arc<Mutex<Vec<String>>>,
    threads: Threads,
}

impl Exchange {
    /// Between a pod and a [`Target`].
    pub fn start(node: &Node, netns: &str, to: IpAddr) -> Result<Self> {
        let to = SocketAddr::new(to, PORT);
        let (tcp, udp) = node
            .inside_pod(netns, || {
                let udp = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
                udp.connect(to)?;
                Ok::<_, io::Error>((TcpStream::connect_timeout(&to, CONNECT_TIMEOUT)?, udp))
            })?
            .with_context(|| format!("start an exchange with {to}"))?;
        // what is lost for a moment only is lost for UDP, which repairs nothing; TCP would send it again
        tcp.set_read_timeout(Some(CONNECT_TIMEOUT))?;
        tcp.set_nodelay(true)?;
        udp.set_read_timeout(Some(CONNECT_TIMEOUT))?;
        let done = Arc::new(AtomicU64::new(0));
        let faults = Arc::new(Mutex::new(Vec::new()));
        let mut threads = Threads::default();
        let (count, told) = (done.clone(), faults.clone());
        threads.start(move |stop| {
            repeat(stop, &count, &told, "TCP", |number| {
                (&tcp).write_all(&number)?;
                let mut answer = [0; 8];
                (&tcp).read_exact(&mut answer)?;
                Ok(answer == number)
            });
        });
        let (count, told) = (done.clone(), faults.clone());
        threads.start(move |stop| {
            repeat(stop, &count, &told, "UDP", |number| {
                udp.send(&number)?;
                let mut answer = [0; 8];
                udp.recv(&mut answer)?;
                Ok(answer == number)
            });
        });
        Ok(Self { done, faults, threads })
    }

    /// Ends it. Returns how many requests were answered, and every loss.
    pub fn stop(self) -> (u64, Vec<String>) {
        drop(self.threads);
        let faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner).clone();
        (self.done.load(Ordering::Relaxed), faults)
    }

    /// How many requests have been answered so far.
    pub fn answered(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }
}

fn repeat(
    stop: &AtomicBool,
    done: &AtomicU64,
    faults: &Mutex<Vec<String>>,
    protocol: &str,
    ask: impl Fn([u8; 8]) -> io::Result<bool>,
) {
    for number in 0u64.. {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let fault = match ask(number.to_be_bytes()) {
            Ok(true) => {
                done.fetch_add(1, Ordering::Relaxed);
                thread::sleep(Duration::from_millis(1));
                continue;
            }
            Ok(false) => "another answer than the one asked for".to_owned(),
            Err(error) => error.to_string(),
        };
        let told = format!("{protocol} request {number}: {fault}");
        faults.lock().unwrap_or_else(PoisonError::into_inner).push(told);
        // what follows says nothing new: answers are out of step, or the connection is dead
        return;
    }
}

/// Datagrams and connection attempts without end from a pod that must not get through.
#[derive(Debug)]
pub struct Hammer {
    sent: Arc<AtomicU64>,
    _threads: Threads,
}

impl Hammer {
    /// From a pod to an address that need not exist yet.
    pub fn start(node: &Node, netns: &str, to: IpAddr) -> Result<Self> {
        let to = SocketAddr::new(to, PORT);
        let udp = node
            .inside_pod(netns, || {
                doubt_neighbours()?;
                let udp = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
                udp.connect(to)?;
                Ok::<_, io::Error>(udp)
            })?
            .with_context(|| format!("aim at {to}"))?;
        let sent = Arc::new(AtomicU64::new(0));
        let mut threads = Threads::default();
        let count = sent.clone();
        threads.start(move |stop| {
            while !stop.load(Ordering::Relaxed) {
                // no listener (yet) is no reason to stop
                if udp.send(b"knock").is_ok() {
                    count.fetch_add(1, Ordering::Relaxed);
                }
                thread::sleep(Duration::from_millis(1));
            }
        });
        Ok(Self { sent, _threads: threads })
    }

    /// Datagrams that left the socket so far.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }
}
