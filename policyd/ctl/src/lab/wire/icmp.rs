//! ICMP: an echo request over a ping socket; the kernel at the other end answers.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use socket2::{Protocol, Type};
use tokio::time::timeout;

use super::socket::{bound, datagrams, response_of};
use super::{PacketSpec, Response};
use crate::lab::error::Result;

/// Type of an echo request and of its reply.
const ECHO4: (u8, u8) = (8, 0);
const ECHO6: (u8, u8) = (128, 129);

/// After this the request is sent once more.
const AGAIN: Duration = Duration::from_millis(150);

pub(super) async fn ask(packet: &PacketSpec) -> Result<Response> {
    let (protocol, (request, reply)) = match packet.to {
        IpAddr::V4(_) => (Protocol::ICMPV4, ECHO4),
        IpAddr::V6(_) => (Protocol::ICMPV6, ECHO6),
    };
    let socket = datagrams(bound(&packet.netns, Type::DGRAM, protocol, packet.from, 0)?)?;
    if let Err(error) = socket.connect(SocketAddr::new(packet.to, 0)).await {
        return Ok(response_of(&error));
    }
    let mut buffer = [0; 256];
    for sequence in 0_u8.. {
        // the kernel fills in identifier and checksum
        let request =
            [request, 0, 0, 0, 0, 0, 0, sequence, b'p', b'o', b'd', b'g', b'a', b't', b'e'];
        if let Err(error) = socket.send(&request).await {
            return Ok(response_of(&error));
        }
        match timeout(AGAIN, socket.recv(&mut buffer)).await {
            Ok(Ok(length)) if length > 0 && buffer[0] == reply => {
                return Ok(Response::Answered(None));
            }
            Ok(Err(error)) => return Ok(response_of(&error)),
            Ok(Ok(_)) | Err(_) => {}
        }
    }
    Ok(Response::Silent)
}
