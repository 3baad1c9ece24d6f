//! Before policy is there, after the pod is gone, and between two pods at one interface.

use podgate_bpf::abi::Startup;

use crate::prelude::*;

pub(crate) fn tables() -> Vec<Table> {
    let mut tables = s11_10_before_the_first_policy();
    tables.extend(both(s11_12_a_successor_at_the_interface));
    tables
}

fn s11_10_before_the_first_policy() -> Vec<Table> {
    both(|f| {
        let held = || World::unprogrammed(Startup::Hold).node(f.node);
        let open = || World::unprogrammed(Startup::Open).node(f.node);
        let request = || f.back(tcp(40000, 80).syn());
        let reply = || f.out(tcp(80, 40000).ack());
        let more = || f.back(tcp(40000, 80).ack());
        vec![
            table(f.named("startup: held, only the node reaches the pod"), held())
                .to_pod(request(), DenyStartup)
                .from_pod(f.out(tcp(1, 2).syn()), DenyStartup)
                .to_pod(tcp(1, 80).syn().between(f.node, f.pod), DenyStartup)
                .node_to_pod(tcp(1, 80).syn().between(f.node, f.pod), AllowOwnNode)
                .from_pod(tcp(80, 1).syn_ack().between(f.pod, f.node), AllowFlow)
                .from_pod(f.out(f.ping(7)), DenyStartup)
                .to_pod(f.back(f.pong(7)), DenyStartup),
            table(f.named("startup: held, cut packets and sources"), held())
                .to_pod(f.back(tcp(1, 2).truncated(9)), DenyStartup)
                .from_pod(udp(1, 2).between(f.second, f.peer), DenySpoofed),
            table(f.named("startup: open, everything passes and is a flow"), open())
                .to_pod(request(), AllowStartup)
                .from_pod(reply(), AllowFlow)
                .from_pod(f.out(udp(1, 2)), AllowStartup)
                .to_pod(f.back(udp(2, 1)), AllowFlow)
                .to_pod(f.back(tcp(1, 2).truncated(9)), AllowStartup),
            table(f.named("startup: open, sources are still checked"), open())
                .from_pod(udp(1, 2).between(f.second, f.peer), DenySpoofed),
            table(f.named("startup: held, then allowed"), held())
                .to_pod(request(), DenyStartup)
                .then("policy comes", |lab| lab.replace(&web()))
                .change(|_| ())
                .to_pod(request(), AllowPolicy)
                .from_pod(reply(), AllowFlow),
            table(f.named("startup: open, then isolated"), open())
                .to_pod(request(), AllowStartup)
                .from_pod(reply(), AllowFlow)
                .to_pod(f.back(tcp(40000, 81).syn()), AllowStartup)
                .change(|lab| lab.replace(&web()))
                .to_pod(more(), AllowFlow)
                .from_pod(reply(), AllowFlow)
                .to_pod(f.back(tcp(40000, 81).ack()), DenyPolicy)
                .from_pod(f.out(tcp(81, 40000).ack()), DenyPolicy),
            table(f.named("startup: watched, then policy speaks"), web().node(f.node))
                .then("watched", |lab| lab.startup(Startup::Learn))
                .to_pod(request(), AllowStartup)
                .from_pod(reply(), AllowFlow)
                .to_pod(f.back(tcp(40000, 81).syn()), AllowStartup)
                .from_pod(f.out(tcp(1, 2).syn()), AllowStartup)
                .from_pod(udp(1, 2).between(f.second, f.peer), AllowStartup)
                .to_pod(f.back(tcp(1, 2).truncated(9)), AllowStartup)
                .node_to_pod(tcp(1, 81).syn().between(f.node, f.pod), AllowOwnNode)
                .then("enforced", |lab| lab.startup(Startup::Hold))
                .to_pod(more(), AllowFlow)
                .from_pod(reply(), AllowFlow)
                .to_pod(f.back(tcp(40000, 81).ack()), DenyPolicy)
                .from_pod(f.out(tcp(1, 2).ack()), DenyPolicy)
                .from_pod(udp(1, 2).between(f.second, f.peer), DenyPolicy)
                .from_pod(udp(1, 3).between(f.second, f.peer), DenySpoofed)
                .from_pod(tcp(81, 1).syn_ack().between(f.pod, f.node), AllowFlow),
            table(f.named("startup: policy goes, the pod is held again"), web())
                .to_pod(request(), AllowPolicy)
                .change(|lab| lab.datapath().maps.remove_policy_maps(&[lab.ifindex]).unwrap())
                .then("it is cut", |_| ())
                .to_pod(more(), DenyPolicy)
                .to_pod(f.back(tcp(40001, 80).syn()), DenyStartup),
            table(f.named("interface: nobody registered it"), World::unregistered().node(f.node))
                .to_pod(request(), DenyNoEndpoint)
                .from_pod(reply(), DenyNoEndpoint)
                .node_to_pod(tcp(1, 80).syn().between(f.node, f.pod), DenyNoEndpoint)
                .to_pod(f.back(tcp(1, 2).truncated(9)), DenyNoEndpoint),
            table(f.named("interface: the registration goes, its flows with it"), web())
                .to_pod(request(), AllowPolicy)
                .from_pod(reply(), AllowFlow)
                .then("unregister", |lab| lab.datapath().maps.unregister(lab.ifindex).unwrap())
                .to_pod(more(), DenyNoEndpoint)
                .from_pod(reply(), DenyNoEndpoint),
        ]
    })
}

/// A new pod at an interface number that was another's; nobody has cleaned up.
fn s11_12_a_successor_at_the_interface(f: Family) -> Vec<Table> {
    let request = || f.back(tcp(40000, 80).syn());
    let more = || f.back(tcp(40000, 80).ack());
    let reply = || f.out(tcp(80, 40000).ack());
    let opened = |name: &str, world: World| {
        table(f.named(name), world).to_pod(request(), AllowPolicy).from_pod(reply(), AllowFlow)
    };
    vec![
        opened("successor: the earlier pod's policy is not its", web())
            .then("another pod", |lab| lab.succeed(&World::unprogrammed(Startup::Hold)))
            .to_pod(f.back(tcp(40001, 80).syn()), DenyStartup)
            .from_pod(f.out(tcp(1, 2).syn()), DenyStartup),
        opened("successor: nor is an open pod's", World::open())
            .then("another pod", |lab| lab.succeed(&World::unprogrammed(Startup::Hold)))
            .to_pod(f.back(tcp(40001, 80).syn()), DenyStartup)
            .from_pod(f.out(tcp(1, 2).syn()), DenyStartup)
            .to_pod(f.back(tcp(1, 2).truncated(9)), DenyStartup),
        opened("successor: the earlier pod's flows are not its", web())
            .then("another pod", |lab| lab.succeed(&World::isolated()))
            .to_pod(more(), DenyPolicy)
            .from_pod(reply(), DenyPolicy)
            .to_pod(request(), DenyPolicy),
        opened("successor: the same flow, allowed to it too, is a new one", web())
            .then("another pod", |lab| lab.succeed(&web()))
            .from_pod(reply(), DenyPolicy)
            .to_pod(more(), AllowPolicy)
            .from_pod(reply(), AllowFlow)
            .then("its owner", |lab| assert_eq!(lab.flows()[0].owner, 0x5eee)),
        opened("successor: an error about an earlier pod's flow", web())
            .then("another pod", |lab| lab.succeed(&World::isolated()))
            .to_pod(
                icmp(if f.icmp == ICMP { 3 } else { 1 }, 1, [0; 4])
                    .quoting(&reply(), 8)
                    .between(f.stranger, f.pod),
                DenyPolicy,
            ),
    ]
}
