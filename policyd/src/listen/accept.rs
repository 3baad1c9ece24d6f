//! Accepts connections.

use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::connection_limit::{ConnectionLimit, ConnectionPermit};
use crate::backoff::Backoff;

/// Delays after accept failed.
const RETRY_BACKOFF: Backoff = Backoff::new(Duration::from_millis(10), Duration::from_secs(1));

/// Accepts the next connection, once there is a permit for it. Until then clients wait in the listen backlog.
pub async fn accept_unix(
    listener: &UnixListener,
    permits: &Arc<Semaphore>,
) -> (UnixStream, Option<OwnedSemaphorePermit>) {
    // fails only once the semaphore is closed, which it never is
    let permit = permits.clone().acquire_owned().await.ok();
    let mut backoff = RETRY_BACKOFF;
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return (stream, permit),
            Err(error) => failed("a local client", &error, &mut backoff).await,
        }
    }
}

/// Accepts the next connection within the limit. One above it is closed at once, because in the backlog it would delay
/// those of the node itself.
pub async fn accept_tcp(
    listener: &TcpListener,
    limit: &ConnectionLimit,
) -> (TcpStream, ConnectionPermit) {
    let mut backoff = RETRY_BACKOFF;
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                backoff.reset();
                let permit = stream.local_addr().ok().and_then(|local| limit.admit(peer, local));
                match permit {
                    Some(permit) => return (stream, permit),
                    None => tracing::debug!(%peer, "refused a connection: too many from there"),
                }
            }
            Err(error) => failed("a client", &error, &mut backoff).await,
        }
    }
}

/// Waits before the next accept, unless only this one client has failed. Without descriptors or memory no connection can be
/// accepted for a while; it stays in the backlog, and trying again at once would keep a CPU busy.
async fn failed(whose: &str, error: &io::Error, backoff: &mut Backoff) {
    if matches!(error.kind(), ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset) {
        return;
    }
    let delay = backoff.next_delay();
    tracing::warn!(%error, wait_ms = delay.as_millis(), "cannot accept a connection of {whose}, trying again");
    tokio::time::sleep(delay).await;
}
