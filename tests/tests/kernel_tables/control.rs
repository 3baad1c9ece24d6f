//! What always passes: ARP, neighbour discovery, multicast listeners, DHCP (docs/semantics.md 7.5 to 7.9), and only where it can be what
//! it claims to be.

use std::net::Ipv6Addr;

use podgate_bpf::abi::{Reason, Startup};
use podgate_testkit::packet::{arp, arp_operation, arp_reply};

use crate::prelude::*;

/// Worlds in which nothing else would pass, and what an ordinary packet meets there.
fn strict() -> [(&'static str, World, Reason); 3] {
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
        // of a pod that is not registered nothing is known
        let foreign = if name == "unregistered" { AllowControl } else { DenySpoofed };
        let not_arp = if name == "isolated" { DenyNotIp } else { denied };
        tables.push(s7_5_arp(named("ARP"), world.clone(), foreign));
        tables.push(s7_5_arp_of_a_wrong_form(
            named("ARP of a wrong form"),
            world.clone(),
            if name == "unregistered" { denied } else { DenySpoofed },
            not_arp,
        ));
        tables.push(s7_6_neighbours(named("neighbours"), world.clone(), foreign));
        tables.push(s7_6_what_is_no_neighbour_discovery(
            named("no neighbours"),
            world.clone(),
            denied,
        ));
        tables.push(s7_7_routers(named("routers"), world.clone(), denied));
        tables.push(s7_8_multicast_listeners(named("multicast listeners"), world.clone(), denied));
        tables.push(s7_9_dhcp(named("DHCP"), world.clone(), denied));
        tables.push(s7_9_dhcpv6(named("DHCPv6"), world, denied));
    }
    tables.push(
        table("control: any pod may be a router without anti-spoofing", {
            World::isolated().without_anti_spoofing()
        })
        .from_pod(advertisement("fe80::5", "ff02::1", 16), AllowControl)
        .from_pod(arp_reply(PEER, NODE), AllowControl)
        .from_pod(about(136, "fe80::9", "ff02::1", PEER6), AllowControl)
        .from_pod(advertisement(POD6, "ff02::1", 16), DenyPolicy)
        .from_pod(advertisement("fe80::5", PEER6, 16), DenyPolicy),
    );
    tables.push(
        table("control: of a foreign address also where policy allows everything", World::open())
            .from_pod(advertisement("fe80::5", "ff02::1", 16), DenySpoofed)
            .from_pod(advertisement("fe80::5", "ff02::1", 16).hop_limit(64), DenySpoofed)
            .from_pod(redirect("fe80::5", POD6), DenySpoofed)
            .from_pod(about(136, POD6, "ff02::1", PEER6), DenySpoofed)
            .from_pod(arp_reply(PEER, NODE), DenySpoofed),
    );
    tables.push(
        table("control: of a link-local address of the node's", World::isolated().node("fe80::1"))
            .from_pod(about(136, "fe80::5", "ff02::1", "fe80::1"), DenySpoofed)
            .from_pod(about(136, "fe80::1", "ff02::1", POD6), DenySpoofed)
            .from_pod(about(136, "fe80::5", "ff02::1", "fe80::5"), AllowControl),
    );
    let padded = |mut frame: Vec<u8>| {
        frame.resize(65, 0);
        frame
    };
    let unread = || arp_operation(3, POD, PEER);
    tables.push(
        table("control: ARP of a wrong form also where policy allows everything", World::open())
            .from_pod(padded(arp_reply(PEER, NODE)), DenySpoofed)
            .from_pod(padded(arp_reply(POD, PEER)), DenySpoofed)
            .from_pod(unread(), DenySpoofed)
            .from_pod(arp(POD, PEER)[..41].to_vec(), DenySpoofed)
            .to_pod(padded(arp_reply(PEER, POD)), AllowPolicy)
            .to_pod(unread(), AllowPolicy),
    );
    tables.push(
        table("control: ARP of a wrong form without anti-spoofing", {
            World::open().without_anti_spoofing()
        })
        .from_pod(padded(arp_reply(PEER, NODE)), AllowPolicy)
        .from_pod(unread(), AllowPolicy),
    );
    let mac = [2, 0, 0, 0, 0, 2];
    let (own, another) = ("fe80::ff:fe00:2", "fe80::ff:fe00:3");
    tables.push(
        table("control: of a link-local address made of a hardware address", {
            World::isolated().mac(mac)
        })
        .from_pod(about(136, own, "ff02::1", own), AllowControl)
        .from_pod(about(135, "::", "ff02::1:ff00:2", own), AllowControl)
        .from_pod(about(135, "::", "ff02::1:ff00:3", another), DenySpoofed)
        .from_pod(about(136, own, "ff02::1", another), DenySpoofed)
        .from_pod(about(136, another, "ff02::1", POD6), DenySpoofed)
        .to_pod(about(135, another, own, own), AllowControl)
        .to_pod(about(135, another, another, another), DenySpoofed)
        .from_pod(arp(POD, PEER), AllowControl),
    );
    let at_another = |mut frame: Vec<u8>| {
        frame[14 + 13] = 9;
        frame
    };
    tables.push(
        table("control: ARP with a hardware address that is not the frame's", World::open())
            .from_pod(at_another(arp(POD, PEER)), DenySpoofed)
            .from_pod(at_another(arp_reply(POD, PEER)), DenySpoofed)
            .to_pod(at_another(arp_reply(PEER, POD)), AllowControl),
    );
    for (kind, hops) in [(138, 255), (129, 255), (144, 1), (132, 255), (128, 1)] {
        tables.push(
            table(format!("control: ICMPv6 {kind} with hop limit {hops} is none"), {
                World::isolated()
            })
            .to_pod(icmp(kind, 0, [0; 4]).between(PEER6, POD6).hop_limit(hops), DenyPolicy),
        );
    }
    // next header, reserved, neither an offset nor more fragments, identification (RFC 6946)
    let atomic = |packet: Ip| packet.extension_of(protocol::FRAGMENT, &[0; 8]);
    tables.push(
        table("control: discovery behind a fragment header is none", World::isolated())
            .to_pod(atomic(about(135, PEER6, POD6, POD6)), DenyPolicy)
            .to_pod(atomic(about(136, PEER6, POD6, PEER6)), DenyPolicy)
            .to_pod(atomic(advertisement("fe80::1", "ff02::1", 16)), DenyPolicy)
            .from_pod(atomic(about(136, POD6, "ff02::1", POD6)), DenyPolicy)
            .from_pod(atomic(about(136, POD6, "ff02::1", PEER6)), DenySpoofed)
            .from_pod(atomic(advertisement("fe80::5", "ff02::1", 16)), DenySpoofed),
    );
    tables.push(
        table("control: a question for an address lets in answers of its family", {
            World::isolated().node(NODE)
        })
        .from_pod(udp(68, 67).between("0.0.0.0", "255.255.255.255"), AllowControl)
        .to_pod(udp(547, 546).between("fe80::1", "fe80::5"), DenyPolicy)
        .to_pod(udp(67, 68).between(NODE, POD), AllowControl),
    );
    tables.push(
        table("control: a question for an IPv6 address lets in answers of its family", {
            World::isolated().node(NODE)
        })
        .from_pod(udp(546, 547).between("fe80::5", "ff02::1:2"), AllowControl)
        .to_pod(udp(67, 68).between(NODE, POD), DenyPolicy)
        .to_pod(udp(547, 546).between("fe80::1", "fe80::5"), AllowControl),
    );
    tables.push(
        table("control: discovery behind a source route is none", World::isolated())
            .to_pod(about(135, PEER6, POD6, POD6).routing(1), DenyMalformed),
    );
    tables
}

fn s7_5_arp(name: String, world: World, foreign: Reason) -> Table {
    table(name, world)
        .from_pod(arp(POD, PEER), AllowControl)
        .from_pod(arp_reply(POD, PEER), AllowControl)
        // announcement and probe
        .from_pod(arp(POD, POD), AllowControl)
        .from_pod(arp_reply(POD, POD), AllowControl)
        .from_pod(arp("0.0.0.0", POD), AllowControl)
        .from_pod(arp("0.0.0.0", PEER), foreign)
        .from_pod(arp_reply("0.0.0.0", POD), foreign)
        .from_pod(arp_reply(PEER, NODE), foreign)
        .from_pod(arp(PEER, PEER), foreign)
        .from_pod(arp(NODE, PEER), foreign)
        .to_pod(arp(PEER, POD), AllowControl)
        .to_pod(arp_reply(PEER, POD), AllowControl)
        .to_pod(arp(PEER, "10.0.0.77"), AllowControl)
        .to_pod(arp(PEER, PEER), AllowControl)
        .node_to_pod(arp(NODE, POD), AllowControl)
}

/// What a registered pod sends in such a form may be in any name.
fn s7_5_arp_of_a_wrong_form(name: String, world: World, sent: Reason, denied: Reason) -> Table {
    let with = |at: usize, byte: u8| {
        let mut frame = arp(POD, PEER);
        frame[14 + at] = byte;
        frame
    };
    let mut padded = arp(POD, PEER);
    padded.resize(60, 0);
    let mut long = arp(POD, PEER);
    long.resize(900, 0x55);
    let short = arp(POD, PEER)[..41].to_vec();
    table(name, world)
        .from_pod(padded, AllowControl)
        .from_pod(long.clone(), sent)
        .to_pod(long, denied)
        .from_pod(short, sent)
        .from_pod(with(1, 6), sent)
        .from_pod(with(2, 0x86), sent)
        .from_pod(with(4, 8), sent)
        .from_pod(with(5, 16), sent)
        .to_pod(arp_operation(3, PEER, POD), denied)
        .to_pod(arp_operation(0, PEER, POD), denied)
}

/// A solicitation (135) or an advertisement (136) about `target`, with a link-layer address.
fn about(kind: u8, source: &str, destination: &str, target: &str) -> Ip {
    let target: Ipv6Addr = target.parse().unwrap();
    icmp(kind, 0, [0; 4])
        .payload(&target.octets())
        .payload(&[if kind == 135 { 1 } else { 2 }, 1, 2, 0, 0, 0, 0, 2])
        .between(source, destination)
        .hop_limit(255)
}

/// A router advertisement of this many bytes.
fn advertisement(source: &str, destination: &str, length: usize) -> Ip {
    let body = vec![0; length - 8];
    icmp(134, 0, [64, 0, 0, 30]).payload(&body).between(source, destination).hop_limit(255)
}

fn redirect(source: &str, destination: &str) -> Ip {
    icmp(137, 0, [0; 4]).payload(&[0; 40]).between(source, destination).hop_limit(255)
}

fn s7_6_neighbours(name: String, world: World, foreign: Reason) -> Table {
    table(name, world.node(NODE6))
        .from_pod(about(135, POD6, "ff02::1:ff00:9", PEER6), AllowControl)
        .from_pod(about(135, "fe80::5", "ff02::1:ff00:9", PEER6), AllowControl)
        .from_pod(about(135, "::", "ff02::1:ff00:5", POD6), AllowControl)
        .from_pod(about(135, "::", "ff02::1:ff00:5", "fe80::5"), AllowControl)
        .from_pod(about(136, POD6, "ff02::1", POD6), AllowControl)
        .from_pod(about(136, POD6, NODE6, POD6), AllowControl)
        .from_pod(about(135, POD6, NODE6, NODE6), AllowControl)
        .from_pod(about(136, "fe80::5", "fe80::9", POD6), AllowControl)
        // with a nonce (RFC 7527)
        .from_pod(nonced(), AllowControl)
        .from_pod(icmp(133, 0, [0; 4]).between("fe80::5", "ff02::2").hop_limit(255), AllowControl)
        .to_pod(about(135, PEER6, "ff02::1:ff00:5", POD6), AllowControl)
        .to_pod(about(135, PEER6, POD6, POD6), AllowControl)
        .to_pod(about(136, PEER6, POD6, PEER6), AllowControl)
        .to_pod(about(136, PEER6, "ff02::1", PEER6), AllowControl)
        .to_pod(about(135, "::", "ff02::1:ff00:5", POD6), AllowControl)
        .from_pod(about(135, "::", "ff02::1:ff00:9", PEER6), foreign)
        .from_pod(about(136, POD6, "ff02::1", PEER6), foreign)
        .from_pod(about(136, PEER6, "ff02::1", PEER6), foreign)
        .from_pod(about(135, PEER6, "ff02::1:ff00:7", "fd00::7"), foreign)
        .to_pod(about(136, PEER6, "fd00::77", PEER6), foreign)
        .then("no flow", |lab| assert_eq!(lab.flows(), []))
}

fn nonced() -> Ip {
    let target: Ipv6Addr = POD6.parse().unwrap();
    icmp(135, 0, [0; 4])
        .payload(&target.octets())
        .payload(&[1, 1, 2, 0, 0, 0, 0, 2])
        .payload(&[14, 1, 1, 2, 3, 4, 5, 6])
        .between("::", "ff02::1:ff00:5")
        .hop_limit(255)
}

fn s7_6_what_is_no_neighbour_discovery(name: String, world: World, denied: Reason) -> Table {
    let long = |source: &str, destination: &str, target: &str| {
        let target: Ipv6Addr = target.parse().unwrap();
        let message = icmp(136, 0, [0; 4]).payload(&target.octets()).payload(&[0x55; 900]);
        message.between(source, destination).hop_limit(255)
    };
    let coded = icmp(135, 1, [0; 4]).payload(&[0; 24]).between(PEER6, "ff02::1:ff00:5");
    let short = icmp(135, 0, [0; 4]).payload(&[0; 8]).between(PEER6, "ff02::1:ff00:5");
    table(name, world)
        .from_pod(long(POD6, "ff02::1", POD6), denied)
        .from_pod(long(POD6, "2001:db8::7", POD6), denied)
        .to_pod(long(PEER6, POD6, PEER6), denied)
        .to_pod(about(135, PEER6, POD6, POD6).hop_limit(254), denied)
        .to_pod(about(136, PEER6, POD6, PEER6).hop_limit(64), denied)
        .from_pod(about(135, POD6, "ff02::1:ff00:9", PEER6).hop_limit(1), denied)
        .to_pod(coded.hop_limit(255), denied)
        .to_pod(short.hop_limit(255), denied)
        // a group of a site, and a target that is a group
        .from_pod(about(135, POD6, "ff05::1", PEER6), denied)
        .to_pod(about(136, PEER6, POD6, "ff02::1"), denied)
        .from_pod(icmp(133, 0, [0; 4]).between("fe80::5", PEER6).hop_limit(255), denied)
        .from_pod(
            icmp(133, 0, [0; 4]).payload(&[0; 200]).between("fe80::5", "ff02::2").hop_limit(255),
            denied,
        )
}

fn s7_7_routers(name: String, world: World, denied: Reason) -> Table {
    let foreign = if denied == DenyNoEndpoint { AllowControl } else { DenySpoofed };
    table(name, world.node("fe80::1"))
        .to_pod(advertisement("fe80::1", "ff02::1", 80), AllowControl)
        .to_pod(advertisement("fe80::1", "fe80::5", 80), AllowControl)
        .to_pod(advertisement(PEER6, "ff02::1", 80), denied)
        .to_pod(advertisement("fe80::1", POD6, 80), denied)
        .to_pod(advertisement("fe80::1", "ff02::1", 80).hop_limit(254), denied)
        .to_pod(advertisement("fe80::1", "ff02::1", 1288), denied)
        .to_pod(advertisement("fe80::1", "ff02::1", 12), denied)
        .from_pod(advertisement("fe80::5", "ff02::1", 16), foreign)
        .node_to_pod(redirect("fe80::1", POD6), AllowControl)
        .to_pod(redirect("fe80::1", POD6), denied)
        .node_to_pod(redirect(PEER6, POD6), denied)
        .from_pod(redirect("fe80::5", "fe80::9"), foreign)
}

fn s7_8_multicast_listeners(name: String, world: World, denied: Reason) -> Table {
    let message = |kind, length: usize, source: &str, to: &str| {
        let body = vec![0; length - 8];
        icmp(kind, 0, [0; 4]).payload(&body).between(source, to).hop_limit(1)
    };
    table(name, world)
        .from_pod(
            message(143, 28, "fe80::5", "ff02::16").extension(protocol::HOP_BY_HOP, 1),
            AllowControl,
        )
        .from_pod(message(143, 28, "::", "ff02::16"), AllowControl)
        .from_pod(message(131, 24, "fe80::5", "ff02::fb"), AllowControl)
        .from_pod(message(131, 24, "fe80::5", "ff05::fb"), AllowControl)
        .from_pod(message(132, 24, "fe80::5", "ff02::2"), AllowControl)
        .to_pod(message(130, 24, "fe80::1", "ff02::1"), AllowControl)
        .to_pod(message(130, 28, "fe80::1", "ff02::1"), AllowControl)
        .to_pod(message(143, 28, "fe80::1", "ff02::16"), AllowControl)
        .to_pod(message(130, 24, PEER6, POD6), denied)
        .from_pod(message(143, 28, POD6, PEER6), denied)
        .from_pod(message(143, 28, POD6, "ff02::16"), denied)
        .to_pod(message(130, 24, "fe80::1", POD6), denied)
        .to_pod(message(130, 24, "fe80::1", "ff02::1").hop_limit(2), denied)
        .to_pod(message(130, 24, "fe80::1", "ff02::1").hop_limit(255), denied)
        .from_pod(message(131, 900, "fe80::5", "ff02::fb"), denied)
        .from_pod(message(132, 32, "fe80::5", "ff02::2"), denied)
}

fn s7_9_dhcp(name: String, world: World, denied: Reason) -> Table {
    let (ask, offer) = (udp(68, 67).payload(&[0; 240]), udp(67, 68).payload(&[0; 240]));
    let unasked = offer.clone();
    let question = ask.clone().between("0.0.0.0", "255.255.255.255");
    let foreign = if denied == DenyNoEndpoint { AllowControl } else { DenySpoofed };
    table(name, world.node(NODE))
        .to_pod(unasked.clone().between(NODE, "255.255.255.255"), denied)
        .to_pod(unasked.between(NODE, POD), denied)
        .from_pod(question.clone(), AllowControl)
        .to_pod(offer.clone().between(NODE, "255.255.255.255"), AllowControl)
        .to_pod(offer.clone().between(NODE, POD), AllowControl)
        // an address that it does not have yet
        .to_pod(offer.clone().between(NODE, "10.0.0.77"), AllowControl)
        .to_pod(udp(67, 69).between(NODE, POD), denied)
        .to_pod(udp(68, 68).between(NODE, POD), denied)
        .to_pod(tcp(67, 68).syn().between(NODE, POD), denied)
        .to_pod(offer.clone().between(NODE, POD).fragment(7, 0, true), denied)
        .to_pod(raw(UDP, &[0; 64]).between(NODE, POD).fragment(7, 248, false), DenyFragment)
        .then("no flow", |lab| assert_eq!(lab.flows(), []))
        // a renewal crosses the network: policy speaks
        .from_pod(ask.clone().between(POD, NODE), denied)
        .from_pod(ask.between(PEER, "255.255.255.255"), foreign)
        .then("65 s pass", |lab| lab.age_expected(66))
        .to_pod(offer.clone().between(NODE, POD), denied)
        .from_pod(question, AllowControl)
        .to_pod(offer.between(NODE, POD), AllowControl)
}

fn s7_9_dhcpv6(name: String, world: World, denied: Reason) -> Table {
    let (ask, offer) = (udp(546, 547).payload(&[0; 64]), udp(547, 546).payload(&[0; 64]));
    table(name, world)
        .to_pod(offer.clone().between("fe80::1", "fe80::5"), denied)
        .from_pod(ask.clone().between("fe80::5", "ff02::1:2"), AllowControl)
        .to_pod(offer.clone().between("fe80::1", "fe80::5"), AllowControl)
        .from_pod(ask.clone().between("fe80::5", PEER6), denied)
        .from_pod(ask.between(POD6, PEER6), denied)
        .to_pod(offer.between(PEER6, POD6), denied)
        .to_pod(udp(547, 547).between("fe80::1", "fe80::5"), denied)
}
