//! The life of a flow through a service: which endpoint it has, how long, and what it must not be taken for.

use podgate_bpf::abi::{FLOW_DNAT, FLOW_REVNAT, Mode};
use podgate_tests::kernel::{DROP, Lab};

use crate::prelude::*;
use crate::service_steps::*;

pub(crate) fn tables() -> Vec<Table> {
    let mut tables = both(s10_13_connections_keep_their_endpoint);
    tables.extend(both(s10_13_datagrams_move_on));
    tables.extend(both(forgotten));
    tables
}

fn s10_13_connections_keep_their_endpoint(f: Family) -> Vec<Table> {
    let two = "10.0.0.77";
    let two = if f.icmp == ICMP { two } else { "fd00::77" };
    let world = |endpoints: &[&str]| World::open().service(web_service(f, endpoints));
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
            .then("it is gone", becomes(web_service(f, &[two])))
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
        .then("it is gone", becomes(web_service(f, &[])))
        .out(to(f, f.peer, Transport::ack), AllowFlow)
        .back(from(f, f.peer, Transport::ack))
        .out(to(f, f.peer, Transport::rst), AllowFlow)
        .from_pod(tcp(40000, 80).syn().between(f.pod, f.service), AllowPolicy),
        table(
            f.named("service flows: an endpoint that ends keeps its connections"),
            world(&[f.peer]),
        )
        .connects(f, f.peer)
        .then("it drains", becomes(web_service(f, &[two]).serving(f.peer, 8080)))
        .out(to(f, f.peer, Transport::ack), AllowFlow)
        .back(from(f, f.peer, Transport::ack))
        .out(to(f, two, Transport::syn), AllowPolicy),
        table(
            f.named("service flows: a SYN unanswered, and its endpoint drains"),
            world(&[f.peer]),
        )
        .out(to(f, f.peer, Transport::syn), AllowPolicy)
        .then("it drains", becomes(web_service(f, &[two]).serving(f.peer, 8080)))
        .out(to(f, two, Transport::syn), AllowPolicy)
        .back(from(f, two, Transport::syn_ack)),
        table(f.named("service flows: a SYN unanswered, and its endpoint goes"), world(&[f.peer]))
            .out(to(f, f.peer, Transport::syn), AllowPolicy)
            .then("it is gone", becomes(web_service(f, &[two])))
            .out(to(f, two, Transport::syn), AllowPolicy),
        table(f.named("service flows: a SYN after the end chooses anew"), world(&[f.peer]))
            .connects(f, f.peer)
            .out(to(f, f.peer, Transport::rst), AllowFlow)
            .then("another", move |lab| lab.serve(1, &web_service(f, &[two])))
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
        {
            let (sent, left) = to(f, f.peer, Transport::syn);
            table(
                f.named("service flows: a SYN sent again stays where denials pass"),
                World::isolated().service(web_service(f, &[f.peer])),
            )
            .then("audit", |lab| lab.set_mode(Mode::Audit))
            .from_pod_as(sent.clone(), AllowAudit, left.clone())
            .then("another beside it", move |lab| lab.serve(1, &many(f, 50)))
            .from_pod_as(sent, AllowAudit, left)
            .then("enforced", |lab| lab.set_mode(Mode::Enforce))
        },
        table(
            f.named("service flows: a service that comes late takes a SYN sent again"),
            World::open(),
        )
        .from_pod(tcp(40000, 80).syn().between(f.pod, f.service), AllowPolicy)
        .then("it comes", becomes(web_service(f, &[f.peer])))
        .out(to(f, f.peer, Transport::syn), AllowPolicy),
        table(
            f.named("service flows: a service that comes late leaves a connection alone"),
            World::open(),
        )
        .from_pod(tcp(40000, 80).syn().between(f.pod, f.service), AllowPolicy)
        .to_pod(tcp(80, 40000).syn_ack().between(f.service, f.pod), AllowFlow)
        .then("it comes", becomes(web_service(f, &[f.peer])))
        .from_pod(tcp(40000, 80).ack().between(f.pod, f.service), AllowFlow)
        .to_pod(tcp(80, 40000).ack().between(f.service, f.pod), AllowFlow),
        table(f.named("service flows: an answer is no connection of the endpoint's own"), {
            World::isolated().not_isolated(Egress).service(web_service(f, &[f.peer]))
        })
        .out(to(f, f.peer, Transport::syn), AllowPolicy)
        .to_pod(tcp(8080, 40000).syn().between(f.peer, f.pod), DenyPolicy)
        .back(from(f, f.peer, Transport::syn_ack))
        .to_pod(tcp(8080, 40001).syn_ack().between(f.peer, f.pod), DenyPolicy)
        .to_pod(tcp(8081, 40000).syn_ack().between(f.peer, f.pod), DenyPolicy),
    ]
}

fn s10_13_datagrams_move_on(f: Family) -> Vec<Table> {
    let two = if f.icmp == ICMP { "10.0.0.77" } else { "fd00::77" };
    let world = |endpoints: &[&str]| World::open().service(domain_service(f, endpoints));
    vec![
        table(f.named("service flows: its endpoint goes, datagrams move on"), world(&[f.peer]))
            .out(ask(f, f.peer), AllowPolicy)
            .back(answer(f, f.peer))
            .then("it is gone", becomes(domain_service(f, &[two])))
            .out(ask(f, two), AllowPolicy)
            .back(answer(f, two))
            .back(answer(f, f.peer)),
        table(f.named("service flows: a change elsewhere moves no datagrams"), world(&[f.peer]))
            .out(ask(f, f.peer), AllowPolicy)
            .back(answer(f, f.peer))
            .then("more endpoints", move |lab| {
                let mut service = domain_service(f, &[two]);
                service.ready.insert(0, domain_service(f, &[f.peer]).ready[0]);
                becomes(service)(lab);
            })
            .out(ask(f, f.peer), AllowFlow)
            .out(ask(f, f.peer), AllowFlow),
        table(
            f.named("service flows: an endpoint that drains keeps its datagrams"),
            world(&[f.peer]),
        )
        .out(ask(f, f.peer), AllowPolicy)
        .then("it drains", becomes(domain_service(f, &[two]).serving(f.peer, 5353)))
        .out(ask(f, f.peer), AllowFlow)
        .back(answer(f, f.peer)),
        table(
            f.named("service flows: the service goes, datagrams are an address' again"),
            world(&[f.peer]),
        )
        .out(ask(f, f.peer), AllowPolicy)
        .then("it is gone", becomes(domain_service(f, &[])))
        .from_pod(udp(40000, 53).between(f.pod, f.service), AllowPolicy)
        .then("it comes back", becomes(domain_service(f, &[two])))
        .out(ask(f, two), AllowPolicy),
        table(
            f.named("service flows: a service that comes late takes what nobody answers"),
            World::open(),
        )
        .from_pod(udp(40000, 53).between(f.pod, f.service), AllowPolicy)
        .then("it comes", becomes(domain_service(f, &[f.peer])))
        .out(ask(f, f.peer), AllowPolicy),
        table(
            f.named("service flows: a service that comes late takes answered datagrams too"),
            World::open(),
        )
        .from_pod(udp(40000, 53).between(f.pod, f.service), AllowPolicy)
        .to_pod(udp(53, 40000).between(f.service, f.pod), AllowFlow)
        .then("it comes", becomes(domain_service(f, &[f.peer])))
        .out(ask(f, f.peer), AllowPolicy)
        .back(answer(f, f.peer)),
        table(f.named("service flows: both views live and end together"), world(&[f.peer]))
            .out(ask(f, f.peer), AllowPolicy)
            .then("59 s pass", |lab| lab.age_flows(59))
            .back(answer(f, f.peer))
            .then("100 s pass", |lab| lab.age_flows(100))
            .then("another endpoint", move |lab| lab.serve(1, &domain_service(f, &[two])))
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
            .then("another endpoint", move |lab| lab.serve(1, &domain_service(f, &[two])))
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

/// Views that the full map forgets, one without the other.
fn forgotten(f: Family) -> Vec<Table> {
    let two = if f.icmp == ICMP { "10.0.0.77" } else { "fd00::77" };
    let world = || World::open().service(web_service(f, &[f.peer]));
    let forget = |lab: &Lab, flag: u8| {
        use libbpf_rs::MapCore as _;
        let maps = &lab.datapath().maps;
        let gone: Vec<(&str, Vec<u8>)> =
            maps.flow_table()
                .flows4()
                .unwrap()
                .into_iter()
                .map(|(key, flow)| ("flows4", zerocopy::IntoBytes::as_bytes(&key).to_vec(), flow))
                .chain(maps.flow_table().flows6().unwrap().into_iter().map(|(key, flow)| {
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
                forget(lab, FLOW_REVNAT);
                lab.serve(1, &web_service(f, &[two]).serving(f.peer, 8080));
            })
            .out(to(f, f.peer, Transport::ack), AllowFlow)
            .back(from(f, f.peer, Transport::ack)),
        table(
            f.named("service flows: the service view is forgotten, answers still come back"),
            world(),
        )
        .connects(f, f.peer)
        .then("forgotten", move |lab| forget(lab, FLOW_DNAT))
        .back(from(f, f.peer, Transport::ack))
        .out(to(f, f.peer, Transport::ack), AllowPolicy)
        .back(from(f, f.peer, Transport::ack)),
        table(f.named("service flows: a slot that is missing drops nothing twice"), world()).then(
            "the slot is not there",
            move |lab| {
                lab.datapath().maps.services().remove_slot(1, 0).unwrap();
                let met = lab.send(Egress, &to(f, f.peer, Transport::syn).0.frame(), Via::Nothing);
                assert_ne!(met.action, DROP);
                assert_eq!(met.packet, to(f, f.peer, Transport::syn).0.frame());
            },
        ),
    ]
}
