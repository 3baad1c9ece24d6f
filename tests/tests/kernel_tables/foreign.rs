//! What is no plain IP (docs/semantics.md 8.7 to 8.9): VLANs, tunnels, other ethertypes; multicast and broadcast.

use podgate_bpf::abi::Startup;
use podgate_testkit::packet::{arp, ethernet, vlan};

use crate::prelude::*;

/// Frames of which policy cannot speak.
fn frames() -> Vec<(&'static str, Vec<u8>)> {
    let inside = V4.back(tcp(40000, 80).syn()).frame();
    vec![
        ("VLAN", vlan(7, &inside)),
        ("priority tag", vlan(0, &inside)),
        ("VLAN in VLAN", vlan(7, &vlan(8, &inside))),
        ("VLAN with IPv6", vlan(7, &V6.back(tcp(40000, 80).syn()).frame())),
        ("VLAN with ARP", vlan(7, &arp(PEER, POD))),
        ("802.1ad", ethernet(0x88a8, &inside[12..])),
        ("MPLS", ethernet(0x8847, &inside[10..])),
        ("PPPoE", ethernet(0x8864, &inside)),
        ("EAPOL", ethernet(0x888e, &[1; 46])),
        ("LLDP", ethernet(0x88cc, &[1; 46])),
        ("RARP", ethernet(0x8035, &[1; 46])),
        ("802.3 with LLC", ethernet(38, &[0x42; 46])),
        ("an unknown ethertype", ethernet(0x9999, &inside)),
        ("ethertype 0", ethernet(0, &inside)),
    ]
}

pub(crate) fn tables() -> Vec<Table> {
    let mut tables = s8_7_frames_that_are_not_ip();
    tables.extend(s8_8_tunnels());
    tables.extend(s8_9_multicast_and_broadcast());
    tables
}

fn s8_7_frames_that_are_not_ip() -> Vec<Table> {
    let mut tables = Vec::new();
    for (name, frame) in frames() {
        // behind a tag may stand any name
        let sent =
            |met| if matches!(frame[12..14], [0x81, 0] | [0x88, 0xa8]) { DenySpoofed } else { met };
        let frame = || frame.clone();
        let named = |where_: &str| format!("foreign: {name}, {where_}");
        tables.extend([
            table(named("isolated"), web().allow(Ingress, ANY, Ports::All(TCP)))
                .to_pod(frame(), DenyNotIp)
                .from_pod(frame(), sent(DenyNotIp)),
            table(named("isolated in one direction"), World::isolated().not_isolated(Ingress))
                .to_pod(frame(), AllowPolicy)
                .from_pod(frame(), sent(DenyNotIp)),
            table(named("not isolated"), World::open())
                .to_pod(frame(), AllowPolicy)
                .from_pod(frame(), sent(AllowPolicy))
                .then("no flow", |lab| assert_eq!(lab.flows(), [])),
            table(named("not isolated, without anti-spoofing"), {
                World::open().without_anti_spoofing()
            })
            .to_pod(frame(), AllowPolicy)
            .from_pod(frame(), AllowPolicy),
            table(named("everything allowed to one class"), {
                World::isolated().allow(Ingress, 1, Ports::Every).peer(PEER, 1).net("::", 0, 1)
            })
            .to_pod(frame(), DenyNotIp),
            table(named("held"), World::unprogrammed(Startup::Hold))
                .to_pod(frame(), DenyStartup)
                .node_to_pod(frame(), DenyStartup)
                .from_pod(frame(), sent(DenyStartup)),
            table(named("open at startup"), World::unprogrammed(Startup::Open))
                .to_pod(frame(), AllowStartup)
                .from_pod(frame(), sent(AllowStartup)),
            table(named("unregistered"), World::unregistered())
                .to_pod(frame(), DenyNoEndpoint)
                .from_pod(frame(), DenyNoEndpoint),
        ]);
    }
    tables
}

fn s8_8_tunnels() -> Vec<Table> {
    both(|f| {
        let inside = f.back(tcp(40000, 80).syn()).packet();
        let number = if f.icmp == ICMP { protocol::IPIP } else { 41 };
        let gre = [&[0, 0, 8, 0], inside.as_slice()].concat();
        let all_ports =
            || web().allow(Ingress, ANY, Ports::All(TCP)).allow(Egress, ANY, Ports::All(TCP));
        vec![
            table(f.named("tunnels: IP in IP is not what it carries"), all_ports())
                .to_pod(f.back(raw(number, &inside)), DenyPolicy)
                .from_pod(f.out(raw(number, &inside)), DenyPolicy),
            table(f.named("tunnels: GRE is not what it carries"), all_ports())
                .to_pod(f.back(raw(protocol::GRE, &gre)), DenyPolicy),
            table(f.named("tunnels: ESP is not what it may carry"), all_ports())
                .to_pod(f.back(raw(protocol::ESP, &inside)), DenyPolicy),
        ]
    })
}

fn s8_9_multicast_and_broadcast() -> Vec<Table> {
    let to = |group: &str, pod: &str| udp(5353, 5353).payload(&[0; 20]).between(pod, group);
    let mut tables = Vec::new();
    for (pod, group, length) in [
        (POD, "224.0.0.251", 4),
        (POD, "255.255.255.255", 32),
        (POD, "10.0.0.255", 24),
        (POD6, "ff02::fb", 8),
    ] {
        tables.extend([
            table(format!("groups: to {group}, isolated"), World::isolated())
                .from_pod(to(group, pod), DenyPolicy),
            table(format!("groups: to {group}, an external address like others"), {
                World::isolated().allow(Egress, 1, Ports::One(UDP, 5353)).net(group, length, 1)
            })
            .from_pod(to(group, pod), AllowPolicy),
        ]);
    }
    let (pod, peer) = ("224.0.0.251", PEER);
    tables.push(
        table("groups: from another to a group that the pod is in", World::isolated())
            .to_pod(udp(5353, 5353).between(peer, pod), DenyPolicy)
            .to_pod(raw(2, &[0x11, 0, 0, 0, 0, 0, 0, 0]).between(NODE, "224.0.0.1"), DenyPolicy),
    );
    tables.push(
        table("groups: an answer to a multicast question is a flow of its own", {
            World::isolated().not_isolated(Egress)
        })
        .from_pod(to("224.0.0.251", POD), AllowPolicy)
        .to_pod(udp(5353, 5353).between(PEER, POD), DenyPolicy),
    );
    tables
}
