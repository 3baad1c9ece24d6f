//! policyd against a real API server with thousands of pods that are objects only, and a few that run: what the first
//! sync costs, what is resident, and how long a label's change takes from the API to the map entry. Needs root.
//!
//! make bench-cluster            (PODGATE_BENCH_PODS=5000,20000 and PODGATE_BENCH_POLICIES=500 are the defaults)
//!
//! The times of an event include the API server and etcd, on the same processors.

use std::env;
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures::stream::{self, TryStreamExt};
use k8s_openapi::api::core::v1::{Namespace, Pod as PodObject};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::api::{Api, Patch, PatchParams, PostParams};
use podgate_testkit::wait::until;
use podgate_tests::cluster::control::{Control, Controllers};
use podgate_tests::cluster::{api::Admin, network};
use podgate_tests::runtime::node::built;
use podgate_tests::runtime::policyd;
use podgate_tests::runtime::program::Daemon;
use podgate_tests::runtime::{Conflist, Node, Pod};
use serde_json::json;

/// Namespaces that the pods are spread over.
const NAMESPACES: usize = 50;
/// Values of the label that policies choose peers by.
const GROUPS: usize = 100;
/// Pods that run on the node.
const LOCAL: usize = 4;
/// Events that are timed, one after the other.
const EVENTS: usize = 200;
/// Requests under way at once while objects are made.
const AT_ONCE: usize = 48;
/// Longest that policyd may take to have everything in force.
const IN_FORCE_TIMEOUT: Duration = Duration::from_secs(120);

fn main() -> Result<()> {
    let sizes = env::var("PODGATE_BENCH_PODS").unwrap_or_else(|_| "5000,20000".into());
    let policies = env::var("PODGATE_BENCH_POLICIES").unwrap_or_else(|_| "500".into());
    let policies = policies.parse().context("read PODGATE_BENCH_POLICIES")?;
    println!("policyd: {}", built("policyd")?.display());
    println!(
        "{:>7} {:>9} {:>8} {:>8} {:>9} {:>9} {:>10} {:>9} {:>9} {:>9}",
        "pods",
        "policies",
        "sync s",
        "CPU s",
        "RSS MiB",
        "peak MiB",
        "CPU/event",
        "p50 ms",
        "p99 ms",
        "API p50"
    );
    for size in sizes.split(',') {
        let pods = size.trim().parse().context("read PODGATE_BENCH_PODS")?;
        measure(pods, policies)?.print(pods, policies);
    }
    Ok(())
}

/// What one world has cost.
struct Cost {
    sync: Duration,
    sync_cpu: Duration,
    resident: u64,
    peak: u64,
    event_cpu: Duration,
    latencies: Vec<Duration>,
    patches: Vec<Duration>,
}

impl Cost {
    fn print(&self, pods: usize, policies: usize) {
        let at = |times: &[Duration], percent: usize| {
            let index = (times.len() * percent / 100).min(times.len() - 1);
            times[index].as_secs_f64() * 1000.0
        };
        println!(
            "{pods:>7} {policies:>9} {:>8.2} {:>8.2} {:>9} {:>9} {:>7.2} ms {:>9.1} {:>9.1} {:>9.1}",
            self.sync.as_secs_f64(),
            self.sync_cpu.as_secs_f64(),
            self.resident >> 10,
            self.peak >> 10,
            self.event_cpu.as_secs_f64() * 1000.0 / EVENTS as f64,
            at(&self.latencies, 50),
            at(&self.latencies, 99),
            at(&self.patches, 50),
        );
    }
}

fn measure(pods: usize, policies: usize) -> Result<Cost> {
    let mut control = Control::start(Controllers::Absent)?;
    let node = Node::start(&Conflist::default().with("policydTimeoutMs", 50))?;
    network::attach(&control.node, &node, 1, &[])?;
    control.await_api()?;
    let admin = Admin::of(&control.node);
    make_objects(&admin, pods, policies)?;
    let local = make_local_pods(&admin, &node)?;
    let config = control.authority().kubeconfig(&node, "policyd", "policyd", "system:masters")?;

    let started = Instant::now();
    let mut command = node.command(built("policyd")?);
    command
        .args(["run", "--node-name", "node1", "--metrics-addr", "off"])
        .arg(format!("--source=kubernetes:{}", config.display()));
    let daemon = node.start_daemon("policyd", command)?;
    let socket = node.path(policyd::API);
    let in_force = until(IN_FORCE_TIMEOUT, || {
        policyd::get(&socket, "/v1/status")
            .is_ok_and(|status| status["ready"] == true && status["endpoints"]["enforced"] == LOCAL)
    });
    ensure!(in_force, "policyd has not everything in force: {}", daemon.log());
    let sync = started.elapsed();
    let sync_cpu = cpu(&daemon)?;
    thread::sleep(Duration::from_secs(1));
    let before = cpu(&daemon)?;
    let (latencies, patches) = time_events(&admin, &node, pods)?;
    let event_cpu = cpu(&daemon)?.saturating_sub(before);
    let (resident, peak) = (memory(&daemon, "VmRSS:")?, memory(&daemon, "VmHWM:")?);
    daemon.terminate()?;
    let mut cri = node.cri()?;
    for id in local {
        cri.delete(&id)?;
    }
    node.finish()?;
    control.node.finish()?;
    Ok(Cost { sync, sync_cpu, resident, peak, event_cpu, latencies, patches })
}

fn namespace(number: usize) -> String {
    format!("n{}", number % NAMESPACES)
}

/// The address of a pod that is an object only.
fn address(number: usize) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(10, 128, 0, 1).to_bits() + number as u32)
}

fn make_objects(admin: &Admin, pods: usize, policies: usize) -> Result<()> {
    let params = PostParams::default();
    admin.call(async |client| {
        let namespaces: Api<Namespace> = Api::all(client.clone());
        let mut names: Vec<_> = (0..NAMESPACES).map(namespace).collect();
        names.push("default".into());
        for name in names {
            let object = json!({ "metadata": { "name": name, "labels": { "team": name } } });
            match namespaces.create(&params, &serde_json::from_value(object)?).await {
                Err(kube::Error::Api(refused)) if refused.is_already_exists() => {}
                made => drop(made?),
            }
        }
        stream::iter((0..pods).map(Ok))
            .try_for_each_concurrent(AT_ONCE, async |number| {
                let object = json!({
                    "metadata": {
                        "name": format!("p{number}"),
                        "labels": { "group": format!("g{}", number % GROUPS), "app": "remote" },
                    },
                    "spec": {
                        "nodeName": format!("far{}", number % 200),
                        "containers": [{ "name": "c", "image": "i", "ports": [{ "containerPort": 80, "name": "web" }] }],
                    },
                });
                let ip = address(number);
                let status = json!({ "status": {
                    "phase": "Running", "podIP": ip, "podIPs": [{ "ip": ip }],
                } });
                make_pod(client.clone(), &namespace(number), object, status).await?;
                Ok::<_, anyhow::Error>(())
            })
            .await?;
        // a tenth is about the node's pods, the rest about pods of other nodes
        stream::iter((0..policies).map(Ok))
            .try_for_each_concurrent(AT_ONCE, async |number| {
                let local = number % 10 == 0;
                let app = if local { "local" } else { "remote" };
                let group = format!("g{}", number / 10 % GROUPS);
                let peer = json!({
                    "namespaceSelector": {},
                    "podSelector": { "matchLabels": { "group": group } },
                });
                let object = json!({
                    "metadata": { "name": format!("q{number}") },
                    "spec": {
                        "podSelector": { "matchLabels": { "app": app } },
                        "policyTypes": ["Ingress"],
                        "ingress": [{ "from": [peer], "ports": [{ "port": 80 }] }],
                    },
                });
                let within = if local { "default".to_owned() } else { namespace(number) };
                let api: Api<NetworkPolicy> = Api::namespaced(client.clone(), &within);
                api.create(&PostParams::default(), &serde_json::from_value(object)?).await?;
                Ok(())
            })
            .await
    })
}

async fn make_pod(
    client: kube::Client,
    namespace: &str,
    object: serde_json::Value,
    status: serde_json::Value,
) -> Result<PodObject> {
    let api: Api<PodObject> = Api::namespaced(client, namespace);
    let made = api.create(&PostParams::default(), &serde_json::from_value(object)?).await?;
    let name = made.metadata.name.clone().unwrap_or_default();
    api.patch_status(&name, &PatchParams::default(), &Patch::Merge(&status)).await?;
    Ok(made)
}

/// Pods that the runtime makes, known to the API server with the addresses that they got.
fn make_local_pods(admin: &Admin, node: &Node) -> Result<Vec<String>> {
    let mut cri = node.cri()?;
    let mut ids = Vec::new();
    for number in 0..LOCAL {
        let object = json!({
            "metadata": { "name": format!("local{number}"), "labels": { "app": "local" } },
            "spec": { "nodeName": "node1", "containers": [{ "name": "c", "image": "i" }] },
        });
        let made = admin.call(async |client| {
            make_pod(client, "default", object, json!({ "status": { "phase": "Pending" } })).await
        })?;
        let mut pod = Pod::new(&made.metadata.name.unwrap_or_default());
        pod.uid = made.metadata.uid.unwrap_or_default();
        let id = cri.run(&pod)?;
        let ip: IpAddr = cri.address(&id)?;
        let status =
            json!({ "status": { "phase": "Running", "podIP": ip, "podIPs": [{ "ip": ip }] } });
        admin.call(async |client| {
            let api: Api<PodObject> = Api::namespaced(client, "default");
            api.patch_status(&pod.name, &PatchParams::default(), &Patch::Merge(&status)).await?;
            Ok(())
        })?;
        ids.push(id);
    }
    Ok(ids)
}

/// Moves one pod after the other out of a group that the node's policies allow, and in again.
/// Returns, sorted, the times from sending the change to the entry, and to the API server's answer.
fn time_events(admin: &Admin, node: &Node, pods: usize) -> Result<(Vec<Duration>, Vec<Duration>)> {
    let datapath = node.datapath()?;
    let mut times = (Vec::new(), Vec::new());
    admin.call(async |client| {
        for event in 0..EVENTS {
            // pod 7 of every hundred is in group 7, which a policy of the node allows
            let leaves = event % 2 == 0;
            let number = (event / 2 * GROUPS + 7) % pods;
            let group = if leaves { "nowhere" } else { "g7" };
            let api: Api<PodObject> = Api::namespaced(client.clone(), &namespace(number));
            let patch = json!({ "metadata": { "labels": { "group": group } } });
            let ip = IpAddr::from(address(number));
            let known = datapath.maps.peer(ip)?.is_some();
            ensure!(known == leaves, "pod {number} is in the wrong group before event {event}");
            let sent = Instant::now();
            api.patch(&format!("p{number}"), &PatchParams::default(), &Patch::Merge(&patch))
                .await?;
            times.1.push(sent.elapsed());
            let changed = until(Duration::from_secs(10), || {
                datapath.maps.peer(ip).is_ok_and(|class| class.is_some() != leaves)
            });
            ensure!(changed, "event {event} has not reached the map");
            times.0.push(sent.elapsed());
        }
        Ok(())
    })?;
    times.0.sort();
    times.1.sort();
    Ok(times)
}

fn cpu(daemon: &Daemon) -> Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{}/stat", daemon.pid())).context("read stat")?;
    let fields = stat.rsplit(')').next().context("read stat")?.split_whitespace();
    // utime and stime, in hundredths of a second
    let ticks: u64 = fields.skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    Ok(Duration::from_millis(ticks * 10))
}

/// In KiB.
fn memory(daemon: &Daemon, field: &str) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid()))?;
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    number.with_context(|| format!("find {field} of policyd"))
}
