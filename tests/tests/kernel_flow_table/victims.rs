//! One pod floods, a hundred others have flows of every kind.

use podgate_bpf::abi::Direction::{Egress, Ingress};
use podgate_bpf::abi::Stat;
use podgate_testkit::packet::{Transport, icmp, tcp, udp};

use crate::node::{Node, Pod, TCP, UDP, peer};

const OTHERS: usize = 100;
const PEERS: [&str; 2] = ["192.0.2.9", "2001:db8::9"];
const SERVICES: [&str; 2] = ["10.96.0.10", "fd00:10:96::a"];

/// Each flow of these pods passes as that only: both directions are isolated, and no rule covers an answer.
fn policy(node: &Node, pod: &Pod) {
    let ports = [(TCP, 80), (UDP, 53), (TCP, 8080), (UDP, 5353)];
    let both = ports.iter().flat_map(|port| [(Egress, Some(*port)), (Ingress, Some(*port))]);
    node.allow(pod, &both.collect::<Vec<_>>());
}

/// The flows of one pod and family. Client first and server first, direct and through services.
struct Flows<'a> {
    node: &'a Node,
    pod: &'a Pod,
    family: usize,
}

impl Flows<'_> {
    fn sends(&self, transport: Transport) {
        let frame = self.pod.to(self.family, transport, PEERS[self.family]);
        self.node.passes(self.pod, Egress, &frame);
    }

    fn gets(&self, transport: Transport) {
        let frame = self.pod.from(self.family, transport, PEERS[self.family]);
        self.node.passes(self.pod, Ingress, &frame);
    }

    /// To the service, which becomes one to the endpoint.
    fn asks(&self, sent: Transport, leaves: Transport) {
        let sent = self.pod.to(self.family, sent, SERVICES[self.family]);
        let leaves = self.pod.to(self.family, leaves, PEERS[self.family]);
        self.node.becomes(self.pod, Egress, &sent, &leaves);
    }

    /// From the endpoint, which becomes one from the service.
    fn hears(&self, came: Transport, seen: Transport) {
        let came = self.pod.from(self.family, came, PEERS[self.family]);
        let seen = self.pod.from(self.family, seen, SERVICES[self.family]);
        self.node.becomes(self.pod, Ingress, &came, &seen);
    }

    fn open(&self) {
        // two connections of the pod's own, and two to it
        for port in [40001, 40002] {
            self.sends(tcp(port, 80).syn());
            self.gets(tcp(80, port).syn_ack());
            self.sends(tcp(port, 80).ack());
            self.gets(tcp(port, 80).syn());
            self.sends(tcp(80, port).syn_ack());
            self.gets(tcp(port, 80).ack());
        }
        // two through a service
        for port in [41001, 41002] {
            self.asks(tcp(port, 81).syn(), tcp(port, 8080).syn());
            self.hears(tcp(8080, port).syn_ack(), tcp(81, port).syn_ack());
            self.asks(tcp(port, 81).ack(), tcp(port, 8080).ack());
        }
        self.busy();
    }

    /// Datagrams go back and forth all the time.
    fn busy(&self) {
        self.sends(udp(42001, 53));
        self.gets(udp(53, 42001));
        self.gets(udp(42001, 53));
        self.sends(udp(53, 42001));
        self.asks(udp(42002, 54), udp(42002, 5353));
        self.hears(udp(5353, 42002), udp(54, 42002));
    }

    /// After a long silence: of each two connections one goes on with what its client says, one with the server.
    fn quiet(&self) {
        self.sends(tcp(40001, 80).ack());
        self.gets(tcp(80, 40001).ack());
        self.gets(tcp(80, 40002).ack());
        self.sends(tcp(40002, 80).ack());
        self.gets(tcp(40001, 80).ack());
        self.sends(tcp(80, 40001).ack());
        self.sends(tcp(80, 40002).ack());
        self.gets(tcp(40002, 80).ack());
        self.asks(tcp(41001, 81).ack(), tcp(41001, 8080).ack());
        self.hears(tcp(8080, 41001).ack(), tcp(81, 41001).ack());
        self.hears(tcp(8080, 41002).ack(), tcp(81, 41002).ack());
        self.asks(tcp(41002, 81).ack(), tcp(41002, 8080).ack());
    }
}

/// Opens one flow after the other, in each way that there is.
fn open_one(node: &Node, pod: &Pod, n: u32) {
    let family = (n % 2) as usize;
    let n = n / 2;
    let port = 1024 + (n / 6 % 60_000) as u16;
    let round = n / 6 / 60_000;
    let (kind, one) = (n % 6, peer(family, 0x0a_0000 + round));
    let sends = |transport, to: &str| node.passes(pod, Egress, &pod.to(family, transport, to));
    let gets =
        |transport, from: &str| node.passes(pod, Ingress, &pod.from(family, transport, from));
    match kind {
        // silent: nobody answers
        0 => sends(udp(port, 7), &one),
        // sprayed over peers
        1 => sends(udp(7000, 7), &peer(family, n)),
        // answered by a friend
        2 => {
            sends(udp(port, 8), &one);
            gets(udp(8, port), &one);
        }
        3 => {
            sends(tcp(port, 9).syn(), &one);
            gets(tcp(9, port).syn_ack(), &one);
            sends(tcp(port, 9).ack(), &one);
        }
        // through the service, of which it is two entries
        4 => {
            let (action, _) =
                node.run(pod, Egress, &pod.to(family, udp(port, 54), SERVICES[family]));
            assert_eq!(action, -1);
        }
        // opened by friends, or an echo
        _ if n.is_multiple_of(2) => gets(tcp(port, 80).syn(), &one),
        _ => {
            let kind = if family == 0 { 8 } else { 128 };
            let [high, low] = port.to_be_bytes();
            sends(icmp(kind, 0, [high, low, 0, 1]), &one);
        }
    }
}

pub(crate) fn flood() {
    let node = Node::new(OTHERS + 1);
    let (hog, others) = node.pods.split_first().unwrap();
    node.open(hog);
    for family in 0..2 {
        let id = family as u32 * 2;
        node.serve(id + 1, (SERVICES[family], 81), TCP, (PEERS[family], 8080));
        node.serve(id + 2, (SERVICES[family], 54), UDP, (PEERS[family], 5353));
    }
    for pod in others {
        policy(&node, pod);
    }
    node.datapath.maps.control().bump_epoch();
    let flows = || {
        let of = |pod| (0..2).map(move |family| (pod, family));
        others.iter().flat_map(of).map(|(pod, family)| Flows { node: &node, pod, family })
    };
    flows().for_each(|flows| flows.open());
    let total = crate::node::flood();
    for n in 0..total {
        open_one(&node, hog, n);
        if n % (total / 20).max(1) == 0 {
            flows().for_each(|flows| flows.busy());
        }
    }
    flows().for_each(|flows| flows.quiet());
    flows().for_each(|flows| flows.busy());
    // it was a flood, and it cost its own pod only
    for (family, name) in [(0, "IPv4"), (1, "IPv6")] {
        let ring = node.ring(hog, family);
        println!("{name}: the flood has {} places, {} flows evicted", ring.high, ring.evicted);
        assert!(ring.high > crate::node::table() / 4, "much of the table: {ring:?}");
        assert!(ring.high < crate::node::table() / 2, "{ring:?}");
        assert!(ring.evicted > u64::from(total / 8), "{ring:?}");
        for pod in others {
            assert_eq!(node.ring(pod, family).evicted, 0);
        }
    }
    let evicted: u64 = (0..2).map(|family| node.ring(hog, family).evicted).sum();
    assert_eq!(node.stat(Stat::FlowEvicted), evicted);
    assert_eq!(node.stat(Stat::FlowLost), 0);
}
