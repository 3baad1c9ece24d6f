//! Limits of connections: how many a pod may have open, how many it may open, what counts as one, and what is never refused.

use std::time::Duration;

use podgate_bpf::abi::{
    Direction, Limit, LimitsFlag, LimitsRecord, Mode, RATE_SHIFT, Rate, Verdict,
};
use podgate_bpf::open_count::Recount;
use podgate_tests::kernel::{Lab, NEXT, REDIRECT};

use crate::events::told;
use crate::prelude::*;
use crate::service_steps::*;

pub(crate) fn tables() -> Vec<Table> {
    let mut tables = both(open);
    tables.extend(both(ended));
    tables.extend(both(never_refused));
    tables.extend(both(what_counts));
    tables.extend(both(told_and_answered));
    tables.extend(both(rates));
    tables.extend(both(by_rule));
    tables
}

/// So many connections at a time that begin in this direction.
pub(crate) fn at_most(direction: Direction, most: u32) -> LimitsRecord {
    let mut limits = LimitsRecord::default();
    limits.open_most[direction as usize] = most;
    limits.origins[direction as usize] = [11, 12, 13, 14];
    limits
}

/// One connection in so much time, and `at_once` after a pause.
fn one_in(direction: Direction, time: Duration, at_once: u64) -> LimitsRecord {
    let mut limits = LimitsRecord::default();
    let time = time.as_nanos() as u64;
    limits.rates[direction as usize][Limit::NewConnections as usize] =
        Rate { cost: time << RATE_SHIFT, burst: time * (at_once - 1) };
    limits.origins[direction as usize] = [11, 12, 13, 14];
    limits
}

/// That many are open, by the pod and to it.
fn are_open(by_pod: u32, to_pod: u32) -> impl FnOnce(&mut Lab) + Send {
    move |lab| {
        assert_eq!(lab.meter(0).open, [by_pod, to_pod]);
        let counted = lab.flows().iter().filter(|flow| flow.counted != 0).count();
        assert_eq!(counted as u32, by_pod + to_pod, "as the flows say");
    }
}

fn limited(name: String, world: World, limits: LimitsRecord) -> Table {
    table(name, world).then("its limits", move |lab| lab.limit(0, &limits))
}

fn open(f: Family) -> Vec<Table> {
    let named = |name| f.named(name);
    vec![
        limited(named("connections: as many as it may have"), World::open(), at_most(Egress, 2))
            .from_pod(f.out(tcp(40001, 80).syn()), AllowPolicy)
            .from_pod(f.out(tcp(40002, 80).syn()), AllowPolicy)
            .then("two", are_open(2, 0))
            .from_pod(f.out(tcp(40003, 80).syn()), DenyConnectionLimit)
            .to_pod(f.back(tcp(80, 40001).syn_ack()), AllowFlow)
            .from_pod(f.out(tcp(40001, 80).ack()), AllowFlow)
            .from_pod(f.out(tcp(40002, 80).syn()), AllowFlow)
            .from_pod(f.out(tcp(40003, 80).syn()), DenyConnectionLimit)
            .then("the refused one left nothing", |lab| {
                assert_eq!(lab.flows().len(), 2);
                assert_eq!(lab.meter(0).refused[Egress as usize], [0, 0, 0, 2]);
            }),
        limited(named("connections: each direction by itself"), World::open(), at_most(Ingress, 1))
            .to_pod(f.back(tcp(40001, 80).syn()), AllowPolicy)
            .from_pod(f.out(tcp(80, 40001).syn_ack()), AllowFlow)
            .to_pod(f.back(tcp(40002, 80).syn()), DenyConnectionLimit)
            .from_pod(f.out(tcp(40003, 80).syn()), AllowPolicy)
            .from_pod(f.out(tcp(40004, 80).syn()), AllowPolicy)
            .then("two and one", are_open(2, 1)),
        limited(named("connections: none at all"), World::open(), at_most(Egress, 0))
            .from_pod(f.out(udp(40001, 53)), DenyConnectionLimit)
            .to_pod(f.back(udp(53, 40001)), AllowPolicy),
        limited(named("connections: whatever the mode"), World::open(), at_most(Egress, 0))
            .then("audit", |lab| lab.set_mode(Mode::Audit))
            .from_pod(f.out(tcp(40001, 80).syn()), DenyConnectionLimit)
            .then("off", |lab| lab.set_mode(Mode::Off))
            .from_pod(f.out(tcp(40001, 80).syn()), DenyConnectionLimit),
        limited(named("connections: what policy denies counts not"), client(), at_most(Egress, 1))
            .from_pod(f.out(tcp(40001, 81).syn()), DenyPolicy)
            .then("audit", |lab| lab.set_mode(Mode::Audit))
            .from_pod(f.out(tcp(40001, 81).syn()), AllowAudit)
            .then("none", are_open(0, 0)),
    ]
}

fn ended(f: Family) -> Vec<Table> {
    let one = |name: &str| {
        limited(f.named(name), World::open(), at_most(Egress, 1))
            .from_pod(f.out(tcp(40001, 80).syn()), AllowPolicy)
            .to_pod(f.back(tcp(80, 40001).syn_ack()), AllowFlow)
            .from_pod(f.out(tcp(40001, 80).ack()), AllowFlow)
            .from_pod(f.out(tcp(40002, 80).syn()), DenyConnectionLimit)
    };
    let another = |table: Table| {
        table.from_pod(f.out(tcp(40002, 80).syn()), AllowPolicy).then("one", are_open(1, 0))
    };
    let close = |table: Table| {
        table
            .from_pod(f.out(tcp(40001, 80).fin()), AllowFlow)
            .then("half open", are_open(1, 0))
            .to_pod(f.back(tcp(80, 40001).fin()), AllowFlow)
            .from_pod(f.out(tcp(40001, 80).ack()), AllowFlow)
    };
    vec![
        another(close(one("connections: a closed one makes room"))),
        another(
            one("connections: a reset one makes room")
                .to_pod(f.back(tcp(80, 40001).rst()), AllowFlow),
        ),
        another(
            one("connections: an expired one makes room")
                .then("five days pass", |lab| lab.age_flows(432_100)),
        ),
        close(one("connections: the same ports again are a new one"))
            .then("none", are_open(0, 0))
            .from_pod(f.out(tcp(40002, 80).syn()), AllowPolicy)
            .from_pod(f.out(tcp(40001, 80).syn()), DenyConnectionLimit)
            .to_pod(f.back(tcp(80, 40002).rst()), AllowFlow)
            .from_pod(f.out(tcp(40001, 80).syn()), AllowFlow)
            .then("one", are_open(1, 0))
            .from_pod(f.out(tcp(40001, 80).syn()), AllowFlow)
            .then("one", are_open(1, 0)),
        one("connections: its own expired flow is no obstacle")
            .then("five days pass", |lab| lab.age_flows(432_100))
            .from_pod(f.out(tcp(40001, 80).syn()), AllowPolicy)
            .then("one", are_open(1, 0)),
        limited(f.named("connections: revoked, none"), client(), at_most(Egress, 1))
            .from_pod(f.out(tcp(40001, 80).syn()), AllowPolicy)
            .change(|lab| lab.withdraw(Egress, ANY, Ports::One(TCP, 80)))
            .from_pod(f.out(tcp(40001, 80).ack()), DenyPolicy)
            .then("none", are_open(0, 0))
            .change(|lab| lab.allow(Egress, ANY, Ports::One(TCP, 80)))
            .from_pod(f.out(tcp(40001, 80).ack()), AllowFlow)
            .then("one", are_open(1, 0)),
        limited(
            f.named("connections: against its direction, one takes the other's place"),
            World::open(),
            at_most(Egress, 1),
        )
        .from_pod(f.out(tcp(40001, 80).syn()), AllowPolicy)
        .to_pod(f.back(tcp(80, 40001).syn()), AllowPolicy)
        .then("one", are_open(0, 1)),
        limited(f.named("connections: what is lost is found"), World::open(), at_most(Egress, 2))
            .from_pod(f.out(tcp(40001, 80).syn()), AllowPolicy)
            .from_pod(f.out(tcp(40002, 80).syn()), AllowPolicy)
            .then("two flows go, and their places do not", |lab| lab.forget_flows())
            .from_pod(f.out(tcp(40003, 80).syn()), DenyConnectionLimit)
            .then("by the second count", |lab| {
                let mut recount = Recount::default();
                assert_eq!(recount.look(&lab.datapath().maps).unwrap(), 0);
                assert_eq!(lab.meter(0).open, [2, 0]);
                assert_eq!(recount.look(&lab.datapath().maps).unwrap(), 2);
                are_open(0, 0)(lab);
            })
            .from_pod(f.out(tcp(40003, 80).syn()), AllowPolicy),
        limited(f.named("connections: evicted ones count no more"), World::open(), {
            at_most(Egress, 100_000)
        })
        .then("2,000 datagram flows, for which there is no room", move |lab| {
            for port in 10_000..12_000 {
                let met = lab.send(Egress, &f.out(udp(port, 53)).frame(), Via::Nothing);
                assert_eq!(met.action, NEXT);
            }
            let flows = lab.flows().len() as u32;
            assert!(flows < 1000);
            are_open(flows, 0)(lab);
        })
        .then("and 1,000 when they have expired", move |lab| {
            lab.age_flows(70);
            for port in 20_000..21_000 {
                lab.send(Egress, &f.out(udp(port, 53)).frame(), Via::Nothing);
            }
            let counted = lab.flows().iter().filter(|flow| flow.counted != 0).count() as u32;
            are_open(counted, 0)(lab);
        }),
    ]
}

fn never_refused(f: Family) -> Vec<Table> {
    let full = |name: &str| limited(f.named(name), World::open(), at_most(Egress, 0));
    vec![
        full("connections: one in its middle is picked up")
            .from_pod(f.out(tcp(40001, 80).ack()), AllowPolicy)
            .then("one", are_open(1, 0))
            .to_pod(f.back(tcp(80, 40001).ack()), AllowFlow),
        table(f.named("connections: older ones than the limits"), World::open())
            .from_pod(f.out(tcp(40001, 80).syn()), AllowPolicy)
            .to_pod(f.back(tcp(80, 40001).syn_ack()), AllowFlow)
            .from_pod(f.out(udp(40002, 53)), AllowPolicy)
            .then("its limits", |lab| lab.limit(0, &at_most(Egress, 1)))
            .then("none yet", are_open(0, 0))
            .from_pod(f.out(tcp(40001, 80).ack()), AllowFlow)
            .from_pod(f.out(udp(40002, 53)), AllowFlow)
            .then("both, with their next packet", are_open(2, 0))
            .from_pod(f.out(udp(40003, 53)), DenyConnectionLimit)
            .to_pod(f.back(tcp(80, 40001).rst()), AllowFlow)
            .then("one", are_open(1, 0)),
        limited(f.named("connections: limits go and come back"), World::open(), at_most(Egress, 9))
            .from_pod(f.out(tcp(40001, 80).syn()), AllowPolicy)
            .from_pod(f.out(tcp(40002, 80).syn()), AllowPolicy)
            .then("they go", |lab| lab.unlimit())
            .from_pod(f.out(tcp(40001, 80).ack()), AllowFlow)
            .from_pod(f.out(tcp(40002, 80).ack()), AllowFlow)
            .then("and come back", |lab| lab.limit(0, &at_most(Egress, 1)))
            .from_pod(f.out(tcp(40001, 80).ack()), AllowFlow)
            .then("one", are_open(1, 0))
            .from_pod(f.out(tcp(40003, 80).syn()), DenyConnectionLimit)
            .from_pod(f.out(tcp(40002, 80).rst()), AllowFlow)
            .then("one", are_open(1, 0)),
        limited(f.named("connections: a lower limit ends none"), World::open(), at_most(Egress, 2))
            .from_pod(f.out(tcp(40001, 80).syn()), AllowPolicy)
            .from_pod(f.out(tcp(40002, 80).syn()), AllowPolicy)
            .then("a lower limit", |lab| lab.limit(0, &at_most(Egress, 1)))
            .from_pod(f.out(tcp(40001, 80).syn()), AllowFlow)
            .to_pod(f.back(tcp(80, 40002).syn_ack()), AllowFlow)
            .then("two", are_open(2, 0))
            .to_pod(f.back(tcp(80, 40001).rst()), AllowFlow)
            .from_pod(f.out(tcp(40003, 80).syn()), DenyConnectionLimit),
        limited(f.named("connections: a reset that nobody believes"), World::open(), {
            at_most(Egress, 1)
        })
        .from_pod(f.out(tcp(40001, 80).syn()), AllowPolicy)
        .to_pod(f.back(tcp(80, 40001).syn_ack()), AllowFlow)
        .to_pod(f.back(tcp(80, 40001).rst()), AllowFlow)
        .from_pod(f.out(tcp(40002, 80).syn()), AllowPolicy)
        .from_pod(f.out(tcp(40001, 80).ack()), AllowFlow)
        .then("two", are_open(2, 0))
        .to_pod(f.back(tcp(80, 40001).ack()), AllowFlow),
        limited(f.named("connections: the node's own"), World::open().node(f.node), {
            at_most(Ingress, 0)
        })
        .node_to_pod(tcp(40001, 80).syn().between(f.node, f.pod), AllowOwnNode)
        .from_pod(tcp(80, 40001).syn_ack().between(f.pod, f.node), AllowFlow)
        .then("none", are_open(0, 0))
        .to_pod(f.back(tcp(40001, 80).syn()), DenyConnectionLimit),
    ]
}

fn what_counts(f: Family) -> Vec<Table> {
    let of = |name: &str, world: World| limited(f.named(name), world, at_most(Egress, 1));
    let service =
        |to: &str, port| World::open().service(Service::new(f.service, 80, TCP, &[(to, port)]));
    vec![
        of("connections: an echo is none", World::open())
            .from_pod(f.out(f.ping(1)), AllowPolicy)
            .from_pod(f.out(f.ping(2)), AllowPolicy)
            .then("none", are_open(0, 0)),
        of("connections: datagrams", World::open())
            .from_pod(f.out(udp(40001, 53)), AllowPolicy)
            .from_pod(f.out(udp(40002, 53)), DenyConnectionLimit)
            .then("its answer never came", |lab| lab.age_flows(70))
            .from_pod(f.out(udp(40002, 53)), AllowPolicy)
            .then("one", are_open(1, 0)),
        of("connections: an association", World::open())
            .from_pod(f.out(sctp(40001, 80).crc()), AllowPolicy)
            .from_pod(f.out(sctp(40002, 80).crc()), DenyConnectionLimit),
        of("connections: through a service, one", service(f.peer, 8080))
            .from_pod_as(
                tcp(40001, 80).syn().between(f.pod, f.service),
                AllowPolicy,
                f.out(tcp(40001, 8080).syn()),
            )
            .then("one", are_open(1, 0))
            .from_pod(tcp(40002, 80).syn().between(f.pod, f.service), DenyConnectionLimit)
            .to_pod_as(
                f.back(tcp(8080, 40001).rst()),
                AllowFlow,
                tcp(80, 40001).rst().between(f.service, f.pod),
            )
            .then("none", are_open(0, 0))
            .from_pod_as(
                tcp(40001, 80).syn().between(f.pod, f.service),
                AllowPolicy,
                f.out(tcp(40001, 8080).syn()),
            )
            .then("one", are_open(1, 0)),
        of("connections: half of a service's flow is forgotten", service(f.peer, 8080))
            .from_pod_as(
                tcp(40001, 80).syn().between(f.pod, f.service),
                AllowPolicy,
                f.out(tcp(40001, 8080).syn()),
            )
            .then("its tracked half goes as eviction does it", move |lab| lab.evict_counted())
            .then("none", are_open(0, 0))
            .from_pod_as(
                tcp(40001, 80).ack().between(f.pod, f.service),
                AllowFlow,
                f.out(tcp(40001, 8080).ack()),
            )
            .then("one again", are_open(1, 0)),
        of("connections: to itself, one", service(f.pod, 8080))
            .comes_back_as(
                tcp(40001, 80).syn().between(f.pod, f.service),
                AllowOwnAddress,
                tcp(40001, 8080).syn().between(f.service, f.pod),
            )
            .then("one", are_open(1, 0))
            .from_pod(tcp(40002, 80).syn().between(f.pod, f.service), DenyConnectionLimit)
            .comes_back_as(
                tcp(8080, 40001).rst().between(f.pod, f.service),
                AllowFlow,
                tcp(80, 40001).rst().between(f.service, f.pod),
            )
            .then("none", are_open(0, 0)),
        of("connections: to an endpoint beside its service, two", {
            World::open().service(Service::new(f.service, 53, UDP, &[(f.peer, 5353)]))
        })
        .from_pod_as(udp(40001, 53).between(f.pod, f.service), AllowPolicy, f.out(udp(40001, 5353)))
        .from_pod(f.out(udp(40001, 5353)), DenyConnectionLimit)
        .then("a higher limit", |lab| lab.limit(0, &at_most(Egress, 2)))
        .then("the direct one", move |lab| {
            let met = lab.send(Egress, &f.out(udp(40001, 5353)).frame(), Via::Nothing);
            assert_eq!((met.action, met.reason()), (NEXT, Some(AllowPolicy)));
        })
        .from_pod_as(udp(40001, 53).between(f.pod, f.service), AllowFlow, f.out(udp(40001, 5353)))
        .then("two", are_open(2, 0)),
        of("connections: datagrams to another endpoint keep their place", {
            World::open().service(domain_service(f, &[f.peer]))
        })
        .out(ask(f, f.peer), AllowPolicy)
        .then("its endpoint is replaced", becomes(domain_service(f, &[f.second])))
        .out(ask(f, f.second), AllowPolicy)
        .then("one", are_open(1, 0))
        .from_pod(f.out(udp(40002, 53)), DenyConnectionLimit),
        table(f.named("connections: another pod at the interface has its own"), World::open())
            .then("its limits", |lab| lab.limit(0, &at_most(Egress, 1)))
            .from_pod(f.out(udp(40001, 53)), AllowPolicy)
            .then("it comes", |lab| {
                lab.succeed(&World::open());
                lab.limit(0, &at_most(Egress, 1));
            })
            .from_pod(f.out(udp(40001, 53)), AllowPolicy)
            .from_pod(f.out(udp(40002, 53)), DenyConnectionLimit)
            .then("one", |lab| assert_eq!(lab.meter(0).open, [1, 0])),
    ]
}

fn told_and_answered(f: Family) -> Vec<Table> {
    let rejecting = |direction: Direction, flag: LimitsFlag| LimitsRecord {
        flags: flag as u8,
        ..at_most(direction, 0)
    };
    let reset = |from, to| tcp(from, to).flags(0x14).window(0).sequence(0, 1001);
    let syn = tcp(40000, 80).sequence(1000, 0).syn();
    vec![
        limited(f.named("connections: what is told of one too many"), World::open(), {
            at_most(Egress, 0)
        })
        .from_pod(f.out(tcp(40001, 80).syn()), DenyConnectionLimit)
        .then("its event", |lab| {
            let told = told(lab);
            let [event] = told.as_slice() else { panic!("one event, not {told:?}") };
            let says = (event.reason, event.verdict, event.rule);
            assert_eq!(says, (DenyConnectionLimit, Verdict::Deny, 14));
        }),
        limited(
            f.named("connections: the pod is told"),
            World::open(),
            rejecting(Egress, LimitsFlag::RejectEgress),
        )
        .refused_as(
            Egress,
            f.out(syn.clone()),
            DenyConnectionLimit,
            f.back(reset(80, 40000)).unfragmentable(),
        )
        .then("no flow", |lab| assert_eq!(lab.flows(), [])),
        limited(
            f.named("connections: the peer is told"),
            World::open(),
            rejecting(Ingress, LimitsFlag::RejectIngress),
        )
        .refused_as(
            Ingress,
            f.back(syn.clone()),
            DenyConnectionLimit,
            f.out(reset(80, 40000)).unfragmentable(),
        ),
        limited(
            f.named("connections: nobody is told who need not be"),
            World::open(),
            rejecting(Ingress, LimitsFlag::RejectEgress),
        )
        .to_pod(f.back(syn.clone()), DenyConnectionLimit),
        limited(
            f.named("connections: the pod is told of a service's"),
            World::open().service(Service::new(f.service, 80, TCP, &[(f.peer, 8080)])),
            rejecting(Egress, LimitsFlag::RejectEgress),
        )
        .then("a SYN to the service", move |lab| {
            let syn = syn.between(f.pod, f.service).frame();
            let met = lab.send(Egress, &syn, Via::Nothing);
            assert_eq!((met.action, met.reason()), (REDIRECT, Some(DenyConnectionLimit)));
        }),
    ]
}

fn rates(f: Family) -> Vec<Table> {
    const HOUR: Duration = Duration::from_secs(3600);
    vec![
        limited(f.named("connections: so many in a time"), World::open(), one_in(Egress, HOUR, 1))
            .from_pod(f.out(tcp(40001, 80).syn()), AllowPolicy)
            .from_pod(f.out(tcp(40002, 80).syn()), DenyConnectionRate)
            .from_pod(f.out(tcp(40001, 80).syn()), AllowFlow)
            .from_pod(f.out(tcp(40003, 80).ack()), AllowPolicy)
            .to_pod(f.back(tcp(40004, 80).syn()), AllowPolicy)
            .from_pod(f.out(f.ping(7)), AllowPolicy)
            .then("counted and told", |lab| {
                assert_eq!(lab.meter(0).refused[Egress as usize], [0, 0, 1, 0]);
                let told = told(lab);
                let [event] = told.as_slice() else { panic!("one event, not {told:?}") };
                assert_eq!((event.reason, event.rule), (DenyConnectionRate, 13));
            }),
        limited(f.named("connections: so many at once"), World::open(), {
            one_in(Egress, Duration::from_secs(40), 3)
        })
        .from_pod(f.out(udp(40001, 53)), AllowPolicy)
        .from_pod(f.out(udp(40002, 53)), AllowPolicy)
        .from_pod(f.out(udp(40003, 53)), AllowPolicy)
        .from_pod(f.out(udp(40004, 53)), DenyConnectionRate),
        limited(f.named("connections: the same ports again cost as much"), World::open(), {
            one_in(Egress, HOUR, 1)
        })
        .from_pod(f.out(tcp(40001, 80).syn()), AllowPolicy)
        .to_pod(f.back(tcp(80, 40001).rst()), AllowFlow)
        .from_pod(f.out(tcp(40001, 80).syn()), DenyConnectionRate),
    ]
}

fn by_rule(f: Family) -> Vec<Table> {
    // port 443 of class 17 is of rule 1, the rest of port 443 of rule 2
    let with_rules = |name: &str, pod: LimitsRecord, web: LimitsRecord| {
        let pod = LimitsRecord { flags: LimitsFlag::Rules as u8, ..pod };
        table(f.named(name), World::open().peer(f.peer, 17)).then("its limits", move |lab| {
            lab.limit(1, &web);
            lab.limit(2, &LimitsRecord::default());
            lab.limit(0, &pod);
            lab.traffic_rules(&[
                (Egress, 17, Ports::One(TCP, 443), 1),
                (Egress, ANY, Ports::One(TCP, 443), 2),
            ]);
        })
    };
    let open_of = |rule, by_pod| move |lab: &mut Lab| assert_eq!(lab.meter(rule).open, [by_pod, 0]);
    let to_stranger = |t: Transport| t.between(f.pod, f.stranger);
    vec![
        with_rules(
            "connections: of one rule",
            at_most(Egress, 100),
            LimitsRecord { origins: [[21, 22, 23, 24]; 2], ..at_most(Egress, 1) },
        )
        .from_pod(f.out(tcp(40001, 443).syn()), AllowPolicy)
        .from_pod(f.out(tcp(40002, 443).syn()), DenyConnectionLimit)
        .then("whose limit it was", |lab| assert_eq!(told(lab)[0].rule, 24))
        .from_pod(f.out(tcp(40002, 80).syn()), AllowPolicy)
        .from_pod(to_stranger(tcp(40003, 443).syn()), AllowPolicy)
        .then("three of the pod", are_open(3, 0))
        .then("one of the rule", open_of(1, 1))
        .then("one of the other rule", open_of(2, 1))
        .to_pod(f.back(tcp(443, 40001).rst()), AllowFlow)
        .then("none of the rule", open_of(1, 0))
        .then("two of the pod", are_open(2, 0)),
        with_rules("connections: the pod's limit takes back the rule's", at_most(Egress, 1), {
            at_most(Egress, 9)
        })
        .from_pod(f.out(tcp(40001, 80).syn()), AllowPolicy)
        .from_pod(f.out(tcp(40002, 443).syn()), DenyConnectionLimit)
        .then("none of the rule", open_of(1, 0)),
        with_rules("connections: one changes its rule", at_most(Egress, 9), at_most(Egress, 9))
            .from_pod(f.out(tcp(40001, 443).syn()), AllowPolicy)
            .then("its rule", open_of(1, 1))
            .change(|lab| lab.traffic_rules(&[(Egress, ANY, Ports::All(TCP), 2)]))
            .from_pod(f.out(tcp(40001, 443).ack()), AllowFlow)
            .then("not of this", open_of(1, 0))
            .then("of that", open_of(2, 1))
            .then("one of the pod", are_open(1, 0)),
    ]
}
