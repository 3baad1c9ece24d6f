//! What is told: the ring of events, its limit, and what it is silent about.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use podgate_bpf::abi::{Mode, Reason, Stat, Verdict};
use podgate_bpf::events::{Event, Events};
use podgate_bpf::testrun::Context;
use podgate_testkit::packet::ethernet;
use podgate_tests::kernel::Lab;

use crate::prelude::*;

/// Everything told so far.
pub(crate) fn told(lab: &Lab) -> Vec<Event> {
    let events = Arc::new(Mutex::new(Vec::new()));
    let sink = events.clone();
    let ring =
        Events::new(&lab.datapath().maps, move |event| sink.lock().unwrap().push(event)).unwrap();
    ring.poll(Duration::from_millis(1)).unwrap();
    drop(ring);
    std::mem::take(&mut *events.lock().unwrap())
}

/// The reasons and verdicts told so far.
fn reasons(wanted: &'static [(Reason, Verdict)]) -> impl FnOnce(&mut Lab) + Send {
    move |lab| {
        let told: Vec<_> = told(lab).iter().map(|event| (event.reason, event.verdict)).collect();
        assert_eq!(told, wanted);
    }
}

pub(crate) fn tables() -> Vec<Table> {
    let mut tables = both(contents);
    tables.extend(both(silence));
    tables.push(limit());
    tables.push(full_ring());
    tables
}

fn contents(f: Family) -> Vec<Table> {
    let address = |text: &str| -> std::net::IpAddr { text.parse().unwrap() };
    let (pod, peer) = (address(f.pod), address(f.peer));
    let family = if f.icmp == ICMP { 4 } else { 6 };
    let world = || World::isolated().peer(f.peer, 17).allow(Egress, 17, Ports::One(UDP, 53));
    let denied = f.back(tcp(40000, 80).syn());
    let length = denied.frame().len() as u32;
    vec![
        table(f.named("events: a denial"), world()).to_pod(denied, DenyPolicy).then(
            "its event",
            move |lab| {
                let told = told(lab);
                let [event] = told.as_slice() else { panic!("one event, not {told:?}") };
                assert!(event.time > 0);
                let wanted = Event {
                    time: event.time,
                    ifindex: lab.ifindex,
                    owner: 0x5eed,
                    rule: 0,
                    class: 17,
                    length,
                    direction: Ingress,
                    reason: DenyPolicy,
                    verdict: Verdict::Deny,
                    logged: false,
                    family,
                    protocol: TCP,
                    pod: (pod, 80),
                    peer: (peer, 40000),
                    service: None,
                };
                assert_eq!(*event, wanted);
            },
        ),
        table(f.named("events: an allowed flow, where somebody asks"), world())
            .then("tell", |lab| lab.datapath().maps.control().set_report_allowed(true))
            .from_pod(f.out(udp(5000, 53)), AllowPolicy)
            .to_pod(f.back(udp(53, 5000)), AllowFlow)
            .from_pod(f.out(udp(5000, 53)), AllowFlow)
            .then("its one event", move |lab| {
                let told = told(lab);
                let [event] = told.as_slice() else { panic!("one event, not {told:?}") };
                let got = (event.reason, event.verdict, event.direction, event.rule, event.class);
                assert_eq!(got, (AllowPolicy, Verdict::Allow, Egress, 1, 17));
                assert_eq!((event.pod, event.peer), ((pod, 5000), (peer, 53)));
            }),
        table(f.named("events: a denial through a service names both"), {
            world().service(Service::new(f.service, 80, TCP, &[(f.peer, 8080)]))
        })
        .from_pod(tcp(40000, 80).syn().between(f.pod, f.service), DenyPolicy)
        .then("its event", move |lab| {
            let event = told(lab).remove(0);
            assert_eq!((event.reason, event.rule, event.class), (DenyPolicy, 0, 17));
            assert_eq!((event.pod, event.peer), ((pod, 40000), (peer, 8080)));
            assert_eq!(event.service, Some((address(f.service), 80)));
        }),
        table(f.named("events: a flow through a service, and its end by policy"), {
            world().service(Service::new(f.service, 54, UDP, &[(f.peer, 53)]))
        })
        .then("tell", |lab| lab.datapath().maps.control().set_report_allowed(true))
        .from_pod_as(
            udp(5000, 54).between(f.pod, f.service),
            AllowPolicy,
            udp(5000, 53).between(f.pod, f.peer),
        )
        .change(|lab| lab.withdraw(Egress, 17, Ports::One(UDP, 53)))
        .to_pod(udp(53, 5000).between(f.peer, f.pod), DenyPolicy)
        .from_pod(udp(5000, 54).between(f.pod, f.service), DenyPolicy)
        .then("its three events", move |lab| {
            let told = told(lab);
            let both: Vec<_> = told.iter().map(|event| (event.peer, event.service)).collect();
            assert_eq!(both, [((peer, 53), Some((address(f.service), 54))); 3]);
            let verdicts: Vec<_> = told.iter().map(|event| event.verdict).collect();
            assert_eq!(verdicts, [Verdict::Allow, Verdict::Deny, Verdict::Deny]);
        }),
        table(f.named("events: an echo's identifier stands for its port"), world())
            .from_pod(f.out(f.ping(7)), DenyPolicy)
            .then("its event", move |lab| {
                let event = told(lab).remove(0);
                assert_eq!((event.protocol, event.pod), (f.icmp, (pod, 7)));
            }),
        table(f.named("events: what is no IP"), world())
            .to_pod(ethernet(0x9999, &[0; 46]), DenyNotIp)
            .then("its event", |lab| {
                let event = told(lab).remove(0);
                let got = (event.family, event.protocol, event.owner, event.reason);
                assert_eq!(got, (0, 0, 0x5eed, DenyNotIp));
            }),
        table(f.named("events: an interface that nobody registered"), World::unregistered())
            .to_pod(f.back(udp(1, 2)), DenyNoEndpoint)
            .then("its event", move |lab| {
                let event = told(lab).remove(0);
                assert_eq!((event.owner, event.ifindex), (0, lab.ifindex));
                assert_eq!((event.pod, event.peer), ((pod, 2), (peer, 1)));
            }),
        table(f.named("events: every packet of a cut flow"), World::open())
            .to_pod(f.back(udp(1, 2)), AllowPolicy)
            .change(|lab| lab.withdraw(Ingress, ANY, Ports::Every))
            .to_pod(f.back(udp(1, 2)), DenyPolicy)
            .from_pod(f.out(udp(2, 1)), DenyPolicy)
            .then("their events", move |lab| {
                let told = told(lab);
                let seen: Vec<_> =
                    told.iter().map(|e| (e.direction, e.reason, e.owner, e.rule)).collect();
                let wanted = [(Ingress, DenyPolicy, 0x5eed, 0), (Egress, DenyPolicy, 0x5eed, 0)];
                assert_eq!(seen, wanted);
            }),
        table(f.named("events: an entry that denies is named"), {
            World::isolated().allow(Ingress, ANY, Ports::All(TCP)).deny(
                Ingress,
                ANY,
                Ports::One(TCP, 80),
            )
        })
        .to_pod(f.back(tcp(1, 80).syn()), DenyPolicy)
        .then("rule 2", |lab| assert_eq!(told(lab).remove(0).rule, 2)),
    ]
}

fn silence(f: Family) -> Vec<Table> {
    let packets = |table: Table, denied| {
        table
            .to_pod(f.back(udp(1, 80)), denied)
            .to_pod(f.back(tcp(1, 2).truncated(9)), denied)
            .to_pod(f.back(tcp(1, 80).syn()), AllowPolicy)
    };
    let audit = table(f.named("events: audit tells what it lets pass"), web())
        .then("audit", |lab| lab.set_mode(Mode::Audit));
    let off = table(f.named("events: off tells nothing"), web())
        .then("off", |lab| lab.set_mode(Mode::Off));
    vec![
        table(f.named("events: allowed flows are not told unless asked for"), web())
            .to_pod(f.back(tcp(1, 80).syn()), AllowPolicy)
            .then("silence", reasons(&[])),
        packets(audit, AllowAudit)
            .then("two", reasons(&[(DenyPolicy, Verdict::Allow), (DenyMalformed, Verdict::Allow)])),
        packets(off, AllowAudit).then("silence", reasons(&[])),
    ]
}

/// Sends a denied packet this often, as fast as it goes.
pub(crate) fn flood(lab: &Lab, repeat: u32) {
    // from where it comes is no matter to policy, and not every kernel takes another number
    let context = Context { ifindex: lab.ifindex, ingress_ifindex: 0 };
    let frame = V4.back(udp(1, 2)).frame();
    let outcome = lab.datapath().test_run(Ingress, context, &frame, repeat).unwrap();
    assert_eq!(outcome.action, 2);
}

/// What a pod may tell at once, and in each second after that, whatever the limit of all.
pub(crate) const OWN: u64 = 100;
pub(crate) const OWN_EACH_SECOND: u64 = 16;

fn limit() -> Table {
    table("events: no more than a pod's own and the limit of all", World::isolated())
        .then("3 a second", |lab| {
            lab.keep_to_itself();
            // the programs may have told others' events in the running second
            std::thread::sleep(Duration::from_millis(1100));
            lab.datapath().maps.control().set_event_limit(3);
        })
        .then("200 denials", |lab| {
            flood(lab, 200);
            let told = told(lab).len() as u64;
            // more if the second turned meanwhile
            let most = OWN + 3 + 2 * (OWN_EACH_SECOND + 3);
            assert!((OWN + 3..=most).contains(&told), "{told} told");
            assert_eq!(lab.stat(Stat::EventLimit), 200 - told);
            let share = lab.datapath().maps.flow_table().shares().unwrap()[&lab.ifindex];
            assert_eq!(share.events_held, 200 - told, "counted at the pod too");
            let denied = lab.datapath().maps.counters().unwrap().get(Ingress, DenyPolicy);
            assert_eq!(denied.packets, 200, "counted all the same");
        })
        .then("the next second", |lab| {
            std::thread::sleep(Duration::from_millis(1100));
            flood(lab, 10);
            assert_eq!(told(lab).len(), 10);
        })
        .then("none at all", |lab| {
            lab.datapath().maps.control().set_event_limit(0);
            flood(lab, 1);
            assert_eq!(told(lab), []);
        })
}

fn full_ring() -> Table {
    table("events: one pod does not fill the ring, and loses no packet", World::isolated())
        .then("20,000 denials that nobody reads", |lab| {
            flood(lab, 20_000);
            // of 96 bytes each half of a MiB, and what it has of its own
            let half = (1 << 19) / 96;
            let told = told(lab).len() as u64;
            assert!((half..half + 1000).contains(&told), "{told} told");
            assert_eq!(lab.stat(Stat::EventLimit), 20_000 - told);
            assert_eq!(lab.stat(Stat::EventLost), 0);
            let denied = lab.datapath().maps.counters().unwrap().get(Ingress, DenyPolicy);
            assert_eq!(denied.packets, 20_000);
        })
        .then("read, it has room again", |lab| {
            flood(lab, 1);
            assert_eq!(told(lab).len(), 1);
        })
}
