//! Connections: old ones that must live on, new ones that must open, and some that must not.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use podgate_testkit::net::Net;

/// A peer that is slower than this is lost.
const TCP_TIMEOUT: Duration = Duration::from_secs(40);

/// What the connections did, and what went wrong.
#[derive(Default)]
pub(crate) struct Connections {
    pub(crate) exchanges: Arc<AtomicU64>,
    pub(crate) opened: Arc<AtomicU64>,
    pub(crate) refused: Arc<AtomicU64>,
    pub(crate) wrong: Arc<Mutex<Vec<String>>>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    /// A listener that ended before its clients would reset what it has not accepted.
    stop_listening: Arc<AtomicBool>,
    listeners: Vec<JoinHandle<()>>,
}

impl Connections {
    /// Echoes to whoever connects; a connection from anybody but `clients` is wrong.
    pub(crate) fn listen(&mut self, net: &Net, at: SocketAddr, clients: &[IpAddr]) {
        let listener = net.run(|| TcpListener::bind(at)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let (wrong, clients) = (self.wrong.clone(), clients.to_vec());
        let stop = self.stop_listening.clone();
        self.listeners.push(thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                let Ok((stream, from)) = listener.accept() else {
                    thread::sleep(Duration::from_millis(2));
                    continue;
                };
                if !clients.contains(&from.ip()) {
                    wrong.lock().unwrap().push(format!("{from} connected to {at}"));
                }
                // it ends with its client
                thread::spawn(move || echo(stream));
            }
        }));
    }

    /// One connection, over which eight bytes go and come back each `pause`.
    pub(crate) fn keep(&mut self, name: &str, net: &Net, to: SocketAddr, pause: Duration) {
        let mut stream = net.run(|| TcpStream::connect_timeout(&to, TCP_TIMEOUT)).unwrap();
        let (stop, wrong) = (self.stop.clone(), self.wrong.clone());
        let (exchanges, name) = (self.exchanges.clone(), name.to_owned());
        self.threads.push(thread::spawn(move || {
            for number in 0_u64.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                if let Err(e) = exchange(&mut stream, number) {
                    wrong.lock().unwrap().push(format!("{name}: exchange {number}: {e}"));
                    break;
                }
                exchanges.fetch_add(1, Ordering::Relaxed);
                pausing(&stop, pause);
            }
        }));
    }

    /// A new connection each `pause`, which must open and answer.
    pub(crate) fn open(&mut self, name: &str, net: Arc<Net>, to: SocketAddr, pause: Duration) {
        let (stop, wrong, opened) = (self.stop.clone(), self.wrong.clone(), self.opened.clone());
        let name = name.to_owned();
        self.threads.push(thread::spawn(move || {
            for number in 0_u64.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                let stream = net.run(|| TcpStream::connect_timeout(&to, TCP_TIMEOUT));
                if let Err(e) = stream.and_then(|mut stream| exchange(&mut stream, number)) {
                    wrong.lock().unwrap().push(format!("{name}: connection {number}: {e}"));
                }
                opened.fetch_add(1, Ordering::Relaxed);
                pausing(&stop, pause);
            }
        }));
    }

    /// Tries to connect, and must never succeed.
    pub(crate) fn forbidden(&mut self, name: &str, net: Arc<Net>, to: SocketAddr) {
        let (stop, wrong, refused) = (self.stop.clone(), self.wrong.clone(), self.refused.clone());
        let name = name.to_owned();
        self.threads.push(thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                let limit = Duration::from_millis(50);
                match net.run(|| TcpStream::connect_timeout(&to, limit)) {
                    Ok(_) => wrong.lock().unwrap().push(format!("{name}: connected to {to}")),
                    Err(_) => drop(refused.fetch_add(1, Ordering::Relaxed)),
                }
            }
        }));
    }

    /// Ends them all.
    pub(crate) fn end(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().unwrap();
        }
        self.stop_listening.store(true, Ordering::Relaxed);
        for thread in self.listeners.drain(..) {
            thread.join().unwrap();
        }
    }
}

fn pausing(stop: &AtomicBool, pause: Duration) {
    let end = std::time::Instant::now() + pause;
    while std::time::Instant::now() < end && !stop.load(Ordering::Relaxed) {
        let left = end.saturating_duration_since(std::time::Instant::now());
        thread::sleep(left.min(Duration::from_millis(50)));
    }
}

fn exchange(stream: &mut TcpStream, number: u64) -> std::io::Result<()> {
    stream.set_read_timeout(Some(TCP_TIMEOUT))?;
    stream.set_nodelay(true)?;
    stream.write_all(&number.to_be_bytes())?;
    let mut back = [0; 8];
    stream.read_exact(&mut back)?;
    if u64::from_be_bytes(back) == number {
        Ok(())
    } else {
        Err(std::io::Error::other("other bytes"))
    }
}

fn echo(mut stream: TcpStream) {
    let _ = stream.set_nonblocking(false);
    let _ = stream.set_nodelay(true);
    let mut bytes = [0; 8];
    while stream.read_exact(&mut bytes).is_ok() && stream.write_all(&bytes).is_ok() {}
}
