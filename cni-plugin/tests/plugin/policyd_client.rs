//! policyd in every mood, and what `onTimeout` makes of it.

use std::os::unix::net::UnixListener;
use std::time::Duration;

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, connect, listen, socket,
};
use serde_json::json;

use crate::policyd::{Mood, OK, Policyd};
use crate::world::{World, in_world};

/// Milliseconds that ADD waits for one that never answers.
const LIMIT: u64 = 300;
/// The same for one that answers, well or not: it takes far less, on any machine.
const AMPLE: u64 = 20_000;

/// Each mood with what the log or the error must say, and whether it takes the whole time.
const MOODS: [(Mood, &str, bool); 8] = [
    (Mood::Hangs, "has not answered within 300 ms", true),
    (Mood::Drips, "has not answered within 300 ms", true),
    (Mood::Closes, "closed the connection", false),
    (Mood::Floods, "without a line end", false),
    (Mood::Says("enforced, I think"), "not understood", false),
    (Mood::Says("{}"), "not understood", false),
    (Mood::Says(r#"{"status":"pending","reason":"pod is unknown"}"#), "pod is unknown", false),
    (Mood::Says(r#"{"status":"error","message":"write map: full"}"#), "write map: full", false),
];

#[test]
fn hold_starts_the_pod_and_says_why() {
    in_world(|world| {
        for (number, (mood, words, slow)) in MOODS.into_iter().enumerate() {
            let pod = world.bridged(&format!("h{number}"));
            let _policyd = Policyd::listen(&world.socket(), mood);
            let done = pod.call("ADD", json!({ "policydTimeoutMs": limit(slow) }));
            done.succeeded().logged(words).logged("starts in its startup state");
            in_time(done.took, slow);
            assert_eq!(pod.registrations().len(), 1, "{mood:?}");
            pod.call("CHECK", json!({})).succeeded();
        }
        let absent = world.bridged("absent");
        absent.call("ADD", json!({})).succeeded().logged("does not listen on");
    });
}

#[test]
fn fail_undoes_everything_and_asks_to_try_again() {
    in_world(|world| {
        for (number, (mood, words, slow)) in MOODS.into_iter().enumerate() {
            let pod = world.bridged(&format!("f{number}"));
            let policyd = Policyd::listen(&world.socket(), mood);
            let keys = json!({ "policydTimeoutMs": limit(slow), "onTimeout": "fail" });
            let done = pod.call("ADD", keys);
            // the text is JSON in JSON: quotes arrive escaped
            done.failed(11, &[words]);
            in_time(done.took, slow);
            world.assert_nothing_stands();
            // and once policyd is well, the same ADD works
            drop(policyd);
            let _policyd = Policyd::listen(&world.socket(), OK);
            pod.call("ADD", json!({ "onTimeout": "fail" })).succeeded();
            pod.bare_del().succeeded();
        }
        let absent = world.bridged("absent");
        absent.call("ADD", json!({ "onTimeout": "fail" })).failed(11, &["does not listen on"]);
        world.assert_nothing_stands();
    });
}

fn limit(slow: bool) -> u64 {
    if slow { LIMIT } else { AMPLE }
}

fn in_time(took: Duration, slow: bool) {
    assert!(took < Duration::from_millis(AMPLE), "took {took:?}");
    // measured from a little after its start
    assert!(!slow || took >= Duration::from_millis(LIMIT / 2), "took {took:?}");
}

#[test]
fn a_daemon_that_accepts_nobody_holds_nobody_up() {
    in_world(|world| {
        let fd =
            socket(AddressFamily::Unix, SockType::Stream, SockFlag::empty(), None).expect("socket");
        let address = UnixAddr::new(&world.socket()).expect("address");
        bind(std::os::fd::AsRawFd::as_raw_fd(&fd), &address).expect("bind");
        listen(&fd, Backlog::new(0).expect("backlog")).expect("listen");
        let waiting = fill(&address);
        assert!(!waiting.is_empty());
        let pod = world.bridged("queue");
        let done = pod.call("ADD", json!({ "policydTimeoutMs": LIMIT }));
        done.succeeded().logged("has not answered within 300 ms");
        in_time(done.took, true);
        let done = pod.bare_del();
        done.succeeded();
        assert!(done.took < Duration::from_secs(20), "DEL took {:?}", done.took);
        world.assert_nothing_stands();
    });
}

/// Connects until the queue is full.
fn fill(address: &UnixAddr) -> Vec<std::os::fd::OwnedFd> {
    let mut waiting = Vec::new();
    loop {
        let flags = SockFlag::SOCK_NONBLOCK;
        let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None).expect("socket");
        match connect(std::os::fd::AsRawFd::as_raw_fd(&fd), address) {
            Ok(()) => waiting.push(fd),
            Err(nix::Error::EAGAIN) => return waiting,
            Err(e) => panic!("connect: {e}"),
        }
    }
}

#[test]
fn a_timeout_of_zero_tells_policyd_and_does_not_wait() {
    in_world(|world| {
        let policyd = Policyd::listen(&world.socket(), Mood::Hangs);
        let pod = world.bridged("zero");
        let done = pod.call("ADD", json!({ "policydTimeoutMs": 0 }));
        done.succeeded().logged("startup state");
        for _ in 0..1000 {
            if !policyd.seen().is_empty() {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("policyd was not told");
    });
}

#[test]
fn status_is_policyds() {
    in_world(|world| {
        let status = |world: &World| world.call("STATUS", &world.conf("1.1.0", json!({})));
        status(world).failed(50, &["does not listen on"]);
        for (mood, words) in [
            (Mood::Closes, "closed the connection"),
            (Mood::Says(r#"{"status":"pending","reason":"first sync"}"#), "first sync"),
            (Mood::Says("no"), "not understood"),
            (Mood::Hangs, "has not answered"),
        ] {
            let _policyd = Policyd::listen(&world.socket(), mood);
            status(world).failed(50, &[words]);
        }
        let _policyd = Policyd::listen(&world.socket(), OK);
        assert_eq!(status(world).succeeded().stdout, "");
        let wrong = world.conf("1.1.0", json!({ "startup": "maybe" }));
        world.call("STATUS", &wrong).failed(7, &["startup", "maybe"]);
        world.call("STATUS", &world.conf("1.0.0", json!({}))).failed(1, &["STATUS is not part"]);
    });
}

#[test]
fn a_socket_that_nobody_serves_counts_as_absent() {
    in_world(|world| {
        drop(UnixListener::bind(world.socket()).expect("bind"));
        let pod = world.bridged("stale");
        pod.call("ADD", json!({})).succeeded().logged("Connection refused");
    });
}
