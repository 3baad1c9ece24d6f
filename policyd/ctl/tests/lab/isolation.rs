//! Nothing of a lab outlives it, however it ends.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::Standing;

/// Longer than a busy machine needs to end a handful of processes.
const EXIT_TIMEOUT: Duration = Duration::from_secs(20);

const KINDS: [&str; 3] = ["net", "mnt", "pid"];

/// What a process and those below it are and hold.
#[derive(Debug)]
struct Belongings {
    processes: Vec<i32>,
    /// `net:[4026532281]` and the like: the lab's own.
    namespaces: BTreeSet<PathBuf>,
    /// Held open: the number of a namespace that is gone is given to the next one, maybe another lab's.
    _held: Vec<File>,
}

fn children(process: i32) -> Vec<i32> {
    let text = fs::read_to_string(format!("/proc/{process}/task/{process}/children")).unwrap();
    text.split_whitespace().map(|child| child.parse().unwrap()).collect()
}

fn namespace(process: &str, kind: &str) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{process}/ns/{kind}")).ok()
}

impl Belongings {
    fn of(inner: Pid) -> Self {
        let inner = inner.as_raw();
        let mut processes = vec![inner];
        processes.extend(children(inner));
        assert!(processes.len() > 1, "policyd is one of them");
        let (mut namespaces, mut held) = (BTreeSet::new(), Vec::new());
        for kind in KINDS {
            held.push(File::open(format!("/proc/{inner}/ns/{kind}")).unwrap());
            let own = namespace(&inner.to_string(), kind).unwrap();
            assert_ne!(own, namespace("self", kind).unwrap(), "{kind} is the machine's");
            namespaces.insert(own);
        }
        Self { processes, namespaces, _held: held }
    }

    /// What is still there. A process that has ended and that nobody has asked about yet is not.
    fn left(&self) -> Vec<String> {
        let mut left = Vec::new();
        for process in &self.processes {
            let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
            let state = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
            if !state.is_empty() && !state.starts_with('Z') {
                left.push(format!("process {stat}"));
            }
        }
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let process = entry.file_name().into_string().unwrap_or_default();
            for kind in KINDS {
                if namespace(&process, kind).is_some_and(|held| self.namespaces.contains(&held)) {
                    left.push(format!("{kind} namespace of process {process}"));
                }
            }
        }
        left
    }
}

/// Ends a standing lab by a signal to the process that the user started, and looks for what is left.
fn ended_by(signal: Signal) -> std::process::ExitStatus {
    let mut lab = Standing::start("dual-stack");
    let belongings = Belongings::of(lab.inner);
    assert!(!belongings.left().is_empty());
    kill(Pid::from_raw(lab.outer.id().try_into().unwrap()), signal).unwrap();
    let status = lab.outer.wait().unwrap();
    let end =
        Instant::now() + if signal == Signal::SIGKILL { EXIT_TIMEOUT } else { Duration::ZERO };
    loop {
        let left = belongings.left();
        if left.is_empty() {
            break;
        }
        assert!(Instant::now() < end, "{signal} left {left:?}");
        thread::sleep(Duration::from_millis(20));
    }
    // names that a lab gives are its own: none of them is on the machine
    assert!(!PathBuf::from("/run/netns/dual.server").exists());
    assert!(!PathBuf::from("/run/podgate-lab").exists());
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains("podgate-lab"), "{mounts}");
    status
}

#[test]
fn interrupted() {
    assert_eq!(ended_by(Signal::SIGINT).code(), Some(130));
}

#[test]
fn terminated() {
    assert_eq!(ended_by(Signal::SIGTERM).code(), Some(143));
}

#[test]
fn killed() {
    assert_eq!(ended_by(Signal::SIGKILL).signal(), Some(9));
}

/// The inner process alone killed: the outer one says so, and the rest ends too.
#[test]
fn the_inner_process_killed() {
    let mut lab = Standing::start("dual-stack");
    let belongings = Belongings::of(lab.inner);
    kill(lab.inner, Signal::SIGKILL).unwrap();
    assert_eq!(lab.outer.wait().unwrap().code(), Some(2));
    assert_eq!(belongings.left(), Vec::<String>::new());
}

/// Killed while it is being built, at several moments.
#[test]
fn killed_at_any_moment() {
    for delay in [5, 40, 120, 250, 400] {
        let mut outer = super::lab(&super::world("dual-stack").join("manifests"), &super::plugin())
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        thread::sleep(Duration::from_millis(delay));
        let outer_id = i32::try_from(outer.id()).unwrap();
        let inner = children(outer_id);
        // not there yet, or there: its PID namespace is its own from the start
        let open = |inner: &i32| File::open(format!("/proc/{inner}/ns/pid")).ok();
        let held = inner.first().and_then(open);
        let own = held.as_ref().and_then(|_| namespace(&inner[0].to_string(), "pid"));
        outer.kill().unwrap();
        outer.wait().unwrap();
        let belongings = Belongings {
            processes: inner,
            namespaces: own.into_iter().collect(),
            _held: held.into_iter().collect(),
        };
        let mine = namespace("self", "pid").unwrap();
        assert!(!belongings.namespaces.contains(&mine));
        let end = Instant::now() + EXIT_TIMEOUT;
        while !belongings.left().is_empty() {
            assert!(Instant::now() < end, "after {delay} ms: {:?}", belongings.left());
            thread::sleep(Duration::from_millis(20));
        }
    }
}
