//! SCTP without the kernel's SCTP, which many machines do not have: a raw socket that sends the first
//! packet of an association (INIT) and one at the other end that answers it (INIT ACK).

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use socket2::{Protocol, Type};
use tokio::net::UdpSocket;
use tokio::time::timeout;

use super::socket::{bound, datagrams, response_of};
use super::{Netns, PacketSpec, Response};
use crate::lab::error::Result;

/// IP protocol number.
const SCTP: i32 = 132;
/// Chunk types.
const INIT: u8 = 1;
const INIT_ACK: u8 = 2;
/// Our verification tag; one is enough, the ports tell probes apart.
const TAG: [u8; 4] = *b"podg";

/// After this the packet is sent once more.
const AGAIN: Duration = Duration::from_millis(150);

/// Source ports must differ between probes in flight, since every raw socket sees every packet.
static NEXT_PORT: AtomicU16 = AtomicU16::new(0);
const FIRST_PORT: u16 = 20_000;
const PORTS: u16 = 40_000;

pub(super) async fn ask(packet: &PacketSpec, port: u16) -> Result<Response> {
    let socket = raw(&packet.netns, packet.from)?;
    if let Err(error) = socket.connect(SocketAddr::new(packet.to, 0)).await {
        return Ok(response_of(&error));
    }
    let own = FIRST_PORT + NEXT_PORT.fetch_add(1, Ordering::Relaxed) % PORTS;
    let init = build(own, port, [0; 4], INIT);
    let mut buffer = [0; 2048];
    'send: loop {
        if let Err(error) = socket.send(&init).await {
            return Ok(response_of(&error));
        }
        loop {
            match timeout(AGAIN, socket.recv(&mut buffer)).await {
                Ok(Ok(length)) => {
                    if parse(&buffer[..length], packet.to) == Some((port, own, INIT_ACK)) {
                        return Ok(Response::Answered(None));
                    }
                }
                Ok(Err(error)) => return Ok(response_of(&error)),
                Err(_) => continue 'send,
            }
        }
    }
}

/// Answers every INIT that reaches `address`, whatever its port; `note` is called with its source and that port.
pub(super) async fn answer(socket: UdpSocket, address: IpAddr, note: impl Fn(IpAddr, u16)) {
    let mut buffer = [0; 2048];
    loop {
        // an error here is about an earlier answer of ours (unreachable), not about the socket
        let Ok((length, peer)) = socket.recv_from(&mut buffer).await else { continue };
        let Some((from, to, INIT)) = parse(&buffer[..length], address) else { continue };
        note(peer.ip(), to);
        let reply = build(to, from, TAG, INIT_ACK);
        // the kernel wants no port on a raw socket's destination
        let _ = socket.send_to(&reply, SocketAddr::new(peer.ip(), 0)).await;
    }
}

/// A raw socket for SCTP bound to an address.
pub(super) fn raw(netns: &Netns, address: IpAddr) -> Result<UdpSocket> {
    datagrams(bound(netns, Type::RAW, Protocol::from(SCTP), address, 0)?)
}

/// Common header and one INIT-like chunk, checksum included (RFC 9260, 3.1, 3.3.2).
fn build(from: u16, to: u16, tag: [u8; 4], chunk: u8) -> Vec<u8> {
    let mut packet = Vec::with_capacity(32);
    packet.extend(from.to_be_bytes());
    packet.extend(to.to_be_bytes());
    packet.extend(tag);
    packet.extend([0; 4]);
    packet.extend([chunk, 0, 0, 20]);
    packet.extend(TAG); // initiate tag
    packet.extend(65_536_u32.to_be_bytes()); // receiver window
    packet.extend([0, 1, 0, 1]); // streams out, in
    packet.extend([0, 0, 0, 1]); // first TSN
    let checksum = crc32c::crc32c(&packet);
    packet[8..12].copy_from_slice(&checksum.to_le_bytes());
    packet
}

/// Source port, destination port and chunk type of what a raw socket gave: with the IP header for IPv4,
/// without it for IPv6.
fn parse(received: &[u8], family_of: IpAddr) -> Option<(u16, u16, u8)> {
    let payload = match family_of {
        IpAddr::V4(_) => received.get(usize::from(received.first()? & 0xf) * 4..)?,
        IpAddr::V6(_) => received,
    };
    let port = |at: usize| Some(u16::from_be_bytes([*payload.get(at)?, *payload.get(at + 1)?]));
    Some((port(0)?, port(2)?, *payload.get(12)?))
}
