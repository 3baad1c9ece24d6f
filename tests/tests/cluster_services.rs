//! Services and policies under every kind of kube-proxy, and without one: every pair of pods, by pod address and through
//! services, both families; with a bridge and with routed interfaces.

use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};
use podgate_tests::cluster::matrix::Matrix;
use podgate_tests::cluster::{Cluster, Options, Primary, Proxy};
use serde_json::{Value, json};

/// Policies of both directions, by selector, port, name and block: after each the whole matrix is as the oracle says.
fn policies() -> [Value; 4] {
    let policy = |name: &str, spec: Value| {
        json!({
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": { "namespace": "x", "name": name },
            "spec": spec,
        })
    };
    let a = json!({ "matchLabels": { "pod": "a" } });
    let b = json!({ "matchLabels": { "pod": "b" } });
    [
        policy(
            "a-from-y",
            json!({
                "podSelector": a,
                "policyTypes": ["Ingress"],
                "ingress": [{ "from": [{ "namespaceSelector": { "matchLabels": { "ns": "y" } } }] }],
            }),
        ),
        policy(
            "b-to-ya-on-80",
            json!({
                "podSelector": b,
                "policyTypes": ["Egress"],
                "egress": [{
                    "to": [{ "namespaceSelector": { "matchLabels": { "ns": "y" } }, "podSelector": a }],
                    "ports": [{ "port": "serve-80-tcp" }, { "port": 81, "protocol": "UDP" }],
                }],
            }),
        ),
        policy(
            "a-to-blocks",
            json!({
                "podSelector": a,
                "policyTypes": ["Egress"],
                // node 2's pods, and none of the services' addresses
                "egress": [{ "to": [
                    { "ipBlock": { "cidr": "10.244.2.0/24" } },
                    { "ipBlock": { "cidr": "fd00:244:0:2::/64" } },
                ] }],
            }),
        ),
        policy("all-deny", json!({ "podSelector": {}, "policyTypes": ["Ingress", "Egress"] })),
    ]
}

/// Two processors carry one cluster at a time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn matrix_holds(options: Options) -> Result<()> {
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let cluster = Cluster::start(options)?;
    cluster.install_podgate()?;
    let matrix = Matrix::start(&cluster, &["x", "y"], &["a", "b"])?;
    let mut names = Vec::new();
    for policy in policies() {
        let name = policy["metadata"]["name"].as_str().context("a policy has a name")?;
        cluster.apply(std::slice::from_ref(&policy))?;
        cluster.await_policies()?;
        matrix.expect_oracle(&format!("with policy {name}"), &cluster.world()?)?;
        names.push(name.to_owned());
    }
    for name in names {
        cluster.kubectl(&["delete", "networkpolicy", "-n", "x", &name])?;
        cluster.await_policies()?;
        matrix.expect_oracle(&format!("without policy {name}"), &cluster.world()?)?;
    }
    cluster.finish()
}

#[test]
fn with_nftables_and_routed_interfaces() -> Result<()> {
    matrix_holds(Options { proxy: Proxy::Nftables, primary: Primary::Ptp })
}

#[test]
fn without_kube_proxy() -> Result<()> {
    matrix_holds(Options { proxy: Proxy::Absent, primary: Primary::Bridge })
}

#[test]
fn with_iptables_and_routed_interfaces() -> Result<()> {
    matrix_holds(Options { proxy: Proxy::Iptables, primary: Primary::Ptp })
}
