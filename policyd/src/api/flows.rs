//! `GET /v1/flows`: verdicts as they happen, one JSON object a line.

use std::convert::Infallible;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use futures::stream;
use tokio::sync::broadcast::error::RecvError;

use super::Api;

/// Ends when the client does. A client that reads too slowly loses events, which is better than
/// holding up the others.
pub(super) async fn get(State(api): State<Api>) -> Response {
    let listener = api.listeners.listen(&api.shared);
    let lines = stream::unfold(listener, |mut listener| async {
        loop {
            match listener.recv().await {
                Ok(event) => {
                    let mut line = serde_json::to_vec(&*event).unwrap_or_default();
                    line.push(b'\n');
                    return Some((Ok::<_, Infallible>(Bytes::from(line)), listener));
                }
                Err(RecvError::Lagged(lost)) => {
                    tracing::warn!(lost, "a listener of flow events is too slow");
                }
                Err(RecvError::Closed) => return None,
            }
        }
    });
    ([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response()
}
