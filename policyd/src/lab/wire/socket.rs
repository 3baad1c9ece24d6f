//! Sockets of any kind, made in any place.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;

use nix::sys::socket::{SockaddrStorage, recvfrom};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::unix::AsyncFd;

use super::{Outcome, Place};
use crate::lab::error::{Error, Result};

/// A socket bound to `address`:`port` in its place, ready for a runtime.
pub(super) fn bound(
    place: &Place,
    kind: Type,
    protocol: Protocol,
    address: IpAddr,
    port: u16,
) -> Result<Socket> {
    let shown = || format!("a socket on {}", SocketAddr::new(address, port));
    place.run(|| {
        let socket = Socket::new(Domain::for_address(SocketAddr::new(address, 0)), kind, Some(protocol))
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

/// A datagram or raw socket in the runtime.
#[derive(Debug)]
pub(super) struct Datagrams {
    socket: AsyncFd<Socket>,
}

impl Datagrams {
    pub(super) fn new(socket: Socket) -> Result<Self> {
        AsyncFd::new(socket)
            .map(|socket| Self { socket })
            .map_err(|e| Error::io("watch", "a socket", e))
    }

    pub(super) fn socket(&self) -> &Socket {
        self.socket.get_ref()
    }

    /// The next datagram, cut to the buffer, and who sent it.
    pub(super) async fn receive(&self, buffer: &mut [u8]) -> io::Result<(usize, Option<IpAddr>)> {
        loop {
            let mut ready = self.socket.readable().await?;
            let received = ready.try_io(|fd| {
                recvfrom::<SockaddrStorage>(fd.as_raw_fd(), buffer).map_err(io::Error::from)
            });
            if let Ok(received) = received {
                return received.map(|(length, from)| (length, from.as_ref().and_then(address)));
            }
        }
    }
}

fn address(from: &SockaddrStorage) -> Option<IpAddr> {
    let v4 = from.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
    v4.or_else(|| from.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
}

/// What an error of a socket says about the packet's way.
pub(super) fn outcome_of(error: &io::Error) -> Outcome {
    match error.kind() {
        // an answer of the destination itself: the packet arrived, nobody was at that port
        io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset => Outcome::Answered(None),
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => Outcome::Silent,
        _ => Outcome::Unroutable(error.to_string()),
    }
}
