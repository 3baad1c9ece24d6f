//! UDP: a datagram, and the one that comes back.

use std::net::SocketAddr;
use std::time::Duration;

use socket2::{Protocol, Type};
use tokio::net::UdpSocket;
use tokio::time::timeout;

use super::socket::{bound, outcome_of};
use super::{Outcome, Shot};
use crate::lab::error::{Error, Result};

/// After this the datagram is sent once more.
const AGAIN: Duration = Duration::from_millis(150);

pub(super) async fn ask(shot: &Shot, port: u16) -> Result<Outcome> {
    let socket = bound(&shot.place, Type::DGRAM, Protocol::UDP, shot.from, 0)?;
    let socket =
        UdpSocket::from_std(socket.into()).map_err(|e| Error::io("watch", "a socket", e))?;
    if let Err(error) = socket.connect(SocketAddr::new(shot.to, port)).await {
        return Ok(outcome_of(&error));
    }
    let mut buffer = [0; 512];
    loop {
        if let Err(error) = socket.send(b"podgate lab").await {
            return Ok(outcome_of(&error));
        }
        match timeout(AGAIN, socket.recv(&mut buffer)).await {
            Ok(Ok(length)) => {
                let name = String::from_utf8_lossy(&buffer[..length]).into_owned();
                return Ok(Outcome::Answered(Some(name)));
            }
            Ok(Err(error)) => return Ok(outcome_of(&error)),
            Err(_) => {}
        }
    }
}
