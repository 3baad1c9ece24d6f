//! Synthesizes what a control plane would add to services: cluster addresses and slices.
//!
//! Only for manifests on a disk, which no controllers complete: a service without addresses gets some, and a service
//! with a selector and no slices gets slices from the pods of the same manifests.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use super::stable_hash;
use crate::model::{
    Addressing, Condition, EndpointSlice, Labels, ObjectKey, Pod, PodLife, Service, SliceEndpoint,
    SlicePort, TargetPort,
};

/// Where service addresses come from: 10.96.0.0/16 and fd00:10:96::/112.
const RANGES: (Ipv4Addr, Ipv6Addr) =
    (Ipv4Addr::new(10, 96, 0, 0), Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, 0));
/// The first offset that is assigned: lower ones are likely to be written in manifests.
const FIRST_OFFSET: u32 = 256;
/// One more than the last offset that is assigned.
const END_OFFSET: u32 = 0xffff;

/// Gives every service of a cluster without a control plane its cluster addresses, and returns the slices that a
/// controller would have made.
///
/// A service's address follows from its name; only where two names lead to the same one does the first by name
/// push the other on. It is of the families that the service's pods have, IPv4 if it has no pods.
pub fn synthesize(
    services: &mut [&mut Service],
    slices: &[&EndpointSlice],
    pods: &[&Pod],
) -> Vec<EndpointSlice> {
    services.sort_unstable_by(|a, b| a.key.cmp(&b.key));
    let mut taken: BTreeSet<IpAddr> = BTreeSet::new();
    for service in services.iter() {
        taken.extend(service.addressing.cluster());
        taken.extend(service.external.iter().chain(&service.guarded));
    }
    taken.extend(pods.iter().flat_map(|pod| &pod.addresses));
    let sliced: BTreeSet<ObjectKey> =
        slices.iter().filter_map(|slice| slice.service_key()).collect();
    let mut names: BTreeSet<ObjectKey> = slices.iter().map(|slice| slice.key.clone()).collect();
    let mut derived = Vec::new();
    for service in services.iter_mut() {
        let members = members(service, pods);
        if service.addressing == Addressing::Unassigned {
            service.addressing = Addressing::Virtual(assign(&service.key, &members, &mut taken));
        }
        let translated = !service.addressing.cluster().is_empty();
        if translated && selects(service) && !sliced.contains(&service.key) {
            derived.extend(slices_for(service, &members, &mut names));
        }
    }
    derived
}

/// Whether a controller would make slices for it: an empty selector selects nothing.
fn selects(service: &Service) -> bool {
    service.selector.iter().len() > 0
}

/// The pods behind a service.
fn members<'a>(service: &Service, pods: &[&'a Pod]) -> Vec<&'a Pod> {
    let selected = |labels: &Labels| {
        selects(service)
            && service.selector.iter().all(|(key, value)| labels.get(key) == Some(value))
    };
    let mut members: Vec<&Pod> = pods
        .iter()
        .copied()
        .filter(|pod| pod.key.namespace == service.key.namespace)
        .filter(|pod| pod.life != PodLife::Finished && selected(&pod.labels))
        .collect();
    members.sort_unstable_by(|a, b| a.key.cmp(&b.key));
    members
}

fn assign(service: &ObjectKey, members: &[&Pod], taken: &mut BTreeSet<IpAddr>) -> Vec<IpAddr> {
    let has = |v4| members.iter().any(|pod| address(pod, v4).is_some());
    let (v4, v6) = (has(true) || !has(false), has(false));
    let (range4, range6) = (u32::from(RANGES.0), u128::from(RANGES.1));
    let at = |offset: u32| {
        let four = v4.then(|| IpAddr::V4((range4 + offset).into()));
        let six = v6.then(|| IpAddr::V6((range6 + u128::from(offset)).into()));
        four.into_iter().chain(six).collect::<Vec<_>>()
    };
    let first = stable_hash(&service.to_string()) % (END_OFFSET - FIRST_OFFSET);
    let offsets = (0..END_OFFSET - FIRST_OFFSET)
        .map(|step| FIRST_OFFSET + (first + step) % (END_OFFSET - FIRST_OFFSET));
    // sixty thousand services in one directory: the last ones then share an address, which is reported
    let free = offsets.map(at).find(|of| of.iter().all(|address| !taken.contains(address)));
    let addresses = free.unwrap_or_else(|| at(FIRST_OFFSET + first));
    taken.extend(&addresses);
    addresses
}

fn address(pod: &Pod, v4: bool) -> Option<IpAddr> {
    pod.addresses.iter().copied().find(|address| address.is_ipv4() == v4)
}

/// One slice for each family and each set of numbers that the pods give the service's ports.
fn slices_for(
    service: &Service,
    members: &[&Pod],
    names: &mut BTreeSet<ObjectKey>,
) -> Vec<EndpointSlice> {
    let mut groups: BTreeMap<(bool, Vec<SlicePort>), Vec<SliceEndpoint>> = BTreeMap::new();
    for pod in members {
        let ports = ports_at(service, pod);
        for v4 in [true, false] {
            let Some(address) = address(pod, v4) else { continue };
            let condition = match pod.life {
                PodLife::Live => Condition::Ready,
                PodLife::Terminating => Condition::Draining,
                PodLife::Finished => continue,
            };
            let hints = Arc::default();
            let endpoint = SliceEndpoint { address, condition, node: pod.node.clone(), hints };
            groups.entry((v4, ports.clone())).or_default().push(endpoint);
        }
    }
    let slice = |((_, ports), endpoints)| {
        let key = free_name(&service.key, names);
        EndpointSlice { key, service: Some(service.key.name.clone()), ports, endpoints }
    };
    groups.into_iter().map(slice).collect()
}

/// The service's ports with the numbers they have at this pod; without those whose name the pod does not have.
fn ports_at(service: &Service, pod: &Pod) -> Vec<SlicePort> {
    let number = |of: &crate::model::ServicePort| match &of.target {
        TargetPort::Number(number) => Some(*number),
        TargetPort::Name(name) => {
            let mut named = pod.ports.iter();
            named.find(|at| at.name == *name && at.protocol == of.protocol).map(|at| at.number)
        }
    };
    let mut ports: Vec<SlicePort> = service
        .ports
        .iter()
        .filter_map(|of| {
            let (name, protocol) = (of.name.clone(), of.protocol);
            Some(SlicePort { name, protocol, number: number(of)? })
        })
        .collect();
    ports.sort_unstable();
    ports
}

/// The first of `web-0`, `web-1`, ... that no slice has yet.
fn free_name(service: &ObjectKey, names: &mut BTreeSet<ObjectKey>) -> ObjectKey {
    let mut nth = 0usize;
    loop {
        let name: Arc<str> = format!("{}-{nth}", service.name).into();
        let key = ObjectKey::new(service.namespace.clone(), name);
        if names.insert(key.clone()) {
            return key;
        }
        nth += 1;
    }
}
