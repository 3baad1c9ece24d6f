//! Limits that come, change and go under connections that live.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use podgate_bpf::abi::{Limit, LimitsRecord, Rate};
use podgate_testkit::wait::{WAIT_TIMEOUT, eventually};
use podgate_tests::netlab::Lab;

use crate::Test;
use crate::limited::{bandwidth, limit, megabits, meter, unlimit};
use crate::rates::reached;
use crate::talk::*;

pub(crate) const TESTS: &[Test] = &[
    ("limits_come_and_go_without_a_lost_packet", no_loss),
    ("what_was_used_survives_another_build", kept),
    ("a_rate_of_packets_holds_with_two_senders", two_senders),
];

/// Numbered packets go both ways, one after another, while the programs change.
fn no_loss(lab: &Lab, family: Family) {
    let (limited, other) = (lab.gated(&Policy::open()), lab.gated(&Policy::open()));
    let ends = udp(&other, &limited, family, PORT);
    let mut limits = LimitsRecord::default();
    for direction in [Egress, Ingress] {
        bandwidth(&mut limits, direction, megabits(10_000));
    }
    let (stop, rounds) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        let talking = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let number = rounds.fetch_add(1, Ordering::Relaxed).to_be_bytes();
                for (from, to) in [(&ends.client, &ends.server), (&ends.server, &ends.client)] {
                    from.send(&number).unwrap();
                    assert_eq!(to.hear(8, WAIT_TIMEOUT).as_deref(), Some(&number[..]), "lost");
                }
            }
        });
        for change in 0..50 {
            let before = rounds.load(Ordering::Relaxed);
            match change % 2 {
                0 => limit(lab, &limited, &limits),
                _ => unlimit(lab, &limited),
            }
            eventually("packets go on", || {
                talking.is_finished() || rounds.load(Ordering::Relaxed) > before + 3
            });
        }
        stop.store(true, Ordering::Relaxed);
        talking.join().unwrap();
    });
}

/// Buckets are in the maps: programs of another build find them as they were.
fn kept(lab: &Lab, family: Family) {
    let (limited, other) = (lab.gated(&Policy::open()), lab.gated(&Policy::open()));
    let ends = udp(&other, &limited, family, PORT);
    let mut limits = LimitsRecord::default();
    // one an hour
    let hour = 3_600_000_000_000;
    limits.set_rate(
        Egress,
        Limit::Packets,
        Rate { cost: hour << podgate_bpf::abi::RATE_SHIFT, burst: 0 },
        0,
    );
    limit(lab, &limited, &limits);
    ends.server.say(b"first");
    assert_eq!(ends.client.hear(5, WAIT_TIMEOUT).as_deref(), Some(&b"first"[..]));
    let refused = || meter(lab, &limited).refused[Egress as usize][Limit::Packets as usize];
    assert_eq!(refused(), 0);
    lab.replace_programs();
    ends.server.say(b"second");
    eventually("the second is refused", || refused() == 1);
    limit(lab, &limited, &LimitsRecord::default());
    ends.server.say(b"third");
    assert_eq!(ends.client.hear(5, WAIT_TIMEOUT).as_deref(), Some(&b"third"[..]));
}

/// Both CPUs charge one bucket.
fn two_senders(lab: &Lab, family: Family) {
    reached(|| senders_at_once(lab, family) > 0.8);
}

/// The part of the rate that passed.
fn senders_at_once(lab: &Lab, family: Family) -> f64 {
    const RATE: u64 = 2000;
    const TIME: Duration = Duration::from_secs(2);
    let (limited, other) = (lab.gated(&Policy::open()), lab.gated(&Policy::open()));
    let both = [udp(&other, &limited, family, PORT), udp(&other, &limited, family, PORT + 1)];
    let mut limits = LimitsRecord::default();
    limits.set_rate(Egress, Limit::Packets, Rate::per_second(RATE, 10), 0);
    limit(lab, &limited, &limits);
    let stop = AtomicBool::new(false);
    let way = Egress as usize;
    thread::scope(|scope| {
        for ends in &both {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let _ = ends.server.send(b"x");
                }
            });
        }
        eventually("packets are refused", || meter(lab, &limited).refused[way][1] > 1000);
        let start = std::time::Instant::now();
        let before = meter(lab, &limited);
        thread::sleep(TIME);
        let after = meter(lab, &limited);
        let took = start.elapsed();
        stop.store(true, Ordering::Relaxed);
        let passed = after.passed[way].packets - before.passed[way].packets;
        let part = passed as f64 / (RATE as f64 * took.as_secs_f64());
        println!("{}: {part:.4} of {RATE} packets a second", family.name());
        // within 2 % on an idle machine, as in rates.rs
        assert!(part < 1.1, "{part}");
        part
    })
}
