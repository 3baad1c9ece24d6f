//! TCP: a connection, and the first line that the other end says.

use std::net::SocketAddr;

use socket2::{Protocol, Type};
use tokio::io::AsyncReadExt;
use tokio::net::TcpSocket;

use super::socket::{bound, response_of};
use super::{PacketSpec, Response};
use crate::lab::error::Result;

pub(super) async fn ask(packet: &PacketSpec, port: u16) -> Result<Response> {
    let socket = bound(&packet.netns, Type::STREAM, Protocol::TCP, packet.from, 0)?;
    let socket = TcpSocket::from_std_stream(socket.into());
    let mut stream = match socket.connect(SocketAddr::new(packet.to, port)).await {
        Ok(stream) => stream,
        Err(error) => return Ok(response_of(&error)),
    };
    let mut name = String::new();
    Ok(match stream.read_to_string(&mut name).await {
        Ok(_) => Response::Answered(Some(name)),
        Err(error) => response_of(&error),
    })
}
