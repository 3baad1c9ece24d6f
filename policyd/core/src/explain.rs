//! Verdicts with their reasons, for people and for the API.

use std::net::IpAddr;

use podgate_contract::api::{NearestRule, Verdict};
use serde::Serialize;

use crate::compile::Engine;
use crate::model::{Direction, PolicyId};
use crate::tables::{Class, Effect, Endpoint, RuleOrigin, Transport};

/// The verdict of one gate and its reasons.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct GateDecision {
    /// Allow or deny.
    pub verdict: Verdict,
    /// Seen from the endpoint.
    pub direction: Direction,
    /// The rule that decides; `None` if none does, or if none is needed.
    pub rule: Option<RuleOrigin>,
    /// Whether it passes only because the policy of the rule is audited.
    pub audited: bool,
    /// Of a denial, the rule that comes closest to allowing it.
    pub nearest: Option<NearestRule>,
    /// The policies that isolate the endpoint in the direction, sorted.
    pub isolating: Vec<PolicyId>,
    /// The peer's class.
    pub class: Class,
    /// One line for people.
    pub why: String,
}

/// The other end of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// Another address, or the pod's own, to which it talks directly.
    At(IpAddr),
    /// The pod itself, which a service has picked as its own endpoint, at this address.
    ItselfByService(IpAddr),
}

impl Engine {
    /// Why a packet between an endpoint and a peer's address is allowed or denied. `None` if the endpoint has
    /// no table.
    pub fn explain(
        &self,
        endpoint: &Endpoint,
        direction: Direction,
        peer: Peer,
        transport: Transport,
    ) -> Option<GateDecision> {
        let (Peer::At(address) | Peer::ItselfByService(address)) = peer;
        let mut judged = self.compiled().judge(endpoint.id, direction, address, transport)?;
        if let Peer::ItselfByService(own) = peer {
            let table = self.compiled().tables.get(&endpoint.id)?;
            judged.decision = table.lookup_self(direction, own, transport);
        }
        let is_by_service = matches!(peer, Peer::ItselfByService(_));
        let peer = address;
        // ranked rules judge what a pod sends to itself through a service, and nothing else of it
        let own = endpoint.addresses.iter().any(|own| own.to_canonical() == peer.to_canonical());
        let denied = judged.decision.filter(|decision| decision.effect != Effect::Allow);
        let itself = own && (!is_by_service || denied.is_none());
        let rule = judged.decision.and_then(|decision| self.origin(decision.rule)).cloned();
        let unmatched = || {
            format!(
                "denied: isolated for {direction} by {}; no rule allows {} on {transport}",
                names(judged.isolating),
                peer.to_canonical(),
            )
        };
        let why = match (judged.decision, &rule) {
            _ if itself => "a pod always reaches itself".to_owned(),
            (None, _) => unmatched(),
            // a number that the engine never gave
            (Some(decision), None) => format!("decided by rule {}", decision.rule.0),
            (Some(decision), Some(origin)) => match (decision.effect, origin) {
                (Effect::Allow, RuleOrigin::NotIsolated(_)) => origin.to_string(),
                (Effect::Allow, _) => format!("allowed by {origin}"),
                (Effect::Deny | Effect::Reject, RuleOrigin::Isolated { .. }) => unmatched(),
                (Effect::Deny, _) => format!("denied by {origin}"),
                (Effect::Reject, _) => format!("rejected by {origin}"),
                (Effect::Audit, RuleOrigin::Isolated { .. }) => format!(
                    "passes, as the policy is only audited: {origin}, and no rule allows {} on {transport}",
                    peer.to_canonical(),
                ),
                (Effect::Audit, _) => {
                    format!("passes, as the policy is only audited: {origin} would deny it")
                }
            },
        };
        let allowed = itself || judged.allowed();
        let nearest = || self.nearest(endpoint.id, direction, judged.class, transport);
        let effect = judged.decision.map(|decision| decision.effect);
        Some(GateDecision {
            verdict: if allowed { Verdict::Allow } else { Verdict::Deny },
            direction,
            rule: rule.filter(|_| !itself),
            audited: !itself && effect == Some(Effect::Audit),
            nearest: (!allowed).then(nearest).flatten(),
            isolating: judged.isolating.to_vec(),
            class: judged.class,
            why,
        })
    }
}

/// `shop/deny-all, db-from-api`: the policies of one pod are all of one namespace.
fn names(policies: &[PolicyId]) -> String {
    let mut names = Vec::new();
    for (index, policy) in policies.iter().enumerate() {
        names.push(match index {
            0 => policy.key.to_string(),
            _ => policy.key.name.to_string(),
        });
    }
    names.join(", ")
}
