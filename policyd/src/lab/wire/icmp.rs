//! ICMP: an echo request over a ping socket; the kernel at the other end answers.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use socket2::{Protocol, Type};
use tokio::time::timeout;

use super::socket::{bound, datagrams, outcome_of};
use super::{Outcome, Shot};
use crate::lab::error::Result;

/// Type of an echo request and of its reply.
const ECHO4: (u8, u8) = (8, 0);
const ECHO6: (u8, u8) = (128, 129);

/// After this the request is sent once more.
const AGAIN: Duration = Duration::from_millis(150);

pub(super) async fn ask(shot: &Shot) -> Result<Outcome> {
    let (protocol, (request, reply)) = match shot.to {
        IpAddr::V4(_) => (Protocol::ICMPV4, ECHO4),
        IpAddr::V6(_) => (Protocol::ICMPV6, ECHO6),
    };
    let socket = datagrams(bound(&shot.place, Type::DGRAM, protocol, shot.from, 0)?)?;
    if let Err(error) = socket.connect(SocketAddr::new(shot.to, 0)).await {
        return Ok(outcome_of(&error));
    }
    let mut buffer = [0; 256];
    for sequence in 0_u8.. {
        // the kernel fills in identifier and checksum
        let packet =
            [request, 0, 0, 0, 0, 0, 0, sequence, b'p', b'o', b'd', b'g', b'a', b't', b'e'];
        if let Err(error) = socket.send(&packet).await {
            return Ok(outcome_of(&error));
        }
        match timeout(AGAIN, socket.recv(&mut buffer)).await {
            Ok(Ok(length)) if length > 0 && buffer[0] == reply => {
                return Ok(Outcome::Answered(None));
            }
            Ok(Err(error)) => return Ok(outcome_of(&error)),
            Ok(Ok(_)) | Err(_) => {}
        }
    }
    Ok(Outcome::Silent)
}
