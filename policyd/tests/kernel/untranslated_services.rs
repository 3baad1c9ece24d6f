//! Services left to kube-proxy, where an endpoint's answers for them cannot be written.

use std::os::fd::{AsFd, AsRawFd};

use libbpf_rs::libbpf_sys::{BPF_F_NO_PREALLOC, bpf_map_create_opts};
use libbpf_rs::{MapCore, MapFlags, MapHandle, MapType};
use podgate_bpf::abi::{Direction, PolicyKey, PolicyValue};
use podgate_bpf::loader::Sizes;
use podgate_bpf::maps::{PolicyMap, Registration};
use podgate_testkit::wait::eventually;
use policyd::sources::Update;
use policyd::sync::services::ServiceMode;
use zerocopy::IntoBytes;

use crate::node::{Node, never, on_a_node, on_a_node_of, pod};
use crate::writing::{Writing, objects};

/// What a pod's gate answers to a packet for a service's address, untranslated.
pub(crate) fn lets(node: &Node, at: &Registration, port: u16) -> bool {
    lets_to(node, at, "10.96.0.1", 6, port)
}

/// What a pod's gate answers to a packet for any address, untranslated: the look-ups of the programs.
pub(crate) fn lets_to(node: &Node, at: &Registration, to: &str, protocol: u8, port: u16) -> bool {
    allows(node, at, (Direction::Egress, to), protocol, port)
}

/// The same in either direction.
pub(crate) fn allows(
    node: &Node,
    at: &Registration,
    (direction, peer): (Direction, &str),
    protocol: u8,
    port: u16,
) -> bool {
    let class = node.class(peer.parse().unwrap());
    let map = table(node, at);
    let key = |class| PolicyKey {
        prefixlen: 96,
        owner: at.owner,
        class,
        direction: direction as u8,
        protocol,
        port: port.to_be_bytes(),
    };
    let found = Some(class).filter(|class| *class != 0);
    let found = found.and_then(|class| map.get(&key(class)).unwrap());
    found.or_else(|| map.get(&key(0)).unwrap()).is_some_and(|value| value.verdict == 1)
}

fn table(node: &Node, at: &Registration) -> PolicyMap {
    node.maps().policy_map(at.ifindex).unwrap().unwrap()
}

/// Puts a copy of a pod's table in its place that has room for so many entries more.
fn make_room_for(node: &Node, more: u32, at: &Registration) {
    let entries = table(node, at).entries().unwrap();
    let opts = bpf_map_create_opts {
        sz: size_of::<bpf_map_create_opts>() as _,
        map_flags: BPF_F_NO_PREALLOC,
        ..Default::default()
    };
    let (key, value) = (size_of::<PolicyKey>() as u32, size_of::<PolicyValue>() as u32);
    let room = entries.len() as u32 + more;
    let copy = MapHandle::create(MapType::LpmTrie, Some("small"), key, value, room, &opts).unwrap();
    // as `PolicyMap` writes it, which cannot be had with a size of its own
    for (key, value) in entries {
        copy.update(key.as_bytes(), value.as_bytes(), MapFlags::ANY).unwrap();
    }
    let tables = MapHandle::from_pinned_path(node.root.path("policies")).unwrap();
    let copy = copy.as_fd().as_raw_fd().to_ne_bytes();
    tables.update(&at.ifindex.to_ne_bytes(), &copy, MapFlags::ANY).unwrap();
}

/// The service's ports, which lead to the pods' 8080.
fn service(ports: &[u16]) -> String {
    let port = |port: &u16| format!("{{name: p{port}, port: {port}, targetPort: 8080}}, ");
    let ports: String = ports.iter().map(port).collect();
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{namespace: shop, name: api}}\n\
         spec: {{clusterIP: 10.96.0.1, ports: [{ports}], selector: {{app: api}}}}\n"
    )
}

/// `app` may reach `api` at 8080, and no other pod.
fn egress(app: &str) -> String {
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{namespace: shop, name: {app}}}\n\
         spec: {{podSelector: {{matchLabels: {{app: {app}}}}}, policyTypes: [Egress], \
         egress: [{{to: [{{podSelector: {{matchLabels: {{app: api}}}}}}], ports: [{{port: 8080}}]}}]}}\n---\n"
    )
}

/// A policy map that replaces another has these entries from its first packet on.
#[test]
fn answers_stay_where_a_table_is_swapped() {
    on_a_node(|node| {
        let one = node.endpoint("shop/one", "10.0.0.1");
        let writing = Writing::with(node, ServiceMode::Leave);
        // four kinds of peers, each at a thousand ranges that take several entries
        let wide = |shift: u32| {
            let range = |n: u32| {
                let first = 1001 + 20 * n + shift;
                format!("{{port: {first}, endPort: {}}}, ", first + 12)
            };
            let ports: String = (0..1000).map(range).collect();
            let to = |n: u32| {
                let to = format!("podSelector: {{matchLabels: {{app: wide-{n}}}}}");
                format!("{{to: [{{{to}}}], ports: [{ports}]}}, ")
            };
            let rules: String = (0..4).map(to).collect();
            egress("one").replace("egress: [", &format!("egress: [{rules}"))
        };
        let mut pods = pod("shop/one", "app: one", "10.0.0.1");
        pods += &pod("shop/api", "app: api", "10.0.0.3");
        for n in 0..4 {
            pods +=
                &pod(&format!("shop/wide{n}"), &format!("app: wide-{n}"), &format!("10.0.1.{n}"));
        }
        let service = service(&[80]);
        let slice = "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\n\
            metadata: {namespace: shop, name: api, labels: {kubernetes.io/service-name: api}}\n\
            ports: [{name: p80, port: 8080}]\nendpoints: [{addresses: [10.0.0.3]}]\n";
        writing.replace(objects(&[&pods, &wide(0), "---\n", &service, "---\n", slice].concat()));
        assert!(lets(node, &one, 80) && !lets(node, &one, 81));
        let first = table(node, &one);
        let before = first.entries().unwrap();

        let set = objects(&wide(2));
        never(
            || !lets(node, &one, 80),
            || {
                writing.send(Update::Change { set, gone: Vec::new() });
                writing.settle();
            },
        );
        assert!(node.verdict(&one, Direction::Egress, "10.0.1.3", 6, 1015));
        // it was a swap: the table that was in force is as it was
        assert_eq!(first.entries().unwrap(), before);
    });
}

#[test]
fn one_pod_whose_answers_cannot_be_written_holds_no_other_up() {
    on_a_node(|node| {
        let pods = [
            pod("shop/one", "app: one", "10.0.0.1"),
            pod("shop/two", "app: two", "10.0.0.2"),
            pod("shop/api", "app: api", "10.0.0.3"),
        ];
        node.manifest("pods.yaml", &pods.concat());
        node.manifest("api.yaml", &service(&[80, 81]));
        node.manifest("one.yaml", &egress("one"));
        node.manifest("two.yaml", &egress("two"));
        let (one, two) =
            (node.endpoint("shop/one", "10.0.0.1"), node.endpoint("shop/two", "10.0.0.2"));
        assert!(one.ifindex < two.ifindex, "it is the first whose turn comes that must fail");
        let _policyd = node.policyd_with(&["--services", "leave"]);
        node.ready();
        assert!(lets(node, &one, 80) && lets(node, &two, 80));
        assert!(!lets(node, &one, 82) && !lets(node, &two, 82));

        make_room_for(node, 0, &one);
        node.manifest("api.yaml", &service(&[80, 82, 83]));
        eventually("the other has its answers", || lets(node, &two, 83).then_some(()));
        eventually("and none of a port that is gone", || (!lets(node, &two, 81)).then_some(()));
        assert!(lets(node, &one, 80), "what it had it keeps");
        assert!(!lets(node, &one, 82) || !lets(node, &one, 83));
        eventually("it is told", || {
            let problems = node.get("/v1/status")["problems"].to_string();
            problems.contains("write policy for untranslated services").then_some(())
        });
        make_room_for(node, 100, &one);
        eventually("it is made up for", || {
            (lets(node, &one, 82) && lets(node, &one, 83)).then_some(())
        });
        eventually("nothing is told any more", || {
            let problems = node.get("/v1/status")["problems"].to_string();
            (!problems.contains("untranslated")).then_some(())
        });
        assert!(!lets(node, &one, 81) && lets(node, &one, 80));
    });
}

#[test]
fn an_address_that_goes_makes_room_for_the_one_that_comes() {
    // for the pod and for the service
    let sizes = Sizes { peers: 2, flows4: 1024, flows6: 1024, ..Sizes::default() };
    on_a_node_of(&sizes, |node| {
        let pods =
            [pod("shop/one", "app: one", "10.0.0.1"), pod("shop/api", "app: api", "10.0.0.3")];
        node.manifest("pods.yaml", &pods.concat());
        node.manifest("one.yaml", &egress("one"));
        node.manifest("api.yaml", &service(&[80]));
        let one = node.endpoint("shop/one", "10.0.0.1");
        let _policyd = node.policyd_with(&["--services", "leave"]);
        node.ready();
        assert!(lets(node, &one, 80));
        assert_eq!(node.maps().peers().unwrap().len(), 2);
        node.manifest("api.yaml", &service(&[80]).replace("10.96.0.1", "10.96.0.2"));
        let class = |address: &str| node.maps().peer(address.parse().unwrap()).unwrap();
        eventually("the new address has its class", || class("10.96.0.2"));
        assert_eq!(class("10.96.0.1"), None);
        eventually("nothing is told any more", || {
            node.get("/v1/status")["problems"].as_array().unwrap().is_empty().then_some(())
        });
    });
}
