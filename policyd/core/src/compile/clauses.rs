//! What one policy says in the programs that ranked rules govern: its rules as clauses. They are made once and shared by the
//! programs of all endpoints that the policy governs.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::governing::{Governing, InForce, numbered_ports};
use super::ids::PeerSetId;
use super::program::RulePorts;
use super::resolve::Stage;
use crate::model::{Action, Direction, LocalAction, NamedPort, Peers, Tier};
use crate::tables::{Decision, Effect, RuleId};

/// Both directions, in the order of a table's entries.
pub(super) const DIRECTIONS: [Direction; 2] = [Direction::Ingress, Direction::Egress];

/// The number of a clause. Never reused: two clauses with one number are the same one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct ClauseId(u64);

/// Numbers the clauses of an engine.
#[derive(Debug, Default)]
pub(super) struct ClauseIds(u64);

impl ClauseIds {
    fn next(&mut self) -> ClauseId {
        self.0 += 1;
        ClauseId(self.0)
    }
}

/// One rule, for the peers of one peer set or for every peer.
#[derive(Debug)]
pub(super) struct Clause {
    pub(super) id: ClauseId,
    /// `None`: every peer.
    pub(super) peer_set: Option<PeerSetId>,
    pub(super) direction: Direction,
    pub(super) action: Action,
    pub(super) decision: Decision,
    pub(super) ports: RulePorts,
}

/// What a policy says of the traffic of pods with certain named ports.
#[derive(Debug)]
pub(super) struct PolicyClauses {
    pub(super) stage: Stage,
    pub(super) audited: bool,
    /// In the order of their evaluation.
    pub(super) clauses: Vec<Clause>,
    /// Where it isolates: what becomes of what no policy allows.
    pub(super) isolated: BTreeMap<Direction, Decision>,
    /// What becomes of what nothing speaks of, where it says so.
    pub(super) defaults: BTreeMap<Direction, Decision>,
    /// The first of its rules that denies anybody.
    pub(super) denying: BTreeMap<Direction, RuleId>,
}

impl InForce {
    /// What it says of a pod with these ports.
    pub(super) fn clauses(
        &mut self,
        pod_ports: &[NamedPort],
        ids: &mut ClauseIds,
    ) -> Arc<PolicyClauses> {
        let own = pod_ports.iter().filter(|port| self.asks_for(port));
        let known = self.clauses.iter().find(|(ports, _)| own.clone().eq(ports));
        if let Some((_, clauses)) = known {
            return clauses.clone();
        }
        let own: Vec<NamedPort> = own.cloned().collect();
        let clauses = Arc::new(PolicyClauses::new(self, &own, ids));
        self.clauses.push((own, clauses.clone()));
        clauses
    }
}

impl PolicyClauses {
    fn new(in_force: &InForce, pod_ports: &[NamedPort], ids: &mut ClauseIds) -> Self {
        let policy = &in_force.policy;
        let log = policy.is_logged();
        let (mut clauses, mut denying) = (Vec::new(), BTreeMap::new());
        for direction in DIRECTIONS {
            let of_rules = in_force.peer_sets.iter().filter(|(of, _)| of.direction == direction);
            let mut peer_sets: BTreeMap<usize, Vec<_>> = BTreeMap::new();
            for (peers, id) in of_rules {
                peer_sets.entry(peers.index).or_default().push((&peers.peer_set, *id));
            }
            for (index, (peers, ports)) in policy.rules(direction).into_iter().enumerate() {
                let Some(rule) = in_force.rules.get(&(direction, index)).copied() else { continue };
                let (action, effect) = action_of(policy, direction, index);
                let decision = Decision { effect, rule, log };
                if !effect.passes() {
                    denying.entry(direction).or_insert(rule);
                }
                let mut add = |peer_set, ports| {
                    let id = ids.next();
                    clauses.push(Clause { id, peer_set, direction, action, decision, ports });
                };
                let numbered =
                    || RulePorts::Ports(numbered_ports(direction, ports, pod_ports).into());
                if *peers == Peers::Any {
                    add(None, numbered());
                }
                for (peer_set, id) in peer_sets.get(&index).into_iter().flatten() {
                    let ports = match &peer_set.port {
                        Some((protocol, _)) => RulePorts::Named(*protocol),
                        None => numbered(),
                    };
                    add(Some(*id), ports);
                }
            }
        }
        let isolated = in_force.isolated.iter();
        let isolated = isolated
            .map(|(of, rule)| (*of, Decision { effect: policy.denial(), rule: *rule, log }));
        let defaults = in_force.defaults.iter();
        let defaults = defaults.map(|(of, (action, rule))| {
            (*of, Decision { effect: effect_of(*action), rule: *rule, log })
        });
        Self {
            stage: stage_of(policy),
            audited: policy.is_audited(),
            clauses,
            isolated: isolated.collect(),
            defaults: defaults.collect(),
            denying,
        }
    }
}

fn stage_of(policy: &Governing) -> Stage {
    match policy {
        // the node's defaults have no rules
        Governing::Local(_) | Governing::NodeDefaults(_) => Stage::Local,
        Governing::Namespaced(_) => Stage::NetworkPolicy,
        Governing::Cluster(policy) => match policy.tier {
            Tier::Admin => Stage::Admin,
            Tier::Baseline => Stage::Baseline,
        },
    }
}

/// What a rule does. One that does not exist denies.
fn action_of(policy: &Governing, direction: Direction, index: usize) -> (Action, Effect) {
    let action = match policy {
        Governing::Namespaced(_) => Some(Action::Accept),
        Governing::Cluster(policy) => policy.rules(direction).get(index).map(|rule| rule.action),
        Governing::Local(local) => {
            let rule = local.rules(direction).nth(index);
            return match rule.map(|rule| rule.action) {
                Some(LocalAction::Allow) => (Action::Accept, Effect::Allow),
                Some(action) => (Action::Deny, effect_of(action)),
                None => (Action::Deny, Effect::Deny),
            };
        }
        Governing::NodeDefaults(_) => None,
    };
    match action.unwrap_or(Action::Deny) {
        Action::Deny => (Action::Deny, policy.denial()),
        action => (action, Effect::Allow),
    }
}

fn effect_of(action: LocalAction) -> Effect {
    match action {
        LocalAction::Allow => Effect::Allow,
        LocalAction::Deny => Effect::Deny,
        LocalAction::Reject => Effect::Reject,
    }
}
