//! `GET` and `PUT /v1/enforcement`.

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use podgate_bpf::abi::Mode;

use super::types::{Enforcement, EnforcementMode};
use super::{Api, Refusal};

pub(super) async fn get(State(api): State<Api>) -> Json<EnforcementMode> {
    Json(EnforcementMode { mode: api.shared.gate.maps.control().mode().into() })
}

/// The mode is in a pinned map, so it outlives policyd and holds from the next packet on.
pub(super) async fn put(
    State(api): State<Api>,
    body: Bytes,
) -> Result<Json<EnforcementMode>, Refusal> {
    let wanted: EnforcementMode = serde_json::from_slice(&body).map_err(|error| {
        Refusal::malformed(format!(
            "read enforcement: {error}; send {{\"mode\": \"enforce\"}}, \"audit\" or \"off\""
        ))
    })?;
    let mode = match wanted.mode {
        Enforcement::Enforce => Mode::Enforce,
        Enforcement::Audit => Mode::Audit,
        Enforcement::Off => Mode::Off,
    };
    let control = api.shared.gate.maps.control();
    if control.mode() != mode {
        tracing::warn!(
            from = control.mode().name(),
            to = mode.name(),
            "enforcement changed by the API"
        );
        control.set_mode(mode);
        // flows that passed only because of the old mode are judged again
        control.bump_epoch();
    }
    Ok(Json(EnforcementMode { mode: control.mode().into() }))
}
