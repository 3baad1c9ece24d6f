//! From the verdicts of gates to one verdict, and to the answer as the API writes it.

use std::collections::BTreeSet;

use podgate_contract::api::{
    BackendState, EndpointAnswer, Explanation, GateAnswer, PathAnswer, ServiceEndpoint, Verdict,
};

use super::{Answer, Family, Location, Path, Question, VipGate};
use crate::tables::Transport;

/// The answer of these paths; `none` says why there are none.
pub(super) fn answer(
    paths: Vec<Path>,
    untranslated: Vec<VipGate>,
    none: impl FnOnce() -> String,
) -> Answer {
    let (verdict, why) = sum_up(&paths).unwrap_or_else(|| (Verdict::Deny, none()));
    Answer { verdict, why, paths, untranslated }
}

/// A packet passes if every gate allows it.
pub(super) fn of_gates(gates: &[GateAnswer]) -> (Verdict, String) {
    if let Some(GateAnswer { pod, why, .. }) =
        gates.iter().find(|gate| gate.verdict == Verdict::Deny)
    {
        let why = why.trim_start_matches("denied: ");
        return (Verdict::Deny, format!("denied at {pod}: {why}"));
    }
    let why = match gates {
        [] => "neither end is a pod: no policy applies".to_owned(),
        // a pod that sends to itself
        [egress, ingress] if egress.why == ingress.why => egress.why.clone(),
        gates => {
            let each =
                |gate: &GateAnswer| format!("{} at {}: {}", gate.direction, gate.pod, gate.why);
            gates.iter().map(each).collect::<Vec<_>>().join("; ")
        }
    };
    (Verdict::Allow, why)
}

/// The verdict of all paths; `None` if there is none.
fn sum_up(paths: &[Path]) -> Option<(Verdict, String)> {
    let families: Vec<_> = [Family::V4, Family::V6]
        .into_iter()
        .filter_map(|family| {
            let of = paths.iter().filter(|path| Family::of(path.source) == family);
            let of = of.collect::<Vec<_>>();
            let is_service = of.first()?.service.is_some();
            Some((family, if is_service { of_endpoints(&of) } else { of_addresses(&of) }))
        })
        .collect();
    let (_, (first, _)) = families.first()?;
    // a client may use either family: it is allowed only if both are
    let worst = families.iter().map(|(_, (verdict, _))| *verdict).max()?;
    if families.iter().all(|(_, (verdict, _))| verdict == first) {
        let mut whys: Vec<_> = families.iter().map(|(_, (_, why))| why.as_str()).collect();
        whys.dedup();
        return Some((worst, whys.join("; ")));
    }
    let each = families.iter().map(|(family, (verdict, why))| format!("{family} {verdict}: {why}"));
    Some((worst, format!("families differ: {}", each.collect::<Vec<_>>().join("; "))))
}

/// Of paths between the addresses of two ends: allowed if all are.
fn of_addresses(paths: &[&Path]) -> (Verdict, String) {
    let denied: Vec<_> =
        paths.iter().copied().filter(|path| path.verdict == Verdict::Deny).collect();
    match denied.is_empty() {
        true => (Verdict::Allow, reasons(paths)),
        false => (Verdict::Deny, reasons(&denied)),
    }
}

/// Of paths to the endpoints of a service, any of which may be selected.
fn of_endpoints(paths: &[&Path]) -> (Verdict, String) {
    let (allowed, denied): (Vec<_>, Vec<_>) =
        paths.iter().copied().partition(|path| path.verdict == Verdict::Allow);
    if denied.is_empty() {
        return (Verdict::Allow, reasons(paths));
    }
    if allowed.is_empty() {
        return (Verdict::Deny, reasons(paths));
    }
    let allowed = allowed.iter().map(|path| path.name()).collect::<Vec<_>>().join(", ");
    let denied = denied.iter().map(|path| format!("to {}: {}", path.name(), path.why));
    let denied = denied.collect::<Vec<_>>().join("; ");
    (Verdict::Mixed, format!("it depends on the endpoint: allowed to {allowed}; {denied}"))
}

/// The reasons of several paths, those of each gate once.
fn reasons(paths: &[&Path]) -> String {
    let mut seen = BTreeSet::new();
    let each = paths.iter().flat_map(|path| path.why.split("; "));
    each.filter(|why| seen.insert(*why)).collect::<Vec<_>>().join("; ")
}

impl Path {
    /// `shop/api-1 (10.0.0.7:80)`.
    fn name(&self) -> String {
        match &self.to {
            Location::Pod(pod) => format!("{pod} ({})", self.endpoint()),
            Location::OwnNode | Location::Node | Location::External => self.endpoint(),
        }
    }

    fn answer(&self) -> PathAnswer {
        PathAnswer {
            family: Family::of(self.source).number(),
            source: self.source,
            destination: self.destination,
            port: self.port(),
            service: self.service.map(|via| via.frontend.to_string()),
            verdict: self.verdict,
            why: self.why.clone(),
            gates: self.gates.clone(),
        }
    }

    fn port(&self) -> Option<u16> {
        match self.transport {
            Transport::Port(_, port) => Some(port),
            Transport::Number(_) | Transport::Other => None,
        }
    }
}

impl Answer {
    /// The same answer with these verdicts of its paths, as real packets met them; a path that is judged otherwise than
    /// here says so in its reason.
    #[must_use]
    pub fn observed(&self, verdicts: &[Verdict]) -> Self {
        let mut paths = self.paths.clone();
        for (path, verdict) in paths.iter_mut().zip(verdicts) {
            if path.verdict != *verdict {
                path.verdict = *verdict;
                path.why = format!("the packet says so; the tables: {}", path.why);
            }
        }
        answer(paths, self.untranslated.clone(), || self.why.clone())
    }

    /// As `GET /v1/explain` writes it.
    pub fn explanation(&self, question: &Question) -> Explanation {
        let mut gates: Vec<GateAnswer> = Vec::new();
        let mut endpoints: Vec<EndpointAnswer> = Vec::new();
        for path in &self.paths {
            for gate in &path.gates {
                if !gates.contains(gate) {
                    gates.push(gate.clone());
                }
            }
            // what listens at the service's own address is no endpoint of it
            if let (Some(via), Some(port)) = (path.service, path.port())
                && via.frontend.address != path.destination
            {
                endpoints.push(EndpointAnswer {
                    endpoint: ServiceEndpoint {
                        address: path.destination,
                        port,
                        pod: match &path.to {
                            Location::Pod(pod) => Some(pod.to_string()),
                            Location::OwnNode | Location::Node | Location::External => None,
                        },
                        state: BackendState::Ready,
                    },
                    verdict: path.verdict,
                    why: path.why.clone(),
                });
            }
        }
        Explanation {
            from: question.from.to_string(),
            to: question.to.to_string(),
            transport: question.transport.to_string(),
            verdict: self.verdict,
            why: self.why.clone(),
            gates,
            endpoints,
            paths: self.paths.iter().map(Path::answer).collect(),
        }
    }
}
