//! `GET /v1/flows`: verdicts as they happen, one JSON object a line.

use std::convert::Infallible;

use axum::Extension;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use futures::stream;
use tokio::sync::broadcast::error::RecvError;

use super::{Api, Refusal};
use crate::listen::{API_STREAMS, Endless};

/// Ends when the client does. A client that reads too slowly loses events, which is better than
/// holding up the others.
pub(super) async fn get(State(api): State<Api>) -> Result<Response, Refusal> {
    let Ok(place) = api.streams.clone().try_acquire_owned() else {
        return Err(Refusal::busy(format!(
            "follow verdicts: {API_STREAMS} clients do already; end one of them"
        )));
    };
    let listener = api.listeners.listen(&api.shared);
    let lines = stream::unfold((listener, place), |(mut listener, place)| async {
        loop {
            match listener.recv().await {
                Ok(event) => {
                    let mut line = serde_json::to_vec(&*event).unwrap_or_default();
                    line.push(b'\n');
                    return Some((Ok::<_, Infallible>(Bytes::from(line)), (listener, place)));
                }
                Err(RecvError::Lagged(lost)) => {
                    tracing::warn!(lost, "a listener of flow events is too slow");
                }
                Err(RecvError::Closed) => return None,
            }
        }
    });
    let head = [(header::CONTENT_TYPE, "application/x-ndjson")];
    Ok((head, Extension(Endless), Body::from_stream(lines)).into_response())
}
