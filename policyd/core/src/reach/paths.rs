//! Which gates a packet meets, and their verdicts.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use podgate_contract::api::{Direction, GateAnswer, Verdict};

use super::parties::{Party, Place};
use super::routes::Route;
use super::{Answer, Family, Location, Path, Question, Reach, Translator, Via, VipGate, summary};
use crate::compile::Engine;
use crate::explain;
use crate::model::ObjectKey;
use crate::services::{VipVerdict, vip_verdict};
use crate::tables::{Endpoint, EndpointId, RuleOrigin, Transport};

/// Why a pod's gate lets in what the pod's own node sends.
const OWN_NODE: &str = "a pod's own node always reaches it";

/// A packet from one address to another.
struct Packet<'a> {
    from: &'a Place,
    source: IpAddr,
    to: &'a Place,
    destination: IpAddr,
    transport: Transport,
}

/// A gate: its pod, the endpoint and the engine that has its table.
struct Gate<'a> {
    pod: &'a ObjectKey,
    endpoint: &'a Endpoint,
    engine: &'a Engine,
    is_local: bool,
}

impl Reach<'_> {
    /// Between two ends that are no service.
    pub(super) fn answer_party(&self, question: &Question, from: &Party, to: &Party) -> Answer {
        let remote = self.remote([from, to]);
        let mut paths = Vec::new();
        for family in [Family::V4, Family::V6] {
            for source in from.of_family(family) {
                for destination in to.of_family(family) {
                    let transport = question.transport;
                    let (from, to) = (&from.place, &to.place);
                    let packet = Packet { from, source, to, destination, transport };
                    paths.push(self.path(&remote, &packet, None, None));
                }
            }
        }
        summary::answer(paths, Vec::new(), || no_common_family(question))
    }

    /// To every endpoint of a service that may be selected.
    pub(super) fn answer_service(
        &self,
        question: &Question,
        from: &Party,
        routes: &[Route],
    ) -> Answer {
        let backends = routes.iter().flat_map(|route| &route.backends);
        let addresses: BTreeSet<IpAddr> = backends.map(|backend| backend.address).collect();
        let parties: BTreeMap<IpAddr, Party> =
            addresses.into_iter().map(|address| (address, self.party_at(address))).collect();
        let remote = self.remote(parties.values().chain([from]));
        let (mut paths, mut untranslated) = (Vec::new(), Vec::new());
        let mut is_reachable = false;
        for route in routes {
            let via = Via { frontend: route.frontend, translator: route.translator };
            for source in from.of_family(Family::of(route.frontend.address)) {
                is_reachable = true;
                let vip = self.vip_gate(&remote, from, source, route);
                if route.is_node_local {
                    paths.push(self.vip_path(from, source, via, vip.as_ref()));
                }
                for backend in &route.backends {
                    let destination = backend.address;
                    let Some(to) = parties.get(&destination) else { continue };
                    let transport = Transport::Port(route.frontend.protocol, backend.port);
                    let (from, to) = (&from.place, &to.place);
                    let packet = Packet { from, source, to, destination, transport };
                    paths.push(self.path(&remote, &packet, Some(via), vip.as_ref()));
                }
                untranslated.extend(vip);
            }
        }
        summary::answer(paths, untranslated, || match is_reachable {
            false => no_common_family(question),
            true => format!("{} has no endpoint that is ready: nobody answers", question.to),
        })
    }

    /// An engine for the pods among these that have no endpoint here, as their own nodes would have it.
    fn remote<'a>(&self, parties: impl IntoIterator<Item = &'a Party>) -> Engine {
        let pods = parties.into_iter().filter_map(|party| match &party.place {
            Place::Pod(pod) if self.local_endpoints(pod).next().is_none() => Some(pod),
            _ => None,
        });
        let pods: BTreeSet<&ObjectKey> = pods.collect();
        let pods = pods.into_iter().filter_map(|key| self.index.pod(key));
        let endpoints = pods.zip(0..).map(|(pod, number)| Endpoint {
            id: EndpointId(number),
            pod: Some(pod.key.clone()),
            uid: pod.uid.clone(),
            addresses: pod.addresses.clone(),
        });
        Engine::of(self.index, endpoints.collect::<Vec<_>>())
    }

    /// The path of a packet. `vip`: what the sender's gate does with it, if that does not judge by the destination.
    fn path(
        &self,
        remote: &Engine,
        packet: &Packet<'_>,
        service: Option<Via>,
        vip: Option<&VipGate>,
    ) -> Path {
        let Packet { from, source, to, destination, transport } = *packet;
        let egress = match (from, vip) {
            (_, Some(vip)) => Some(vip.gate.clone()),
            (Place::Pod(pod), None) => {
                let gate = self.gate(remote, pod, source);
                gate.and_then(|gate| {
                    gate.judge(Direction::Egress, destination, transport, service.is_some())
                })
            }
            (Place::Node(_) | Place::External, None) => None,
        };
        let is_own_node = match (from, to) {
            (Place::Node(node), Place::Pod(pod)) => self.topology.is_own_node(pod, node, source),
            _ => false,
        };
        let ingress = match to {
            Place::Pod(pod) => {
                let gate = self.gate(remote, pod, destination);
                gate.and_then(|gate| match is_own_node {
                    true => Some(gate.allow_own_node(source)),
                    false => gate.judge(Direction::Ingress, source, transport, service.is_some()),
                })
            }
            Place::Node(_) | Place::External => None,
        };
        let gates: Vec<_> = [egress, ingress].into_iter().flatten().collect();
        let (verdict, why) = summary::of_gates(&gates);
        let from = if is_own_node { Location::OwnNode } else { from.into() };
        let to = to.into();
        Path { from, source, to, destination, transport, service, gates, verdict, why }
    }

    /// The path to a service's address that is on the node: what listens there answers.
    fn vip_path(&self, from: &Party, source: IpAddr, via: Via, vip: Option<&VipGate>) -> Path {
        let Via { frontend, .. } = via;
        let gates: Vec<_> = vip.map(|vip| vip.gate.clone()).into_iter().collect();
        let (verdict, why) = summary::of_gates(&gates);
        Path {
            from: (&from.place).into(),
            source,
            to: (&self.party_at(frontend.address).place).into(),
            destination: frontend.address,
            transport: Transport::Port(frontend.protocol, frontend.port),
            service: Some(via),
            gates,
            verdict,
            why,
        }
    }

    /// What a pod's gate does with packets to an address that it does not translate. At the gate it is not known which
    /// endpoint will be selected, so it lets them pass if policy allows every one.
    fn vip_gate(
        &self,
        remote: &Engine,
        from: &Party,
        source: IpAddr,
        route: &Route,
    ) -> Option<VipGate> {
        let Place::Pod(pod) = &from.place else { return None };
        if route.translator == Translator::Gate {
            return None;
        }
        let frontend = route.frontend;
        let gate = self.gate(remote, pod, source)?;
        let table = gate.engine.compiled().tables.get(&gate.endpoint.id)?;
        let claims = &route.claims;
        let answer = vip_verdict(gate.engine.compiled(), gate.endpoint, &frontend, claims);
        let reasons: BTreeSet<_> = claims
            .iter()
            .map(|left| format!("{frontend} of {}: {}", left.service, left.reason))
            .collect();
        let reasons = reasons.into_iter().collect::<Vec<_>>().join("; ");
        let not_isolated = RuleOrigin::NotIsolated(Direction::Egress).to_string();
        let (verdict, rule, why) = match answer {
            None => (Verdict::Allow, Some(not_isolated.clone()), not_isolated),
            Some(VipVerdict::Allow(rule)) => {
                let rule = rule.and_then(|rule| gate.engine.origin(rule)).map(ToString::to_string);
                (Verdict::Allow, rule, format!("allowed; {reasons}"))
            }
            Some(VipVerdict::Deny) => (Verdict::Deny, None, format!("denied: {reasons}")),
        };
        let isolating =
            table.isolating(Direction::Egress).iter().map(ToString::to_string).collect();
        let gate = GateAnswer {
            verdict,
            rule,
            isolating,
            why,
            ..gate.answer(Direction::Egress, frontend.address)
        };
        let to = (&self.party_at(frontend.address).place).into();
        Some(VipGate { frontend, from: pod.clone(), source, to, gate })
    }

    /// The gate of a pod at one of its addresses. `None` if nothing is known of its policy.
    fn gate<'a>(&'a self, remote: &'a Engine, pod: &'a ObjectKey, own: IpAddr) -> Option<Gate<'a>> {
        let has = |endpoint: &&Endpoint| {
            endpoint.addresses.iter().any(|address| address.to_canonical() == own)
        };
        if let Some(endpoint) = self.local_endpoints(pod).find(has) {
            return Some(Gate { pod, endpoint, engine: self.engine, is_local: true });
        }
        let endpoint = remote.endpoints_of(pod).next()?;
        Some(Gate { pod, endpoint, engine: remote, is_local: false })
    }
}

impl Gate<'_> {
    fn judge(
        &self,
        direction: Direction,
        peer: IpAddr,
        transport: Transport,
        through_service: bool,
    ) -> Option<GateAnswer> {
        let is_own = self.endpoint.addresses.iter().any(|own| own.to_canonical() == peer);
        let other = match is_own && through_service {
            true => explain::Peer::ItselfByService(peer),
            false => explain::Peer::At(peer),
        };
        let decision = self.engine.explain(self.endpoint, direction, other, transport)?;
        Some(GateAnswer {
            verdict: decision.verdict,
            rule: decision.rule.map(|rule| rule.to_string()),
            audited: decision.audited,
            nearest: decision.nearest,
            isolating: decision.isolating.iter().map(ToString::to_string).collect(),
            why: decision.why,
            ..self.answer(direction, peer)
        })
    }

    fn allow_own_node(&self, source: IpAddr) -> GateAnswer {
        GateAnswer { why: OWN_NODE.to_owned(), ..self.answer(Direction::Ingress, source) }
    }

    /// An answer that allows, without a reason.
    fn answer(&self, direction: Direction, peer: IpAddr) -> GateAnswer {
        GateAnswer {
            pod: self.pod.to_string(),
            local: self.is_local,
            direction,
            peer,
            verdict: Verdict::Allow,
            rule: None,
            audited: false,
            nearest: None,
            isolating: Vec::new(),
            why: String::new(),
        }
    }
}

impl From<&Place> for Location {
    fn from(place: &Place) -> Self {
        match place {
            Place::Pod(pod) => Self::Pod(pod.clone()),
            Place::Node(_) => Self::Node,
            Place::External => Self::External,
        }
    }
}

fn no_common_family(question: &Question) -> String {
    match question.family {
        None => format!("{} and {} have no address family in common", question.from, question.to),
        Some(family) => format!("{} or {} has no {family} address", question.from, question.to),
    }
}
