//! Interface numbers are used again: nothing of an old pod serves or harms a new one.

use podgate_bpf::maps::Registration;
use serde_json::json;

use crate::world::{in_world, run};

#[test]
fn a_stale_registration_makes_room_and_its_del_harms_nobody() {
    in_world(|world| {
        let old = world.bridged("old");
        old.call("ADD", json!({ "attach": "tcx" })).succeeded();
        let [stale] = old.registrations().try_into().expect("one registration");
        let datapath = world.datapath();
        let map = datapath.maps.new_policy_map(&[]).expect("make policy map");
        datapath.maps.install_policy_maps(&[(stale.ifindex, &map)]).expect("install");

        // the old pod's interface goes without DEL, and its number goes to the new pod
        run("ip", &["link", "del", &stale.host_interface]);
        let mut new = world.pod("new");
        let number = stale.ifindex.to_string();
        let netns = new.netns.display().to_string();
        run(
            "ip",
            &["link", "add", "reborn", "index", &number, "type", "veth", "peer", "name", "eth0"],
        );
        new.with_pid(|pid| run("ip", &["link", "set", "eth0", "netns", pid]));
        new.prev = json!({
            "cniVersion": "1.0.0",
            "interfaces": [{ "name": "reborn" }, { "name": "eth0", "sandbox": netns }],
            "ips": [{ "address": "10.77.0.200/24", "interface": 1 }],
        });
        new.call("ADD", json!({})).succeeded().logged("registration of an earlier interface");
        let [reborn] = new.registrations().try_into().expect("one registration");
        assert_eq!(reborn.ifindex, stale.ifindex);
        assert_eq!(old.registrations(), []);
        assert_eq!(
            datapath.maps.installed_policy_maps().expect("read"),
            [0; 0],
            "old policy stayed"
        );
        new.call("CHECK", json!({})).succeeded();

        // the runtime gets round to the old pod
        old.bare_del().succeeded();
        assert_eq!(new.registrations(), [reborn]);
        new.call("CHECK", json!({})).succeeded();
        new.bare_del().succeeded();
        world.assert_nothing_stands();
    });
}

#[test]
fn check_notices_what_has_changed() {
    in_world(|world| {
        let pod = world.bridged("changed");
        pod.call("ADD", json!({})).succeeded();
        let [ours] = pod.registrations().try_into().expect("one registration");
        let datapath = world.datapath();
        let register = |other: Registration| datapath.maps.register(&other).expect("register");

        register(Registration { container_id: "another".into(), ..ours.clone() });
        pod.call("CHECK", json!({})).failed(105, &["of container another"]);
        let addresses = vec!["10.9.9.9".parse().expect("address")];
        register(Registration { addresses, ..ours.clone() });
        pod.call("CHECK", json!({})).failed(105, &["10.9.9.9"]);
        register(ours.clone());
        pod.call("CHECK", json!({})).succeeded();

        run("tc", &["filter", "del", "dev", &ours.host_interface, "egress"]);
        pod.call("CHECK", json!({})).failed(106, &["to_pod is not attached"]);
        datapath.detach(ours.ifindex).expect("detach");
        pod.call("CHECK", json!({})).failed(106, &["not attached"]);
        // ADD again mends it
        pod.call("ADD", json!({})).succeeded();
        pod.call("CHECK", json!({})).succeeded();
    });
}
