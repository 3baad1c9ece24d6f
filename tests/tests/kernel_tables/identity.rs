//! Who sends: the interface is the identity (semantics 8, 9, 1.5).

use podgate_bpf::abi::Mode;

use crate::prelude::*;

pub(crate) fn tables() -> Vec<Table> {
    let mut tables = both(spoofing);
    tables.extend(both(unparsable_spoofing));
    tables.extend(both(oneself));
    tables.extend(both(own_node));
    tables
}

fn spoofing(f: Family) -> Vec<Table> {
    let as_other = move |t: Transport| t.between(f.second, f.peer);
    let nobody = if f.icmp == ICMP { "0.0.0.0" } else { "::" };
    vec![
        table(f.named("spoofing: a foreign source"), World::open())
            .from_pod(as_other(tcp(1, 2).syn()), DenySpoofed)
            .from_pod(as_other(udp(1, 2)), DenySpoofed)
            .from_pod(as_other(f.ping(7)), DenySpoofed)
            .from_pod(as_other(raw(protocol::GRE, &[0; 8])), DenySpoofed)
            .from_pod(udp(1, 2).between(f.node, f.peer), DenySpoofed)
            .then("no flow", |lab| assert_eq!(lab.flows(), [])),
        table(f.named("spoofing: the unspecified source"), World::open())
            .from_pod(udp(1, 2).between(nobody, f.peer), DenySpoofed),
        table(f.named("spoofing: every address of the pod is its own"), {
            World::open().address(f.second)
        })
        .from_pod(as_other(udp(1, 2)), AllowPolicy)
        .from_pod(f.out(udp(1, 2)), AllowPolicy),
        table(f.named("spoofing: switched off, policy still speaks"), {
            client().without_anti_spoofing()
        })
        .from_pod(as_other(tcp(1, 80).syn()), AllowPolicy)
        .to_pod(tcp(80, 1).syn_ack().between(f.peer, f.second), AllowFlow)
        .from_pod(as_other(tcp(1, 81).syn()), DenyPolicy),
        table(f.named("spoofing: replies to what reached the pod under another address"), {
            World::isolated().not_isolated(Ingress)
        })
        .to_pod(udp(1, 2).between(f.peer, f.second), AllowPolicy)
        .from_pod(udp(2, 1).between(f.second, f.peer), AllowFlow)
        .from_pod(udp(3, 1).between(f.second, f.peer), DenySpoofed),
        table(f.named("spoofing: what audit let through is not allowed after it"), World::open())
            .then("audit", |lab| lab.set_mode(Mode::Audit))
            .from_pod(as_other(udp(1, 2)), AllowAudit)
            .then("enforce", |lab| lab.set_mode(Mode::Enforce))
            .change(|_| ())
            // whether it is told as spoofed or as cut
            .then("it is dropped", move |lab| {
                let met = lab.send(Egress, &as_other(udp(1, 2)).frame(), 0);
                assert_eq!(met.action, 2, "a spoofed packet passes: {met:?}");
            }),
    ]
}

/// A packet whose ends are plain to see, though not its ports.
fn unparsable_spoofing(f: Family) -> Vec<Table> {
    let send = |transport: Transport| transport.between(f.second, f.peer);
    let mut shapes = vec![("a cut header", send(tcp(1, 2).syn().truncated(8)))];
    if f.icmp == ICMP {
        shapes.push(("a header longer than the packet", send(udp(1, 2)).claim_header_words(15)));
    } else {
        let mut many = send(udp(1, 2));
        for _ in 0..9 {
            many = many.extension(protocol::DESTINATION, 1);
        }
        shapes.push(("nine extension headers", many));
        shapes.push(("a routing header", send(udp(1, 2)).routing(1)));
    }
    shapes
        .into_iter()
        .map(|(name, packet)| {
            table(f.named(&format!("spoofing: behind {name}")), World::open())
                .from_pod(packet.clone(), DenySpoofed)
        })
        .collect()
}

fn oneself(f: Family) -> Vec<Table> {
    let world = || World::isolated().address(f.second);
    let nobody = if f.icmp == ICMP { "0.0.0.0" } else { "::" };
    vec![
        table(f.named("oneself: to an address of its own"), world())
            .from_pod(tcp(1, 80).syn().between(f.pod, f.pod), AllowOwnAddress)
            .from_pod(udp(1, 80).between(f.pod, f.second), AllowOwnAddress)
            .from_pod(udp(1, 80).between(f.second, f.pod), AllowOwnAddress),
        table(f.named("oneself: back to it (hairpin)"), world())
            .pod_to_pod(udp(1, 80).between(f.pod, f.pod), AllowOwnAddress),
        table(f.named("oneself: somebody else in its name is not it"), world())
            .to_pod(udp(1, 80).between(f.pod, f.pod), DenyPolicy)
            .node_to_pod(udp(1, 80).between(f.pod, f.pod), DenyPolicy),
        table(f.named("oneself: nobody's address is not its own"), World::isolated())
            .to_pod(udp(1, 80).between(nobody, f.pod), DenyPolicy),
        table(f.named("oneself: before policy is there"), {
            World::unprogrammed(podgate_bpf::abi::Startup::Hold)
        })
        .from_pod(udp(1, 80).between(f.pod, f.pod), AllowOwnAddress),
    ]
}

fn own_node(f: Family) -> Vec<Table> {
    let world = || World::isolated().node(f.node);
    let probe = |port| tcp(50000, port).syn().between(f.node, f.pod);
    let answer = |port| tcp(port, 50000).syn_ack().between(f.pod, f.node);
    let datagram = || udp(50000, 53).between(f.node, f.pod);
    let address = f.node.parse().unwrap();
    vec![
        table(f.named("node: its own packets pass"), world())
            .node_to_pod(probe(80), AllowOwnNode)
            .from_pod(answer(80), AllowFlow)
            .node_to_pod(udp(1, 2).between(f.node, f.pod), AllowOwnNode)
            .node_to_pod(f.ping(7).between(f.node, f.pod), AllowOwnNode)
            .from_pod(f.pong(7).between(f.pod, f.node), AllowFlow),
        table(f.named("node: what it forwards under its address is judged"), world())
            .to_pod(probe(80), DenyPolicy)
            .to_pod(udp(1, 2).between(f.node, f.pod), DenyPolicy),
        table(f.named("node: what it sends under no address of its own is judged"), world())
            .node_to_pod(tcp(50000, 80).syn().between(f.peer, f.pod), DenyPolicy),
        table(f.named("node: unknown to the maps"), World::isolated())
            .node_to_pod(probe(80), DenyPolicy),
        table(f.named("node: egress to it is policed"), world())
            .from_pod(tcp(1, 10250).syn().between(f.pod, f.node), DenyPolicy),
        table(f.named("node: judged again by a reply"), world())
            .node_to_pod(probe(80), AllowOwnNode)
            .change(|_| ())
            .from_pod(answer(80), AllowFlow)
            .change(|_| ())
            .node_to_pod(tcp(50000, 80).ack().between(f.node, f.pod), AllowFlow),
        table(f.named("node: an address that it loses"), world())
            .node_to_pod(probe(80), AllowOwnNode)
            .from_pod(answer(80), AllowFlow)
            .change(move |lab| lab.gate().maps.remove_node_addr(address).unwrap())
            .from_pod(answer(80), DenyPolicy)
            .node_to_pod(tcp(50000, 80).ack().between(f.node, f.pod), DenyPolicy),
        table(f.named("node: what it forwards from a port of its own is judged"), world())
            .node_to_pod(probe(80), AllowOwnNode)
            .from_pod(answer(80), AllowFlow)
            .to_pod(probe(80), DenyPolicy)
            .node_to_pod(tcp(50000, 80).ack().between(f.node, f.pod), AllowFlow)
            .node_to_pod(tcp(50000, 80).rst().between(f.node, f.pod), AllowFlow)
            .to_pod(probe(80), DenyPolicy)
            .node_to_pod(probe(80), AllowFlow),
        table(f.named("node: its own connection from a port of what it forwarded"), {
            world().allow(Ingress, ANY, Ports::One(TCP, 80))
        })
        .to_pod(probe(80), AllowPolicy)
        .to_pod(probe(80), AllowFlow)
        .node_to_pod(probe(80), AllowOwnNode)
        .change(|lab| lab.withdraw(Ingress, ANY, Ports::One(TCP, 80)))
        .from_pod(answer(80), AllowFlow)
        .node_to_pod(tcp(50000, 80).ack().between(f.node, f.pod), AllowFlow),
        table(f.named("node: a forwarded flow does not become its own"), {
            world().allow(Ingress, ANY, Ports::One(UDP, 53))
        })
        .to_pod(datagram(), AllowPolicy)
        .change(|lab| lab.withdraw(Ingress, ANY, Ports::One(UDP, 53)))
        .to_pod(datagram(), DenyPolicy),
        table(f.named("node: nor does one that follows an earlier pod's"), {
            world().allow(Ingress, ANY, Ports::One(UDP, 53))
        })
        .node_to_pod(datagram(), AllowOwnNode)
        .then("another pod comes", {
            let next = world().allow(Ingress, ANY, Ports::One(UDP, 53));
            move |lab| lab.succeed(&next)
        })
        .to_pod(datagram(), AllowPolicy)
        .change(|lab| lab.withdraw(Ingress, ANY, Ports::One(UDP, 53)))
        .to_pod(datagram(), DenyPolicy),
    ]
}
