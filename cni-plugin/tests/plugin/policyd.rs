//! A policyd that answers as a test wants it to.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use podgate_contract::handshake::Request;

/// What it does with a connection.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Mood {
    /// Answers with this line.
    Says(&'static str),
    /// Reads and never answers.
    Hangs,
    /// Closes without a word.
    Closes,
    /// Talks without ever ending a line, slowly enough that each read succeeds in time.
    Drips,
    /// Sends more than a line may hold.
    Floods,
}

pub(crate) const OK: Mood = Mood::Says(r#"{"status":"ok"}"#);

/// Runs until dropped.
pub(crate) struct Policyd {
    path: PathBuf,
    stop: Arc<AtomicBool>,
    seen: Arc<Mutex<Vec<Request>>>,
    thread: Option<JoinHandle<()>>,
}

impl Policyd {
    pub(crate) fn listen(path: &Path, mood: Mood) -> Self {
        let listener = UnixListener::bind(path).expect("bind socket");
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (stopped, requests) = (stop.clone(), seen.clone());
        let thread = std::thread::spawn(move || {
            let mut guests = Vec::new();
            for stream in listener.incoming() {
                if stopped.load(Ordering::SeqCst) {
                    break;
                }
                let (stopped, requests) = (stopped.clone(), requests.clone());
                let stream = stream.expect("accept");
                guests.push(std::thread::spawn(move || serve(stream, mood, &stopped, &requests)));
            }
            for guest in guests {
                guest.join().expect("serve");
            }
        });
        Self { path: path.to_owned(), stop, seen, thread: Some(thread) }
    }

    /// The requests received so far.
    pub(crate) fn seen(&self) -> Vec<Request> {
        self.seen.lock().expect("lock").clone()
    }
}

impl Drop for Policyd {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = UnixStream::connect(&self.path);
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || std::thread::panicking(), "the fake policyd failed");
        }
        let _ = std::fs::remove_file(&self.path);
    }
}

fn serve(mut stream: UnixStream, mood: Mood, stop: &AtomicBool, seen: &Mutex<Vec<Request>>) {
    let mut line = String::new();
    BufReader::new(&stream).read_line(&mut line).expect("read request");
    seen.lock().expect("lock").push(serde_json::from_str(&line).expect("a request"));
    // writes go to a plugin that may have given up: its going is no failure here
    match mood {
        Mood::Says(answer) => drop(writeln!(stream, "{answer}")),
        Mood::Closes => {}
        Mood::Floods => drop(stream.write_all(&[b'x'; 100_000])),
        Mood::Hangs | Mood::Drips => {
            while !stop.load(Ordering::SeqCst) {
                if matches!(mood, Mood::Drips) && stream.write_all(b" ").is_err() {
                    return;
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }
}
