//! Which flows a pod has open, keyed as its gate sees their packets. Pure.
//!
//! Conntrack has connections from end to end, with address translation; a gate sees their packets at the pod's veth only.
//! What a pod sends passes its gate before any translation, what it receives passes it after all of them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use podgate_bpf::abi::{Direction, FlowKind, ip_protocol};
use podgate_bpf::seeding::Seed;
use podgate_contract::handshake::EndpointRef;

use super::conntrack::Tracked;
use super::sockets::{Connected, Sockets};

/// An endpoint whose flows are to be seeded.
#[derive(Clone, Debug)]
pub(super) struct SeedTarget {
    /// Interface and owner number.
    pub(super) endpoint: EndpointRef,
    /// The pod's addresses on this interface.
    pub(super) addresses: Vec<IpAddr>,
    /// The pod's open sockets.
    pub(super) sockets: Sockets,
}

/// The endpoints to seed, by address, and the node's own addresses.
#[derive(Debug)]
pub(super) struct SeedTargets<'a> {
    by_address: BTreeMap<IpAddr, &'a SeedTarget>,
    node: &'a BTreeSet<IpAddr>,
}

impl<'a> SeedTargets<'a> {
    pub(super) fn new(targets: &'a [SeedTarget], node: &'a BTreeSet<IpAddr>) -> Self {
        let each = |target: &'a SeedTarget| {
            target.addresses.iter().map(move |address| (address.to_canonical(), target))
        };
        Self { by_address: targets.iter().flat_map(each).collect(), node }
    }

    /// The flows of a tracked connection: one at each of its ends that is an endpoint to seed.
    pub(super) fn of_tracked(&self, tracked: &Tracked) -> impl Iterator<Item = Seed> {
        let opener = self.by_address.get(&tracked.original.source.ip());
        let answerer = self.by_address.get(&tracked.reply.source.ip());
        let opener = opener.map(|target| sent(target, tracked));
        let answerer = answerer.map(|target| self.received(target, tracked));
        opener.into_iter().chain(answerer).map(|seed| self.corrected(seed, tracked))
    }

    fn received(&self, target: &SeedTarget, tracked: &Tracked) -> Seed {
        let Tracked { protocol, original, reply, state, .. } = *tracked;
        Seed {
            endpoint: target.endpoint,
            pod: reply.source,
            peer: without_id(reply.destination, protocol),
            protocol,
            kind: kind(protocol, FlowKind::EchoByPeer),
            direction: Direction::Ingress,
            state,
            // A masqueraded connection arrives with the node's address as well. Only if the original source is the
            // node's too was it opened by the node.
            by_own_node: self.is_node(original.source.ip()) && self.is_node(reply.destination.ip()),
            translated_to: None,
        }
    }

    fn is_node(&self, address: IpAddr) -> bool {
        self.node.contains(&address)
    }

    /// Conntrack may take a reply for the opening packet of a connection that it picked up mid-stream: the pod's
    /// sockets show the true direction.
    fn corrected(&self, seed: Seed, tracked: &Tracked) -> Seed {
        let Some(target) = self.by_address.get(&seed.pod.ip()) else { return seed };
        let is = |socket: &&Connected| {
            (socket.protocol, socket.local, socket.remote) == (seed.protocol, seed.pod, seed.peer)
        };
        if !tracked.picked_up || !target.sockets.connected.iter().any(|socket| is(&socket)) {
            return seed;
        }
        let opener = target.sockets.opener(seed.protocol, seed.pod.port(), seed.peer.port());
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

    /// The flow of a socket whose connection conntrack does not have. `None` if it is not known which side opened it, or
    /// if its packets do not pass the gate.
    pub(super) fn of_socket(&self, target: &SeedTarget, socket: &Connected) -> Option<Seed> {
        let Connected { protocol, local, remote, state } = *socket;
        if !target.addresses.contains(&local.ip()) || target.addresses.contains(&remote.ip()) {
            return None;
        }
        let direction = target.sockets.opener(protocol, local.port(), remote.port())?;
        Some(Seed {
            endpoint: target.endpoint,
            pod: local,
            peer: remote,
            protocol,
            kind: FlowKind::Plain,
            direction,
            state,
            // masquerading needs conntrack: without an entry there, the peer's address is genuine
            by_own_node: direction == Direction::Ingress && self.is_node(remote.ip()),
            translated_to: None,
        })
    }
}

fn sent(target: &SeedTarget, tracked: &Tracked) -> Seed {
    let Tracked { protocol, original, reply, state, .. } = *tracked;
    let (seen, real) =
        (without_id(original.destination, protocol), without_id(reply.source, protocol));
    Seed {
        endpoint: target.endpoint,
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

/// The key of an echo flow has the identifier on the pod's side only.
fn without_id(side: SocketAddr, protocol: u8) -> SocketAddr {
    match protocol {
        ip_protocol::ICMP | ip_protocol::ICMPV6 => SocketAddr::new(side.ip(), 0),
        _ => side,
    }
}

fn kind(protocol: u8, echo: FlowKind) -> FlowKind {
    match protocol {
        ip_protocol::ICMP | ip_protocol::ICMPV6 => echo,
        _ => FlowKind::Plain,
    }
}

#[cfg(test)]
mod tests {
    use podgate_bpf::abi::FlowState;

    use podgate_bpf::abi::ip_protocol::{ICMP, TCP, UDP};

    use super::*;
    use crate::adopt::conntrack::Sides;

    const OWN: EndpointRef = EndpointRef { ifindex: 7, owner: 70 };
    const OTHER: EndpointRef = EndpointRef { ifindex: 8, owner: 80 };

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    /// The seeds of a tracked connection for pods 10.0.0.1 and 10.0.0.2 on a node 10.0.0.254.
    fn seeds(tracked: Tracked, sockets: Sockets) -> Vec<Seed> {
        let target = |endpoint, address: &str| SeedTarget {
            endpoint,
            addresses: vec![address.parse().unwrap()],
            sockets: sockets.clone(),
        };
        let targets = [target(OWN, "10.0.0.1"), target(OTHER, "10.0.0.2")];
        let node = BTreeSet::from(["10.0.0.254".parse().unwrap()]);
        SeedTargets::new(&targets, &node).of_tracked(&tracked).collect()
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
    fn a_masqueraded_connection_is_not_the_nodes_own() {
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
    fn sockets_correct_the_direction_of_a_connection_picked_up_midstream() {
        let (server, client) = ("10.0.0.1:80", "192.0.2.9:5000");
        // the kernel saw an answer of the pod first
        let wrong = Tracked { picked_up: true, ..tracked(TCP, [server, client], [client, server]) };
        let egress = seed(OWN, server, client, Direction::Egress);
        assert_eq!(seeds(wrong, Sockets::default()), [egress], "nothing contradicts it");
        let sockets = Sockets::of(&[(TCP, 80)], &[(TCP, server, client)]);
        let ingress = seed(OWN, server, client, Direction::Ingress);
        assert_eq!(seeds(wrong, sockets.clone()), [ingress]);
        // conntrack saw the handshake, so its direction is right
        let right = Tracked { picked_up: false, ..wrong };
        assert_eq!(seeds(right, sockets), [egress]);
    }

    #[test]
    fn listening_sockets_give_the_direction_of_untracked_connections() {
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
        let target = SeedTarget {
            endpoint: OWN,
            addresses: vec!["10.0.0.1".parse().unwrap()],
            sockets: sockets.clone(),
        };
        let node = BTreeSet::from(["10.0.0.254".parse().unwrap()]);
        let targets = SeedTargets::new(std::slice::from_ref(&target), &node);
        let found: Vec<Option<(Direction, bool)>> = sockets
            .connected
            .iter()
            .map(|socket| targets.of_socket(&target, socket))
            .map(|seed| seed.map(|seed| (seed.direction, seed.by_own_node)))
            .collect();
        let expected = [
            Some((Direction::Ingress, true)),
            Some((Direction::Egress, false)),
            Some((Direction::Egress, false)),
            Some((Direction::Ingress, false)),
            // neither port is ephemeral: the opener is not known
            None,
            // neither passes the gate
            None,
            None,
        ];
        assert_eq!(found, expected);
    }
}
