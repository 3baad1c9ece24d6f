//! The oracle: what the policies of a world allow, worked out in the most naive way from the raw
//! Kubernetes objects and from `docs/semantics.md` alone.
//!
//! It shares no code with `podgate-policy`, on purpose: no model, no selector, no CIDR type, no defaulting. What the
//! compiled tables, and the kernel with those tables in its maps, say of a world is compared with it.
//! Numbers in comments are sections of `docs/semantics.md`.
//!
//! Objects must be valid (13); the oracle panics on those that the API server would reject.

mod addresses;
mod local;
mod tiers;

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Container, Namespace, Node, Pod};
use k8s_openapi::api::networking::v1::{
    NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicySpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use addresses::{block_holds, cidr_holds, read_address};

pub use local::LocalRules;
pub use tiers::ClusterPolicy;

/// A cluster, as its objects tell it, and one node's interfaces.
#[derive(Clone, Default)]
pub struct World {
    /// Namespace objects. A pod may be in a namespace that has none.
    pub namespaces: Vec<Namespace>,
    /// Pods, of every node.
    pub pods: Vec<Pod>,
    /// Policies.
    pub policies: Vec<NetworkPolicy>,
    /// ClusterNetworkPolicies.
    pub cluster_policies: Vec<ClusterPolicy>,
    /// What the node's operator says: of each pod at most once, and of the node.
    pub local_rules: Vec<LocalRules>,
    /// Nodes.
    pub nodes: Vec<Node>,
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
            "clusterPolicies": self.cluster_policies.iter().map(|of| &of.object).collect::<Vec<_>>(),
            "localRules": self.local_rules.iter().map(|of| &of.object).collect::<Vec<_>>(),
            "nodes": self.nodes,
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

/// Which policies are asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policies {
    /// Those in force: all that are not audited.
    InForce,
    /// All, as if the audited ones were in force.
    AndAudited,
}

/// What becomes of a new flow, and who decides it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ruling {
    /// Whether it passes.
    pub passes: bool,
    /// Whether its sender is told that it does not.
    pub rejects: bool,
    /// Who decides.
    pub by: Decider,
}

/// Who decides on a flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decider {
    /// No policy: what is not forbidden is allowed.
    Nobody,
    /// The NetworkPolicies that isolate the pod, all together.
    NetworkPolicies,
    /// A local rule of the pod, by its number.
    LocalRule(u64),
    /// A default mode.
    LocalDefault {
        /// The pod's own, and not the node's.
        of_pod: bool,
    },
    /// A rule of a ClusterNetworkPolicy.
    Cluster {
        /// The policy's name.
        policy: String,
        /// The place of the rule in the list of its direction, from 0.
        rule: usize,
    },
}

/// A new flow at one gate of a pod.
#[derive(Clone, Copy, Debug)]
struct Flow<'a> {
    pod: &'a Pod,
    gate: Gate,
    /// The other end's address.
    peer: IpAddr,
    l4: L4,
    /// The pod sends it to itself, through a service (10).
    to_itself: bool,
}

impl Flow<'_> {
    /// The pod whose port names count (6).
    fn destination<'w>(&self, world: &'w World) -> Option<&'w Pod>
    where
        Self: 'w,
    {
        match self.gate {
            Gate::Ingress => Some(self.pod),
            Gate::Egress => owner_of(world, self.peer),
        }
    }
}

/// Whether the policies in force let a new flow through one gate of `pod`. `peer` is the other end's address. The flows
/// that no policy can forbid (1.5: the pod's own address, its node) are not looked at here.
///
/// A finished pod (11) that still has an interface is policed there as before: what is asked about is the
/// gate of this pod, and never an address that may belong to another pod.
pub fn policies_allow(world: &World, pod: &Pod, gate: Gate, peer: IpAddr, l4: L4) -> bool {
    ruling(world, pod, gate, peer, l4, Policies::InForce).passes
}

/// What policies say of a new flow at one gate of `pod`, as [`policies_allow`].
pub fn ruling(
    world: &World,
    pod: &Pod,
    gate: Gate,
    peer: IpAddr,
    l4: L4,
    policies: Policies,
) -> Ruling {
    decide(world, Flow { pod, gate, peer, l4, to_itself: false }, policies)
}

/// What policies say, at one gate of `pod`, of what it sends to itself through a service: `own` is the address that it
/// meets itself under (10, 15).
pub fn ruling_on_itself(
    world: &World,
    pod: &Pod,
    gate: Gate,
    own: IpAddr,
    l4: L4,
    policies: Policies,
) -> Ruling {
    decide(world, Flow { pod, gate, peer: own, l4, to_itself: true }, policies)
}

/// 15, 16: the order of evaluation.
fn decide(world: &World, flow: Flow<'_>, policies: Policies) -> Ruling {
    let nobody = Ruling { passes: true, rejects: false, by: Decider::Nobody };
    if flow.pod.spec.as_ref().is_some_and(|spec| spec.host_network == Some(true)) {
        return nobody; // 9: its node, never a subject
    }
    if let Some(ruling) = local::rules(world, flow) {
        return ruling;
    }
    if let Some(ruling) = tiers::tier(world, "Admin", flow, policies) {
        return ruling;
    }
    if let Some(passes) = network_policies(world, flow, policies) {
        return Ruling { passes, rejects: false, by: Decider::NetworkPolicies };
    }
    let baseline = tiers::tier(world, "Baseline", flow, policies);
    baseline.or_else(|| local::default(world, flow)).unwrap_or(nobody)
}

/// What the NetworkPolicies say, if any isolates the pod.
fn network_policies(world: &World, flow: Flow<'_>, policies: Policies) -> Option<bool> {
    let mut isolated = false;
    for policy in &world.policies {
        let spec = policy.spec.clone().unwrap_or_default();
        let selects = namespace_of(&policy.metadata) == namespace_of(&flow.pod.metadata)
            && matches(&spec.pod_selector.clone().unwrap_or_default(), &labels(&flow.pod.metadata));
        let audited = is_audited(&policy.metadata) || namespace_is_audited(world, policy);
        let asked = policies == Policies::AndAudited || !audited;
        if !selects || !asked || !isolates(&spec, flow.gate) {
            continue;
        }
        isolated = true;
        // 1.2: the union of all rules of all policies
        let destination = flow.destination(world);
        let allows =
            match flow.gate {
                Gate::Ingress => spec.ingress.unwrap_or_default().iter().any(|rule| {
                    rule_allows(world, policy, (&rule.from, &rule.ports), flow, destination)
                }),
                Gate::Egress => spec.egress.unwrap_or_default().iter().any(|rule| {
                    rule_allows(world, policy, (&rule.to, &rule.ports), flow, destination)
                }),
            };
        if allows {
            return Some(true);
        }
    }
    // 10: what a pod sends to itself through a service
    isolated.then_some(flow.to_itself)
}

/// Whether the annotations of a policy, or of a namespace, say that it is audited only.
fn is_audited(metadata: &ObjectMeta) -> bool {
    let annotations = metadata.annotations.iter().flatten();
    annotations.into_iter().any(|(name, value)| name == "podgate.io/mode" && value == "audit")
}

fn namespace_is_audited(world: &World, policy: &NetworkPolicy) -> bool {
    let name = namespace_of(&policy.metadata);
    let mut namespaces = world.namespaces.iter();
    namespaces.any(|of| of.metadata.name.as_ref() == Some(&name) && is_audited(&of.metadata))
}

/// Whether a new flow passes one gate of `pod`: its own addresses always do (1.5a).
pub fn allowed(world: &World, pod: &Pod, gate: Gate, peer: IpAddr, l4: L4) -> bool {
    addresses(world, pod).contains(&peer) || policies_allow(world, pod, gate, peer, l4)
}

/// A port of a service address that the datapath does not translate.
#[derive(Clone, Copy, Debug)]
pub struct UntranslatedService<'a> {
    /// Address and port.
    pub address: (IpAddr, u16),
    /// Address and port of every endpoint that may get the packet.
    pub endpoints: &'a [(IpAddr, u16)],
    /// `loadBalancerSourceRanges`, if they hold for the address.
    pub ranges: Option<&'a [&'a str]>,
    /// The address is on an interface of the pod's node.
    pub on_the_node: bool,
}

/// Whether the egress policies of `pod`, which has these addresses here, allow a packet to such a service (10, 13): every
/// endpoint must be allowed and the pod be in a range; at the node's own address it suffices that the address is allowed.
pub fn untranslated_allows(
    world: &World,
    pod: &Pod,
    own: &[IpAddr],
    protocol: &'static str,
    service: &UntranslatedService<'_>,
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

/// 11: a finished pod's address may belong to another pod; 9: a hostNetwork pod's belongs to its node.
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
    flow: Flow<'_>,
    destination: Option<&Pod>,
) -> bool {
    let peers = peers.clone().unwrap_or_default();
    let ports = ports.clone().unwrap_or_default();
    let peer_matches =
        peers.is_empty() || peers.iter().any(|item| peer_matches(world, policy, item, flow.peer));
    let port_matches =
        ports.is_empty() || ports.iter().any(|item| port_matches(item, flow.l4, destination));
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
        Some(IntOrString::String(name)) => {
            destination.is_some_and(|pod| declares(pod, name, protocol, port))
        }
    }
}

/// Whether a pod has a port of this name, protocol and number.
fn declares(pod: &Pod, name: &str, protocol: &str, port: u16) -> bool {
    serving_containers(pod).iter().flat_map(|of| of.ports.iter().flatten()).any(|own| {
        own.name.as_deref() == Some(name)
            && own.protocol.as_deref().unwrap_or("TCP") == protocol
            && own.container_port == i32::from(port)
    })
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
