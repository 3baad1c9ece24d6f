//! What always passes: ARP, neighbour discovery, multicast listeners, DHCP (semantics 7).

use podgate_bpf::abi::Startup;
use podgate_tests::packet::arp;

use crate::prelude::*;

/// Worlds in which nothing else would pass, and what an ordinary packet meets there.
fn strict() -> [(&'static str, World, podgate_bpf::abi::Reason); 3] {
    [
        ("isolated", World::isolated(), DenyPolicy),
        ("held", World::unprogrammed(Startup::Hold), DenyStartup),
        ("unregistered", World::unregistered(), DenyNoEndpoint),
    ]
}

pub(crate) fn tables() -> Vec<Table> {
    let mut tables = Vec::new();
    for (name, world, denied) in strict() {
        let named = |what: &str| format!("control: {what}, {name}");
        tables.push(
            table(named("ARP"), world.clone())
                .from_pod(arp(POD, PEER), AllowControl)
                .to_pod(arp(PEER, POD), AllowControl)
                .node_to_pod(arp(NODE, POD), AllowControl),
        );
        for kind in 133..=137 {
            let message = |source, to, hops| {
                icmp(kind, 0, [0; 4]).payload(&[0; 16]).between(source, to).hop_limit(hops)
            };
            tables.push(
                table(named(&format!("neighbour discovery {kind}")), world.clone())
                    .from_pod(message("fe80::5", "ff02::1:ff00:9", 255), AllowControl)
                    .from_pod(message("::", "ff02::1:ff00:5", 255), AllowControl)
                    .from_pod(message(POD6, PEER6, 255), AllowControl)
                    .to_pod(message("fe80::9", POD6, 255), AllowControl)
                    .to_pod(message(PEER6, POD6, 254), denied)
                    .to_pod(message(PEER6, POD6, 64), denied)
                    .from_pod(message(POD6, PEER6, 1), denied)
                    .then("no flow", |lab| assert_eq!(lab.flows(), [])),
            );
        }
        for kind in [130, 131, 132, 143] {
            let message = |source, to, hops| {
                icmp(kind, 0, [0; 4]).payload(&[0; 16]).between(source, to).hop_limit(hops)
            };
            tables.push(
                table(named(&format!("multicast listener {kind}")), world.clone())
                    .from_pod(
                        message("fe80::5", "ff02::16", 1).extension(protocol::HOP_BY_HOP, 1),
                        AllowControl,
                    )
                    .from_pod(message("::", "ff02::16", 1), AllowControl)
                    .to_pod(message("fe80::1", "ff02::1", 1), AllowControl)
                    .to_pod(message(PEER6, POD6, 2), denied)
                    .to_pod(message(PEER6, POD6, 255), denied),
            );
        }
        let (ask, offer) = (udp(68, 67).payload(&[0; 240]), udp(67, 68).payload(&[0; 240]));
        tables.push(
            table(named("DHCP"), world.clone())
                .from_pod(ask.clone().between("0.0.0.0", "255.255.255.255"), AllowControl)
                .to_pod(offer.clone().between(NODE, "255.255.255.255"), AllowControl)
                .to_pod(offer.clone().between(NODE, POD), AllowControl)
                .then("no flow", |lab| assert_eq!(lab.flows(), []))
                // a renewal crosses the network: policy speaks
                .from_pod(ask.clone().between(POD, NODE), denied)
                .to_pod(udp(67, 69).between(NODE, POD), denied)
                .to_pod(udp(68, 68).between(NODE, POD), denied)
                .to_pod(tcp(67, 68).syn().between(NODE, POD), denied),
        );
        let (ask, offer) = (udp(546, 547).payload(&[0; 64]), udp(547, 546).payload(&[0; 64]));
        tables.push(
            table(named("DHCPv6"), world)
                .from_pod(ask.clone().between("fe80::5", "ff02::1:2"), AllowControl)
                .to_pod(offer.clone().between("fe80::1", "fe80::5"), AllowControl)
                .from_pod(ask.between(POD6, PEER6), denied)
                .to_pod(offer.between(PEER6, POD6), denied)
                .to_pod(udp(547, 547).between("fe80::1", "fe80::5"), denied),
        );
    }
    for (kind, hops) in [(138, 255), (129, 255), (144, 1), (132, 255), (128, 1)] {
        tables.push(
            table(format!("control: ICMPv6 {kind} with hop limit {hops} is none"), {
                World::isolated()
            })
            .to_pod(icmp(kind, 0, [0; 4]).between(PEER6, POD6).hop_limit(hops), DenyPolicy),
        );
    }
    tables.push(
        table("control: discovery behind a source route is none", World::isolated()).to_pod(
            icmp(135, 0, [0; 4]).payload(&[0; 16]).between(PEER6, POD6).hop_limit(255).routing(1),
            DenyMalformed,
        ),
    );
    tables
}
