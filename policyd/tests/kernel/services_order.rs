//! Services and policies change in one commit, in an order.

use podgate_bpf::abi::Direction;
use podgate_bpf::services::Frontend;
use podgate_policy::model::{Addressing, EndpointSlice};
use podgate_policy::object::Object;
use policyd::sources::Update;

use crate::node::{Node, never, on_a_node, pod};
use crate::writing::{Writing, objects};

/// So many services that writing them takes longer than a watcher may be kept from looking.
const MANY: u16 = 3000;

/// Services with these numbers, each with an endpoint of its own.
fn services(numbers: std::ops::Range<u16>) -> Vec<Object> {
    let text = "apiVersion: v1\nkind: Service\nmetadata: {namespace: shop, name: s}\n\
        spec: {clusterIP: 10.96.0.1, ports: [{port: 80, targetPort: 8080}]}\n---\n\
        apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\n\
        metadata: {namespace: shop, name: s, labels: {kubernetes.io/service-name: s}}\n\
        ports: [{port: 8080}]\nendpoints: [{addresses: [10.1.0.1]}]\n";
    let first = objects(text);
    let numbered = |number: u16| {
        let [high, low] = number.to_be_bytes();
        first.iter().cloned().map(move |mut object| {
            match &mut object {
                Object::Service(service) => {
                    service.key.name = format!("s{number}").into();
                    service.addressing = Addressing::Virtual(vec![[10, 96, high, low].into()]);
                }
                Object::EndpointSlice(EndpointSlice { key, service, endpoints, .. }) => {
                    key.name = format!("s{number}").into();
                    *service = Some(key.name.clone());
                    endpoints[0].address = [10, 1, high, low].into();
                }
                other => panic!("{other:?}"),
            }
            object
        })
    };
    numbers.flat_map(numbered).collect()
}

fn translated(node: &Node, number: u16) -> bool {
    let [high, low] = number.to_be_bytes();
    let frontend = Frontend { address: [10, 96, high, low].into(), port: 80, protocol: 6 };
    node.maps().services().services().unwrap().contains_key(&frontend)
}

/// The only pod that `web` may reach.
fn egress(to: &str) -> String {
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{namespace: shop, name: web}}\n\
         spec: {{podSelector: {{matchLabels: {{app: web}}}}, policyTypes: [Egress], egress: [{{to: [{{ipBlock: {{cidr: {to}}}}}]}}]}}\n---\n"
    )
}

/// A policy judges endpoints: where it came before the services, what goes to their addresses would be refused.
#[test]
fn on_a_fresh_node_the_services_are_there_before_the_first_policy() {
    on_a_node(|node| {
        let web = node.endpoint("shop/web", "10.0.0.1");
        let writing = Writing::on(node);
        let text = pod("shop/web", "app: web", "10.0.0.1") + &egress("10.1.0.0/16");
        let all = [objects(&text), services(1..MANY)].concat();
        let in_force = || node.maps().policy_map(web.ifindex).unwrap().is_some();
        assert!(!in_force() && !translated(node, MANY - 1));
        never(|| in_force() && !translated(node, MANY - 1), || writing.replace(all));
        assert!(in_force() && translated(node, MANY - 1) && translated(node, 1));
        assert!(node.verdict(&web, Direction::Egress, "10.1.0.1", 6, 8080));
    });
}

/// Later ones come after the policies: what is sent to an endpoint finds that endpoint's class there.
#[test]
fn where_services_are_in_force_new_ones_come_after_the_policies() {
    on_a_node(|node| {
        let web = node.endpoint("shop/web", "10.0.0.1");
        let writing = Writing::on(node);
        let text = pod("shop/web", "app: web", "10.0.0.1") + &egress("10.2.0.0/16");
        writing.replace([objects(&text), services(0..1)].concat());
        let allowed = || node.verdict(&web, Direction::Egress, "10.1.0.1", 6, 8080);
        assert!(translated(node, 0) && !translated(node, 1) && !allowed());

        let set = [objects(&egress("10.1.0.0/16")), services(1..MANY)].concat();
        never(
            || translated(node, 1) && !allowed(),
            || {
                writing.send(Update::Change { set, gone: Vec::new() });
                writing.settle();
            },
        );
        assert!(translated(node, MANY - 1) && allowed());
    });
}
