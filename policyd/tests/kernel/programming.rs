//! From manifests to maps.

use std::time::Instant;

use podgate_bpf::abi::Direction;
use podgate_contract::handshake::Response;
use podgate_testkit::wait::eventually;

use crate::node::{Node, on_a_node, pod, policy};

fn web_and_api(node: &Node) {
    node.manifest(
        "pods.yaml",
        &[pod("shop/web", "app: web", "10.0.0.1"), pod("shop/api", "app: api", "10.0.0.2")]
            .concat(),
    );
    node.manifest("policies.yaml", &policy("shop/api-from-web", "app: api", "app: web", 80));
}

#[test]
fn an_added_endpoint_is_programmed_before_the_answer() {
    on_a_node(|node| {
        web_and_api(node);
        let _policyd = node.policyd();
        node.ready();
        let api = node.endpoint("shop/api", "10.0.0.2");
        let epoch = node.maps().control().epoch();
        assert_eq!(node.add(&[&api]), Response::Ok);
        assert_ne!(node.maps().control().epoch(), epoch);
        assert!(node.allows(&api, "10.0.0.1", 6, 80));
        assert!(!node.allows(&api, "10.0.0.1", 6, 81));
        assert!(!node.allows(&api, "10.0.0.1", 17, 80));
        assert!(!node.allows(&api, "10.0.0.3", 6, 80));
        assert!(node.verdict(&api, Direction::Egress, "192.0.2.1", 17, 53));
    });
}

#[test]
fn a_changed_file_changes_the_maps_and_a_removed_one_its_objects() {
    on_a_node(|node| {
        web_and_api(node);
        let api = node.endpoint("shop/api", "10.0.0.2");
        let _policyd = node.policyd();
        node.ready();
        assert!(node.allows(&api, "10.0.0.1", 6, 80));
        node.manifest("policies.yaml", &policy("shop/api-from-web", "app: api", "app: web", 443));
        eventually("443 is allowed", || node.allows(&api, "10.0.0.1", 6, 443).then_some(()));
        eventually("80 is not", || (!node.allows(&api, "10.0.0.1", 6, 80)).then_some(()));
        std::fs::remove_file(node.path("manifests/policies.yaml")).unwrap();
        eventually("everybody may", || node.allows(&api, "192.0.2.1", 17, 53).then_some(()));
    });
}

#[test]
fn a_file_that_is_broken_from_the_start_costs_its_own_policies_only() {
    on_a_node(|node| {
        web_and_api(node);
        node.manifest("tool.yaml", &pod("ops/tool", "app: tool", "10.0.9.9"));
        let nonsense =
            policy("shop/web", "app: web", "app: api", 80).replace("port: 80", "port: -1");
        let told = pod("ops/other", "app: other", "10.0.9.8") + "---\n" + &nonsense;
        node.manifest("broken.yaml", &told);
        let (web, api) =
            (node.endpoint("shop/web", "10.0.0.1"), node.endpoint("shop/api", "10.0.0.2"));
        let (tool, other) =
            (node.endpoint("ops/tool", "10.0.9.9"), node.endpoint("ops/other", "10.0.9.8"));
        let _policyd = node.policyd();
        node.ready();
        assert_eq!(node.add(&[&web, &api, &tool, &other]), Response::Ok);
        // of what cannot be read: the pods that it selects, and no others
        assert!(!node.allows(&web, "10.0.0.2", 6, 80));
        assert!(node.allows(&api, "10.0.0.1", 6, 80));
        assert!(node.allows(&tool, "192.0.2.1", 6, 80));
        assert!(node.allows(&other, "192.0.2.1", 6, 80));
        let status = node.get("/v1/status");
        let problem = status["problems"][0].as_str().unwrap();
        assert!(problem.contains("broken.yaml, document 2, line "), "{problem}");
        assert!(problem.ends_with("its pods are isolated and it allows nothing"), "{problem}");

        // the pods that this selects are not known
        node.manifest("broken.yaml", "kind: [");
        eventually("every pod is isolated", || {
            (!node.allows(&tool, "192.0.2.1", 6, 80)).then_some(())
        });
        assert!(node.allows(&api, "10.0.0.1", 6, 80), "what another policy allows");
        node.manifest("broken.yaml", "");
        eventually("nothing is missing", || node.allows(&tool, "192.0.2.1", 6, 80).then_some(()));
        eventually("web is free", || node.allows(&web, "10.0.0.2", 6, 80).then_some(()));
    });
}

#[test]
fn a_broken_file_keeps_its_last_good_state_until_it_is_mended() {
    on_a_node(|node| {
        web_and_api(node);
        let api = node.endpoint("shop/api", "10.0.0.2");
        let _policyd = node.policyd();
        node.ready();
        let broken = policy("shop/api-from-web", "app: api", "app: web", 443)
            .replace("port: 443", "port: 443, endPort: 1");
        node.manifest("policies.yaml", &broken);
        let problem = eventually("the mistake is told", || {
            let status = node.get("/v1/status");
            status["problems"][0].as_str().map(str::to_owned)
        });
        for part in
            ["policies.yaml", "document 1", "spec.ingress[0].ports[0].endPort", "stays in force"]
        {
            assert!(problem.contains(part), "{part} is not in {problem:?}");
        }
        assert!(node.allows(&api, "10.0.0.1", 6, 80));
        assert!(!node.allows(&api, "192.0.2.1", 6, 80));
        node.manifest("policies.yaml", &policy("shop/api-from-web", "app: api", "app: web", 443));
        eventually("443 is allowed", || node.allows(&api, "10.0.0.1", 6, 443).then_some(()));
        eventually("all is well", || node.get("/v1/status")["problems"][0].is_null().then_some(()));
    });
}

#[test]
fn a_hundred_endpoints_at_once_wait_for_one_grace_period() {
    on_a_node(|node| {
        let pods: String = (0..100)
            .map(|n| pod(&format!("shop/p{n}"), "app: web", &format!("10.0.1.{n}")))
            .collect();
        node.manifest("pods.yaml", &pods);
        let _policyd = node.policyd();
        node.ready();
        let endpoints: Vec<_> = (0..100)
            .map(|n| node.endpoint(&format!("shop/p{n}"), &format!("10.0.1.{n}")))
            .collect();
        let commits = node.get("/v1/status")["commits"].as_u64().unwrap();
        let started = Instant::now();
        std::thread::scope(|scope| {
            for endpoint in &endpoints {
                scope.spawn(move || assert_eq!(node.add(&[endpoint]), Response::Ok));
            }
        });
        let took = started.elapsed();
        let commits = node.get("/v1/status")["commits"].as_u64().unwrap() - commits;
        // one by one each would wait for a grace period of its own
        assert!(commits < 50, "{commits} commits for 100 endpoints, {took:?}");
    });
}

#[test]
fn force_deleted_pods_keep_their_policy_until_their_interface_goes() {
    on_a_node(|node| {
        web_and_api(node);
        let api = node.endpoint("shop/api", "10.0.0.2");
        let _policyd = node.policyd();
        node.ready();
        node.manifest("pods.yaml", &pod("shop/web", "app: web", "10.0.0.1"));
        eventually("the source gives two objects", || {
            (node.get("/v1/status")["sources"][0]["objects"] == 2).then_some(())
        });
        assert!(node.allows(&api, "10.0.0.1", 6, 80));
        assert!(!node.allows(&api, "192.0.2.1", 6, 80));
        node.maps().unregister(api.ifindex).unwrap();
        node.ask(&podgate_contract::handshake::Request::Del {
            container_id: "c".into(),
            endpoints: vec![podgate_contract::handshake::EndpointRef {
                ifindex: api.ifindex,
                owner: api.owner,
            }],
        });
        eventually("the pod is forgotten", || {
            (node.get("/v1/status")["objects"]["pods"] == 1).then_some(())
        });
    });
}
