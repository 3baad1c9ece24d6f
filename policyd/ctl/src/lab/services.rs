//! The cluster's services as manifests for the lab's policyd: it has no control plane either, and knows no pods'
//! addresses that the lab made up.

use podgate_policy::model::{
    Condition, EndpointSlice, Service, SliceEndpoint, TargetPort, TrafficPolicy,
};
use podgate_policy::services::Catalog;
use serde_json::{Value, json};

/// Every service that has an address, with its slices; `None` if there is none.
pub(crate) fn manifest(catalog: &Catalog) -> Option<String> {
    let mut items = Vec::new();
    for known in catalog.services().filter(|known| !known.addressing.cluster().is_empty()) {
        items.push(service(known));
        items.extend(catalog.slices_of(&known.key).map(|known| slice(known)));
    }
    let list = json!({"apiVersion": "v1", "kind": "List", "items": items});
    list["items"].as_array().is_some_and(|items| !items.is_empty()).then(|| list.to_string())
}

fn service(service: &Service) -> Value {
    let ports = service.ports.iter().map(|port| {
        let target = match &port.target {
            TargetPort::Number(number) => json!(number),
            TargetPort::Name(name) => json!(name),
        };
        let protocol = port.protocol.to_string();
        json!({
            "name": port.name, "protocol": protocol, "port": port.port, "targetPort": target, "nodePort": port.node_port,
        })
    });
    let policy = |policy: TrafficPolicy| match policy {
        TrafficPolicy::Cluster => "Cluster",
        TrafficPolicy::Local => "Local",
    };
    let mut spec = json!({
        "clusterIPs": service.addressing.cluster(),
        "externalIPs": service.external,
        "ports": ports.collect::<Vec<_>>(),
        "internalTrafficPolicy": policy(service.internal),
        "externalTrafficPolicy": policy(service.inbound),
        "trafficDistribution": service.distribution,
    });
    let mut status = json!({});
    if !service.guarded.is_empty() {
        spec["type"] = "LoadBalancer".into();
        spec["loadBalancerSourceRanges"] =
            service.source_ranges.iter().map(ToString::to_string).collect();
        let ingress = service.guarded.iter().map(|address| json!({"ip": address}));
        status = json!({"loadBalancer": {"ingress": ingress.collect::<Vec<_>>()}});
    }
    if let Some(seconds) = service.affinity {
        spec["sessionAffinity"] = "ClientIP".into();
        spec["sessionAffinityConfig"] = json!({"clientIP": {"timeoutSeconds": seconds}});
    }
    let mut metadata = json!({"namespace": service.key.namespace, "name": service.key.name});
    if service.other_proxy {
        metadata["labels"] = json!({podgate_policy::convert::PROXY_NAME: "other"});
    }
    json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec, "status": status})
}

fn slice(slice: &EndpointSlice) -> Value {
    let v4 = slice.endpoints.first().is_none_or(|endpoint| endpoint.address.is_ipv4());
    let ports = slice.ports.iter().map(|port| {
        let protocol = port.protocol.to_string();
        json!({"name": port.name, "protocol": protocol, "port": port.number})
    });
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "namespace": slice.key.namespace,
            "name": slice.key.name,
            "labels": {podgate_policy::convert::SERVICE_NAME: slice.service},
        },
        "addressType": if v4 { "IPv4" } else { "IPv6" },
        "ports": ports.collect::<Vec<_>>(),
        "endpoints": slice.endpoints.iter().map(endpoint).collect::<Vec<_>>(),
    })
}

fn endpoint(endpoint: &SliceEndpoint) -> Value {
    let (ready, serving, terminating) = match endpoint.condition {
        Condition::Ready => (true, true, false),
        Condition::Draining => (false, true, true),
        Condition::Serving => (false, true, false),
        Condition::Unready => (false, false, false),
    };
    json!({
        "addresses": [endpoint.address],
        "conditions": {"ready": ready, "serving": serving, "terminating": terminating},
        "nodeName": endpoint.node,
    })
}

#[cfg(test)]
mod tests {
    use podgate_policy::index::Index;
    use podgate_policy::object::Event;
    use podgate_policy::services::ServiceTable;

    use super::*;
    use podgate_manifests::manifest::read_text;

    #[test]
    fn what_is_written_is_read_as_the_same() {
        let text = "apiVersion: v1\nkind: Service\nmetadata: {namespace: s, name: web}\n\
            spec: {clusterIPs: [10.96.0.1, 'fd00::1'], externalIPs: [1.2.3.4], internalTrafficPolicy: Local, sessionAffinity: ClientIP,\n  \
            ports: [{name: a, port: 80, targetPort: http}, {name: b, protocol: UDP, port: 53, targetPort: 5353}]}\n---\n\
            apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\n\
            metadata: {namespace: s, name: web-x, labels: {kubernetes.io/service-name: web}}\n\
            ports: [{name: a, port: 8080}, {name: b, protocol: UDP, port: 5353}]\n\
            endpoints: [{addresses: [10.0.0.1], nodeName: lab}, {addresses: [10.0.0.2], conditions: {ready: false, terminating: true}}]\n---\n\
            apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv6\n\
            metadata: {namespace: s, name: web-y, labels: {kubernetes.io/service-name: web}}\n\
            ports: [{name: a, port: 8081}]\nendpoints: [{addresses: ['fd00::9'], nodeName: lab}]\n---\n\
            apiVersion: v1\nkind: Service\nmetadata: {namespace: s, name: other, labels: {service.kubernetes.io/service-proxy-name: x}}\n\
            spec: {clusterIPs: [10.96.0.2], ports: [{port: 80, nodePort: 30080}], externalTrafficPolicy: Local, trafficDistribution: PreferClose}\n---\n\
            apiVersion: v1\nkind: Service\nmetadata: {namespace: s, name: guarded}\n\
            spec: {clusterIPs: [10.96.0.3], type: LoadBalancer, loadBalancerSourceRanges: [10.0.0.0/8], ports: [{port: 80}]}\n\
            status: {loadBalancer: {ingress: [{ip: 192.0.2.1}]}}\n";
        let index = |name: &str, text: &str| {
            let read = read_text(name.as_ref(), text);
            assert_eq!(read.errors, []);
            let mut index = Index::new();
            for object in read.objects {
                index.apply(Event::Set(object));
            }
            index
        };
        let first = index("f.yaml", text);
        let second = index("f.json", &manifest(first.services()).unwrap());
        assert_eq!(first.services(), second.services());
        assert_eq!(ServiceTable::of(second.services(), "lab").iter().count(), 5);
        assert_eq!(manifest(Index::new().services()), None);
    }
}
