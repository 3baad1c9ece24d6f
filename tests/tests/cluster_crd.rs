//! Definitions of kinds in an API server. ClusterNetworkPolicy's, which the tests of it rely on: it comes, changes its channel
//! with objects in place, and goes with them. PodTrafficPolicy's: the API server serves it, and refuses what policyd could not
//! read.

use std::collections::BTreeSet;
use std::fs;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use podgate_manifests::manifest;
use podgate_tests::cluster::control::{Control, Controllers};
use podgate_tests::cluster::crd::{self, Channel};
use podgate_tests::cluster::kubectl;
use podgate_tests::cluster::shared::{self, Test};
use podgate_tests::runtime::Node;
use serde_json::{Value, json};

fn main() -> ExitCode {
    let tests = vec![
        Test::new(
            "ClusterNetworkPolicy comes, changes its channel and goes with its objects",
            the_definition_comes_changes_its_channel_and_goes_with_its_objects,
        ),
        Test::new(
            "PodTrafficPolicy is served, takes its examples, and each of its rules refuses",
            pod_traffic_policy,
        ),
    ];
    shared::main(start, tests, |control| control.node.finish())
}

fn start() -> Result<Control> {
    let mut control = Control::start(Controllers::Absent)?;
    control.await_api()?;
    Ok(control)
}

/// Lets nobody's pods reach some peers.
fn deny(name: &str, version: &str, peer: &Value) -> Value {
    json!({
        "apiVersion": format!("policy.networking.k8s.io/{version}"),
        "kind": "ClusterNetworkPolicy",
        "metadata": { "name": name },
        "spec": {
            "tier": "Admin",
            "priority": 1,
            "subject": { "namespaces": {} },
            "egress": [{ "action": "Deny", "to": [peer] }],
        },
    })
}

/// Names of the objects, in the version that the API server prefers.
fn names(node: &Node) -> Result<String> {
    kubectl::run(node, &["get", crd::NAME, "-o", "name"])
}

fn the_definition_comes_changes_its_channel_and_goes_with_its_objects(
    control: &mut Control,
) -> Result<()> {
    let networks = json!({ "networks": ["192.0.2.0/24"] });
    let nodes = json!({ "nodes": {} });
    let node = &control.node;
    let absent = kubectl::apply(node, &[deny("a", "v1alpha2", &networks)]);
    ensure!(absent.is_err(), "an object of an unknown kind was accepted");

    crd::install(node, Channel::Standard)?;
    kubectl::apply(node, &[deny("a", "v1alpha2", &networks), deny("b", "v1beta1", &networks)])?;
    ensure!(kubectl::apply(node, &[deny("c", "v1beta1", &nodes)]).is_err(), "this is not standard");

    crd::install(node, Channel::Experimental)?;
    kubectl::apply(node, &[deny("c", "v1beta1", &nodes)])?;
    let all = names(node)?;
    ensure!(["/a", "/b", "/c"].iter().all(|name| all.contains(name)), "some are gone: {all}");

    crd::remove(node)?;
    ensure!(names(node).is_err(), "the kind is still known");
    crd::install(node, Channel::Experimental)?;
    ensure!(names(node)?.is_empty(), "objects have survived their definition: {}", names(node)?);
    Ok(())
}

/// Values that cannot be read, one for each thing that the schema says of them in words of its own or of ours.
fn refused() -> Vec<(Value, &'static str)> {
    let egress = |field: &str, value: Value| json!({ field: { "egress": value } });
    let rule = |field: &str, value: Value| json!({ "rules": [{ "name": "a", "direction": "Egress", field: [value] }] });
    let block = json!({ "cidr": "192.0.2.0/24" });
    vec![
        (egress("bandwidth", json!({ "rate": "999" })), "must be a quantity from 1k to 1P"),
        (egress("bandwidth", json!({ "rate": 999 })), "must be a quantity from 1k to 1P"),
        (egress("bandwidth", json!({ "rate": "2P" })), "must be a quantity from 1k to 1P"),
        (
            egress("bandwidth", json!({ "rate": "1M", "burst": "34359738361" })),
            "must be a quantity from 1k to 34359738360",
        ),
        (
            egress("connections", json!({ "max": 1, "burst": 1 })),
            "burst must not be given without newPerSecond",
        ),
        (json!({ "mark": "0x4000/0x4000" }), "the mask must be within 0x30ff"),
        (json!({ "mark": "0x100/0x00000100" }), "the mask must be within 0x30ff"),
        (json!({ "dscp": "ef" }), "should match"),
        (json!({ "dscp": 64 }), "should be less than or equal to 63"),
        (rule("peers", json!({})), "must specify a peer"),
        (
            rule("peers", json!({ "ipBlock": block, "podSelector": {} })),
            "ipBlock must not be combined with a selector",
        ),
        (rule("peers", json!({ "ipBlock": { "cidr": "192.0.2.0" } })), "must be of type cidr"),
        (rule("ports", json!({ "port": "80" })), "should match"),
        (
            rule("ports", json!({ "port": "http", "endPort": 80 })),
            "endPort must not be less than port, which must be a number",
        ),
        (
            rule("ports", json!({ "port": 80, "endPort": 79 })),
            "endPort must not be less than port, which must be a number",
        ),
    ]
}

/// At the edge of what is refused.
fn accepted() -> Vec<Value> {
    let rule = json!({
        "name": "a", "direction": "Ingress",
        "peers": [{ "ipBlock": { "cidr": "2001:db8::/32", "except": ["2001:db8::1/128"] } }, { "podSelector": {} }],
        "ports": [{ "port": "http" }, { "port": "a-1" }, { "port": 80, "endPort": 80 }, { "protocol": "SCTP" }],
        "mark": "1/1",
    });
    vec![
        json!({}),
        json!({ "bandwidth": { "egress": { "rate": "1k", "burst": "1e3" }, "ingress": { "rate": "1P", "burst": 34_359_738_360_u64 } } }),
        json!({ "connections": { "egress": { "newPerSecond": 1, "burst": 2 }, "ingress": { "max": 4_294_967_294_u32 } } }),
        json!({ "dscp": 63, "priority": 15, "mark": "0x30ff/0x000030ff", "order": 0 }),
        json!({ "dscp": "AF11", "mark": "0xff/0xff" }),
        json!({ "rules": [rule] }),
    ]
}

fn traffic_policy(name: &str, mut spec: Value) -> Value {
    spec["podSelector"] = json!({});
    json!({
        "apiVersion": "podgate.io/v1alpha1",
        "kind": "PodTrafficPolicy",
        "metadata": { "namespace": "shop", "name": name },
        "spec": spec,
    })
}

/// The messages of all rules in CEL.
fn messages(schema: &Value, found: &mut BTreeSet<String>) {
    let checks = schema["x-kubernetes-validations"].as_array();
    found.extend(
        checks
            .into_iter()
            .flatten()
            .filter_map(|check| check["message"].as_str())
            .map(str::to_owned),
    );
    schema.as_object().into_iter().flatten().for_each(|(_, below)| messages(below, found));
}

fn pod_traffic_policy(control: &mut Control) -> Result<()> {
    let node = &control.node;
    crd::install_ours(node)?;
    let conditions =
        kubectl::run(node, &["get", "crd", crd::OURS, "-o", "jsonpath={.status.conditions}"])?;
    ensure!(!conditions.contains("NonStructuralSchema"), "{conditions}");

    kubectl::run(node, &["create", "namespace", "shop"])?;
    let examples = concat!(env!("CARGO_MANIFEST_DIR"), "/../conf/limits/policies.yaml");
    let examples = fs::read_to_string(examples).context("read the examples")?;
    kubectl::stdin(node, &["apply", "-f", "-"], &examples)?;
    let accepted = accepted().into_iter().enumerate();
    let accepted: Vec<_> =
        accepted.map(|(nth, spec)| traffic_policy(&format!("good-{nth}"), spec)).collect();
    kubectl::apply(node, &accepted)?;

    let refused = refused();
    let named = refused.iter().enumerate();
    let objects: Vec<_> =
        named.map(|(nth, (spec, _))| traffic_policy(&format!("bad-{nth}"), spec.clone())).collect();
    let said = kubectl::apply(node, &objects).err().context("all that is wrong was accepted")?;
    let said = format!("{said:#}");
    for (nth, (spec, cause)) in refused.iter().enumerate() {
        // one or several lines, up to the next object's
        let (_, of) = said
            .split_once(&format!("\"bad-{nth}\" is invalid"))
            .with_context(|| format!("{spec} was accepted: {said}"))?;
        let of = of.split("The PodTrafficPolicy").next().unwrap_or_default();
        ensure!(of.contains(cause), "{spec} is not said to be {cause:?}:{of}");
    }
    let definition =
        manifest::values(&fs::read_to_string(crd::OUR_FILE)?).map_err(anyhow::Error::msg)?;
    let mut rules = BTreeSet::new();
    messages(&definition[0]["spec"]["versions"][0]["schema"]["openAPIV3Schema"], &mut rules);
    rules.retain(|rule| !refused.iter().any(|(_, cause)| cause == rule));
    ensure!(rules.is_empty(), "no object of this test breaks these: {rules:?}");

    let condition = json!([{
        "type": "Accepted", "status": "True", "reason": "Understood", "message": "",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }]);
    let status = json!({ "status": { "conditions": condition } }).to_string();
    kubectl::run(
        node,
        &[
            "patch",
            "ptpol",
            "-n",
            "shop",
            "web",
            "--subresource=status",
            "--type=merge",
            "-p",
            &status,
        ],
    )?;
    let table = kubectl::run(node, &["get", "ptpol", "-n", "shop", "ceiling", "web"])?;
    let rows: Vec<Vec<&str>> =
        table.lines().map(|line| line.split_whitespace().collect()).collect();
    ensure!(rows[0] == ["NAME", "ORDER", "ACCEPTED", "AGE"], "{table}");
    ensure!(rows[1][..2] == ["ceiling", "2000"], "{table}");
    ensure!(
        rows[2][..3] == ["web", "1000", "True"],
        "the default of the order, and the condition: {table}"
    );
    Ok(())
}
