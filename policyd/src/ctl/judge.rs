//! Answers to probes from the compiled tables: both gates of every way a probe's packet can take.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use podgate_policy::compile::Transport;
use podgate_policy::explain::{Explanation, Verdict};
use podgate_policy::model::Direction;
use podgate_policy::services::Frontend;

use super::end::Wire;
use super::probes::{Probe, name_of};
use super::world::{Party, World};

/// Where a packet physically starts or ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spot {
    /// At a pod, by its place in [`World::seats`].
    Pod(usize),
    /// At the node that the pods run on.
    Node,
    /// Beyond the node: strangers, other nodes, and addresses of hostNetwork pods.
    Outside,
}

/// One way that a probe's packet takes: a dual-stack pair has one for each family.
#[derive(Clone, Debug)]
pub struct Way {
    /// Where it starts.
    pub from: Spot,
    /// Its source address.
    pub source: IpAddr,
    /// Where it ends.
    pub to: Spot,
    /// Its destination address.
    pub destination: IpAddr,
    /// What arrives there.
    pub transport: Transport,
    /// What it is sent to, if that is a service: it may take this way or that of another endpoint.
    pub through: Option<Frontend>,
    /// What the gates on it do.
    pub answer: Answer,
}

/// A verdict with its reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// What becomes of the packet.
    pub verdict: Verdict,
    /// Why, one line.
    pub why: String,
}

/// What the gates say to a probe.
#[derive(Clone, Debug)]
pub struct Judged {
    /// Its ways; none if the ends share no address family, or the service has no endpoint.
    pub ways: Vec<Way>,
    /// Of the probe as a whole: allowed if every way is.
    pub answer: Answer,
    /// It goes through a service some of whose endpoints are allowed and some are not.
    pub mixed: bool,
}

impl Judged {
    /// The answer of these ways; `none` says why there are none.
    pub(super) fn of(ways: Vec<Way>, none: impl FnOnce() -> String) -> Self {
        let answers = ways.iter().map(|way| way.answer.clone()).collect::<Vec<_>>();
        let (answer, mixed) = sum_up(&ways, &answers)
            .unwrap_or_else(|| (Answer { verdict: Verdict::Deny, why: none() }, false));
        Self { ways, answer, mixed }
    }
}

/// A probe that this world cannot answer: which field, and why.
pub(crate) type Unanswerable = (&'static str, String);

impl World {
    /// Judges a probe.
    pub fn judge(&self, probe: &Probe) -> Result<Judged, Unanswerable> {
        if let Some(frontends) = self.service(probe)? {
            return self.judge_service(probe, &frontends);
        }
        let transport = probe.wire.0;
        let src = self.party(&probe.src).map_err(|cause| ("src", cause))?;
        let dst = self.party(&probe.dst).map_err(|cause| ("dst", cause))?;
        let mut ways = Vec::new();
        for v4 in [true, false] {
            let family = |address: &&IpAddr| address.is_ipv4() == v4;
            let first = |list: &[IpAddr]| list.iter().find(family).copied();
            let Some((from, source)) = self.stand("src", &src, &dst, first)? else { continue };
            let Some((to, destination)) = self.stand("dst", &dst, &src, first)? else { continue };
            let answer = self.way(from, source, to, destination, transport);
            let through = None;
            ways.push(Way { from, source, to, destination, transport, through, answer });
        }
        Ok(Judged::of(ways, || {
            format!("{} and {} have no address family in common", probe.src, probe.dst)
        }))
    }

    /// Where `party` stands towards the other one, and its address of one family if it has any there.
    pub(super) fn stand(
        &self,
        field: &'static str,
        party: &Party,
        other: &Party,
        first: impl Fn(&[IpAddr]) -> Option<IpAddr>,
    ) -> Result<Option<(Spot, IpAddr)>, Unanswerable> {
        let (name, known) = match party {
            Party::Pod(seat, addresses) => {
                return Ok(first(addresses).map(|address| (Spot::Pod(*seat), address)));
            }
            Party::Stranger(address) => {
                return Ok(first(&[*address]).map(|address| (Spot::Outside, address)));
            }
            Party::Node(name, known) => (name.as_deref(), known),
        };
        let own = match other {
            Party::Pod(seat, _) => self.is_own_node(*seat, name),
            _ => true,
        };
        let here = |address: &IpAddr| self.plan.here.contains(address);
        if let Some(address) = first(known).filter(here) {
            return Ok(Some((Spot::Node, address)));
        }
        // the node itself sends from the bridge; it is reached at an address of its own if one is known
        if own && (field == "src" || known.is_empty()) {
            let gateways = match other {
                Party::Pod(_, theirs) => first(theirs)
                    .and_then(|address| self.plan.subnet_of(address))
                    .map_or(Vec::new(), |subnet| vec![subnet.gateway]),
                _ => self.plan.uplinks.clone(),
            };
            return Ok(first(&gateways).map(|address| (Spot::Node, address)));
        }
        // another node is a stranger; one whose address nobody knows got a free one
        let planned = name.and_then(|name| self.plan.nodes.get(name));
        let known = if known.is_empty() { planned.unwrap_or(known) } else { known };
        Ok(first(known).map(|address| (Spot::Outside, address)))
    }

    pub(super) fn way(
        &self,
        from: Spot,
        source: IpAddr,
        to: Spot,
        destination: IpAddr,
        transport: Transport,
    ) -> Answer {
        let allow = |why: &str| Answer { verdict: Verdict::Allow, why: why.to_owned() };
        if from == to && matches!(from, Spot::Pod(_)) {
            return allow("a pod always reaches itself");
        }
        let egress = match from {
            Spot::Pod(seat) => self.gate(seat, Direction::Egress, destination, transport),
            Spot::Node | Spot::Outside => None,
        };
        let ingress = match (from, to) {
            (Spot::Node, Spot::Pod(_)) => {
                return allow("a pod's own node always reaches it");
            }
            (_, Spot::Pod(seat)) => self.gate(seat, Direction::Ingress, source, transport),
            (_, Spot::Node | Spot::Outside) => None,
        };
        let gates = [egress, ingress].into_iter().flatten().collect::<Vec<_>>();
        if let Some((pod, refusal)) = gates.iter().find(|(_, gate)| gate.verdict == Verdict::Deny) {
            let why = refusal.why.trim_start_matches("denied: ");
            return Answer { verdict: Verdict::Deny, why: format!("denied at {pod}: {why}") };
        }
        match gates.is_empty() {
            true => allow("neither end is a pod: no policy applies"),
            false => allow(&gates.iter().map(told).collect::<Vec<_>>().join("; ")),
        }
    }

    fn gate(
        &self,
        seat: usize,
        direction: Direction,
        peer: IpAddr,
        transport: Transport,
    ) -> Option<(String, Explanation)> {
        let seat = &self.seats[seat];
        let said = self.engine.explain(&seat.endpoint, direction, peer, transport)?;
        Some((seat.pod.key.to_string(), said))
    }
}

fn told((pod, gate): &(String, Explanation)) -> String {
    format!("{} at {pod}: {}", gate.direction, gate.why)
}

/// The answers of a probe's ways as one, and whether the endpoints of a service differ. `None` if there is no way.
pub fn sum_up(ways: &[Way], answers: &[Answer]) -> Option<(Answer, bool)> {
    let mut families = Vec::new();
    let mut mixed = false;
    for v4 in [true, false] {
        let of = ways.iter().zip(answers).filter(|(way, _)| way.source.is_ipv4() == v4);
        let of = of.collect::<Vec<_>>();
        let Some((way, answer)) = of.first() else { continue };
        families.push((
            way.source,
            match way.through {
                None => (*answer).clone(),
                Some(_) => {
                    let (answer, differ) = of_endpoints(&of);
                    mixed |= differ;
                    answer
                }
            },
        ));
    }
    Some((combine(families.iter().map(|(address, answer)| (*address, answer)))?, mixed))
}

/// What becomes of a packet that goes to one of several endpoints: allowed if all are, and denied as soon as one
/// is, for it may be the one that is picked.
fn of_endpoints(ways: &[(&Way, &Answer)]) -> (Answer, bool) {
    let with = |verdict| ways.iter().filter(move |(_, answer)| answer.verdict == verdict);
    let differ = with(Verdict::Allow).count() > 0 && with(Verdict::Deny).count() > 0;
    let verdict = if with(Verdict::Deny).count() > 0 { Verdict::Deny } else { Verdict::Allow };
    if !differ {
        // each gate once
        let whys = ways.iter().flat_map(|(_, answer)| answer.why.split("; "));
        let mut told = BTreeSet::new();
        let whys = whys.filter(|why| told.insert(*why)).collect::<Vec<_>>();
        return (Answer { verdict, why: whys.join("; ") }, false);
    }
    let allowed = with(Verdict::Allow).map(|(way, _)| way.endpoint()).collect::<Vec<_>>();
    let denied = with(Verdict::Deny)
        .map(|(way, answer)| format!("to {}: {}", way.endpoint(), answer.why))
        .collect::<Vec<_>>();
    let why = format!(
        "it depends on the endpoint: allowed to {}; {}",
        allowed.join(", "),
        denied.join("; ")
    );
    (Answer { verdict: Verdict::Deny, why }, true)
}

impl Way {
    /// Where it ends, with the port if there is one.
    pub fn endpoint(&self) -> String {
        match self.transport {
            Transport::Port(_, port) => SocketAddr::new(self.destination, port).to_string(),
            Transport::Other => self.destination.to_string(),
        }
    }
}

/// The answers of both families as one: allowed only if all are. `None` if there is none.
fn combine<'a>(ways: impl Iterator<Item = (IpAddr, &'a Answer)>) -> Option<Answer> {
    let ways = ways.collect::<Vec<_>>();
    let (_, first) = ways.first()?;
    if ways.iter().all(|(_, answer)| answer.verdict == first.verdict) {
        let mut whys = ways.iter().map(|(_, answer)| answer.why.as_str()).collect::<Vec<_>>();
        whys.dedup();
        return Some(Answer { verdict: first.verdict, why: whys.join("; ") });
    }
    let parts = ways.iter().map(|(address, answer)| {
        let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
        format!("{family} {}: {}", name_of(answer.verdict), answer.why)
    });
    let why = format!("families differ: {}", parts.collect::<Vec<_>>().join("; "));
    Some(Answer { verdict: Verdict::Deny, why })
}

/// What a matrix asks about at a pod when the user does not say: the named ports of its containers and
/// the port numbers that policies of its namespace speak of; 80/TCP if there are none.
pub(crate) fn telling_ports(world: &World, seat: usize) -> Vec<Wire> {
    use podgate_policy::model::{Port, Ports};
    let pod = &world.seats[seat].pod;
    let mut ports = pod.ports.iter().map(|port| (port.protocol, port.number)).collect::<Vec<_>>();
    for policy in world.index.policies_selecting(pod) {
        for rule in policy.ingress.iter().flatten() {
            let Ports::Of(list) = &rule.ports else { continue };
            ports.extend(list.iter().filter_map(|port| match port {
                Port::Numbers(protocol, range) => Some((*protocol, *range.start())),
                Port::All(_) | Port::Named(..) => None,
            }));
        }
    }
    ports.sort();
    ports.dedup();
    if ports.is_empty() {
        ports.push((podgate_policy::model::Protocol::Tcp, 80));
    }
    ports.into_iter().map(|(protocol, port)| Wire(Transport::Port(protocol, port))).collect()
}
