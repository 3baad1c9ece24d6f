//! What a runtime does in a pod's life when all goes well.

use podgate_bpf::abi::Startup;
use podgate_bpf::attach::Attached;
use podgate_bpf::maps::PodRef;
use podgate_contract::handshake::{EndpointRef, Request};
use serde_json::json;

use crate::policyd::{OK, Policyd};
use crate::world::{finish, in_world, node_reaches, run};

#[test]
fn every_version_adds_checks_and_deletes() {
    in_world(|world| {
        let policyd = Policyd::listen(&world.socket(), OK);
        for version in ["0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
            let mut pod = world.pod(&format!("v{}", version.replace('.', "-")));
            // the reference plugins here end at 1.0.0; libcni would convert their result like this
            pod.prev = pod.bridge("eth0", if version == "1.1.0" { "1.0.0" } else { version });
            pod.prev["cniVersion"] = json!(version);
            pod.prev["x-unknown"] = json!({ "kept": [1.50, null] });

            let done = pod.call("ADD", json!({}));
            done.succeeded().logged("policy is in force");
            assert_eq!(done.stdout.trim_end(), pod.prev.to_string(), "prevResult was changed");

            let [registration] = pod.registrations().try_into().expect("one registration");
            let ifindex = registration.ifindex;
            assert_eq!(registration.addresses, [pod.address()]);
            assert_eq!(registration.startup, Startup::Hold);
            assert!(registration.anti_spoofing && registration.owner != 0);
            assert_eq!(registration.interface, "eth0");
            assert_eq!(registration.network, "pods");
            assert_eq!(registration.netns, pod.netns.display().to_string());
            let (namespace, uid) = ("default".into(), format!("uid-{}", pod.name));
            assert_eq!(registration.pod, Some(PodRef { namespace, name: pod.name.clone(), uid }));
            let host = format!("/sys/class/net/{}/ifindex", registration.host_interface);
            // sysfs shows another namespace's devices; ip does not
            assert!(!std::path::Path::new(&host).exists());
            let shown = run("ip", &["-o", "link", "show", &registration.host_interface]);
            assert!(shown.starts_with(&format!("{ifindex}: ")), "{shown}");
            assert_eq!(world.datapath().verify(ifindex).expect("attached"), Attached::Clsact);

            let endpoint = EndpointRef { ifindex, owner: registration.owner };
            let (container_id, endpoints) = (registration.container_id.clone(), vec![endpoint]);
            let add =
                Request::Add { container_id: container_id.clone(), endpoints: endpoints.clone() };
            assert_eq!(policyd.seen().last(), Some(&add));

            let check = pod.call("CHECK", json!({}));
            if version == "0.3.1" {
                check.failed(1, &["CHECK is not part of CNI 0.3.1"]);
            } else {
                assert_eq!(check.succeeded().stdout, "");
            }

            assert_eq!(pod.call("DEL", json!({})).succeeded().stdout, "");
            assert_eq!(policyd.seen().last(), Some(&Request::Del { container_id, endpoints }));
            world.assert_nothing_stands();
            assert_eq!(pod.call("DEL", json!({})).succeeded().stdout, "");
            assert_eq!(pod.bare_del().succeeded().stdout, "");
            if version != "0.3.1" {
                pod.call("CHECK", json!({})).failed(105, &["is not registered"]);
            }
        }
    });
}

#[test]
fn before_policyd_only_the_node_reaches_a_held_pod() {
    in_world(|world| {
        let (held, open) = (world.bridged("held"), world.bridged("open"));
        let third = world.bridged("third");
        assert!(third.reaches(held.address()), "the bridge itself does not work");
        held.call("ADD", json!({})).succeeded().logged("does not listen");
        open.call("ADD", json!({ "startup": "open" })).succeeded();

        assert!(node_reaches(held.address()), "the own node must always get in");
        assert!(third.misses(held.address()), "another pod got in");
        assert!(held.misses(third.address()), "the pod got out");
        assert!(node_reaches(open.address()) && third.reaches(open.address()));
        assert!(open.reaches(third.address()));

        let known = world.datapath().maps.node_addrs().expect("node addresses");
        assert!(known.contains(&"10.77.0.1".parse().expect("address")), "{known:?}");
        assert!(!known.iter().any(|ip| ip.is_loopback()), "{known:?}");

        held.call("DEL", json!({})).succeeded();
        assert!(third.reaches(held.address()), "the gate is gone but still closed");
    });
}

#[test]
fn adding_again_replaces_the_registration_and_keeps_the_gate() {
    in_world(|world| {
        let pod = world.bridged("again");
        pod.call("ADD", json!({})).succeeded();
        let first = pod.registrations();
        // a policy for the first registration, which must not stay for the second
        let datapath = world.datapath();
        let map = datapath.maps.new_policy_map(&[]).expect("make policy map");
        datapath.maps.install_policy_maps(&[(first[0].ifindex, &map)]).expect("install");
        pod.call("ADD", json!({})).succeeded();
        let second = pod.registrations();
        assert_eq!((first.len(), second.len()), (1, 1));
        assert_eq!(first[0].ifindex, second[0].ifindex);
        assert_ne!(first[0].owner, second[0].owner);
        assert!(datapath.verify(second[0].ifindex).is_ok());
        assert_eq!(datapath.maps.installed_policy_maps().expect("read"), [0; 0]);
        pod.call("CHECK", json!({})).succeeded().logged("still in its startup state");
        pod.bare_del().succeeded();
        world.assert_nothing_stands();
    });
}

#[test]
fn every_interface_of_the_sandbox_gets_a_gate() {
    in_world(|world| {
        let mut pod = world.bridged("multi");
        let second = pod.bridge("net1", "1.0.0");
        // as one plugin would report both
        let offset = pod.prev["interfaces"].as_array().expect("list").len();
        for interface in second["interfaces"].as_array().expect("list") {
            pod.prev["interfaces"].as_array_mut().expect("list").push(interface.clone());
        }
        for ip in second["ips"].as_array().expect("list") {
            let mut ip = ip.clone();
            ip["interface"] = json!(ip["interface"].as_u64().expect("index") + offset as u64);
            pod.prev["ips"].as_array_mut().expect("list").push(ip);
        }
        let lo = json!({ "name": "lo", "sandbox": pod.netns });
        pod.prev["interfaces"].as_array_mut().expect("list").push(lo);
        let policyd = Policyd::listen(&world.socket(), OK);
        pod.call("ADD", json!({})).succeeded();
        let found = pod.registrations();
        assert_eq!(found.len(), 2, "{found:?}");
        assert_ne!(found[0].owner, found[1].owner);
        assert_ne!(found[0].addresses, found[1].addresses);
        for registration in &found {
            assert!(world.datapath().verify(registration.ifindex).is_ok());
        }
        // one line names both, and one DEL takes both
        let Some(Request::Add { endpoints, .. }) = policyd.seen().pop() else { panic!("no ADD") };
        assert_eq!(endpoints.len(), 2);
        pod.call("CHECK", json!({})).succeeded();
        pod.bare_del().succeeded();
        world.assert_nothing_stands();
    });
}

#[test]
fn attachments_of_one_container_live_apart() {
    in_world(|world| {
        let mut pod = world.bridged("two-nets");
        pod.call("ADD", json!({})).succeeded();
        pod.prev = pod.bridge("net1", "1.0.0");
        pod.ifname = "net1".into();
        pod.call("ADD", json!({ "name": "other" })).succeeded();
        assert_eq!(pod.registrations().len(), 2);
        pod.call("DEL", json!({ "name": "other" })).succeeded();
        let [left] = pod.registrations().try_into().expect("one registration");
        assert_eq!((left.interface.as_str(), left.network.as_str()), ("eth0", "pods"));
        assert!(world.datapath().verify(left.ifindex).is_ok());
    });
}

#[test]
fn tcx_attaches_and_goes_away() {
    in_world(|world| {
        let pod = world.bridged("tcx");
        pod.call("ADD", json!({ "attach": "tcx" })).succeeded();
        let [registration] = pod.registrations().try_into().expect("one registration");
        assert_eq!(world.datapath().verify(registration.ifindex).expect("attached"), Attached::Tcx);
        pod.call("CHECK", json!({})).succeeded();
        pod.bare_del().succeeded();
        world.assert_nothing_stands();
    });
}

#[test]
fn a_result_without_interfaces_or_addresses_is_completed_from_the_pod() {
    in_world(|world| {
        let mut pod = world.bridged("bare");
        let address = pod.address();
        pod.prev = json!({ "cniVersion": "1.0.0" });
        pod.call("ADD", json!({})).succeeded();
        let [registration] = pod.registrations().try_into().expect("one registration");
        assert_eq!(registration.addresses, [address]);
        assert_ne!(registration.netns_cookie, 0, "the namespace's cookie was not read");
    });
}

#[test]
fn a_foreign_runtime_gives_no_pod() {
    in_world(|world| {
        let pod = world.bridged("podman");
        let mut conf = world.conf("1.0.0", json!({}));
        conf["prevResult"] = pod.prev.clone();
        let netns = pod.netns.display().to_string();
        let env = [
            ("CNI_COMMAND", "ADD"),
            ("CNI_CONTAINERID", "container-podman"),
            ("CNI_NETNS", netns.as_str()),
            ("CNI_IFNAME", "eth0"),
            ("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAME=c1"),
        ];
        let binary = env!("CARGO_BIN_EXE_podgate");
        finish(crate::world::start(binary, &env, &conf.to_string())).succeeded();
        assert_eq!(pod.registrations()[0].pod, None);
    });
}

#[test]
fn eight_at_once_from_nothing() {
    in_world(|world| {
        let _policyd = Policyd::listen(&world.socket(), OK);
        let pods: Vec<_> = (0..8).map(|n| world.bridged(&format!("p{n}"))).collect();
        // the programs are not loaded: all eight try to load them
        let running: Vec<_> = pods.iter().map(|pod| pod.start("ADD", json!({}))).collect();
        for child in running {
            finish(child).succeeded();
        }
        let found = world.registrations();
        assert_eq!(found.len(), 8);
        for registration in &found {
            assert!(world.datapath().verify(registration.ifindex).is_ok());
        }
        let running: Vec<_> = pods.iter().map(|pod| pod.start("DEL", json!({}))).collect();
        for child in running {
            finish(child).succeeded();
        }
        world.assert_nothing_stands();
    });
}
