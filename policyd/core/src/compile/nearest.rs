//! Of a denied packet: the rule that comes closest to allowing it, and on what it fails. For people only.

use podgate_contract::api::{FailedOn, NearestRule};

use super::Engine;
use super::classes::Atom;
use super::governing::{Governing, InForce, numbered_ports};
use super::ids::PeerSetId;
use crate::model::{Action, Direction, LocalAction, NamedPort, Peers};
use crate::tables::{Class, EndpointId, PortMatch, Transport};

impl Engine {
    /// Of the rules in force that allow something in this direction the one that fails on the least: one that matches but
    /// comes after what denies, one that fails on the port, one that fails on the peer. Of several the first in their
    /// order. `None` if no rule allows anything.
    pub(crate) fn nearest(
        &self,
        endpoint: EndpointId,
        direction: Direction,
        class: Class,
        transport: Transport,
    ) -> Option<NearestRule> {
        let local = self.endpoints.get(endpoint)?;
        let pod_ports = local.pod.as_ref().map_or_else(Default::default, |pod| pod.ports.clone());
        let atoms = self.classes.atoms(class);
        let in_force = local.policies.iter().filter(|policy| !policy.is_audited());
        let in_force = in_force.filter_map(|policy| self.in_force.get(&policy.addr()));
        let candidates = in_force.flat_map(|of| allowing(of, direction, atoms, &pod_ports));
        let rank =
            |rule: &Candidate| match (rule.peer, rule.ports.iter().any(|of| of.matches(transport)))
            {
                (true, true) => FailedOn::Order,
                (true, false) => FailedOn::Port,
                (false, true) => FailedOn::Peer,
                (false, false) => FailedOn::Both,
            };
        let best = candidates.min_by_key(rank)?;
        Some(NearestRule { failed_on: rank(&best), allows: describe(&best.ports), rule: best.name })
    }
}

/// A rule that allows something.
struct Candidate {
    name: String,
    /// Whether the packet's peer is one of its peers.
    peer: bool,
    /// For this peer, as far as named ports depend on it.
    ports: Vec<PortMatch>,
}

/// The rules of a policy that allow something in this direction.
fn allowing(
    in_force: &InForce,
    direction: Direction,
    atoms: &[Atom],
    pod_ports: &[NamedPort],
) -> Vec<Candidate> {
    let policy = &in_force.policy;
    let accepts = |index: usize| match policy {
        Governing::Namespaced(_) => true,
        Governing::Cluster(policy) => {
            policy.rules(direction).get(index).is_some_and(|rule| rule.action == Action::Accept)
        }
        Governing::Local(local) => {
            let rule = local.rules(direction).nth(index);
            rule.is_some_and(|rule| rule.action == LocalAction::Allow)
        }
        Governing::NodeDefaults(_) => false,
    };
    let has = |id: PeerSetId| atoms.iter().filter(move |atom| atom.peer_set == id);
    let rules = policy.rules(direction).into_iter().zip(policy.origins(direction)).enumerate();
    let rules = rules.filter(|(index, _)| accepts(*index));
    let candidates = rules.map(|(index, ((peers, ports), origin))| {
        let mut ports = numbered_ports(direction, ports, pod_ports);
        let mut peer = *peers == Peers::Any;
        let of_rule = in_force.peer_sets.iter();
        let of_rule = of_rule.filter(|(of, _)| (of.direction, of.index) == (direction, index));
        for (of, id) in of_rule {
            peer |= has(*id).next().is_some();
            if let Some((protocol, _)) = &of.peer_set.port {
                ports.extend(has(*id).map(|atom| PortMatch::one(*protocol, atom.number)));
            }
        }
        Candidate { name: origin.to_string(), peer, ports }
    });
    candidates.collect()
}

/// `80/TCP, 8000-8080/TCP`.
fn describe(ports: &[PortMatch]) -> String {
    if ports.is_empty() {
        return "no port of this peer".to_owned();
    }
    let each = ports.iter().map(|ports| match ports {
        PortMatch::Everything => "every port".to_owned(),
        ports => ports.to_string(),
    });
    each.collect::<Vec<_>>().join(", ")
}
