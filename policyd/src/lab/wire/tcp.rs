//! TCP: a connection, and the first line that the other end says.

use std::net::SocketAddr;

use socket2::{Protocol, Type};
use tokio::io::AsyncReadExt;
use tokio::net::TcpSocket;

use super::socket::{bound, outcome_of};
use super::{Outcome, Shot};
use crate::lab::error::Result;

pub(super) async fn ask(shot: &Shot, port: u16) -> Result<Outcome> {
    let socket = bound(&shot.place, Type::STREAM, Protocol::TCP, shot.from, 0)?;
    let socket = TcpSocket::from_std_stream(socket.into());
    let mut stream = match socket.connect(SocketAddr::new(shot.to, port)).await {
        Ok(stream) => stream,
        Err(error) => return Ok(outcome_of(&error)),
    };
    let mut name = String::new();
    Ok(match stream.read_to_string(&mut name).await {
        Ok(_) => Outcome::Answered(Some(name)),
        Err(error) => outcome_of(&error),
    })
}
