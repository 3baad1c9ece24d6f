//! Who is meant by a target, and at which addresses.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::{Family, Field, Question, Reach, Target, Unanswerable};
use crate::index::{Index, NodeRef};
use crate::model::{ObjectKey, Pod, PodLife};
use crate::tables::Endpoint;

/// One end of a packet, once the cluster is known.
pub(super) struct Party {
    pub(super) place: Place,
    /// Every address of a pod, one of each family of a node; only of the families that are asked about.
    pub(super) addresses: Vec<IpAddr>,
}

/// What is at an address.
pub(super) enum Place {
    /// A pod with a network of its own.
    Pod(ObjectKey),
    Node(NodeRef),
    External,
}

impl Party {
    pub(super) fn of_family(&self, family: Family) -> impl Iterator<Item = IpAddr> + '_ {
        self.addresses.iter().copied().filter(move |address| Family::of(*address) == family)
    }

    fn only(mut self, family: Option<Family>) -> Self {
        self.addresses.retain(|address| family.is_none_or(|family| Family::of(*address) == family));
        self
    }
}

impl Reach<'_> {
    pub(super) fn source(&self, question: &Question) -> Result<Party, Unanswerable> {
        self.party(&question.from, question, Field::From)
    }

    pub(super) fn destination(&self, question: &Question) -> Result<Party, Unanswerable> {
        self.party(&question.to, question, Field::To)
    }

    fn party(
        &self,
        target: &Target,
        question: &Question,
        field: Field,
    ) -> Result<Party, Unanswerable> {
        let party = match target {
            Target::Pod(key) => self.pod(key),
            Target::Address(address) => Ok(self.party_at(*address)),
            Target::Node(name) => {
                let node = NodeRef(Some(name.clone()));
                self.node(node).ok_or_else(|| format!("no address of node {name} is known"))
            }
            Target::Service(key) => {
                Err(format!("svc:{key} is a service: it sends nothing itself, ask about its pods"))
            }
        };
        let party = party.map_err(|cause| Unanswerable::new(field, cause))?;
        Ok(party.only(question.family))
    }

    /// What is at an address, and that address. The interfaces of this node come before what a source says.
    pub(super) fn party_at(&self, address: IpAddr) -> Party {
        let local = self.engine.endpoints_at(address).find_map(|endpoint| endpoint.pod.clone());
        let owner = || self.index.owner_of(address).map(|pod| pod.key.clone());
        let place = match local.or_else(owner) {
            Some(pod) => Place::Pod(pod),
            None => self.topology.node_at(address).map_or(Place::External, Place::Node),
        };
        Party { place, addresses: vec![address] }
    }

    fn pod(&self, key: &ObjectKey) -> Result<Party, String> {
        let local = self.local_endpoints(key);
        let local: BTreeSet<_> = local.flat_map(|endpoint| &endpoint.addresses).copied().collect();
        if !local.is_empty() {
            let addresses = local.into_iter().collect();
            return Ok(Party { place: Place::Pod(key.clone()), addresses });
        }
        let pod = self.index.pod(key).ok_or_else(|| format!("no pod {key} is known"))?;
        if pod.host_network {
            let node = NodeRef(pod.node.clone());
            let own = Party {
                place: Place::Node(node.clone()),
                addresses: first_of_each(&pod.addresses),
            };
            let party = if own.addresses.is_empty() { self.node(node) } else { Some(own) };
            return party.ok_or_else(|| format!("pod {key} has no address yet"));
        }
        let is_own =
            |address: &&IpAddr| self.index.owner_of(**address).is_some_and(|of| of.key == *key);
        let addresses: Vec<_> = pod.addresses.iter().filter(is_own).copied().collect();
        match (addresses.is_empty(), absence(self.index, pod)) {
            (false, None) => Ok(Party { place: Place::Pod(key.clone()), addresses }),
            (_, Some(why)) => Err(format!("pod {key} {why}: it can neither send nor receive")),
            (true, None) => Err(format!("pod {key} has no address yet")),
        }
    }

    fn node(&self, node: NodeRef) -> Option<Party> {
        let addresses = first_of_each(&self.topology.addresses_of_node(&node));
        (!addresses.is_empty()).then_some(Party { place: Place::Node(node), addresses })
    }

    /// The endpoints of a pod on this node whose policy is known.
    pub(super) fn local_endpoints(&self, pod: &ObjectKey) -> impl Iterator<Item = &Endpoint> {
        let tables = &self.engine.compiled().tables;
        self.engine.endpoints_of(pod).filter(|endpoint| tables.contains_key(&endpoint.id))
    }
}

/// Why a pod has no network of its own; `None`: it has one, or is to get one.
pub fn absence(index: &Index, pod: &Pod) -> Option<String> {
    if pod.host_network {
        return Some("uses its node's network".into());
    }
    if pod.life == PodLife::Finished {
        return Some("has finished".into());
    }
    let owners: Vec<_> =
        pod.addresses.iter().filter_map(|address| index.owner_of(*address)).collect();
    let other = owners.first().filter(|_| owners.iter().all(|owner| owner.key != pod.key))?;
    Some(format!("has lost its address to {}", other.key))
}

fn first_of_each(addresses: &[IpAddr]) -> Vec<IpAddr> {
    let first = |v4: bool| addresses.iter().find(|address| address.is_ipv4() == v4);
    [true, false].into_iter().filter_map(first).copied().collect()
}
