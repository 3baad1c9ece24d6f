//! Limits of bandwidth that the runtime passes (`runtimeConfig.bandwidth`).

use podgate_bpf::abi::{Direction, LimitsKey, ORIGIN_RUNTIME, Rate};
use serde_json::json;

use crate::world::{in_world, node_reaches};

#[test]
fn limits_of_the_runtime_are_in_force_when_add_ends_and_gone_after_del() {
    in_world(|world| {
        let pod = world.bridged("limited");
        let bandwidth = json!({ "ingressRate": 8_000_000, "ingressBurst": 1_600_000 });
        let keys = json!({ "runtimeConfig": { "bandwidth": bandwidth } });
        pod.call("ADD", keys).succeeded();
        let [ours] = pod.registrations().try_into().expect("one registration");
        let key = LimitsKey::of_pod(ours.owner);
        let limits = world.datapath().maps.limits().get(key).expect("read").expect("limits");
        let [egress, ingress] = limits.rates.map(|rates| rates[0]);
        assert_eq!((egress, ingress), (Rate::NONE, Rate::per_second(1_000_000, 200_000)));
        assert_eq!(limits.origins[Direction::Ingress as usize][0], ORIGIN_RUNTIME);
        pod.call("CHECK", json!({})).succeeded();
        assert!(node_reaches(pod.address()), "a limited pod is reached by its node");

        pod.bare_del().succeeded();
        assert_eq!(world.datapath().maps.limits().all().expect("read"), []);
        world.assert_nothing_stands();
    });
}

#[test]
fn a_second_limiter_in_the_list_is_refused_by_name() {
    in_world(|world| {
        let mut pod = world.bridged("twice");
        let interfaces = pod.prev["interfaces"].as_array_mut().expect("list");
        // as the bandwidth plugin reports it
        interfaces.push(json!({ "name": "bwp0123456789ab", "mac": "02:00:00:00:00:01" }));
        let limited = json!({ "runtimeConfig": { "bandwidth": { "egressRate": 8_000_000 } } });
        let refused = pod.call("ADD", limited);
        refused.failed(7, &["bandwidth plugin in this list", "bwp0123456789ab", "capabilities"]);
        let wrong = json!({ "runtimeConfig": { "bandwidth": { "egressBurst": 8000 } } });
        pod.call("ADD", wrong).failed(7, &["8000 bits for egress, and no rate"]);
        // as it is without limits
        pod.call("ADD", json!({})).succeeded();
        pod.bare_del().succeeded();
        world.assert_nothing_stands();
    });
}
