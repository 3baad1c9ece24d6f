//! Streams of numbered datagrams, none of which is ever sent twice.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};
use podgate_testkit::net::Net;

use crate::timeline::{Expected, Timeline};

/// Marks a datagram of these streams.
const MAGIC: u32 = 0x706f_6467;
const REPLY: u32 = 0x8000_0000;

/// What happened in one stream.
#[derive(Debug)]
pub(crate) struct Record {
    pub(crate) name: String,
    pub(crate) timeline: Mutex<Timeline>,
    /// Whether each datagram is answered, and the answer has to come back too.
    pub(crate) answered: bool,
    /// When the sending of each began and ended.
    pub(crate) sent: Mutex<Vec<(Instant, Instant)>>,
    /// When each arrived, by number.
    pub(crate) arrived: Mutex<HashMap<u64, Instant>>,
    /// When its answer was back.
    pub(crate) returned: Mutex<HashMap<u64, Instant>>,
}

/// Streams and the sockets that they end at.
pub(crate) struct Streams {
    pub(crate) records: Arc<Mutex<Vec<Arc<Record>>>>,
    stop: Arc<AtomicBool>,
    receivers: Vec<JoinHandle<()>>,
    senders: Vec<JoinHandle<()>>,
    receiving: Arc<AtomicBool>,
}

/// A stream that can be ended by itself.
pub(crate) struct Sender {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Sender {
    /// Ends it: nothing is sent after this.
    pub(crate) fn end(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

fn socket(net: &Net, address: IpAddr, port: u16) -> UdpSocket {
    let socket = net.run(|| UdpSocket::bind(SocketAddr::new(address, port))).unwrap();
    setsockopt(&socket, sockopt::RcvBufForce, &(16 << 20)).unwrap();
    socket
}

fn datagram(stream: u32, number: u64) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(&MAGIC.to_be_bytes());
    bytes[4..8].copy_from_slice(&stream.to_be_bytes());
    bytes[8..].copy_from_slice(&number.to_be_bytes());
    bytes
}

fn parse(bytes: &[u8]) -> Option<(u32, u64)> {
    let word = |at: usize| Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    let number = u64::from_be_bytes(bytes.get(8..16)?.try_into().ok()?);
    (word(0)? == MAGIC).then_some((word(4)?, number))
}

impl Streams {
    pub(crate) fn new() -> Self {
        Self {
            records: Arc::default(),
            stop: Arc::default(),
            receivers: Vec::new(),
            senders: Vec::new(),
            receiving: Arc::new(AtomicBool::new(true)),
        }
    }

    /// Notes whatever comes to this port, and answers where the stream says so. Returns the socket.
    pub(crate) fn listen(&mut self, net: &Net, address: IpAddr, port: u16) -> UdpSocket {
        let socket = socket(net, address, port);
        let other_handle = socket.try_clone().unwrap();
        self.receive(socket);
        other_handle
    }

    fn receive(&mut self, socket: UdpSocket) {
        socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let (records, receiving) = (self.records.clone(), self.receiving.clone());
        self.receivers.push(thread::spawn(move || {
            let mut bytes = [0; 64];
            while receiving.load(Ordering::Relaxed) {
                let Ok((length, from)) = socket.recv_from(&mut bytes) else { continue };
                let now = Instant::now();
                let Some((stream, number)) = parse(&bytes[..length]) else { continue };
                let record = records.lock().unwrap()[stream as usize].clone();
                record.arrived.lock().unwrap().insert(number, now);
                if record.answered {
                    let _ = socket.send_to(&datagram(stream | REPLY, number), from);
                }
            }
        }));
    }

    /// One datagram from the client; from then on the server alone speaks, each `pause`.
    pub(crate) fn spoken_to(
        &mut self,
        name: &str,
        server: UdpSocket,
        (net, client): (&Net, IpAddr),
        pause: Duration,
    ) {
        let (stream, record) = self.record(name, Expected::Pass, false);
        let socket = socket(net, client, 0);
        // of no stream: it only opens the flow
        socket.send_to(b"hello", server.local_addr().unwrap()).unwrap();
        let (to, stop) = (socket.local_addr().unwrap(), self.stop.clone());
        self.receive(socket);
        self.senders.push(thread::spawn(move || {
            for number in 0.. {
                let end = Instant::now() + pause;
                while Instant::now() < end && !stop.load(Ordering::Relaxed) {
                    thread::sleep(Duration::from_millis(50).min(pause));
                }
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                let begun = Instant::now();
                server.send_to(&datagram(stream, number), to).unwrap();
                record.sent.lock().unwrap().push((begun, Instant::now()));
            }
        }));
    }

    fn record(&self, name: &str, expected: Expected, answered: bool) -> (u32, Arc<Record>) {
        let record = Arc::new(Record {
            name: name.into(),
            timeline: Mutex::new(Timeline::new(expected)),
            answered,
            sent: Mutex::default(),
            arrived: Mutex::default(),
            returned: Mutex::default(),
        });
        let mut records = self.records.lock().unwrap();
        records.push(record.clone());
        (records.len() as u32 - 1, record)
    }

    /// Sends from a port of its own, one datagram each `pause`, until all streams end.
    pub(crate) fn send(
        &mut self,
        name: &str,
        expected: Expected,
        (net, from): (&Net, IpAddr),
        to: SocketAddr,
        pause: Duration,
    ) -> Arc<Record> {
        let stop = self.stop.clone();
        let (record, thread) = self.start(name, expected, (net, from), to, pause, stop);
        self.senders.push(thread);
        record
    }

    /// The same, until it is ended by itself.
    pub(crate) fn sender(
        &self,
        name: &str,
        expected: Expected,
        from: (&Net, IpAddr),
        to: SocketAddr,
        pause: Duration,
    ) -> Sender {
        let stop: Arc<AtomicBool> = Arc::default();
        let (_, thread) = self.start(name, expected, from, to, pause, stop.clone());
        Sender { stop, thread: Some(thread) }
    }

    fn start(
        &self,
        name: &str,
        expected: Expected,
        (net, from): (&Net, IpAddr),
        to: SocketAddr,
        pause: Duration,
        stop: Arc<AtomicBool>,
    ) -> (Arc<Record>, JoinHandle<()>) {
        let answered = expected == Expected::Pass;
        let (stream, record) = self.record(name, expected, answered);
        let socket = socket(net, from, 0);
        socket.set_nonblocking(true).unwrap();
        let of_thread = record.clone();
        let thread = thread::spawn(move || {
            let record = of_thread;
            let mut next = Instant::now();
            for number in 0.. {
                while Instant::now() < next && !stop.load(Ordering::Relaxed) {
                    let wait = next.saturating_duration_since(Instant::now());
                    thread::sleep(wait.min(Duration::from_millis(50)));
                    hear(&socket, &record);
                }
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                let begun = Instant::now();
                loop {
                    match socket.send_to(&datagram(stream, number), to) {
                        Ok(_) => break,
                        // the last ones are still on their way out of this namespace
                        Err(e) if e.kind() == ErrorKind::WouldBlock => {
                            thread::sleep(Duration::from_millis(1));
                        }
                        Err(e) => panic!("{}: send to {to}: {e}", record.name),
                    }
                }
                record.sent.lock().unwrap().push((begun, Instant::now()));
                hear(&socket, &record);
                // late is late: no burst to make up for it
                next = (next + pause).max(Instant::now());
            }
            let end = Instant::now() + Duration::from_secs(2);
            while record.answered && Instant::now() < end && is_owed(&record) {
                thread::sleep(Duration::from_millis(5));
                hear(&socket, &record);
            }
        });
        (record, thread)
    }

    /// Ends all streams, and waits for what is under way.
    pub(crate) fn end(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.senders.drain(..) {
            thread.join().unwrap();
        }
        thread::sleep(Duration::from_secs(1));
        self.receiving.store(false, Ordering::Relaxed);
        for thread in self.receivers.drain(..) {
            thread.join().unwrap();
        }
    }
}

/// Whether an answer may be under way.
fn is_owed(record: &Record) -> bool {
    record.returned.lock().unwrap().len() < record.sent.lock().unwrap().len()
}

/// Notes the answers that have come.
fn hear(socket: &UdpSocket, record: &Record) {
    let mut bytes = [0; 64];
    while let Ok((length, _)) = socket.recv_from(&mut bytes) {
        if let Some((_, number)) = parse(&bytes[..length]) {
            record.returned.lock().unwrap().insert(number, Instant::now());
        }
    }
}
