//! UDP: a datagram, and the one that comes back.

use std::net::SocketAddr;
use std::time::Duration;

use socket2::{Protocol, Type};
use tokio::time::timeout;

use super::socket::{bound, datagrams, response_of};
use super::{PacketSpec, Response, Retry, TRY};
use crate::lab::error::Result;

/// After this the datagram is sent once more.
const AGAIN: Duration = Duration::from_millis(150);

pub(super) async fn ask(packet: &PacketSpec, port: u16, retry: Retry) -> Result<Response> {
    let socket = datagrams(bound(&packet.netns, Type::DGRAM, Protocol::UDP, packet.from, 0)?)?;
    if let Err(error) = socket.connect(SocketAddr::new(packet.to, port)).await {
        return Ok(response_of(&error));
    }
    let wait = if retry == Retry::Repeat { AGAIN } else { 2 * TRY };
    let mut buffer = [0; 512];
    loop {
        if let Err(error) = socket.send(b"podgate lab").await {
            return Ok(response_of(&error));
        }
        match timeout(wait, socket.recv(&mut buffer)).await {
            Ok(Ok(length)) => {
                let name = String::from_utf8_lossy(&buffer[..length]).into_owned();
                return Ok(Response::Answered(Some(name)));
            }
            Ok(Err(error)) => return Ok(response_of(&error)),
            Err(_) => {}
        }
    }
}
