//! HTTP servers with limits on time, size and number; one request per connection.

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
use super::{ConnectionLimit, Limits};

/// Largest number of header fields of a request.
const MAX_HEADERS: usize = 64;
/// Bytes of a connection buffered in each direction; more waits in the kernel's buffers.
const MAX_BUFFER: usize = 64 << 10;

/// In a response's extensions: it streams until the client leaves, so [`Limits::request`] does not apply. The handler limits
/// the number of such responses.
#[derive(Clone, Copy, Debug)]
pub struct Streaming;

/// Serves until the task is dropped.
pub async fn serve_tcp(
    listener: TcpListener,
    limit: ConnectionLimit,
    router: Router,
    limits: Limits,
) {
    let router = bounded(router, &limits);
    loop {
        let (stream, permit) = accept_tcp(&listener, &limit).await;
        let router = router.clone();
        tokio::spawn(async move {
            serve_connection(stream, router, limits).await;
            drop(permit);
        });
    }
}

/// Serves until the task is dropped, at most `connections` at the same time.
pub async fn serve_unix(
    listener: UnixListener,
    connections: usize,
    router: Router,
    limits: Limits,
) {
    let router = bounded(router, &limits);
    let permits = Arc::new(Semaphore::new(connections));
    loop {
        let (stream, permit) = accept_unix(&listener, &permits).await;
        let router = router.clone();
        tokio::spawn(async move {
            serve_connection(stream, router, limits).await;
            drop(permit);
        });
    }
}

fn bounded(router: Router, limits: &Limits) -> Router {
    router.layer(DefaultBodyLimit::max(limits.body_bytes))
}

async fn serve_connection<S>(stream: S, router: Router, limits: Limits)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let streaming = Arc::new(AtomicBool::new(false));
    let is_streaming = streaming.clone();
    let service = service_fn(move |request: Request<Incoming>| {
        let (router, is_streaming) = (router.clone(), is_streaming.clone());
        async move {
            let response = router.oneshot(request.map(Body::new)).await;
            let streams =
                response.as_ref().is_ok_and(|r| r.extensions().get::<Streaming>().is_some());
            is_streaming.store(streams, Ordering::Relaxed);
            response
        }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(limits.head)
        .max_header_size(limits.head_bytes)
        .max_headers(MAX_HEADERS)
        .max_buf_size(MAX_BUFFER)
        .keep_alive(false);
    let connection = http.serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let ended = match timeout(limits.request, connection.as_mut()).await {
        Ok(ended) => ended,
        Err(_) if streaming.load(Ordering::Relaxed) => connection.await,
        Err(_) => return log_timeout(limits.request),
    };
    if let Err(error) = ended {
        // the client closed it, was too slow, or does not speak HTTP
        tracing::debug!(%error, "a connection ended early");
    }
}

fn log_timeout(after: Duration) {
    tracing::debug!(seconds = after.as_secs(), "ended a request that took too long");
}
