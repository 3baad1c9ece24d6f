//! Events that the programs raise for verdicts.

use std::net::IpAddr;
use std::time::Duration;

use libbpf_rs::{RingBuffer, RingBufferBuilder};
use zerocopy::FromBytes;

use crate::abi::{Direction, EventFlag, EventRecord, Reason, Verdict};
use crate::maps::Maps;
use crate::typed_map::errno;
use crate::{Error, Result};

/// One verdict on one packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// CLOCK_MONOTONIC, nanoseconds.
    pub time: u64,
    /// Host veth.
    pub ifindex: u32,
    /// The endpoint's owner number; 0 where the interface is not registered.
    pub owner: u32,
    /// Number of the rule that decided; 0 if none did.
    pub rule: u32,
    /// Class of the peer.
    pub class: u32,
    /// Of the packet, bytes.
    pub length: u32,
    /// Of the packet, seen from the pod.
    pub direction: Direction,
    /// Why.
    pub reason: Reason,
    /// What happened to the packet: in audit mode, and where the rule is only audited, a denial passes.
    pub verdict: Verdict,
    /// Whether the rule's policy asks for its flows to be logged.
    pub logged: bool,
    /// 4, 6, or 0 where the packet is no IP.
    pub family: u8,
    /// IP protocol.
    pub protocol: u8,
    /// Pod's address and port (identifier of an echo).
    pub pod: (IpAddr, u16),
    /// Peer's address and port.
    pub peer: (IpAddr, u16),
    /// The service's address and port, where the pod reaches the peer through one.
    pub service: Option<(IpAddr, u16)>,
}

impl Event {
    fn parse(bytes: &[u8]) -> Option<Self> {
        let (record, _) = EventRecord::read_from_prefix(bytes).ok()?;
        Some(Self {
            time: record.time,
            ifindex: record.ifindex,
            owner: record.owner,
            rule: record.rule,
            class: record.peer_class,
            length: record.length,
            direction: Direction::from_number(record.direction)?,
            reason: Reason::from_number(record.reason)?,
            verdict: Verdict::from_number(record.verdict)?,
            logged: record.flags & EventFlag::Logged as u8 != 0,
            family: record.family,
            protocol: record.protocol,
            pod: (record.pod.into(), u16::from_be_bytes(record.pod_port)),
            peer: (record.peer.into(), u16::from_be_bytes(record.peer_port)),
            service: (record.service_port != [0; 2])
                .then(|| (record.service.into(), u16::from_be_bytes(record.service_port))),
        })
    }
}

/// A reader of the ring. There can be only one: an event that it takes is gone for others.
#[derive(Debug)]
pub struct Events {
    ring: RingBuffer<'static>,
}

impl Events {
    /// Gives every event to `report`, which runs inside [`Events::poll`]. Make and poll it on one thread.
    pub fn new(maps: &Maps, mut report: impl FnMut(Event) + Send + 'static) -> Result<Self> {
        let fault = |e: libbpf_rs::Error| Error::io("open ring", "events", errno(&e));
        let mut builder = RingBufferBuilder::new();
        builder
            .add(maps.events()?, move |bytes| {
                if let Some(event) = Event::parse(bytes) {
                    report(event);
                }
                0
            })
            .map_err(fault)?;
        Ok(Self { ring: builder.build().map_err(fault)? })
    }

    /// Waits for events at most this long; returns after giving out what there is.
    pub fn poll(&self, timeout: Duration) -> Result<()> {
        match self.ring.poll(timeout) {
            Ok(()) => Ok(()),
            Err(e) => match errno(&e) {
                cause if cause.kind() == std::io::ErrorKind::Interrupted => Ok(()),
                cause => Err(Error::io("read ring", "events", cause)),
            },
        }
    }
}
