//! What pods may use: from annotations and PodTrafficPolicies to the maps, live.

use podgate_bpf::abi::{
    Direction, Limit, LimitsFlag, LimitsKey, LimitsRecord, ORIGIN_RUNTIME, Rate,
};
use podgate_bpf::maps::Registration;
use podgate_contract::handshake::Response;
use podgate_testkit::wait::eventually;

use crate::node::{Node, on_a_node};

fn web(annotations: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{namespace: shop, name: web, labels: {{app: web}}, \
         annotations: {{{annotations}}}}}\nspec: {{containers: [{{name: c, image: i}}]}}\n\
         status: {{podIP: 10.0.0.1, phase: Running}}\n---\n"
    )
}

fn traffic_policy(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: podgate.io/v1alpha1\nkind: PodTrafficPolicy\n\
         metadata: {{namespace: shop, name: {name}}}\nspec: {{podSelector: {{}}, {spec}}}\n---\n"
    )
}

fn limits(node: &Node, of: &Registration) -> Option<LimitsRecord> {
    node.maps().limits().get(LimitsKey::of_pod(of.owner)).unwrap()
}

fn bandwidth(limits: &LimitsRecord, direction: Direction) -> Rate {
    limits.rates[direction as usize][Limit::Bandwidth as usize]
}

/// 8 Mbit/s by the pod's annotation; 128 KiB at once.
const ANNOTATED: &str = "kubernetes.io/ingress-bandwidth: 8M";

#[test]
fn limits_hold_when_add_is_answered_and_follow_every_change() {
    on_a_node(|node| {
        node.manifest("pods.yaml", &web(ANNOTATED));
        let _policyd = node.policyd();
        node.ready();
        let endpoint = node.endpoint("shop/web", "10.0.0.1");
        // the first limited pod of a node waits for programs to be verified: on a busy machine for longer than an ADD waits
        eventually("ADD is answered", || node.add(&[&endpoint]) == Response::Ok);
        let limited = limits(node, &endpoint).expect("the annotation's limit");
        assert_eq!(bandwidth(&limited, Direction::Ingress), Rate::per_second(1_000_000, 131_072));
        assert_eq!(bandwidth(&limited, Direction::Egress), Rate::NONE);

        // a policy precedes the annotation, value by value
        let policy = "bandwidth: {ingress: {rate: 16M, burst: 8M}}, \
             connections: {egress: {max: 5, onExceed: Reject}}, dscp: EF, mark: 0x10/0xf0";
        node.manifest("limits.yaml", &traffic_policy("ceiling", policy));
        let by_policy = eventually("the policy's limits", || {
            limits(node, &endpoint).filter(|limits| limits.dscp == 46)
        });
        assert_eq!(
            bandwidth(&by_policy, Direction::Ingress),
            Rate::per_second(2_000_000, 1_000_000)
        );
        assert_eq!(by_policy.open_most[Direction::Egress as usize], 5);
        assert_eq!((by_policy.mark, by_policy.mark_mask), (0x10, 0xf0));
        let reject = LimitsFlag::RejectEgress as u8 | LimitsFlag::Dscp as u8;
        assert_eq!(by_policy.flags & reject, reject);

        // what it has used is not forgotten by a change
        let key = LimitsKey::of_pod(endpoint.owner);
        let told = node.get("/v1/endpoints/shop/web/limits");
        assert_eq!(
            told["limits"][0]["origin"]["object"], "podtrafficpolicy shop/ceiling",
            "{told:#}"
        );
        let used = &told["used"][0];
        let held = used["bandwidth_held"].as_str().expect("how it is held");
        assert!(
            used["direction"] == "ingress" && held.starts_with("policed: ") || held == "shaped"
        );
        assert!(node.maps().limits().meter(key).unwrap().is_some());
        let sample = "podgate_limited_packets_total{namespace=\"shop\",pod=\"web\",interface=";
        assert!(node.metrics().contains(sample), "{}", node.metrics());
        let table = node.podgatectl(&["limits", "shop/web"]).unwrap();
        assert!(
            table.contains("podtrafficpolicy shop/ceiling") && table.contains("USED"),
            "{table}"
        );

        std::fs::remove_file(node.path("manifests/limits.yaml")).unwrap();
        eventually("the annotation's again", || {
            (limits(node, &endpoint) == Some(limited)).then_some(())
        });
        node.manifest("pods.yaml", &web(""));
        eventually("no limits", || limits(node, &endpoint).is_none().then_some(()));
        assert_eq!(node.maps().limits().meter(key).unwrap(), None);
    });
}

#[test]
fn what_the_runtime_passed_holds_for_a_pod_that_no_source_knows() {
    on_a_node(|node| {
        let endpoint = node.endpoint("shop/web", "10.0.0.1");
        let mut passed = LimitsRecord::default();
        let rate = Rate::per_second(1000, 1000);
        passed.set_rate(Direction::Egress, Limit::Bandwidth, rate, ORIGIN_RUNTIME);
        node.maps().limits().set(LimitsKey::of_pod(endpoint.owner), &passed).unwrap();
        let _policyd = node.policyd();
        node.ready();
        assert_eq!(limits(node, &endpoint), Some(passed));
        // once it is known, it says so itself: without an annotation there is no limit any more
        node.manifest("pods.yaml", &web(""));
        eventually("no limits", || limits(node, &endpoint).is_none().then_some(()));
    });
}

#[test]
fn a_restart_keeps_limits_and_what_is_used_of_them() {
    on_a_node(|node| {
        node.manifest("pods.yaml", &web(ANNOTATED));
        let endpoint = node.endpoint("shop/web", "10.0.0.1");
        let policyd = node.policyd();
        node.ready();
        let before = limits(node, &endpoint).expect("limits");
        policyd.kill();
        assert_eq!(limits(node, &endpoint), Some(before));
        // changed while no policyd runs
        node.manifest("pods.yaml", &web("kubernetes.io/egress-bandwidth: 80k"));
        let _policyd = node.policyd();
        node.ready();
        let after = limits(node, &endpoint).expect("limits");
        assert_eq!(bandwidth(&after, Direction::Ingress), Rate::NONE);
        assert_eq!(bandwidth(&after, Direction::Egress), Rate::per_second(10_000, 131_072));
    });
}
