//! Random worlds: small alphabets, so that everything meets everything else.
//!
//! Few namespaces (some without an object), few labels, addresses of two small ranges that pods share
//! and re-use, blocks nested over just these addresses in every spelling, port names with different numbers per
//! pod, and each list and selector missing, empty or filled. All objects are valid (docs/semantics.md 13).

mod local;
mod ranked;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use k8s_openapi::api::core::v1::{
    Container, ContainerPort, Namespace, Pod, PodIP, PodSpec, PodStatus,
};
use k8s_openapi::api::networking::v1::{
    IPBlock, NetworkPolicy, NetworkPolicyEgressRule, NetworkPolicyIngressRule, NetworkPolicyPeer,
    NetworkPolicyPort, NetworkPolicySpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{
    LabelSelector, LabelSelectorRequirement, ObjectMeta, Time,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use k8s_openapi::jiff::Timestamp;
use proptest::collection::vec;
use proptest::option::{of as maybe, weighted};
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use proptest::test_runner::{Config, FileFailurePersistence};

use crate::oracle::{L4, World};

pub use ranked::{ranked_worlds, sole_addresses, successive_ranked_worlds, without_audits};

const NAMESPACES: [&str; 3] = ["default", "shop", "ops"];
const KEYS: [&str; 3] = ["app", "tier", "env"];
const VALUES: [&str; 3] = ["a", "b", ""];
const PORT_NAMES: [&str; 3] = ["web", "dns", "admin"];
const PORTS: [u16; 6] = [53, 80, 81, 443, 8080, 65535];
const PROTOCOLS: [&str; 3] = ["TCP", "UDP", "SCTP"];

/// Addresses that pods have: 16 of each family.
const V4: u32 = 0x0a00_0000;
const V6: u128 = 0xfd00 << 112;

/// How to run a property over random worlds: failing ones are kept beside `source_file`, the test's `file!()`.
pub fn config(cases: u32, source_file: &'static str) -> Config {
    Config {
        cases,
        source_file: Some(source_file),
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("regressions"))),
        // a world is dear to judge, and one that is small enough to read is small enough
        max_shrink_iters: 2000,
        ..Config::default()
    }
}

/// Worlds of up to ten pods and eight policies.
pub fn worlds() -> impl Strategy<Value = World> {
    (namespaces(), vec(pod(), 1..10), vec(policy(), 0..8))
        .prop_map(|(namespaces, mut pods, mut policies)| {
            for (index, pod) in pods.iter_mut().enumerate() {
                pod.metadata.name = Some(format!("pod-{index}"));
            }
            for (index, policy) in policies.iter_mut().enumerate() {
                policy.metadata.name = Some(format!("policy-{index}"));
            }
            World { namespaces, pods, policies, ..World::default() }
        })
        .prop_flat_map(|world| {
            let here: Vec<usize> = (0..world.pods.len()).collect();
            let some = subsequence(here.clone(), 0..=here.len());
            let chosen = (some, vec(vec(pod_address(), 0..2), here.len()));
            (Just(world), chosen).prop_map(|(mut world, (here, extra))| {
                world.interfaces = here
                    .into_iter()
                    .filter(|pod| has_interface(&world.pods[*pod]))
                    .map(|pod| {
                        let mut addresses = status_addresses(&world.pods[pod]);
                        // the CNI result is known before the status is, and may say more
                        addresses.extend(&extra[pod]);
                        (pod, addresses)
                    })
                    .collect();
                world
            })
        })
}

/// Two worlds of the same pods and policies by name, many of them changed, gone or new.
pub fn successive_worlds() -> impl Strategy<Value = (World, World)> {
    (worlds(), worlds(), any::<u64>()).prop_map(|(old, new, keep)| keeping(old, new, keep))
}

/// The second world with some of the pods and policies of the first, and its interfaces.
fn keeping(old: World, mut new: World, keep: u64) -> (World, World) {
    let kept = |index: usize, shift: usize| keep >> ((index + shift) % 64) & 1 == 1;
    for (index, pod) in old.pods.iter().enumerate().filter(|(index, _)| kept(*index, 0)) {
        if let Some(same) = new.pods.get_mut(index) {
            *same = pod.clone();
        }
    }
    for (index, policy) in old.policies.iter().enumerate() {
        if let Some(same) = new.policies.get_mut(index).filter(|_| kept(index, 20)) {
            *same = policy.clone();
        }
    }
    new.interfaces = old.interfaces.clone();
    new.interfaces.retain(|(pod, _)| new.pods.get(*pod).is_some_and(has_interface));
    (old, new)
}

/// Addresses worth asking about: all that pods may have, the edges of the ranges, and strangers.
pub fn probe_addresses() -> Vec<IpAddr> {
    let v4 = (0..18).map(|low| IpAddr::V4(Ipv4Addr::from_bits(V4 + low)));
    let v6 = (0..18).map(|low| IpAddr::V6(Ipv6Addr::from_bits(V6 + low)));
    let strangers =
        ["8.8.8.8", "10.0.1.1", "10.255.255.255", "9.255.255.255", "2001:db8::1", "::1"];
    let strangers = strangers.into_iter().filter_map(|text| text.parse().ok());
    v4.chain(v6).chain(strangers).collect()
}

/// Ports worth asking about: all that objects name and their neighbours, for every protocol, and none.
pub fn probe_ports() -> Vec<L4> {
    let ports = [52, 53, 54, 79, 80, 81, 82, 443, 8080, 65534, 65535];
    let of = |protocol| ports.map(|port| L4::Port(protocol, port));
    PROTOCOLS.into_iter().flat_map(of).chain([L4::NoPorts]).collect()
}

fn has_interface(pod: &Pod) -> bool {
    let spec = pod.spec.as_ref();
    spec.is_none_or(|spec| spec.host_network != Some(true))
}

fn status_addresses(pod: &Pod) -> Vec<IpAddr> {
    let ips = pod.status.iter().flat_map(|status| status.pod_ips.iter().flatten());
    ips.filter_map(|ip| ip.ip.parse().ok()).collect()
}

fn labels() -> impl Strategy<Value = Option<BTreeMap<String, String>>> {
    let label = (select(&KEYS[..]), select(&VALUES[..]));
    maybe(vec(label, 0..4).prop_map(|labels| {
        labels.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
    }))
}

fn namespaces() -> impl Strategy<Value = Vec<Namespace>> {
    let names = subsequence(NAMESPACES.to_vec(), 1..=NAMESPACES.len());
    (names, vec(labels(), NAMESPACES.len())).prop_map(|(names, labels)| {
        let namespace = |(name, labels): (&str, _)| Namespace {
            metadata: ObjectMeta { name: Some(name.to_owned()), labels, ..Default::default() },
            ..Default::default()
        };
        names.into_iter().zip(labels).map(namespace).collect()
    })
}

/// Missing means "default".
fn namespace_name() -> impl Strategy<Value = Option<String>> {
    maybe(select(&NAMESPACES[..]).prop_map(str::to_owned))
}

fn pod_address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        (0..16u32).prop_map(|low| IpAddr::V4(Ipv4Addr::from_bits(V4 + low))),
        (0..16u128).prop_map(|low| IpAddr::V6(Ipv6Addr::from_bits(V6 + low))),
    ]
}

fn pod() -> impl Strategy<Value = Pod> {
    let life = (
        prop_oneof![
            2 => Just(None), 6 => Just(Some("Running")), 2 => Just(Some("Pending")),
            1 => Just(Some("Succeeded")), 1 => Just(Some("Failed")),
        ],
        proptest::bool::weighted(0.15),
        maybe(0..4i64),
    );
    let containers = (vec(container(), 1..3), maybe(vec(container(), 0..2)));
    let spec = (containers, weighted(0.3, proptest::bool::weighted(0.3)));
    (namespace_name(), labels(), life, vec(pod_address(), 0..3), spec).prop_map(
        |(namespace, labels, (phase, deleted, created), addresses, (containers, host_network))| {
            let time = |seconds| Time(Timestamp::from_second(seconds).unwrap_or_default());
            let (containers, init_containers) = containers;
            let ips: Vec<String> = addresses.iter().map(IpAddr::to_string).collect();
            Pod {
                metadata: ObjectMeta {
                    namespace,
                    labels,
                    creation_timestamp: created.map(time),
                    deletion_timestamp: deleted.then(|| time(9)),
                    ..Default::default()
                },
                spec: Some(PodSpec {
                    containers,
                    init_containers,
                    host_network,
                    ..Default::default()
                }),
                status: Some(PodStatus {
                    phase: phase.map(str::to_owned),
                    pod_ip: ips.first().cloned(),
                    pod_ips: Some(ips.into_iter().map(|ip| PodIP { ip }).collect()),
                    ..Default::default()
                }),
            }
        },
    )
}

/// A container; `restartPolicy` matters for init containers only.
fn container() -> impl Strategy<Value = Container> {
    let port = (maybe(select(&PORT_NAMES[..])), maybe(select(&PROTOCOLS[..])), select(&PORTS[..]));
    let port = port.prop_map(|(name, protocol, number)| ContainerPort {
        name: name.map(str::to_owned),
        protocol: protocol.map(str::to_owned),
        container_port: i32::from(number),
        ..Default::default()
    });
    (maybe(vec(port, 0..4)), maybe(Just("Always".to_owned()))).prop_map(
        |(ports, restart_policy)| Container { ports, restart_policy, ..Default::default() },
    )
}

fn selector() -> impl Strategy<Value = LabelSelector> {
    // namespaces are told apart by the label that objects lack
    let key = prop_oneof![6 => select(&KEYS[..]), 1 => Just("kubernetes.io/metadata.name")];
    let value = prop_oneof![6 => select(&VALUES[..]), 2 => select(&NAMESPACES[..])];
    let pair = (key.clone(), value.clone());
    let pair = pair.prop_map(|(key, value)| (key.to_owned(), value.to_owned()));
    let values = vec(value.prop_map(str::to_owned), 1..3);
    let operator = select(&["In", "NotIn", "Exists", "DoesNotExist"][..]);
    let expression = (key, operator, values).prop_map(|(key, operator, values)| {
        let values = operator.ends_with("In").then_some(values);
        LabelSelectorRequirement { key: key.to_owned(), operator: operator.to_owned(), values }
    });
    let match_labels = maybe(vec(pair, 0..2).prop_map(|pairs| pairs.into_iter().collect()));
    (match_labels, weighted(0.3, vec(expression, 0..3))).prop_map(
        |(match_labels, match_expressions)| LabelSelector { match_labels, match_expressions },
    )
}

fn policy() -> impl Strategy<Value = NetworkPolicy> {
    let types = prop_oneof![
        2 => Just(None),
        1 => Just(Some(vec![])),
        2 => Just(Some(vec!["Ingress"])),
        2 => Just(Some(vec!["Egress"])),
        3 => Just(Some(vec!["Ingress", "Egress"])),
        1 => Just(Some(vec!["Ingress", "Ingress"])),
    ];
    let ingress = (maybe(peers()), maybe(ports()))
        .prop_map(|(from, ports)| NetworkPolicyIngressRule { from, ports });
    let egress = (maybe(peers()), maybe(ports()))
        .prop_map(|(to, ports)| NetworkPolicyEgressRule { to, ports });
    let rules = (maybe(vec(ingress, 0..3)), maybe(vec(egress, 0..3)));
    let spec = (maybe(selector()), types, rules).prop_map(|(pod_selector, types, rules)| {
        let (ingress, egress) = rules;
        let policy_types: Option<Vec<&str>> = types;
        let policy_types = policy_types.map(|types| types.into_iter().map(str::to_owned).collect());
        NetworkPolicySpec { pod_selector, policy_types, ingress, egress }
    });
    (namespace_name(), weighted(0.95, spec)).prop_map(|(namespace, spec)| NetworkPolicy {
        metadata: ObjectMeta { namespace, ..Default::default() },
        spec,
    })
}

fn peers() -> impl Strategy<Value = Vec<NetworkPolicyPeer>> {
    let pods = (maybe(selector()), maybe(selector()))
        .prop_filter("a peer must say something", |(pods, of)| pods.is_some() || of.is_some())
        .prop_map(|(pod_selector, namespace_selector)| NetworkPolicyPeer {
            pod_selector,
            namespace_selector,
            ip_block: None,
        });
    let block =
        block().prop_map(|block| NetworkPolicyPeer { ip_block: Some(block), ..Default::default() });
    vec(prop_oneof![pods, block], 0..3)
}

fn ports() -> impl Strategy<Value = Vec<NetworkPolicyPort>> {
    let number = (select(&PORTS[..]), weighted(0.3, 0..400i32)).prop_map(|(first, more)| {
        let first = i32::from(first);
        let end = more.map(|more| (first + more).min(65535));
        (Some(IntOrString::Int(first)), end)
    });
    let name =
        select(&PORT_NAMES[..]).prop_map(|name| (Some(IntOrString::String(name.to_owned())), None));
    let port = prop_oneof![2 => Just((None, None)), 4 => number, 3 => name];
    let port = (port, maybe(select(&PROTOCOLS[..]))).prop_map(|((port, end_port), protocol)| {
        NetworkPolicyPort { port, end_port, protocol: protocol.map(str::to_owned) }
    });
    vec(port, 0..3)
}

/// A block around some pod's address with up to two holes inside, in any spelling.
fn block() -> impl Strategy<Value = IPBlock> {
    let v4 = (select(vec![0u8, 8, 24, 28, 29, 30, 31, 32]), 0..16u32, holes(32));
    let v4 = (v4, 0..4u8).prop_map(|((length, low, holes), spelling)| {
        let host = u32::MAX.checked_shr(u32::from(length)).unwrap_or(0);
        let except = holes.into_iter().filter(|(_, hole)| *hole > length).map(|(bits, hole)| {
            spell_v4((V4 + low) & !host | (bits as u32) & host, hole, spelling)
        });
        let except = Some(except.collect()).filter(|holes: &Vec<_>| !holes.is_empty() || low > 7);
        IPBlock { cidr: spell_v4(V4 + low, length, spelling), except }
    });
    let v6 = (select(vec![0u8, 8, 64, 124, 125, 126, 127, 128]), 0..16u128, holes(128));
    let v6 = v6.prop_map(|(length, low, holes)| {
        let host = u128::MAX.checked_shr(u32::from(length)).unwrap_or(0);
        let except = holes.into_iter().filter(|(_, hole)| *hole > length).map(|(bits, hole)| {
            let base = (V6 + low) & !host | u128::from(bits) & host;
            format!("{}/{hole}", Ipv6Addr::from_bits(base))
        });
        let except = Some(except.collect()).filter(|holes: &Vec<_>| !holes.is_empty() || low > 7);
        IPBlock { cidr: format!("{}/{length}", Ipv6Addr::from_bits(V6 + low)), except }
    });
    prop_oneof![3 => v4, 1 => v6]
}

/// Low bits and lengths of holes.
fn holes(width: u8) -> impl Strategy<Value = Vec<(u16, u8)>> {
    vec((0..16u16, width - 6..=width), 0..3)
}

/// Plain, with leading zeros, or as an IPv4-mapped IPv6 prefix; host bits as they come.
fn spell_v4(bits: u32, length: u8, spelling: u8) -> String {
    let address = Ipv4Addr::from_bits(bits);
    match spelling {
        0 => {
            let [a, b, c, d] = address.octets();
            format!("{a:03}.{b:02}.{c}.{d:03}/{length}")
        }
        1 => format!("::ffff:{address}/{}", length + 96),
        _ => format!("{address}/{length}"),
    }
}
