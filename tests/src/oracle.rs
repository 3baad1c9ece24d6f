//! The oracle: what the policies of a world allow, worked out in the most naive way from the raw
//! Kubernetes objects and from `semantics.md` alone.
//!
//! It shares no code with `podgate-policy`, on purpose: no model, no selector, no CIDR type, no defaulting. What the
//! compiled tables, and the kernel with those tables in its maps, say of a world is compared with it.
//! Numbers in comments are sections of `semantics.md`.
//!
//! Objects must be valid (13); the oracle panics on those that the API server would reject.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use k8s_openapi::api::core::v1::{Container, Namespace, Pod};
use k8s_openapi::api::networking::v1::{
    IPBlock, NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicySpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// A cluster, as its objects tell it, and one node's interfaces.
#[derive(Clone, Default)]
pub struct World {
    /// Namespace objects. A pod may be in a namespace that has none.
    pub namespaces: Vec<Namespace>,
    /// Pods, of every node.
    pub pods: Vec<Pod>,
    /// Policies.
    pub policies: Vec<NetworkPolicy>,
    /// The pods that have an interface on the node, by their places in `pods`, and the addresses there.
    pub interfaces: Vec<(usize, Vec<IpAddr>)>,
}

impl fmt::Debug for World {
    /// As JSON, for a failing world is read by people and fed to other tools.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let world = serde_json::json!({
            "namespaces": self.namespaces,
            "pods": self.pods,
            "policies": self.policies,
            "interfaces": self.interfaces,
        });
        write!(f, "{world:#}")
    }
}

/// Which of a pod's two gates a packet meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Gate {
    /// The packet goes to the pod.
    Ingress,
    /// The packet comes from the pod.
    Egress,
}

/// What a packet carries: a protocol name as the API spells it and a destination port, or no ports at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum L4 {
    /// `"TCP"`, `"UDP"` or `"SCTP"`, and the destination port.
    Port(&'static str, u16),
    /// ICMP and the like.
    NoPorts,
}

/// Whether the policies let a new flow through one gate of `pod`. `peer` is the other end's address. The flows
/// that no policy can forbid (1.5: the pod's own address, its node) are not looked at here.
///
/// A finished pod (11) that still has an interface is policed there as before: what is asked about is the
/// gate of this pod, and never an address that may be somebody else's.
pub fn policies_allow(world: &World, pod: &Pod, gate: Gate, peer: IpAddr, l4: L4) -> bool {
    if pod.spec.as_ref().is_some_and(|spec| spec.host_network == Some(true)) {
        return true; // 9: its node, never a subject
    }
    let mut isolated = false;
    for policy in &world.policies {
        let spec = policy.spec.clone().unwrap_or_default();
        let selects = namespace_of(&policy.metadata) == namespace_of(&pod.metadata)
            && matches(&spec.pod_selector.clone().unwrap_or_default(), &labels(&pod.metadata));
        if !selects || !isolates(&spec, gate) {
            continue;
        }
        isolated = true;
        // 1.2: the union of all rules of all policies
        let allows = match gate {
            Gate::Ingress => spec.ingress.unwrap_or_default().iter().any(|rule| {
                rule_allows(world, policy, (&rule.from, &rule.ports), peer, l4, Some(pod))
            }),
            Gate::Egress => spec.egress.unwrap_or_default().iter().any(|rule| {
                let destination = owner_of(world, peer);
                rule_allows(world, policy, (&rule.to, &rule.ports), peer, l4, destination)
            }),
        };
        if allows {
            return true;
        }
    }
    !isolated
}

/// Whether a new flow passes one gate of `pod`: its own addresses always do (1.5a).
pub fn allowed(world: &World, pod: &Pod, gate: Gate, peer: IpAddr, l4: L4) -> bool {
    addresses(world, pod).contains(&peer) || policies_allow(world, pod, gate, peer, l4)
}

/// A port of a service's address whose packets the gate does not translate.
#[derive(Clone, Copy, Debug)]
pub struct LeftService<'a> {
    /// Address and port.
    pub address: (IpAddr, u16),
    /// Address and port of every endpoint that may get the packet.
    pub endpoints: &'a [(IpAddr, u16)],
    /// `loadBalancerSourceRanges`, if they hold for the address.
    pub ranges: Option<&'a [&'a str]>,
    /// The address is on an interface of the pod's node.
    pub on_the_node: bool,
}

/// Whether the egress gate of `pod`, which has these addresses here, lets a packet for such a service through (10, 13): every
/// endpoint must be allowed, and the pod be in a range; at the node's own address it suffices that the address is allowed.
pub fn left_allows(
    world: &World,
    pod: &Pod,
    own: &[IpAddr],
    protocol: &'static str,
    service: &LeftService<'_>,
) -> bool {
    let permits = |(address, port): (IpAddr, u16)| {
        policies_allow(world, pod, Gate::Egress, address, L4::Port(protocol, port))
    };
    if service.on_the_node && permits(service.address) {
        return true;
    }
    let in_range = service.ranges.is_none_or(|ranges| {
        let of_family = own.iter().filter(|own| own.is_ipv4() == service.address.0.is_ipv4());
        of_family.into_iter().any(|own| ranges.iter().any(|range| cidr_holds(range, *own)))
    });
    let every = |endpoint: &(IpAddr, u16)| own.contains(&endpoint.0) || permits(*endpoint);
    in_range && service.endpoints.iter().all(every)
}

/// Whether `from` may open a flow to `to`, both with interfaces, between these addresses of theirs (1.3).
pub fn connects(world: &World, from: (&Pod, IpAddr), to: (&Pod, IpAddr), l4: L4) -> bool {
    allowed(world, from.0, Gate::Egress, to.1, l4)
        && allowed(world, to.0, Gate::Ingress, from.1, l4)
}

/// The pod that has an address: a pod's interface here first, then what the objects say (11).
pub fn owner_of(world: &World, address: IpAddr) -> Option<&Pod> {
    let here: Vec<&Pod> = world
        .interfaces
        .iter()
        .filter(|(_, addresses)| addresses.contains(&address))
        .map(|(pod, _)| &world.pods[*pod])
        .filter(|pod| may_own(pod))
        .collect();
    let told = world.pods.iter().filter(|pod| may_own(pod));
    let told = told.filter(|pod| status_addresses(pod).contains(&address)).collect();
    let claims: Vec<&Pod> = if here.is_empty() { told } else { here };
    claims.into_iter().min_by_key(|pod| {
        let metadata = &pod.metadata;
        let created = metadata.creation_timestamp.as_ref().map_or(0, |time| time.0.as_second());
        let terminating = metadata.deletion_timestamp.is_some();
        (terminating, Reverse(created), namespace_of(metadata), metadata.name.clone())
    })
}

/// Every address of a pod: its status' and its interface's.
pub fn addresses(world: &World, pod: &Pod) -> Vec<IpAddr> {
    let mut addresses = status_addresses(pod);
    for (owner, here) in &world.interfaces {
        let owner = &world.pods[*owner].metadata;
        if namespace_of(owner) == namespace_of(&pod.metadata) && owner.name == pod.metadata.name {
            addresses.extend(here);
        }
    }
    addresses
}

/// 11: a finished pod's address may be somebody else's; 9: a hostNetwork pod's is its node's.
fn may_own(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    let host = pod.spec.as_ref().is_some_and(|spec| spec.host_network == Some(true));
    !matches!(phase, Some("Succeeded" | "Failed")) && !host
}

fn status_addresses(pod: &Pod) -> Vec<IpAddr> {
    let Some(status) = &pod.status else { return Vec::new() };
    let many = status.pod_ips.iter().flatten().map(|ip| ip.ip.as_str());
    let texts = many.chain(status.pod_ip.as_deref()).filter(|text| !text.is_empty());
    texts.map(|text| read_address(text).to_ip()).collect()
}

/// 2: which directions a policy isolates for.
fn isolates(spec: &NetworkPolicySpec, gate: Gate) -> bool {
    let types = spec.policy_types.clone().unwrap_or_default();
    if types.is_empty() {
        return gate == Gate::Ingress
            || spec.egress.as_ref().is_some_and(|rules| !rules.is_empty());
    }
    assert!(types.len() <= 2, "more than two policyTypes");
    types.iter().any(|name| {
        name == match gate {
            Gate::Ingress => "Ingress",
            Gate::Egress => "Egress",
        }
    })
}

/// The lists of a rule: its `from` or `to`, and its `ports`.
type Lists<'a> = (&'a Option<Vec<NetworkPolicyPeer>>, &'a Option<Vec<NetworkPolicyPort>>);

/// 4: peer AND port. `destination` is the pod whose port names count (6).
fn rule_allows(
    world: &World,
    policy: &NetworkPolicy,
    (peers, ports): Lists<'_>,
    peer: IpAddr,
    l4: L4,
    destination: Option<&Pod>,
) -> bool {
    let peers = peers.clone().unwrap_or_default();
    let ports = ports.clone().unwrap_or_default();
    let peer_matches =
        peers.is_empty() || peers.iter().any(|item| peer_matches(world, policy, item, peer));
    let port_matches =
        ports.is_empty() || ports.iter().any(|item| port_matches(item, l4, destination));
    peer_matches && port_matches
}

fn peer_matches(
    world: &World,
    policy: &NetworkPolicy,
    item: &NetworkPolicyPeer,
    peer: IpAddr,
) -> bool {
    if let Some(block) = &item.ip_block {
        assert!(item.pod_selector.is_none() && item.namespace_selector.is_none());
        return block_holds(block, peer);
    }
    assert!(item.pod_selector.is_some() || item.namespace_selector.is_some(), "an empty peer");
    let Some(pod) = owner_of(world, peer) else { return false };
    let in_namespace = match &item.namespace_selector {
        Some(selector) => matches(selector, &namespace_labels(world, &pod.metadata)),
        None => namespace_of(&pod.metadata) == namespace_of(&policy.metadata),
    };
    let selector = item.pod_selector.clone().unwrap_or_default();
    in_namespace && matches(&selector, &labels(&pod.metadata))
}

fn port_matches(item: &NetworkPolicyPort, l4: L4, destination: Option<&Pod>) -> bool {
    let L4::Port(protocol, port) = l4 else { return false }; // 7: rules with ports do not match ICMP
    if item.protocol.as_deref().unwrap_or("TCP") != protocol {
        return false;
    }
    match &item.port {
        None => true,
        Some(IntOrString::Int(first)) => {
            (*first..=item.end_port.unwrap_or(*first)).contains(&i32::from(port))
        }
        Some(IntOrString::String(name)) => destination.is_some_and(|pod| {
            serving_containers(pod).iter().flat_map(|of| of.ports.iter().flatten()).any(|own| {
                own.name.as_deref() == Some(name)
                    && own.protocol.as_deref().unwrap_or("TCP") == protocol
                    && own.container_port == i32::from(port)
            })
        }),
    }
}

/// 6: containers and sidecars.
fn serving_containers(pod: &Pod) -> Vec<&Container> {
    let Some(spec) = &pod.spec else { return Vec::new() };
    let sidecars = spec.init_containers.iter().flatten();
    let sidecars = sidecars.filter(|of| of.restart_policy.as_deref() == Some("Always"));
    spec.containers.iter().chain(sidecars).collect()
}

// ---- labels (4) ----

fn namespace_of(metadata: &ObjectMeta) -> String {
    metadata.namespace.clone().unwrap_or_else(|| "default".to_owned())
}

fn labels(metadata: &ObjectMeta) -> BTreeMap<String, String> {
    metadata.labels.clone().unwrap_or_default()
}

fn namespace_labels(world: &World, pod: &ObjectMeta) -> BTreeMap<String, String> {
    let name = namespace_of(pod);
    let object = world.namespaces.iter().find(|of| of.metadata.name.as_ref() == Some(&name));
    let mut labels = object.map_or_else(BTreeMap::new, |namespace| labels(&namespace.metadata));
    labels.insert("kubernetes.io/metadata.name".to_owned(), name);
    labels
}

fn matches(selector: &LabelSelector, labels: &BTreeMap<String, String>) -> bool {
    let equal = selector.match_labels.iter().flatten();
    let equal = equal.into_iter().all(|(key, value)| labels.get(key) == Some(value));
    equal
        && selector.match_expressions.iter().flatten().all(|expression| {
            let value = labels.get(&expression.key);
            let values = expression.values.clone().unwrap_or_default();
            let is_one_of_them = value.is_some_and(|value| values.contains(value));
            match expression.operator.as_str() {
                "In" => is_one_of_them,
                "NotIn" => !is_one_of_them,
                "Exists" => value.is_some(),
                "DoesNotExist" => value.is_none(),
                other => panic!("operator {other:?}"),
            }
        })
}

// ---- addresses (5): numbers of 32 or 128 bits ----

#[derive(Clone, Copy, PartialEq, Eq)]
struct Address {
    bits: u128,
    width: u32,
}

impl Address {
    /// An IPv4-mapped IPv6 address is the IPv4 address.
    fn new(bits: u128, width: u32) -> Self {
        if width == 128 && bits >> 32 == 0xffff {
            return Self { bits: bits & 0xffff_ffff, width: 32 };
        }
        Self { bits, width }
    }

    fn to_ip(self) -> IpAddr {
        match self.width {
            32 => IpAddr::V4(Ipv4Addr::from_bits(self.bits as u32)),
            _ => IpAddr::V6(Ipv6Addr::from_bits(self.bits)),
        }
    }
}

impl From<IpAddr> for Address {
    fn from(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => Self::new(u128::from(address.to_bits()), 32),
            IpAddr::V6(address) => Self::new(address.to_bits(), 128),
        }
    }
}

fn block_holds(block: &IPBlock, peer: IpAddr) -> bool {
    let excepts = block.except.iter().flatten();
    cidr_holds(&block.cidr, peer) && !excepts.into_iter().any(|except| cidr_holds(except, peer))
}

fn cidr_holds(cidr: &str, peer: IpAddr) -> bool {
    let (address, length) = cidr.split_once('/').unwrap_or_else(|| panic!("cidr {cidr:?}"));
    let mut length: u32 = length.parse().unwrap_or_else(|_| panic!("cidr {cidr:?}"));
    let (base, peer) = (read_address(address), Address::from(peer));
    if base.width == 32 && address.contains(':') {
        length -= 96;
    }
    let differing_bits = base.bits ^ peer.bits;
    let host_bits = base.width - length;
    base.width == peer.width && differing_bits.checked_shr(host_bits).unwrap_or(0) == 0
}

/// Reads an address digit by digit; leading zeros are decimal.
fn read_address(text: &str) -> Address {
    if !text.contains(':') {
        return Address::new(read_v4(text), 32);
    }
    // "a:b::c" is the groups before "::", zeros, and the groups after it
    let mut halves = text.splitn(2, "::").map(|half| {
        let mut groups: Vec<u128> = Vec::new();
        for group in half.split(':').filter(|group| !group.is_empty()) {
            if group.contains('.') {
                let dotted = read_v4(group);
                groups.extend([dotted >> 16, dotted & 0xffff]);
            } else {
                let group = u128::from_str_radix(group, 16);
                groups.push(group.unwrap_or_else(|_| panic!("address {text:?}")));
            }
        }
        groups
    });
    let before = halves.next().unwrap_or_default();
    let after = halves.next().unwrap_or_default();
    let mut groups = before.clone();
    groups.resize(8 - after.len(), 0);
    groups.extend(after);
    Address::new(groups.into_iter().fold(0, |bits, group| bits << 16 | group), 128)
}

fn read_v4(text: &str) -> u128 {
    text.split('.').fold(0, |bits, octet| {
        let octet: u128 = octet.parse().unwrap_or_else(|_| panic!("address {text:?}"));
        bits << 8 | octet
    })
}
