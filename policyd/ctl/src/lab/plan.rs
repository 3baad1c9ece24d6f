//! Who gets which address: a pure function of the cluster, so that offline answers and the lab agree.
//!
//! All pods live on one node with one bridge. Pods keep the addresses that their status gives; pods
//! without any get some from a free range. The bridge may carry several subnets.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::IpNet;
use podgate_policy::index::Index;
use podgate_policy::model::ObjectKey;

/// Where pods without an address get one.
const FREE4: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 2);
const FREE6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x10, 0x88, 0, 0, 0, 0, 2);
/// Where the node's side of the link to the outside gets one.
const UPLINK4: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
const UPLINK6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x10, 0x89, 0, 0, 0, 0, 1);
/// Where nodes without a known address get one.
const NODES4: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 1);
const NODES6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x10, 0x90, 0, 0, 0, 0, 1);
/// Prefix lengths of subnets, unless a pod's address would be the subnet's own or its broadcast address.
const SUBNET4: u8 = 16;
const SUBNET6: u8 = 64;

/// The node that all pods of a cluster live on, as services and policyd call it.
pub(crate) const NODE: &str = "lab";

/// A subnet of the bridge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Subnet {
    /// Its range, masked.
    pub net: IpNet,
    /// The bridge's address in it; no other end has it.
    pub gateway: IpAddr,
}

/// The addresses of a cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    /// The pods that have a network of their own, and their addresses.
    pub pods: BTreeMap<ObjectKey, Vec<IpAddr>>,
    /// Every node that is spoken of, and its addresses: known ones, the preferred one of each family first, or free ones.
    pub nodes: BTreeMap<Arc<str>, Vec<IpAddr>>,
    /// The subnets of the bridge.
    pub subnets: Vec<Subnet>,
    /// Further addresses of the node itself.
    pub here: BTreeSet<IpAddr>,
    /// The node's addresses towards the outside, one of each family.
    pub uplinks: Vec<IpAddr>,
}

impl Plan {
    /// Lays a cluster out. `mentioned`: further addresses that may be external; `nodes`: further nodes that are
    /// spoken of.
    pub(crate) fn new(
        index: &Index,
        mentioned: &BTreeSet<IpAddr>,
        nodes: &BTreeSet<Arc<str>>,
    ) -> Self {
        let known = || index.node_addresses();
        let here = index.addresses_of_node(NODE).into_iter().collect();
        let outside = &mentioned.iter().copied().chain(known()).collect();
        let mut taken = mentioned.clone();
        taken.extend(index.pods().flat_map(|pod| pod.addresses.iter().copied()).chain(known()));
        let pods = pods(index, &mut taken);
        let subnets = subnets(&pods, outside, &mut taken);
        let uplinks = vec![free(UPLINK4.into(), &mut taken), free(UPLINK6.into(), &mut taken)];
        let nodes = self::nodes(index, nodes, &mut taken);
        Self { pods, nodes, subnets, here, uplinks }
    }

    /// The subnet that an address of a pod lies in.
    pub(crate) fn subnet_of(&self, address: IpAddr) -> Option<&Subnet> {
        self.subnets.iter().find(|subnet| subnet.net.contains(&address))
    }
}

fn pods(index: &Index, taken: &mut BTreeSet<IpAddr>) -> BTreeMap<ObjectKey, Vec<IpAddr>> {
    let candidates = || index.pods().filter(|pod| pod.may_own_addresses());
    let given = || candidates().flat_map(|pod| &pod.addresses);
    // a pod without addresses is like the others of its cluster
    let v6 = given().any(IpAddr::is_ipv6);
    let v4 = !v6 || given().any(IpAddr::is_ipv4);
    let mut pods = BTreeMap::new();
    for pod in candidates() {
        let addresses = if pod.addresses.is_empty() {
            let wanted = [(v4, FREE4.into()), (v6, FREE6.into())];
            let wanted = wanted.into_iter().filter(|(wanted, _)| *wanted);
            wanted.map(|(_, first)| free(first, taken)).collect()
        } else {
            let own =
                |address: &&IpAddr| index.owner_of(**address).is_some_and(|o| o.key == pod.key);
            pod.addresses.iter().filter(own).copied().collect::<Vec<_>>()
        };
        // all its addresses are another pod's by now: nothing of it is left on the network
        if !addresses.is_empty() {
            pods.insert(pod.key.clone(), addresses);
        }
    }
    pods
}

fn nodes(
    index: &Index,
    asked: &BTreeSet<Arc<str>>,
    taken: &mut BTreeSet<IpAddr>,
) -> BTreeMap<Arc<str>, Vec<IpAddr>> {
    let of_pods = index.pods().filter_map(|pod| pod.node.as_ref());
    let names: BTreeSet<_> = asked.iter().chain(of_pods).cloned().collect();
    let mut or_free = |name: Arc<str>| match index.addresses_of_node(&name) {
        known if known.is_empty() => {
            (name, vec![free(NODES4.into(), taken), free(NODES6.into(), taken)])
        }
        known => (name, known),
    };
    names.into_iter().map(&mut or_free).collect()
}

/// The next unused address from `first` on; it is in `taken` from then on.
fn free(first: IpAddr, taken: &mut BTreeSet<IpAddr>) -> IpAddr {
    let mut address = first;
    while !taken.insert(address) {
        address = next(address);
    }
    address
}

fn next(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(v4) => Ipv4Addr::from_bits(v4.to_bits().wrapping_add(1)).into(),
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits().wrapping_add(1)).into(),
    }
}

fn subnets(
    pods: &BTreeMap<ObjectKey, Vec<IpAddr>>,
    outside: &BTreeSet<IpAddr>,
    taken: &mut BTreeSet<IpAddr>,
) -> Vec<Subnet> {
    let addresses = pods.values().flatten().copied().collect::<Vec<_>>();
    let mut subnets = Vec::new();
    for family in [true, false] {
        let of = |address: &&IpAddr| address.is_ipv4() == family;
        let inside = addresses.iter().filter(of).copied().collect::<Vec<_>>();
        let is_free = |net: &IpNet| {
            let special = |address: &IpAddr| {
                *address == net.network() || (family && *address == net.broadcast())
            };
            !inside.iter().chain(outside).any(special)
        };
        let mut length = if family { SUBNET4 } else { SUBNET6 };
        let nets = loop {
            let nets =
                inside.iter().map(|address| around(*address, length)).collect::<BTreeSet<_>>();
            if length == 0 || nets.iter().all(is_free) {
                break nets;
            }
            length -= 1;
        };
        subnets.extend(
            nets.into_iter().map(|net| Subnet { net, gateway: free(next(net.network()), taken) }),
        );
    }
    subnets
}

/// The subnet of that prefix length around an address.
fn around(address: IpAddr, length: u8) -> IpNet {
    IpNet::new_assert(address, length).trunc()
}

#[cfg(test)]
mod tests {
    use super::*;
    use podgate_policy::model::{Pod, PodLife};
    use podgate_policy::object::Event;

    fn pod(name: &str, addresses: &[&str]) -> Pod {
        Pod {
            key: ObjectKey::new("a", name),
            uid: "".into(),
            created: 0,
            labels: Default::default(),
            addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
            ports: Arc::default(),
            life: PodLife::Live,
            host_network: false,
            node: None,
            host_addresses: Vec::new(),
            annotated_limits: None,
        }
    }

    fn plan(pods: Vec<Pod>, mentioned: &[&str]) -> Plan {
        let mut index = Index::new();
        for pod in pods {
            index.apply(Event::from(pod));
        }
        let mentioned = mentioned.iter().map(|a| a.parse().unwrap()).collect();
        Plan::new(&index, &mentioned, &BTreeSet::new())
    }

    fn of<'a>(plan: &'a Plan, name: &str) -> &'a [IpAddr] {
        plan.pods.get(&ObjectKey::new("a", name)).map_or(&[], Vec::as_slice)
    }

    #[test]
    fn given_addresses_stay_and_nobody_collides() {
        let plan = plan(
            vec![pod("p", &["10.88.0.1"]), pod("q", &["10.88.0.2"]), pod("r", &[]), pod("s", &[])],
            &["10.88.0.4"],
        );
        assert_eq!(of(&plan, "p"), ["10.88.0.1".parse::<IpAddr>().unwrap()]);
        assert_eq!(of(&plan, "r"), ["10.88.0.3".parse::<IpAddr>().unwrap()]);
        assert_eq!(of(&plan, "s"), ["10.88.0.5".parse::<IpAddr>().unwrap()]);
        let subnet = plan.subnet_of("10.88.0.1".parse().unwrap()).unwrap();
        assert_eq!(subnet.net, "10.88.0.0/16".parse().unwrap());
        assert_eq!(subnet.gateway, "10.88.0.6".parse::<IpAddr>().unwrap());
    }

    #[test]
    fn a_dual_stack_world_gives_both_and_subnets_hold_every_pod() {
        let plan = plan(
            vec![pod("p", &["10.1.255.255", "fd00::"]), pod("q", &[]), pod("r", &["172.16.0.9"])],
            &[],
        );
        assert_eq!(of(&plan, "q").len(), 2);
        for address in plan.pods.values().flatten() {
            let subnet = plan.subnet_of(*address).unwrap();
            assert_ne!(*address, subnet.gateway);
            assert_ne!(*address, subnet.net.network());
            assert!(
                address.is_ipv6() || *address != subnet.net.broadcast(),
                "{address} {subnet:?}"
            );
        }
    }

    #[test]
    fn pods_without_a_network() {
        let mut host = pod("host", &["10.0.0.1"]);
        host.host_network = true;
        let mut finished = pod("finished", &["10.88.0.7"]);
        finished.life = PodLife::Finished;
        let mut leaving = pod("leaving", &["10.88.0.8"]);
        leaving.life = PodLife::Terminating;
        let heir = pod("heir", &["10.88.0.8"]);
        let plan = plan(vec![host, finished, leaving, heir], &[]);
        assert_eq!(plan.pods.len(), 1);
        assert_eq!(of(&plan, "heir").len(), 1);
    }
}
