//! Which real packets show an answer's paths, and which verdicts they show.

use std::net::IpAddr;
use std::ops::Range;

use podgate_contract::api::Verdict;
use podgate_policy::reach::{Answer, Location, Path, Translator, VipGate};
use podgate_policy::services::Frontend;
use podgate_policy::tables::Transport;

use super::plan::Plan;
use super::wire::Response;

/// Packets from one address to another, and what of an answer they show.
#[derive(Clone, Debug)]
pub(super) struct Try {
    pub(super) shows: Shows,
    /// Where they start: the sender's location, and its address there.
    pub(super) from: End,
    /// The address that they are sent to.
    pub(super) to: IpAddr,
    pub(super) transport: Transport,
}

/// What of an answer some packets show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Shows {
    /// One of [`Answer::paths`].
    Path(usize),
    /// Several of them: those to the endpoints of one address of a service, among which the gate selects.
    Endpoints(Range<usize>, Frontend),
    /// One of [`Answer::untranslated`]: nothing translates behind the gate here, so the packet goes to the address itself.
    Vip(usize),
}

/// One end of a packet in the lab.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct End {
    pub(super) site: Site,
    pub(super) address: IpAddr,
}

/// The namespace that an end is in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Site {
    Pod(podgate_policy::model::ObjectKey),
    /// The lab's node.
    Node,
    /// Beyond the node: external addresses, other nodes, and addresses of hostNetwork pods.
    Outside,
}

impl Site {
    /// The name that those who answer there give.
    pub(super) fn name(&self) -> String {
        match self {
            Self::Pod(key) => key.to_string(),
            Self::Node => "the node".into(),
            Self::Outside => "the outside".into(),
        }
    }
}

/// The end of a packet at a location.
fn end(plan: &Plan, location: &Location, address: IpAddr) -> End {
    let site = match location {
        Location::Pod(key) => Site::Pod(key.clone()),
        _ if plan.here.contains(&address) => Site::Node,
        Location::OwnNode | Location::Node | Location::External => Site::Outside,
    };
    End { site, address }
}

/// Where a path starts. All pods live on the lab's node, so that sends for every pod's own node: from the bridge, unless it
/// has the address.
fn start(plan: &Plan, path: &Path) -> End {
    let at = end(plan, &path.from, path.source);
    match (&path.from, plan.subnet_of(path.destination)) {
        (Location::OwnNode, Some(subnet)) if at.site == Site::Outside => {
            End { site: Site::Node, address: subnet.gateway }
        }
        _ => at,
    }
}

/// Where a path ends.
pub(super) fn finish(plan: &Plan, path: &Path) -> End {
    end(plan, &path.to, path.destination)
}

/// Where an untranslated address of a service is.
pub(super) fn vip(plan: &Plan, gate: &VipGate) -> End {
    end(plan, &gate.to, gate.frontend.address)
}

/// Whether a path leaves a pod through this gate, which knows no endpoint.
fn passes(path: &Path, gate: &VipGate) -> bool {
    path.source == gate.source && path.service.is_some_and(|via| via.frontend == gate.frontend)
}

/// What to send for an answer.
pub(super) fn tries(plan: &Plan, answer: &Answer) -> Vec<Try> {
    let mut tries = Vec::new();
    for (number, gate) in answer.untranslated.iter().enumerate() {
        let Frontend { address, port, protocol } = gate.frontend;
        let from = End { site: Site::Pod(gate.from.clone()), address: gate.source };
        let transport = Transport::Port(protocol, port);
        tries.push(Try { shows: Shows::Vip(number), from, to: address, transport });
    }
    let mut first = 0;
    while let Some(path) = answer.paths.get(first) {
        let from = start(plan, path);
        let together = |other: &&Path| other.service == path.service && other.source == path.source;
        let next = match path.service {
            Some(via) if via.translator == Translator::Gate => {
                let next = first + answer.paths[first..].iter().take_while(together).count();
                let Frontend { address, port, protocol } = via.frontend;
                let shows = Shows::Endpoints(first..next, via.frontend);
                let transport = Transport::Port(protocol, port);
                tries.push(Try { shows, from, to: address, transport });
                next
            }
            _ => {
                if !answer.untranslated.iter().any(|gate| passes(path, gate)) {
                    let (to, transport) = (path.destination, path.transport);
                    tries.push(Try { shows: Shows::Path(first), from, to, transport });
                }
                first + 1
            }
        };
        first = next;
    }
    tries
}

impl Try {
    /// The verdicts that its packets are expected to show, in the order of their responses.
    pub(super) fn expected(&self, answer: &Answer) -> Vec<Verdict> {
        match &self.shows {
            Shows::Path(path) => vec![answer.paths[*path].verdict],
            Shows::Endpoints(paths, _) => {
                answer.paths[paths.clone()].iter().map(|path| path.verdict).collect()
            }
            Shows::Vip(gate) => vec![answer.untranslated[*gate].gate.verdict],
        }
    }
}

/// The verdicts of an answer's paths, as packets showed them.
pub(super) fn verdicts(answer: &Answer, shown: &[(Try, Vec<Response>)]) -> Vec<Verdict> {
    let mut verdicts: Vec<_> = answer.paths.iter().map(|path| path.verdict).collect();
    for (of, responses) in shown {
        let shown = responses.iter().map(Response::verdict);
        match &of.shows {
            Shows::Path(path) => {
                verdicts[*path..].iter_mut().zip(shown).for_each(|(v, is)| *v = is)
            }
            Shows::Endpoints(paths, _) => {
                verdicts[paths.clone()].iter_mut().zip(shown).for_each(|(v, is)| *v = is);
            }
            Shows::Vip(number) => {
                let gate = &answer.untranslated[*number];
                let shown = responses.last().map(Response::verdict);
                let Some(is) = shown.filter(|is| *is != gate.gate.verdict) else { continue };
                let paths = answer.paths.iter().zip(&mut verdicts);
                paths.filter(|(path, _)| passes(path, gate)).for_each(|(_, v)| *v = is);
            }
        }
    }
    verdicts
}
