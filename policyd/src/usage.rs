//! What accounted pods exchange with whom, for the API and metrics. Read from the kernel at each request.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fmt;

use podgate_bpf::abi::{Account, AccountKey};
use podgate_contract::api::{Direction, OtherUsage, PodUsage, Scope, ScopeTraffic, Usage};
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::counter::ConstCounter;

use crate::encode;
use crate::metrics::families::*;
use crate::snapshot::NodeState;

/// The name of all pods together that have no samples of their own.
const OTHER: &str = "other";

/// What was exchanged, by scope and direction.
type Traffic = BTreeMap<(Scope, Direction), Account>;

/// Of every accounted pod of this node, the one with the most bytes first.
pub(crate) fn read(shared: &NodeState) -> podgate_bpf::Result<Vec<PodUsage>> {
    let snapshot = shared.snapshot();
    let endpoints = snapshot.endpoints.values();
    let names: BTreeMap<u32, String> =
        endpoints.map(|endpoint| (endpoint.registration.owner, endpoint.name())).collect();
    Ok(by_pod(&names, shared.datapath.maps.limits().accounts()?))
}

/// `names`: of pods, by the numbers of their interfaces' registrations. Accounts of others are of pods that are gone.
fn by_pod(
    names: &BTreeMap<u32, String>,
    accounts: impl IntoIterator<Item = (AccountKey, Account)>,
) -> Vec<PodUsage> {
    let mut pods: BTreeMap<&str, Traffic> = BTreeMap::new();
    for (key, account) in accounts {
        let Some(name) = names.get(&key.owner) else { continue };
        let traffic = pods.entry(name).or_default();
        // room for scopes that a later version may tell apart
        let Some((scope, direction)) = encode::account_of(&key) else { continue };
        add(traffic, (scope, direction), account);
    }
    let pod =
        |(pod, traffic): (&str, Traffic)| PodUsage { pod: pod.into(), traffic: rows(traffic) };
    let mut pods: Vec<PodUsage> = pods.into_iter().map(pod).collect();
    // of equals, by name
    pods.sort_by_key(|pod| Reverse(bytes(&pod.traffic)));
    pods
}

/// The first `most` pods, and the sum of the others.
pub(crate) fn top(mut pods: Vec<PodUsage>, most: usize) -> Usage {
    let rest = pods.split_off(most.min(pods.len()));
    let mut traffic = Traffic::new();
    for row in rest.iter().flat_map(|pod| &pod.traffic) {
        let ScopeTraffic { scope, direction, packets, bytes, flows } = *row;
        add(&mut traffic, (scope, direction), Account { packets, bytes, flows });
    }
    let other = OtherUsage { pods: rest.len(), traffic: rows(traffic) };
    Usage { pods, other: (!rest.is_empty()).then_some(other) }
}

fn add(traffic: &mut Traffic, of: (Scope, Direction), account: Account) {
    let sum = traffic.entry(of).or_insert(Account { packets: 0, bytes: 0, flows: 0 });
    sum.packets = sum.packets.wrapping_add(account.packets);
    sum.bytes = sum.bytes.wrapping_add(account.bytes);
    sum.flows = sum.flows.wrapping_add(account.flows);
}

fn rows(traffic: Traffic) -> Vec<ScopeTraffic> {
    let was_there = |(_, of): &(_, Account)| of.packets > 0 || of.flows > 0;
    let row = |((scope, direction), of): ((Scope, Direction), Account)| ScopeTraffic {
        scope,
        direction,
        packets: of.packets,
        bytes: of.bytes,
        flows: of.flows,
    };
    traffic.into_iter().filter(was_there).map(row).collect()
}

fn bytes(traffic: &[ScopeTraffic]) -> u64 {
    traffic.iter().map(|row| row.bytes).fold(0, u64::saturating_add)
}

/// Writes the metrics of the `most` pods with the most bytes, and of all others together.
pub(crate) fn encode(
    shared: &NodeState,
    most: usize,
    encoder: &mut DescriptorEncoder<'_>,
) -> fmt::Result {
    let pods = read(shared).map_err(|error| {
        tracing::error!(%error, "cannot read the accounts of pods");
        fmt::Error
    })?;
    let Usage { pods, other } = top(pods, most);
    let named = pods.iter().map(|pod| (pod.pod.as_str(), &pod.traffic));
    let other = other.iter().map(|other| (OTHER, &other.traffic));
    let rows: Vec<_> = named
        .chain(other)
        .flat_map(|(name, traffic)| traffic.iter().map(move |row| (labels(name, row), row)))
        .collect();
    let samples = |of: fn(&ScopeTraffic) -> u64| {
        rows.iter().map(move |(labels, row)| (labels.clone(), ConstCounter::new(of(row))))
    };
    POD_NETWORK_BYTES.samples(encoder, samples(|row| row.bytes))?;
    POD_NETWORK_PACKETS.samples(encoder, samples(|row| row.packets))?;
    POD_NETWORK_FLOWS.samples(encoder, samples(|row| row.flows))
}

/// In the order of the families. A name without a namespace is that of no pod.
fn labels(name: &str, row: &ScopeTraffic) -> [String; 4] {
    let (namespace, pod) = name.split_once('/').unwrap_or(("", name));
    let direction = match row.direction {
        Direction::Ingress => "receive",
        Direction::Egress => "transmit",
    };
    [namespace.to_owned(), pod.to_owned(), direction.to_owned(), row.scope.to_string()]
}

#[cfg(test)]
mod tests {
    use podgate_bpf::abi;

    use super::*;

    fn account(
        owner: u32,
        scope: abi::Scope,
        direction: abi::Direction,
        bytes: u64,
    ) -> (AccountKey, Account) {
        let (scope, direction) = (scope as u8, direction as u8);
        let account = Account { packets: bytes.div_ceil(100), bytes, flows: 1 };
        (AccountKey { owner, scope, direction, pad: [0; 2] }, account)
    }

    fn pods() -> Vec<PodUsage> {
        use abi::Direction::{Egress, Ingress};
        use abi::Scope::{External, SameNode};
        let names = [(1, "shop/web"), (2, "shop/web"), (3, "shop/db"), (4, "shop/idle")];
        let names = names.into_iter().map(|(owner, name)| (owner, name.to_owned())).collect();
        let unknown = (AccountKey { owner: 3, scope: 7, direction: 0, pad: [0; 2] }, {
            Account { packets: 9, bytes: 9, flows: 9 }
        });
        by_pod(
            &names,
            [
                account(1, External, Egress, 1000),
                account(2, External, Egress, 500),
                account(1, SameNode, Ingress, 300),
                account(3, External, Egress, 2000),
                account(3, SameNode, Egress, 0),
                (account(4, External, Egress, 0).0, Account { packets: 0, bytes: 0, flows: 0 }),
                // gone
                account(9, External, Egress, 9000),
                unknown,
            ],
        )
    }

    fn row(scope: Scope, direction: Direction, bytes: u64, flows: u64) -> ScopeTraffic {
        ScopeTraffic { scope, direction, packets: bytes.div_ceil(100), bytes, flows }
    }

    #[test]
    fn interfaces_of_a_pod_are_one_and_those_of_pods_that_are_gone_none() {
        use Direction::{Egress, Ingress};
        let pods = pods();
        let names: Vec<_> = pods.iter().map(|pod| &*pod.pod).collect();
        assert_eq!(names, ["shop/db", "shop/web", "shop/idle"]);
        let web = [row(Scope::SameNode, Ingress, 300, 1), row(Scope::External, Egress, 1500, 2)];
        assert_eq!(pods[1].traffic, web);
        assert_eq!(pods[2].traffic, []);
    }

    #[test]
    fn those_that_are_left_out_are_summed_up() {
        use Direction::{Egress, Ingress};
        let usage = top(pods(), 1);
        assert_eq!(usage.pods.len(), 1);
        let web =
            vec![row(Scope::SameNode, Ingress, 300, 1), row(Scope::External, Egress, 1500, 2)];
        assert_eq!(usage.other, Some(OtherUsage { pods: 2, traffic: web }));
        assert_eq!(top(pods(), 3).other, None);
        assert_eq!(top(pods(), 0).other.unwrap().pods, 3);
    }

    #[test]
    fn labels_name_a_pod_or_none() {
        let received = row(Scope::OtherZone, Direction::Ingress, 1, 0);
        assert_eq!(labels("shop/web", &received), ["shop", "web", "receive", "other-zone"]);
        assert_eq!(labels(OTHER, &received), ["", "other", "receive", "other-zone"]);
    }
}
