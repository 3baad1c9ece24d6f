//! Verdict events: read from the kernel's ring buffer and sent to subscribers, with names instead of numbers. What would
//! have been denied is summed up as well ([`crate::audit`]).

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::time::{ClockId, clock_gettime};
use podgate_bpf::abi::{self, Stat, ip_protocol};
use podgate_bpf::events::{Event, Events};
use podgate_contract::api::{FlowEvent, FlowService, Verdict};
use podgate_policy::model::Protocol;
use podgate_policy::services::Frontend;
use podgate_policy::tables::{RuleId, RuleOrigin};
use tokio::sync::broadcast;

use crate::audit::is_audited;
use crate::encode::direction_of;
use crate::snapshot::NodeState;

/// Events buffered for a slow subscriber before it loses some.
const SUBSCRIBER_BUFFER: usize = 4096;
/// The longest wait for events, and so the delay until a stop is noticed.
const POLL_TIMEOUT: Duration = Duration::from_millis(200);

/// Hands out subscriptions to events.
#[derive(Clone, Debug)]
pub struct Subscriptions {
    sender: broadcast::Sender<Arc<FlowEvent>>,
    count: Arc<AtomicUsize>,
}

/// One subscriber. While there is any, the programs report allowed flows too.
#[derive(Debug)]
pub struct Subscription {
    receiver: broadcast::Receiver<Arc<FlowEvent>>,
    count: Arc<AtomicUsize>,
    shared: Arc<NodeState>,
}

impl Subscriptions {
    /// Subscribes to all events from now on.
    pub fn subscribe(&self, shared: &Arc<NodeState>) -> Subscription {
        let receiver = self.sender.subscribe();
        self.count.fetch_add(1, Ordering::SeqCst);
        shared.datapath.maps.control().set_report_allowed(true);
        Subscription { receiver, count: self.count.clone(), shared: shared.clone() }
    }
}

impl Subscription {
    /// The next event. An error if events were lost or no more come.
    pub async fn recv(&mut self) -> Result<Arc<FlowEvent>, broadcast::error::RecvError> {
        self.receiver.recv().await
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        if self.count.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.shared.datapath.maps.control().set_report_allowed(false);
            // another subscriber may have come between the two
            if self.count.load(Ordering::SeqCst) > 0 {
                self.shared.datapath.maps.control().set_report_allowed(true);
            }
        }
    }
}

/// The thread that reads the ring buffer.
#[derive(Debug)]
pub struct Reader {
    stop: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Reader {
    /// Starts reading. A ring buffer can have one reader only, because reading removes events.
    pub fn start(shared: Arc<NodeState>) -> std::io::Result<(Self, Subscriptions)> {
        let (sender, _) = broadcast::channel(SUBSCRIBER_BUFFER);
        let subscriptions = Subscriptions { sender: sender.clone(), count: Arc::default() };
        // an earlier policyd may have been killed while it had subscribers
        shared.datapath.maps.control().set_report_allowed(false);
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = thread::Builder::new().name("events".into()).spawn(move || {
            if let Err(error) = read(&shared, &sender, &stopped) {
                tracing::error!(%error, "cannot read events: verdicts are not reported, enforcement goes on");
            }
        })?;
        Ok((Self { stop, thread: Some(thread) }, subscriptions))
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
    shared: &Arc<NodeState>,
    sender: &broadcast::Sender<Arc<FlowEvent>>,
    stop: &AtomicBool,
) -> podgate_bpf::Result<()> {
    let naming = shared.clone();
    let sender = sender.clone();
    shared.audit.begin(now(), lost(shared)?);
    let events = Events::new(&shared.datapath.maps, move |event| {
        naming.audit.take(&naming, &event);
        // without a subscriber events are discarded, so that a later one does not get old ones
        if sender.receiver_count() > 0 {
            let _ = sender.send(Arc::new(name(&naming, &event)));
        }
    })?;
    while !stop.load(Ordering::Relaxed) {
        events.poll(POLL_TIMEOUT)?;
    }
    Ok(())
}

/// How many events the kernel has held back or lost since its maps were made.
pub(crate) fn lost(shared: &NodeState) -> podgate_bpf::Result<u64> {
    let counters = shared.datapath.maps.counters()?;
    Ok(counters.stat(Stat::EventLimit) + counters.stat(Stat::EventLost))
}

fn name(shared: &NodeState, event: &Event) -> FlowEvent {
    let snapshot = shared.snapshot();
    let rule = snapshot.origins.get(RuleId(event.rule));
    FlowEvent {
        time: wall_clock(event.time),
        verdict: match event.verdict {
            abi::Verdict::Allow | abi::Verdict::Audit => Verdict::Allow,
            abi::Verdict::Deny | abi::Verdict::Reject => Verdict::Deny,
        },
        reason: event.reason.name().to_owned(),
        direction: direction_of(event.direction),
        pod: snapshot.name_of(event.ifindex),
        pod_address: event.pod.0,
        pod_port: event.pod.1,
        peer: peer(shared, event.peer.0),
        peer_address: event.peer.0,
        peer_port: event.peer.1,
        protocol: protocol(event.protocol),
        audited: is_audited(event),
        log: rule.as_deref().filter(|_| event.logged).and_then(|rule| label(shared, rule)),
        rule: match event.reason.is_limit() {
            true => snapshot.limit_origins.get(&event.rule).map(|origin| origin.to_string()),
            false => rule.map(|rule| rule.to_string()),
        },
        service: event.service.map(|at| service(shared, at, event.protocol)),
        length: event.length,
    }
}

/// The label with which the rule's policy has its flows logged. Not if it was taken away meanwhile.
fn label(shared: &NodeState, rule: &RuleOrigin) -> Option<String> {
    let index = shared.index();
    let settings = match rule {
        RuleOrigin::NotIsolated(_) | RuleOrigin::Local { .. } | RuleOrigin::LocalDefault { .. } => {
            return None;
        }
        RuleOrigin::Policy { policy, .. } | RuleOrigin::Isolated { policy, .. } => {
            &index.policy(policy)?.settings
        }
        RuleOrigin::Cluster { policy, .. } => &index.cluster_policy(policy)?.settings,
    };
    settings.log.as_deref().map(str::to_owned)
}

fn peer(shared: &NodeState, address: IpAddr) -> Option<String> {
    shared.index().owner_of(address).map(|pod| pod.key.to_string())
}

fn service(shared: &NodeState, (address, port): (IpAddr, u16), protocol: u8) -> FlowService {
    let protocol = Protocol::from_number(protocol);
    let name = protocol.and_then(|protocol| {
        let frontend = Frontend { address, port, protocol };
        shared.index().services().service_of(&frontend).map(|service| service.key.to_string())
    });
    FlowService { name, address, port }
}

/// Seconds since the Unix epoch.
pub(crate) fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// Seconds since the Unix epoch of an event, which carries nanoseconds of the monotonic clock.
pub(crate) fn wall_clock(event: u64) -> f64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let monotonic = clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from).unwrap_or_default();
    let ago = monotonic.saturating_sub(Duration::from_nanos(event));
    now.saturating_sub(ago).as_secs_f64()
}

/// The name of an IP protocol, or its number.
pub(crate) fn protocol(number: u8) -> String {
    match (Protocol::from_number(number), number) {
        (Some(protocol), _) => protocol.to_string(),
        (None, ip_protocol::ICMP) => "ICMP".to_owned(),
        (None, ip_protocol::ICMPV6) => "ICMPv6".to_owned(),
        (None, number) => number.to_string(),
    }
}
