//! `GET` and `PUT /v1/enforcement`.

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use podgate_bpf::abi::Mode;
use podgate_contract::api::{Enforcement, EnforcementMode, EnforcementState};
use podgate_policy::model::{PolicyMode, PolicySettings};

use super::cluster_policies::policy_name as cluster_policy_name;
use super::policies::policy_name;
use super::{Api, Refusal};

pub(super) async fn get(State(api): State<Api>) -> Json<EnforcementState> {
    let index = api.shared.index();
    let audited = |settings: &PolicySettings| settings.mode == PolicyMode::Audit;
    let namespaces = index.namespaces().filter(|namespace| audited(&namespace.settings));
    let policies = index.policies().filter(|policy| audited(&policy.settings));
    let cluster_policies = index.cluster_policies().filter(|policy| audited(&policy.settings));
    Json(EnforcementState {
        mode: enforcement(api.shared.datapath.maps.control().mode()),
        namespaces: namespaces.map(|namespace| namespace.name.to_string()).collect(),
        policies: policies.map(|policy| policy_name(&policy.id)).collect(),
        cluster_policies: cluster_policies.map(|policy| cluster_policy_name(&policy.id)).collect(),
    })
}

/// A mode as the API writes it.
pub(super) fn enforcement(mode: Mode) -> Enforcement {
    match mode {
        Mode::Enforce => Enforcement::Enforce,
        Mode::Audit => Enforcement::Audit,
        Mode::Off => Enforcement::Off,
    }
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
    let control = api.shared.datapath.maps.control();
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
    Ok(Json(EnforcementMode { mode: enforcement(control.mode()) }))
}
