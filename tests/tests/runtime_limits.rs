//! Limits that a pod's annotations ask for, from the runtime to the gate.

use anyhow::{Context, Result, ensure};
use podgate_bpf::abi::{LimitsKey, LimitsRecord, Rate};
use podgate_tests::runtime::outcome::{gated, nothing_left};
use podgate_tests::runtime::recorder::{calls, wrap_podgate};
use podgate_tests::runtime::{Conflist, Node, Pod};
use serde_json::json;

/// No policyd: what the runtime passes must hold without it.
fn asking() -> Conflist {
    Conflist::default()
        .with("policydTimeoutMs", 50)
        .with("capabilities", json!({ "bandwidth": true }))
}

fn limits(node: &Node, pod: &Pod) -> Result<Option<LimitsRecord>> {
    let owner = node.registration(pod)?.owner;
    Ok(node.datapath()?.maps.limits().get(LimitsKey::of_pod(owner))?)
}

#[test]
fn annotations_for_bandwidth_limit_a_pod_from_its_start() -> Result<()> {
    let node = Node::start(&asking())?;
    wrap_podgate(&node, "real")?;
    let mut cri = node.cri()?;
    let limited = Pod::new("limited")
        .annotated("kubernetes.io/ingress-bandwidth", "10M")
        .annotated("kubernetes.io/egress-bandwidth", "1G");
    let free = Pod::new("free");
    let ids = [cri.run(&limited)?, cri.run(&free)?];
    gated(&node, &limited)?;
    gated(&node, &free)?;

    let calls = calls(&node)?;
    // containerd knows no burst, and passes the largest 32-bit number of bits: half a gigabyte at once. Its keys are not those of
    // the convention, which have a small letter first
    let passed = &calls[0].stdin["runtimeConfig"]["bandwidth"];
    let expected = json!({
        "IngressRate": 10_000_000, "IngressBurst": 4_294_967_295_u32,
        "EgressRate": 1_000_000_000, "EgressBurst": 4_294_967_295_u32,
    });
    ensure!(*passed == expected, "containerd passes {passed}");
    ensure!(calls[1].stdin["runtimeConfig"]["bandwidth"].is_null(), "{:#}", calls[1].stdin);

    let record = limits(&node, &limited)?.context("the pod has no limits")?;
    let [egress, ingress] = record.rates.map(|rates| rates[0]);
    ensure!(ingress == Rate::per_second(1_250_000, 131_072), "{ingress:?}");
    ensure!(egress == Rate::per_second(125_000_000, 6_250_000), "{egress:?}");
    ensure!(limits(&node, &free)?.is_none(), "a pod without annotations is limited");

    for id in ids {
        cri.delete(&id)?;
    }
    ensure!(node.datapath()?.maps.limits().all()?.is_empty(), "limits outlive their pod");
    nothing_left(&node)?;
    node.finish()
}
