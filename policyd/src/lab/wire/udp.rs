//! UDP: a datagram, and the one that comes back.

use std::net::SocketAddr;
use std::time::Duration;

use socket2::{Protocol, Type};
use tokio::time::timeout;

use super::socket::{bound, datagrams, outcome_of};
use super::{Often, Outcome, Shot, TRY};
use crate::lab::error::Result;

/// After this the datagram is sent once more.
const AGAIN: Duration = Duration::from_millis(150);

pub(super) async fn ask(shot: &Shot, port: u16, often: Often) -> Result<Outcome> {
    let socket = datagrams(bound(&shot.place, Type::DGRAM, Protocol::UDP, shot.from, 0)?)?;
    if let Err(error) = socket.connect(SocketAddr::new(shot.to, port)).await {
        return Ok(outcome_of(&error));
    }
    let wait = if often == Often::Again { AGAIN } else { 2 * TRY };
    let mut buffer = [0; 512];
    loop {
        if let Err(error) = socket.send(b"podgate lab").await {
            return Ok(outcome_of(&error));
        }
        match timeout(wait, socket.recv(&mut buffer)).await {
            Ok(Ok(length)) => {
                let name = String::from_utf8_lossy(&buffer[..length]).into_owned();
                return Ok(Outcome::Answered(Some(name)));
            }
            Ok(Err(error)) => return Ok(outcome_of(&error)),
            Err(_) => {}
        }
    }
}
