//! What carries packets to the pod where a test run cannot say where the node received them: the same verdicts.

use crate::prelude::*;

pub(crate) fn tables() -> Vec<Table> {
    both(carries)
}

fn carries(f: Family) -> Vec<Table> {
    let world = || World::isolated().allow(Ingress, ANY, Ports::One(TCP, 80));
    vec![
        table(f.named("wire: allowed, of its flow, denied"), world())
            .to_pod(f.back(tcp(40000, 80).syn()), AllowPolicy)
            .from_pod(f.out(tcp(80, 40000).syn_ack()), AllowFlow)
            .to_pod(f.back(tcp(40000, 80).ack()), AllowFlow)
            .to_pod(f.back(tcp(40000, 81).syn()), DenyPolicy)
            .over_wire(),
        table(f.named("wire: what the pod itself has sent is told from others'"), world())
            .pod_to_pod(udp(1, 2).between(f.pod, f.pod), AllowOwnAddress)
            .to_pod(udp(1, 2).between(f.pod, f.pod), DenyPolicy)
            .over_wire(),
    ]
}
