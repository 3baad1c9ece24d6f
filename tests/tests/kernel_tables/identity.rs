//! Who sends: the interface is the identity (docs/semantics.md 8.10, 9, 1.5).

use podgate_bpf::abi::{Mode, Startup};

use crate::prelude::*;

pub(crate) fn tables() -> Vec<Table> {
    let mut tables = both(s8_10_addresses_that_are_not_the_pods);
    tables.extend(both(s8_11_addresses_of_what_cannot_be_read));
    tables.extend(both(s1_5_a_pod_reaches_itself));
    tables.extend(both(s1_6_the_own_node_reaches_the_pod));
    tables.extend(both(s9_3_answers_of_the_node));
    tables.extend(both(s9_2_what_the_node_forwards));
    tables.extend(s8_10_groups());
    tables
}

fn s8_10_addresses_that_are_not_the_pods(f: Family) -> Vec<Table> {
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
        table(f.named("spoofing: what is sent to another does not reach the pod"), {
            World::open().node(f.node)
        })
        .to_pod(udp(1, 2).between(f.peer, f.second), DenySpoofed)
        .to_pod(tcp(1, 2).syn().between(f.peer, f.second), DenySpoofed)
        .to_pod(f.ping(7).between(f.peer, f.second), DenySpoofed)
        .to_pod(raw(protocol::GRE, &[0; 8]).between(f.peer, f.second), DenySpoofed)
        .to_pod(raw(UDP, &[0; 8]).between(f.peer, f.second).fragment(1, 64, false), DenySpoofed)
        .to_pod(tcp(1, 2).syn().truncated(8).between(f.peer, f.second), DenySpoofed)
        .node_to_pod(udp(1, 2).between(f.node, f.second), DenySpoofed)
        .from_pod(udp(2, 1).between(f.second, f.peer), DenySpoofed)
        .then("no flow", |lab| assert_eq!(lab.flows(), [])),
        table(f.named("spoofing: what is sent to another, without anti-spoofing"), {
            World::isolated().not_isolated(Ingress).without_anti_spoofing()
        })
        .to_pod(udp(1, 2).between(f.peer, f.second), AllowPolicy)
        .from_pod(udp(2, 1).between(f.second, f.peer), AllowFlow)
        .from_pod(udp(3, 1).between(f.second, f.peer), DenyPolicy),
        table(f.named("spoofing: what audit let reach the pod is not allowed after it"), {
            World::open()
        })
        .then("audit", |lab| lab.set_mode(Mode::Audit))
        .to_pod(udp(1, 2).between(f.peer, f.second), AllowAudit)
        .then("enforce", |lab| lab.set_mode(Mode::Enforce))
        .change(|_| ())
        .then("it is dropped", move |lab| {
            let met = lab.send(Ingress, &udp(1, 2).between(f.peer, f.second).frame(), Via::Uplink);
            assert_eq!(met.action, 2, "a packet to another passes: {met:?}");
        }),
        table(f.named("spoofing: what audit let through is not allowed after it"), World::open())
            .then("audit", |lab| lab.set_mode(Mode::Audit))
            .from_pod(as_other(udp(1, 2)), AllowAudit)
            .then("enforce", |lab| lab.set_mode(Mode::Enforce))
            .change(|_| ())
            // whether it is told as spoofed or as cut
            .then("it is dropped", move |lab| {
                let met = lab.send(Egress, &as_other(udp(1, 2)).frame(), Via::Nothing);
                assert_eq!(met.action, 2, "a spoofed packet passes: {met:?}");
            }),
    ]
}

/// A packet whose ends are plain to see, though not its ports.
fn s8_11_addresses_of_what_cannot_be_read(f: Family) -> Vec<Table> {
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

/// What is sent to more than one is for the pod too.
fn s8_10_groups() -> Vec<Table> {
    let world = || World::isolated().not_isolated(Ingress);
    let mut broadcast = udp(1, 2).between(PEER, "10.0.0.255").frame();
    let to_one = broadcast.clone();
    broadcast[..6].fill(0xff);
    vec![
        table("spoofing: multicast and broadcast reach the pod (v4)", world())
            .to_pod(udp(1, 2).between(PEER, "224.0.0.251"), AllowPolicy)
            .to_pod(udp(1, 2).between(PEER, "255.255.255.255"), AllowPolicy)
            .to_pod(to_one, DenySpoofed)
            .to_pod(broadcast, AllowPolicy)
            .from_pod(udp(2, 1).between("10.0.0.255", PEER), DenySpoofed)
            .from_pod(udp(2, 1).between("224.0.0.251", PEER), DenySpoofed)
            .from_pod(udp(2, 1).between("255.255.255.255", PEER), DenySpoofed)
            .then("no flow", |lab| assert_eq!(lab.flows(), [])),
        table("spoofing: groups reach the pod without anti-spoofing (v4)", {
            world().without_anti_spoofing()
        })
        .to_pod(udp(1, 2).between(PEER, "224.0.0.251"), AllowPolicy)
        .from_pod(udp(2, 1).between("224.0.0.251", PEER), DenyPolicy)
        .then("no flow", |lab| assert_eq!(lab.flows(), [])),
        table("spoofing: a group is no source after the startup state \"watch\"", {
            World::open()
        })
        .then("watched", |lab| lab.startup(Startup::Learn))
        .to_pod(udp(1, 2).between(PEER, "224.0.0.251"), AllowStartup)
        .to_pod(udp(1, 2).between(PEER, "10.0.0.255"), AllowStartup)
        .then("enforced", |lab| lab.startup(Startup::Hold))
        .from_pod(udp(2, 1).between("224.0.0.251", PEER), DenySpoofed)
        .from_pod(udp(2, 1).between("10.0.0.255", PEER), DenySpoofed),
        table("spoofing: the unspecified address is not the pod's (v4)", World::open())
            .to_pod(udp(1, 2).between(PEER, "0.0.0.0"), DenySpoofed),
        table("spoofing: the unspecified address is not the pod's (v6)", World::open())
            .to_pod(udp(1, 2).between(PEER6, "::"), DenySpoofed),
        table("spoofing: multicast and link-local reach the pod (v6)", world())
            .to_pod(udp(1, 2).between(PEER6, "ff02::fb"), AllowPolicy)
            .from_pod(udp(2, 1).between("ff02::fb", PEER6), DenySpoofed)
            .then("no flow", |lab| assert_eq!(lab.flows(), []))
            .to_pod(udp(1, 2).between("fe80::9", "fe80::5"), AllowPolicy)
            .from_pod(udp(2, 1).between("fe80::5", "fe80::9"), AllowFlow),
    ]
}

/// What the node's stack says only because it was asked, perhaps by another in the pod's name.
fn s9_3_answers_of_the_node(f: Family) -> Vec<Table> {
    let world = || World::isolated().node(f.node);
    let from_node = |transport: Transport| transport.between(f.node, f.pod);
    let error = if f.icmp == ICMP { icmp(3, 3, [0; 4]) } else { icmp(1, 4, [0; 4]) };
    let asked = f.ping(7).between(f.pod, f.node);
    let unsent = udp(1, 2).between(f.pod, f.node);
    vec![
        table(f.named("node: an answer that the pod has not asked for is judged"), world())
            .node_to_pod(from_node(f.pong(7).payload(b"a stranger's")), DenyPolicy)
            .node_to_pod(from_node(error.clone().quoting(&unsent, 64)), DenyPolicy)
            .node_to_pod(from_node(icmp(5, 0, [0; 4]).payload(&[0; 28])), DenyPolicy)
            .node_to_pod(from_node(tcp(22, 40000).syn_ack()), DenyPolicy)
            .node_to_pod(from_node(tcp(22, 40000).ack()), DenyPolicy)
            .from_pod(tcp(40000, 22).ack().between(f.pod, f.node), DenyPolicy)
            .node_to_pod(from_node(f.pong(7).payload(&[0; 56])).fragment(3, 0, true), DenyPolicy)
            .node_to_pod(from_node(raw(f.icmp, &[0; 8])).fragment(3, 64, false), DenyFragment)
            .node_to_pod(from_node(raw(f.icmp, &[0; 8])).fragment(4, 64, false), DenyFragment)
            .then("no flow", |lab| assert_eq!(lab.flows(), [])),
        table(f.named("node: a reset opens nothing"), world())
            .node_to_pod(from_node(tcp(22, 40000).rst()), AllowOwnNode)
            .then("no flow", |lab| assert_eq!(lab.flows(), []))
            .from_pod(tcp(40000, 22).ack().between(f.pod, f.node), DenyPolicy),
        table(f.named("node: an answer that the pod has asked for"), world().not_isolated(Egress))
            .from_pod(asked, AllowPolicy)
            .node_to_pod(from_node(f.pong(7).payload(&[0; 8])), AllowFlow)
            .from_pod(tcp(40000, 22).syn().between(f.pod, f.node), AllowPolicy)
            .node_to_pod(from_node(tcp(22, 40000).syn_ack()), AllowFlow)
            .from_pod(unsent.clone(), AllowPolicy)
            .node_to_pod(from_node(error.quoting(&unsent, 64)), AllowRelated),
    ]
}

/// One tuple, of the node's own packets and of what it forwards under its address.
fn s9_2_what_the_node_forwards(f: Family) -> Vec<Table> {
    let world = || World::isolated().node(f.node);
    let datagram = || udp(50000, 53).between(f.node, f.pod);
    let answer = || udp(53, 50000).between(f.pod, f.node);
    let segment = |t: Transport| t.between(f.node, f.pod);
    let first = |id| udp(1, 53).payload(&[0; 56]).between(f.node, f.pod).fragment(id, 0, true);
    let last = |id| raw(UDP, &[0; 8]).between(f.node, f.pod).fragment(id, 64, false);
    let dns = || world().allow(Ingress, ANY, Ports::One(UDP, 53));
    let prefix = (f.node.parse().unwrap(), if f.icmp == ICMP { 24 } else { 64 });
    vec![
        table(f.named("node: no forwarded segment rides on its connection"), world())
            .node_to_pod(segment(tcp(50000, 80).syn()), AllowOwnNode)
            .from_pod(tcp(80, 50000).syn_ack().between(f.pod, f.node), AllowFlow)
            .node_to_pod(segment(tcp(50000, 80).ack()), AllowFlow)
            .to_pod(segment(tcp(50000, 80).ack()), DenyPolicy)
            .to_pod(segment(tcp(50000, 80).fin()), DenyPolicy)
            .to_pod(segment(tcp(50000, 80).rst()), DenyPolicy)
            .node_to_pod(segment(tcp(50000, 80).ack()), AllowFlow)
            .from_pod(tcp(80, 50000).ack().between(f.pod, f.node), AllowFlow),
        table(f.named("node: no forwarded datagram rides on its flow"), world())
            .node_to_pod(datagram(), AllowOwnNode)
            .to_pod(datagram(), DenyPolicy)
            .from_pod(answer(), AllowFlow)
            .to_pod(datagram(), DenyPolicy)
            .node_to_pod(datagram(), AllowFlow),
        table(
            f.named("node: a forwarded datagram that policy allows leaves its flow alone"),
            dns(),
        )
        .node_to_pod(datagram(), AllowOwnNode)
        .to_pod(datagram(), AllowPolicy)
        .node_to_pod(datagram(), AllowFlow)
        .change(|lab| lab.withdraw(Ingress, ANY, Ports::One(UDP, 53)))
        .to_pod(datagram(), DenyPolicy)
        .node_to_pod(datagram(), AllowFlow)
        .from_pod(answer(), AllowFlow),
        table(f.named("node: its own datagram on a forwarded flow that was cut"), dns())
            .to_pod(datagram(), AllowPolicy)
            .change(|lab| lab.withdraw(Ingress, ANY, Ports::One(UDP, 53)))
            .to_pod(datagram(), DenyPolicy)
            .node_to_pod(datagram(), AllowOwnNode)
            .to_pod(datagram(), DenyPolicy)
            .from_pod(answer(), AllowFlow),
        table(f.named("node: its answer on a flow of the pod's that was cut"), {
            world().not_isolated(Egress)
        })
        .from_pod(answer(), AllowPolicy)
        .change(|lab| lab.withdraw(Egress, ANY, Ports::Every))
        .node_to_pod(datagram(), DenyPolicy)
        .from_pod(answer(), DenyPolicy),
        table(f.named("node: no forwarded fragment rides on its datagram"), world())
            .node_to_pod(first(9), AllowOwnNode)
            .to_pod(last(9), DenyFragment)
            .node_to_pod(last(9), AllowFlow)
            .to_pod(first(9), DenyPolicy)
            .to_pod(last(9), DenyFragment)
            // that one was refused says nothing of the node's
            .node_to_pod(last(9), AllowOwnNode),
        table(f.named("node: a prefix of its addresses"), World::isolated())
            .node_to_pod(datagram(), DenyPolicy)
            .change(move |lab| lab.datapath().maps.add_node_net(prefix).unwrap())
            .node_to_pod(datagram(), AllowOwnNode)
            .node_to_pod(udp(1, 2).between(f.peer, f.pod), AllowOwnNode)
            .node_to_pod(udp(1, 2).between(f.stranger, f.pod), DenyPolicy)
            .to_pod(udp(3, 4).between(f.node, f.pod), DenyPolicy)
            .change(move |lab| lab.datapath().maps.remove_node_net(prefix).unwrap())
            .node_to_pod(udp(5, 6).between(f.node, f.pod), DenyPolicy),
    ]
}

fn s1_5_a_pod_reaches_itself(f: Family) -> Vec<Table> {
    let world = || World::isolated().address(f.second);
    let first = |id| udp(1, 53).payload(&[0; 56]).between(f.pod, f.pod).fragment(id, 0, true);
    let last = |id| raw(UDP, &[0; 8]).between(f.pod, f.pod).fragment(id, 64, false);
    let nobody = if f.icmp == ICMP { "0.0.0.0" } else { "::" };
    vec![
        table(f.named("oneself: to an address of its own"), world())
            .from_pod(tcp(1, 80).syn().between(f.pod, f.pod), AllowOwnAddress)
            .from_pod(udp(1, 80).between(f.pod, f.second), AllowOwnAddress)
            .from_pod(udp(1, 80).between(f.second, f.pod), AllowOwnAddress),
        table(f.named("oneself: back to it (hairpin)"), world())
            .pod_to_pod(udp(1, 80).between(f.pod, f.pod), AllowOwnAddress),
        table(f.named("oneself: what it sends itself lets in no other in its name"), world())
            .from_pod(udp(5000, 80).between(f.pod, f.pod), AllowOwnAddress)
            .to_pod(udp(80, 5000).between(f.pod, f.pod), DenyPolicy)
            .node_to_pod(udp(80, 5000).between(f.pod, f.pod), DenyPolicy)
            .to_pod(udp(5000, 80).between(f.pod, f.pod), DenyPolicy)
            .from_pod(tcp(1, 80).syn().between(f.pod, f.second), AllowOwnAddress)
            .to_pod(tcp(80, 1).syn_ack().between(f.second, f.pod), DenyPolicy)
            .to_pod(tcp(80, 1).ack().between(f.second, f.pod), DenyPolicy)
            .pod_to_pod(tcp(80, 1).syn_ack().between(f.second, f.pod), AllowOwnAddress)
            .from_pod(tcp(1, 80).ack().between(f.pod, f.second), AllowOwnAddress)
            .then("no flow", |lab| assert_eq!(lab.flows(), [])),
        table(f.named("oneself: nor do its fragments"), world())
            .pod_to_pod(first(1), AllowOwnAddress)
            .to_pod(last(1), DenyFragment)
            .pod_to_pod(last(1), AllowFragment),
        table(f.named("oneself: what policy lets in in its name is no flow"), {
            world().not_isolated(Ingress)
        })
        .to_pod(udp(80, 5000).between(f.pod, f.pod), AllowPolicy)
        .then("no flow", |lab| assert_eq!(lab.flows(), [])),
        table(f.named("oneself: somebody else in its name is not it"), world())
            .to_pod(udp(1, 80).between(f.pod, f.pod), DenyPolicy)
            .node_to_pod(udp(1, 80).between(f.pod, f.pod), DenyPolicy),
        table(f.named("oneself: nobody's address is not its own"), World::isolated())
            .to_pod(udp(1, 80).between(nobody, f.pod), DenyPolicy),
        table(f.named("oneself: before policy is there"), World::unprogrammed(Startup::Hold))
            .from_pod(udp(1, 80).between(f.pod, f.pod), AllowOwnAddress),
    ]
}

fn s1_6_the_own_node_reaches_the_pod(f: Family) -> Vec<Table> {
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
            .change(move |lab| lab.datapath().maps.remove_node_addr(address).unwrap())
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
