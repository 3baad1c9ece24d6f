//! UDP, SCTP and protocols without ports (docs/semantics.md 7.1, 7.2).

use crate::prelude::*;

pub(crate) fn tables() -> Vec<Table> {
    s7_1_protocols_with_and_without_ports()
}

fn s7_1_protocols_with_and_without_ports() -> Vec<Table> {
    both(|f| {
        let dns = || World::isolated().allow(Egress, ANY, Ports::One(UDP, 53));
        let asked =
            |name: &str| table(f.named(name), dns()).from_pod(f.out(udp(5000, 53)), AllowPolicy);
        let wait = |table: Table, seconds| {
            table.then(format!("{seconds} s pass"), move |lab| lab.age_flows(seconds))
        };
        let mut tables = vec![
            asked("udp: the answer to a datagram passes")
                .to_pod(f.back(udp(53, 5000)), AllowFlow)
                .from_pod(f.out(udp(5000, 53)), AllowFlow),
            asked("udp: only its answer")
                .to_pod(f.back(udp(54, 5000)), DenyPolicy)
                .to_pod(udp(53, 5000).between(f.stranger, f.pod), DenyPolicy),
            table(f.named("udp: to the pod and back"), {
                World::isolated().allow(Ingress, ANY, Ports::One(UDP, 53))
            })
            .from_pod(f.out(udp(53, 5000)), DenyPolicy)
            .to_pod(f.back(udp(5000, 53)), AllowPolicy)
            .from_pod(f.out(udp(53, 5000)), AllowFlow),
            table(f.named("udp: what was denied leaves no state"), World::isolated())
                .to_pod(f.back(udp(5000, 53)), DenyPolicy)
                .from_pod(f.out(udp(53, 5000)), DenyPolicy)
                .then("no flow", |lab| assert_eq!(lab.flows(), [])),
            wait(asked("udp: an unanswered datagram is forgotten"), 62)
                .to_pod(f.back(udp(53, 5000)), DenyPolicy),
            wait(asked("udp: but not at once"), 50).to_pod(f.back(udp(53, 5000)), AllowFlow),
            wait(
                asked("udp: an answered one is kept longer")
                    .to_pod(f.back(udp(53, 5000)), AllowFlow),
                170,
            )
            .to_pod(f.back(udp(53, 5000)), AllowFlow),
            table(f.named("udp: an empty datagram"), dns())
                .from_pod(f.out(udp(5000, 53)), AllowPolicy),
            table(f.named("sctp: a rule for it allows it, and nothing else"), {
                World::isolated().allow(Ingress, ANY, Ports::One(SCTP, 3868))
            })
            .to_pod(f.back(tcp(4000, 3868).syn()), DenyPolicy)
            .to_pod(f.back(udp(4000, 3868)), DenyPolicy)
            .to_pod(f.back(sctp(4000, 3869)), DenyPolicy)
            .to_pod(f.back(sctp(4000, 3868)), AllowPolicy)
            .from_pod(f.out(sctp(3868, 4000)), AllowFlow)
            .from_pod(f.out(sctp(3868, 4001)), DenyPolicy),
            table(f.named("sctp: a rule for TCP does not allow it"), web())
                .to_pod(f.back(sctp(4000, 80)), DenyPolicy)
                .to_pod(f.back(udp(4000, 80)), DenyPolicy),
        ];
        // IGMP, IPIP, GRE, ESP, OSPF, UDP-Lite
        for number in [2, protocol::IPIP, protocol::GRE, protocol::ESP, 89, 136] {
            let other = || raw(number, &[0, 80, 0, 80, 0, 80, 0, 80]);
            tables.push(
                table(f.named(&format!("protocol {number}: a rule with ports is not for it")), {
                    web()
                        .allow(Ingress, ANY, Ports::All(TCP))
                        .allow(Ingress, ANY, Ports::All(UDP))
                        .allow(Ingress, ANY, Ports::All(SCTP))
                })
                .to_pod(f.back(other()), DenyPolicy)
                .from_pod(f.out(other()), DenyPolicy),
            );
            tables.push(
                table(f.named(&format!("protocol {number}: a rule without ports is")), {
                    World::isolated().not_isolated(Ingress)
                })
                .from_pod(f.out(other()), DenyPolicy)
                .to_pod(f.back(other()), AllowPolicy)
                .from_pod(f.out(other()), AllowFlow)
                .from_pod(other().between(f.pod, f.stranger), DenyPolicy),
            );
        }
        tables
    })
}
