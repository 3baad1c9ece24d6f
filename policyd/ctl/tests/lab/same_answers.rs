//! policyd and the manifests that it reads give the same answers to the same questions, the whole JSON.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::{Standing, err, out, world};

/// How long policyd may take to learn the node's addresses after it is ready.
const ADDRESSES_TIMEOUT: Duration = Duration::from_secs(20);

/// Nodes, and a pod of the lab's own that lets nobody in.
const NODES: &str = "
apiVersion: v1
kind: Pod
metadata: {namespace: ops, name: agent}
spec: {hostNetwork: true, nodeName: lab, containers: []}
status: {podIPs: [{ip: 192.0.2.10}, {ip: 'fd00:2::10'}]}
---
apiVersion: v1
kind: Pod
metadata: {namespace: ops, name: away}
spec: {hostNetwork: true, nodeName: elsewhere, containers: []}
status: {podIPs: [{ip: 192.0.2.20}]}
---
apiVersion: v1
kind: Node
metadata: {name: elsewhere}
status: {addresses: [{type: InternalIP, address: 192.0.2.21}]}
---
apiVersion: v1
kind: Pod
metadata: {namespace: ops, name: closed, labels: {app: closed}}
spec: {nodeName: lab, containers: []}
status: {hostIPs: [{ip: 192.0.2.10}]}
---
apiVersion: v1
kind: Service
metadata: {namespace: ops, name: closed}
spec: {selector: {app: closed}, ports: [{port: 80}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: ops, name: closed}
spec: {podSelector: {matchLabels: {app: closed}}, policyTypes: [Ingress, Egress]}
";

fn explain(
    command: &mut Command,
    [from, to, port, family]: [&str; 4],
    manifests: Option<&Path>,
) -> Value {
    command.args(["explain", "-o", "json", "--from", from, "--to", to, "--port", port]);
    if let Some(manifests) = manifests {
        command.arg("--manifests").arg(manifests);
    }
    if !family.is_empty() {
        command.args(["--family", family]);
    }
    let output = command.output().unwrap();
    serde_json::from_str(&out(&output)).unwrap_or_else(|error| panic!("{error}: {}", err(&output)))
}

fn same_answers(manifests: &Path, questions: &[([&str; 4], &str)]) {
    let lab = Standing::of(manifests);
    let podgatectl = env!("CARGO_BIN_EXE_podgatectl");
    for (question, verdict) in questions {
        let mut offline = Command::new(podgatectl);
        let offline = explain(&mut offline, *question, Some(manifests));
        assert_eq!(offline["verdict"], *verdict, "{question:?}: {offline:#}");
        let end = Instant::now() + ADDRESSES_TIMEOUT;
        loop {
            let online = explain(&mut lab.inside(podgatectl), *question, None);
            if online == offline {
                break;
            }
            assert!(Instant::now() < end, "{question:?}: {online:#}\nfrom manifests: {offline:#}");
            thread::sleep(Duration::from_millis(50));
        }
    }
}

#[test]
fn about_pods_services_and_nodes() {
    let dir = tempfile::tempdir().unwrap();
    for file in fs::read_dir(world("services").join("manifests")).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), dir.path().join(file.file_name())).unwrap();
    }
    fs::write(dir.path().join("40-nodes.yaml"), NODES).unwrap();
    same_answers(
        dir.path(),
        &[
            (["shop/web", "svc:shop/store", "5432", ""], "mixed"),
            (["shop/web", "svc:infra/dns", "53/UDP", ""], "allow"),
            (["shop/web", "10.96.0.10", "53/UDP", "4"], "allow"),
            (["shop/cron", "svc:infra/dns", "53/UDP", ""], "deny"),
            (["shop/cron", "svc:shop/cron", "80", ""], "allow"),
            (["shop/web", "svc:shop/legacy", "80", ""], "allow"),
            (["shop/web", "infra/dns-1", "5353/UDP", "6"], "allow"),
            (["shop/web", "8.8.8.8", "ICMP", ""], "deny"),
            (["shop/backup", "shop/store-archive", "5432", ""], "allow"),
            (["192.0.2.1", "shop/api-new", "9090", ""], "deny"),
            (["ops/agent", "ops/closed", "80", ""], "allow"),
            (["node:lab", "svc:ops/closed", "80", ""], "allow"),
            (["node:elsewhere", "svc:ops/closed", "80", ""], "deny"),
            (["192.0.2.20", "ops/closed", "80", ""], "deny"),
            (["ops/away", "svc:ops/closed", "80", ""], "deny"),
            (["ops/closed", "node:lab", "10250", ""], "deny"),
            (["shop/guest", "node:elsewhere", "10250", ""], "allow"),
        ],
    );
}

#[test]
fn about_a_service_address_on_the_node() {
    same_answers(
        &world("node-local-dns").join("manifests"),
        &[
            (["app/by-pods", "svc:kube-system/kube-dns", "53/UDP", ""], "allow"),
            (["app/by-address", "10.96.0.10", "53/UDP", ""], "allow"),
            (["app/neither", "svc:kube-system/kube-dns", "53/UDP", ""], "deny"),
            (["node:lab", "svc:app/api", "80", ""], "allow"),
        ],
    );
}
