//! Verdicts with their reasons, for people and for the API.

use std::net::IpAddr;

use serde::Serialize;

use crate::compile::{Class, Endpoint, RuleOrigin, Transport};
use crate::engine::Engine;
use crate::model::{Direction, PolicyId};

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// It passes.
    Allow,
    /// It is dropped.
    Deny,
}

/// A verdict and all that led to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Explanation {
    /// What becomes of the packet at this endpoint.
    pub verdict: Verdict,
    /// Seen from the endpoint.
    pub direction: Direction,
    /// The rule that allows it; `None` if none does, or if none is needed.
    pub rule: Option<RuleOrigin>,
    /// The policies that isolate the endpoint in the direction, sorted.
    pub isolating: Vec<PolicyId>,
    /// The peer's class.
    pub class: Class,
    /// One line for people.
    pub why: String,
}

impl Engine {
    /// Why a packet between an endpoint and a peer's address is allowed or denied. `None` if the endpoint has
    /// no table.
    pub fn explain(
        &self,
        endpoint: &Endpoint,
        direction: Direction,
        peer: IpAddr,
        transport: Transport,
    ) -> Option<Explanation> {
        let judged = self.compiled().judge(endpoint.id, direction, peer, transport)?;
        let itself = endpoint.addresses.iter().any(|own| own.to_canonical() == peer.to_canonical());
        let rule = judged.rule.and_then(|rule| self.origin(rule)).cloned();
        let why = match (&rule, judged.rule) {
            _ if itself => "a pod always reaches itself".to_owned(),
            (Some(origin @ RuleOrigin::NotIsolated(_)), _) => origin.to_string(),
            (Some(origin @ RuleOrigin::Policy { .. }), _) => format!("allowed by {origin}"),
            // a number that the engine never gave
            (None, Some(rule)) => format!("allowed by rule {}", rule.0),
            (None, None) => format!(
                "denied: isolated for {direction} by {}; no rule allows {} on {transport}",
                names(judged.isolating),
                peer.to_canonical(),
            ),
        };
        let allowed = itself || judged.allowed();
        Some(Explanation {
            verdict: if allowed { Verdict::Allow } else { Verdict::Deny },
            direction,
            rule: rule.filter(|_| !itself),
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
