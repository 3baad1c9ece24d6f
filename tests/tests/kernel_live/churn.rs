//! A guarantee for each packet: while policy changes a thousand times a second around it, a flow that is allowed all
//! the time loses nothing, and one that is denied all the time gets nothing through.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use podgate_bpf::abi::{Startup, Stat};
use podgate_policy::tables::{Class, PortMatch};
use podgate_testkit::wait::{WAIT_TIMEOUT, eventually};
use podgate_tests::netlab::Lab;

use crate::Test;
use crate::talk::*;

pub(crate) const TESTS: &[Test] = &[
    ("an_allowed_exchange_loses_nothing_while_other_entries_change", unrelated_entries),
    ("an_allowed_exchange_loses_nothing_while_its_peer_changes_class", moving_peer),
    ("a_denied_flow_gets_nothing_through_while_classes_trade_meanings", traded_classes),
    ("an_allowed_exchange_loses_nothing_while_its_rule_is_replaced", replaced_rule),
    ("an_allowed_exchange_loses_nothing_while_the_programs_are_replaced", upgrades),
];

const TIME: Duration = Duration::from_millis(1500);
/// What policy never allows here.
const DENIED: u16 = 4000;

/// Runs `change(n)` about a thousand times a second, `enough` times at least, beside an allowed exchange and a denied flood.
fn churn(
    lab: &Lab,
    family: Family,
    (client, server): (&Pod, &Pod),
    enough: u64,
    change: impl Fn(u32) + Sync,
) {
    let datagrams = udp(client, server, family, PORT);
    let stream = tcp(client, server, family, PORT);
    let forbidden = udp(client, server, family, DENIED);
    let watch = Watch::new(client, server, family);
    datagrams.exchange("before");
    let done = AtomicBool::new(false);
    let [changes, exchanged, flooded] = [const { AtomicU64::new(0) }; 3];
    let running = || !done.load(Ordering::Relaxed);
    // less would hardly be a test
    let is_enough = || {
        changes.load(Ordering::Relaxed) >= enough
            && exchanged.load(Ordering::Relaxed) > 100
            && flooded.load(Ordering::Relaxed) > 100
            && lab.stat(Stat::Revalidated) > 1000
    };
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut next = Instant::now();
            for n in 0.. {
                if !running() {
                    break;
                }
                change(n);
                changes.fetch_add(1, Ordering::Relaxed);
                next += Duration::from_millis(1);
                thread::sleep(next.saturating_duration_since(Instant::now()));
            }
        });
        // So that nearly each packet is judged, the moments between two steps of a change included. On a
        // node it is other pods' changes that do this.
        scope.spawn(|| {
            while running() {
                lab.datapath.maps.control().bump_epoch();
                thread::sleep(Duration::from_micros(10));
            }
        });
        // a datagram is not sent twice: one that is lost is missed
        scope.spawn(|| {
            while running() {
                datagrams.exchange("a datagram is lost");
                stream.exchange("a stream stalls");
                exchanged.fetch_add(1, Ordering::Relaxed);
            }
        });
        scope.spawn(|| {
            while running() {
                forbidden.client.say(b"forbidden");
                forbidden.server.say(b"forbidden");
                flooded.fetch_add(2, Ordering::Relaxed);
                thread::sleep(Duration::from_micros(200));
            }
        });
        let deadline = Instant::now() + 3 * WAIT_TIMEOUT;
        thread::sleep(TIME);
        while !is_enough() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(5));
        }
        done.store(true, Ordering::Relaxed);
    });
    let enough = is_enough();
    let [changes, exchanged, flooded] = [changes, exchanged, flooded].map(AtomicU64::into_inner);
    drop(watch);
    assert_eq!(forbidden.server.hear(9, Duration::from_millis(50)), None, "one got through");
    assert_eq!(forbidden.client.hear(9, Duration::from_millis(50)), None, "one got through");
    println!(
        "{}: {changes} changes, {exchanged} exchanges, {flooded} refused datagrams, {} judged again",
        family.name(),
        lab.stat(Stat::Revalidated),
    );
    // only the forbidden ones were refused, and every one of them was
    eventually("every forbidden one is refused", || denied(lab) >= flooded);
    assert_eq!(denied(lab), flooded, "{:?}", lab.counted());
    assert!(enough, "hardly a test");
}

/// Isolated in both directions at both pods: both directions of the flood are refused at their sender's gate.
fn web(extra: impl Fn(Policy) -> Policy) -> (Policy, Policy) {
    (
        extra(port(Policy::isolated(), Policed::Egress)),
        extra(port(Policy::isolated(), Policed::Ingress)),
    )
}

fn unrelated_entries(lab: &Lab, family: Family) {
    let (client, server) = web(|policy| policy);
    let (client, server) = (lab.gated(&client), lab.gated(&server));
    churn(lab, family, (&client, &server), 300, |n| {
        let (of_client, of_server) = web(|policy| {
            let policy = policy.allow(Policed::Ingress, Protocol::Tcp, 1000 + n as u16 % 64);
            let other = PortMatch::one(Protocol::Udp, 2000 + n as u16 % 64);
            policy.entry(Policed::Egress, Class(77), other)
        });
        if n % 2 == 0 {
            lab.set_policy(&client, &of_client);
        } else {
            lab.set_policy(&server, &of_server);
        }
        lab.set_class("10.200.0.1".parse().unwrap(), Class(77 + n % 2));
    });
}

/// In one change the pods move to another class, which gets the rules of the one that they leave: neither half
/// may come without the other.
fn moving_peer(lab: &Lab, family: Family) {
    let of_class = |direction, class| {
        let policy = Policy::isolated();
        let policy = policy.entry(direction, class, PortMatch::one(Protocol::Udp, PORT));
        policy.entry(direction, class, PortMatch::one(Protocol::Tcp, PORT))
    };
    let (client, server) = (lab.registered(Startup::Hold), lab.registered(Startup::Hold));
    let move_to = |class| {
        lab.change_all(
            &[
                (&client, of_class(Policed::Egress, class)),
                (&server, of_class(Policed::Ingress, class)),
            ],
            &[(client.address(family), class), (server.address(family), class)],
        );
    };
    move_to(Class(5));
    churn(lab, family, (&client, &server), 300, |n| move_to(Class(5 + n % 2)));
}

/// Always the class that the pod is not in may do what is denied here, and in one change the pod moves there and the
/// permission goes to the class that it leaves: never must the two meet.
fn traded_classes(lab: &Lab, family: Family) {
    let of_other_class = |direction, class| {
        port(Policy::isolated(), direction).entry(
            direction,
            class,
            PortMatch::one(Protocol::Udp, DENIED),
        )
    };
    let (client, server) = (lab.registered(Startup::Hold), lab.registered(Startup::Hold));
    let trade = |class, other| {
        lab.change_all(
            &[
                (&client, of_other_class(Policed::Egress, other)),
                (&server, of_other_class(Policed::Ingress, other)),
            ],
            &[(client.address(family), class), (server.address(family), class)],
        );
    };
    trade(Class(5), Class(6));
    churn(lab, family, (&client, &server), 300, |n| {
        if n % 2 == 0 { trade(Class(6), Class(5)) } else { trade(Class(5), Class(6)) }
    });
}

/// Ranges around the port, each of which is another entry of the map.
fn replaced_rule(lab: &Lab, family: Family) {
    let rule = |direction, n: u32| {
        let (first, last) = [(PORT, PORT), (PORT, PORT + 3), (64, 127), (0, 1023)][n as usize % 4];
        let range = |protocol| PortMatch::Range { protocol, first, last };
        Policy::isolated().entry(direction, Class::ANY, range(Protocol::Udp)).entry(
            direction,
            Class::ANY,
            range(Protocol::Tcp),
        )
    };
    let client = lab.gated(&rule(Policed::Egress, 0));
    let server = lab.gated(&rule(Policed::Ingress, 0));
    churn(lab, family, (&client, &server), 300, |n| {
        lab.set_policy(&client, &rule(Policed::Egress, n));
        lab.set_policy(&server, &rule(Policed::Ingress, n / 2));
    });
}

fn upgrades(lab: &Lab, family: Family) {
    let (client, server) = web(|policy| policy);
    let (client, server) = (lab.gated(&client), lab.gated(&server));
    churn(lab, family, (&client, &server), 3, |_| lab.replace_programs());
}
