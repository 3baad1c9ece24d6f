//! Policy changes under open connections.

use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use podgate_bpf::abi::Startup;
use podgate_testkit::wait::{WAIT_TIMEOUT, eventually};
use podgate_tests::netlab::Lab;

use crate::Test;
use crate::talk::*;

pub(crate) const TESTS: &[Test] = &[
    ("the_first_policy_ever_cuts_no_replies", first_policy),
    ("the_first_policy_cuts_no_replies_of_a_pod_that_was_open_till_then", first_policy_after_open),
    ("a_policy_for_the_other_direction_cuts_nothing", other_direction),
    ("a_withdrawn_rule_cuts_at_the_next_packet_of_either_side", tightened_ingress),
    ("a_withdrawn_egress_rule_cuts_at_the_next_packet_of_either_side", tightened_egress),
    ("datagrams_are_cut_at_the_next_one_of_either_side", tightened_udp),
    ("a_cut_connection_goes_on_when_allowed_again", loosened),
    ("a_pending_connect_succeeds_once_it_is_allowed", pending_connect),
    ("nothing_leaves_a_pod_on_hold_and_everything_one_that_starts_open", startup),
];

/// Talks over both protocols until told otherwise.
fn talk_while<R>(client: &Pod, server: &Pod, family: Family, change: impl FnOnce() -> R) -> R {
    let tcp = tcp(client, server, family, PORT);
    let udp = udp(client, server, family, PORT);
    tcp.exchange("before the change");
    udp.exchange("before the change");
    let done = AtomicBool::new(false);
    let result = thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                tcp.exchange("during the change");
                udp.exchange("during the change");
            }
        });
        thread::sleep(Duration::from_millis(50));
        // a panic must not leave the others talking for ever
        let result = catch_unwind(AssertUnwindSafe(change));
        thread::sleep(Duration::from_millis(100));
        done.store(true, Ordering::Relaxed);
        result.unwrap_or_else(|panic| resume_unwind(panic))
    });
    // whoever speaks first
    tcp.server.say(b"server first");
    assert!(
        tcp.client.hear(12, WAIT_TIMEOUT).is_some(),
        "the server speaks first after the change"
    );
    tcp.exchange("after the change");
    udp.exchange("after the change");
    result
}

/// The pod's gate was there from its start, policyd was not.
fn first_policy(lab: &Lab, family: Family) {
    let (client, server) = (lab.registered(Startup::Open), lab.registered(Startup::Open));
    talk_while(&client, &server, family, || {
        // isolated in both directions, and nothing that the server could ask anybody
        lab.set_policy(&server, &port(Policy::isolated(), Policed::Ingress));
        lab.set_policy(&client, &port(Policy::isolated(), Policed::Egress));
    });
    nothing_denied(lab);
}

fn first_policy_after_open(lab: &Lab, family: Family) {
    let (client, server) = (lab.gated(&Policy::open()), lab.gated(&Policy::open()));
    talk_while(&client, &server, family, || {
        lab.set_policy(&server, &port(Policy::isolated(), Policed::Ingress));
        lab.set_policy(&client, &port(Policy::isolated(), Policed::Egress));
        lab.set_policy(
            &server,
            &port(Policy::isolated(), Policed::Ingress).open_for(Policed::Egress),
        );
        lab.set_policy(&server, &Policy::open());
    });
    nothing_denied(lab);
}

/// The server may ask nobody, the client may be asked by nobody: replies are no questions.
fn other_direction(lab: &Lab, family: Family) {
    let (client, server) = (lab.gated(&Policy::open()), lab.gated(&Policy::open()));
    talk_while(&client, &server, family, || {
        lab.set_policy(&server, &Policy::isolated().open_for(Policed::Ingress));
        lab.set_policy(&client, &Policy::isolated().open_for(Policed::Egress));
    });
    nothing_denied(lab);
}

/// Both sides try for a while, with all that TCP does on its own, and neither hears a thing.
fn assert_cut(lab: &Lab, watch: &Watch, ends: &Ends<impl End>, server_first: bool) {
    let before = (refused(lab, Egress), refused(lab, Ingress));
    watch.begin();
    if server_first {
        ends.server.say(b"still there?");
        ends.client.say(b"and you?");
    } else {
        ends.client.say(b"still there?");
        ends.server.say(b"and you?");
    }
    assert_eq!(ends.server.hear(1, SILENCE), None, "the server hears the client");
    assert_eq!(ends.client.hear(1, SILENCE), None, "the client hears the server");
    let after = (refused(lab, Egress), refused(lab, Ingress));
    assert!(
        after.0 > before.0 && after.1 > before.1,
        "both directions are refused: {:?}",
        lab.counted()
    );
}

/// The server is not isolated for egress: its retransmissions look like something that it may send.
fn tightened_ingress(lab: &Lab, family: Family) {
    let allowed = port(Policy::isolated(), Policed::Ingress).open_for(Policed::Egress);
    for server_first in [true, false] {
        let (client, server) = (lab.pod(), lab.gated(&allowed));
        let (ends, watch) =
            (tcp(&client, &server, family, PORT), Watch::new(&client, &server, family));
        ends.exchange("while allowed");
        // Acknowledgements are packets too: let them pass first.
        thread::sleep(Duration::from_millis(60));
        lab.set_policy(&server, &Policy::isolated().open_for(Policed::Egress));
        assert_cut(lab, &watch, &ends, server_first);
        // the wire at the client's end has the client's own packets, and nothing of the server's
        assert_eq!(watch.arrived().0, 0, "the server's packets arrive");
        let news = dial(
            &client.net,
            SocketAddr::new(server.address(family), PORT),
            Duration::from_millis(200),
        );
        assert!(news.is_err(), "a new connection is no better");
    }
}

fn tightened_egress(lab: &Lab, family: Family) {
    let allowed = port(Policy::isolated(), Policed::Egress).open_for(Policed::Ingress);
    for server_first in [true, false] {
        let (client, server) = (lab.gated(&allowed), lab.pod());
        let (ends, watch) =
            (tcp(&client, &server, family, PORT), Watch::new(&client, &server, family));
        ends.exchange("while allowed");
        thread::sleep(Duration::from_millis(60));
        lab.set_policy(&client, &Policy::isolated().open_for(Policed::Ingress));
        assert_cut(lab, &watch, &ends, server_first);
        let (at_client, at_server) = watch.arrived();
        assert_eq!((at_client, at_server), (0, 0), "packets arrive at (client, server)");
    }
}

fn tightened_udp(lab: &Lab, family: Family) {
    let allowed = port(Policy::isolated(), Policed::Ingress).open_for(Policed::Egress);
    for server_first in [true, false] {
        let (client, server) = (lab.pod(), lab.gated(&allowed));
        let (ends, watch) =
            (udp(&client, &server, family, PORT), Watch::new(&client, &server, family));
        ends.exchange("while allowed");
        lab.set_policy(&server, &Policy::isolated().open_for(Policed::Egress));
        assert_cut(lab, &watch, &ends, server_first);
        assert_eq!(watch.arrived(), (0, 0), "packets arrive at (client, server)");
        lab.set_policy(&server, &allowed);
        ends.exchange("allowed again");
    }
}

fn loosened(lab: &Lab, family: Family) {
    let allowed = port(Policy::isolated(), Policed::Ingress).open_for(Policed::Egress);
    let (client, server) = (lab.gated(&Policy::open()), lab.gated(&allowed));
    let (ends, watch) = (tcp(&client, &server, family, PORT), Watch::new(&client, &server, family));
    ends.exchange("while allowed");
    thread::sleep(Duration::from_millis(60));
    lab.set_policy(&server, &Policy::isolated().open_for(Policed::Egress));
    assert_cut(lab, &watch, &ends, true);
    lab.set_policy(&server, &allowed);
    // what was said meanwhile arrives by retransmission
    assert_eq!(ends.client.hear(12, WAIT_TIMEOUT).as_deref(), Some(&b"still there?"[..]));
    assert_eq!(ends.server.hear(8, WAIT_TIMEOUT).as_deref(), Some(&b"and you?"[..]));
    ends.exchange("allowed again");
    let before = denied(lab);
    lab.set_policy(&server, &Policy::open());
    ends.exchange("no policy any more");
    lab.set_policy(&server, &allowed);
    ends.exchange("the policy is back");
    assert_eq!(denied(lab), before, "{:?}", lab.counted());
}

/// The SYN was refused and left nothing; the next one finds another world.
fn pending_connect(lab: &Lab, family: Family) {
    let (client, server) = (lab.pod(), lab.gated(&Policy::isolated()));
    let listener = listen(&server.net, server.address(family), PORT);
    let to = SocketAddr::new(server.address(family), PORT);
    thread::scope(|scope| {
        let dialling = scope.spawn(|| dial(&client.net, to, WAIT_TIMEOUT));
        eventually("the first SYN is refused", || refused(lab, Ingress) > 0);
        let flows = lab.datapath.maps.flow_table().flows4().unwrap().len()
            + lab.datapath.maps.flow_table().flows6().unwrap().len();
        let begun = Instant::now();
        lab.set_policy(&server, &port(Policy::isolated(), Policed::Ingress));
        let stream = dialling.join().unwrap().unwrap_or_else(|e| panic!("connect: {e}"));
        let ends = Ends { client: stream, server: accept(&listener) };
        ends.exchange("once allowed");
        assert_eq!(flows, 0, "a refused SYN leaves no flow");
        assert!(begun.elapsed() < WAIT_TIMEOUT);
    });
}

fn startup(lab: &Lab, family: Family) {
    let (held, open, peer) =
        (lab.registered(Startup::Hold), lab.registered(Startup::Open), lab.pod());
    let to_peer = |pod: &Pod| udp(pod, &peer, family, PORT);
    let ends = to_peer(&held);
    ends.client.say(b"out");
    assert_eq!(ends.server.hear(3, Duration::from_millis(200)), None, "a pod on hold sends");
    ends.server.say(b"in");
    assert_eq!(ends.client.hear(2, Duration::from_millis(200)), None, "a pod on hold receives");
    drop(ends);
    let ends = to_peer(&open);
    ends.exchange("a pod that starts open");
    drop(ends);
    lab.set_policy(&held, &Policy::open());
    to_peer(&held).exchange("released from hold");
}
