//! A pod's own flows in the flow table, which has 1024 entries here: which go when there are too many, and what that may
//! not bring about. What the pods are to each other is in `kernel_flow_table`.

use podgate_bpf::abi::{Share, Stat};
use podgate_bpf::flow_table::Usage;
use podgate_tests::kernel::{DROP, Lab, NEXT};

use crate::prelude::*;

pub(crate) fn tables() -> Vec<Table> {
    both(own)
}

fn share(lab: &Lab) -> Share {
    lab.datapath().maps.flow_table().shares().unwrap()[&lab.ifindex]
}

fn usage(lab: &Lab, f: Family) -> Usage {
    lab.datapath().maps.flow_table().usage().unwrap()[ring(f)]
}

fn ring(f: Family) -> usize {
    usize::from(f.icmp != ICMP)
}

fn own(f: Family) -> Vec<Table> {
    // a connection of the pod's own, open
    let connect = move |lab: &Lab, port| {
        for (direction, packet) in [
            (Egress, f.out(tcp(port, 80).syn())),
            (Ingress, f.back(tcp(80, port).syn_ack())),
            (Egress, f.out(tcp(port, 80).ack())),
        ] {
            assert_eq!(lab.send(direction, &packet.frame(), Via::Uplink).action, NEXT);
        }
    };
    let ask = move |lab: &Lab, port| {
        assert_eq!(lab.send(Egress, &f.out(udp(port, 53)).frame(), Via::Nothing).action, NEXT);
    };
    let client = || World::isolated().not_isolated(Egress);
    vec![
        table(f.named("flow table: no more than its part, the rest is counted"), client()).then(
            "2,000 datagram flows",
            move |lab| {
                for port in 10_000..12_000 {
                    ask(lab, port);
                }
                let (share, flows) = (share(lab), lab.flows().len() as u64);
                let ring = share.rings[ring(f)];
                // half of the table without what is kept for others
                assert!((400..=440).contains(&ring.high), "{ring:?}");
                assert_eq!((flows, u64::from(ring.high)), (ring.high.into(), usage(lab, f).slots));
                assert_eq!(ring.evicted, 2000 - flows);
                assert_eq!(lab.stat(Stat::FlowEvicted), ring.evicted);
                assert_eq!(lab.stat(Stat::FlowLost), 0);
            },
        ),
        table(f.named("flow table: what has ended makes room first"), client()).then(
            "300 flows, and when they have ended 300 others",
            move |lab| {
                for port in 10_000..10_300 {
                    ask(lab, port);
                }
                assert_eq!(share(lab).rings[ring(f)].high, 300);
                lab.age_flows(70);
                for port in 11_000..11_300 {
                    ask(lab, port);
                }
                let ring = share(lab).rings[ring(f)];
                // a ring of live flows has grown without a look at most of them: those are met later
                assert!(ring.high <= 300 + 300 / 8 + 8, "{ring:?}");
                assert_eq!(ring.evicted, 0);
            },
        ),
        table(f.named("flow table: a ring that is not needed becomes smaller"), client()).then(
            "few flows after many",
            move |lab| {
                for port in 10_000..10_400 {
                    ask(lab, port);
                }
                for port in 11_000..12_000 {
                    lab.age_flows(70);
                    ask(lab, port);
                }
                let ring = share(lab).rings[ring(f)];
                assert!(ring.high < 200, "{ring:?}");
                assert_eq!(u64::from(ring.high), usage(lab, f).slots);
            },
        ),
        table(f.named("flow table: datagrams end no open connection"), client()).then(
            "200 connections, then 5,000 datagram flows",
            move |lab| {
                for port in 10_000..10_200 {
                    connect(lab, port);
                }
                for port in 20_000..25_000 {
                    ask(lab, port);
                }
                assert!(share(lab).rings[ring(f)].evicted > 4000);
                for port in 10_000..10_200 {
                    // what the server says first reaches an isolated pod only as of its flow
                    let met = lab.send(Ingress, &f.back(tcp(80, port).ack()).frame(), Via::Uplink);
                    assert_eq!(met.reason(), Some(AllowFlow), "port {port}");
                }
            },
        ),
        table(f.named("flow table: an answer comes to the flow that came last"), client()).then(
            "each of 2,000 is answered at once",
            move |lab| {
                for port in 10_000..12_000 {
                    ask(lab, port);
                    let met = lab.send(Ingress, &f.back(udp(53, port)).frame(), Via::Uplink);
                    assert_eq!(met.reason(), Some(AllowFlow), "port {port}");
                }
            },
        ),
        table(f.named("flow table: what policy has revoked does not come back"), World::open())
            .then("700 connections, of which the first are forgotten", move |lab| {
                for port in 10_000..10_700 {
                    connect(lab, port);
                }
                assert_eq!(share(lab).cut_evicted, 0);
            })
            .change(|lab| lab.withdraw(Egress, ANY, Ports::Every))
            .then("each meets the change; then others take the place of some", move |lab| {
                for port in 10_000..10_700 {
                    let met = lab.send(Egress, &f.out(tcp(port, 80).ack()).frame(), Via::Nothing);
                    assert_eq!(met.action, DROP, "port {port}");
                }
                for port in 20_000..20_300 {
                    let met = lab.send(Ingress, &f.back(tcp(port, 90).syn()).frame(), Via::Uplink);
                    assert_eq!(met.action, NEXT);
                    let met =
                        lab.send(Egress, &f.out(tcp(90, port).syn_ack()).frame(), Via::Uplink);
                    assert_eq!(met.action, NEXT);
                }
                assert_ne!(share(lab).cut_evicted, 0, "some were revoked ones");
            })
            .then("none of their servers gets through", move |lab| {
                for port in 10_000..10_700 {
                    let met = lab.send(Ingress, &f.back(tcp(80, port).ack()).frame(), Via::Uplink);
                    assert_eq!(met.reason(), Some(DenyPolicy), "port {port}");
                    let met = lab.send(Egress, &f.out(tcp(port, 80).ack()).frame(), Via::Nothing);
                    assert_eq!(met.reason(), Some(DenyPolicy), "port {port}");
                }
            })
            // what is new and allowed is not held up by it
            .to_pod(f.back(tcp(30000, 91).syn()), AllowPolicy)
            .from_pod(f.out(tcp(91, 30000).syn_ack()), AllowFlow)
            .change(|lab| lab.allow(Egress, ANY, Ports::Every))
            .then("and what was forgotten may be picked up again", move |lab| {
                let reasons: Vec<_> = (10_000..10_700)
                    .map(|port| {
                        lab.send(Ingress, &f.back(tcp(80, port).ack()).frame(), Via::Uplink)
                            .reason()
                    })
                    .collect();
                let known = reasons.iter().filter(|reason| **reason == Some(AllowFlow)).count();
                let picked_up =
                    reasons.iter().filter(|reason| **reason == Some(AllowPolicy)).count();
                assert_eq!(known + picked_up, 700);
                assert!(picked_up > 0 && known > 0, "{known} known");
            }),
    ]
}
