//! What is done to the node while the streams flow, and the verdict.

use std::fmt;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use podgate_tests::fuzz::dice::Dice;

use crate::judge::{KernelDrops, judge};
use crate::node::{Node, Pod, v4, v6};
use crate::policyd::Policyd;
use crate::streams::{Record, Sender, Streams};
use crate::tcp::Connections;
use crate::timeline::Expected::{Drop, Pass};
use crate::world::{
    CLIENT, COMER, DRIFTER, FLOODER, FRIENDS, MORE, NEVER, OTHER, OTHERS, PORT, SERVER, SERVER2,
    SERVICE, SINK, State,
};

/// A port of which no policy speaks, to which only the node itself sends.
const PROBE: u16 = 7777;

/// How often what was done.
#[derive(Debug, Default)]
struct Done {
    kills: u64,
    changes: u64,
    floods: u64,
    gates: u64,
    pods: u64,
    flooded: u64,
}

/// The pods, without the one that comes and goes.
struct Pods {
    client: Pod,
    server: Pod,
    server2: Pod,
    other: Pod,
    drifter: Pod,
    flooder: Pod,
    sink: Pod,
}

impl Pods {
    fn new(node: &Node) -> Self {
        Self {
            client: node.pod("client", CLIENT),
            server: node.pod("server", SERVER),
            server2: node.pod("server2", SERVER2),
            other: node.pod("other", OTHER),
            drifter: node.pod("drifter", DRIFTER),
            flooder: node.pod("flooder", FLOODER),
            sink: node.pod("sink", SINK),
        }
    }

    fn all(&self) -> [&Pod; 7] {
        let Self { client, server, server2, other, drifter, flooder, sink } = self;
        [client, server, server2, other, drifter, flooder, sink]
    }
}

/// The streams whose verdict some states change.
struct Changing {
    more: Arc<Record>,
    others: Arc<Record>,
    friend: Arc<Record>,
}

impl Changing {
    fn each(&self, state: &State) -> [(&Record, bool); 3] {
        let Self { more, others, friend } = self;
        [(more, state.more), (others, state.others), (friend, state.friend)]
    }

    fn begin(&self, state: &State) {
        for (record, allowed) in self.each(state) {
            record.timeline.lock().unwrap().begin(allowed);
        }
    }

    fn confirm(&self, state: &State) {
        for (record, allowed) in self.each(state) {
            record.timeline.lock().unwrap().confirm(allowed);
        }
    }
}

/// The pod that comes and goes, and what it sends.
struct Comer {
    pod: Pod,
    senders: Vec<Sender>,
}

struct Driver<'a> {
    dice: Dice,
    node: &'a Node,
    pods: &'a Pods,
    streams: &'a Streams,
    changing: &'a Changing,
    policyd: Policyd,
    state: State,
    comer: Option<Comer>,
    done: Done,
    /// What was done when.
    log: Vec<(Instant, String)>,
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|e| panic!("{variable}={text}: {e}")))
}

fn seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    number("PODGATE_FLOOD_SEED").unwrap_or_else(|| RandomState::new().hash_one(()))
}

pub(crate) fn run() {
    let seed = seed();
    println!("PODGATE_FLOOD_SEED={seed}");
    let time = Duration::from_secs(number("PODGATE_FLOOD_SECONDS").unwrap_or(60));
    let node = Node::new();
    let pods = Pods::new(&node);
    let state = State::first();
    let mut policyd = Policyd::new();
    policyd.write(&state.manifest());
    policyd.start(&node);
    policyd.ready();
    for pod in pods.all() {
        policyd.eventually(&format!("{} has its policy", pod.name), || policyd.add(pod));
    }
    in_force(&policyd, &state);

    let mut streams = Streams::new();
    let changing = start(&mut streams, &node, &pods);
    let mut connections = connect(&pods);
    let nets = || pods.all().map(|pod| &*pod.net).into_iter().chain([&node.net]);
    let before = KernelDrops::now(nets());
    let mut driver = Driver {
        dice: Dice::new(seed, 0),
        node: &node,
        pods: &pods,
        streams: &streams,
        changing: &changing,
        policyd,
        state,
        comer: None,
        done: Done::default(),
        log: Vec::new(),
    };
    driver.drive(time);
    let Driver { done, log, comer, policyd, .. } = driver;
    std::mem::drop(comer);
    connections.end();
    streams.end();
    let after = KernelDrops::now(nets());

    let records = streams.records.lock().unwrap().clone();
    let sums = judge(&records, |at| {
        let last = log.iter().rev().find(|(begun, _)| *begun <= at);
        last.map_or_else(String::new, |(begun, what)| format!("{:?} after: {what}", at - *begun))
    });
    println!("{}{}", sums.table, Summary { done: &done, connections: &connections });
    let dropped = after.sockets - before.sockets + after.backlog - before.backlog;
    println!("the kernel itself dropped {dropped} for want of room: {before:?} to {after:?}");
    let wrong = connections.wrong.lock().unwrap().clone();
    let log = || format!("PODGATE_FLOOD_SEED={seed}\n{}\n{}", sums.wrong, policyd.log());
    assert_eq!(sums.leaked, 0, "what no state allows has arrived: {}", log());
    assert!(sums.lost <= dropped, "{} that every state allows are lost: {}", sums.lost, log());
    assert!(wrong.is_empty(), "{wrong:#?} {}", log());
    assert!(sums.must_pass > 1000 && sums.must_drop > 1000, "too little to prove anything");
}

/// Waits until policyd says that the state is in force wherever it matters.
fn in_force(policyd: &Policyd, state: &State) {
    for pod in ["server", "server2", "client"] {
        policyd.allows(pod, &format!("UDP {}", state.marker()));
    }
}

/// The streams that go on all the time.
fn start(streams: &mut Streams, node: &Node, pods: &Pods) -> Changing {
    let ms = Duration::from_millis;
    for server in [&pods.server, &pods.server2] {
        for port in [MORE, OTHERS, FRIENDS, NEVER, PROBE] {
            streams.listen(&server.net, v4(server.number), port);
        }
    }
    let from_client = [(&*pods.client.net, v4(CLIENT)), (&*pods.client.net, v6(CLIENT))];
    for (client, own) in from_client.into_iter().zip([v4 as fn(u8) -> IpAddr, v6]) {
        streams.listen(&pods.server2.net, own(SERVER2), PORT);
        let server = streams.listen(&pods.server.net, own(SERVER), PORT);
        let name = format!("server speaks, {}", if client.1.is_ipv4() { "v4" } else { "v6" });
        streams.spoken_to(&name, server, client, ms(2000));
    }
    streams.listen(&pods.other.net, v4(OTHER), NEVER);
    streams.listen(&pods.sink.net, v4(SINK), NEVER);

    let at = SocketAddr::new;
    let server = |port| at(v4(SERVER), port);
    let service = at(SERVICE.parse().unwrap(), PORT);
    let client = (&*pods.client.net, v4(CLIENT));
    let other = (&*pods.other.net, v4(OTHER));
    streams.send("client to server, busy", Pass, client, server(PORT), ms(2));
    streams.send("client to server, quiet", Pass, client, server(PORT), ms(4000));
    let over_v6 = (&*pods.client.net, v6(CLIENT));
    streams.send("client to server, v6", Pass, over_v6, at(v6(SERVER), PORT), ms(5));
    streams.send("client to service", Pass, client, service, ms(5));
    streams.send("client to service, quiet", Pass, client, service, ms(3000));
    streams.send("node to server", Pass, (&node.net, v4(1)), server(PROBE), ms(20));
    streams.send("other to server", Drop, other, server(PORT), ms(3));
    let over_v6 = (&*pods.other.net, v6(OTHER));
    streams.send("other to server, v6", Drop, over_v6, at(v6(SERVER), PORT), ms(3));
    streams.send("other to service", Drop, other, service, ms(3));
    streams.send("client to another port", Drop, client, server(NEVER), ms(3));
    let own = (&*pods.server.net, v4(SERVER));
    streams.send("server to other", Drop, own, at(v4(OTHER), NEVER), ms(3));
    let drifter = (&*pods.drifter.net, v4(DRIFTER));
    Changing {
        more: streams.send("client, a rule that comes and goes", Drop, client, server(MORE), ms(3)),
        others: streams.send("other, the same", Drop, other, server(OTHERS), ms(3)),
        friend: streams.send("a label that changes", Drop, drifter, server(FRIENDS), ms(3)),
    }
}

fn connect(pods: &Pods) -> Connections {
    let mut connections = Connections::default();
    let allowed: [IpAddr; 2] = [v4(CLIENT), v4(COMER)];
    let server = SocketAddr::new(v4(SERVER), PORT);
    let service = SocketAddr::new(SERVICE.parse().unwrap(), PORT);
    connections.listen(&pods.server.net, server, &allowed);
    connections.listen(&pods.server2.net, SocketAddr::new(v4(SERVER2), PORT), &allowed);
    let client = &pods.client.net;
    connections.keep("busy connection", client, server, Duration::from_millis(5));
    connections.keep("quiet connection", client, server, Duration::from_secs(4));
    connections.keep("connection to the service", client, service, Duration::from_millis(10));
    let pause = Duration::from_millis(100);
    connections.open("new connections", client.clone(), server, pause);
    connections.open("new connections to the service", client.clone(), service, pause);
    connections.forbidden("other to server", pods.other.net.clone(), server);
    connections.forbidden("other to service", pods.other.net.clone(), service);
    connections
}

impl Driver<'_> {
    /// Does one thing after the other until the time is over.
    fn drive(&mut self, time: Duration) {
        let begun = Instant::now();
        let enough = |done: &Done| done.kills >= 2 && done.changes >= 4 && done.pods >= 2;
        while begun.elapsed() < time || (!enough(&self.done) && begun.elapsed() < 5 * time) {
            match self.dice.below(10) {
                0..=3 => self.change(),
                4 => self.there_and_back(),
                5 => self.kill(),
                6 => self.flood(),
                7 => self.gate(),
                _ => self.comer(),
            }
            thread::sleep(Duration::from_millis(self.dice.below(400) as u64));
        }
        if let Some(comer) = &mut self.comer {
            comer.senders.iter_mut().for_each(Sender::end);
        }
    }

    fn note(&mut self, what: impl Into<String>) {
        self.log.push((Instant::now(), what.into()));
    }

    fn nap(&mut self, most: usize) {
        thread::sleep(Duration::from_millis(self.dice.below(most) as u64));
    }

    /// SIGKILL at some moment, a pause, and the next one.
    fn kill(&mut self) {
        self.nap(120);
        self.note("kill");
        self.policyd.kill();
        self.done.kills += 1;
        self.nap(500);
        self.note("start");
        self.policyd.start(self.node);
    }

    fn change(&mut self) {
        let next = self.state.next(&mut self.dice);
        self.note(format!("{:?} to {next:?}", self.state));
        self.changing.begin(&next);
        self.policyd.write(&next.manifest());
        for _ in 0..self.dice.pick(&[0, 0, 1, 1, 2]) {
            self.kill();
        }
        self.settle(next);
    }

    /// Another state, and the first again before it may have been in force.
    fn there_and_back(&mut self) {
        let there = self.state.next(&mut self.dice);
        let back = self.state.as_number(there.number + 1);
        self.note(format!("to {there:?} and back"));
        self.changing.begin(&there);
        self.policyd.write(&there.manifest());
        self.nap(60);
        self.changing.begin(&back);
        self.policyd.write(&back.manifest());
        if self.dice.chance(30) {
            self.kill();
        }
        self.settle(back);
    }

    fn settle(&mut self, state: State) {
        in_force(&self.policyd, &state);
        self.note(format!("in force: state {}", state.number));
        self.changing.confirm(&state);
        self.state = state;
        self.done.changes += 1;
    }

    /// New flows to many ports of the sink, and as many that are refused, from one pod.
    fn flood(&mut self) {
        self.note("flood");
        let from = SocketAddr::new(v4(FLOODER), 0);
        let socket = self.pods.flooder.net.run(|| UdpSocket::bind(from)).unwrap();
        let end = Instant::now() + Duration::from_secs(1);
        while Instant::now() < end {
            for _ in 0..20 {
                let to = if self.dice.chance(50) { SINK } else { SERVER };
                let port = 1 + self.dice.below(65_000) as u16;
                // refused by the sink's own stack for the most part
                let _ = socket.send_to(b"flood", SocketAddr::new(v4(to), port));
                self.done.flooded += 1;
            }
            thread::sleep(Duration::from_millis(5));
        }
        self.done.floods += 1;
    }

    /// A gate is taken away; policyd puts it back.
    fn gate(&mut self) {
        let (node, pods) = (self.node, self.pods);
        // what these two must not do, the servers' gates forbid
        let pod = if self.dice.chance(50) { &pods.other } else { &pods.drifter };
        self.note(format!("remove the gate of {}", pod.name));
        node.remove_gate(pod);
        self.policyd.eventually("the gate is back", || node.has_gate(pod));
        self.note("the gate is back");
        self.done.gates += 1;
    }

    /// The pod at one address goes, and another one comes there.
    fn comer(&mut self) {
        if let Some(mut old) = self.comer.take() {
            old.senders.iter_mut().for_each(Sender::end);
            self.note(format!("delete {}", old.pod.name));
            self.node.delete(old.pod);
        }
        let next = self.state.with_another_comer();
        self.policyd.write(&next.manifest());
        self.nap(50);
        self.note(format!("add {} (a client: {})", next.comer(), next.comer_is_client));
        let pod = self.node.pod(&next.comer(), COMER);
        let mut senders = Vec::new();
        let ms = Duration::from_millis;
        let server = SocketAddr::new(v4(SERVER), PORT);
        if !next.comer_is_client {
            // never, from its first packet on
            let sink = SocketAddr::new(v4(SINK), NEVER);
            for (name, to) in [("server", server), ("sink", sink)] {
                let name = format!("{} to {name}", pod.name);
                let from = (&*pod.net, v4(COMER));
                senders.push(self.streams.sender(&name, Drop, from, to, ms(3)));
            }
        }
        if self.dice.chance(30) {
            self.kill();
        }
        let policyd = &self.policyd;
        policyd.eventually("the new pod's policy is in force", || policyd.add(&pod));
        self.settle(next);
        if self.state.comer_is_client {
            let name = format!("{} to server", pod.name);
            let from = (&*pod.net, v4(COMER));
            senders.push(self.streams.sender(&name, Pass, from, server, ms(5)));
        }
        self.comer = Some(Comer { pod, senders });
        self.done.pods += 1;
    }
}

struct Summary<'a> {
    done: &'a Done,
    connections: &'a Connections,
}

impl fmt::Display for Summary<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use std::sync::atomic::Ordering::Relaxed;
        let Done { kills, changes, floods, gates, pods, flooded } = self.done;
        let Connections { exchanges, opened, refused, .. } = self.connections;
        writeln!(
            f,
            "{kills} kills, {changes} changes in force, {floods} floods of {flooded} datagrams, {gates} gates removed, \
             {pods} pods at one address"
        )?;
        writeln!(
            f,
            "TCP: {} exchanges, {} new connections, {} refused",
            exchanges.load(Relaxed),
            opened.load(Relaxed),
            refused.load(Relaxed)
        )
    }
}
