//! `policyd install` as a process, in directories of a test's own: what a node's runtime would find in them at each
//! moment. The plugin is a script that says who it is; that the real one works from such a chain, the root tiers show.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod node;
mod readiness;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use podgate_contract::api::NewPods;
use podgate_testkit::wait::eventually;

use crate::node::{LIST, Node, SINGLE, gated_by, told};

#[test]
fn once_places_the_binary_and_the_entry_and_then_nothing_more() {
    let node = Node::new();
    node.write("10-pods.conflist", LIST);
    fs::set_permissions(node.path("conf/10-pods.conflist"), fs::Permissions::from_mode(0o600))
        .unwrap();
    node.write("20-other.conflist", LIST);
    let done = node.once(&["--startup", "open"]);
    assert!(done.status.success(), "{}", told(&done));
    assert!(
        told(&done).contains("podgate 0.1.0") || told(&done).contains(" 0.1.0"),
        "{}",
        told(&done)
    );
    assert_eq!(
        node.read("10-pods.conflist"),
        LIST.replace(
            "e3 }\n",
            "e3 },\n    {\n      \"type\": \"podgate\",\n      \"startup\": \"open\",\n      \"capabilities\": {\"bandwidth\":true}\n    }\n"
        )
    );
    assert_eq!(node.read("20-other.conflist"), LIST);
    assert_eq!(fs::metadata(node.path("conf/10-pods.conflist")).unwrap().mode() & 0o7777, 0o600);
    assert_eq!(fs::metadata(node.path("bin/podgate")).unwrap().mode() & 0o7777, 0o755);
    assert_eq!(node.files(), ["10-pods.conflist", "20-other.conflist"]);
    assert!(told(&done).contains("not edited, as new pods do not get it: 20-other.conflist"));
    assert_eq!(node.new_pods(), gated_by(vec!["10-pods.conflist".into()]));

    let inode = |name: &str| fs::metadata(node.path(name)).unwrap().ino();
    let before = [inode("conf/10-pods.conflist"), inode("bin/podgate")];
    assert!(node.once(&["--startup", "open"]).status.success());
    assert_eq!([inode("conf/10-pods.conflist"), inode("bin/podgate")], before, "written again");

    // an upgrade: another binary, other options
    node.plugin("0.2.0");
    let done = node.once(&["--bandwidth=false"]);
    assert!(done.status.success() && told(&done).contains("0.2.0"), "{}", told(&done));
    assert!(node.read("10-pods.conflist").contains("{ \"type\": \"podgate\" }"));
    assert_eq!(
        fs::read(node.path("bin/podgate")).unwrap(),
        fs::read(node.path("podgate")).unwrap()
    );
}

#[test]
fn once_fails_and_says_why_where_it_can_do_nothing() {
    let node = Node::new();
    let done = node.once(&[]);
    assert_eq!(done.status.code(), Some(1));
    assert!(told(&done).contains("no CNI configuration there yet"), "{}", told(&done));
    let NewPods::No { reason } = node.new_pods() else { panic!("{:?}", node.new_pods()) };
    assert!(reason.contains("no CNI configuration there yet"), "{reason}");

    node.write("10-half.conflist", &LIST[..40]);
    let done = node.once(&[]);
    assert!(told(&done).contains("10-half.conflist is no CNI configuration"), "{}", told(&done));
    assert_eq!(node.read("10-half.conflist"), &LIST[..40], "it was left alone");

    node.write("20-old.conf", &SINGLE.replace("0.3.1", "0.2.0"));
    let done = node.once(&[]);
    assert!(
        told(&done).contains("20-old.conf cannot take podgate: its cniVersion is 0.2.0"),
        "{}",
        told(&done)
    );

    fs::write(node.path("podgate"), "#!/bin/sh\necho hello >&2\n").unwrap();
    let done = node.once(&[]);
    assert!(
        told(&done).contains("does not print that it is podgate: \"hello\""),
        "{}",
        told(&done)
    );
    fs::remove_file(node.path("podgate")).unwrap();
    let done = node.once(&[]);
    assert!(
        told(&done).contains("use plugin") && told(&done).contains("No such file"),
        "{}",
        told(&done)
    );
}

#[test]
fn a_single_plugins_file_becomes_a_list_and_is_kept() {
    let node = Node::new();
    node.write("10-pods.conf", SINGLE);
    assert!(node.once(&[]).status.success());
    assert_eq!(node.files(), ["10-pods.conf.before-podgate", "10-pods.conflist"]);
    assert_eq!(node.read("10-pods.conf.before-podgate"), SINGLE);
    let list: serde_json::Value = serde_json::from_str(&node.read("10-pods.conflist")).unwrap();
    assert_eq!(list["cniVersion"], "0.3.1");
    assert_eq!(list["name"], "pods");
    assert_eq!(list["plugins"][0]["type"], "ptp");
    assert_eq!(list["plugins"][1]["type"], "podgate");

    // the primary plugin writes its file again, which would come first in the order
    node.write("10-pods.conf", &SINGLE.replace("ptp", "bridge"));
    assert!(node.once(&[]).status.success());
    assert_eq!(node.files(), ["10-pods.conf.before-podgate", "10-pods.conflist"]);
    assert!(node.read("10-pods.conflist").contains("bridge"));
    assert!(node.read("10-pods.conf.before-podgate").contains("bridge"));
}

#[test]
fn the_watch_waits_for_the_primary_and_mends_what_it_undoes() {
    let node = Node::new();
    assert!(matches!(node.new_pods(), NewPods::Unknown { .. }));
    let watch = node.watch(&[]);
    watch.says("new pods get no gate: no CNI configuration there yet");
    assert!(node.path("bin/podgate").exists());
    assert!(matches!(node.new_pods(), NewPods::No { .. }));
    node.write("10-pods.conflist", LIST);
    let gated = || node.read("10-pods.conflist").contains("podgate");
    eventually("the entry is put in", gated);
    let files = vec!["10-pods.conflist".to_owned()];
    eventually("policyd is told", || node.new_pods() == gated_by(files.clone()));
    node.write("10-pods.conflist", &LIST.replace("pods", "others"));
    eventually("the entry is put back", || {
        gated() && node.read("10-pods.conflist").contains("others")
    });
    // a file that comes first takes over
    node.write("05-first.conf", SINGLE);
    eventually("the new first is turned into a list", || {
        node.read("05-first.conflist").contains("podgate")
    });
    // a half-written file is not edited before it is complete
    fs::remove_file(node.path("conf/05-first.conflist")).unwrap();
    node.write("05-first.conflist", &LIST[..60]);
    watch.says("05-first.conflist is no CNI configuration");
    assert_eq!(node.read("05-first.conflist"), &LIST[..60]);
    fs::write(node.path("conf/05-first.conflist"), LIST).unwrap();
    eventually("the whole file gets the entry", || {
        node.read("05-first.conflist").contains("podgate")
    });
    fs::remove_file(node.path("bin/podgate")).unwrap();
    eventually("the binary is placed again", || node.path("bin/podgate").exists());
    watch.stop();
    assert!(!node.files().iter().any(|name| name.ends_with(".tmp")), "{:?}", node.files());
}

#[test]
fn one_at_a_time() {
    let node = Node::new();
    node.write("10-pods.conflist", LIST);
    let first = node.watch(&[]);
    eventually("the entry is put in", || node.read("10-pods.conflist").contains("podgate"));
    let refused = node.once(&[]);
    assert!(told(&refused).contains("another `policyd install` is at work"), "{}", told(&refused));
    // a second watch waits, can be stopped while it does, and takes over
    let second = node.watch(&[]);
    second.says("waiting for it to end");
    second.stop();
    let third = node.watch(&[]);
    first.stop();
    node.write("10-pods.conflist", LIST);
    eventually("the third has taken over", || node.read("10-pods.conflist").contains("podgate"));
    third.stop();
}

/// What a runtime would read, in order.
fn list(conf: &Path) -> Vec<String> {
    let names = fs::read_dir(conf).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> =
        names.filter(|name| name.ends_with(".conf") || name.ends_with(".conflist")).collect();
    names.sort();
    names
}

#[test]
fn the_runtime_never_finds_nothing_and_never_half_a_file() {
    let node = Node::new();
    node.write("10-pods.conf", SINGLE);
    let conf = node.path("conf");
    let over = Arc::new(AtomicBool::new(false));
    let ends = over.clone();
    let reader = thread::spawn(move || {
        let mut looks = 0_u32;
        loop {
            let last = ends.load(Ordering::SeqCst);
            let mut names = list(&conf);
            // a directory that changes while it is listed may show less than it ever held
            if names.is_empty() {
                names = list(&conf);
            }
            assert!(!names.is_empty(), "no configuration at all");
            // it may be renamed between the look and the reading
            if let Ok(text) = fs::read_to_string(conf.join(&names[0])) {
                let list: serde_json::Value = serde_json::from_str(&text).expect("a whole file");
                looks += 1;
                if last {
                    return (looks, list["plugins"][1]["type"] == "podgate");
                }
            }
        }
    });
    for _ in 0..5 {
        assert!(node.once(&[]).status.success());
        node.write("10-pods.conf", SINGLE);
    }
    assert!(node.once(&[]).status.success());
    over.store(true, Ordering::SeqCst);
    let (looks, gated) = reader.join().unwrap();
    assert!(looks > 20 && gated, "{looks} looks, gated {gated}");
}

#[test]
fn a_link_that_leads_nowhere_is_told_and_nothing_else_is_edited() {
    let node = Node::new();
    std::os::unix::fs::symlink("/nonexistent/elsewhere", node.path("conf/05-link.conflist"))
        .unwrap();
    node.write("10-pods.conflist", LIST);
    let done = node.once(&[]);
    assert_eq!(done.status.code(), Some(1));
    assert!(told(&done).contains("05-link.conflist cannot take podgate"), "{}", told(&done));
    assert_eq!(node.read("10-pods.conflist"), LIST);
}

#[test]
fn what_cri_o_would_take_instead_is_gated_too_and_told() {
    let node = Node::new();
    node.write("10-pods.conflist", &LIST.replace("bridge", "sriov"));
    node.write("100-crio-bridge.conflist", LIST);
    let done = node.once(&[]);
    assert!(done.status.success(), "{}", told(&done));
    for file in ["10-pods.conflist", "100-crio-bridge.conflist"] {
        assert!(node.read(file).contains("podgate"), "{}", node.read(file));
    }
    let told = told(&done);
    assert!(told.contains("CRI-O skips 10-pods.conflist: its plugin sriov is not"), "{told}");
    let files = vec!["10-pods.conflist".into(), "100-crio-bridge.conflist".into()];
    assert_eq!(node.new_pods(), gated_by(files));

    let node = Node::new();
    node.write("10-pods.conflist", &LIST.replace("bridge", "sriov"));
    node.write("100-crio-bridge.conflist", LIST);
    assert!(node.once(&["--runtime", "containerd"]).status.success());
    assert_eq!(node.read("100-crio-bridge.conflist"), LIST);
}

#[test]
fn plugins_beside_a_list_are_refused_and_nothing_is_edited() {
    let node = Node::new();
    for list in ["{\"cniVersion\":\"1.0.0\",\"name\":\"pods\"}", LIST] {
        node.write("10-pods.conflist", list);
        node.write("87-other.conflist", LIST);
        fs::create_dir_all(node.path("conf/pods")).unwrap();
        fs::write(node.path("conf/pods/50-tuning.conf"), "{\"type\":\"tuning\"}").unwrap();
        let done = node.once(&[]);
        assert_eq!(done.status.code(), Some(1));
        let told = told(&done);
        assert!(told.contains("10-pods.conflist cannot take podgate: libcni 1.3 runs"), "{told}");
        assert!(told.contains("50-tuning.conf"), "{told}");
        assert_eq!(node.read("10-pods.conflist"), list);
        assert_eq!(node.read("87-other.conflist"), LIST);
        assert!(matches!(node.new_pods(), NewPods::No { .. }));
    }
}

#[test]
fn a_file_behind_a_link_is_edited_where_it_is() {
    let node = Node::new();
    fs::create_dir(node.path("real")).unwrap();
    fs::write(node.path("real/list"), LIST).unwrap();
    std::os::unix::fs::symlink("../real/list", node.path("conf/10-pods.conflist")).unwrap();
    assert!(node.once(&[]).status.success());
    assert!(node.path("conf/10-pods.conflist").is_symlink(), "the link was replaced");
    assert!(fs::read_to_string(node.path("real/list")).unwrap().contains("podgate"));
}

#[test]
fn a_quarrel_over_the_file_is_told_and_slows_down() {
    let node = Node::new();
    node.write("10-pods.conflist", LIST);
    let watch = node.watch(&[]);
    let gated = || node.read("10-pods.conflist").contains("podgate");
    let mut latencies = Vec::new();
    for _ in 0..20 {
        eventually("the entry is put in", gated);
        node.write("10-pods.conflist", LIST);
        let written = Instant::now();
        eventually("the entry is put back", gated);
        latencies.push(written.elapsed());
    }
    latencies.sort();
    eprintln!("put back after {:?}, the longest {:?}", latencies[9], latencies[19]);
    // from now on it takes its time
    let written = Instant::now();
    node.write("10-pods.conflist", LIST);
    eventually("the entry is put back all the same", gated);
    assert!(written.elapsed() > Duration::from_secs(1), "it goes on quarrelling");
    let told = watch.stop().matches("another program undoes podgate's edits").count();
    assert_eq!(told, 1, "it says so once");
}
