//! Flows that were open before their pod had a gate, written as if the programs had seen them from their first
//! packet.
//!
//! An established connection's next packet may be a reply, and at a pod that is isolated for that direction a reply
//! without its flow is a new flow, to be denied. So the flow is written first, with its true direction and an epoch
//! that is not the current one: it is revalidated at its next packet, as every flow after a change of policy.

use std::net::{IpAddr, SocketAddr};

use podgate_contract::handshake::EndpointRef;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::abi::ip_protocol::{ICMP, ICMPV6, SCTP, TCP, UDP};
use crate::abi::{
    Direction, FLOW_BY_OWN_NODE, FLOW_DNAT, FLOW_EXTERNAL_NAT, FLOW_HAIRPIN, FLOW_NO_SLOT,
    FLOW_REVNAT, Flow, Flow4Key, Flow6Key, FlowKind, FlowState,
};
use crate::clock::coarse_now;
use crate::maps::Maps;
use crate::typed_map::TypedMap;
use crate::{Error, Result};

/// A flow as the packets at the pod's veth show it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Seed {
    /// Whose.
    pub endpoint: EndpointRef,
    /// The pod's side. The port is an echo's identifier, and 0 for protocols without ports.
    pub pod: SocketAddr,
    /// The other side, as the pod sees it.
    pub peer: SocketAddr,
    /// IP protocol.
    pub protocol: u8,
    /// Echoes of the two sides are different flows.
    pub kind: FlowKind,
    /// Of the first packet, whenever that was.
    pub direction: Direction,
    /// How far it is.
    pub state: FlowState,
    /// Opened by the pod's own node.
    pub by_own_node: bool,
    /// The backend to which kube-proxy translates the pod's packets, if not `peer`: policy is evaluated for it.
    pub translated_to: Option<SocketAddr>,
}

/// What became of a seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seeded {
    /// The programs did not know the flow.
    New,
    /// They had begun in its midst and taken its first packet for what it was not.
    Corrected,
    /// They know it.
    Known,
}

impl Maps {
    /// Writes a flow, unless the programs know better.
    pub fn seed(&self, seed: &Seed) -> Result<Seeded> {
        let flow = seed.flow(self.control().epoch().wrapping_sub(1), coarse_now());
        match (seed.pod.ip().to_canonical(), seed.peer.ip().to_canonical()) {
            (IpAddr::V4(pod), IpAddr::V4(peer)) => {
                let key = Flow4Key {
                    ifindex: seed.endpoint.ifindex,
                    pod: pod.octets(),
                    peer: peer.octets(),
                    pod_port: seed.pod.port().to_be_bytes(),
                    peer_port: seed.peer.port().to_be_bytes(),
                    protocol: seed.protocol,
                    kind: seed.kind as u8,
                    pad: [0; 2],
                };
                seed.write(&self.flow_table().v4.flows, &key, &flow)
            }
            (pod @ IpAddr::V6(_), peer @ IpAddr::V6(_)) => {
                let key = Flow6Key {
                    ifindex: seed.endpoint.ifindex,
                    pod: pod.into(),
                    peer: peer.into(),
                    pod_port: seed.pod.port().to_be_bytes(),
                    peer_port: seed.peer.port().to_be_bytes(),
                    protocol: seed.protocol,
                    kind: seed.kind as u8,
                    pad: [0; 2],
                };
                seed.write(&self.flow_table().v6.flows, &key, &flow)
            }
            (pod, peer) => Err(Error::Seed { pod, peer }),
        }
    }
}

impl Seed {
    fn write<K>(&self, flows: &TypedMap<K, Flow>, key: &K, flow: &Flow) -> Result<Seeded>
    where
        K: IntoBytes + FromBytes + Immutable + Copy,
    {
        if flows.add(key, flow)? {
            return Ok(Seeded::New);
        }
        match flows.get(key)? {
            Some(known) if self.is_right(&known) => Ok(Seeded::Known),
            Some(known) => {
                let was_ours = known.owner == self.endpoint.owner;
                // it keeps the slot that it has
                let placed = was_ours && known.flags & FLOW_NO_SLOT == 0;
                let flags = if placed { flow.flags & !FLOW_NO_SLOT } else { flow.flags };
                flows.set(key, &Flow { flags, ..*flow })?;
                Ok(if was_ours { Seeded::Corrected } else { Seeded::New })
            }
            // evicted between the two
            None => Ok(if flows.add(key, flow)? { Seeded::New } else { Seeded::Known }),
        }
    }

    /// Whether an entry that the programs made says the same. One that they translate themselves is newer than
    /// anything that is known here.
    fn is_right(&self, known: &Flow) -> bool {
        const OURS: u8 = FLOW_DNAT | FLOW_REVNAT | FLOW_HAIRPIN;
        let foreign = known.flags & FLOW_EXTERNAL_NAT != 0;
        known.owner == self.endpoint.owner
            && (known.flags & OURS != 0
                || (known.direction == self.direction as u8
                    && foreign == self.translated_to.is_some()))
    }

    fn flow(&self, epoch: u32, now: u32) -> Flow {
        let other = self.translated_to;
        let own_node = if self.by_own_node { FLOW_BY_OWN_NODE } else { 0 };
        Flow {
            epoch,
            expires: now.wrapping_add(self.lifetime()),
            owner: self.endpoint.owner,
            rule: 0,
            direction: self.direction as u8,
            state: self.state as u8,
            // which slot of the pod's ring it gets is up to the programs
            flags: FLOW_NO_SLOT | own_node | if other.is_some() { FLOW_EXTERNAL_NAT } else { 0 },
            traffic_rule: 0,
            other: other.map_or(IpAddr::from([0; 16]), |other| other.ip()).into(),
            other_port: other.map_or(0, |other| other.port()).to_be_bytes(),
            own_port: match other {
                Some(_) => self.pod.port().to_be_bytes(),
                None => [0; 2],
            },
            direct_port: [0; 2],
            counted: 0,
            scope: 0,
        }
    }

    /// As `pg_flow_lifetime` of `c/conntrack.h` has it, in coarse seconds.
    fn lifetime(&self) -> u32 {
        const DAYS: u32 = 432_000;
        match (self.protocol, self.state) {
            (TCP, FlowState::New) => 120,
            (TCP, FlowState::Closing) => 600,
            (TCP, FlowState::Closed) => 10,
            (TCP, _) => DAYS,
            (UDP | SCTP, FlowState::New) => 60,
            (UDP, _) => 180,
            (SCTP, _) => DAYS,
            (ICMP | ICMPV6, _) => 30,
            _ => 600,
        }
    }
}
