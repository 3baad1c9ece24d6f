//! HTTP with bounds, one request a connection.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::DefaultBodyLimit;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tower::ServiceExt;

use super::accept::{accept_tcp, accept_unix};
use super::{Limits, Room};

/// Headers of a request.
const HEADERS: usize = 64;
/// What is kept of a connection on its way in or out; more waits in the kernel's buffers.
const BUFFER: usize = 64 << 10;

/// In an answer's extensions: it lasts as long as its client. The handler bounds the number of these.
#[derive(Clone, Copy, Debug)]
pub struct Endless;

/// Serves until the task is dropped.
pub async fn serve_tcp(listener: TcpListener, room: Room, router: Router, limits: Limits) {
    let router = bounded(router, &limits);
    loop {
        let (stream, place) = accept_tcp(&listener, &room).await;
        let router = router.clone();
        tokio::spawn(async move {
            talk(stream, router, limits).await;
            drop(place);
        });
    }
}

/// Serves until the task is dropped, so many clients at once.
pub async fn serve_unix(listener: UnixListener, places: usize, router: Router, limits: Limits) {
    let router = bounded(router, &limits);
    let places = Arc::new(Semaphore::new(places));
    loop {
        let (stream, place) = accept_unix(&listener, &places).await;
        let router = router.clone();
        tokio::spawn(async move {
            talk(stream, router, limits).await;
            drop(place);
        });
    }
}

fn bounded(router: Router, limits: &Limits) -> Router {
    router.layer(DefaultBodyLimit::max(limits.body_bytes))
}

async fn talk<S>(stream: S, router: Router, limits: Limits)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let endless = Arc::new(AtomicBool::new(false));
    let is_endless = endless.clone();
    let service = service_fn(move |request: Request<Incoming>| {
        let (router, is_endless) = (router.clone(), is_endless.clone());
        async move {
            let answer = router.oneshot(request.map(Body::new)).await;
            let lasts = answer.as_ref().is_ok_and(|a| a.extensions().get::<Endless>().is_some());
            is_endless.store(lasts, Ordering::Relaxed);
            answer
        }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(limits.head)
        .max_header_size(limits.head_bytes)
        .max_headers(HEADERS)
        .max_buf_size(BUFFER)
        .keep_alive(false);
    let connection = http.serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let ended = match timeout(limits.request, connection.as_mut()).await {
        Ok(ended) => ended,
        Err(_) if endless.load(Ordering::Relaxed) => connection.await,
        Err(_) => return late(limits.request),
    };
    if let Err(error) = ended {
        // the client's doing: it went away, was too slow, or speaks something else
        tracing::debug!(%error, "a connection ended early");
    }
}

fn late(after: Duration) {
    tracing::debug!(seconds = after.as_secs(), "ended a request that took too long");
}
