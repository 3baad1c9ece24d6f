//! What became of every datagram, beside what had to.

use std::collections::HashMap;
use std::fmt::Write;
use std::sync::Arc;
use std::time::Instant;

use podgate_testkit::net::Net;

use crate::streams::Record;
use crate::timeline::Expected;

/// Datagrams that fail are shown, so many of each stream.
const SHOWN: usize = 5;

/// Datagrams that the kernel itself threw away for want of room, where it says so.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct KernelDrops {
    /// Of full receive buffers.
    pub(crate) sockets: u64,
    /// Of full queues between a link and the stack.
    pub(crate) backlog: u64,
}

impl KernelDrops {
    /// Of these namespaces' sockets, and of the machine.
    pub(crate) fn now<'a>(nets: impl IntoIterator<Item = &'a Net>) -> Self {
        let mut drops = Self::default();
        for net in nets {
            for file in ["udp", "udp6"] {
                let text = net.run(|| read(&format!("/proc/thread-self/net/{file}")));
                let column = |line: &str| line.split_whitespace().last()?.parse::<u64>().ok();
                drops.sockets += text.lines().skip(1).filter_map(column).sum::<u64>();
            }
        }
        let column = |line: &str| u64::from_str_radix(line.split_whitespace().nth(1)?, 16).ok();
        let text = read("/proc/thread-self/net/softnet_stat");
        drops.backlog = text.lines().filter_map(column).sum();
        drops
    }
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|e| panic!("read {path}: {e}"))
}

/// The sums of a run.
#[derive(Debug, Default)]
pub(crate) struct Sums {
    pub(crate) must_pass: u64,
    pub(crate) must_drop: u64,
    pub(crate) either: u64,
    /// Had to arrive, or to be answered, and were not.
    pub(crate) lost: u64,
    /// Arrived, and must not.
    pub(crate) leaked: u64,
    /// A line for each stream.
    pub(crate) table: String,
    /// The first of what was wrong.
    pub(crate) wrong: String,
}

/// Judges all streams. `at` says what was done at a time, and what the last thing was before.
pub(crate) fn judge(records: &[Arc<Record>], at: impl Fn(Instant) -> String) -> Sums {
    let mut sums = Sums::default();
    let _ = writeln!(
        sums.table,
        "{:<34}{:>9}{:>9}{:>9}{:>9}{:>8}{:>6}{:>8}",
        "stream", "sent", "arrived", "mustpass", "mustdrop", "either", "lost", "leaked"
    );
    for record in records {
        stream(record, &mut sums, &at);
    }
    sums
}

fn stream(record: &Record, sums: &mut Sums, at: &impl Fn(Instant) -> String) {
    let (sent, arrived) = (record.sent.lock().unwrap(), record.arrived.lock().unwrap());
    let (returned, timeline) = (record.returned.lock().unwrap(), record.timeline.lock().unwrap());
    let (mut pass, mut drop, mut either, mut lost, mut leaked) = (0, 0, 0, 0, 0);
    let mut shown = 0;
    for (number, (begun, done)) in (0_u64..).zip(sent.iter()) {
        let expected = timeline.expected(*begun, *done);
        let has = |of: &HashMap<u64, Instant>| of.contains_key(&number);
        let wrong = match expected {
            Expected::Pass => {
                pass += 1;
                let unanswered = record.answered && !has(&returned);
                lost += u64::from(!has(&arrived) || unanswered);
                if !has(&arrived) {
                    Some("lost")
                } else if unanswered {
                    Some("its answer was lost")
                } else {
                    None
                }
            }
            Expected::Drop => {
                drop += 1;
                leaked += u64::from(has(&arrived));
                has(&arrived).then_some("arrived")
            }
            Expected::Either => {
                either += 1;
                None
            }
        };
        if let Some(wrong) = wrong.filter(|_| shown < SHOWN) {
            shown += 1;
            let _ =
                writeln!(sums.wrong, "{}: number {number} {wrong}: {}", record.name, at(*begun));
        }
    }
    let _ = writeln!(
        sums.table,
        "{:<34}{:>9}{:>9}{pass:>9}{drop:>9}{either:>8}{lost:>6}{leaked:>8}",
        record.name,
        sent.len(),
        arrived.len()
    );
    sums.must_pass += pass;
    sums.must_drop += drop;
    sums.either += either;
    sums.lost += lost;
    sums.leaked += leaked;
}
