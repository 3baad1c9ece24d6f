//! `GET /v1/services`.

use std::num::NonZeroU32;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use podgate_contract::api::{ServiceEndpoint, ServiceFrontend, ServiceState};
use podgate_policy::index::Index;
use podgate_policy::model::Service;
use podgate_policy::services::{Backend, BackendSet, BackendState, Frontend, UntranslatedReason};

use super::{Api, Refusal};
use crate::writer::QueryContext;

pub(super) async fn list(State(api): State<Api>) -> Result<Json<Vec<ServiceFrontend>>, Refusal> {
    Ok(Json(api.writer.query(every).await?))
}

fn every(answers: &QueryContext<'_>) -> Vec<ServiceFrontend> {
    let table = answers.services.table();
    let catalog = answers.index.services();
    let mut all = Vec::new();
    for service in catalog.services() {
        let notes = notes(service);
        for (frontend, balance) in table.of_service(&service.key) {
            let (state, reason) = state(answers, frontend, balance.map(|balance| &**balance));
            let endpoints = balance.into_iter().flat_map(|balance| &balance.backends);
            let endpoints =
                endpoints.map(|(backend, state)| endpoint(answers.index, *backend, *state));
            all.push(ServiceFrontend {
                state,
                reason,
                endpoints: endpoints.collect(),
                notes: notes.clone(),
                ..item(answers, service, frontend)
            });
        }
        for (frontend, left) in table.untranslated_of_service(&service.key) {
            let endpoints = left.backends.iter();
            let endpoints = endpoints
                .map(|backend| endpoint(answers.index, *backend, BackendState::Ready))
                .collect();
            let (reason, notes) = (left.reason.to_string(), notes.clone());
            all.push(ServiceFrontend {
                reason,
                endpoints,
                notes,
                ..item(answers, service, frontend)
            });
        }
    }
    all
}

/// A frontend that is left alone, without its reason and endpoints.
fn item(answers: &QueryContext<'_>, service: &Service, frontend: Frontend) -> ServiceFrontend {
    let mut ports = service.ports.iter();
    let port = ports.find(|of| (of.port, of.protocol) == (frontend.port, frontend.protocol));
    ServiceFrontend {
        namespace: service.key.namespace.to_string(),
        name: service.key.name.to_string(),
        port_name: port.map(|port| port.name.to_string()).unwrap_or_default(),
        address: frontend.address,
        port: frontend.port,
        protocol: frontend.protocol.to_string(),
        state: ServiceState::Alone,
        reason: String::new(),
        id: answers.services.in_force(frontend).map(|entry| entry.id),
        affinity_seconds: service.affinity.map_or(0, NonZeroU32::get),
        endpoints: Vec::new(),
        notes: Vec::new(),
    }
}

/// What a service says that does not decide here.
fn notes(service: &Service) -> Vec<String> {
    let note = |distribution: &Arc<str>| {
        format!(
            "trafficDistribution {distribution}: the hints in the slices decide, which are made from it"
        )
    };
    service.distribution.iter().map(note).collect()
}

fn state(
    answers: &QueryContext<'_>,
    frontend: Frontend,
    balance: Option<&BackendSet>,
) -> (ServiceState, String) {
    if let Some(left) = answers.services.table().untranslated_at(&frontend).first() {
        return (ServiceState::Alone, left.reason.to_string());
    }
    if let Some(reason) = answers.services.reason(frontend) {
        return (ServiceState::Degraded, reason.to_owned());
    }
    match (balance, answers.services.in_force(frontend)) {
        (None, _) => (ServiceState::Alone, UntranslatedReason::NoEndpoint.to_string()),
        (Some(_), None) => (ServiceState::Degraded, "not written yet".to_owned()),
        (Some(_), Some(_)) => (ServiceState::Translated, String::new()),
    }
}

/// An endpoint, with its pod's name.
fn endpoint(index: &Index, backend: Backend, state: BackendState) -> ServiceEndpoint {
    ServiceEndpoint {
        address: backend.address,
        port: backend.port,
        pod: index.owner_of(backend.address).map(|pod| pod.key.to_string()),
        state,
    }
}
