//! The life of a flow through a service: which endpoint it has, how long, and what it must not be taken for.

use podgate_bpf::abi::{
    Addr, FLOW_ENDPOINT, FLOW_FOREIGN, FLOW_SERVICE, Flow, Flow4Key, Flow6Key, FlowState, Mode,
    Startup,
};
use podgate_bpf::clock::coarse_now;
use podgate_tests::kernel::{DROP, Lab, NEXT};

use crate::prelude::*;

pub(crate) fn tables() -> Vec<Table> {
    let mut tables = both(connections);
    tables.extend(both(datagrams));
    tables.extend(both(clashes));
    tables.extend(both(affinity));
    tables.extend(both(policies));
    tables.extend(both(modes));
    tables.extend(both(foreign));
    tables.extend(both(forgotten));
    tables
}

/// A TCP service on port 80 with these endpoints, on port 8080.
fn web(f: Family, endpoints: &[&str]) -> Service {
    let endpoints: Vec<_> = endpoints.iter().map(|address| (*address, 8080)).collect();
    Service::new(f.service, 80, TCP, &endpoints)
}

/// A UDP service on port 53 with these endpoints, on port 5353.
fn domain(f: Family, endpoints: &[&str]) -> Service {
    let endpoints: Vec<_> = endpoints.iter().map(|address| (*address, 5353)).collect();
    Service::new(f.service, 53, UDP, &endpoints)
}

/// A segment to the service, and the same to an endpoint.
fn to(f: Family, endpoint: &str, make: fn(Transport) -> Transport) -> (Ip, Ip) {
    (
        make(tcp(40000, 80)).between(f.pod, f.service),
        make(tcp(40000, 8080)).between(f.pod, endpoint),
    )
}

/// A segment from an endpoint, and the same from the service.
fn from(f: Family, endpoint: &str, make: fn(Transport) -> Transport) -> (Ip, Ip) {
    (
        make(tcp(8080, 40000)).between(endpoint, f.pod),
        make(tcp(80, 40000)).between(f.service, f.pod),
    )
}

fn ask(f: Family, endpoint: &str) -> (Ip, Ip) {
    (udp(40000, 53).between(f.pod, f.service), udp(40000, 5353).between(f.pod, endpoint))
}

fn answer(f: Family, endpoint: &str) -> (Ip, Ip) {
    (udp(5353, 40000).between(endpoint, f.pod), udp(53, 40000).between(f.service, f.pod))
}

trait Steps: Sized {
    /// The pod sends the first, the second leaves.
    fn out(self, packets: (Ip, Ip), reason: podgate_bpf::abi::Reason) -> Self;
    /// The first comes, the pod receives the second.
    fn back(self, packets: (Ip, Ip)) -> Self;
    /// A whole handshake with this endpoint.
    fn connects(self, f: Family, endpoint: &str) -> Self;
}

impl Steps for Table {
    fn out(self, (sent, left): (Ip, Ip), reason: podgate_bpf::abi::Reason) -> Self {
        self.from_pod_as(sent, reason, left)
    }

    fn back(self, (came, received): (Ip, Ip)) -> Self {
        self.to_pod_as(came, AllowFlow, received)
    }

    fn connects(self, f: Family, endpoint: &str) -> Self {
        self.out(to(f, endpoint, Transport::syn), AllowPolicy)
            .back(from(f, endpoint, Transport::syn_ack))
            .out(to(f, endpoint, Transport::ack), AllowFlow)
    }
}

/// The endpoints of the service are others from now on.
fn becomes(service: Service) -> impl FnOnce(&mut Lab) + Send {
    move |lab| {
        lab.serve(1, &service);
        lab.bump();
    }
}

fn connections(f: Family) -> Vec<Table> {
    let two = "10.0.0.77";
    let two = if f.icmp == ICMP { two } else { "fd00::77" };
    let world = |endpoints: &[&str]| World::open().service(web(f, endpoints));
    vec![
        table(
            f.named("service flows: a SYN sent again goes to the same endpoint"),
            world(&[f.peer]),
        )
        .out(to(f, f.peer, Transport::syn), AllowPolicy)
        .then("fifty more", becomes(many(f, 50)))
        .out(to(f, f.peer, Transport::syn), AllowFlow)
        .out(to(f, f.peer, Transport::syn), AllowFlow)
        .out(to(f, f.peer, Transport::syn), AllowFlow)
        .back(from(f, f.peer, Transport::syn_ack)),
        table(f.named("service flows: its endpoint goes, a connection stays"), world(&[f.peer]))
            .connects(f, f.peer)
            .then("it is gone", becomes(web(f, &[two])))
            .out(to(f, f.peer, Transport::ack), AllowFlow)
            .back(from(f, f.peer, Transport::ack))
            .out(to(f, f.peer, Transport::fin), AllowFlow)
            .back(from(f, f.peer, Transport::fin))
            .out(to(f, f.peer, Transport::ack), AllowFlow)
            .out(to(f, two, Transport::syn), AllowPolicy)
            .back(from(f, two, Transport::syn_ack)),
        table(
            f.named("service flows: the whole service goes, a connection stays"),
            world(&[f.peer]),
        )
        .connects(f, f.peer)
        .then("it is gone", becomes(web(f, &[])))
        .out(to(f, f.peer, Transport::ack), AllowFlow)
        .back(from(f, f.peer, Transport::ack))
        .out(to(f, f.peer, Transport::rst), AllowFlow)
        .from_pod(tcp(40000, 80).syn().between(f.pod, f.service), AllowPolicy),
        table(
            f.named("service flows: an endpoint that ends keeps its connections"),
            world(&[f.peer]),
        )
        .connects(f, f.peer)
        .then("it drains", becomes(web(f, &[two]).serving(f.peer, 8080)))
        .out(to(f, f.peer, Transport::ack), AllowFlow)
        .back(from(f, f.peer, Transport::ack))
        .out(to(f, two, Transport::syn), AllowPolicy),
        table(
            f.named("service flows: a SYN unanswered, and its endpoint drains"),
            world(&[f.peer]),
        )
        .out(to(f, f.peer, Transport::syn), AllowPolicy)
        .then("it drains", becomes(web(f, &[two]).serving(f.peer, 8080)))
        .out(to(f, two, Transport::syn), AllowPolicy)
        .back(from(f, two, Transport::syn_ack)),
        table(f.named("service flows: a SYN unanswered, and its endpoint goes"), world(&[f.peer]))
            .out(to(f, f.peer, Transport::syn), AllowPolicy)
            .then("it is gone", becomes(web(f, &[two])))
            .out(to(f, two, Transport::syn), AllowPolicy),
        table(f.named("service flows: a SYN after the end chooses anew"), world(&[f.peer]))
            .connects(f, f.peer)
            .out(to(f, f.peer, Transport::rst), AllowFlow)
            .then("another", move |lab| lab.serve(1, &web(f, &[two])))
            .out(to(f, two, Transport::syn), AllowPolicy)
            .back(from(f, two, Transport::syn_ack)),
        table(
            f.named("service flows: a SYN on a connection that its other end forgot"),
            world(&[f.peer]),
        )
        .connects(f, f.peer)
        .then("another beside it", move |lab| lab.serve(1, &many(f, 50)))
        .out(to(f, f.peer, Transport::syn), AllowFlow)
        .back(from(f, f.peer, Transport::ack)),
        table(
            f.named("service flows: a service that comes late takes a SYN sent again"),
            World::open(),
        )
        .from_pod(tcp(40000, 80).syn().between(f.pod, f.service), AllowPolicy)
        .then("it comes", becomes(web(f, &[f.peer])))
        .out(to(f, f.peer, Transport::syn), AllowPolicy),
        table(
            f.named("service flows: a service that comes late leaves a connection alone"),
            World::open(),
        )
        .from_pod(tcp(40000, 80).syn().between(f.pod, f.service), AllowPolicy)
        .to_pod(tcp(80, 40000).syn_ack().between(f.service, f.pod), AllowFlow)
        .then("it comes", becomes(web(f, &[f.peer])))
        .from_pod(tcp(40000, 80).ack().between(f.pod, f.service), AllowFlow)
        .to_pod(tcp(80, 40000).ack().between(f.service, f.pod), AllowFlow),
        table(f.named("service flows: an answer is no connection of the endpoint's own"), {
            World::isolated().not_isolated(Egress).service(web(f, &[f.peer]))
        })
        .out(to(f, f.peer, Transport::syn), AllowPolicy)
        .to_pod(tcp(8080, 40000).syn().between(f.peer, f.pod), DenyPolicy)
        .back(from(f, f.peer, Transport::syn_ack))
        .to_pod(tcp(8080, 40001).syn_ack().between(f.peer, f.pod), DenyPolicy)
        .to_pod(tcp(8081, 40000).syn_ack().between(f.peer, f.pod), DenyPolicy),
    ]
}

/// A web service with this many endpoints beside the peer.
fn many(f: Family, count: u16) -> Service {
    let others: Vec<String> = (0..count)
        .map(|n| if f.icmp == ICMP { format!("10.7.0.{n}") } else { format!("fd00:7::{n:x}") })
        .collect();
    let all: Vec<&str> = others.iter().map(String::as_str).chain([f.peer]).collect();
    web(f, &all)
}

fn datagrams(f: Family) -> Vec<Table> {
    let two = if f.icmp == ICMP { "10.0.0.77" } else { "fd00::77" };
    let world = |endpoints: &[&str]| World::open().service(domain(f, endpoints));
    vec![
        table(f.named("service flows: its endpoint goes, datagrams move on"), world(&[f.peer]))
            .out(ask(f, f.peer), AllowPolicy)
            .back(answer(f, f.peer))
            .then("it is gone", becomes(domain(f, &[two])))
            .out(ask(f, two), AllowPolicy)
            .back(answer(f, two))
            .back(answer(f, f.peer)),
        table(f.named("service flows: a change elsewhere moves no datagrams"), world(&[f.peer]))
            .out(ask(f, f.peer), AllowPolicy)
            .back(answer(f, f.peer))
            .then("more endpoints", move |lab| {
                let mut service = domain(f, &[two]);
                service.ready.insert(0, domain(f, &[f.peer]).ready[0]);
                becomes(service)(lab);
            })
            .out(ask(f, f.peer), AllowFlow)
            .out(ask(f, f.peer), AllowFlow),
        table(
            f.named("service flows: an endpoint that drains keeps its datagrams"),
            world(&[f.peer]),
        )
        .out(ask(f, f.peer), AllowPolicy)
        .then("it drains", becomes(domain(f, &[two]).serving(f.peer, 5353)))
        .out(ask(f, f.peer), AllowFlow)
        .back(answer(f, f.peer)),
        table(
            f.named("service flows: the service goes, datagrams are an address' again"),
            world(&[f.peer]),
        )
        .out(ask(f, f.peer), AllowPolicy)
        .then("it is gone", becomes(domain(f, &[])))
        .from_pod(udp(40000, 53).between(f.pod, f.service), AllowPolicy)
        .then("it comes back", becomes(domain(f, &[two])))
        .out(ask(f, two), AllowPolicy),
        table(
            f.named("service flows: a service that comes late takes what nobody answers"),
            World::open(),
        )
        .from_pod(udp(40000, 53).between(f.pod, f.service), AllowPolicy)
        .then("it comes", becomes(domain(f, &[f.peer])))
        .out(ask(f, f.peer), AllowPolicy),
        table(
            f.named("service flows: a service that comes late leaves what is answered"),
            World::open(),
        )
        .from_pod(udp(40000, 53).between(f.pod, f.service), AllowPolicy)
        .to_pod(udp(53, 40000).between(f.service, f.pod), AllowFlow)
        .then("it comes", becomes(domain(f, &[f.peer])))
        .from_pod(udp(40000, 53).between(f.pod, f.service), AllowFlow),
        table(f.named("service flows: both views live and end together"), world(&[f.peer]))
            .out(ask(f, f.peer), AllowPolicy)
            .then("59 s pass", |lab| lab.age_flows(59))
            .back(answer(f, f.peer))
            .then("100 s pass", |lab| lab.age_flows(100))
            .then("another endpoint", move |lab| lab.serve(1, &domain(f, &[two])))
            .out(ask(f, f.peer), AllowFlow)
            .then("200 s pass", |lab| lab.age_flows(200))
            .out(ask(f, two), AllowPolicy),
        table(f.named("service flows: only the endpoint speaks for a long time"), world(&[f.peer]))
            .out(ask(f, f.peer), AllowPolicy)
            .back(answer(f, f.peer))
            .then("120 s pass", |lab| lab.age_flows(120))
            .back(answer(f, f.peer))
            .then("120 s pass", |lab| lab.age_flows(120))
            .back(answer(f, f.peer))
            .then("another endpoint", move |lab| lab.serve(1, &domain(f, &[two])))
            .out(ask(f, f.peer), AllowFlow),
        table(f.named("service flows: SCTP moves on like datagrams"), {
            World::open().service(Service::new(f.service, 3868, SCTP, &[(f.peer, 3868)]))
        })
        .from_pod_as(
            sctp(40000, 3868).crc().between(f.pod, f.service),
            AllowPolicy,
            sctp(40000, 3868).crc().between(f.pod, f.peer),
        )
        .then("it is gone", becomes(Service::new(f.service, 3868, SCTP, &[(two, 3869)])))
        .from_pod_as(
            sctp(40000, 3868).crc().between(f.pod, f.service),
            AllowPolicy,
            sctp(40000, 3869).crc().between(f.pod, two),
        ),
    ]
}

/// The source port and destination of what left.
fn left(f: Family, packet: &[u8]) -> (u16, u16, Vec<u8>) {
    let (l4, destination) = if f.icmp == ICMP { (34, 30..34) } else { (54, 38..54) };
    let port = |at: usize| u16::from_be_bytes([packet[at], packet[at + 1]]);
    (port(l4), port(l4 + 2), packet[destination].to_vec())
}

fn clashes(f: Family) -> Vec<Table> {
    let two = if f.icmp == ICMP { "10.96.0.11" } else { "fd00:10:96::b" };
    let world = || {
        World::open().service(domain(f, &[f.peer])).service(Service::new(
            two,
            53,
            UDP,
            &[(f.peer, 5353)],
        ))
    };
    let direct = || udp(40000, 5353).between(f.pod, f.peer);
    vec![
        table(f.named("clash: one socket, two services, one endpoint"), world())
            .out(ask(f, f.peer), AllowPolicy)
            .then("the second leaves from another port", move |lab| {
                let frame = udp(40000, 53).between(f.pod, two).frame();
                let first = lab.send(Egress, &frame, 0);
                assert_eq!((first.action, first.reason()), (NEXT, Some(AllowPolicy)), "{first:?}");
                let (port, to, _) = left(f, &first.packet);
                assert!(port >= 32768 && port != 40000 && to == 5353, "{port} {to}");
                assert_eq!(first.packet, udp(port, 5353).between(f.pod, f.peer).frame());
                let again = lab.send(Egress, &frame, 0);
                assert_eq!((again.reason(), &again.packet), (Some(AllowFlow), &first.packet));
                // each answer comes from the service that was asked, to the port that asked
                let back = lab.send(Ingress, &udp(5353, port).between(f.peer, f.pod).frame(), 9);
                assert_eq!(back.packet, udp(53, 40000).between(two, f.pod).frame());
            })
            .back(answer(f, f.peer)),
        table(f.named("clash: a flow of the pod's own to the endpoint, then the service"), world())
            .from_pod(direct(), AllowPolicy)
            .then("the service's leaves from another port", move |lab| {
                let met = lab.send(Egress, &ask(f, f.peer).0.frame(), 0);
                let (port, _, _) = left(f, &met.packet);
                assert_ne!(port, 40000);
                let back = lab.send(Ingress, &udp(5353, port).between(f.peer, f.pod).frame(), 9);
                assert_eq!(back.packet, answer(f, f.peer).1.frame());
            })
            .to_pod(udp(5353, 40000).between(f.peer, f.pod), AllowFlow)
            .from_pod(direct(), AllowFlow),
        table(f.named("clash: the service, then a flow of the pod's own to the endpoint"), world())
            .out(ask(f, f.peer), AllowPolicy)
            .from_pod(direct(), DenyPortTaken)
            .out(ask(f, f.peer), AllowFlow)
            .back(answer(f, f.peer))
            .then("185 s pass", |lab| lab.age_flows(185))
            .from_pod(direct(), AllowPolicy)
            .to_pod(udp(5353, 40000).between(f.peer, f.pod), AllowFlow),
        table(
            f.named("clash: a connection of the pod's own after the service's has ended"),
            World::open().service(web(f, &[f.peer])),
        )
        .connects(f, f.peer)
        .from_pod(tcp(40000, 8080).syn().between(f.pod, f.peer), DenyPortTaken)
        .out(to(f, f.peer, Transport::rst), AllowFlow)
        .from_pod(tcp(40000, 8080).ack().between(f.pod, f.peer), DenyPortTaken)
        .from_pod(tcp(40000, 8080).syn().between(f.pod, f.peer), AllowPolicy)
        .to_pod(tcp(8080, 40000).syn_ack().between(f.peer, f.pod), AllowFlow)
        .then("the service's leaves from another port", move |lab| {
            let syn = tcp(40000, 80).syn().between(f.pod, f.service).frame();
            let met = lab.send(Egress, &syn, 0);
            let (port, _, _) = left(f, &met.packet);
            assert!(met.reason() == Some(AllowPolicy) && port != 40000, "{met:?}");
        }),
        table(f.named("clash: another endpoint before another port"), {
            World::open().service(many(f, 20))
        })
        .from_pod(tcp(40000, 8080).syn().between(f.pod, f.peer), AllowPolicy)
        .then("a hundred connections from that port", move |lab| {
            let syn = tcp(40000, 80).syn().between(f.pod, f.service).frame();
            for _ in 0..100 {
                let met = lab.send(Egress, &syn, 0);
                let (port, _, to) = left(f, &met.packet);
                let peer = to == left(f, &tcp(1, 1).between(f.pod, f.peer).frame()).2;
                assert!(port == 40000 && !peer, "{met:?}");
                let rst = tcp(40000, 80).rst().between(f.pod, f.service).frame();
                assert_eq!(lab.send(Egress, &rst, 0).reason(), Some(AllowFlow));
            }
        }),
        table(f.named("clash: what the pod may not reach is no clash"), {
            World::isolated().service(domain(f, &[f.peer]))
        })
        .from_pod(ask(f, f.peer).0, DenyPolicy)
        .from_pod(direct(), DenyPolicy),
    ]
}

fn affinity(f: Family) -> Vec<Table> {
    let sticky = move |count| many(f, count).affinity(100);
    let choice = move |lab: &Lab, port| {
        let met = lab.send(Egress, &tcp(port, 80).syn().between(f.pod, f.service).frame(), 0);
        assert_eq!(met.reason(), Some(AllowPolicy), "{met:?}");
        left(f, &met.packet).2
    };
    let age = |lab: &Lab, seconds: u32| {
        let map = lab.map("affinity");
        use libbpf_rs::{MapCore as _, MapFlags};
        for key in map.keys().collect::<Vec<_>>() {
            let mut value = map.lookup(&key, MapFlags::ANY).unwrap().unwrap();
            let seen = u32::from_ne_bytes(value[20..24].try_into().unwrap());
            value[20..24].copy_from_slice(&(seen - seconds).to_ne_bytes());
            map.update(&key, &value, MapFlags::ANY).unwrap();
        }
    };
    let world = || World::open().service(sticky(99));
    vec![
        table(f.named("affinity: a client keeps its endpoint"), world()).then(
            "50 flows",
            move |lab| {
                let first = choice(lab, 1000);
                for port in 1001..1050 {
                    assert_eq!(choice(lab, port), first, "port {port}");
                    age(lab, 90); // each new flow begins the time anew
                }
            },
        ),
        table(f.named("affinity: it ends with its time"), world()).then(
            "flows far apart",
            move |lab| {
                let choices: std::collections::BTreeSet<_> = (1000..1020)
                    .map(|port| {
                        let choice = choice(lab, port);
                        age(lab, 103);
                        choice
                    })
                    .collect();
                assert!(choices.len() > 5, "{choices:?}");
            },
        ),
        table(f.named("affinity: an endpoint that drains, or goes, is not kept"), world()).then(
            "its endpoint drains",
            move |lab| {
                let first = choice(lab, 1000);
                let mut service = sticky(99);
                let octets = |ip: std::net::IpAddr| match ip {
                    std::net::IpAddr::V4(ip) => ip.octets().to_vec(),
                    std::net::IpAddr::V6(ip) => ip.octets().to_vec(),
                };
                let at = service.ready.iter().position(|b| octets(b.address) == first).unwrap();
                let drained = service.ready.swap_remove(at);
                service.serving.push(drained);
                lab.serve(1, &service);
                let second = choice(lab, 1001);
                assert_ne!(second, first);
                assert_eq!(choice(lab, 1002), second);
            },
        ),
        table(f.named("affinity: none, and flows spread"), World::open().service(many(f, 99)))
            .then("flows", move |lab| {
                let choices: std::collections::BTreeSet<_> =
                    (1000..1050).map(|port| choice(lab, port)).collect();
                assert!(choices.len() > 20, "{}", choices.len());
            }),
    ]
}

fn policies(f: Family) -> Vec<Table> {
    let world =
        || World::isolated().allow(Egress, ANY, Ports::One(TCP, 8080)).service(web(f, &[f.peer]));
    vec![
        table(f.named("service flows: cut when policy changes, both ways"), world())
            .connects(f, f.peer)
            .change(|lab| lab.withdraw(Egress, ANY, Ports::One(TCP, 8080)))
            .from_pod(to(f, f.peer, Transport::ack).0, DenyPolicy)
            .to_pod(from(f, f.peer, Transport::ack).0, DenyPolicy)
            .change(|lab| lab.allow(Egress, ANY, Ports::One(TCP, 8080)))
            .out(to(f, f.peer, Transport::ack), AllowFlow)
            .back(from(f, f.peer, Transport::ack)),
        table(
            f.named("service flows: cut by the endpoint's first packet after the change"),
            world(),
        )
        .connects(f, f.peer)
        .change(|lab| lab.withdraw(Egress, ANY, Ports::One(TCP, 8080)))
        .to_pod(from(f, f.peer, Transport::ack).0, DenyPolicy)
        .from_pod(to(f, f.peer, Transport::ack).0, DenyPolicy),
        table(f.named("service flows: go on when policy comes that allows them"), {
            World::open().service(web(f, &[f.peer]))
        })
        .connects(f, f.peer)
        .change(|lab| lab.replace(&World::isolated().allow(Egress, ANY, Ports::One(TCP, 8080))))
        .out(to(f, f.peer, Transport::ack), AllowFlow)
        .back(from(f, f.peer, Transport::ack)),
        table(
            f.named("service flows: of an earlier pod with the same interface and address"),
            world(),
        )
        .connects(f, f.peer)
        .then("another pod", move |lab| {
            lab.succeed(&World::open());
        })
        .out(to(f, f.peer, Transport::syn), AllowPolicy)
        .back(from(f, f.peer, Transport::syn_ack))
        .then("its views", |lab| assert_eq!(lab.flows().len(), 2)),
    ]
}

fn modes(f: Family) -> Vec<Table> {
    let world = || World::isolated().service(web(f, &[f.peer]));
    let mut tables: Vec<Table> = [Mode::Audit, Mode::Off]
        .into_iter()
        .map(|mode| {
            let title = format!("service flows: translated where denials pass ({})", mode.name());
            let step = |table: Table, direction, (sent, left): (Ip, Ip)| match direction {
                Egress => table.from_pod_as(sent, AllowAudit, left),
                Ingress => table.to_pod_as(sent, AllowAudit, left),
            };
            let table = table(f.named(&title), world()).then("mode", move |lab| lab.set_mode(mode));
            let table = step(table, Egress, to(f, f.peer, Transport::syn));
            let table = step(table, Ingress, from(f, f.peer, Transport::syn_ack));
            step(table, Egress, to(f, f.peer, Transport::ack))
                .then("enforced", |lab| lab.set_mode(Mode::Enforce))
                .from_pod(to(f, f.peer, Transport::ack).0, DenyPolicy)
                .to_pod(from(f, f.peer, Transport::ack).0, DenyPolicy)
        })
        .collect();
    let startup = |startup| World::unprogrammed(startup).service(web(f, &[f.peer]));
    tables.push(
        table(
            f.named("service flows: nothing before the first policy (hold)"),
            startup(Startup::Hold),
        )
        .from_pod(to(f, f.peer, Transport::syn).0, DenyStartup)
        .then("no flow", |lab| assert_eq!(lab.flows(), [])),
    );
    tables.push(
        table(
            f.named("service flows: everything before the first policy (open)"),
            startup(Startup::Open),
        )
        .out(to(f, f.peer, Transport::syn), AllowStartup)
        .back(from(f, f.peer, Transport::syn_ack)),
    );
    tables.push(
        table(f.named("service flows: an interface that nobody registered"), {
            World::unregistered().service(web(f, &[f.peer]))
        })
        .from_pod(to(f, f.peer, Transport::syn).0, DenyNoEndpoint),
    );
    tables
}

/// A flow to the service that somebody else translates to the peer, as user space seeds it.
fn seed(f: Family, lab: &Lab) {
    let address = |text: &str| text.parse::<std::net::IpAddr>().unwrap();
    let (pod_port, peer_port) = (40000_u16.to_be_bytes(), 80_u16.to_be_bytes());
    let flow = Flow {
        epoch: lab.gate().maps.control().epoch().wrapping_sub(1),
        expires: coarse_now() + 1000,
        owner: 0x5eed,
        rule: 0,
        direction: Egress as u8,
        state: FlowState::Established as u8,
        flags: FLOW_FOREIGN,
        pad: 0,
        other: Addr::from(address(f.peer)),
        other_port: 8080_u16.to_be_bytes(),
        own_port: pod_port,
    };
    let ifindex = lab.ifindex;
    let seeded = match (address(f.pod), address(f.service)) {
        (std::net::IpAddr::V4(pod), std::net::IpAddr::V4(peer)) => {
            let (pod, peer) = (pod.octets(), peer.octets());
            let (protocol, kind, pad) = (TCP, 0, [0; 2]);
            let key = Flow4Key { ifindex, pod, peer, pod_port, peer_port, protocol, kind, pad };
            lab.gate().maps.seed_flow4(&key, &flow)
        }
        (pod, peer) => {
            let (pod, peer) = (pod.into(), peer.into());
            let (protocol, kind, pad) = (TCP, 0, [0; 2]);
            let key = Flow6Key { ifindex, pod, peer, pod_port, peer_port, protocol, kind, pad };
            lab.gate().maps.seed_flow6(&key, &flow)
        }
    };
    assert!(seeded.unwrap());
}

fn foreign(f: Family) -> Vec<Table> {
    let world =
        || World::isolated().allow(Egress, ANY, Ports::One(TCP, 8080)).service(web(f, &[f.peer]));
    let sent = || tcp(40000, 80).ack().between(f.pod, f.service);
    let came = || tcp(80, 40000).ack().between(f.service, f.pod);
    vec![
        table(f.named("foreign: judged by the endpoint, touched by nobody"), world())
            .then("seeded", move |lab| seed(f, lab))
            .from_pod(sent(), AllowFlow)
            .to_pod(came(), AllowFlow)
            .then("another change", |lab| lab.bump())
            .to_pod(came(), AllowFlow)
            .from_pod(sent(), AllowFlow),
        table(f.named("foreign: cut when the endpoint is no longer allowed"), world())
            .then("seeded", move |lab| seed(f, lab))
            .to_pod(came(), AllowFlow)
            .change(move |lab| {
                lab.withdraw(Egress, ANY, Ports::One(TCP, 8080));
                lab.allow(Egress, ANY, Ports::One(TCP, 80));
            })
            .to_pod(came(), DenyPolicy)
            .from_pod(sent(), DenyPolicy),
        table(f.named("foreign: a new connection from the same port is ours"), world())
            .then("seeded", move |lab| seed(f, lab))
            .from_pod(sent(), AllowFlow)
            .out(to(f, f.peer, Transport::syn), AllowPolicy)
            .back(from(f, f.peer, Transport::syn_ack)),
    ]
}

/// Views that the full map forgets, one without the other.
fn forgotten(f: Family) -> Vec<Table> {
    let two = if f.icmp == ICMP { "10.0.0.77" } else { "fd00::77" };
    let world = || World::open().service(web(f, &[f.peer]));
    let forget = |lab: &Lab, flag: u8| {
        use libbpf_rs::MapCore as _;
        let maps = &lab.gate().maps;
        let gone: Vec<(&str, Vec<u8>)> =
            maps.flows4()
                .unwrap()
                .into_iter()
                .map(|(key, flow)| ("flows4", zerocopy::IntoBytes::as_bytes(&key).to_vec(), flow))
                .chain(maps.flows6().unwrap().into_iter().map(|(key, flow)| {
                    ("flows6", zerocopy::IntoBytes::as_bytes(&key).to_vec(), flow)
                }))
                .filter(|(_, _, flow)| flow.flags & flag != 0)
                .map(|(map, key, _)| (map, key))
                .collect();
        assert_eq!(gone.len(), 1);
        for (map, key) in gone {
            lab.map(map).delete(&key).unwrap();
        }
    };
    vec![
        table(f.named("service flows: the endpoint view is forgotten, the choice is not"), world())
            .connects(f, f.peer)
            .then("forgotten", move |lab| {
                forget(lab, FLOW_ENDPOINT);
                lab.serve(1, &web(f, &[two]).serving(f.peer, 8080));
            })
            .out(to(f, f.peer, Transport::ack), AllowFlow)
            .back(from(f, f.peer, Transport::ack)),
        table(
            f.named("service flows: the service view is forgotten, answers still come back"),
            world(),
        )
        .connects(f, f.peer)
        .then("forgotten", move |lab| forget(lab, FLOW_SERVICE))
        .back(from(f, f.peer, Transport::ack))
        .out(to(f, f.peer, Transport::ack), AllowPolicy)
        .back(from(f, f.peer, Transport::ack)),
        table(f.named("service flows: a slot that is missing drops nothing twice"), world()).then(
            "the slot is not there",
            move |lab| {
                lab.gate().maps.services().remove_slot(1, 0).unwrap();
                let met = lab.send(Egress, &to(f, f.peer, Transport::syn).0.frame(), 0);
                assert_ne!(met.action, DROP);
                assert_eq!(met.packet, to(f, f.peer, Transport::syn).0.frame());
            },
        ),
    ]
}
