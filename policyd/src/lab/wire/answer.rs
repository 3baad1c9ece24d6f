//! Those who answer: a listener for every address and port that is asked about.

use std::collections::BTreeSet;
use std::net::IpAddr;

use podgate_policy::compile::Transport;
use podgate_policy::model::Protocol;
use socket2::Type;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, UdpSocket};
use tokio::task::JoinSet;

use super::socket::{bound, datagrams};
use super::{Place, sctp};
use crate::lab::error::{Error, Result};

/// Connections that may wait while the machine is busy.
const BACKLOG: i32 = 1024;

/// Running listeners; they end when this is dropped.
#[derive(Debug, Default)]
pub struct Answerers {
    tasks: JoinSet<()>,
    served: BTreeSet<(IpAddr, u8, u16)>,
}

impl Answerers {
    /// From now on whoever reaches `address` with `transport` hears `name`. Asking twice is fine.
    pub fn serve(
        &mut self,
        place: &Place,
        address: IpAddr,
        transport: Transport,
        name: &str,
    ) -> Result<()> {
        let Transport::Port(protocol, port) = transport else {
            return Ok(()); // the kernel answers echo requests
        };
        // one raw socket answers every port
        let key = if protocol == Protocol::Sctp { 0 } else { port };
        if !self.served.insert((address, protocol.number(), key)) {
            return Ok(());
        }
        let name = name.to_owned();
        match protocol {
            Protocol::Tcp => {
                let socket = bound(place, Type::STREAM, socket2::Protocol::TCP, address, port)?;
                socket
                    .listen(BACKLOG)
                    .map_err(|e| Error::io("listen on", address.to_string(), e))?;
                let listener = TcpListener::from_std(socket.into())
                    .map_err(|e| Error::io("watch", "a socket", e))?;
                self.tasks.spawn(serve_tcp(listener, name));
            }
            Protocol::Udp => {
                let socket = bound(place, Type::DGRAM, socket2::Protocol::UDP, address, port)?;
                self.tasks.spawn(serve_udp(datagrams(socket)?, name));
            }
            Protocol::Sctp => {
                self.tasks.spawn(sctp::answer(sctp::raw(place, address)?, address));
            }
        }
        Ok(())
    }
}

async fn serve_tcp(listener: TcpListener, name: String) {
    loop {
        // an aborted connection is the asker's business
        let Ok((mut stream, _)) = listener.accept().await else { continue };
        let name = name.clone();
        tokio::spawn(async move {
            let _ = stream.write_all(name.as_bytes()).await;
            let _ = stream.shutdown().await;
        });
    }
}

async fn serve_udp(socket: UdpSocket, name: String) {
    let mut buffer = [0; 512];
    loop {
        // errors are about earlier answers of ours (unreachable), not about the socket
        let Ok((_, from)) = socket.recv_from(&mut buffer).await else { continue };
        let _ = socket.send_to(name.as_bytes(), from).await;
    }
}
