//! What a frame must meet at a gate: worked out from the semantics, with flows and fragments of its own.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};

use podgate_bpf::abi::Direction;

use super::control::{self, Asked, Claim};
use super::strict::{self, Content, Ip, Reading, TCP};
use super::{Shot, Via};
use crate::oracle::{Gate, L4};

/// The pod behind the gate.
#[derive(Clone, Debug)]
pub struct Pod {
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Its node's.
    pub nodes: Vec<IpAddr>,
    /// Addresses of services that the gate translates: how, is not worked out here.
    pub services: Vec<IpAddr>,
    /// Whether it must use its own addresses.
    pub anti_spoofing: bool,
}

impl Pod {
    /// Whether the pod has this address.
    pub fn is_own(&self, address: IpAddr) -> bool {
        self.addresses.contains(&address)
    }
}

/// What policy says of new flows.
pub trait Policy {
    /// Whether it allows a flow with this peer: the port is the destination's.
    fn allows(&self, gate: Gate, peer: IpAddr, l4: L4) -> bool;
    /// Whether there may be a protocol and a port that are allowed with this peer, or, without one, any peer at all.
    fn allows_some(&self, gate: Gate, peer: Option<IpAddr>) -> bool;
    /// Whether nothing whatever is denied in this direction.
    fn allows_all(&self, gate: Gate) -> bool;
}

/// Isolated in both directions, and nothing allowed.
#[derive(Clone, Copy, Debug)]
pub struct DenyAll;

impl Policy for DenyAll {
    fn allows(&self, _: Gate, _: IpAddr, _: L4) -> bool {
        false
    }
    fn allows_some(&self, _: Gate, _: Option<IpAddr>) -> bool {
        false
    }
    fn allows_all(&self, _: Gate) -> bool {
        false
    }
}

/// What a frame must meet, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// It passes.
    Pass(&'static str),
    /// It is dropped.
    Drop(&'static str),
    /// Either.
    Open,
}

/// The two ends and the protocol, as the pod sees them. Ports are 0 where there are none; an echo's identifier is the
/// pod's, and its other port says who asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Flow {
    protocol: u8,
    pod: (IpAddr, u16),
    peer: (IpAddr, u16),
}

/// What is known of a flow.
#[derive(Clone, Copy, Debug)]
struct Known {
    opener: Gate,
    /// A correct packet opened it; a damaged one may or may not have.
    sure: bool,
    /// The node's own sockets opened it, as it seems.
    by_node: bool,
}

type Datagram = (Gate, IpAddr, IpAddr, u32, u8);

/// Where a first fragment came from, and whether it passed, if that is sure.
type First = (Via, Option<bool>);

/// One gate's evaluator, with what it has seen so far.
#[derive(Debug)]
pub struct Judge<'a, P> {
    pod: &'a Pod,
    policy: &'a P,
    asked: Asked,
    flows: HashMap<Flow, Known>,
    /// What became of first fragments; `None` where a damaged one may have changed it.
    firsts: HashMap<Datagram, First>,
}

/// From the pod, or to it.
pub fn gate(direction: Direction) -> Gate {
    match direction {
        Direction::Egress => Gate::Egress,
        Direction::Ingress => Gate::Ingress,
    }
}

impl<'a, P: Policy> Judge<'a, P> {
    /// At a gate that has seen nothing.
    pub fn new(pod: &'a Pod, policy: &'a P) -> Self {
        Self { pod, policy, asked: Asked::default(), flows: HashMap::new(), firsts: HashMap::new() }
    }

    /// What the frame must meet now.
    pub fn expects(&self, shot: &Shot) -> Expected {
        let gate = gate(shot.direction);
        match strict::read(&shot.frame) {
            Reading::Foreign(_) => self.unjudgeable(gate, "no IP"),
            Reading::Arp(arp) => {
                let length = shot.frame.len();
                match control::arp(arp.as_ref(), length, gate, self.pod) {
                    Claim::Genuine => Expected::Pass("ARP"),
                    Claim::Never => Expected::Drop("ARP in another's name"),
                    Claim::Forged => self.unjudgeable(gate, "malformed ARP"),
                    Claim::Ordinary | Claim::Unclear => Expected::Open,
                }
            }
            Reading::Ip(ip) => self.expects_ip(&ip, gate, shot.via),
        }
    }

    fn unjudgeable(&self, gate: Gate, why: &'static str) -> Expected {
        if self.policy.allows_all(gate) { Expected::Open } else { Expected::Drop(why) }
    }

    fn expects_ip(&self, ip: &Ip, gate: Gate, via: Via) -> Expected {
        let claim = control::claim(ip, gate, self.pod, &self.asked);
        match claim {
            Claim::Genuine => return Expected::Pass("control traffic"),
            Claim::Never => return Expected::Drop("control traffic that no pod sends"),
            Claim::Unclear => return Expected::Open,
            Claim::Forged | Claim::Ordinary => {}
        }
        let (own, peer) = ends(ip, gate);
        let (is_own, of_itself) = (self.pod.is_own(own), self.pod.is_own(peer));
        // what only pretends to be control traffic need not pass, even where policy would let it
        let plain = ip.exact && claim == Claim::Ordinary;
        let exact = |pass| if plain { pass } else { Expected::Open };
        let (known, turned) = match flow(ip, gate) {
            Some(flow) => (self.flows.get(&flow), is_opening(ip)),
            None => (self.quoted(ip, gate), false),
        };
        // a test run gives every packet a socket of the node's namespace, and a packet socket is one
        let by_node = via == Via::Nothing && self.pod.nodes.contains(&peer);
        match gate {
            Gate::Egress if self.pod.anti_spoofing && !is_own && !is_link_local(own) => {
                return Expected::Drop("a source that is not the pod's");
            }
            Gate::Ingress if by_node => return Expected::Open,
            Gate::Ingress if self.is_for_others(own) && !is_unread(ip) => {
                return Expected::Drop("a destination that is not the pod's");
            }
            _ => {}
        }
        if self.pod.services.contains(&peer) || self.pod.services.contains(&own) {
            return Expected::Open;
        }
        if of_itself && (gate == Gate::Egress || via == Via::Pod) {
            let plain = matches!(ip.content, Content::Ports { .. }) && !ip.is_first && is_own;
            return if plain { exact(Expected::Pass("a pod to itself")) } else { Expected::Open };
        }
        if matches!(ip.content, Content::Broken(_)) {
            return self.unjudgeable(gate, "no transport header");
        }
        if ip.content == Content::Later {
            return self.expects_later(ip, gate, via, peer);
        }
        let others = |known: &Known| gate == Gate::Ingress && known.by_node;
        let known = known.filter(|known| is_error(ip) || !others(known));
        let allowed = self.policy.allows(gate, peer, l4(ip));
        if is_error(ip) && !ip.exact && !allowed && !self.flows.is_empty() {
            return Expected::Open; // what it quotes may be read in more than one way
        }
        match known {
            // a SYN against the flow's direction asks for a connection of its own
            Some(known) if turned && known.opener != gate => {}
            Some(known) if known.sure => {
                return exact(Expected::Pass("of an allowed flow"));
            }
            Some(_) if !allowed => return Expected::Open,
            _ => {}
        }
        if !allowed {
            return Expected::Drop("policy");
        }
        // a group, or the broadcast address of a subnet that is not known here
        let to_group = gate == Gate::Ingress && !is_own;
        if to_group { Expected::Open } else { exact(Expected::Pass("policy")) }
    }

    /// Whether an address is some other host's, which is none of this pod's business with antiSpoofing.
    fn is_for_others(&self, own: IpAddr) -> bool {
        let group = match own {
            // 255.255.255.255 and, as its prefix is not known here, whatever may be the subnet's broadcast address
            IpAddr::V4(v4) => v4.is_multicast() || v4.octets()[3] == 255,
            IpAddr::V6(v6) => v6.is_multicast(),
        };
        self.pod.anti_spoofing && !self.pod.is_own(own) && !group && !is_link_local(own)
    }

    fn expects_later(&self, ip: &Ip, gate: Gate, via: Via, peer: IpAddr) -> Expected {
        let some = self.policy.allows_some(gate, Some(peer));
        let first = self.firsts.get(&datagram(ip, gate));
        // one that came from elsewhere is not of it
        match first.filter(|(from, _)| gate == Gate::Egress || *from == via).map(|(_, met)| met) {
            Some(Some(true)) if ip.exact => Expected::Pass("of a datagram that passes"),
            Some(Some(true)) => Expected::Open,
            Some(Some(false)) => Expected::Drop("of a datagram that was refused"),
            Some(None) if some || self.may_know(peer) => Expected::Open,
            None if some || self.may_know(peer) => Expected::Open,
            _ => Expected::Drop("a fragment for which no port is allowed"),
        }
    }

    /// Whether there is a flow with this peer, of which the fragment may be.
    fn may_know(&self, peer: IpAddr) -> bool {
        self.flows.keys().any(|flow| flow.peer.0 == peer)
    }

    /// The flow that an ICMP error quotes.
    fn quoted(&self, ip: &Ip, gate: Gate) -> Option<&Known> {
        if !is_error(ip) || ip.is_first {
            return None;
        }
        let inner = strict::read_quote(ip.payload.get(8..)?, ip.source.is_ipv6())?;
        // it went the other way, and the error goes to its sender
        let sent = if gate == Gate::Ingress { Gate::Egress } else { Gate::Ingress };
        let to_its_sender = inner.source == ip.destination;
        let by_its_receiver = gate == Gate::Ingress || inner.destination == ip.source;
        let flow = flow(&inner, sent).filter(|_| to_its_sender && by_its_receiver)?;
        self.flows.get(&flow)
    }

    /// Learns what became of the frame.
    pub fn learn(&mut self, shot: &Shot, passed: bool) {
        let Reading::Ip(ip) = strict::read(&shot.frame) else { return };
        let gate = gate(shot.direction);
        if gate == Gate::Egress && passed {
            let claim = control::claim(&ip, gate, self.pod, &self.asked);
            self.asked.note(&ip, claim == Claim::Genuine);
        }
        if ip.is_first {
            let by_node = shot.via == Via::Nothing && self.pod.nodes.contains(&ip.source);
            let known = if ip.exact && !by_node { Some(passed) } else { None };
            self.firsts.insert(datagram(&ip, gate), (shot.via, known));
        }
        let Some(flow) = flow(&ip, gate).filter(|_| passed) else { return };
        if is_answer(&ip) {
            return; // an answer without its question opens nothing
        }
        if self.pod.is_own(flow.peer.0) || is_group(flow.pod.0) {
            return; // each packet is judged: by its interface, or as none that the pod may answer in that name
        }
        let reset = ip.protocol == TCP && flags(&ip) & 4 != 0;
        // the next one from elsewhere is not of it
        let of_node = shot.via == Via::Nothing && self.pod.nodes.contains(&flow.peer.0);
        let by_node = gate == Gate::Ingress && of_node;
        // control traffic leaves no flow
        let control = control::claim(&ip, gate, self.pod, &self.asked);
        let ordinary = matches!(control, Claim::Ordinary | Claim::Forged);
        let sure = ip.exact && !reset && !by_node && ordinary;
        let known = self.flows.entry(flow).or_insert(Known { opener: gate, sure, by_node });
        if is_opening(&ip) && known.opener != gate {
            *known = Known { opener: gate, sure, by_node };
        }
    }
}

/// The pod's address and the peer's.
fn ends(ip: &Ip, gate: Gate) -> (IpAddr, IpAddr) {
    match gate {
        Gate::Egress => (ip.source, ip.destination),
        Gate::Ingress => (ip.destination, ip.source),
    }
}

/// Whether the gate may not read the addresses, or may take the destination for one that it has not read.
fn is_unread(ip: &Ip) -> bool {
    let no_header = ip.content == Content::Broken("no IPv6 header");
    no_header || (ip.destination.is_unspecified() && !ip.exact)
}

fn is_group(address: IpAddr) -> bool {
    address.is_multicast() || address == IpAddr::V4(Ipv4Addr::BROADCAST)
}

fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(v6) if v6.segments()[0] & 0xffc0 == 0xfe80)
}

fn datagram(ip: &Ip, gate: Gate) -> Datagram {
    // IPv6 has one space of identifications for all protocols
    let protocol = if ip.source.is_ipv4() { ip.protocol } else { 0 };
    (gate, ip.source, ip.destination, ip.id, protocol)
}

fn flags(ip: &Ip) -> u8 {
    if let Content::Ports { flags, .. } = ip.content { flags } else { 0 }
}

/// An ICMP error, which quotes what it is about.
fn is_error(ip: &Ip) -> bool {
    let Content::Icmp { kind, .. } = ip.content else { return false };
    if ip.source.is_ipv6() { (1..=4).contains(&kind) } else { matches!(kind, 3 | 4 | 11 | 12) }
}

fn is_opening(ip: &Ip) -> bool {
    ip.protocol == TCP && flags(ip) & 0x12 == 2
}

/// Question and answer of the kinds of ICMP that have both.
const QUESTIONS: [(bool, u8, u8); 3] = [(false, 8, 0), (false, 13, 14), (true, 128, 129)];

fn is_answer(ip: &Ip) -> bool {
    let Content::Icmp { kind, .. } = ip.content else { return false };
    let v6 = ip.source.is_ipv6();
    QUESTIONS.iter().any(|(family, _, answer)| *family == v6 && *answer == kind)
}

/// The flow of a packet; none of what belongs to no flow or only to another's.
fn flow(ip: &Ip, gate: Gate) -> Option<Flow> {
    let (pod, peer) = ends(ip, gate);
    let (pod_port, peer_port) = match ip.content {
        Content::Ports { source, destination, .. } => match gate {
            Gate::Egress => (source, destination),
            Gate::Ingress => (destination, source),
        },
        Content::Icmp { kind, id, .. } => {
            let v6 = ip.source.is_ipv6();
            let of = |(family, question, answer): &(bool, u8, u8)| {
                *family == v6 && (*question == kind || *answer == kind)
            };
            let (_, question, _) = QUESTIONS.iter().find(|kinds| of(kinds))?;
            let by_pod = (*question == kind) == (gate == Gate::Egress);
            (id, u16::from(*question) << 8 | u16::from(by_pod))
        }
        Content::Other => (0, 0),
        Content::Later | Content::Broken(_) => return None,
    };
    Some(Flow { protocol: ip.protocol, pod: (pod, pod_port), peer: (peer, peer_port) })
}

fn l4(ip: &Ip) -> L4 {
    match ip.content {
        Content::Ports { destination, .. } => {
            let name = match ip.protocol {
                strict::TCP => "TCP",
                strict::UDP => "UDP",
                _ => "SCTP",
            };
            L4::Port(name, destination)
        }
        _ => L4::NoPorts,
    }
}
