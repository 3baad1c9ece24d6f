//! `GET /v1/services`.

use std::num::NonZeroU32;

use axum::Json;
use axum::extract::State;
use podgate_policy::index::Index;
use podgate_policy::services::{Backend, BackendState, Balance, Frontend};

use super::types::{ServiceEndpoint, ServiceFrontend, ServiceState};
use super::{Api, Refusal};
use crate::sync::services::ServiceMode;
use crate::writer::Answers;

pub(super) async fn list(State(api): State<Api>) -> Result<Json<Vec<ServiceFrontend>>, Refusal> {
    Ok(Json(api.writer.ask(every).await?))
}

fn every(answers: &Answers<'_>) -> Vec<ServiceFrontend> {
    let table = answers.services.table();
    let mut all = Vec::new();
    for service in answers.index.services().services() {
        let frontends = table.of_service(&service.key);
        all.extend(frontends.map(|(frontend, balance)| {
            let mut ports = service.ports.iter();
            let port =
                ports.find(|of| (of.port, of.protocol) == (frontend.port, frontend.protocol));
            let (state, reason) = state(answers, frontend, balance.map(|balance| &**balance));
            let affinity = service.affinity.map_or(0, NonZeroU32::get);
            ServiceFrontend {
                namespace: service.key.namespace.to_string(),
                name: service.key.name.to_string(),
                port_name: port.map(|port| port.name.to_string()).unwrap_or_default(),
                address: frontend.address,
                port: frontend.port,
                protocol: frontend.protocol.to_string(),
                state,
                reason,
                id: answers.services.in_force(frontend).map(|entry| entry.id),
                affinity_seconds: affinity,
                endpoints: balance
                    .into_iter()
                    .flat_map(|balance| &balance.backends)
                    .map(|(backend, state)| endpoint(answers.index, *backend, *state))
                    .collect(),
            }
        }));
    }
    all
}

fn state(
    answers: &Answers<'_>,
    frontend: Frontend,
    balance: Option<&Balance>,
) -> (ServiceState, String) {
    if answers.services.mode() == ServiceMode::Leave {
        return (ServiceState::Alone, "--services leave: kube-proxy translates".to_owned());
    }
    if let Some(reason) = answers.services.reason(frontend) {
        return (ServiceState::Degraded, reason.to_owned());
    }
    match (balance, answers.services.in_force(frontend)) {
        (None, _) => (ServiceState::Alone, "no endpoint that is ready".to_owned()),
        (Some(_), None) => (ServiceState::Degraded, "not written yet".to_owned()),
        (Some(_), Some(_)) => (ServiceState::Translated, String::new()),
    }
}

/// An endpoint, with its pod's name.
pub(super) fn endpoint(index: &Index, backend: Backend, state: BackendState) -> ServiceEndpoint {
    ServiceEndpoint {
        address: backend.address,
        port: backend.port,
        pod: index.owner_of(backend.address).map(|pod| pod.key.to_string()),
        state: match state {
            BackendState::Ready => "ready",
            BackendState::Serving => "serving",
        }
        .to_owned(),
    }
}
