//! The node's own probes, those who look like them, and pods that look like others.

use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::process::{Command, Stdio};
use std::time::Duration;

use podgate_bpf::abi::Reason;
use podgate_testkit::net::Net;
use podgate_testkit::wait::{WAIT_TIMEOUT, eventually};
use podgate_tests::netlab::Lab;

use crate::Test;
use crate::talk::*;

pub(crate) const TESTS: &[Test] = &[
    ("the_nodes_own_probes_reach_an_isolated_pod", probes),
    ("a_probes_answer_survives_changes_of_policy", probe_lives_on),
    ("an_address_that_is_not_the_nodes_gets_no_probe_through", unlisted_address),
    ("traffic_that_the_node_masquerades_is_not_its_own", masqueraded),
    ("a_pod_sends_nothing_in_anothers_name", spoofing),
];

fn probes(lab: &Lab, family: Family) {
    lab.own_node_address(lab.address(family));
    let pod = lab.gated(&Policy::isolated());
    let listener = listen(&pod.net, pod.address(family), PORT);
    let to = SocketAddr::new(pod.address(family), PORT);
    for _ in 0..3 {
        let stream = dial(&lab.node, to, WAIT_TIMEOUT).unwrap();
        assert_eq!(stream.local_addr().unwrap().ip(), lab.address(family));
        Ends { client: stream, server: accept(&listener) }.exchange("a probe");
    }
    assert!(lab.count(Ingress, Reason::AllowOwnNode) >= 3, "{:?}", lab.counted());
    // the pod may answer its node, and not ask it
    let listener = listen(&lab.node, lab.address(family), PORT);
    let asked = SocketAddr::new(lab.address(family), PORT);
    assert!(dial(&pod.net, asked, Duration::from_millis(300)).is_err());
    assert!(!is_dialled(&listener));
    assert!(refused(lab, Egress) > 0);
}

fn probe_lives_on(lab: &Lab, family: Family) {
    lab.own_node_address(lab.address(family));
    let pod = lab.gated(&Policy::open());
    let listener = listen(&pod.net, pod.address(family), PORT);
    let stream = dial(&lab.node, SocketAddr::new(pod.address(family), PORT), WAIT_TIMEOUT).unwrap();
    let ends = Ends { client: stream, server: accept(&listener) };
    for policy in [Policy::isolated(), Policy::open(), port(Policy::isolated(), Policed::Egress)] {
        lab.set_policy(&pod, &policy);
        // the pod's packet is the first to meet the new policy
        ends.server.say(b"late answer");
        assert!(ends.client.hear(11, WAIT_TIMEOUT).is_some());
        ends.exchange("after a change");
    }
    nothing_denied(lab);
}

fn unlisted_address(lab: &Lab, family: Family) {
    let pod = lab.gated(&Policy::isolated());
    let listener = listen(&pod.net, pod.address(family), PORT);
    let to = SocketAddr::new(pod.address(family), PORT);
    assert!(dial(&lab.node, to, Duration::from_millis(300)).is_err());
    assert!(!is_dialled(&listener));
    assert!(refused(lab, Ingress) > 0, "{:?}", lab.counted());
}

/// A namespace whose packets the node forwards to the pods under its own address.
pub(crate) fn behind_the_node(lab: &Lab) -> Net {
    let outside = Net::new();
    lab.node.veth("out", &outside, "eth0");
    lab.node.ip("address add 10.7.0.1/24 dev out\naddress add fd07::1/64 dev out nodad");
    outside.ip("address add 10.7.0.7/24 dev eth0
         address add fd07::7/64 dev eth0 nodad
         route add default via 10.7.0.1
         route add default via fd07::1");
    let rules = "table inet nat {
        chain post {
            type nat hook postrouting priority 100;
            oifname \"br0\" ip saddr != 10.10.0.1 masquerade;
            oifname \"br0\" ip6 saddr != fd0a::1 masquerade;
        }
    }";
    nft(lab, rules);
    outside
}

/// Loads rules of netfilter on the node.
pub(crate) fn nft(lab: &Lab, rules: &str) {
    lab.node.run(|| {
        let mut nft = Command::new("nft")
            .args(["-f", "-"])
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .stdin(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("run nft: {e} (Debian: apt-get install nftables)"));
        nft.stdin.take().unwrap().write_all(rules.as_bytes()).unwrap();
        assert!(nft.wait().unwrap().success(), "nft refuses:\n{rules}");
    });
}

fn masqueraded(lab: &Lab, family: Family) {
    lab.own_node_address(lab.address(family));
    let outside = behind_the_node(lab);
    let pod = lab.gated(&Policy::open());
    let listener = listen(&pod.net, pod.address(family), PORT);
    let to = SocketAddr::new(pod.address(family), PORT);
    let stream = dial(&outside, to, WAIT_TIMEOUT).unwrap();
    let ends = Ends { client: stream, server: accept(&listener) };
    assert_eq!(ends.server.peer_addr().unwrap().ip(), lab.address(family), "it is masqueraded");
    ends.exchange("while allowed");
    assert_eq!(lab.count(Ingress, Reason::AllowOwnNode), 0, "{:?}", lab.counted());

    lab.set_policy(&pod, &Policy::isolated().open_for(Policed::Egress));
    ends.client.say(b"hidden");
    assert_eq!(ends.server.hear(6, SILENCE), None, "the open connection is cut");
    assert!(dial(&outside, to, Duration::from_millis(300)).is_err());
    assert!(!is_dialled(&listener));
    // and the node itself still gets in, from the same address
    dial(&lab.node, to, WAIT_TIMEOUT).unwrap();
}

fn spoofing(lab: &Lab, family: Family) {
    let (pod, victim) = (lab.gated(&Policy::open()), lab.pod());
    let foreign: IpAddr = match family {
        Family::V4 => "10.0.0.200".parse().unwrap(),
        Family::V6 => "fd00::200".parse().unwrap(),
    };
    let length = if foreign.is_ipv4() { "/24" } else { "/64 nodad" };
    pod.net.ip(&format!("address add {foreign}{} dev eth0{}", &length[..3], &length[3..]));
    let watcher = podgate_tests::netlab::Tap::new(&victim.net, "eth0");
    let to = SocketAddr::new(victim.address(family), PORT);
    let from = |address: IpAddr| datagrams(&pod.net, address, 0);
    let carries = |frame: &[u8]| frame.windows(8).any(|bytes| bytes == b"not mine");
    from(foreign).send_to(b"not mine", to).unwrap();
    eventually("it is refused", || lab.count(Egress, Reason::DenySpoofed) == 1);
    assert!(!watcher.sees(Lab::GRACE, carries));
    let stream = dial_from(&pod.net, SocketAddr::new(foreign, 40_000), to);
    assert!(stream.is_err(), "connects under another's address");
    from(pod.address(family)).send_to(b"not mine", to).unwrap();
    assert!(watcher.sees(WAIT_TIMEOUT, carries), "its own address is its own");
}
