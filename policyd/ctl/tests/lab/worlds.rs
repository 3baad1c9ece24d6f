//! What a lab finds out about a world.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use super::{err, lab, out, plugin, world};

/// A world is as its probes say, and every packet goes the way the compiled tables say.
fn as_expected(name: &str) {
    let dir = world(name);
    let output = lab(&dir.join("manifests"), &plugin())
        .arg("--probes")
        .arg(dir.join("probes.json"))
        .output()
        .unwrap();
    let text = out(&output);
    assert_eq!(output.status.code(), Some(0), "{text}{}", err(&output));
    let readme = fs::read_to_string(dir.join("README.md")).unwrap();
    let title = readme.lines().next().unwrap().trim_start_matches("# ");
    assert!(text.starts_with(title), "{text}");
    assert!(text.contains("from ↓  to →") && text.contains("as expected"), "{text}");

    // the same again without packets
    let answers = |command: &mut Command| out(&command.args(["-o", "json"]).output().unwrap());
    let probes = dir.join("probes.json");
    let real = answers(lab(&dir.join("manifests"), &plugin()).arg("--probes").arg(&probes));
    let compiled = answers(
        Command::new(env!("CARGO_BIN_EXE_podgatectl"))
            .arg("check")
            .arg("--manifests")
            .arg(dir.join("manifests"))
            .arg("--probes")
            .arg(&probes),
    );
    assert!(!real.is_empty());
    assert_eq!(real, compiled);
}

#[test]
fn three_tier() {
    as_expected("three-tier");
}

#[test]
fn namespace_isolation() {
    as_expected("namespace-isolation");
}

#[test]
fn cidr_except() {
    as_expected("cidr-except");
}

#[test]
fn node_local_dns() {
    as_expected("node-local-dns");
}

#[test]
fn named_ports() {
    as_expected("named-ports");
}

#[test]
fn dual_stack() {
    as_expected("dual-stack");
}

#[test]
fn audit() {
    as_expected("audit");
}

#[test]
fn services() {
    as_expected("services");
}

/// Pods without addresses, a service without one and without slices: all of it is made up, and really there.
#[test]
fn services_of_manifests_as_people_write_them() {
    let dir = tempfile::tempdir().unwrap();
    let pod = |name: &str, labels: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{{labels}}}}}\n---\n"
        )
    };
    let service = |name: &str, more: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{selector: {{app: web}}{more}, ports: [\n\
             {{name: t, port: 80, targetPort: 8080}}, {{name: u, protocol: UDP, port: 80, targetPort: 8081}},\n\
             {{name: s, protocol: SCTP, port: 80, targetPort: 8082}}]}}\n---\n"
        )
    };
    let manifests = dir.path().join("manifests");
    fs::create_dir(&manifests).unwrap();
    let text = pod("client", "app: client")
        + &pod("open", "app: web")
        + &pod("closed", "app: web, closed: 'yes'")
        + &service("web", "")
        + &service("sticky", ", sessionAffinity: ClientIP")
        + "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: closed}\n\
           spec: {podSelector: {matchLabels: {closed: 'yes'}}, ingress: [{ports: [{port: 8081, protocol: UDP}]}]}\n";
    fs::write(manifests.join("world.yaml"), text).unwrap();
    let probe = |service: &str, proto: &str, expect: &str| {
        format!(
            r#"{{"src": "default/client", "dst": "svc:default/{service}", "proto": "{proto}", "port": 80, "expect": "{expect}"}}"#
        )
    };
    let probes = [
        probe("web", "TCP", "deny"),
        probe("web", "UDP", "allow"),
        probe("web", "SCTP", "deny"),
        probe("sticky", "UDP", "allow"),
        // itself or its neighbour: both pass, as the neighbour's own service leads to the neighbour and to itself
        r#"{"src": "default/closed", "dst": "svc:default/web", "proto": "UDP", "port": 80, "expect": "allow"}"#.into(),
    ];
    let file = dir.path().join("probes.json");
    fs::write(&file, format!("[{}]", probes.join(","))).unwrap();
    let output = lab(&manifests, &plugin())
        .args(["-o", "json", "--no-matrix", "--probes"])
        .arg(&file)
        .output()
        .unwrap();
    let text = out(&output);
    assert_eq!(output.status.code(), Some(0), "{text}{}", err(&output));
    let mixed = text.lines().filter(|line| line.contains("it depends on the endpoint")).count();
    assert_eq!(mixed, 2, "{text}");
}

#[test]
fn a_wrong_expectation_exits_1_and_names_the_rule() {
    let dir = tempfile::tempdir().unwrap();
    let probes = dir.path().join("probes.json");
    fs::write(
        &probes,
        r#"[{"src": "shop/web", "dst": "shop/db", "proto": "TCP", "port": 5432, "expect": "allow"},
            {"src": "shop/web", "dst": "shop/api", "proto": "TCP", "port": 9090, "expect": "deny"}]"#,
    )
    .unwrap();
    let output = lab(&world("three-tier").join("manifests"), &plugin())
        .args(["--no-matrix", "--probes"])
        .arg(&probes)
        .output()
        .unwrap();
    let text = out(&output);
    assert_eq!(output.status.code(), Some(1), "{text}{}", err(&output));
    assert!(text.contains("isolated for egress by shop/deny-all, dns, web"), "{text}");
    assert!(text.contains("allowed by shop/api ingress[0]"), "{text}");
    assert!(text.contains("2 of 2 NOT as expected"), "{text}");
}

/// A plugin of the right name that gates nothing: hands the result before it through.
fn no_gate(dir: &Path) -> std::path::PathBuf {
    let path = dir.join("podgate");
    // the lab writes its configuration on one line with sorted keys
    let script = "#!/bin/sh\n[ \"$CNI_COMMAND\" = ADD ] || exit 0\n\
                  sed 's/.*\"prevResult\":\\(.*\\),\"startup\".*/\\1/'\n";
    fs::write(&path, script).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// That a lab would notice a datapath that does not enforce; and that nothing but the gates denies.
#[test]
fn without_gates_datapath_and_compiler_disagree() {
    let dir = tempfile::tempdir().unwrap();
    let world = world("three-tier");
    let output = lab(&world.join("manifests"), &no_gate(dir.path()))
        .arg("--probes")
        .arg(world.join("probes.json"))
        .output()
        .unwrap();
    let text = err(&output);
    assert_eq!(output.status.code(), Some(2), "{}{text}", out(&output));
    assert!(text.contains("datapath and compiler disagree"), "{text}");
    assert!(text.contains("the packet met allow, the tables say deny"), "{text}");
    // every packet got through: nothing in the lab's own network stands in the way of any
    assert!(!text.contains("the packet met deny"), "{text}");
}

#[test]
fn mistakes_are_told_before_anything_is_built() {
    let dir = tempfile::tempdir().unwrap();
    let probes = dir.path().join("probes.json");
    fs::write(&probes, r#"[{"src": "shop/web", "dst": "shop/db", "proto": "TCP"}]"#).unwrap();
    let output = lab(&world("three-tier").join("manifests"), &plugin())
        .arg("--probes")
        .arg(&probes)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(err(&output).contains("probes[0].port: missing"), "{}", err(&output));

    let output = lab(&world("three-tier").join("manifests"), Path::new("/nowhere/podgate"))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(err(&output).contains("no file /nowhere/podgate"), "{}", err(&output));

    let output = lab(&world("three-tier").join("manifests"), &plugin())
        .args(["--cni-path", "/nowhere"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(err(&output).contains("containernetworking-plugins"), "{}", err(&output));
}
