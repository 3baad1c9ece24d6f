//! From an event to a flow with names.

use podgate_bpf::abi;
use podgate_bpf::events::Event;
use podgate_policy::model::{Direction, Protocol};
use podgate_policy::tables::{EndpointId, RuleId, RuleOrigin};

use super::{AuditSummary, Ends, Named, Pair, Peer, PolicyName};
use crate::encode::direction_of;
use crate::events::{protocol, wall_clock};
use crate::pod_key::registered_pod;
use crate::snapshot::NodeState;

/// Whether the event says of a packet that it passed and would have been denied.
pub(crate) fn is_audited(event: &Event) -> bool {
    event.verdict != abi::Verdict::Deny && event.reason.is_denial()
}

impl AuditSummary {
    /// Counts an event, if it is one of these.
    pub(crate) fn take(&self, shared: &NodeState, event: &Event) {
        if !is_audited(event) {
            return;
        }
        let Event { owner, protocol, pod, peer, .. } = *event;
        let ends = Ends { owner, protocol, pod, peer };
        self.heard(ends, wall_clock(event.time), || name(shared, event));
    }
}

fn name(shared: &NodeState, event: &Event) -> Named {
    let snapshot = shared.snapshot();
    let endpoint = snapshot.endpoints.get(&EndpointId(event.ifindex));
    let direction = direction_of(event.direction);
    let rule = snapshot.origins.get(RuleId(event.rule));
    // without a rule it is what no rule of the isolating policies allows
    let table = endpoint.and_then(|endpoint| endpoint.table.as_ref());
    let isolating = table.map(|table| table.isolating(direction)).unwrap_or_default();
    let policies = match &rule {
        Some(rule) => PolicyName::of(rule).into_iter().collect(),
        None if event.reason == abi::Reason::DenyPolicy => {
            isolating.iter().map(PolicyName::namespaced).collect()
        }
        None => Vec::new(),
    };
    let index = shared.index();
    let labels = endpoint.and_then(|endpoint| {
        let pod = index.pod(&registered_pod(&endpoint.registration)?)?;
        Some(pod.labels.clone())
    });
    let (peer_address, peer_port) = event.peer;
    let owner = index.owner_of(peer_address).cloned();
    drop(index);
    let peer = match &owner {
        Some(pod) => Peer::Pod(pod.key.to_string()),
        None => Peer::Address(peer_address),
    };
    let port = match direction {
        // without ports the event has an echo's identifier in their place
        _ if Protocol::from_number(event.protocol).is_none() => 0,
        Direction::Ingress => event.pod.1,
        Direction::Egress => peer_port,
    };
    Named {
        pair: Pair {
            pod: snapshot.name_of(event.ifindex),
            direction,
            peer,
            protocol: protocol(event.protocol),
            port,
            reason: event.reason.name(),
            rule: rule.filter(|rule| !matches!(**rule, RuleOrigin::NotIsolated(_))),
            policies,
        },
        pod_labels: labels.unwrap_or_default(),
        peer_labels: owner.map(|pod| pod.labels.clone()).unwrap_or_default(),
        peer_address,
    }
}
