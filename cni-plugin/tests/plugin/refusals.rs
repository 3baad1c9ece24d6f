//! What ADD refuses, by name and without a trace, and what it repairs.

use std::fs;
use std::os::unix::net::UnixListener;
use std::time::Duration;

use nix::mount::{MntFlags, umount2};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde_json::json;

use crate::world::{Pod, finish, in_world, run};

/// The result of a plugin that made one interface in the pod.
fn reports(pod: &mut Pod<'_>, interface: &str) {
    pod.prev = json!({
        "cniVersion": "1.0.0",
        "interfaces": [{ "name": interface, "sandbox": pod.netns }],
        "ips": [{ "address": "10.0.0.5/24", "interface": 0 }],
    });
}

fn inside(pod: &Pod<'_>, ip: &[&str]) {
    let output = pod.run(&[&["ip"], ip].concat());
    assert!(output.status.success(), "ip {ip:?}: {output:?}");
}

fn nothing_was_touched(pod: &Pod<'_>) {
    assert!(!pod.world.pins().root().exists(), "pins were made");
}

#[test]
fn an_interface_that_is_no_veth() {
    in_world(|world| {
        let mut pod = world.pod("kinds");
        inside(&pod, &["link", "add", "in1", "type", "veth", "peer", "name", "in2"]);
        inside(&pod, &["link", "add", "mv0", "link", "in1", "type", "macvlan"]);
        inside(&pod, &["link", "add", "br0", "type", "bridge"]);
        reports(&mut pod, "mv0");
        pod.call("ADD", json!({})).failed(101, &["interface mv0", "of kind macvlan, not a veth"]);
        reports(&mut pod, "br0");
        pod.call("ADD", json!({})).failed(101, &["interface br0", "of kind bridge, not a veth"]);
        reports(&mut pod, "in1");
        pod.call("ADD", json!({})).failed(101, &["interface in1", "in the pod's own"]);
        reports(&mut pod, "net7");
        pod.call("ADD", json!({})).failed(101, &["interface net7", "no such interface"]);
        nothing_was_touched(&pod);
    });
}

#[test]
fn a_veth_whose_other_end_is_in_a_third_namespace() {
    in_world(|world| {
        let (mut pod, third) = (world.pod("pod"), world.pod("third"));
        inside(&pod, &["link", "add", "eth0", "type", "veth", "peer", "name", "far"]);
        third.with_pid(|pid| inside(&pod, &["link", "set", "far", "netns", pid]));
        reports(&mut pod, "eth0");
        pod.call("ADD", json!({})).failed(101, &["interface eth0", "should be interface"]);
        nothing_was_touched(&pod);
    });
}

#[test]
fn a_namespace_that_is_none() {
    in_world(|world| {
        let mut pod = world.bridged("lost");
        let file = world.path("plain");
        fs::write(&file, "").expect("write");
        // to open it would wait for its other end
        let (fifo, socket) = (world.path("fifo"), world.path("socket"));
        mkfifo(&fifo, Mode::S_IRWXU).expect("make FIFO");
        let _socket = UnixListener::bind(&socket).expect("bind");
        for (netns, words) in [
            ("/proc/thread-self/ns/net".into(), "caller's own"),
            (world.path("nowhere"), "No such file"),
            (file, "no namespace"),
            (fifo, "no namespace"),
            (socket, "no namespace"),
            (world.path("bpf"), "no namespace"),
            ("/dev/zero".into(), "no namespace"),
            ("/proc/self/ns/uts".into(), "enter it"),
        ] {
            pod.netns = netns;
            let path = pod.netns.display().to_string();
            for verb in ["ADD", "CHECK"] {
                pod.call(verb, json!({})).failed(8, &["CNI_NETNS", &path, words]);
            }
            pod.call("DEL", json!({})).succeeded();
        }
        nothing_was_touched(&pod);
    });
}

#[test]
fn a_configuration_that_cannot_be() {
    in_world(|world| {
        let pod = world.bridged("conf");
        pod.call("ADD", json!({ "prevResult": null })).failed(7, &["prevResult is missing"]);
        pod.call("ADD", json!({ "startup": "shut" }))
            .failed(7, &["startup", "shut", "hold", "open"]);
        pod.call("ADD", json!({ "name": "" })).failed(7, &["name"]);
        pod.call("ADD", json!({ "maps": { "flow4": 1 } })).failed(7, &["maps.flow4"]);
        pod.call("ADD", json!({ "logLevel": "loud" })).failed(7, &["logLevel"]);
        pod.call("ADD", json!({ "cniVersion": "0.2.0" })).failed(1, &["0.2.0", "0.3.1"]);
        let prev = json!({ "cniVersion": "1.0.0", "ips": [{ "address": "ten" }] });
        pod.call("ADD", json!({ "prevResult": prev })).failed(6, &["prevResult", "ten"]);
        nothing_was_touched(&pod);
    });
}

#[test]
fn a_configuration_that_never_ends() {
    in_world(|world| {
        let pod = world.bridged("endless");
        let half = "{\"cniVersion\":\"1.0.0\",\"name\":\"pods\",";
        let calls = ["ADD", "CHECK", "DEL"].map(|verb| (verb, pod.start_open_ended(verb, half)));
        for (verb, (child, stdin)) in calls {
            let done = finish(child);
            drop(stdin);
            match verb {
                "DEL" => done.succeeded(),
                _ => done.failed(5, &["stdin", "not whole after 10 s"]),
            };
            assert!(done.took < Duration::from_secs(50), "{verb}: {done:?}");
        }
        nothing_was_touched(&pod);
    });
}

#[test]
fn no_bpf_file_system() {
    in_world(|world| {
        let pod = world.bridged("nofs");
        umount2(&world.path("bpf"), MntFlags::empty()).expect("umount");
        pod.call("ADD", json!({})).failed(100, &["mount -t bpf"]);
        pod.call("CHECK", json!({})).failed(105, &["no programs are pinned"]);
        pod.bare_del().succeeded();
    });
}

#[test]
fn a_half_written_pin_directory_is_repaired() {
    in_world(|world| {
        let first = world.bridged("first");
        first.call("ADD", json!({})).succeeded();
        for missing in
            [&["from_pod"][..], &["to_pod", "from_pod"], &["policies", "to_pod"], &["links"]]
        {
            for name in missing {
                let path = world.pins().path(name);
                if path.is_dir() { fs::remove_dir(&path) } else { fs::remove_file(&path) }
                    .expect("remove pin");
            }
            let pod = world.bridged(&missing.join("-"));
            pod.call("ADD", json!({})).succeeded();
            pod.call("CHECK", json!({})).succeeded();
            assert_eq!(first.registrations().len(), 1, "the endpoints map was lost");
            pod.bare_del().succeeded();
        }
    });
}

#[test]
fn a_failure_at_the_second_interface_undoes_the_first() {
    in_world(|world| {
        let mut pod = world.bridged("halfway");
        let second = pod.bridge("net1", "1.0.0");
        let host = second["interfaces"][2].clone();
        pod.prev["interfaces"].as_array_mut().expect("list").push(host);
        // more addresses than a registration holds: found out when the first gate is attached already
        for n in 0..5 {
            let ip = json!({ "address": format!("10.88.0.{n}/24"), "interface": 3 });
            pod.prev["ips"].as_array_mut().expect("list").push(ip);
        }
        for attach in ["clsact", "tcx"] {
            let done = pod.call("ADD", json!({ "attach": attach }));
            done.failed(102, &["5 IPv4 addresses", "at most 4"]);
            world.assert_nothing_stands();
        }
    });
}

#[test]
fn an_ingress_hook_that_bandwidth_has_taken_is_named() {
    in_world(|world| {
        let mut pod = world.bridged("limited");
        let host = pod.prev["interfaces"][1]["name"].as_str().expect("host veth").to_owned();
        run("tc", &["qdisc", "add", "dev", &host, "ingress"]);
        let qdisc = "there is a qdisc of kind ingress";
        let done = pod.call("ADD", json!({ "attach": "clsact" }));
        assert!(!done.failed(103, &[qdisc]).stdout.contains("has taken that hook"), "{done:?}");
        // as that plugin reports it
        let interfaces = pod.prev["interfaces"].as_array_mut().expect("list");
        interfaces.push(json!({ "name": "bwp0123456789ab", "mac": "02:00:00:00:00:01" }));
        let done = pod.call("ADD", json!({ "attach": "clsact" }));
        done.failed(103, &[qdisc, "bandwidth plugin in this list", "bwp0123456789ab"]);
        world.assert_nothing_stands();
    });
}

#[test]
fn a_log_file_takes_the_log_and_a_bad_one_costs_no_pod() {
    in_world(|world| {
        let pod = world.bridged("log");
        let file = world.path("podgate.log");
        let done = pod.call("ADD", json!({ "logFile": file, "logLevel": "debug" }));
        assert_eq!(done.succeeded().stderr, "");
        let log = fs::read_to_string(&file).expect("read log");
        for part in ["container-log", "default/log", "gate attached", "ifindex="] {
            assert!(log.contains(part), "no {part:?}: {log}");
        }
        let nowhere = world.path("no/such/dir/log");
        pod.call("ADD", json!({ "logFile": nowhere })).succeeded().logged("open log file");
        // no process reads it
        let fifo = world.path("fifo");
        mkfifo(&fifo, Mode::S_IRWXU).expect("make FIFO");
        pod.call("ADD", json!({ "logFile": fifo })).succeeded().logged("open log file");
        // quiet means quiet
        let done = pod.call("ADD", json!({ "logLevel": "error" }));
        assert_eq!(done.succeeded().stderr, "");
    });
}
