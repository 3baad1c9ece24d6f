//! The same objects through kube-proxy and podgate: wherever kube-proxy leads a pod's packet, podgate knows of it, so that no
//! way around egress policy is left and none that policy allows is closed.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use podgate_tests::cluster::pods::{self, Workload};
use podgate_tests::cluster::probe::{self, Probe, Protocol, Server};
use podgate_tests::cluster::{CLUSTER_TIMEOUT, Cluster, Options, Primary, Proxy};
use serde_json::{Value, json};

const SPACE: &str = "ways";
/// Of both workers: `server` is on the first, the clients on the second.
const CLIENT_WORKER: usize = 1;
const BALANCER: &str = "192.0.2.1";
const NARROW_BALANCER: &str = "192.0.2.2";
const EXTERNAL: &str = "192.0.2.3";
const NODE_PORT: u16 = 30080;

/// Two processors carry one cluster at a time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn service(name: &str, labels: &Value, spec: Value) -> Value {
    let mut service = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "namespace": SPACE, "name": name, "labels": labels },
        "spec": { "ports": [{ "name": "web", "port": 80 }] },
    });
    if let (Some(all), Value::Object(more)) = (service["spec"].as_object_mut(), spec) {
        all.extend(more);
    }
    service
}

/// A slice that nobody but this test writes: its service has no selector.
fn slice(service: &str, labels: Value, ports: Value, server: IpAddr) -> Value {
    let mut slice = json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "namespace": SPACE,
            "name": format!("{service}-own"),
            "labels": { "kubernetes.io/service-name": service },
        },
        "addressType": "IPv4",
        "ports": ports,
        "endpoints": [{ "addresses": [server], "conditions": {} }],
    });
    if let (Some(all), Value::Object(more)) = (slice["metadata"]["labels"].as_object_mut(), labels)
    {
        all.extend(more);
    }
    slice
}

fn objects(server: &Workload, client: IpAddr) -> Vec<Value> {
    let none = json!({});
    let web = json!([{ "name": "web", "port": 80 }]);
    let address = server.addresses[0];
    let plain = |name: &str| slice(name, none.clone(), web.clone(), address);
    let with_ranges = |ranges: Value| {
        json!({
            "type": "LoadBalancer",
            "loadBalancerSourceRanges": ranges,
            "allocateLoadBalancerNodePorts": false,
        })
    };
    let labelled = |label: &str| json!({ format!("service.kubernetes.io/{label}"): "" });
    vec![
        service("plain", &none, json!({ "externalIPs": [EXTERNAL] })),
        plain("plain"),
        service("balanced", &none, with_ranges(json!(["10.244.0.0/16"]))),
        plain("balanced"),
        service("narrow", &none, with_ranges(json!([format!("{client}/32")]))),
        plain("narrow"),
        service("headless-label", &labelled("headless"), none.clone()),
        plain("headless-label"),
        service("labelled-slice", &none, none.clone()),
        slice("labelled-slice", labelled("service-proxy-name"), web.clone(), address),
        service(
            "port-zero",
            &none,
            json!({ "ports": [{ "name": "web", "port": 80 }, { "name": "other", "port": 81 }] }),
        ),
        slice(
            "port-zero",
            none.clone(),
            json!([{ "name": "web", "port": 80 }, { "name": "other", "port": 0 }]),
            address,
        ),
        service(
            "node-port",
            &none,
            json!({ "type": "NodePort", "ports": [{ "name": "web", "port": 80, "nodePort": NODE_PORT }] }),
        ),
        plain("node-port"),
    ]
}

/// May reach what `to` says, and nothing else.
fn egress(name: &str, to: &Value) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": { "namespace": SPACE, "name": name },
        "spec": {
            "podSelector": { "matchLabels": { "pod": name } },
            "policyTypes": ["Egress"],
            "egress": [{ "to": [to] }],
        },
    })
}

/// Every way to the server but its own address: its name, and what is asked.
fn ways(cluster: &Cluster) -> Result<Vec<(String, SocketAddr)>> {
    let mut ways = Vec::new();
    for name in ["plain", "balanced", "headless-label", "labelled-slice", "port-zero", "node-port"]
    {
        let template = ["get", "service", "-n", SPACE, name, "-o", "jsonpath={.spec.clusterIP}"];
        let address: IpAddr =
            cluster.kubectl(&template)?.trim().parse().context(name.to_owned())?;
        ways.push((format!("ClusterIP of {name}"), (address, 80).into()));
    }
    for (name, address) in [("externalIP", EXTERNAL), ("balancer with ranges", BALANCER)] {
        ways.push((name.to_owned(), (address.parse::<IpAddr>()?, 80).into()));
    }
    for worker in &cluster.workers {
        let address = worker.addresses()[0];
        ways.push((format!("NodePort at {}", worker.name), (address, NODE_PORT).into()));
    }
    Ok(ways)
}

/// Tries all until it is as expected.
fn expect(title: &str, cases: &[(String, Probe)]) -> Result<()> {
    let started = Instant::now();
    loop {
        let probes: Vec<Probe> = cases.iter().map(|(_, probe)| probe.clone()).collect();
        let answers = probe::run(&probes)?;
        let wrong: Vec<String> = cases
            .iter()
            .zip(&answers)
            .filter(|((_, probe), answer)| answer.is_some() != probe.allowed)
            .map(|((name, probe), answer)| format!("{name} ({}): {answer:?}", probe.to))
            .collect();
        if wrong.is_empty() {
            return Ok(());
        }
        ensure!(started.elapsed() < CLUSTER_TIMEOUT, "{title}: wrong are {wrong:#?}");
    }
}

fn no_way_around(proxy: Proxy) -> Result<()> {
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let cluster = Cluster::start(Options { proxy, primary: Primary::Bridge })?;
    cluster.install_podgate()?;
    cluster.make_namespaces(&[SPACE])?;
    let clients = ["open", "outward", "inward"];
    let mut manifests = vec![pods::manifest(SPACE, "server", Some(1))];
    manifests.extend(clients.map(|name| pods::manifest(SPACE, name, Some(CLIENT_WORKER + 1))));
    cluster.apply(&manifests)?;
    let server = cluster.workload(SPACE, "server")?;
    let clients = cluster.workloads(&clients.map(|name| (SPACE, name)))?;
    let [open, outward, inward] = &clients[..] else { unreachable!("three were asked for") };
    let _server = Server::listen(&server.netns_path, &server.id(), &[80])?;
    cluster.apply(&objects(&server, inward.addresses[0]))?;
    for (name, address) in [("balanced", BALANCER), ("narrow", NARROW_BALANCER)] {
        let status = json!({ "status": { "loadBalancer": { "ingress": [{ "ip": address }] } } });
        let patch = status.to_string();
        cluster.kubectl(&[
            "patch",
            "service",
            "-n",
            SPACE,
            name,
            "--subresource=status",
            "--type=merge",
            "-p",
            &patch,
        ])?;
    }
    let ways = ways(&cluster)?;
    let narrow: SocketAddr = (NARROW_BALANCER.parse::<IpAddr>()?, 80).into();
    let probe = |from: &Workload, to: SocketAddr, allowed: bool| Probe {
        from: from.netns_path.clone(),
        to,
        protocol: Protocol::Tcp,
        allowed,
    };
    let case = |from: &Workload, (name, to): &(String, SocketAddr), allowed: bool| {
        (format!("{} by {name}", from.name), probe(from, *to, allowed))
    };
    // kube-proxy leads all of them to the server
    let mut cases: Vec<_> = ways.iter().map(|way| case(open, way, true)).collect();
    cases.push((format!("{} is in no range", open.name), probe(open, narrow, false)));
    cases.push((format!("{} is in a range", inward.name), probe(inward, narrow, true)));
    expect("before any policy", &cases)?;

    let all_but_pods = json!({ "ipBlock": { "cidr": "0.0.0.0/0", "except": ["10.244.0.0/16"] } });
    let to_server = json!({ "podSelector": { "matchLabels": { "pod": "server" } } });
    cluster.apply(&[egress("outward", &all_but_pods), egress("inward", &to_server)])?;
    cluster.await_policies()?;
    let directly = ("its own address".to_owned(), SocketAddr::new(server.addresses[0], 80));
    let mut cases = Vec::new();
    for way in ways.iter().chain([&directly]) {
        cases.push(case(open, way, true));
        cases.push(case(outward, way, false));
        cases.push(case(inward, way, true));
    }
    cases.push((format!("{} is in a range", inward.name), probe(inward, narrow, true)));
    // what is no node port is the node's: the kubelet's health port answers nobody but itself, its API does
    let kubelet = SocketAddr::new(cluster.workers[0].addresses()[0], 10250);
    let reached = podgate_tests::runtime::node::in_namespace(&outward.netns_path, || {
        std::net::TcpStream::connect_timeout(&kubelet, CLUSTER_TIMEOUT).map(drop)
    })?;
    reached.context("reach another node's own port")?;
    expect("with policies", &cases)?;
    cluster.finish()
}

#[test]
fn no_way_around_egress_policy_beside_iptables() -> Result<()> {
    no_way_around(Proxy::Iptables)
}

#[test]
fn no_way_around_egress_policy_beside_nftables() -> Result<()> {
    no_way_around(Proxy::Nftables)
}
