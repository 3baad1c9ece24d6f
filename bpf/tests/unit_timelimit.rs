//! A process whose time is over says so and ends, whatever it waits for.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use std::io::Read;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use podgate_bpf::timelimit::end_process_after;

const CHILD: &str = "PODGATE_TEST_TIME_LIMIT";

/// What runs in a process of its own.
fn wait_for_input_that_never_comes() {
    end_process_after(Duration::from_secs(60), b"replaced".to_vec()).unwrap();
    end_process_after(Duration::from_secs(1), b"{\"late\":true}".to_vec()).unwrap();
    let read = std::io::stdin().read(&mut [0]);
    panic!("the read has ended: {read:?}");
}

#[test]
fn the_answer_is_printed_and_the_exit_code_is_1() {
    if std::env::var_os(CHILD).is_some() {
        return wait_for_input_that_never_comes();
    }
    let started = Instant::now();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "the_answer_is_printed_and_the_exit_code_is_1", "--nocapture"])
        .env(CHILD, "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // held open, or the read would end
    let stdin = child.stdin.take();
    let output = child.wait_with_output().unwrap();
    drop(stdin);
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.ends_with("{\"late\":true}"), "{said}");
    assert!(started.elapsed() >= Duration::from_secs(1));
}
