//! Those who answer: a listener for every address and port that is asked about.
//!
//! They run on a thread of their own: a hundred questions in flight must not keep an answer from being given.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use podgate_policy::model::Protocol;
use podgate_policy::tables::Transport;
use socket2::Type;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, UdpSocket};
use tokio::runtime::{self, Handle};
use tokio::sync::oneshot;

use super::socket::{bound, datagrams};
use super::{Netns, sctp};
use crate::lab::error::{Error, Result};

/// Connections that may wait while the machine is busy.
const BACKLOG: i32 = 1024;

/// Who asked whom: the source as the answerer sees it, the destination, IP protocol number, destination port.
type Arrival = (IpAddr, IpAddr, u8, u16);

/// The questions that have arrived, answered or not.
#[derive(Clone, Debug, Default)]
struct Arrivals(Arc<Mutex<BTreeSet<Arrival>>>);

impl Arrivals {
    fn note(&self, from: IpAddr, to: IpAddr, protocol: Protocol, port: u16) {
        let mut arrivals = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        arrivals.insert((from, to, protocol.number(), port));
    }
}

/// Running listeners; they end when this is dropped.
#[derive(Debug)]
pub(crate) struct Answerers {
    runtime: Handle,
    served: BTreeSet<(IpAddr, u8, u16)>,
    arrivals: Arrivals,
    /// Ends the thread, and with it every listener, when it is dropped.
    _end: oneshot::Sender<()>,
}

impl Answerers {
    /// Starts the thread, without a listener yet.
    pub(crate) fn start() -> Result<Self> {
        let fault = |e| Error::io("start", "the thread of those who answer", e);
        let runtime = runtime::Builder::new_current_thread().enable_all().build().map_err(fault)?;
        let (end, ended) = oneshot::channel();
        let handle = runtime.handle().clone();
        thread::Builder::new()
            .name("answerers".into())
            .spawn(move || runtime.block_on(ended))
            .map_err(fault)?;
        Ok(Self {
            runtime: handle,
            served: BTreeSet::new(),
            arrivals: Arrivals::default(),
            _end: end,
        })
    }

    /// Whether a question of `from` to that address and port has arrived, whatever became of its answer.
    pub(crate) fn heard(&self, from: IpAddr, to: IpAddr, transport: Transport) -> bool {
        let Transport::Port(protocol, port) = transport else { return false };
        let arrivals = self.arrivals.0.lock().unwrap_or_else(PoisonError::into_inner);
        arrivals.contains(&(from, to, protocol.number(), port))
    }

    /// Answers packets to `address` with `transport` with `name` from now on. A second call changes nothing.
    pub(crate) fn serve(
        &mut self,
        netns: &Netns,
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
        let (name, arrivals) = (name.to_owned(), self.arrivals.clone());
        // sockets belong to the runtime that is entered when they are made
        let _entered = self.runtime.enter();
        match protocol {
            Protocol::Tcp => {
                let socket = bound(netns, Type::STREAM, socket2::Protocol::TCP, address, port)?;
                socket
                    .listen(BACKLOG)
                    .map_err(|e| Error::io("listen on", address.to_string(), e))?;
                let listener = TcpListener::from_std(socket.into())
                    .map_err(|e| Error::io("watch", "a socket", e))?;
                self.runtime.spawn(serve_tcp(listener, name, arrivals));
            }
            Protocol::Udp => {
                let socket = bound(netns, Type::DGRAM, socket2::Protocol::UDP, address, port)?;
                let at = SocketAddr::new(address, port);
                self.runtime.spawn(serve_udp(datagrams(socket)?, at, name, arrivals));
            }
            Protocol::Sctp => {
                let note = move |from, port| arrivals.note(from, address, Protocol::Sctp, port);
                self.runtime.spawn(sctp::answer(sctp::raw(netns, address)?, address, note));
            }
        }
        Ok(())
    }
}

async fn serve_tcp(listener: TcpListener, name: String, arrivals: Arrivals) {
    loop {
        // an aborted connection is the asker's business
        let Ok((mut stream, from)) = listener.accept().await else { continue };
        if let Ok(at) = stream.local_addr() {
            arrivals.note(from.ip(), at.ip(), Protocol::Tcp, at.port());
        }
        let name = name.clone();
        tokio::spawn(async move {
            let _ = stream.write_all(name.as_bytes()).await;
            let _ = stream.shutdown().await;
        });
    }
}

async fn serve_udp(socket: UdpSocket, at: SocketAddr, name: String, arrivals: Arrivals) {
    let mut buffer = [0; 512];
    loop {
        // errors are about earlier answers of ours (unreachable), not about the socket
        let Ok((_, from)) = socket.recv_from(&mut buffer).await else { continue };
        arrivals.note(from.ip(), at.ip(), Protocol::Udp, at.port());
        let _ = socket.send_to(name.as_bytes(), from).await;
    }
}
