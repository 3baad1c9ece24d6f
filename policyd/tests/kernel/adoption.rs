//! A restart takes over what is in force.

use nix::sys::signal::Signal;
use podgate_contract::handshake::Response;
use podgate_testkit::wait::eventually;

use crate::node::{Node, on_a_node, pod, policy};
use crate::writing::{Writing, objects};

fn world(node: &Node) {
    let pods = [pod("shop/web", "app: web", "10.0.0.1"), pod("shop/api", "app: api", "10.0.0.2")];
    node.manifest("pods.yaml", &pods.concat());
    node.manifest("policies.yaml", &policy("shop/api-from-web", "app: api", "app: web", 80));
}

#[test]
fn a_clean_stop_leaves_the_policies_in_force() {
    on_a_node(|node| {
        world(node);
        let api = node.endpoint("shop/api", "10.0.0.2");
        let mut policyd = node.policyd();
        node.ready();
        policyd.signal(Signal::SIGTERM);
        assert_eq!(policyd.end().0, Some(0));
        assert!(!node.path("cni.sock").exists());
        assert!(node.allows(&api, "10.0.0.1", 6, 80));
        assert!(!node.allows(&api, "10.0.0.9", 6, 80));
    });
}

#[test]
fn a_new_policyd_edits_the_map_in_place_and_its_classes_are_new() {
    on_a_node(|node| {
        world(node);
        let api = node.endpoint("shop/api", "10.0.0.2");
        let policyd = node.policyd();
        node.ready();
        policyd.kill();
        let before = node.maps().peers().unwrap();
        node.manifest("policies.yaml", &policy("shop/api-from-web", "app: api", "app: web", 443));
        let _policyd = node.policyd();
        node.ready();
        assert!(node.allows(&api, "10.0.0.1", 6, 443));
        assert!(!node.allows(&api, "10.0.0.1", 6, 80));
        let after = node.maps().peers().unwrap();
        assert_eq!(before.keys().collect::<Vec<_>>(), after.keys().collect::<Vec<_>>());
        assert!(after.values().min() > before.values().max(), "{before:?} {after:?}");
        // nothing of the old classes is left
        let map = node.maps().policy_map(api.ifindex).unwrap().unwrap();
        let old: Vec<_> = before.values().collect();
        assert!(map.entries().unwrap().iter().all(|(key, _)| !old.contains(&&key.class)));
    });
}

#[test]
fn a_policy_that_broke_while_policyd_was_away_isolates_until_it_is_mended() {
    on_a_node(|node| {
        world(node);
        let api = node.endpoint("shop/api", "10.0.0.2");
        let policyd = node.policyd();
        node.ready();
        policyd.kill();
        let good = std::fs::read_to_string(node.path("manifests/policies.yaml")).unwrap();
        node.manifest("policies.yaml", &good.replace("Ingress]", "Inwards]"));
        let _policyd = node.policyd();
        eventually("the mistake is told", || {
            let problems = node.get("/v1/status")["problems"].to_string();
            problems.contains("spec.policyTypes[0]").then_some(())
        });
        // what it allows cannot be known, and what it forbids must not get in
        eventually("the pod is isolated", || (!node.allows(&api, "10.0.0.1", 6, 80)).then_some(()));
        assert!(!node.allows(&api, "10.0.0.9", 6, 80));
        node.manifest("policies.yaml", &good);
        eventually("it is in force again", || node.allows(&api, "10.0.0.1", 6, 80).then_some(()));
        assert!(!node.allows(&api, "10.0.0.9", 6, 80));
        assert_eq!(node.get("/v1/endpoints")[0]["state"], "enforced");
    });
}

#[test]
fn a_map_of_an_earlier_pod_with_the_same_number_is_replaced() {
    on_a_node(|node| {
        world(node);
        let mut api = node.endpoint("shop/api", "10.0.0.2");
        let policyd = node.policyd();
        node.ready();
        policyd.kill();
        // the same link, registered again: the old map's keys carry the old owner
        api.owner += 100;
        node.maps().register(&api).unwrap();
        let _policyd = node.policyd();
        node.ready();
        assert_eq!(node.add(&[&api]), Response::Ok);
        assert!(node.allows(&api, "10.0.0.1", 6, 80));
        let map = node.maps().policy_map(api.ifindex).unwrap().unwrap();
        assert!(map.entries().unwrap().iter().all(|(key, _)| key.owner == api.owner));
    });
}

/// Killed between a change of the maps and the word to the flows, policyd leaves maps that say all they should, and
/// flows that have not heard of it.
#[test]
fn a_new_policyd_has_every_flow_look_again_even_if_it_changes_nothing() {
    on_a_node(|node| {
        let api = node.endpoint("shop/api", "10.0.0.2");
        // isolated both ways without any peer, so it has no class whose number could change
        let closed = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n\
            metadata: {namespace: shop, name: closed}\nspec: {policyTypes: [Ingress, Egress]}\n";
        let world = || objects(&(pod("shop/api", "app: api", "10.0.0.2") + closed));
        Writing::on(node).replace(world());
        let entries = || node.maps().policy_map(api.ifindex).unwrap().unwrap().entries().unwrap();
        assert_eq!(entries(), []);

        let writing = Writing::on(node);
        let epoch = || node.maps().control().epoch();
        let before = epoch();
        writing.replace(world());
        assert_ne!(epoch(), before);
        // once
        let after = epoch();
        writing.replace(world());
        assert_eq!((epoch(), entries()), (after, Vec::new()));
    });
}

#[test]
fn there_is_only_one_policyd() {
    on_a_node(|node| {
        let first = node.policyd();
        node.ready();
        let second = node.policyd();
        // longer than the second takes to see that it is not alone
        std::thread::sleep(std::time::Duration::from_millis(500));
        first.kill();
        node.ready();
        let log = second.kill().join("\n");
        let (waits, starts) = (
            log.find("another policyd is still running"),
            log.find("recovered the state of the maps"),
        );
        assert!(waits.is_some() && waits < starts, "{log}");
    });
}
