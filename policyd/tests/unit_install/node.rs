//! A node's directories, a running `policyd install`, and a fake policyd for its requests.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use podgate_contract::api::NewPods;
use podgate_testkit::wait::eventually;
use policyd::install::new_pods;

pub(crate) const LIST: &str = "{\n  \"cniVersion\": \"1.0.0\",\n  \"name\": \"pods\",\n  \"plugins\": [\n    { \"type\": \"bridge\", \"mtu\": 1.450e3 }\n  ]\n}\n";
pub(crate) const SINGLE: &str =
    "{ \"cniVersion\": \"0.3.1\", \"name\": \"pods\", \"type\": \"ptp\" }\n";

pub(crate) struct Node {
    dir: tempfile::TempDir,
}

impl Node {
    pub(crate) fn new() -> Self {
        let node = Self { dir: tempfile::tempdir().unwrap() };
        for dir in ["conf", "bin", "run"] {
            fs::create_dir(node.path(dir)).unwrap();
        }
        for plugin in ["bridge", "ptp"] {
            node.script(
                &format!("bin/{plugin}"),
                r#"printf '{"cniVersion":"1.0.0","supportedVersions":["0.2.0","0.3.1","1.0.0"]}'"#,
            );
        }
        node.plugin("0.1.0");
        node
    }

    /// An executable file.
    pub(crate) fn script(&self, name: &str, body: &str) {
        let new = self.path("new");
        fs::write(&new, format!("#!/bin/sh\n{body}\n")).unwrap();
        fs::set_permissions(&new, fs::Permissions::from_mode(0o700)).unwrap();
        fs::rename(new, self.path(name)).unwrap();
    }

    /// What policyd's status says.
    pub(crate) fn new_pods(&self) -> NewPods {
        new_pods(&self.path("run/install.json"))
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The binary to be placed, of some version.
    pub(crate) fn plugin(&self, version: &str) {
        self.script("podgate", &format!("echo 'podgate {version}: a stand-in' >&2\nexit 1"));
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        let new = self.path("conf.new");
        fs::write(&new, text).unwrap();
        fs::rename(new, self.path("conf").join(name)).unwrap();
    }

    pub(crate) fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path("conf").join(name)).unwrap_or_default()
    }

    pub(crate) fn files(&self) -> Vec<String> {
        let name = |entry: std::io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string();
        let mut names: Vec<_> =
            fs::read_dir(self.path("conf")).unwrap().map(|entry| name(entry).unwrap()).collect();
        names.sort();
        names
    }

    pub(crate) fn command(&self, verb: &str, more: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_policyd"));
        command
            .arg(verb)
            .args(["--cni-conf-dir".as_ref(), self.path("conf").as_os_str()])
            .args(["--cni-bin-dir".as_ref(), self.path("bin").as_os_str()])
            .args(["--install-state".as_ref(), self.path("run/install.json").as_os_str()])
            .args(["--plugin".as_ref(), self.path("podgate").as_os_str()])
            .args(more)
            .env_clear()
            .stdin(Stdio::null())
            .stderr(Stdio::piped());
        command
    }

    pub(crate) fn once(&self, more: &[&str]) -> Output {
        self.command("install", more).output().unwrap()
    }

    pub(crate) fn watch(&self, more: &[&str]) -> Watch {
        let mut all = vec!["--watch"];
        all.extend(more);
        let mut child = self.command("install", &all).spawn().unwrap();
        let stderr = child.stderr.take().unwrap();
        let log = Arc::new(Mutex::new(String::new()));
        let said = log.clone();
        let reader = thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                eprintln!("{line}");
                *said.lock().unwrap() += &(line + "\n");
            }
        });
        Watch { child, log, reader: Some(reader) }
    }
}

/// New pods get a gate by these files.
pub(crate) fn gated_by(files: Vec<String>) -> NewPods {
    NewPods::Yes { files, warnings: vec![] }
}

pub(crate) struct Watch {
    child: Child,
    pub(crate) log: Arc<Mutex<String>>,
    reader: Option<thread::JoinHandle<()>>,
}

impl Watch {
    /// Waits until it says this.
    pub(crate) fn says(&self, text: &str) {
        eventually(&format!("it says {text:?}"), || self.log.lock().unwrap().contains(text));
    }

    /// SIGTERM, its end, and what it said. It must have said something: before it has taken up the signal, that kills it.
    pub(crate) fn stop(mut self) -> String {
        kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGTERM).unwrap();
        assert_eq!(self.child.wait().unwrap().code(), Some(0));
        self.reader.take().unwrap().join().unwrap();
        self.log.lock().unwrap().clone()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn told(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

pub(crate) const READY: &str = r#"{"status":"ok"}"#;
pub(crate) const PENDING: &str = r#"{"status":"pending","reason":"not synced"}"#;
pub(crate) const CANNOT: &str =
    r#"{"status":"error","message":"policyd cannot enforce: kernel 4.19"}"#;

/// A fake policyd that answers every request on its socket.
pub(crate) struct Policyd {
    socket: PathBuf,
    pub(crate) asked: Arc<AtomicBool>,
    answer: Arc<Mutex<&'static str>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Policyd {
    pub(crate) fn listen(socket: &Path) -> Self {
        let listener = UnixListener::bind(socket).unwrap();
        let (asked, answer) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(PENDING)));
        let (was_asked, answers) = (asked.clone(), answer.clone());
        let thread = thread::spawn(move || {
            loop {
                let (mut stream, _) = listener.accept().unwrap();
                let mut line = String::new();
                BufReader::new(stream.try_clone().unwrap()).read_line(&mut line).unwrap();
                if line.is_empty() {
                    return;
                }
                assert_eq!(line.trim(), r#"{"op":"status"}"#);
                let text = *answers.lock().unwrap();
                // on a slow machine the client may have timed out: it tries again
                if writeln!(stream, "{text}").is_ok() {
                    was_asked.store(true, Ordering::SeqCst);
                }
            }
        });
        Self { socket: socket.to_owned(), asked, answer, thread: Some(thread) }
    }

    pub(crate) fn answers(&self, answer: &'static str) {
        *self.answer.lock().unwrap() = answer;
    }
}

impl Drop for Policyd {
    fn drop(&mut self) {
        // says nothing, which ends the thread
        drop(UnixStream::connect(&self.socket));
        let ended = self.thread.take().unwrap().join();
        assert!(ended.is_ok() || thread::panicking(), "the stand-in for policyd has failed");
    }
}
