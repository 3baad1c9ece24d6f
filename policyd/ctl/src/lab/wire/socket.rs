//! Sockets of any kind, made in any netns.

use std::io;
use std::net::{IpAddr, SocketAddr};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;

use super::{Netns, Response};
use crate::lab::error::{Error, Result};

/// A socket bound to `address`:`port` in its netns, ready for a runtime.
pub(super) fn bound(
    netns: &Netns,
    kind: Type,
    protocol: Protocol,
    address: IpAddr,
    port: u16,
) -> Result<Socket> {
    let shown = || format!("a socket on {}", SocketAddr::new(address, port));
    netns.run(|| {
        let socket =
            Socket::new(Domain::for_address(SocketAddr::new(address, 0)), kind, Some(protocol))
                .map_err(|e| Error::io("open", shown(), e))?;
        if kind == Type::STREAM {
            socket.set_reuse_address(true).map_err(|e| Error::io("set up", shown(), e))?;
        }
        if address.is_ipv6() && kind != Type::RAW {
            socket.set_only_v6(true).map_err(|e| Error::io("set up", shown(), e))?;
        }
        socket.set_nonblocking(true).map_err(|e| Error::io("set up", shown(), e))?;
        socket
            .bind(&SocketAddr::new(address, port).into())
            .map_err(|e| Error::io("bind", shown(), e))?;
        Ok(socket)
    })
}

/// A datagram or raw socket in the runtime. The runtime's type for UDP serves them all: it only waits
/// for the file and calls send and recv on it.
pub(super) fn datagrams(socket: Socket) -> Result<UdpSocket> {
    UdpSocket::from_std(socket.into()).map_err(|e| Error::io("watch", "a socket", e))
}

/// What an error of a socket says about the packet's way.
pub(super) fn response_of(error: &io::Error) -> Response {
    match error.kind() {
        // an answer of the destination itself: the packet arrived, no listener was at that port
        io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset => {
            Response::Answered(None)
        }
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => Response::Silent,
        _ => Response::Unroutable(error.to_string()),
    }
}
