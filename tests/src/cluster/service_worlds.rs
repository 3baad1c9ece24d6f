//! Random services, for comparison with kube-proxy: no selectors, so that their slices are the test's own.
//!
//! Left out is what kube-proxy itself does not define (slices that disagree about one endpoint, an external address of
//! two services).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use fastrand::Rng;
use serde_json::{Value, json};

use super::network;
use super::pods::Workload;
use super::probe::Protocol;

/// Ports at which endpoints listen.
pub const ENDPOINT_PORTS: [u16; 2] = [8080, 8081];

/// The ports that a service may have: name, protocol, number.
const PORTS: [(&str, Protocol, u16); 3] =
    [("web", Protocol::Tcp, 80), ("admin", Protocol::Tcp, 81), ("dns", Protocol::Udp, 53)];

/// Zones of the two workers, in their order.
pub const ZONES: [&str; 2] = ["z1", "z2"];

/// What sort of address a service has there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Its own.
    Cluster,
    /// One of `externalIPs`.
    External,
    /// Its load balancer's, for everyone.
    Balancer,
    /// Its load balancer's, for `loadBalancerSourceRanges` or with `ipMode: Proxy`.
    GuardedBalancer,
    /// A worker's, at the node port.
    NodePort(usize),
}

impl Kind {
    /// Whether a pod's gate translates it, unless it is to leave services alone.
    pub fn is_translated(self) -> bool {
        match self {
            Self::Cluster | Self::External | Self::Balancer => true,
            Self::GuardedBalancer | Self::NodePort(_) => false,
        }
    }
}

/// An address of a service port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// The service's number.
    pub service: usize,
    /// The name of the port.
    pub port: &'static str,
    /// What sort of address it is.
    pub kind: Kind,
    /// What is dialled.
    pub to: SocketAddr,
    /// How.
    pub protocol: Protocol,
}

/// A service with its slices.
#[derive(Clone, Debug)]
pub struct Service {
    /// The service and its slices, as they are applied.
    pub objects: Vec<Value>,
    /// The service's name.
    pub name: String,
    /// Its status, if it has a load balancer.
    pub status: Option<Value>,
    /// All its addresses.
    pub addresses: Vec<Address>,
    /// Its endpoints have topology hints.
    pub hinted: bool,
    /// The service with the same endpoints and without affinity, if this one has affinity.
    pub twin: Option<usize>,
}

/// Random services over these endpoints. Some are followed by their twin, which has session affinity and is the same
/// otherwise.
pub fn services(
    rng: &mut Rng,
    count: usize,
    namespace: &str,
    endpoints: &[Workload],
) -> Vec<Service> {
    let mut all: Vec<Service> = Vec::new();
    while all.len() < count {
        let number = all.len();
        let shape = Shape::random(rng, number, endpoints);
        all.push(shape.service(number, namespace, None));
        if rng.u8(..4) == 0 || number == 0 {
            all.push(shape.service(number + 1, namespace, Some(number)));
        }
    }
    all
}

/// The random part of a service, of which two services can be made.
struct Shape {
    families: Vec<&'static str>,
    ports: Vec<(&'static str, Protocol, u16)>,
    spec: Value,
    external: bool,
    balancer: Option<Balancer>,
    node_ports: bool,
    slices: Vec<Slice>,
    hinted: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Balancer {
    Vip,
    Proxy,
    Ranges,
}

struct Slice {
    family: &'static str,
    ports: Value,
    endpoints: Vec<Value>,
}

impl Shape {
    fn random(rng: &mut Rng, number: usize, endpoints: &[Workload]) -> Self {
        let chance = |rng: &mut Rng, percent: u8| rng.u8(..100) < percent;
        let families: &[&[&str]] = &[&["IPv4"], &["IPv6"], &["IPv4", "IPv6"]];
        let families = families[rng.usize(..3)].to_vec();
        let mut ports: Vec<_> = PORTS.into_iter().filter(|_| chance(rng, 50)).collect();
        if ports.is_empty() {
            ports.push(PORTS[rng.usize(..3)]);
        }
        let kind = ["ClusterIP", "NodePort", "LoadBalancer"][rng.usize(..3)];
        let mut spec = json!({ "type": kind });
        if chance(rng, 25) || number % 8 == 2 {
            spec["internalTrafficPolicy"] = "Local".into();
        }
        if kind != "ClusterIP" && chance(rng, 35) {
            spec["externalTrafficPolicy"] = "Local".into();
        }
        let balancer = (kind == "LoadBalancer").then(|| {
            [Balancer::Vip, Balancer::Vip, Balancer::Proxy, Balancer::Ranges][rng.usize(..4)]
        });
        if balancer == Some(Balancer::Ranges) {
            let all: [&[&str]; 2] =
                [&["10.244.0.0/16", "fd00:244::/48"], &["192.0.2.0/24", "2001:db8:1::/64"]];
            spec["loadBalancerSourceRanges"] = json!(all[rng.usize(..2)]);
        }
        let hinted = chance(rng, 20);
        let empty = chance(rng, 12) || number % 8 == 5;
        let mut shape = Self {
            external: chance(rng, 35) || number == 0,
            node_ports: kind != "ClusterIP",
            families,
            ports,
            spec,
            balancer,
            slices: Vec::new(),
            hinted,
        };
        for family in shape.families.clone() {
            for _ in 0..rng.usize(1..=3) {
                let ports = shape.slice_ports(rng);
                shape.slices.push(Slice { family, ports, endpoints: Vec::new() });
            }
        }
        if !empty {
            shape.place(rng, endpoints);
        }
        shape
    }

    /// A slice's ports; at times one is missing, or of another protocol.
    fn slice_ports(&self, rng: &mut Rng) -> Value {
        let ports = self.ports.iter().filter_map(|(name, protocol, _)| {
            let protocol = match rng.u8(..20) {
                0 => return None,
                1 => "SCTP",
                _ => protocol.name(),
            };
            let number = ENDPOINT_PORTS[rng.usize(..2)];
            Some(json!({ "name": name, "port": number, "protocol": protocol }))
        });
        ports.collect()
    }

    /// Spreads the endpoints over the slices, each over one of each family.
    fn place(&mut self, rng: &mut Rng, endpoints: &[Workload]) {
        for endpoint in endpoints {
            if rng.u8(..5) == 0 {
                continue;
            }
            let conditions = match rng.u8(..20) {
                0..10 => json!({ "ready": true }),
                10..12 => json!({}),
                12..14 => json!({ "ready": false, "serving": false }),
                14..16 => json!({ "ready": false, "serving": true }),
                16..19 => json!({ "ready": false, "serving": true, "terminating": true }),
                _ => json!({ "ready": false, "serving": false, "terminating": true }),
            };
            let mut written = json!({ "conditions": conditions });
            if rng.u8(..10) > 0 {
                written["nodeName"] = format!("node{}", endpoint.worker + 1).into();
            }
            if self.hinted && rng.u8(..8) > 0 {
                let zone = if rng.u8(..4) > 0 { endpoint.worker } else { 1 - endpoint.worker };
                written["hints"] = json!({ "forZones": [{ "name": ZONES[zone] }] });
            }
            for (family, address) in ["IPv4", "IPv6"].into_iter().zip(endpoint.addresses) {
                let mut of: Vec<_> =
                    self.slices.iter_mut().filter(|slice| slice.family == family).collect();
                if !of.is_empty() {
                    let at = rng.usize(..of.len());
                    written["addresses"] = json!([address]);
                    of[at].endpoints.push(written.clone());
                }
            }
        }
    }

    fn service(&self, number: usize, namespace: &str, twin: Option<usize>) -> Service {
        let name = format!("s{number:02}");
        let last = 100 + u8::try_from(number).unwrap_or(u8::MAX);
        let v4 = self.families.contains(&"IPv4");
        let v6 = self.families.contains(&"IPv6");
        let both = |four: [u8; 4], six: [u16; 8]| {
            let four = v4.then(|| IpAddr::from(Ipv4Addr::from(four)));
            four.into_iter().chain(v6.then(|| Ipv6Addr::from(six).into())).collect::<Vec<IpAddr>>()
        };
        let wide = u16::from(last);
        let cluster = both([10, 96, 0, last], [0xfd00, 0x10, 0x96, 0, 0, 0, 0, wide]);
        let external = both([198, 51, 100, last], [0x2001, 0xdb8, 1, 0, 0, 0, 0, wide]);
        let balancer = both([203, 0, 113, last], [0x2001, 0xdb8, 2, 0, 0, 0, 0, wide]);
        let node_port = |index: usize| 30000 + 3 * number as u16 + index as u16;

        let mut spec = self.spec.clone();
        let ports = self.ports.iter().enumerate().map(|(index, (name, protocol, port))| {
            let mut of = json!({ "name": name, "protocol": protocol.name(), "port": port });
            if self.node_ports {
                of["nodePort"] = node_port(index).into();
            }
            of
        });
        spec["ports"] = ports.collect();
        spec["clusterIP"] = json!(cluster[0]);
        spec["clusterIPs"] = json!(cluster);
        spec["ipFamilies"] = json!(self.families);
        spec["ipFamilyPolicy"] =
            if cluster.len() == 2 { "RequireDualStack" } else { "SingleStack" }.into();
        if self.external {
            spec["externalIPs"] = json!(external);
        }
        if twin.is_some() {
            spec["sessionAffinity"] = "ClientIP".into();
        }
        let mut objects = vec![json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": { "namespace": namespace, "name": name },
            "spec": spec,
        })];
        for (index, slice) in self.slices.iter().enumerate() {
            objects.push(json!({
                "apiVersion": "discovery.k8s.io/v1",
                "kind": "EndpointSlice",
                "metadata": {
                    "namespace": namespace,
                    "name": format!("{name}-{index}"),
                    "labels": { "kubernetes.io/service-name": name },
                },
                "addressType": slice.family,
                "ports": slice.ports,
                "endpoints": slice.endpoints,
            }));
        }

        let mut addresses = Vec::new();
        for (index, &(port, protocol, number_there)) in self.ports.iter().enumerate() {
            let mut add = |kind, to| {
                addresses.push(Address { service: number, port, kind, to, protocol });
            };
            for ip in &cluster {
                add(Kind::Cluster, (*ip, number_there).into());
            }
            for ip in external.iter().filter(|_| self.external) {
                add(Kind::External, (*ip, number_there).into());
            }
            let kind = match self.balancer {
                Some(Balancer::Vip) => Some(Kind::Balancer),
                Some(Balancer::Proxy | Balancer::Ranges) => Some(Kind::GuardedBalancer),
                None => None,
            };
            for (ip, kind) in balancer.iter().zip(kind.into_iter().cycle()) {
                add(kind, (*ip, number_there).into());
            }
            // Of another node with policy Local the answers of endpoints here come back untranslated, since that node does not
            // masquerade: whether there is an answer is a matter of routes.
            let workers = if self.spec["externalTrafficPolicy"] == "Local" { 0..1 } else { 0..2u8 };
            for worker in workers.filter(|_| self.node_ports) {
                let of_family = |ip: &IpAddr| if ip.is_ipv4() { v4 } else { v6 };
                for ip in network::worker(worker + 1).into_iter().filter(of_family) {
                    add(Kind::NodePort(worker.into()), (ip, node_port(index)).into());
                }
            }
        }
        let mode = if self.balancer == Some(Balancer::Proxy) { "Proxy" } else { "VIP" };
        let ingress: Vec<_> =
            balancer.iter().map(|ip| json!({ "ip": ip, "ipMode": mode })).collect();
        let status = json!({ "status": { "loadBalancer": { "ingress": ingress } } });
        Service {
            objects,
            name,
            status: self.balancer.map(|_| status),
            addresses,
            hinted: self.hinted,
            twin,
        }
    }
}
