//! A cluster comes up with podgate from its DaemonSet, a policy is enforced, and all goes without a trace.

use anyhow::Result;
use podgate_tests::cluster::matrix::Matrix;
use podgate_tests::cluster::{Cluster, Options};
use serde_json::json;

#[test]
fn a_cluster_comes_up_enforces_and_goes() -> Result<()> {
    let cluster = Cluster::start(Options::default())?;
    cluster.install_podgate()?;
    let matrix = Matrix::start(&cluster, &["x"], &["a", "b"])?;
    cluster.apply(&[json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": { "namespace": "x", "name": "deny" },
        "spec": { "podSelector": { "matchLabels": { "pod": "a" } }, "policyTypes": ["Ingress"] },
    })])?;
    matrix.expect("with the policy", |case| case.to.name == "b" || case.from.name == "a")?;
    cluster.kubectl(&["delete", "networkpolicy", "deny", "-n", "x"])?;
    matrix.expect("without the policy", |_| true)?;
    cluster.finish()
}
