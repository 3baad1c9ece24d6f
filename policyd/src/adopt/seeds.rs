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

#[cfg(test)]
mod tests {
    use podgate_bpf::abi::FlowState;

    use super::protocol::{ICMP, TCP, UDP};
    use super::*;
    use crate::adopt::conntrack::Sides;

    const OWN: EndpointRef = EndpointRef { ifindex: 7, owner: 70 };
    const OTHER: EndpointRef = EndpointRef { ifindex: 8, owner: 80 };

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    /// A connection, its answers, and what is made of it for pods 10.0.0.1 and 10.0.0.2 on a node 10.0.0.254.
    fn seeds(tracked: Tracked, sockets: Sockets) -> Vec<Seed> {
        let subject = |endpoint, address: &str| Subject {
            endpoint,
            addresses: vec![address.parse().unwrap()],
            sockets: sockets.clone(),
        };
        let subjects = [subject(OWN, "10.0.0.1"), subject(OTHER, "10.0.0.2")];
        let node = BTreeSet::from(["10.0.0.254".parse().unwrap()]);
        Subjects::new(&subjects, &node).of_tracked(&tracked).collect()
    }

    fn tracked(protocol: u8, original: [&str; 2], reply: [&str; 2]) -> Tracked {
        let sides = |[source, destination]: [&str; 2]| Sides {
            source: at(source),
            destination: at(destination),
        };
        let (original, reply) = (sides(original), sides(reply));
        let state = FlowState::Established;
        Tracked { protocol, original, reply, state, picked_up: false }
    }

    fn seed(endpoint: EndpointRef, pod: &str, peer: &str, direction: Direction) -> Seed {
        Seed {
            endpoint,
            pod: at(pod),
            peer: at(peer),
            protocol: TCP,
            kind: FlowKind::Plain,
            direction,
            state: FlowState::Established,
            by_own_node: false,
            translated_to: None,
        }
    }

    #[test]
    fn a_connection_of_two_pods_is_a_flow_at_each() {
        let (client, server) = ("10.0.0.1:4000", "10.0.0.2:80");
        let found = seeds(tracked(TCP, [client, server], [server, client]), Sockets::default());
        let expected = [
            seed(OWN, client, server, Direction::Egress),
            seed(OTHER, server, client, Direction::Ingress),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn a_services_endpoint_is_what_policy_is_about() {
        let (client, service, server) = ("10.0.0.1:4000", "10.96.0.1:80", "10.0.0.2:8080");
        let found = seeds(tracked(TCP, [client, service], [server, client]), Sockets::default());
        let expected = [
            Seed {
                translated_to: Some(at(server)),
                ..seed(OWN, client, service, Direction::Egress)
            },
            seed(OTHER, server, client, Direction::Ingress),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn who_is_masqueraded_looks_like_the_node_and_is_not() {
        // from outside through a node port, and from the node's own process: both arrive with the node's address
        let outside = tracked(
            TCP,
            ["192.0.2.9:5000", "10.0.0.254:30080"],
            ["10.0.0.2:80", "10.0.0.254:6000"],
        );
        let found = seeds(outside, Sockets::default());
        assert_eq!(found, [seed(OTHER, "10.0.0.2:80", "10.0.0.254:6000", Direction::Ingress)]);
        let own =
            tracked(TCP, ["10.0.0.254:5000", "10.0.0.2:80"], ["10.0.0.2:80", "10.0.0.254:5000"]);
        let found = seeds(own, Sockets::default());
        let expected = seed(OTHER, "10.0.0.2:80", "10.0.0.254:5000", Direction::Ingress);
        assert_eq!(found, [Seed { by_own_node: true, ..expected }]);
    }

    #[test]
    fn a_pod_that_is_masqueraded_on_its_way_out_is_seen_before() {
        let out =
            tracked(UDP, ["10.0.0.1:4000", "192.0.2.9:53"], ["192.0.2.9:53", "10.0.0.254:4001"]);
        let found = seeds(out, Sockets::default());
        let expected = seed(OWN, "10.0.0.1:4000", "192.0.2.9:53", Direction::Egress);
        assert_eq!(found, [Seed { protocol: UDP, ..expected }]);
    }

    #[test]
    fn an_echos_identifier_is_the_pods_side_alone() {
        let ping = tracked(ICMP, ["10.0.0.1:9", "192.0.2.9:9"], ["192.0.2.9:9", "10.0.0.254:11"]);
        let expected = Seed {
            protocol: ICMP,
            kind: FlowKind::EchoByPod,
            ..seed(OWN, "10.0.0.1:9", "192.0.2.9:0", Direction::Egress)
        };
        assert_eq!(seeds(ping, Sockets::default()), [expected]);
    }

    #[test]
    fn what_tracking_met_in_its_midst_is_turned_round_by_the_sockets() {
        let (server, client) = ("10.0.0.1:80", "192.0.2.9:5000");
        // the kernel saw an answer of the pod first
        let wrong = Tracked { picked_up: true, ..tracked(TCP, [server, client], [client, server]) };
        let egress = seed(OWN, server, client, Direction::Egress);
        assert_eq!(seeds(wrong, Sockets::default()), [egress], "nothing contradicts it");
        let sockets = Sockets::of(&[(TCP, 80)], &[(TCP, server, client)]);
        let ingress = seed(OWN, server, client, Direction::Ingress);
        assert_eq!(seeds(wrong, sockets.clone()), [ingress]);
        // one that saw the handshake is believed
        let right = Tracked { picked_up: false, ..wrong };
        assert_eq!(seeds(right, sockets), [egress]);
    }

    #[test]
    fn untracked_sockets_tell_who_waited() {
        let sockets = Sockets::of(
            &[(TCP, 80)],
            &[
                (TCP, "10.0.0.1:80", "10.0.0.254:5000"),
                (TCP, "10.0.0.1:4000", "10.0.0.2:80"),
                (UDP, "10.0.0.1:40000", "10.0.0.2:53"),
                (UDP, "10.0.0.1:53", "10.0.0.2:40000"),
                (UDP, "10.0.0.1:53", "10.0.0.2:54"),
                (TCP, "127.0.0.1:4000", "127.0.0.1:80"),
                (TCP, "10.0.0.1:4001", "10.0.0.1:80"),
            ],
        );
        let subject = Subject {
            endpoint: OWN,
            addresses: vec!["10.0.0.1".parse().unwrap()],
            sockets: sockets.clone(),
        };
        let node = BTreeSet::from(["10.0.0.254".parse().unwrap()]);
        let subjects = Subjects::new(std::slice::from_ref(&subject), &node);
        let found: Vec<Option<(Direction, bool)>> = sockets
            .connected
            .iter()
            .map(|socket| subjects.of_socket(&subject, socket))
            .map(|seed| seed.map(|seed| (seed.direction, seed.by_own_node)))
            .collect();
        let expected = [
            Some((Direction::Ingress, true)),
            Some((Direction::Egress, false)),
            Some((Direction::Egress, false)),
            Some((Direction::Ingress, false)),
            // two ports that somebody chose: who began is not to be seen
            None,
            // neither passes the gate
            None,
            None,
        ];
        assert_eq!(found, expected);
    }
}
