//! Synthesizes what a control plane would add to the services of some manifests.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use podgate_policy::model::{ObjectKey, Pod};
use podgate_policy::object::Object;
use podgate_policy::services;

/// Adds the addresses and slices of services, as [`services::synthesize`] does, from the pods among `objects`. `addresses`:
/// of the pods whose manifests contain none.
pub fn synthesize(objects: &mut Vec<Object>, addresses: &BTreeMap<ObjectKey, Vec<IpAddr>>) {
    let (mut services, mut slices) = (Vec::new(), Vec::new());
    let mut pods: Vec<&Pod> = Vec::new();
    let placed: Vec<Pod> = objects
        .iter()
        .filter_map(|object| match object {
            Object::Pod(pod) if pod.addresses.is_empty() => {
                Some(Pod { addresses: addresses.get(&pod.key)?.clone(), ..pod.clone() })
            }
            _ => None,
        })
        .collect();
    let replaced: BTreeSet<&ObjectKey> = placed.iter().map(|pod| &pod.key).collect();
    for object in objects.iter_mut() {
        match object {
            Object::Service(service) => services.push(service),
            Object::EndpointSlice(slice) => slices.push(&*slice),
            Object::Pod(pod) if !replaced.contains(&pod.key) => pods.push(pod),
            Object::Pod(_)
            | Object::Namespace(_)
            | Object::Policy(_)
            | Object::Node(_)
            | Object::ClusterPolicy(_)
            | Object::PodTrafficPolicy(_) => {}
        }
    }
    pods.extend(&placed);
    let derived = services::synthesize(&mut services, &slices, &pods);
    objects.extend(derived.into_iter().map(Object::EndpointSlice));
}

/// The services and slices among some objects, completed in the same way.
pub fn services(objects: &[&Object]) -> Vec<Object> {
    let (mut services, mut slices, mut pods) = (Vec::new(), Vec::new(), Vec::new());
    for object in objects {
        match object {
            Object::Service(service) => services.push(service.clone()),
            Object::EndpointSlice(slice) => slices.push(slice),
            Object::Pod(pod) => pods.push(pod),
            Object::Namespace(_)
            | Object::Policy(_)
            | Object::Node(_)
            | Object::ClusterPolicy(_)
            | Object::PodTrafficPolicy(_) => {}
        }
    }
    let mut derived =
        services::synthesize(&mut services.iter_mut().collect::<Vec<_>>(), &slices, &pods);
    derived.extend(slices.into_iter().cloned());
    let services = services.into_iter().map(Object::Service);
    services.chain(derived.into_iter().map(Object::EndpointSlice)).collect()
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;

    use super::*;
    use crate::manifest;

    /// What each service and each derived slice comes to, a line each.
    fn completed(text: &str, addresses: &[(&str, &str)]) -> Vec<String> {
        let read = manifest::read_text("f.yaml".as_ref(), text);
        assert_eq!(read.errors, []);
        let mut objects = read.objects;
        let addresses = addresses.iter().map(|(name, address)| {
            (ObjectKey::new("default", *name), vec![address.parse().unwrap()])
        });
        synthesize(&mut objects, &addresses.collect());
        let mut lines = Vec::new();
        for object in &objects {
            match object {
                Object::Service(service) => {
                    lines.push(format!("{} {:?}", service.key.name, service.addressing.cluster()));
                }
                Object::EndpointSlice(slice) => {
                    let mut line = format!("{}:", slice.key.name);
                    for endpoint in &slice.endpoints {
                        let _ = write!(line, " {} {:?}", endpoint.address, endpoint.condition);
                    }
                    for port in &slice.ports {
                        let _ = write!(line, " {}={}", port.name, port.number);
                    }
                    lines.push(line);
                }
                _ => {}
            }
        }
        lines
    }

    fn pod(name: &str, fields: &str) -> String {
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: web}}}}\n{fields}\n"
        )
    }

    fn service(spec: &str) -> String {
        format!("---\napiVersion: v1\nkind: Service\nmetadata: {{name: web}}\nspec: {spec}\n")
    }

    const SELECTED: &str = "{clusterIP: 10.96.0.1, selector: {app: web}, ports: [{name: a, port: 80, targetPort: http}, {name: b, port: 81}]}";

    #[test]
    fn pods_become_endpoints_with_their_own_numbers() {
        let ports = |number| {
            format!(
                "spec: {{containers: [{{name: c, ports: [{{name: http, containerPort: {number}}}]}}]}}\n"
            )
        };
        let text = service(SELECTED)
            + &pod("p", &(ports(8080) + "status: {podIP: 10.0.0.1}"))
            + &pod("q", &(ports(8080) + "status: {podIP: 10.0.0.2}"))
            + &pod("r", &(ports(9090) + "status: {podIP: 10.0.0.3}"))
            + &pod("s", "status: {podIP: 10.0.0.4}")
            + &pod("t", "status: {podIP: 10.0.0.5, phase: Succeeded}")
            + &pod("u", &ports(8080));
        assert_eq!(
            completed(&text, &[("u", "10.0.0.6")]),
            [
                "web [10.96.0.1]",
                "web-0: 10.0.0.1 Ready 10.0.0.2 Ready 10.0.0.6 Ready a=8080 b=81",
                "web-1: 10.0.0.3 Ready a=9090 b=81",
                "web-2: 10.0.0.4 Ready b=81",
            ]
        );
    }

    #[test]
    fn a_service_that_has_slices_or_no_selector_is_left_alone() {
        let slice = "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\nendpoints: []\n\
            metadata: {name: web-x, labels: {kubernetes.io/service-name: web}}\n";
        let pod = pod("p", "status: {podIP: 10.0.0.1}");
        assert_eq!(
            completed(&(service(SELECTED) + &pod + slice), &[]),
            ["web [10.96.0.1]", "web-x:"]
        );
        for spec in ["{clusterIP: 10.96.0.1}", "{clusterIP: None, selector: {app: web}}"] {
            assert_eq!(completed(&(service(spec) + &pod), &[]).len(), 1, "{spec}");
        }
    }

    #[test]
    fn an_address_follows_from_the_name_and_its_families_from_the_pods() {
        let spec = "{selector: {app: web}, ports: [{port: 80}]}";
        let first = |lines: Vec<String>| lines[0].clone();
        let none = first(completed(&service(spec), &[]));
        let v4 = first(completed(&(service(spec) + &pod("p", "status: {podIP: 10.0.0.1}")), &[]));
        assert_eq!(none, v4);
        assert!(v4.starts_with("web [10.96."), "{v4}");
        let dual = pod("p", "status: {podIPs: [{ip: 10.0.0.1}, {ip: 'fd00::1'}]}");
        let dual = first(completed(&(service(spec) + &dual), &[]));
        assert!(dual.starts_with(v4.trim_end_matches(']')), "{dual} {v4}");
        assert!(dual.contains(", fd00:10:96::"), "{dual}");
        let v6 = first(completed(&(service(spec) + &pod("p", "status: {podIP: 'fd00::1'}")), &[]));
        assert!(v6.starts_with("web [fd00:10:96::"), "{v6}");
        // a service that is given this address keeps it
        let address = v4.trim_start_matches("web [").trim_end_matches(']');
        let other = format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: z}}\nspec: {{clusterIP: {address}}}\n"
        );
        let pushed = first(completed(&(service(spec) + &other), &[]));
        assert!(pushed.starts_with("web [10.96.") && pushed != v4, "{pushed}");
    }
}
