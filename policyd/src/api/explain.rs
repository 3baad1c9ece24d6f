//! `GET /v1/explain`: what both gates say of a packet, and why.
//!
//! For pods of this node the answer comes from the tables that are in force. For pods of other nodes it is
//! compiled for the occasion from what this node knows; their own node decides.

mod service;

use std::cell::OnceCell;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use podgate_bpf::maps::Net;
use podgate_policy::compile::{Endpoint, EndpointId, Transport};
use podgate_policy::convert::{FieldError, parse_address};
use podgate_policy::engine::Engine;
use podgate_policy::explain::Verdict;
use podgate_policy::model::{Direction, ObjectKey, Protocol};

use super::types::{ExplainQuery, Explanation, GateAnswer};
use super::{Api, Refusal};
use crate::node_addresses::holds;
use crate::writer::Answers;

pub(super) async fn get(
    State(api): State<Api>,
    query: Result<Query<ExplainQuery>, QueryRejection>,
) -> Result<Json<Explanation>, Refusal> {
    let Query(query) =
        query.map_err(|error| Refusal::malformed(format!("read query: {}", error.body_text())))?;
    let transport = transport(&query).map_err(|field| refuse(&field))?;
    let node = api.shared.view().node_addresses.clone();
    let answer =
        api.writer.ask(move |answers| match service::frontends(answers, &query, transport) {
            Ok(Some(frontends)) => service::explain(answers, &node, &query, &frontends),
            Ok(None) => explain(answers, &node, &query, transport),
            Err(field) => Err(field),
        });
    let answer = answer.await?;
    answer.map(Json).map_err(|field| refuse(&field))
}

fn refuse(field: &FieldError) -> Refusal {
    Refusal::field(format!("explain: {field}"), field)
}

fn transport(query: &ExplainQuery) -> Result<Transport, FieldError> {
    let protocol = query.protocol.as_deref().unwrap_or("TCP").to_uppercase();
    let protocol = match protocol.as_str() {
        "TCP" => Protocol::Tcp,
        "UDP" => Protocol::Udp,
        "SCTP" => Protocol::Sctp,
        "ICMP" | "OTHER" if query.port.is_none() => return Ok(Transport::Other),
        "ICMP" | "OTHER" => return Err(FieldError::new("port", "ICMP has no ports: leave it out")),
        _ => return Err(FieldError::new("protocol", "must be TCP, UDP, SCTP or ICMP")),
    };
    match query.port {
        Some(0) | None => {
            Err(FieldError::new("port", format!("must be 1 to 65535 for {protocol}")))
        }
        Some(port) => Ok(Transport::Port(protocol, port)),
    }
}

/// One end of the packet.
struct End {
    /// The pod, if it is one with a network of its own.
    pod: Option<ObjectKey>,
    addresses: Vec<IpAddr>,
    /// The pod's endpoints on this node.
    local: Vec<Endpoint>,
    /// The pod's node, as far as the sources know it. A hostNetwork pod is its node.
    node: Option<Arc<str>>,
    /// Of a pod of another node: as an engine there would have it, once somebody has asked.
    elsewhere: OnceCell<Option<(Engine, Endpoint)>>,
}

impl End {
    fn find(answers: &Answers<'_>, field: &str, text: &str) -> Result<Self, FieldError> {
        let pod = match parse_address(text) {
            None => {
                let key = text
                    .split_once('/')
                    .filter(|(space, name)| !space.is_empty() && !name.is_empty());
                let Some((namespace, name)) = key else {
                    return Err(FieldError::new(
                        field,
                        format!("must be namespace/pod or an address, is {text:?}"),
                    ));
                };
                ObjectKey::new(namespace, name)
            }
            Some(address) => {
                let is = |endpoint: &&Endpoint| endpoint.addresses.contains(&address);
                let local =
                    answers.engine.endpoints().find(is).and_then(|endpoint| endpoint.pod.clone());
                let known = answers.index.owner_of(address).map(|pod| pod.key.clone());
                let Some(pod) = local.or(known) else {
                    return Ok(Self {
                        pod: None,
                        addresses: vec![address],
                        local: Vec::new(),
                        node: None,
                        elsewhere: OnceCell::new(),
                    });
                };
                let mut end = Self::of_pod(answers, field, pod)?;
                end.addresses = vec![address];
                return Ok(end);
            }
        };
        Self::of_pod(answers, field, pod)
    }

    fn of_pod(answers: &Answers<'_>, field: &str, key: ObjectKey) -> Result<Self, FieldError> {
        let local: Vec<Endpoint> = answers
            .engine
            .endpoints()
            .filter(|endpoint| endpoint.pod.as_ref() == Some(&key))
            .filter(|endpoint| answers.compiled().tables.contains_key(&endpoint.id))
            .cloned()
            .collect();
        let known = answers.index.pod(&key);
        if known.is_none() && local.is_empty() {
            return Err(FieldError::new(field, format!("pod {key} is not known to any source")));
        }
        let mut addresses: BTreeSet<IpAddr> =
            local.iter().flat_map(|endpoint| endpoint.addresses.iter().copied()).collect();
        if let Some(pod) = known.filter(|_| local.is_empty()) {
            addresses.extend(&pod.addresses);
        }
        if addresses.is_empty() {
            return Err(FieldError::new(field, format!("pod {key} has no address yet")));
        }
        let addresses = addresses.into_iter().collect();
        let node = known.and_then(|pod| pod.node.clone());
        let is_node = local.is_empty() && known.is_some_and(|pod| pod.host_network);
        let elsewhere = OnceCell::new();
        Ok(Self { pod: (!is_node).then_some(key), addresses, local, node, elsewhere })
    }

    /// Whether this is the node of the pod that a packet from this `source` is sent to. `here` are this node's
    /// addresses.
    fn is_node_of(&self, to: &Self, source: &IpAddr, here: &BTreeSet<Net>) -> bool {
        self.pod.is_none()
            && match to.local.is_empty() {
                false => holds(here, *source),
                true => self.node.is_some() && self.node == to.node,
            }
    }
}

fn explain(
    answers: &Answers<'_>,
    node: &BTreeSet<Net>,
    query: &ExplainQuery,
    transport: Transport,
) -> Result<Explanation, FieldError> {
    let from = End::find(answers, "from", &query.from)?;
    let to = End::find(answers, "to", &query.to)?;
    let gates = gates(answers, node, &from, &to, transport)?;
    let (verdict, why) = sum_up(&gates);
    Ok(Explanation {
        from: query.from.clone(),
        to: query.to.clone(),
        transport: transport.to_string(),
        verdict: verdict.to_owned(),
        why,
        gates,
        endpoints: Vec::new(),
    })
}

/// Every gate between two ends.
fn gates(
    answers: &Answers<'_>,
    node: &BTreeSet<Net>,
    from: &End,
    to: &End,
    transport: Transport,
) -> Result<Vec<GateAnswer>, FieldError> {
    let mut gates = Vec::new();
    let mut pairs = 0;
    for source in &from.addresses {
        for destination in &to.addresses {
            if source.is_ipv4() != destination.is_ipv4() {
                continue;
            }
            pairs += 1;
            gates.extend(ask(answers, from, *source, Direction::Egress, *destination, transport));
            if from.is_node_of(to, source, node) {
                gates.extend(own_node(to, *source));
            } else {
                gates.extend(ask(
                    answers,
                    to,
                    *destination,
                    Direction::Ingress,
                    *source,
                    transport,
                ));
            }
        }
    }
    if pairs == 0 {
        return Err(FieldError::new("to", "has no address of a family that `from` has too"));
    }
    Ok(gates)
}

/// The verdict of a packet that meets all of these, and why.
fn sum_up(gates: &[GateAnswer]) -> (&'static str, String) {
    let denied = gates.iter().find(|gate| gate.verdict == DENY);
    let why = match (denied, gates.last()) {
        (Some(gate), _) => format!("{} of {}: {}", gate.direction, gate.pod, gate.why),
        (None, Some(_)) => gates
            .iter()
            .map(|gate| format!("{} of {}: {}", gate.direction, gate.pod, gate.why))
            .collect::<BTreeSet<_>>()
            .into_iter()
            .collect::<Vec<_>>()
            .join("; "),
        (None, None) => "neither end is a pod that podgate knows".to_owned(),
    };
    (if denied.is_some() { DENY } else { ALLOW }, why)
}

const ALLOW: &str = "allow";
const DENY: &str = "deny";

/// What the gate of one end says.
fn ask(
    answers: &Answers<'_>,
    end: &End,
    own: IpAddr,
    direction: Direction,
    peer: IpAddr,
    transport: Transport,
) -> Option<GateAnswer> {
    let pod = end.pod.as_ref()?;
    let local = end.local.iter().find(|endpoint| endpoint.addresses.contains(&own));
    let explanation = match local {
        Some(endpoint) => answers.engine.explain(endpoint, direction, peer, transport),
        None => {
            // a service's client is asked about each endpoint, and compiled once
            let there = end.elsewhere.get_or_init(|| elsewhere(answers, pod));
            let (engine, endpoint) = there.as_ref()?;
            engine.explain(endpoint, direction, peer, transport)
        }
    }?;
    Some(GateAnswer {
        pod: pod.to_string(),
        local: local.is_some(),
        direction: direction.to_string(),
        peer,
        verdict: match explanation.verdict {
            Verdict::Allow => ALLOW,
            Verdict::Deny => DENY,
        }
        .to_owned(),
        rule: explanation.rule.map(|rule| rule.to_string()),
        isolating: explanation.isolating.iter().map(ToString::to_string).collect(),
        why: explanation.why,
    })
}

/// A pod of another node, as an engine there would have it.
fn elsewhere(answers: &Answers<'_>, pod: &ObjectKey) -> Option<(Engine, Endpoint)> {
    let known = answers.index.pod(pod)?;
    let endpoint = Endpoint {
        id: EndpointId(u32::MAX),
        pod: Some(pod.clone()),
        uid: known.uid.clone(),
        addresses: known.addresses.clone(),
    };
    Some((Engine::of(answers.index, [endpoint.clone()]), endpoint))
}

/// Ingress that the node itself sends passes every gate of its own pods.
fn own_node(end: &End, peer: IpAddr) -> Option<GateAnswer> {
    let pod = end.pod.as_ref()?;
    Some(GateAnswer {
        pod: pod.to_string(),
        local: !end.local.is_empty(),
        direction: Direction::Ingress.to_string(),
        peer,
        verdict: ALLOW.to_owned(),
        rule: None,
        isolating: Vec::new(),
        why: "a pod's own node always reaches it".to_owned(),
    })
}
