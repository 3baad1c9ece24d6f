//! What to say of a service's address where nobody translates it at the gate.
//!
//! Approximate by nature: at the gate it is not known which endpoint kube-proxy will pick. So a frontend is allowed only
//! if every endpoint that may be picked is.

use std::net::IpAddr;

use super::{Balance, Frontend};
use crate::compile::{Compiled, Endpoint, RuleId, Transport};
use crate::model::Direction;

/// What a pod's gate says of packets to a frontend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeftAnswer {
    /// Every endpoint is allowed; the rule that allows the first one. `None`: the pod is the only endpoint.
    Allow(Option<RuleId>),
    /// Some endpoint is not.
    Deny,
}

/// The answer for packets of `endpoint`. `None` where there is nothing to say: it has no table yet, or is not
/// isolated for egress.
pub fn answer_left(
    compiled: &Compiled,
    endpoint: &Endpoint,
    frontend: &Frontend,
    balance: &Balance,
) -> Option<LeftAnswer> {
    let table = compiled.tables.get(&endpoint.id)?;
    if table.isolating(Direction::Egress).is_empty() {
        return None;
    }
    let is_own = |address: &IpAddr| endpoint.addresses.contains(address);
    let mut first = None;
    for backend in balance.ready().filter(|backend| !is_own(&backend.address)) {
        let transport = Transport::Port(frontend.protocol, backend.port);
        let class = compiled.class_of(backend.address);
        match table.lookup(Direction::Egress, class, transport) {
            Some(rule) => first = first.or(Some(rule)),
            None => return Some(LeftAnswer::Deny),
        }
    }
    Some(LeftAnswer::Allow(first))
}
