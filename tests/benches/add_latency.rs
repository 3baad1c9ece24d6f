//! What the chained plugin costs a pod's ADD: podgate, with policyd up, against `tuning`, the Go plugin that does next
//! to nothing, in one run on the same pods. Both are called as libcni calls them: a process with the configuration
//! and the bridge's result on its standard input. Needs root.
//!
//! cargo bench --profile dev -p podgate-tests --bench add_latency
//!
//! The plugins and policyd come from PODGATE_BIN_DIR, else from beside this program (the profile matters for
//! them, not for this).

use std::env;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use podgate_tests::runtime::node::built;
use podgate_tests::runtime::world::{World, egress_only_to};
use podgate_tests::runtime::{Conflist, Node, Pod, Policyd};
use serde_json::{Value, json};

/// Pods one after the other.
const ROUNDS: usize = 50;
/// Pods at the same time.
const AT_ONCE: usize = 50;

/// Where a node has its plugins.
const PLUGINS: &str = "/run/node/bin";

fn main() -> Result<()> {
    if env::args().any(|argument| argument == "inside") { inside() } else { outside() }
}

/// Makes the node and runs the measurement in it, as one more of its processes.
fn outside() -> Result<()> {
    let node = Node::bare()?;
    let world = World::of(&node)?;
    world.policy("bench", egress_only_to("bench", &["friend"]))?;
    for number in 0..ROUNDS + AT_ONCE {
        world.pod(&Pod::new(&format!("b{number}")), "bench", None)?;
    }
    let policyd = Policyd::start(&node)?;
    println!("podgate: {}", built("podgate")?.display());
    let exe = env::current_exe().context("find this program")?;
    let status = node.command(exe).arg("inside").status().context("run in the node")?;
    if !status.success() {
        bail!("measure: {status}; policyd says: {}", policyd.daemon.log());
    }
    node.finish()
}

/// A pod that the bridge plugin has made, as the next plugin gets it.
struct Made {
    number: usize,
    netns: String,
    result: Value,
}

fn inside() -> Result<()> {
    let mut podgate = Series::new("podgate");
    let mut tuning = Series::new("tuning");
    let mut made = Vec::new();
    for number in 0..ROUNDS {
        let pod = make(number)?;
        // who comes first on a pod takes turns
        if number % 2 == 0 {
            tuning.add(&pod)?;
            podgate.add(&pod)?;
        } else {
            podgate.add(&pod)?;
            tuning.add(&pod)?;
        }
        made.push(pod);
    }
    println!("{ROUNDS} pods, one after the other       p50        p90        CPU, p50");
    for series in [&mut tuning, &mut podgate] {
        series.print();
    }
    for pod in made {
        podgate.call("DEL", &pod)?;
        unmake(&pod)?;
    }
    at_once()
}

/// Many at once: do they queue behind each other's waits?
fn at_once() -> Result<()> {
    let pods = (ROUNDS..ROUNDS + AT_ONCE).map(make).collect::<Result<Vec<_>>>()?;
    println!("{AT_ONCE} pods at once                    p50        last");
    for plugin in ["tuning", "podgate"] {
        let barrier = Barrier::new(pods.len());
        let mut walls = thread::scope(|scope| {
            let adds: Vec<_> = pods
                .iter()
                .map(|pod| {
                    scope.spawn(|| {
                        barrier.wait();
                        let started = Instant::now();
                        call(plugin, "ADD", pod).map(|()| started.elapsed())
                    })
                })
                .collect();
            let join = |add: thread::ScopedJoinHandle<'_, Result<Duration>>| {
                add.join().unwrap_or_else(|_| bail!("a thread panicked"))
            };
            adds.into_iter().map(join).collect::<Result<Vec<_>>>()
        })?;
        walls.sort();
        let last = walls.last().copied().unwrap_or_default();
        println!("  {plugin:<30} {:>7.2} ms {:>7.2} ms", ms(walls[walls.len() / 2]), ms(last));
    }
    for pod in &pods {
        call("podgate", "DEL", pod)?;
        unmake(pod)?;
    }
    Ok(())
}

/// A namespace, and the bridge plugin's ADD.
fn make(number: usize) -> Result<Made> {
    let name = format!("b{number}");
    ip(&["netns", "add", &name])?;
    let mut pod = Made { number, netns: format!("/run/netns/{name}"), result: Value::Null };
    let mut bridge = Conflist::ungated().json()["plugins"][0].take();
    complete(&mut bridge);
    let result = run("bridge", "ADD", &pod, &bridge)?;
    pod.result = serde_json::from_slice(&result).context("read the bridge's result")?;
    Ok(pod)
}

fn unmake(pod: &Made) -> Result<()> {
    ip(&["netns", "del", &format!("b{}", pod.number)])
}

fn ip(arguments: &[&str]) -> Result<()> {
    let status = Command::new("ip").args(arguments).status().context("run ip")?;
    ensure!(status.success(), "ip {arguments:?}: {status}");
    Ok(())
}

fn complete(conf: &mut Value) {
    conf["cniVersion"] = json!("1.0.0");
    conf["name"] = json!(Conflist::NETWORK);
}

fn call(plugin: &str, verb: &str, pod: &Made) -> Result<()> {
    let mut conf = json!({ "type": plugin, "prevResult": pod.result, "logLevel": "warn" });
    complete(&mut conf);
    run(plugin, verb, pod, &conf).map(drop)
}

fn run(plugin: &str, verb: &str, pod: &Made, conf: &Value) -> Result<Vec<u8>> {
    let Pod { namespace, name, uid, .. } = Pod::new(&format!("b{}", pod.number));
    let mut child = Command::new(Path::new(PLUGINS).join(plugin))
        .env("CNI_COMMAND", verb)
        .env("CNI_CONTAINERID", format!("bench-{}", pod.number))
        .env("CNI_NETNS", &pod.netns)
        .env("CNI_IFNAME", "eth0")
        .env("CNI_PATH", PLUGINS)
        .env(
            "CNI_ARGS",
            format!("IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={name};K8S_POD_UID={uid}"),
        )
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("start {plugin}"))?;
    let mut stdin = child.stdin.take().context("talk to the plugin")?;
    stdin.write_all(conf.to_string().as_bytes()).context("talk to the plugin")?;
    drop(stdin);
    let output = child.wait_with_output().with_context(|| format!("wait for {plugin}"))?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "{plugin} {verb}: {}: {said}", output.status);
    Ok(output.stdout)
}

/// The ADDs of one plugin.
struct Series {
    plugin: &'static str,
    walls: Vec<Duration>,
    cpu: Vec<Duration>,
}

impl Series {
    fn new(plugin: &'static str) -> Self {
        // pages of a program that nobody has run lately come from the disk
        let _ = fs::read(Path::new(PLUGINS).join(plugin));
        Self { plugin, walls: Vec::new(), cpu: Vec::new() }
    }

    fn add(&mut self, pod: &Made) -> Result<()> {
        let before = children_cpu()?;
        let started = Instant::now();
        self.call("ADD", pod)?;
        self.walls.push(started.elapsed());
        self.cpu.push(children_cpu()?.saturating_sub(before));
        Ok(())
    }

    fn call(&self, verb: &str, pod: &Made) -> Result<()> {
        call(self.plugin, verb, pod)
    }

    fn print(&mut self) {
        self.walls.sort();
        self.cpu.sort();
        let at = |times: &[Duration], percent: usize| ms(times[times.len() * percent / 100]);
        println!(
            "  {:<30} {:>7.2} ms {:>7.2} ms {:>7.2} ms",
            self.plugin,
            at(&self.walls, 50),
            at(&self.walls, 90),
            at(&self.cpu, 50)
        );
    }
}

/// CPU time, user and kernel, of all children that have ended and been waited for.
fn children_cpu() -> Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).context("ask for CPU time")?;
    let micros = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    Ok(Duration::from_micros(micros.unsigned_abs()))
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
