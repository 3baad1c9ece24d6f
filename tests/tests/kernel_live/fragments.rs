//! Datagrams that the sender's kernel has to take apart.

use podgate_bpf::abi::Reason;
use podgate_testkit::wait::{WAIT_TIMEOUT, eventually};
use podgate_tests::netlab::Lab;

use crate::Test;
use crate::talk::*;

pub(crate) const TESTS: &[Test] = &[
    ("allowed_datagrams_of_8_kb_arrive_whole_both_ways", allowed),
    ("the_nodes_own_datagrams_of_8_kb_reach_an_isolated_pod", from_the_node),
    ("denied_datagrams_of_8_kb_leave_nothing_behind_the_gate", denied_at_the_receiver),
    ("denied_datagrams_of_8_kb_do_not_leave_their_pod", denied_at_the_sender),
];

fn datagram(seed: u8) -> Vec<u8> {
    (0..8192_u32).map(|n| (n as u8).wrapping_mul(31) ^ seed).collect()
}

fn allowed(lab: &Lab, family: Family) {
    let client = lab.gated(&Policy::isolated().allow(Policed::Egress, Protocol::Udp, PORT));
    let server = lab.gated(&Policy::isolated().allow(Policed::Ingress, Protocol::Udp, PORT));
    let ends = udp(&client, &server, family, PORT);
    for round in 0..20 {
        ends.client.say(&datagram(round));
        assert_eq!(
            ends.server.hear(8192, WAIT_TIMEOUT),
            Some(datagram(round)),
            "{:?}",
            lab.counted()
        );
        ends.server.say(&datagram(!round));
        assert_eq!(
            ends.client.hear(8192, WAIT_TIMEOUT),
            Some(datagram(!round)),
            "{:?}",
            lab.counted()
        );
        lab.datapath.maps.control().bump_epoch();
    }
    nothing_denied(lab);
}

/// Each fragment of them is the node's own, and the answers' are of that flow.
fn from_the_node(lab: &Lab, family: Family) {
    lab.own_node_address(lab.address(family));
    let pod = lab.gated(&Policy::isolated());
    let node = datagrams(&lab.node, lab.address(family), 0);
    let server = datagrams(&pod.net, pod.address(family), PORT);
    node.connect(server.local_addr().unwrap()).unwrap();
    server.connect(node.local_addr().unwrap()).unwrap();
    for round in 0..5 {
        node.say(&datagram(round));
        assert_eq!(server.hear(8192, WAIT_TIMEOUT), Some(datagram(round)), "{:?}", lab.counted());
        server.say(&datagram(!round));
        assert_eq!(node.hear(8192, WAIT_TIMEOUT), Some(datagram(!round)), "{:?}", lab.counted());
        lab.datapath.maps.control().bump_epoch();
    }
    nothing_denied(lab);
}

/// Another port of the pod is allowed, so fragments might pass that come ahead of their first.
fn denied_at_the_receiver(lab: &Lab, family: Family) {
    let (client, server) = (lab.pod(), lab.gated(&port(Policy::isolated(), Policed::Ingress)));
    let (ends, watch) =
        (udp(&client, &server, family, PORT + 1), Watch::new(&client, &server, family));
    watch.begin();
    for round in 0..5 {
        ends.client.say(&datagram(round));
    }
    eventually("the first fragments are refused", || refused(lab, Ingress) == 5);
    assert_eq!(ends.server.hear(8192, SILENCE), None);
    assert_eq!(watch.arrived().1, 0, "fragments arrive");
    assert_eq!(refused(lab, Ingress), 5, "first fragments: {:?}", lab.counted());
    assert_eq!(lab.count(Ingress, Reason::DenyFragment), 5 * 5, "later ones: {:?}", lab.counted());
}

fn denied_at_the_sender(lab: &Lab, family: Family) {
    let (client, server) = (lab.gated(&port(Policy::isolated(), Policed::Egress)), lab.pod());
    let (ends, watch) =
        (udp(&client, &server, family, PORT + 1), Watch::new(&client, &server, family));
    watch.begin();
    for round in 0..5 {
        ends.client.say(&datagram(round));
    }
    // neighbour discovery comes first
    eventually("the first fragments are refused", || refused(lab, Egress) == 5);
    assert_eq!(ends.server.hear(8192, SILENCE), None);
    assert_eq!(watch.arrived().1, 0, "fragments arrive");
    assert_eq!(refused(lab, Egress), 5, "first fragments: {:?}", lab.counted());
}
