//! Who reaches whom: every kind of target, path by path.

#![allow(clippy::unwrap_used, reason = "a test that panics is a test that fails")]

mod cluster;

use std::net::IpAddr;

use cluster::{Cluster, key, pod_object, transport};
use podgate_contract::api::{Direction, Verdict};
use podgate_policy::convert;
use podgate_policy::index::{Index, NodeRef};
use podgate_policy::model::ObjectKey;
use podgate_policy::object::{Event, Object, ObjectId};
use podgate_policy::reach::{
    Answer, Field, Location, Question, Reach, Topology, Translator, Unanswerable,
};
use podgate_policy::services::ServiceTable;
use serde_json::{Value, json};

/// Nodes by what pods say of them.
struct Nodes<'a>(&'a Index);

impl Topology for Nodes<'_> {
    fn node_at(&self, address: IpAddr) -> Option<NodeRef> {
        self.0.node_at(address)
    }

    fn addresses_of_node(&self, node: &NodeRef) -> Vec<IpAddr> {
        node.0.as_deref().map(|name| self.0.addresses_of_node(name)).unwrap_or_default()
    }

    fn is_own_node(&self, pod: &ObjectKey, node: &NodeRef, _: IpAddr) -> bool {
        self.0.pod(pod).and_then(|pod| pod.node.as_ref()) == node.0.as_ref()
    }
}

fn try_ask(cluster: &Cluster, from: &str, to: &str, port: &str) -> Result<Answer, Unanswerable> {
    let (port, family) = match port.split_once(" over ") {
        Some((port, family)) => (port, Some(family.parse().unwrap())),
        None => (port, None),
    };
    let question = Question {
        from: from.parse().unwrap(),
        to: to.parse().unwrap(),
        transport: transport(port),
        family,
    };
    let services = ServiceTable::of(cluster.index.services(), "here");
    let reach = Reach {
        index: &cluster.index,
        services: &services,
        engine: &cluster.engine(),
        topology: &Nodes(&cluster.index),
    };
    reach.answer(&question)
}

fn ask(cluster: &Cluster, from: &str, to: &str, port: &str) -> Answer {
    try_ask(cluster, from, to, port).unwrap()
}

fn verdict(cluster: &Cluster, from: &str, to: &str, port: &str) -> Verdict {
    ask(cluster, from, to, port).verdict
}

/// Lets in what `from` says, at pods of the app.
fn ingress(cluster: &mut Cluster, app: &str, from: &Value) {
    cluster.policy(
        &format!("shop/{app}-in"),
        json!({"podSelector": {"matchLabels": {"app": app}}, "ingress": [{"from": [from]}]}),
    );
}

fn service(cluster: &mut Cluster, name: &str, more: &Value, endpoints: &[(&str, u16)]) {
    let mut object = json!({
        "metadata": {"namespace": "shop", "name": name},
        "spec": {"ports": [{"port": 80}]},
    });
    for (part, fields) in more.as_object().unwrap() {
        for (field, value) in fields.as_object().unwrap() {
            object[part][field] = value.clone();
        }
    }
    let object = serde_json::from_value(object).unwrap();
    cluster.index.apply(Event::Set(Object::Service(convert::service(&object).unwrap())));
    for (number, (address, port)) in endpoints.iter().enumerate() {
        let object = json!({
            "metadata": {
                "namespace": "shop", "name": format!("{name}-{number}"),
                "labels": {"kubernetes.io/service-name": name},
            },
            "addressType": if address.contains(':') { "IPv6" } else { "IPv4" },
            "ports": [{"port": port}],
            "endpoints": [{"addresses": [address]}],
        });
        let object = serde_json::from_value(object).unwrap();
        cluster
            .index
            .apply(Event::Set(Object::EndpointSlice(convert::endpoint_slice(&object).unwrap())));
    }
}

/// `shop` with a service `api` of `api` and `db`, of which only `api` lets `web` in.
fn with_service() -> Cluster {
    let mut cluster = Cluster::shop();
    ingress(&mut cluster, "db", &json!({"podSelector": {"matchLabels": {"app": "api"}}}));
    let spec = json!({"spec": {"clusterIP": "10.96.0.1"}});
    service(&mut cluster, "api", &spec, &[("10.0.0.2", 8080), ("10.0.0.3", 8080)]);
    cluster
}

#[test]
fn both_gates_of_a_path_are_named_with_what_decides() {
    let mut cluster = Cluster::shop();
    ingress(&mut cluster, "api", &json!({"podSelector": {"matchLabels": {"app": "web"}}}));
    let answer = ask(&cluster, "shop/web", "shop/api", "80/TCP");
    assert_eq!(answer.verdict, Verdict::Allow);
    let [path] = &answer.paths[..] else { panic!("{answer:?}") };
    let gates: Vec<_> = path.gates.iter().map(|gate| (&*gate.pod, gate.direction)).collect();
    assert_eq!(gates, [("shop/web", Direction::Egress), ("shop/api", Direction::Ingress)]);
    assert_eq!(path.gates[1].rule.as_deref(), Some("shop/api-in ingress[0]"));
    assert_eq!(path.gates[1].isolating, ["shop/api-in"]);
    assert!(path.gates.iter().all(|gate| gate.local));

    let answer = ask(&cluster, "10.0.0.3", "shop/api", "ICMP");
    assert_eq!(answer.verdict, Verdict::Deny);
    assert!(answer.why.starts_with("denied at shop/api: isolated for ingress by shop/api-in"));
    assert_eq!(answer.paths[0].from, Location::Pod(key("shop/db")), "the address is a pod's");
    assert_eq!(verdict(&cluster, "8.8.8.8", "1.1.1.1", "80/TCP"), Verdict::Allow);
    let own = ask(&cluster, "shop/api", "shop/api", "80/TCP");
    assert_eq!((own.verdict, &*own.why), (Verdict::Allow, "a pod always reaches itself"));
}

#[test]
fn pods_of_other_nodes_are_compiled_for_the_occasion() {
    let mut cluster = Cluster::shop();
    let on = json!({"spec": {"nodeName": "n2"}});
    cluster.object(&pod_object("shop/away", &["10.0.1.1"], json!({"app": "away"}), on));
    ingress(&mut cluster, "away", &json!({"podSelector": {"matchLabels": {"app": "web"}}}));
    assert_eq!(verdict(&cluster, "shop/web", "shop/away", "80/TCP"), Verdict::Allow);
    let answer = ask(&cluster, "shop/api", "shop/away", "80/TCP");
    assert_eq!(answer.verdict, Verdict::Deny);
    let local: Vec<_> = answer.paths[0].gates.iter().map(|gate| gate.local).collect();
    assert_eq!(local, [true, false]);
}

#[test]
fn a_service_is_mixed_where_its_endpoints_differ() {
    let cluster = with_service();
    for to in ["svc:shop/api", "10.96.0.1"] {
        let answer = ask(&cluster, "shop/web", to, "80/TCP");
        assert_eq!(answer.verdict, Verdict::Mixed);
        assert_eq!(
            answer.why.split(": isolated").next().unwrap(),
            "it depends on the endpoint: allowed to shop/api (10.0.0.2:8080); to shop/db (10.0.0.3:8080): denied at shop/db"
        );
        let of: Vec<_> = answer.paths.iter().map(|path| path.verdict).collect();
        assert_eq!(of, [Verdict::Allow, Verdict::Deny]);
        let via = answer.paths[0].service.unwrap();
        assert_eq!(via.translator, Translator::Gate);
        assert_eq!(via.frontend.to_string(), "10.96.0.1:80/TCP");
        assert!(answer.untranslated.is_empty());
    }
    assert_eq!(verdict(&cluster, "shop/api", "svc:shop/api", "80/TCP"), Verdict::Allow);
}

#[test]
fn a_node_may_ask_about_a_service_and_its_endpoints_decide() {
    let mut cluster = with_service();
    let host = json!({"spec": {"hostNetwork": true, "nodeName": "n2"}});
    cluster.object(&pod_object("ops/host", &["192.0.2.2"], json!({}), host));
    for from in ["ops/host", "node:n2", "192.0.2.2"] {
        let answer = ask(&cluster, from, "svc:shop/api", "80/TCP");
        assert_eq!(answer.verdict, Verdict::Mixed, "{from}");
        assert_eq!(answer.paths[0].service.unwrap().translator, Translator::Node);
        assert_eq!(answer.paths[0].from, Location::Node);
        assert_eq!(verdict(&cluster, from, "10.96.0.1", "80/TCP"), Verdict::Mixed, "{from}");
    }
    ingress(&mut cluster, "api", &json!({"ipBlock": {"cidr": "192.0.2.0/24"}}));
    ingress(&mut cluster, "db", &json!({"ipBlock": {"cidr": "192.0.2.0/24"}}));
    assert_eq!(verdict(&cluster, "node:n2", "svc:shop/api", "80/TCP"), Verdict::Allow);
}

#[test]
fn where_the_gate_does_not_translate_it_allows_all_endpoints_or_none() {
    let mut cluster = Cluster::shop();
    let other = json!({
        "metadata": {"labels": {"service.kubernetes.io/service-proxy-name": "other"}},
        "spec": {"clusterIP": "10.96.0.1"},
    });
    service(&mut cluster, "api", &other, &[("10.0.0.2", 8080), ("10.0.0.3", 8080)]);
    let to = |app: &str| json!({"to": [{"podSelector": {"matchLabels": {"app": app}}}]});
    let egress = |cluster: &mut Cluster, rules: Value| {
        let pods = json!({"matchLabels": {"app": "web"}});
        let spec = json!({"podSelector": pods, "policyTypes": ["Egress"], "egress": rules});
        cluster.policy("shop/web-out", spec);
    };
    egress(&mut cluster, json!([to("api")]));
    let answer = ask(&cluster, "shop/web", "svc:shop/api", "80/TCP");
    assert_eq!(answer.verdict, Verdict::Deny, "db may be selected: {answer:?}");
    assert!(answer.why.contains("10.96.0.1:80/TCP of shop/api: label service-proxy-name"));
    egress(&mut cluster, json!([to("api"), to("db")]));
    let answer = ask(&cluster, "shop/web", "svc:shop/api", "80/TCP");
    assert_eq!(answer.verdict, Verdict::Allow, "{answer:?}");
    let [gate] = &answer.untranslated[..] else { panic!("{answer:?}") };
    assert_eq!((gate.gate.verdict, &gate.to), (Verdict::Allow, &Location::External));
    // the gates of the endpoints judge what is selected behind
    ingress(&mut cluster, "db", &json!({"podSelector": {"matchLabels": {"app": "api"}}}));
    assert_eq!(verdict(&cluster, "shop/web", "svc:shop/api", "80/TCP"), Verdict::Mixed);
}

#[test]
fn families_are_judged_one_by_one() {
    let mut cluster = Cluster::default();
    cluster.pod("shop/a", &["10.0.0.1", "fd00::1"], json!({}));
    cluster.pod("shop/b", &["10.0.0.2", "fd00::2"], json!({"app": "b"}));
    cluster.pod("shop/four", &["10.0.0.3"], json!({}));
    cluster.pod("shop/six", &["fd00::4"], json!({}));
    ingress(&mut cluster, "b", &json!({"ipBlock": {"cidr": "10.0.0.0/24"}}));
    let answer = ask(&cluster, "shop/a", "shop/b", "80/TCP");
    assert_eq!((answer.verdict, answer.paths.len()), (Verdict::Deny, 2));
    assert!(answer.why.starts_with("families differ: IPv4 allow: "), "{}", answer.why);
    assert_eq!(verdict(&cluster, "shop/a", "shop/b", "80/TCP over 4"), Verdict::Allow);
    assert_eq!(verdict(&cluster, "shop/a", "shop/b", "ICMP over 6"), Verdict::Deny);
    let answer = ask(&cluster, "shop/four", "shop/six", "80/TCP");
    assert_eq!((answer.verdict, answer.paths.len()), (Verdict::Deny, 0));
    assert_eq!(answer.why, "shop/four and shop/six have no address family in common");
    let answer = ask(&cluster, "shop/four", "shop/a", "80/TCP over 6");
    assert_eq!(answer.why, "shop/four or shop/a has no IPv6 address");

    let both =
        json!({"spec": {"clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1", "fd00:96::1"]}});
    service(&mut cluster, "b", &both, &[("10.0.0.2", 80), ("fd00::2", 80)]);
    let answer = ask(&cluster, "shop/a", "svc:shop/b", "80/TCP");
    assert_eq!((answer.verdict, answer.paths.len()), (Verdict::Deny, 2), "{answer:?}");
    assert_eq!(verdict(&cluster, "shop/a", "svc:shop/b", "80/TCP over 4"), Verdict::Allow);
}

#[test]
fn a_pods_own_node_has_every_address_that_its_pods_name() {
    let mut cluster = Cluster::shop();
    let on = |node: &str, host: &str| json!({"spec": {"nodeName": node}, "status": {"hostIPs": [{"ip": host}, {"ip": "fd00:2::2"}]}});
    let pod = pod_object("shop/api", &["10.0.0.2"], json!({"app": "api"}), on("n2", "192.0.2.2"));
    cluster.object(&pod);
    cluster.object(&pod_object("shop/other", &["10.0.0.9"], json!({}), on("n3", "192.0.2.3")));
    ingress(&mut cluster, "api", &json!({"podSelector": {"matchLabels": {"app": "none"}}}));
    for from in ["node:n2", "192.0.2.2"] {
        let answer = ask(&cluster, from, "shop/api", "80/TCP");
        assert_eq!(answer.verdict, Verdict::Allow, "{from}");
        assert_eq!(answer.why, "ingress at shop/api: a pod's own node always reaches it");
        assert_eq!(answer.paths[0].from, Location::OwnNode);
        assert_eq!(answer.paths[0].source, "192.0.2.2".parse::<IpAddr>().unwrap());
    }
    for from in ["node:n3", "192.0.2.3", "192.0.2.4"] {
        let answer = ask(&cluster, from, "shop/api", "80/TCP");
        assert_eq!(answer.verdict, Verdict::Deny, "{from}");
        assert!(answer.why.contains("no rule allows 192.0.2."), "{}", answer.why);
    }
    // and those of its Node object, the preferred one first
    let object = json!({"metadata": {"name": "n2"}, "status": {"addresses": [
        {"type": "InternalIP", "address": "192.0.2.22"}, {"type": "ExternalIP", "address": "1.2.3.4"},
    ]}});
    let node = convert::node(&serde_json::from_value(object).unwrap()).unwrap();
    assert!(cluster.index.apply(node.clone().into()) && !cluster.index.apply(node.into()));
    for (from, source) in
        [("node:n2", "192.0.2.22"), ("1.2.3.4", "1.2.3.4"), ("192.0.2.2", "192.0.2.2")]
    {
        let answer = ask(&cluster, from, "shop/api", "80/TCP");
        assert_eq!(answer.verdict, Verdict::Allow, "{from}");
        assert_eq!(answer.paths[0].source, source.parse::<IpAddr>().unwrap());
    }
    let hosts = cluster.index.host_addresses();
    assert!(hosts.contains(&"1.2.3.4".parse().unwrap()), "node ports are at these too");
    assert!(cluster.index.apply(Event::Gone(ObjectId::Node("n2".into()))));
    assert_eq!(verdict(&cluster, "1.2.3.4", "shop/api", "80/TCP"), Verdict::Deny);
    assert!(!cluster.index.host_addresses().contains(&"1.2.3.4".parse().unwrap()));
    // egress to a node is judged by its address
    assert_eq!(verdict(&cluster, "shop/api", "node:n2", "10250/TCP"), Verdict::Allow);
    // the last pod takes the node's addresses with it
    cluster.index.apply(Event::Gone(ObjectId::Pod(key("shop/other"))));
    let error = try_ask(&cluster, "node:n3", "shop/api", "80/TCP").unwrap_err();
    assert_eq!(error.to_string(), "no address of node n3 is known");
}

#[test]
fn what_cannot_be_answered_names_its_field() {
    let mut cluster = with_service();
    let done = json!({"status": {"phase": "Succeeded"}});
    cluster.object(&pod_object("shop/done", &["10.0.0.8"], json!({}), done));
    cluster.object(&pod_object("shop/new", &[], json!({}), json!({})));
    service(&mut cluster, "none", &json!({"spec": {"clusterIP": "10.96.0.2"}}), &[]);
    for (from, to, port, field, says) in [
        ("shop/nobody", "shop/api", "80/TCP", Field::From, "no pod shop/nobody is known"),
        ("shop/web", "shop/done", "80/TCP", Field::To, "pod shop/done has finished"),
        ("shop/web", "shop/new", "80/TCP", Field::To, "pod shop/new has no address yet"),
        ("svc:shop/api", "shop/web", "80/TCP", Field::From, "it sends nothing itself"),
        ("shop/web", "svc:shop/nobody", "80/TCP", Field::To, "no service shop/nobody is known"),
        ("shop/web", "svc:shop/api", "81/TCP", Field::Port, "has no port 81/TCP"),
        ("shop/web", "svc:shop/api", "ICMP", Field::Protocol, "a service has ports"),
        ("8.8.8.8", "svc:shop/api", "80/TCP", Field::From, "must be a pod or a node"),
    ] {
        let error = try_ask(&cluster, from, to, port).unwrap_err();
        assert_eq!(error.field, field, "{error}");
        assert!(error.cause.contains(says), "{error}");
    }
    let answer = ask(&cluster, "shop/web", "svc:shop/none", "80/TCP");
    assert_eq!(answer.verdict, Verdict::Deny);
    assert_eq!(answer.why, "svc:shop/none has no endpoint that is ready: nobody answers");
}

#[test]
fn packets_that_met_another_verdict_change_the_answer() {
    let answer = ask(&with_service(), "shop/web", "svc:shop/api", "80/TCP");
    assert_eq!(answer.observed(&[Verdict::Allow, Verdict::Deny]), answer);
    let observed = answer.observed(&[Verdict::Allow, Verdict::Allow]);
    assert_eq!(observed.verdict, Verdict::Allow);
    assert!(observed.why.contains("the packet says so; the tables: denied at shop/db"));
}

#[test]
fn s15_14_the_own_node_reaches_a_pod_whatever_any_tier_says() {
    for tier in ["Admin", "Baseline"] {
        let mut cluster = Cluster::shop();
        let on = json!({"spec": {"nodeName": "n1"}});
        cluster.pod_with("shop/api", &["10.0.0.2"], json!({"app": "api"}), on);
        cluster.node("n1", json!({}), &["192.0.2.1"]);
        cluster.node("n2", json!({}), &["192.0.2.2"]);
        // no peer of an ingress rule is a node, so what fails closed is all that could deny one
        let rule = json!({"action": "Deny", "from": [{"nodes": {}}]});
        let spec =
            json!({"tier": tier, "priority": 1, "subject": {"namespaces": {}}, "ingress": [rule]});
        cluster.cluster_policy("p", spec);
        assert_eq!(verdict(&cluster, "node:n1", "shop/api", "80/TCP"), Verdict::Allow, "{tier}");
        assert_eq!(verdict(&cluster, "node:n2", "shop/api", "80/TCP"), Verdict::Deny, "{tier}");
    }
}
