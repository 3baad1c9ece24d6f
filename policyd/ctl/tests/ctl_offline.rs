//! `explain`, `matrix` and `check` from manifests: what they print, and how they exit.

// helpers are tests too, which clippy cannot see
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};
use tempfile::TempDir;

fn worlds() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../conf/worlds")
}

fn podgatectl(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_podgatectl"))
        .args(arguments)
        .env("LC_ALL", "C.UTF-8")
        .env_remove("CLICOLOR_FORCE")
        .output()
        .unwrap()
}

fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn err(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn world(name: &str) -> (String, String) {
    let dir = worlds().join(name);
    (dir.join("manifests").display().to_string(), dir.join("probes.json").display().to_string())
}

fn check(name: &str, format: &str) -> Output {
    let (manifests, probes) = world(name);
    podgatectl(&["check", "--manifests", &manifests, "--probes", &probes, "-o", format])
}

/// A world of one's own: the manifests' text and a list of probes.
fn own(manifests: &str, probes: &Value) -> (TempDir, String, String) {
    let dir = tempfile::tempdir().unwrap();
    let (folder, file) = (dir.path().join("manifests"), dir.path().join("probes.json"));
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("world.yaml"), manifests).unwrap();
    fs::write(&file, probes.to_string()).unwrap();
    let (folder, file) = (folder.display().to_string(), file.display().to_string());
    (dir, folder, file)
}

const TWO_PODS: &str = "
apiVersion: v1
kind: Pod
metadata: {namespace: a, name: x}
spec: {nodeName: n1, containers: []}
---
apiVersion: v1
kind: Pod
metadata: {namespace: a, name: y, labels: {closed: 'yes'}}
spec: {nodeName: n2, containers: []}
status: {podIPs: [{ip: 10.0.0.2}]}
---
apiVersion: v1
kind: Pod
metadata: {namespace: a, name: host}
spec: {nodeName: n1, hostNetwork: true, containers: []}
status: {podIPs: [{ip: 192.0.2.1}]}
---
apiVersion: v1
kind: Pod
metadata: {namespace: a, name: done}
spec: {containers: []}
status: {phase: Succeeded, podIPs: [{ip: 10.0.0.9}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: a, name: closed}
spec:
  podSelector: {matchLabels: {closed: 'yes'}}
  ingress:
    - from: [{ipBlock: {cidr: 10.0.0.0/24}}]
";

#[test]
fn local_rules_of_a_file_come_before_policies_and_defaults_after_them() {
    let probe = |src: &str, dst: &str, expect: &str| json!({"src": src, "dst": dst, "port": 80, "proto": "TCP", "expect": expect});
    let probes = json!([
        probe("10.0.0.7", "a/y", "deny"),
        probe("10.0.0.8", "a/y", "allow"),
        probe("192.0.2.9", "a/y", "deny"),
        probe("a/y", "a/x", "deny"),
    ]);
    let (dir, manifests, file) = own(TWO_PODS, &probes);
    let rules = dir.path().join("rules.json");
    let deny = json!({"id": 3, "direction": "ingress", "action": "deny", "peer": "10.0.0.7"});
    let unset = json!({"ingress": "unset", "egress": "unset"});
    let said =
        json!({"namespace": "a", "name": "y", "here": true, "rules": [deny], "defaults": unset});
    let node = json!({"ingress": "reject", "egress": "unset"});
    fs::write(&rules, json!({"pods": [said], "defaults": node}).to_string()).unwrap();
    let rules = rules.display().to_string();
    let with = ["--manifests", &manifests, "--rules", &rules];
    let checked = podgatectl(&[&["check", "--probes", &file][..], &with].concat());
    assert_eq!(checked.status.code(), Some(0), "{}{}", out(&checked), err(&checked));
    let asked = ["explain", "--from", "10.0.0.7", "--to", "a/y", "--port", "80"];
    let explained = out(&podgatectl(&[&asked[..], &with].concat()));
    assert!(explained.contains("local rule 3 of a/y"), "{explained}");
    let matrix = podgatectl(&[&["matrix", "--port", "80", "-o", "json"][..], &with].concat());
    assert!(out(&matrix).contains("the local default of the node"), "{}", out(&matrix));

    fs::write(dir.path().join("rules.json"), r#"{"pods": [], "defaults": {"in": 1}}"#).unwrap();
    let refused = podgatectl(&[&asked[..], &with].concat());
    assert_eq!(refused.status.code(), Some(2));
    assert!(err(&refused).contains("rules.json: unknown field `in`"), "{}", err(&refused));
}

#[test]
fn the_worlds_are_as_their_probes_say() {
    let mut seen = 0;
    for entry in fs::read_dir(worlds()).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let output = check(&name, "json");
        assert_eq!(output.status.code(), Some(0), "{name}: {}{}", out(&output), err(&output));
        seen += 1;
    }
    assert!(seen >= 5, "only {seen} worlds");
}

#[test]
fn a_table_for_people() {
    insta::assert_snapshot!("check_named_ports", out(&check("named-ports", "table")));
    let (manifests, _) = world("three-tier");
    insta::assert_snapshot!(
        "matrix_three_tier",
        out(&podgatectl(&["matrix", "--manifests", &manifests]))
    );
    let ascii = podgatectl(&[
        "matrix",
        "--manifests",
        &manifests,
        "--port",
        "53/UDP",
        "--port",
        "icmp",
        "--ascii",
    ]);
    insta::assert_snapshot!("matrix_ascii", out(&ascii));
}

#[test]
fn a_line_of_json_for_each_probe() {
    let output = check("dual-stack", "json");
    insta::assert_snapshot!("check_dual_stack_json", out(&output));
    let (_, probes) = world("dual-stack");
    let probes = serde_json::from_str::<Vec<Value>>(&fs::read_to_string(probes).unwrap()).unwrap();
    let lines =
        out(&output).lines().map(|l| serde_json::from_str(l).unwrap()).collect::<Vec<Value>>();
    assert_eq!(lines.len(), probes.len());
    for (line, probe) in lines.iter().zip(&probes) {
        for (field, value) in probe.as_object().unwrap() {
            assert_eq!(line[field], *value);
        }
        assert_eq!(line["verdict"], line["expect"]);
        assert!(!line["why"].as_str().unwrap().is_empty());
    }
}

#[test]
fn a_failed_expectation_exits_1_and_names_the_rule() {
    let probes = json!([
        {"src": "a/x", "dst": "a/y", "proto": "TCP", "port": 80, "expect": "allow"},
        {"src": "a/y", "dst": "a/x", "proto": "TCP", "port": 80, "expect": "allow"},
    ]);
    let (_dir, manifests, file) = own(TWO_PODS, &probes);
    let output = podgatectl(&["check", "--manifests", &manifests, "--probes", &file]);
    assert_eq!(output.status.code(), Some(1), "{}", err(&output));
    let text = out(&output);
    assert!(text.contains("isolated for ingress by a/closed"), "{text}");
    assert!(text.contains("2 probes, 1 of 2 NOT as expected"), "{text}");
}

#[test]
fn nodes_and_the_pods_that_use_their_network() {
    // y runs on n2, so n1 is a stranger to it: known by the address of its hostNetwork pod
    for (src, verdict, why) in [
        ("node:n2", "allow", "own node"),
        ("node:n1", "deny", "no rule allows 192.0.2.1"),
        ("a/host", "deny", "no rule allows 192.0.2.1"),
        ("192.0.2.1", "deny", "no rule allows 192.0.2.1"),
        ("node:n3", "deny", "no rule allows 100.64."),
        ("10.0.0.77", "allow", "ingress[0]"),
        ("a/y", "allow", "reaches itself"),
    ] {
        let probes =
            json!([{"src": src, "dst": "a/y", "proto": "TCP", "port": 80, "expect": verdict}]);
        let (_dir, manifests, file) = own(TWO_PODS, &probes);
        let output =
            podgatectl(&["check", "--manifests", &manifests, "--probes", &file, "-o", "json"]);
        let text = out(&output);
        assert_eq!(output.status.code(), Some(0), "{src}: {text}{}", err(&output));
        assert!(text.contains(why), "{src}: {text}");
    }
}

/// A Node object says where the node sends from; a question may name the family.
#[test]
fn nodes_send_from_their_own_addresses() {
    let node = "---\napiVersion: v1\nkind: Node\nmetadata: {name: n3}\n\
        status: {addresses: [{type: Hostname, address: n3}, {type: InternalIP, address: 10.0.0.200}, {type: InternalIP, address: 'fd00::200'}]}\n";
    let (_dir, manifests, _) = own(&(TWO_PODS.to_owned() + node), &json!([]));
    let explain = |more: &[&str]| {
        let mut arguments =
            vec!["explain", "--manifests", &manifests, "--from", "node:n3", "--to", "a/y"];
        arguments.extend(more);
        let output = podgatectl(&arguments);
        serde_json::from_str::<Value>(&out(&output)).unwrap_or_else(|_| panic!("{}", err(&output)))
    };
    let answer = explain(&["--port", "80", "-o", "json"]);
    assert_eq!(answer["verdict"], "allow", "{answer:#}");
    assert_eq!(answer["paths"][0]["source"], "10.0.0.200");
    assert_eq!(answer["paths"][0]["gates"][0]["rule"], "a/closed ingress[0]");
    let answer = explain(&["--port", "ICMP", "--family", "6", "-o", "json"]);
    assert_eq!(answer["verdict"], "deny", "{answer:#}");
    assert_eq!(answer["why"], "node:n3 or a/y has no IPv6 address");
}

#[test]
fn mistakes_exit_2_and_name_their_place() {
    let good = json!({"src": "a/x", "dst": "a/y", "proto": "TCP", "port": 80});
    for (bad, says) in [
        (
            json!({"src": "a/x", "dst": "a/y", "proto": "TCP", "port": 99999}),
            "probes[1].port: must be a number",
        ),
        (json!({"src": "a/x", "dst": "a/y", "proto": "TCP"}), "probes[1].port: missing"),
        (json!({"dst": "a/y", "proto": "TCP", "port": 80}), "probes[1].src: missing"),
        (
            json!({"src": "a/x", "dst": "svc:a/s", "proto": "TCP", "port": 80}),
            "probes[1].dst: no service a/s is known",
        ),
        (
            json!({"src": "a/nobody", "dst": "a/y", "proto": "TCP", "port": 80}),
            "probes[1].src: no pod a/nobody",
        ),
        (
            json!({"src": "a/x", "dst": "a/done", "proto": "TCP", "port": 80}),
            "probes[1].dst: pod a/done has finished",
        ),
        (json!("what"), "probes[1]: must be an object"),
    ] {
        let (_dir, manifests, file) = own(TWO_PODS, &json!([good, bad]));
        let output =
            podgatectl(&["check", "--manifests", &manifests, "--probes", &file, "-o", "json"]);
        assert_eq!(output.status.code(), Some(2), "{says}");
        assert!(err(&output).contains(says), "{says}: {}", err(&output));
        assert_eq!(out(&output), "", "no half answers");
    }
    let (_dir, manifests, file) = own(TWO_PODS, &json!({"src": "a/x"}));
    let output = podgatectl(&["check", "--manifests", &manifests, "--probes", &file]);
    assert_eq!(output.status.code(), Some(2));
    assert!(err(&output).contains("must be a list of probes"), "{}", err(&output));
}

#[test]
fn services_have_columns_and_endpoints_that_differ_show() {
    let (manifests, _) = world("services");
    let matrix = out(&podgatectl(&["matrix", "--manifests", &manifests]));
    assert!(matrix.contains("svc:shop/store on 5432/TCP"), "{matrix}");
    assert!(matrix.contains("~ it depends on the endpoint that is selected"), "{matrix}");
    let matrix = out(&podgatectl(&["matrix", "--manifests", &manifests, "--port", "53/UDP"]));
    assert!(matrix.contains("svc:infra/dns") && !matrix.contains("svc:shop"), "{matrix}");

    let explain = |from: &str, to: &str, port: &str| {
        podgatectl(&[
            "explain",
            "--manifests",
            &manifests,
            "--from",
            from,
            "--to",
            to,
            "--port",
            port,
        ])
    };
    let output = explain("shop/web", "svc:shop/store", "5432");
    let text = out(&output);
    assert!(text.starts_with("shop/web -> svc:shop/store on 5432/TCP: mixed"), "{text}");
    let paths: Vec<&str> = text.lines().skip(1).collect();
    assert!(paths[0].contains(":5432/TCP -> 10.9.0.41:5432: egress at shop/web"), "{text}");
    assert!(
        paths[1].contains(":5432/TCP -> 10.9.0.42:5432: denied at shop/store-archive"),
        "{text}"
    );

    for (from, to, port, says) in [
        ("8.8.8.8", "svc:infra/dns", "53/UDP", "explain --from: must be a pod or a node"),
        ("shop/web", "svc:infra/dns", "54/UDP", "service infra/dns has no port 54/UDP"),
        ("shop/web", "svc:infra/dns", "ICMP", "a service has ports"),
        ("svc:infra/dns", "shop/web", "80", "svc:infra/dns is a service: it sends nothing itself"),
    ] {
        let output = explain(from, to, port);
        assert_eq!(output.status.code(), Some(2), "{says}: {}", out(&output));
        assert!(err(&output).contains(says), "{says}: {}", err(&output));
    }
}

#[test]
fn mistakes_in_manifests_exit_2() {
    let (_dir, manifests, file) = own(&TWO_PODS.replace("ipBlock", "ipBlok"), &json!([]));
    let output = podgatectl(&["check", "--manifests", &manifests, "--probes", &file]);
    assert_eq!(output.status.code(), Some(2));
    let text = err(&output);
    assert!(text.contains("world.yaml, document 5") && text.contains("policy a/closed"), "{text}");
    let output = podgatectl(&["matrix", "--manifests", "/nowhere/at/all"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(err(&output).contains("/nowhere/at/all"), "{}", err(&output));
}

#[test]
fn explain_says_what_each_gate_does() {
    let (_dir, manifests, _) = own(TWO_PODS, &json!([]));
    let explain = |to: &str, more: &[&str]| {
        let mut arguments =
            vec!["explain", "--manifests", &manifests, "--from", "a/x", "--to", to, "--port", "80"];
        arguments.extend(more);
        podgatectl(&arguments)
    };
    insta::assert_snapshot!(out(&explain("a/y", &[])), @r"
    a/x -> a/y on 80/TCP: deny
      10.88.0.2 -> 10.0.0.2: denied at a/y: isolated for ingress by a/closed; no rule allows 10.88.0.2 on 80/TCP
        nearest at a/y: a/closed ingress[0] allows every port, but not to this peer
    ");
    assert_eq!(explain("a/y", &[]).status.code(), Some(0));
    assert_eq!(explain("a/y", &["--exit-code"]).status.code(), Some(1));
    assert_eq!(explain("a/x", &["--exit-code"]).status.code(), Some(0));
    let wrong = explain("a/z", &[]);
    assert_eq!(wrong.status.code(), Some(2));
    assert!(err(&wrong).contains("explain --to: no pod a/z"), "{}", err(&wrong));
}

#[test]
fn without_policyd_the_error_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("api.sock").display().to_string();
    let output = podgatectl(&["--socket", &socket, "status"]);
    assert_eq!(output.status.code(), Some(2));
    let text = err(&output);
    assert!(text.contains(&socket) && text.contains("is policyd running"), "{text}");
    // no verdict ever names a node: nothing would be seen, for ever
    let output = podgatectl(&["--socket", &socket, "observe", "--of", "node:n1"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(err(&output).contains("observe node:n1: verdicts name pods"), "{}", err(&output));
}

#[test]
fn colours_only_where_they_are_wanted() {
    let (manifests, _) = world("three-tier");
    let plain = podgatectl(&["matrix", "--manifests", &manifests]);
    assert!(!out(&plain).contains('\x1b'));
    let forced = podgatectl(&["matrix", "--manifests", &manifests, "--color", "always"]);
    assert!(out(&forced).contains("\x1b["));
}

#[test]
fn kubectl_finds_it_as_a_plugin() {
    let dir = tempfile::tempdir().unwrap();
    let plugin = dir.path().join("kubectl-podgate");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_podgatectl"), &plugin).unwrap();
    let output = Command::new(&plugin).arg("--help").output().unwrap();
    assert!(out(&output).contains("Usage: kubectl podgate"), "{}", out(&output));
    let completion = podgatectl(&["completion", "bash"]);
    assert_eq!(completion.status.code(), Some(0));
    assert!(out(&completion).contains("_podgatectl()"));
}

#[test]
fn what_of_a_cluster_policy_fails_closed_is_said() {
    let cluster = "
---
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: admin}
spec:
  tier: Admin
  priority: 1
  subject: {namespaces: {}}
  ingress:
    - {action: Accept, from: [{serviceAccounts: {}}]}
";
    let (_dir, manifests, _) = own(&(TWO_PODS.to_owned() + cluster), &json!([]));
    let output = podgatectl(&["matrix", "--manifests", &manifests]);
    assert_eq!(output.status.code(), Some(0), "{}", err(&output));
    let told = "clusternetworkpolicy admin: spec.ingress[0].from[0]: unknown field \"serviceAccounts\"; \
                the rule fails closed: it matches nothing";
    assert!(err(&output).contains(told), "{}", err(&output));
}

fn limits(pod: &str, format: &str) -> Output {
    let manifests = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../conf/limits");
    podgatectl(&["limits", pod, "--manifests", &manifests.display().to_string(), "-o", format])
}

#[test]
fn limits_name_what_holds_what_says_so_and_what_it_overrides() {
    let output = limits("shop/web", "json");
    let answer: Value = serde_json::from_str(&out(&output)).unwrap();
    let of = |direction: &str, limit: &str| {
        let limits = answer["limits"].as_array().unwrap().iter();
        let mut found = limits.filter(|of| of["direction"] == direction && of["limit"] == limit);
        found.next().unwrap_or_else(|| panic!("no {direction} {limit} in {answer:#}"))
    };
    assert_eq!(
        *of("egress", "bandwidth"),
        json!({
            "direction": "egress", "limit": "bandwidth", "rate": 100_000_000, "burst": 5_000_000,
            "origin": {"object": "podtrafficpolicy shop/web", "field": "spec.bandwidth.egress"},
            "overridden": [
                {
                    "limit": "bandwidth", "rate": 1_000_000_000, "burst": 8_000_000,
                    "origin": {"object": "podtrafficpolicy shop/ceiling", "field": "spec.bandwidth.egress"},
                },
                {
                    "limit": "bandwidth", "rate": 5_000_000, "burst": 1_048_576,
                    "origin": {"object": "pod shop/web", "field": "metadata.annotations[kubernetes.io/egress-bandwidth]"},
                },
            ],
        })
    );
    assert_eq!(of("ingress", "bandwidth")["origin"]["object"], "podtrafficpolicy shop/ceiling");
    let names: Vec<_> = answer["rules"].as_array().unwrap().iter().map(|of| &of["name"]).collect();
    assert_eq!(names, ["backup", "internet"]);
    assert_eq!(answer["problems"], json!([]));
}

#[test]
fn limits_are_a_table_for_people_and_tell_what_has_no_effect() {
    let web = out(&limits("shop/web", "table"));
    for part in [
        "egress bandwidth",
        "100M bit/s, burst 5M bit",
        "podtrafficpolicy shop/web, spec.bandwidth.egress",
        "not 5M bit/s, burst 1048576 bit",
        "ingress open connections",
        "backup",
        "mark: 0x10/0x30",
        "podtrafficpolicy shop/web, spec.rules[1]",
    ] {
        assert!(web.contains(part), "no {part:?} in\n{web}");
    }
    let db = out(&limits("shop/db", "table"));
    assert!(db.contains("ingressPeakrate]: is not supported and has no effect"), "{db}");
    let missing = limits("shop/none", "table");
    assert_eq!(missing.status.code(), Some(2));
    assert!(err(&missing).contains("show limits of shop/none: "), "{}", err(&missing));
    assert!(err(&limits("node:n1", "table")).contains("must be a pod, as namespace/name"));
}
