//! Which flows a pod has open, as the packets at its veth show them: pure.
//!
//! The kernel's table speaks of connections, from end to end and translated on the way; a gate sees one place of that
//! way. What a pod sends passes its gate before any translation, what it gets passes it after all of them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use podgate_bpf::abi::{Direction, FlowKind};
use podgate_bpf::handshake::EndpointRef;
use podgate_bpf::seeding::Seed;

use super::conntrack::Tracked;
use super::sockets::{Connected, Sockets};

/// Numbers of IP protocols.
pub(super) mod protocol {
    pub(in crate::adopt) const ICMP: u8 = 1;
    pub(in crate::adopt) const TCP: u8 = 6;
    pub(in crate::adopt) const UDP: u8 = 17;
    pub(in crate::adopt) const ICMPV6: u8 = 58;
    pub(in crate::adopt) const SCTP: u8 = 132;
}

/// An interface whose flows are asked for.
#[derive(Clone, Debug)]
pub(super) struct Subject {
    /// Which.
    pub(super) endpoint: EndpointRef,
    /// Its addresses.
    pub(super) addresses: Vec<IpAddr>,
    /// What its pod has open.
    pub(super) sockets: Sockets,
}

/// Those whose flows are asked for, by address, and the node they are on.
#[derive(Debug)]
pub(super) struct Subjects<'a> {
    by_address: BTreeMap<IpAddr, &'a Subject>,
    node: &'a BTreeSet<IpAddr>,
}

impl<'a> Subjects<'a> {
    pub(super) fn new(subjects: &'a [Subject], node: &'a BTreeSet<IpAddr>) -> Self {
        let each = |subject: &'a Subject| {
            subject.addresses.iter().map(move |address| (address.to_canonical(), subject))
        };
        Self { by_address: subjects.iter().flat_map(each).collect(), node }
    }

    /// The flows of a tracked connection: one at each of its ends that is asked for.
    pub(super) fn of_tracked(&self, tracked: &Tracked) -> impl Iterator<Item = Seed> {
        let opener = self.by_address.get(&tracked.original.source.ip());
        let answerer = self.by_address.get(&tracked.reply.source.ip());
        let opener = opener.map(|subject| sent(subject, tracked));
        let answerer = answerer.map(|subject| self.received(subject, tracked));
        opener.into_iter().chain(answerer).map(|seed| self.corrected(seed, tracked))
    }

    fn received(&self, subject: &Subject, tracked: &Tracked) -> Seed {
        let Tracked { protocol, original, reply, state, .. } = *tracked;
        Seed {
            endpoint: subject.endpoint,
            pod: reply.source,
            peer: without_id(reply.destination, protocol),
            protocol,
            kind: kind(protocol, FlowKind::EchoByPeer),
            direction: Direction::Ingress,
            state,
            // masqueraded for somebody else it has the node's address too, but was not sent from it
            by_own_node: self.is_node(original.source.ip()) && self.is_node(reply.destination.ip()),
            translated_to: None,
        }
    }

    fn is_node(&self, address: IpAddr) -> bool {
        self.node.contains(&address)
    }

    /// What was picked up in its midst may have been an answer; the pod's sockets know better.
    fn corrected(&self, seed: Seed, tracked: &Tracked) -> Seed {
        let Some(subject) = self.by_address.get(&seed.pod.ip()) else { return seed };
        let is = |socket: &&Connected| {
            (socket.protocol, socket.local, socket.remote) == (seed.protocol, seed.pod, seed.peer)
        };
        if !tracked.picked_up || !subject.sockets.connected.iter().any(|socket| is(&socket)) {
            return seed;
        }
        let opener = subject.sockets.opener(seed.protocol, seed.pod.port(), seed.peer.port());
        self.directed(seed, opener.unwrap_or(seed.direction))
    }

    fn directed(&self, seed: Seed, direction: Direction) -> Seed {
        match direction {
            direction if direction == seed.direction => seed,
            Direction::Ingress => Seed {
                direction,
                translated_to: None,
                by_own_node: self.is_node(seed.peer.ip()),
                ..seed
            },
            Direction::Egress => Seed { direction, by_own_node: false, ..seed },
        }
    }

    /// A conversation that the kernel does not track; `None` where it cannot be told who began it, or it does not pass
    /// the gate.
    pub(super) fn of_socket(&self, subject: &Subject, socket: &Connected) -> Option<Seed> {
        let Connected { protocol, local, remote, state } = *socket;
        if !subject.addresses.contains(&local.ip()) || subject.addresses.contains(&remote.ip()) {
            return None;
        }
        let direction = subject.sockets.opener(protocol, local.port(), remote.port())?;
        Some(Seed {
            endpoint: subject.endpoint,
            pod: local,
            peer: remote,
            protocol,
            kind: FlowKind::Plain,
            direction,
            state,
            // without tracking there is no masquerading
            by_own_node: direction == Direction::Ingress && self.is_node(remote.ip()),
            translated_to: None,
        })
    }
}

fn sent(subject: &Subject, tracked: &Tracked) -> Seed {
    let Tracked { protocol, original, reply, state, .. } = *tracked;
    let (seen, real) =
        (without_id(original.destination, protocol), without_id(reply.source, protocol));
    Seed {
        endpoint: subject.endpoint,
        pod: original.source,
        peer: seen,
        protocol,
        kind: kind(protocol, FlowKind::EchoByPod),
        direction: Direction::Egress,
        state,
        by_own_node: false,
        translated_to: (real != seen).then_some(real),
    }
}

/// An echo's identifier is the pod's side's alone.
fn without_id(side: SocketAddr, protocol: u8) -> SocketAddr {
    match protocol {
        protocol::ICMP | protocol::ICMPV6 => SocketAddr::new(side.ip(), 0),
        _ => side,
    }
}

fn kind(protocol: u8, echo: FlowKind) -> FlowKind {
    match protocol {
        protocol::ICMP | protocol::ICMPV6 => echo,
        _ => FlowKind::Plain,
    }
}
