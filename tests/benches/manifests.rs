//! What a directory of manifests costs policyd in memory, and in CPU while nothing changes: 100,000 pods in one file, in
//! a list, and in many files. The real source, store and index, each layout in a process of its own.
//!
//! cargo bench --profile dev -p podgate-tests --bench manifests

use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::mpsc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::resource::{UsageWho, getrusage};
use podgate_policy::index::Index;
use policyd::sources::dir::DirSource;
use policyd::sources::{Rank, Store};

const PODS: usize = 100_000;
/// Of the layout with many files.
const PODS_IN_A_FILE: usize = 100;
/// How long CPU is measured.
const IDLE: Duration = Duration::from_secs(20);
/// Names the directory to the process that measures.
const DIR: &str = "PODGATE_BENCH_MANIFESTS";

fn main() -> Result<()> {
    if let Ok(dir) = std::env::var(DIR) {
        return measure(Path::new(&dir));
    }
    let layouts: [(&str, Layout); 3] =
        [("one file", one_file), ("one list", one_list), ("1,000 files", many_files)];
    for (name, write) in layouts {
        let dir = tempfile::tempdir()?;
        write(dir.path())?;
        println!("{PODS} pods in {name}:");
        let status = Command::new(std::env::current_exe()?).env(DIR, dir.path()).status()?;
        ensure!(status.success(), "measure {name}: {status}");
    }
    Ok(())
}

/// Writes the pods into a directory.
type Layout = fn(&Path) -> Result<()>;

/// About as much as a pod of a Deployment has that a policy may look at.
fn pod(nth: usize) -> String {
    let (namespace, app, node) = (nth % 200, nth % 500, nth % 1000);
    let [_, a, b, c] = u32::try_from(nth).unwrap_or_default().to_be_bytes();
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: app-{app}-7d4b9c6f5d-{nth}\n  namespace: team-{namespace}\n  \
         uid: 00000000-0000-4000-8000-{nth:012}\n  labels: {{app: app-{app}, team: team-{namespace}, tier: web, pod-template-hash: 7d4b9c6f5d}}\n\
         spec:\n  nodeName: node-{node}\n  containers:\n  - name: main\n    image: registry.example/app:{app}\n    \
         ports: [{{name: http, containerPort: 8080}}]\nstatus: {{phase: Running, podIP: 10.{a}.{b}.{c}}}\n"
    )
}

fn one_file(dir: &Path) -> Result<()> {
    let text: String = (0..PODS).fold(String::new(), |text, nth| text + "---\n" + &pod(nth));
    fs::write(dir.join("all.yaml"), text).context("write manifests")
}

fn one_list(dir: &Path) -> Result<()> {
    let mut text = "apiVersion: v1\nitems:\n".to_owned();
    for nth in 0..PODS {
        let mut indent = "- ";
        for line in pod(nth).lines() {
            writeln!(text, "{indent}{line}")?;
            indent = "  ";
        }
    }
    fs::write(dir.join("all.yaml"), text + "kind: List\n").context("write manifests")
}

fn many_files(dir: &Path) -> Result<()> {
    for first in (0..PODS).step_by(PODS_IN_A_FILE) {
        let pods = (first..first + PODS_IN_A_FILE).map(|nth| "---\n".to_owned() + &pod(nth));
        fs::write(dir.join(format!("{first}.yaml")), pods.collect::<String>())?;
    }
    Ok(())
}

fn measure(dir: &Path) -> Result<()> {
    let (sender, updates) = mpsc::channel();
    let (mut store, mut index) = (Store::new(["dir".to_owned()]), Index::new());
    let (began, rss) = (Instant::now(), memory("VmRSS:")?);
    let _source = DirSource::start(dir.to_owned(), move |update| drop(sender.send(update)))?;
    while !store.synced() {
        store.take(Rank(0), updates.recv()?, &mut index, |_| false);
    }
    let took = began.elapsed();
    ensure!(index.pods().len() == PODS, "{} pods", index.pods().len());
    sleep(Duration::from_secs(2));
    println!(
        "  synced after {:.1} s; {rss} MiB before, {} MiB at most, {} MiB after",
        took.as_secs_f64(),
        memory("VmHWM:")?,
        memory("VmRSS:")?
    );
    let before = cpu()?;
    sleep(IDLE);
    println!("  idle: {:.2} % of a CPU", (cpu()? - before) / IDLE.as_secs_f64() * 100.0);
    Ok(())
}

/// A line of this process's status, in MiB.
fn memory(field: &str) -> Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix(field)).context("no such line")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? / 1024)
}

/// Seconds of CPU that this process has used.
fn cpu() -> Result<f64> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    let seconds = |time: nix::sys::time::TimeVal| {
        Duration::new(time.tv_sec().try_into().unwrap_or_default(), 0).as_secs_f64()
            + f64::from(i32::try_from(time.tv_usec()).unwrap_or_default()) / 1e6
    };
    Ok(seconds(usage.user_time()) + seconds(usage.system_time()))
}
