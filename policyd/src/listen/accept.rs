//! Taking connections.

use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::room::{Place, Room};

/// How long to wait after a connection could not be taken: doubled from the first to the second.
const PAUSE: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));

/// The next connection, once there is a place for it. Until then clients wait in the backlog.
pub async fn accept_unix(
    listener: &UnixListener,
    places: &Arc<Semaphore>,
) -> (UnixStream, Option<OwnedSemaphorePermit>) {
    // never closed
    let place = places.clone().acquire_owned().await.ok();
    let mut pause = PAUSE.0;
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return (stream, place),
            Err(error) => failed("a local client", &error, &mut pause).await,
        }
    }
}

/// The next connection for which there is room. One for which there is none is closed at once: in the backlog it would
/// stand before the node's own.
pub async fn accept_tcp(listener: &TcpListener, room: &Room) -> (TcpStream, Place) {
    let mut pause = PAUSE.0;
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                pause = PAUSE.0;
                let place = stream.local_addr().ok().and_then(|local| room.admit(peer, local));
                match place {
                    Some(place) => return (stream, place),
                    None => tracing::debug!(%peer, "refused a connection: too many from there"),
                }
            }
            Err(error) => failed("a client", &error, &mut pause).await,
        }
    }
}

/// What the client did wrong concerns nobody else. For want of descriptors or memory nothing can be taken for a while:
/// the connection stays in the backlog, and asking for it again at once would keep a CPU busy.
async fn failed(whose: &str, error: &io::Error, pause: &mut Duration) {
    if matches!(error.kind(), ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset) {
        return;
    }
    tracing::warn!(%error, wait_ms = pause.as_millis(), "cannot take a connection of {whose}, trying again");
    tokio::time::sleep(*pause).await;
    *pause = (*pause * 2).min(PAUSE.1);
}
