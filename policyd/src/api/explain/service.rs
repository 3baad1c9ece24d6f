//! What becomes of a packet to a service: it goes to one of the endpoints, so each of them is asked about. So they are where
//! the gate leaves the address alone, and does not know which one will be picked behind it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use podgate_bpf::maps::Net;
use podgate_policy::compile::Transport;
use podgate_policy::convert::{FieldError, parse_address};
use podgate_policy::model::ObjectKey;
use podgate_policy::services::{Backend, BackendState, Claims, Frontend, ServiceTable};

use super::{ALLOW, DENY, End, gates, sum_up};
use crate::api::services::endpoint;
use crate::api::types::{EndpointAnswer, ExplainQuery, Explanation};
use crate::writer::Answers;

/// Some endpoints are allowed, some are not.
const MIXED: &str = "mixed";

/// A frontend and where it leads.
pub(super) struct Led {
    frontend: Frontend,
    backends: Vec<(Backend, BackendState)>,
    /// Of one that is left alone.
    claims: Claims,
}

impl Led {
    fn of(table: &ServiceTable, frontend: Frontend) -> Self {
        let claims = table.left_at(&frontend);
        let mut backends: BTreeMap<Backend, BackendState> = claims
            .iter()
            .flat_map(|left| &left.backends)
            .map(|backend| (*backend, BackendState::Ready))
            .collect();
        if let Some(balance) = table.translated(&frontend) {
            backends.extend(&balance.backends);
        }
        Self { frontend, backends: backends.into_iter().collect(), claims }
    }
}

/// What `to` means if it is a service: by its name, or by its address and port. `None` if it is none.
pub(super) fn frontends(
    answers: &Answers<'_>,
    query: &ExplainQuery,
    transport: Transport,
) -> Result<Option<Vec<Led>>, FieldError> {
    let table = answers.services.table();
    let Some(name) = query.to.strip_prefix("svc:") else {
        let (Some(address), Transport::Port(protocol, port)) =
            (parse_address(&query.to), transport)
        else {
            return Ok(None);
        };
        let frontend = Frontend { address, port, protocol };
        let led = Led::of(table, frontend);
        let is_one = table.translated(&frontend).is_some() || !led.claims.is_empty();
        return Ok(is_one.then(|| vec![led]));
    };
    let key = name.split_once('/').map(|(namespace, name)| ObjectKey::new(namespace, name));
    let service = key.as_ref().and_then(|key| answers.index.services().service(key));
    let Some(service) = service else {
        return Err(FieldError::new("to", format!("{} is not known to any source", query.to)));
    };
    if service.addressing.cluster().is_empty() {
        let cause = format!("{} has no address of its own: ask about its pods", query.to);
        return Err(FieldError::new("to", cause));
    }
    let Transport::Port(protocol, port) = transport else {
        return Err(FieldError::new("protocol", "a service has ports: must be TCP, UDP or SCTP"));
    };
    let translated = table.of_service(&service.key).map(|(frontend, _)| frontend);
    let left = table.left_of_service(&service.key).map(|(frontend, _)| frontend);
    let of: Vec<Led> = translated
        .chain(left)
        .filter(|frontend| (frontend.port, frontend.protocol) == (port, protocol))
        // as a client that was given the service's name sees it
        .filter(|frontend| service.addressing.cluster().contains(&frontend.address))
        .map(|frontend| Led::of(table, frontend))
        .collect();
    if of.is_empty() {
        let cause = format!("{} has no port {port}/{protocol}", query.to);
        return Err(FieldError::new("port", cause));
    }
    Ok(Some(of))
}

/// Asks about every endpoint that may be picked.
pub(super) fn explain(
    answers: &Answers<'_>,
    node: &BTreeSet<Net>,
    query: &ExplainQuery,
    frontends: &[Led],
) -> Result<Explanation, FieldError> {
    let from = End::find(answers, "from", &query.from)?;
    if from.pod.is_none() {
        let cause = "is no pod: services are translated at a pod's gate";
        return Err(FieldError::new("from", cause));
    }
    let mut explanation = Explanation {
        from: query.from.clone(),
        to: query.to.clone(),
        transport: String::new(),
        verdict: String::new(),
        why: String::new(),
        gates: Vec::new(),
        endpoints: Vec::new(),
    };
    let mut reasons = BTreeSet::new();
    for Led { frontend, backends, claims } in frontends {
        explanation.transport = Transport::Port(frontend.protocol, frontend.port).to_string();
        let has = |address: &IpAddr| address.is_ipv4() == frontend.address.is_ipv4();
        if !from.addresses.iter().any(has) {
            continue;
        }
        let transport = Transport::Port(frontend.protocol, frontend.port);
        for left in claims {
            reasons.insert(left.reason);
            let closed = left.sources.as_ref().is_some_and(|ranges| {
                let own = from.addresses.iter().filter(|own| has(own));
                !own.into_iter().any(|own| ranges.iter().any(|range| range.contains(own)))
            });
            if closed {
                let why = format!("{} is in none of its loadBalancerSourceRanges", query.from);
                return Ok(Explanation { verdict: DENY.to_owned(), why, ..explanation });
            }
            if left.is_node_local() {
                let here = End::find(answers, "to", &frontend.address.to_string())?;
                let met = gates(answers, node, &from, &here, transport)?;
                let (verdict, why) = sum_up(&met);
                if verdict == ALLOW {
                    let why = format!("{why}; {}", left.reason);
                    let verdict = verdict.to_owned();
                    return Ok(Explanation { verdict, why, gates: met, ..explanation });
                }
            }
        }
        for (backend, state) in backends {
            let at = endpoint(answers.index, *backend, *state);
            if at.state != "ready" {
                continue;
            }
            let (verdict, why) = if from.addresses.contains(&backend.address) {
                (ALLOW, "a pod always reaches itself".to_owned())
            } else {
                let to = End::find(answers, "to", &backend.address.to_string())?;
                let transport = Transport::Port(frontend.protocol, backend.port);
                let met = gates(answers, node, &from, &to, transport)?;
                let answer = sum_up(&met);
                explanation.gates.extend(met);
                answer
            };
            let verdict = verdict.to_owned();
            explanation.endpoints.push(EndpointAnswer { endpoint: at, verdict, why });
        }
    }
    let (mut verdict, mut why) = verdict(&query.to, &explanation.endpoints);
    if verdict == MIXED && !reasons.is_empty() {
        // the gate does not know which one is picked behind it
        verdict = DENY;
    }
    for reason in reasons {
        why = format!("{why}; {reason}");
    }
    Ok(Explanation { verdict: verdict.to_owned(), why, ..explanation })
}

fn verdict(to: &str, endpoints: &[EndpointAnswer]) -> (&'static str, String) {
    let with = |verdict: &str| {
        let of = endpoints.iter().filter(|answer| answer.verdict == verdict);
        let name = |answer: &EndpointAnswer| match &answer.endpoint.pod {
            Some(pod) => pod.clone(),
            None => answer.endpoint.address.to_string(),
        };
        of.map(name).collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>().join(", ")
    };
    let (allowed, denied) = (with(ALLOW), with(DENY));
    match (allowed.is_empty(), denied.is_empty()) {
        (true, true) => (DENY, format!("{to} has no endpoint that is ready: nobody answers")),
        (false, true) => (ALLOW, format!("every endpoint is allowed: {allowed}")),
        (true, false) => (DENY, format!("every endpoint is denied: {denied}")),
        (false, false) => {
            let why = format!("it depends on the endpoint: allowed {allowed}; denied {denied}");
            (MIXED, why)
        }
    }
}
