//! What would have been denied: a summary of the events of policies that are only audited, and of a node in audit mode.
//!
//! It is bounded, and lives as long as the process. An event that the kernel held back or lost is not in it; how many
//! there were is kept beside it.

mod naming;
mod recent;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use podgate_bpf::abi::Reason;
use podgate_policy::index::Index;
use podgate_policy::model::{
    ClusterPolicyId, Direction, Labels, PolicyId, PolicyMode, PolicySettings, Tier,
};
use podgate_policy::tables::RuleOrigin;

pub(crate) use naming::is_audited;
pub(crate) use recent::Ends;
use recent::Recent;

/// The most pairs that are listed; flows of others are counted together.
const ROWS: usize = 4096;

/// The most policies of which flows are counted, those that are gone included.
const POLICIES: usize = 4096;

/// Which flows are counted together.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Pair {
    /// `namespace/pod`, or the host veth of a container that is no pod.
    pub(crate) pod: String,
    /// Of the flow, seen from the pod.
    pub(crate) direction: Direction,
    /// The other end.
    pub(crate) peer: Peer,
    /// `TCP`, `UDP`, `SCTP`, `ICMP`, `ICMPv6` or a number.
    pub(crate) protocol: String,
    /// The destination's; 0 without ports.
    pub(crate) port: u16,
    /// Why they would have been denied, as in the metrics.
    pub(crate) reason: &'static str,
    /// The rule that would have denied them, if one would.
    pub(crate) rule: Option<Arc<RuleOrigin>>,
    /// The policies by which.
    pub(crate) policies: Vec<PolicyName>,
}

impl Pair {
    /// Whether a NetworkPolicy could allow them: what denies them is one, or is evaluated after those.
    pub(crate) fn is_allowable(&self) -> bool {
        match self.rule.as_deref() {
            None => self.reason == Reason::DenyPolicy.name(),
            Some(RuleOrigin::Cluster { tier, .. }) => *tier == Tier::Baseline,
            Some(RuleOrigin::Policy { .. } | RuleOrigin::Isolated { .. }) => true,
            Some(RuleOrigin::LocalDefault { .. }) => true,
            Some(RuleOrigin::Local { .. } | RuleOrigin::NotIsolated(_)) => false,
        }
    }
}

/// The other end of a flow.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Peer {
    /// `namespace/pod`.
    Pod(String),
    /// What is no pod that policyd knows.
    Address(IpAddr),
}

/// A NetworkPolicy, or without namespace a ClusterNetworkPolicy.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct PolicyName {
    /// Its namespace; empty of a ClusterNetworkPolicy.
    pub(crate) namespace: Arc<str>,
    /// Its name.
    pub(crate) name: Arc<str>,
}

impl std::fmt::Display for PolicyName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &*self.namespace {
            "" => f.write_str(&self.name),
            namespace => write!(f, "{namespace}/{}", self.name),
        }
    }
}

impl PolicyName {
    /// The policy of a rule, if it has one.
    pub(crate) fn of(rule: &RuleOrigin) -> Option<Self> {
        match rule {
            RuleOrigin::NotIsolated(_)
            | RuleOrigin::Local { .. }
            | RuleOrigin::LocalDefault { .. } => None,
            RuleOrigin::Policy { policy, .. } | RuleOrigin::Isolated { policy, .. } => {
                Some(Self::namespaced(policy))
            }
            RuleOrigin::Cluster { policy, .. } => Some(Self::cluster(policy)),
        }
    }

    pub(crate) fn namespaced(id: &PolicyId) -> Self {
        Self { namespace: id.key.namespace.clone(), name: id.key.name.clone() }
    }

    pub(crate) fn cluster(id: &ClusterPolicyId) -> Self {
        Self { namespace: "".into(), name: id.name.clone() }
    }
}

/// The policies that are audited, of both kinds; one name of two sources counts once.
pub(crate) fn audited_policies(index: &Index) -> BTreeSet<PolicyName> {
    let audited = |settings: &PolicySettings| settings.mode == PolicyMode::Audit;
    let namespaced = index.policies().filter(|policy| audited(&policy.settings));
    let cluster = index.cluster_policies().filter(|policy| audited(&policy.settings));
    let namespaced = namespaced.map(|policy| PolicyName::namespaced(&policy.id));
    namespaced.chain(cluster.map(|policy| PolicyName::cluster(&policy.id))).collect()
}

/// A new flow, with names.
#[derive(Clone, Debug)]
pub(crate) struct Named {
    /// With which flows it is counted.
    pub(crate) pair: Pair,
    /// The pod's labels.
    pub(crate) pod_labels: Labels,
    /// The peer's, if it is a pod.
    pub(crate) peer_labels: Labels,
    /// The peer's address.
    pub(crate) peer_address: IpAddr,
}

/// The flows of one pair.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    /// What the first of them was.
    pub(crate) named: Named,
    /// When the first was heard of, in seconds since 1970.
    pub(crate) first: f64,
    /// When the last was.
    pub(crate) last: f64,
    /// How many.
    pub(crate) flows: u64,
}

/// All pairs.
#[derive(Clone, Debug)]
pub(crate) struct Listing {
    /// Since when, in seconds since 1970.
    pub(crate) since: f64,
    /// The kernel's number of lost events at that time.
    pub(crate) lost_before: u64,
    /// The pairs, in the order in which they came.
    pub(crate) rows: Vec<Row>,
    /// Flows of pairs for which there was no room.
    pub(crate) unlisted: u64,
}

/// The summary, shared by the thread that reads events and by those that answer.
#[derive(Debug, Default)]
pub struct AuditSummary(Mutex<Summary>);

#[derive(Debug, Default)]
struct Summary {
    since: f64,
    lost_before: u64,
    rows: Vec<Row>,
    places: HashMap<Pair, usize>,
    recent: Recent,
    unlisted: u64,
    /// New flows by policy since the process began. [`AuditSummary::begin`] leaves them: they are a metric.
    by_policy: BTreeMap<PolicyName, u64>,
}

impl AuditSummary {
    fn lock(&self) -> MutexGuard<'_, Summary> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets all pairs and begins anew at this time, at which the kernel has lost so many events.
    pub(crate) fn begin(&self, now: f64, lost: u64) {
        let mut summary = self.lock();
        let by_policy = std::mem::take(&mut summary.by_policy);
        *summary = Summary { since: now, lost_before: lost, by_policy, ..Summary::default() };
    }

    /// Counts an event. `name` is asked for a new flow only.
    pub(crate) fn heard(&self, ends: Ends, now: f64, name: impl FnOnce() -> Named) {
        if let Some(row) = self.lock().goes_on(&ends, now) {
            tracing::trace!(?row, "a packet of an audited flow that is known");
            return;
        }
        // not under the lock: it looks into the index, for which the writer may be waited
        let named = name();
        self.lock().begins(ends, now, named);
    }

    /// All pairs.
    pub(crate) fn listing(&self) -> Listing {
        let summary = self.lock();
        Listing {
            since: summary.since,
            lost_before: summary.lost_before,
            rows: summary.rows.clone(),
            unlisted: summary.unlisted,
        }
    }

    /// New flows since the process began, by policy.
    pub(crate) fn flows_by_policy(&self) -> BTreeMap<PolicyName, u64> {
        self.lock().by_policy.clone()
    }
}

impl Summary {
    fn goes_on(&mut self, ends: &Ends, now: f64) -> Option<Option<usize>> {
        let row = self.recent.goes_on(ends, now)?;
        if let Some(row) = row.and_then(|place| self.rows.get_mut(place)) {
            row.last = row.last.max(now);
        }
        Some(row)
    }

    fn begins(&mut self, ends: Ends, now: f64, named: Named) {
        for policy in &named.pair.policies {
            let is_full = self.by_policy.len() >= POLICIES;
            if let Some(flows) = self.by_policy.get_mut(policy) {
                *flows += 1;
            } else if !is_full {
                self.by_policy.insert(policy.clone(), 1);
            }
        }
        let place = self.count(now, named);
        self.recent.remember(ends, place, now);
    }

    /// Counts a new flow of a pair, and says in which row.
    fn count(&mut self, now: f64, named: Named) -> Option<usize> {
        if let Some(place) = self.places.get(&named.pair).copied() {
            let row = self.rows.get_mut(place)?;
            row.flows += 1;
            row.last = row.last.max(now);
            return Some(place);
        }
        if self.rows.len() >= ROWS {
            self.unlisted += 1;
            return None;
        }
        let place = self.rows.len();
        self.places.insert(named.pair.clone(), place);
        self.rows.push(Row { named, first: now, last: now, flows: 1 });
        Some(place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use podgate_policy::model::{ObjectKey, PolicyId};

    fn ends(peer: u32, port: u16) -> Ends {
        let address = |number: u32| IpAddr::from(number.to_be_bytes());
        Ends { owner: 7, protocol: 6, pod: (address(1), 80), peer: (address(peer), port) }
    }

    fn named(peer: u32) -> Named {
        let key = ObjectKey::new("shop", "deny");
        let policy = PolicyId { source: "dir".into(), key };
        let rule = RuleOrigin::Isolated { policy, direction: Direction::Ingress };
        let peer_address = ends(peer, 0).peer.0;
        let pair = Pair {
            pod: "shop/db".into(),
            direction: Direction::Ingress,
            peer: Peer::Address(peer_address),
            protocol: "TCP".into(),
            port: 80,
            reason: "policy",
            policies: PolicyName::of(&rule).into_iter().collect(),
            rule: Some(Arc::new(rule)),
        };
        Named { pair, pod_labels: Labels::new(), peer_labels: Labels::new(), peer_address }
    }

    #[test]
    fn flows_of_a_pair_are_one_row() {
        let summary = AuditSummary::default();
        summary.begin(100.0, 3);
        for (port, now) in [(1000, 101.0), (1001, 102.0), (1002, 104.0)] {
            summary.heard(ends(9, port), now, || named(9));
        }
        summary.heard(ends(8, 1000), 103.0, || named(8));
        let listing = summary.listing();
        assert_eq!((listing.since, listing.lost_before, listing.unlisted), (100.0, 3, 0));
        let rows: Vec<_> =
            listing.rows.iter().map(|row| (row.first, row.last, row.flows)).collect();
        assert_eq!(rows, [(101.0, 104.0, 3), (103.0, 103.0, 1)]);
    }

    #[test]
    fn later_packets_and_answers_are_of_the_same_flow_until_a_pause() {
        let summary = AuditSummary::default();
        summary.heard(ends(9, 1000), 1.0, || named(9));
        for now in [2.0, 100.0, 200.0] {
            summary.heard(ends(9, 1000), now, || unreachable!("it is known"));
        }
        let [row] = summary.listing().rows.try_into().unwrap();
        assert_eq!((row.first, row.last, row.flows), (1.0, 200.0, 1));
        summary.heard(ends(9, 1000), 321.0, || named(9));
        assert_eq!(summary.listing().rows[0].flows, 2);
    }

    #[test]
    fn memory_is_bounded_and_what_has_no_row_is_counted() {
        let summary = AuditSummary::default();
        let flows = 5 * ROWS as u32;
        for peer in 0..flows {
            summary.heard(ends(peer, 1), 1.0, || named(peer));
        }
        let listing = summary.listing();
        assert_eq!(listing.rows.len(), ROWS);
        assert_eq!(listing.unlisted, u64::from(flows) - ROWS as u64);
        assert!(summary.lock().recent.len() <= Recent::MOST);
        assert_eq!(summary.lock().places.len(), ROWS);
        // one that has a row goes on being counted in it
        summary.heard(ends(0, 2), 2.0, || named(0));
        assert_eq!(summary.listing().rows[0].flows, 2);
        let by_policy = summary.flows_by_policy();
        let counted: Vec<_> =
            by_policy.iter().map(|(of, flows)| (of.to_string(), *flows)).collect();
        assert_eq!(counted, [("shop/deny".to_owned(), u64::from(flows) + 1)]);
    }

    #[test]
    fn a_new_beginning_forgets_pairs_and_keeps_what_the_metrics_count() {
        let summary = AuditSummary::default();
        summary.heard(ends(9, 1000), 1.0, || named(9));
        summary.begin(5.0, 17);
        let listing = summary.listing();
        assert_eq!((listing.since, listing.lost_before, listing.rows.len()), (5.0, 17, 0));
        assert_eq!(summary.flows_by_policy().into_values().collect::<Vec<_>>(), [1]);
        summary.heard(ends(9, 1000), 6.0, || named(9));
        assert_eq!(summary.listing().rows[0].flows, 1);
    }
}
