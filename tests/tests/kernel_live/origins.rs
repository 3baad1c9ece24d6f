//! Who made a packet: real packets of every origin and shape towards a pod that nobody may reach, and what its gate takes
//! each for. The node's own pass; what it forwards under its address does not.

use std::net::{IpAddr, SocketAddr};

use nix::sys::socket::{setsockopt, sockopt};
use podgate_bpf::abi::Reason::{self, *};
use podgate_testkit::net::Net;
use podgate_testkit::packet::{Ip, Transport, icmp, protocol, raw, tcp, udp};
use podgate_testkit::wait::{WAIT_TIMEOUT, eventually};
use podgate_tests::kernel::hex;
use podgate_tests::netlab::{Lab, Tap};
use socket2::{Domain, SockAddr, Socket, Type};

use crate::Test;
use crate::node::{behind_the_node, nft};
use crate::talk::{Family, Ingress, Pod, Policed, Policy, SILENCE, datagrams, dial, listen};

pub(crate) const TESTS: &[Test] = &[
    ("origins_what_the_nodes_sockets_send", s9_1_sockets_of_the_node),
    ("origins_what_the_nodes_sockets_send_raw", s9_1_raw_sockets_of_the_node),
    ("origins_what_the_node_answers_to_others", answers),
    ("origins_what_the_node_forwards", forwarded),
    ("origins_what_crosses_the_bridge", bridged),
    ("origins_what_comes_out_of_a_tunnel", tunnelled),
    ("origins_what_carries_a_neighbours_frame", carrying),
];

/// In every packet of a row, so that its arrival can be seen.
const MARK: &[u8] = b"origin of a packet";
/// Where nobody listens.
const CLOSED: u16 = 9;

/// A node that masquerades what it sends to its pods, with somebody outside, and a pod that denies everything.
struct World<'a> {
    lab: &'a Lab,
    family: Family,
    pod: Pod,
    /// A neighbour without a gate.
    stranger: Pod,
    outside: Net,
    at_pod: Tap,
}

impl<'a> World<'a> {
    fn new(lab: &'a Lab, family: Family) -> Self {
        lab.own_node_address(lab.address(family));
        let pod = lab.gated(&Policy::isolated());
        let stranger = lab.pod();
        let outside = behind_the_node(lab);
        // Where a device wants room for a header that fragments from a veth do not have, the kernel copies them.
        lab.node.ip("link add vx0 type vxlan id 7 dstport 4789 remote 10.7.0.7 local 10.7.0.1
             link set vx0 master br0
             link set vx0 up");
        let at_pod = Tap::new(&pod.net, "eth0");
        let world = Self { lab, family, pod, stranger, outside, at_pod };
        // Link addresses are known, so that each row is one packet.
        let hello = world.own_socket(0);
        eventually("the node finds the pod", || {
            hello.send_to(b"hello", (world.to(), CLOSED)).unwrap();
            world.lab.count(Ingress, AllowOwnNode) > 0
        });
        world
    }

    fn to(&self) -> IpAddr {
        self.pod.address(self.family)
    }

    fn node(&self) -> IpAddr {
        self.lab.address(self.family)
    }

    fn far(&self) -> IpAddr {
        match self.family {
            Family::V4 => [10, 7, 0, 7].into(),
            Family::V6 => "fd07::7".parse().unwrap(),
        }
    }

    /// Nobody's, and the one source that the node does not masquerade.
    fn foreign(&self) -> IpAddr {
        match self.family {
            Family::V4 => [10, 10, 0, 1].into(),
            Family::V6 => "fd0a::1".parse().unwrap(),
        }
    }

    fn own_socket(&self, port: u16) -> std::net::UdpSocket {
        datagrams(&self.lab.node, self.node(), port)
    }

    fn v6(&self) -> bool {
        self.family == Family::V6
    }

    /// What the gate has counted for packets to the pod, but for what the link needs.
    fn counted(&self) -> Vec<(Reason, u64)> {
        let all = self.lab.counted().into_iter();
        all.filter(|(direction, reason, _)| *direction == Ingress && *reason != AllowControl)
            .map(|(_, reason, packets)| (reason, packets))
            .collect()
    }

    /// One row: what happens, and every reason that the gate counts for it.
    #[track_caller]
    fn row(&self, name: &str, send: impl FnOnce(), expected: &[Reason]) {
        let before = self.counted();
        let rose = || -> Vec<Reason> {
            let was = |reason| before.iter().find(|(r, _)| *r == reason).map_or(0, |(_, n)| *n);
            let now = self.counted().into_iter();
            now.filter(|(reason, n)| *n > was(*reason)).map(|(reason, _)| reason).collect()
        };
        self.at_pod.drain();
        send();
        eventually(&format!("{name}: the gate sees it"), || {
            expected.iter().all(|reason| rose().contains(reason))
        });
        std::thread::sleep(Lab::GRACE);
        let frames = self.at_pod.drain();
        let arrivals: Vec<String> = frames.iter().map(|frame| hex(frame)).collect();
        assert_eq!(rose(), expected, "{name} ({}), at the pod: {arrivals:#?}", self.family.name());
        let passes = expected.iter().all(|reason| !reason.is_denial());
        let is_marked = |frame: &Vec<u8>| frame.windows(MARK.len()).any(|bytes| bytes == MARK);
        let arrived = frames.iter().any(is_marked);
        assert!(passes || !arrived, "{name}: refused, and there all the same");
    }

    fn packet(&self, from: IpAddr, transport: Transport) -> Ip {
        transport.between(&from.to_string(), &self.to().to_string())
    }

    /// A datagram to a port of its own for each row.
    fn datagram(&self, from: IpAddr, port: u16) -> Ip {
        self.packet(from, udp(4000, port).payload(MARK))
    }

    fn long(&self, from: IpAddr, port: u16) -> Ip {
        self.packet(from, udp(4000, port).payload(MARK).payload(&[0x55; 2990 - MARK.len()]))
    }

    /// The same packet with what may stand between the IP header and the transport's.
    fn with_options(&self, packet: Ip) -> Ip {
        if self.v6() { packet.extension(protocol::DESTINATION, 1) } else { packet.header_words(6) }
    }

    /// Sends packets as they are, through the routing of a namespace.
    fn send_raw(&self, net: &Net, packets: &[Vec<u8>]) {
        let domain = if self.v6() { Domain::IPV6 } else { Domain::IPV4 };
        let socket = net.run(|| Socket::new(domain, Type::RAW, Some(255.into()))).unwrap();
        for packet in packets {
            socket.send_to(packet, &SockAddr::from(SocketAddr::new(self.to(), 0))).unwrap();
        }
    }

    /// Sends a packet as a frame to the pod's link address.
    fn send_frame(&self, from: &Net, link: &str, packet: &Ip) {
        let mut frame = packet.frame();
        frame[..6].copy_from_slice(&self.pod.net.mac("eth0").unwrap());
        frame[6..12].copy_from_slice(&from.mac(link).unwrap());
        Tap::new(from, link).send(&frame);
    }
}

/// The fragments of a packet, without their frames.
fn pieces(packet: &Ip) -> Vec<Vec<u8>> {
    packet.in_fragments(77, 1400).into_iter().map(|frame| frame[14..].to_vec()).collect()
}

fn s9_1_sockets_of_the_node(lab: &Lab, family: Family) {
    let world = World::new(lab, family);
    let listener = listen(&world.pod.net, world.to(), 80);
    world.row(
        "connect",
        || drop(dial(&lab.node, SocketAddr::new(world.to(), 80), WAIT_TIMEOUT).unwrap()),
        &[AllowFlow, AllowOwnNode],
    );
    drop(listener);
    let refused =
        || assert!(dial(&lab.node, SocketAddr::new(world.to(), 81), WAIT_TIMEOUT).is_err());
    world.row("connect to a closed port", refused, &[AllowOwnNode]);
    world.row(
        "datagram",
        || assert!(world.own_socket(0).send_to(MARK, (world.to(), 1)).is_ok()),
        &[AllowOwnNode],
    );
    world.row(
        "datagram in fragments",
        || {
            world.own_socket(0).send_to(&[0x55; 8000], (world.to(), 2)).unwrap();
        },
        &[AllowFlow, AllowOwnNode],
    );
    // As kube-proxy translates the connections of the node's processes.
    let (service, ip) = match family {
        Family::V4 => ("10.96.0.1", "ip"),
        Family::V6 => ("fd00:10:96::1", "ip6"),
    };
    nft(
        lab,
        &format!(
            "table {ip} services {{
                chain out {{
                    type nat hook output priority -100;
                    {ip} daddr {service} udp dport 53 dnat to {};
                }}
            }}",
            world.to()
        ),
    );
    lab.node.ip(&format!("route add {service} dev br0"));
    world.row(
        "datagram to a service",
        || assert!(world.own_socket(0).send_to(MARK, (service, 53)).is_ok()),
        &[AllowOwnNode],
    );
    world.row(
        "echo request",
        || world.send_raw(&lab.node, &[world.packet(world.node(), echo(&world, 9)).packet()]),
        &[AllowOwnNode],
    );
    // A transparent proxy sends on under its client's address.
    lab.node.ip(&format!(
        "route add local {} dev lo table 100",
        if world.v6() { "fd0a::1/128" } else { "10.10.0.1/32" }
    ));
    let foreign = world.foreign();
    world.row(
        "datagram of a transparent proxy",
        || {
            let domain = if world.v6() { Domain::IPV6 } else { Domain::IPV4 };
            let socket = lab.node.run(|| Socket::new(domain, Type::DGRAM, None)).unwrap();
            setsockopt(&socket, sockopt::IpTransparent, &true).unwrap();
            socket.bind(&SocketAddr::new(foreign, 4000).into()).unwrap();
            socket.send_to(MARK, &SocketAddr::new(world.to(), 3).into()).unwrap();
        },
        &[DenyPolicy],
    );
}

fn echo(world: &World<'_>, id: u8) -> Transport {
    icmp(if world.v6() { 128 } else { 8 }, 0, [0, id, 0, 1]).payload(MARK)
}

/// Shapes that only a raw socket of the node sends.
fn s9_1_raw_sockets_of_the_node(lab: &Lab, family: Family) {
    let world = World::new(lab, family);
    let (own, foreign) = (world.node(), world.foreign());
    for (name, from, expected) in
        [("own", own, AllowOwnNode), ("spoofed by the node", foreign, DenyPolicy)]
    {
        let row = |shape: &str, packets: &[Vec<u8>], expected: &[Reason]| {
            let what = format!("{shape}, {name}");
            world.row(&what, || world.send_raw(&lab.node, packets), expected);
        };
        row("whole", &[world.datagram(from, 11).packet()], &[expected]);
        row("options", &[world.with_options(world.datagram(from, 12)).packet()], &[expected]);
        let of_fragments: &[Reason] =
            if from == own { &[AllowFlow, AllowOwnNode] } else { &[DenyPolicy, DenyFragment] };
        row("fragments", &pieces(&world.long(from, 13)), of_fragments);
        row("SYN", &[world.packet(from, tcp(4000, 14).syn()).packet()], &[expected]);
        row("ACK", &[world.packet(from, tcp(4001, 14).ack()).packet()], &[DenyPolicy]);
        row("another protocol", &[world.packet(from, raw(253, MARK)).packet()], &[expected]);
        // Who writes frames on the node is the node.
        world.row(
            &format!("frame, {name}"),
            || world.send_frame(&lab.node, "br0", &world.datagram(from, 15)),
            &[expected],
        );
    }
}

/// A stranger asks the node in the pod's name, and the node's stack answers the pod.
fn answers(lab: &Lab, family: Family) {
    let world = World::new(lab, family);
    let server = listen(&lab.node, world.node(), 7000);
    let (pod, node) = (world.to().to_string(), world.node().to_string());
    let ask = |transport: Transport| {
        let mut frame = transport.between(&pod, &node).frame();
        frame[..6].copy_from_slice(&lab.node.mac("br0").unwrap());
        frame[6..12].copy_from_slice(&world.stranger.net.mac("eth0").unwrap());
        Tap::new(&world.stranger.net, "eth0").send(&frame);
    };
    world.row("echo reply", || ask(echo(&world, 1)), &[DenyPolicy]);
    world.row("SYN-ACK", || ask(tcp(5000, 7000).syn()), &[DenyPolicy]);
    world.row("port unreachable", || ask(udp(5000, 7001).payload(MARK)), &[DenyPolicy]);
    // It says nothing, and opens nothing.
    // IPv6's resets have no socket on them where none was asked for.
    let reset = if world.v6() { DenyPolicy } else { AllowOwnNode };
    world.row("reset", || ask(tcp(5000, 7002).syn()), &[reset]);
    drop(server);
}

/// What comes in from outside and goes on to the pod under the node's address.
fn forwarded(lab: &Lab, family: Family) {
    let world = World::new(lab, family);
    let from = world.far();
    let row = |shape: &str, packets: &[Vec<u8>], expected: &[Reason]| {
        world.row(shape, || world.send_raw(&world.outside, packets), expected);
    };
    row("whole", &[world.datagram(from, 21).packet()], &[DenyPolicy]);
    row("options", &[world.with_options(world.datagram(from, 22)).packet()], &[DenyPolicy]);
    row("fragments", &pieces(&world.long(from, 23)), &[DenyPolicy, DenyFragment]);
    row(
        "fragments with options",
        &pieces(&world.with_options(world.long(from, 24))),
        &[DenyPolicy, DenyFragment],
    );
    row("SYN", &[world.packet(from, tcp(4000, 25).syn()).packet()], &[DenyPolicy]);
    row(
        "SYN in fragments",
        &pieces(&world.packet(from, tcp(4000, 26).syn().payload(&[0x55; 2980]))),
        &[DenyPolicy, DenyFragment],
    );
    row("echo request", &[world.packet(from, echo(&world, 2)).packet()], &[DenyPolicy]);
    // Where the gate of an allowed flow stands open for the node, it does not for others.
    let policy = Policy::isolated().open_for(Policed::Egress);
    lab.set_policy(&world.pod, &policy);
    let listener = listen(&world.pod.net, world.to(), 80);
    let to = SocketAddr::new(world.to(), 80);
    assert!(dial(&world.outside, to, SILENCE).is_err(), "connects from outside");
    drop(dial(&lab.node, to, WAIT_TIMEOUT).unwrap());
    drop(listener);
}

/// A neighbour's packets: the bridge hands them on with the neighbour's socket still on them, or, with br_netfilter, tracked,
/// masqueraded and taken apart again.
fn bridged(lab: &Lab, family: Family) {
    let world = World::new(lab, family);
    let neighbour = world.stranger.address(family);
    for tracked in ["0", "1"] {
        for table in ["iptables", "ip6tables"] {
            lab.node.sysctl(&format!("bridge/bridge-nf-call-{table}"), tracked);
        }
        let own = if tracked == "1" { 40 } else { 30 };
        let row = |shape: &str, packets: &[Vec<u8>], expected: &[Reason]| {
            let what = format!("{shape}, br_netfilter {tracked}");
            world.row(&what, || world.send_raw(&world.stranger.net, packets), expected);
        };
        row("whole", &[world.datagram(neighbour, own).packet()], &[DenyPolicy]);
        row(
            "options",
            &[world.with_options(world.datagram(neighbour, own + 1)).packet()],
            &[DenyPolicy],
        );
        row("fragments", &pieces(&world.long(neighbour, own + 2)), &[DenyPolicy, DenyFragment]);
        let what = format!("a socket's fragments, br_netfilter {tracked}");
        let socket = datagrams(&world.stranger.net, neighbour, 0);
        world.row(
            &what,
            || assert!(socket.send_to(&[0x55; 3000], (world.to(), own + 3)).is_ok()),
            &[DenyPolicy, DenyFragment],
        );
        // In the node's name.
        let what = format!("spoofed, br_netfilter {tracked}");
        let spoofed = [
            world.datagram(world.node(), own + 4),
            world.with_options(world.datagram(world.node(), own + 5)),
        ];
        for packet in &spoofed {
            let send = || world.send_frame(&world.stranger.net, "eth0", packet);
            world.row(&what, send, &[DenyPolicy]);
        }
    }
}

/// What arrives through a tunnel whose end is a port of the bridge.
fn tunnelled(lab: &Lab, family: Family) {
    let world = World::new(lab, family);
    let vxlan = datagrams(&world.outside, [10, 7, 0, 7].into(), 4789);
    let send = |packet: &Ip| {
        let mut frame = packet.frame();
        frame[..6].copy_from_slice(&world.pod.net.mac("eth0").unwrap());
        let header = [8, 0, 0, 0, 0, 0, 7, 0];
        let sent = vxlan.send_to(&[&header[..], &frame].concat(), ("10.7.0.1", 4789));
        sent.unwrap();
    };
    for (name, from) in [("another's", world.far()), ("in the node's name", world.node())] {
        let plain = world.datagram(from, 51);
        world.row(&format!("whole, {name}"), || send(&plain), &[DenyPolicy]);
        let options = world.with_options(world.datagram(from, 52));
        world.row(&format!("options, {name}"), || send(&options), &[DenyPolicy]);
    }
}

/// The outer packet of a tunnel to the pod: no interface has received it, it comes from the node's address, and the
/// socket on it is that of the neighbour who sent what is inside.
fn carrying(lab: &Lab, family: Family) {
    let world = World::new(lab, family);
    for table in ["iptables", "ip6tables"] {
        lab.node.sysctl(&format!("bridge/bridge-nf-call-{table}"), "0");
    }
    let (to, node) = (world.to(), world.node());
    lab.node.ip(&format!(
        "link add vx1 type vxlan id 8 dstport 4790 remote {to} local {node}
         link set vx1 master br0
         link set vx1 type bridge_slave flood off mcast_flood off bcast_flood off learning off
         link set vx1 up"
    ));
    let added = lab.node.run(|| {
        let mut bridge = std::process::Command::new("bridge");
        bridge.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        bridge.args("fdb add 02:00:00:00:00:77 dev vx1 master static".split(' ')).status()
    });
    assert!(added.unwrap().success(), "bridge refuses (Debian: apt-get install iproute2)");
    let sender = world.stranger.net.mac("eth0").unwrap();
    let mut frame = world.datagram(world.stranger.address(family), 61).frame();
    frame[..6].copy_from_slice(&[2, 0, 0, 0, 0, 0x77]);
    frame[6..12].copy_from_slice(&sender);
    let tap = Tap::new(&world.stranger.net, "eth0");
    // The node's own multicast messages leave by every port of its bridge, so counters alone do not tell.
    for _ in 0..3 {
        let refused = lab.count(Ingress, DenyPolicy);
        world.at_pod.drain();
        tap.send(&frame);
        eventually("the outer packet is refused", || lab.count(Ingress, DenyPolicy) > refused);
        let is_marked = |frame: &[u8]| frame.windows(MARK.len()).any(|bytes| bytes == MARK);
        assert!(!world.at_pod.sees(Lab::GRACE, is_marked), "refused, and there all the same");
    }
}
