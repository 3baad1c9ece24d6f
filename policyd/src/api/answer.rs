//! What every handler answers when it refuses.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use podgate_contract::api::ApiError;
use podgate_policy::convert::FieldError;

use crate::writer::Stopped;

/// A request refused.
#[derive(Debug)]
pub(super) struct Refusal {
    status: StatusCode,
    body: ApiError,
}

impl Refusal {
    fn new(status: StatusCode, error: impl Into<String>) -> Self {
        Self { status, body: ApiError { error: error.into(), field: None } }
    }

    /// 404.
    pub(super) fn not_found(error: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, error)
    }

    /// 405.
    pub(super) fn wrong_method(error: impl Into<String>) -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, error)
    }

    /// 422: understood, but a field of it is wrong.
    pub(super) fn field(error: impl Into<String>, field: &FieldError) -> Self {
        let mut refusal = Self::new(StatusCode::UNPROCESSABLE_ENTITY, error);
        refusal.body.field = Some(field.path.clone());
        refusal
    }

    /// 400: not understood.
    pub(super) fn malformed(error: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, error)
    }

    /// 503: too many do the same already.
    pub(super) fn busy(error: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, error)
    }

    /// 500.
    pub(super) fn internal(error: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, error)
    }
}

impl From<Stopped> for Refusal {
    fn from(stopped: Stopped) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, stopped.to_string())
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.status, Json(self.body)).into_response()
    }
}
