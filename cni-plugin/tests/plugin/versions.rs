//! Pods whose gate another version's plugin stood, in a layout of the maps of its own, and which this version's policyd
//! has not taken over yet.

use podgate_bpf::attach::AttachMode;
use podgate_bpf::loader::Sizes;
use podgate_bpf::maps::Registration;
use podgate_bpf::{Datapath, PinRoot};
use serde_json::json;

use crate::world::{Pod, World, in_world};

/// A gate of another version, on a node where this version has no gates or only those of other pods.
fn by_another_version(world: &World, pod: &Pod<'_>, mode: AttachMode) -> (Datapath, Registration) {
    pod.call("ADD", json!({})).succeeded();
    let [registration] = pod.registrations().try_into().expect("one registration");
    pod.call("DEL", json!({})).succeeded();
    let pins = PinRoot::of_layout(world.path("bpf/podgate"), 77);
    let sizes = Sizes { flows4: 1024, flows6: 1024, ..Sizes::default() };
    let other = Datapath::open_or_load(&pins, &sizes).expect("load another layout");
    other.maps.register(&registration).expect("register");
    other.attach(registration.ifindex, mode).expect("attach");
    (other, registration)
}

#[test]
fn check_and_del_know_them() {
    for &mode in AttachMode::of_this_kernel() {
        for loaded in [true, false] {
            in_world(|world| {
                let (pod, other_pod) = (world.bridged("old"), world.bridged("other"));
                let (other, registration) = by_another_version(world, &pod, mode);
                if !loaded {
                    Datapath::unload(&world.pins()).expect("unload");
                }
                pod.call("CHECK", json!({})).succeeded();
                other_pod.call("DEL", json!({})).succeeded();
                other.verify(registration.ifindex).expect("another pod's DEL took the gate");
                pod.call("DEL", json!({})).succeeded();
                assert_eq!(other.maps.registrations().expect("read"), []);
                assert!(other.verify(registration.ifindex).is_err(), "the gate still stands");
                pod.call("DEL", json!({})).succeeded();
                if loaded {
                    world.assert_nothing_stands();
                }
            });
        }
    }
}

#[test]
fn gc_and_a_repeated_add_know_them() {
    for &mode in AttachMode::of_this_kernel() {
        in_world(|world| {
            let pod = world.bridged("old");
            let (other, registration) = by_another_version(world, &pod, mode);
            pod.call("ADD", json!({})).succeeded();
            assert_eq!(other.maps.registrations().expect("read"), [], "two gates would stand");
            world.datapath().verify(registration.ifindex).expect("this version's gate is attached");
            pod.call("CHECK", json!({})).succeeded();
            pod.call("DEL", json!({})).succeeded();
            world.assert_nothing_stands();

            other.maps.register(&registration).expect("register");
            other.attach(registration.ifindex, mode).expect("attach");
            let valid = json!([{ "containerID": registration.container_id, "ifname": "eth0" }]);
            let gc = |valid| json!({ "cniVersion": "1.1.0", "cni.dev/valid-attachments": valid });
            pod.call("GC", gc(valid)).succeeded();
            other.verify(registration.ifindex).expect("a valid attachment lost its gate");
            pod.call("GC", gc(json!([]))).succeeded();
            assert_eq!(other.maps.registrations().expect("read"), []);
            assert!(other.verify(registration.ifindex).is_err(), "the gate still stands");
            world.assert_nothing_stands();
        });
    }
}
