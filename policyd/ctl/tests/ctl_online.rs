//! `podgatectl` and a policyd that does not answer.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Output};
use std::thread;
use std::time::{Duration, Instant};

fn podgatectl(socket: &Path, arguments: &[&str]) -> (Output, Duration) {
    let began = Instant::now();
    let run = Command::new(env!("CARGO_BIN_EXE_podgatectl"))
        .arg("--socket")
        .arg(socket)
        .args(["--timeout", "1"])
        .args(arguments)
        .env_clear()
        .output();
    (run.unwrap(), began.elapsed())
}

fn gives_up(socket: &Path, arguments: &[&str]) {
    let (output, took) = podgatectl(socket, arguments);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    let shown = socket.display();
    let expected = format!("podgatectl: ask policyd on {shown}: no answer within 1 s: see its log");
    assert!(said.starts_with(&expected), "{said}");
    assert!(took >= Duration::from_secs(1) && took < Duration::from_secs(20), "{took:?}");
}

#[test]
fn one_that_takes_a_question_and_says_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("api.sock");
    let _listener = UnixListener::bind(&socket).unwrap();
    for arguments in [&["status"][..], &["observe"], &["top"], &["enforcement", "on"]] {
        gives_up(&socket, arguments);
    }
}

#[test]
fn one_that_takes_no_more_connections() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("api.sock");
    let address = socket2::SockAddr::unix(&path).unwrap();
    let new = || socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None).unwrap();
    let listener = new();
    listener.bind(&address).unwrap();
    listener.listen(1).unwrap();
    let mut waiting = Vec::new();
    loop {
        let socket = new();
        socket.set_nonblocking(true).unwrap();
        if socket.connect(&address).is_err() {
            break;
        }
        waiting.push(socket);
    }
    gives_up(&path, &["status"]);
}

#[test]
fn one_that_stops_in_the_midst_of_its_answer() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("api.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        assert!(stream.read(&mut [0; 4096]).unwrap() > 0, "a question");
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{").unwrap();
        // until the client has gone
        let _ = stream.read_to_end(&mut Vec::new());
    });
    gives_up(&socket, &["status"]);
    server.join().unwrap();
}
