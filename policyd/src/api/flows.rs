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
use crate::listen::{API_STREAMS, Streaming};

/// Streams until the client leaves. A client that reads too slowly loses events and does not delay the others.
pub(super) async fn get(State(api): State<Api>) -> Result<Response, Refusal> {
    let Ok(permit) = api.streams.clone().try_acquire_owned() else {
        return Err(Refusal::busy(format!(
            "follow verdicts: {API_STREAMS} clients do already; end one of them"
        )));
    };
    let subscription = api.subscriptions.subscribe(&api.shared);
    let lines = stream::unfold((subscription, permit), |(mut subscription, permit)| async {
        loop {
            match subscription.recv().await {
                Ok(event) => {
                    let mut line = serde_json::to_vec(&*event).unwrap_or_default();
                    line.push(b'\n');
                    return Some((Ok::<_, Infallible>(Bytes::from(line)), (subscription, permit)));
                }
                Err(RecvError::Lagged(lost)) => {
                    tracing::warn!(lost, "a client of the flow events is too slow");
                }
                Err(RecvError::Closed) => return None,
            }
        }
    });
    let head = [(header::CONTENT_TYPE, "application/x-ndjson")];
    Ok((head, Extension(Streaming), Body::from_stream(lines)).into_response())
}
