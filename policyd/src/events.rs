//! Verdict events: from the kernel's ring to whoever listens, with names in the place of numbers.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::time::{ClockId, clock_gettime};
use podgate_bpf::events::{Event, Events};
use podgate_policy::compile::RuleId;
use podgate_policy::model::Protocol;
use podgate_policy::services::Frontend;
use tokio::sync::broadcast;

use crate::api::types::{FlowEvent, FlowService};
use crate::view::Shared;

/// Events that a slow listener may be behind before it loses some.
const BACKLOG: usize = 4096;
/// How long one wait for events lasts; how late a stop is noticed.
const POLL: Duration = Duration::from_millis(200);

/// Where to listen to events.
#[derive(Clone, Debug)]
pub struct Listeners {
    sender: broadcast::Sender<Arc<FlowEvent>>,
    count: Arc<AtomicUsize>,
}

/// One who listens. While there is any, the programs tell of allowed flows too.
#[derive(Debug)]
pub struct Listener {
    receiver: broadcast::Receiver<Arc<FlowEvent>>,
    count: Arc<AtomicUsize>,
    shared: Arc<Shared>,
}

impl Listeners {
    /// Starts to listen.
    pub fn listen(&self, shared: &Arc<Shared>) -> Listener {
        let receiver = self.sender.subscribe();
        self.count.fetch_add(1, Ordering::SeqCst);
        shared.gate.maps.control().tell_allowed(true);
        Listener { receiver, count: self.count.clone(), shared: shared.clone() }
    }
}

impl Listener {
    /// The next event.
    pub async fn recv(&mut self) -> Result<Arc<FlowEvent>, broadcast::error::RecvError> {
        self.receiver.recv().await
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if self.count.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.shared.gate.maps.control().tell_allowed(false);
            // somebody may have come between the two
            if self.count.load(Ordering::SeqCst) > 0 {
                self.shared.gate.maps.control().tell_allowed(true);
            }
        }
    }
}

/// The thread that empties the ring.
#[derive(Debug)]
pub struct Reader {
    stop: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Reader {
    /// Starts reading. There can be one reader of a ring: what it takes is gone.
    pub fn start(shared: Arc<Shared>) -> std::io::Result<(Self, Listeners)> {
        let (sender, _) = broadcast::channel(BACKLOG);
        let listeners = Listeners { sender: sender.clone(), count: Arc::default() };
        // an earlier policyd may have been killed while somebody listened
        shared.gate.maps.control().tell_allowed(false);
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = thread::Builder::new().name("events".into()).spawn(move || {
            if let Err(error) = read(&shared, &sender, &stopped) {
                tracing::error!(%error, "cannot read events; verdicts are not told, enforcement goes on");
            }
        })?;
        Ok((Self { stop, thread: Some(thread) }, listeners))
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn read(
    shared: &Arc<Shared>,
    sender: &broadcast::Sender<Arc<FlowEvent>>,
    stop: &AtomicBool,
) -> podgate_bpf::Result<()> {
    let naming = shared.clone();
    let sender = sender.clone();
    let events = Events::new(&shared.gate.maps, move |event| {
        // nobody listens: the ring is emptied all the same, so that a listener hears what happens now
        if sender.receiver_count() > 0 {
            let _ = sender.send(Arc::new(name(&naming, &event)));
        }
    })?;
    while !stop.load(Ordering::Relaxed) {
        events.poll(POLL)?;
    }
    Ok(())
}

fn name(shared: &Shared, event: &Event) -> FlowEvent {
    let view = shared.view();
    let rule = view.origins.get(RuleId(event.rule));
    FlowEvent {
        time: wall_clock(event.time),
        verdict: event.verdict.name().to_owned(),
        reason: event.reason.name().to_owned(),
        direction: event.direction.name().to_owned(),
        pod: view.name_of(event.ifindex),
        pod_address: event.pod.0,
        pod_port: event.pod.1,
        peer: peer(shared, event.peer.0),
        peer_address: event.peer.0,
        peer_port: event.peer.1,
        protocol: protocol(event.protocol),
        rule: rule.map(|rule| rule.to_string()),
        service: event.service.map(|at| service(shared, at, event.protocol)),
        length: event.length,
    }
}

fn peer(shared: &Shared, address: IpAddr) -> Option<String> {
    shared.index().owner_of(address).map(|pod| pod.key.to_string())
}

fn service(shared: &Shared, (address, port): (IpAddr, u16), protocol: u8) -> FlowService {
    let protocol = Protocol::from_number(protocol);
    let name = protocol.and_then(|protocol| {
        let frontend = Frontend { address, port, protocol };
        shared.index().services().service_of(&frontend).map(|service| service.key.to_string())
    });
    FlowService { name, address, port }
}

/// The programs stamp with the monotonic clock.
fn wall_clock(event: u64) -> f64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let monotonic = clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from).unwrap_or_default();
    let ago = monotonic.saturating_sub(Duration::from_nanos(event));
    now.saturating_sub(ago).as_secs_f64()
}

/// The name of an IP protocol, or its number.
fn protocol(number: u8) -> String {
    match number {
        1 => "ICMP".to_owned(),
        6 => "TCP".to_owned(),
        17 => "UDP".to_owned(),
        58 => "ICMPv6".to_owned(),
        132 => "SCTP".to_owned(),
        number => number.to_string(),
    }
}
