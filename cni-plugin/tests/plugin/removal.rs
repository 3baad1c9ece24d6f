//! DEL and GC in every state that a runtime, a crash or an operator can leave.

use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use podgate_bpf::Datapath;
use serde_json::json;

use crate::policyd::{Mood, OK, Policyd};
use crate::world::{in_world, run};

#[test]
fn del_of_an_add_that_never_came_succeeds() {
    in_world(|world| {
        let stranger = world.pod("stranger");
        // nothing was ever loaded, and it stays so
        stranger.bare_del().succeeded();
        stranger.call("DEL", json!({})).succeeded();
        assert!(!world.pins().root().exists());
        let pod = world.bridged("here");
        pod.call("ADD", json!({})).succeeded();
        stranger.bare_del().succeeded();
        assert_eq!(pod.registrations().len(), 1, "somebody else's gate was taken");
        assert!(world.datapath().verify(pod.registrations()[0].ifindex).is_ok());
    });
}

#[test]
fn del_works_when_the_interface_is_gone() {
    in_world(|world| {
        for attach in ["clsact", "tcx"] {
            let pod = world.bridged(attach);
            pod.call("ADD", json!({ "attach": attach })).succeeded();
            run("ip", &["link", "del", &pod.registrations()[0].host_interface]);
            pod.call("DEL", json!({ "prevResult": null })).succeeded();
            world.assert_nothing_stands();
        }
    });
}

#[test]
fn del_does_not_stumble_over_what_it_does_not_need() {
    in_world(|world| {
        let pod = world.bridged("sloppy");
        pod.call("ADD", json!({})).succeeded();
        let keys = json!({
            "startup": 7, "attach": "x", "logLevel": "loud", "maps": [], "prevResult": "broken",
            "name": "renamed",
        });
        pod.call("DEL", keys).succeeded();
        world.assert_nothing_stands();
        for version in [json!(""), json!("9.9.9"), json!(1), json!(null)] {
            pod.call("ADD", json!({})).succeeded();
            let keys = json!({ "cniVersion": version, "prevResult": [], "name": 1, "socket": 7 });
            pod.call("DEL", keys).succeeded().logged("this verb only removes");
            world.assert_nothing_stands();
        }
    });
}

#[test]
fn del_works_without_any_configuration_where_the_pins_are_at_their_default_place() {
    in_world(|world| {
        world.pins_at_the_default_place();
        let inputs = ["", "{", "[]", "{\"cniVersion\":\"1.0.0\",\"bpfRoot\":7}"];
        for (number, stdin) in inputs.into_iter().enumerate() {
            let pod = world.bridged(&format!("bare-{number}"));
            pod.call("ADD", json!({})).succeeded();
            pod.del_with(stdin).succeeded();
            world.assert_nothing_stands();
        }
    });
}

#[test]
fn del_does_not_wait_for_the_end_of_a_configuration_that_is_whole() {
    in_world(|world| {
        let pod = world.bridged("open-ended");
        pod.call("ADD", json!({})).succeeded();
        let (mut child, stdin) =
            pod.start_open_ended("DEL", &world.conf("1.0.0", json!({})).to_string());
        let code = child.wait().expect("wait").code();
        drop(stdin);
        assert_eq!(code, Some(0));
        world.assert_nothing_stands();
    });
}

#[test]
fn gc_works_with_an_unknown_version() {
    in_world(|world| {
        let pod = world.bridged("old");
        pod.call("ADD", json!({})).succeeded();
        for (version, list, left) in [
            ("9.9.9", json!([{ "containerID": "container-old", "ifname": "eth0" }]), 1),
            ("", json!(null), 0),
        ] {
            let keys = json!({ "cni.dev/valid-attachments": list, "prevResult": 1, "socket": 7 });
            world.call("GC", &world.conf(version, keys)).succeeded();
            assert_eq!(pod.registrations().len(), left, "{version:?}");
        }
    });
}

#[test]
fn del_does_not_wait_for_a_daemon_that_hangs() {
    in_world(|world| {
        let pod = world.bridged("patient");
        pod.call("ADD", json!({})).succeeded();
        let _policyd = Policyd::listen(&world.socket(), Mood::Hangs);
        let done = pod.call("DEL", json!({}));
        done.succeeded();
        assert!(done.took < Duration::from_secs(20), "{done:?}");
        world.assert_nothing_stands();
    });
}

#[test]
fn gc_keeps_the_valid_ones_and_other_networks() {
    in_world(|world| {
        let _policyd = Policyd::listen(&world.socket(), OK);
        let pods: Vec<_> = ["keep", "drop"].map(|name| world.bridged(name)).into();
        for pod in &pods {
            pod.call("ADD", json!({})).succeeded();
        }
        let elsewhere = world.bridged("elsewhere");
        elsewhere.call("ADD", json!({ "name": "other" })).succeeded();
        let gc = |list: serde_json::Value| {
            let conf = world.conf("1.1.0", json!({ "cni.dev/valid-attachments": list }));
            world.call("GC", &conf).succeeded();
        };
        gc(json!([
            { "containerID": "container-keep", "ifname": "eth0" },
            { "containerID": "container-drop", "ifname": "net9" },
        ]));
        let counts = || [&pods[0], &pods[1], &elsewhere].map(|pod| pod.registrations().len());
        assert_eq!(counts(), [1, 0, 1]);
        // a missing list is no empty list
        world.call("GC", &world.conf("1.1.0", json!({}))).failed(7, &["valid-attachments"]);
        assert_eq!(counts(), [1, 0, 1]);
        // null is
        gc(json!(null));
        assert_eq!(counts(), [0, 0, 1]);
        let bad = world.conf("1.1.0", json!({ "cni.dev/valid-attachments": [{ "ifname": 1 }] }));
        world.call("GC", &bad).failed(6, &["valid-attachments"]);
        assert_eq!(counts(), [0, 0, 1]);
    });
}

#[test]
fn gc_where_nothing_was_ever_loaded_succeeds() {
    in_world(|world| {
        let conf = world.conf("1.1.0", json!({ "cni.dev/valid-attachments": null }));
        assert_eq!(world.call("GC", &conf).succeeded().stdout, "");
    });
}

#[test]
fn killed_while_waiting_then_deleted_leaves_nothing() {
    in_world(|world| {
        let policyd = Policyd::listen(&world.socket(), Mood::Hangs);
        let pod = world.bridged("killed");
        let mut child = pod.start("ADD", json!({ "policydTimeoutMs": 60000 }));
        while policyd.seen().is_empty() {
            assert!(child.try_wait().expect("wait").is_none(), "ended too early");
            std::thread::sleep(Duration::from_millis(5));
        }
        kill(Pid::from_raw(child.id() as i32), Signal::SIGKILL).expect("kill");
        child.wait().expect("wait");
        // the gate holds the pod
        assert_eq!(pod.registrations().len(), 1);
        assert!(world.datapath().verify(pod.registrations()[0].ifindex).is_ok());
        pod.bare_del().succeeded();
        world.assert_nothing_stands();
    });
}

#[test]
fn killed_at_any_moment_then_deleted_leaves_nothing() {
    in_world(|world| {
        let pod = world.bridged("anytime");
        // the first calls are killed while they load, later ones among opening and attaching
        for attempt in 0..40_u64 {
            let mut child = pod.start("ADD", json!({}));
            std::thread::sleep(Duration::from_micros(attempt * 1500));
            let _ = child.kill();
            child.wait().expect("wait");
            if attempt % 4 == 0 {
                // start over: loading is the longest stretch
                pod.bare_del().succeeded();
                let _ = Datapath::unload(&world.pins());
            }
        }
        pod.call("ADD", json!({})).succeeded();
        assert_eq!(pod.registrations().len(), 1);
        pod.call("CHECK", json!({})).succeeded();
        pod.bare_del().succeeded();
        world.assert_nothing_stands();
    });
}
