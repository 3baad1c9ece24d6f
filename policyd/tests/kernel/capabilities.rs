//! The capabilities that `deploy/` gives to policyd are enough, and not one of them is too many.

use std::thread;
use std::time::Duration;

use podgate_bpf::attach::AttachMode;
use podgate_contract::handshake::{Request, Response};
use serde_json::Value;

use crate::node::{Node, Policyd, on_a_node, pod, policy};

const DAEMONSET: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/kustomize/base/daemonset.yaml");

/// As in the DaemonSet's container, in lower case.
fn given(container: &str) -> Vec<String> {
    let text = std::fs::read_to_string(DAEMONSET).unwrap();
    let daemonset: Value = podgate_manifests::manifest::values(&text).unwrap().remove(0);
    let containers = daemonset["spec"]["template"]["spec"]["containers"].as_array().unwrap();
    let ours = containers.iter().find(|c| c["name"] == container).unwrap();
    let capabilities = &ours["securityContext"]["capabilities"];
    assert_eq!(capabilities["drop"], serde_json::json!(["ALL"]));
    let names = capabilities["add"].as_array().cloned().unwrap_or_default();
    names.iter().map(|name| name.as_str().unwrap().to_lowercase()).collect()
}

/// A policyd that has these capabilities and can get no other.
fn confined(node: &Node, capabilities: &[String]) -> Policyd {
    let set: String = capabilities.iter().map(|name| format!(",+{name}")).collect();
    let program = [
        "setpriv".to_owned(),
        format!("--bounding-set=-all{set}"),
        "--inh-caps=-all".to_owned(),
        "--no-new-privs".to_owned(),
        "--".to_owned(),
        env!("CARGO_BIN_EXE_policyd").to_owned(),
    ];
    let program: Vec<&str> = program.iter().map(String::as_str).collect();
    node.policyd_by(&program, &["--reconcile-seconds", "1", "--attach", "clsact"])
}

/// What a policyd does in its life, as far as it can: program a pod, start again and take over, and put back a gate
/// that was removed. Says what it could not do.
fn life(node: &Node, capabilities: &[String]) -> Result<(), &'static str> {
    node.manifest(
        "world.yaml",
        &format!(
            "apiVersion: v1\nkind: Namespace\nmetadata: {{name: shop}}\n---\n{}{}",
            pod("shop/api", "app: api", "10.0.0.2"),
            policy("shop/api-from-web", "app: api", "app: web", 80)
        ),
    );
    let api = node.endpoint("shop/api", "10.0.0.2");
    node.datapath.attach(api.ifindex, AttachMode::Clsact).unwrap();
    let within = |so: &dyn Fn() -> bool| {
        (0..800).any(|_| {
            so() || {
                thread::sleep(Duration::from_millis(10));
                so()
            }
        })
    };
    let is_ready = |policyd: &mut Policyd| {
        let socket = node.path("cni.sock");
        within(&|| std::os::unix::net::UnixStream::connect(&socket).is_ok())
            && !policyd.has_ended()
            && within(&|| node.ask(&Request::Status) == Response::Ok)
    };
    let mut first = confined(node, capabilities);
    if !is_ready(&mut first) {
        return Err("start");
    }
    if node.add(&[&api]) != Response::Ok {
        return Err("program");
    }
    first.kill();
    std::fs::remove_file(node.path("cni.sock")).unwrap();
    let mut second = confined(node, capabilities);
    if !is_ready(&mut second) || node.add(&[&api]) != Response::Ok {
        return Err("take over");
    }
    node.datapath.detach(api.ifindex).unwrap();
    if !within(&|| node.datapath.verify(api.ifindex).is_ok()) {
        return Err("attach");
    }
    Ok(())
}

#[test]
fn the_daemonsets_capabilities_are_enough() {
    let capabilities = given("policyd");
    on_a_node(|node| assert_eq!(life(node, &capabilities), Ok(())));
}

#[test]
fn not_one_of_the_daemonsets_capabilities_is_too_many() {
    let all = given("policyd");
    assert!(!all.is_empty());
    for left_out in &all {
        let rest: Vec<String> = all.iter().filter(|name| *name != left_out).cloned().collect();
        on_a_node(|node| {
            let outcome = life(node, &rest);
            eprintln!("without {left_out}: cannot {outcome:?}");
            assert!(outcome.is_err(), "{left_out} is not needed");
        });
    }
}

#[test]
fn the_parts_of_sys_admin_that_have_names_of_their_own_are_not_enough() {
    let named = ["bpf", "perfmon", "net_admin"].map(str::to_owned);
    // reopening a pod's table by its number
    on_a_node(|node| assert_eq!(life(node, &named), Err("take over")));
}

#[test]
fn installing_needs_one_capability_and_only_where_the_directories_are_not_roots() {
    let given = given("install");
    assert_eq!(given, ["dac_override"]);
    for (owner, capabilities, succeeds) in
        [(0, &[][..], true), (1000, &[][..], false), (1000, &given[..], true)]
    {
        on_a_node(|node| {
            let list = r#"{"cniVersion":"1.0.0","name":"pods","plugins":[{"type":"bridge"}]}"#;
            let conflist = node.path("conf/10-pods.conflist");
            for dir in ["conf", "bin"] {
                std::fs::create_dir(node.path(dir)).unwrap();
            }
            std::fs::write(&conflist, list).unwrap();
            for path in ["conf", "bin", "conf/10-pods.conflist"] {
                std::os::unix::fs::chown(node.path(path), Some(owner), Some(owner)).unwrap();
            }
            let script = "#!/bin/sh\necho 'podgate 0: a stand-in' >&2\nexit 1\n";
            std::fs::write(node.path("podgate"), script).unwrap();
            let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
            std::fs::set_permissions(node.path("podgate"), executable).unwrap();
            let set: String = capabilities.iter().map(|name| format!(",+{name}")).collect();
            let done = std::process::Command::new("setpriv")
                .arg(format!("--bounding-set=-all{set}"))
                .args(["--inh-caps=-all", "--no-new-privs", "--"])
                .args([env!("CARGO_BIN_EXE_policyd"), "install", "--once"])
                .args(["--cni-conf-dir".as_ref(), node.path("conf").as_os_str()])
                .args(["--cni-bin-dir".as_ref(), node.path("bin").as_os_str()])
                .args(["--plugin".as_ref(), node.path("podgate").as_os_str()])
                .output()
                .expect("run setpriv (Debian: util-linux)");
            let said = String::from_utf8_lossy(&done.stderr);
            assert_eq!(done.status.success(), succeeds, "{owner} {capabilities:?}: {said}");
            let list = std::fs::read_to_string(conflist).unwrap();
            assert_eq!(list.contains("podgate"), succeeds, "{list}");
            assert_eq!(node.path("bin/podgate").exists(), succeeds);
        });
    }
}

#[test]
fn a_bpffs_is_mounted_where_there_is_none() {
    on_a_node(|node| {
        let at = node.path("empty");
        std::fs::create_dir(&at).unwrap();
        for _ in 0..2 {
            let mount = std::process::Command::new(env!("CARGO_BIN_EXE_policyd"))
                .args(["mount-bpffs".as_ref(), "--at".as_ref(), at.as_os_str()])
                .status();
            assert!(mount.unwrap().success());
        }
        let mounts = std::fs::read_to_string("/proc/thread-self/mounts").unwrap();
        let here = |line: &&str| line.contains(&format!(" {} bpf ", at.display()));
        assert_eq!(mounts.lines().filter(here).count(), 1, "{mounts}");
        nix::mount::umount(&at).unwrap();
    });
}
