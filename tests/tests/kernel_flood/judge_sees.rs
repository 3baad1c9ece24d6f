//! The judge itself: what it must notice, and what it must not call wrong.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crate::judge::{Sums, judge};
use crate::streams::Record;
use crate::timeline::{Expected, Timeline};

/// Ten datagrams, so many ms apart, of which only `arrived` did.
fn record(expected: Expected, arrived: &[u64], changes: impl FnOnce(&mut Timeline)) -> Sums {
    let mut timeline = Timeline::new(expected);
    let begun = Instant::now();
    changes(&mut timeline);
    let sent: Vec<_> = (0..10).map(|number| begun + Duration::from_millis(200 * number)).collect();
    let record = Record {
        name: "stream".into(),
        timeline: Mutex::new(timeline),
        answered: false,
        sent: Mutex::new(sent.iter().map(|at| (*at, *at)).collect()),
        arrived: Mutex::new(arrived.iter().map(|number| (*number, begun)).collect()),
        returned: Mutex::new(HashMap::new()),
    };
    judge(&[Arc::new(record)], |_| String::new())
}

pub(crate) fn run() {
    let all: Vec<u64> = (0..10).collect();
    let right = record(Expected::Pass, &all, |_| ());
    assert_eq!((right.lost, right.leaked, right.must_pass), (0, 0, 10));
    let one_lost = record(Expected::Pass, &all[1..], |_| ());
    assert_eq!((one_lost.lost, one_lost.leaked), (1, 0));
    assert!(one_lost.wrong.contains("number 0 lost"), "{}", one_lost.wrong);
    let one_leaked = record(Expected::Drop, &all[9..], |_| ());
    assert_eq!((one_leaked.lost, one_leaked.leaked, one_leaked.must_drop), (0, 1, 10));

    // a change begins now and is in force now: what was sent more than half a second later is judged by it
    let forbid = |timeline: &mut Timeline| {
        timeline.begin(false);
        timeline.confirm(false);
    };
    let changed = record(Expected::Pass, &all[..2], forbid);
    assert_eq!((changed.lost, changed.leaked), (0, 0), "{}", changed.wrong);
    assert!(changed.either >= 2 && changed.must_drop >= 6, "{changed:?}");
    let late = record(Expected::Pass, &all[..6], forbid);
    assert_eq!(late.lost, 0, "{}", late.wrong);
    assert!(late.leaked >= 2, "{late:?}");
    // there and back, never confirmed in between, and no change at all
    let back = record(Expected::Pass, &[], |timeline| {
        timeline.begin(false);
        timeline.begin(true);
    });
    assert_eq!((back.lost, back.either), (0, 10));
    let same = record(Expected::Pass, &[], |timeline| timeline.begin(true));
    assert_eq!(same.lost, 10);
    // what was long settled before the change is judged by what was
    let mut timeline = Timeline::new(Expected::Drop);
    let before = Instant::now();
    thread::sleep(Duration::from_millis(600));
    timeline.begin(true);
    assert_eq!(timeline.expected(before, before), Expected::Drop);
}
