//! `GET /v1/status`.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use podgate_bpf::features::Feature;
use podgate_contract::api::{
    KernelLack, KindCount, ServiceCounts, SourceStatus, Status, UnenforcedPod, WatchStatus,
};
use podgate_manifests::unenforced::UnenforcedKind;

use super::enforcement::enforcement;
use super::{Api, Refusal};
use crate::install::new_pods;
use crate::shares;
use crate::snapshot::EndpointState;
use crate::sources::SourceState;
use crate::sources::kubernetes::{Connection, Health};
use crate::ungated::{Gating, Stage, UngatedPod};

/// What a kernel without the feature means, as the API writes it.
fn kernel_lack(feature: Feature) -> KernelLack {
    KernelLack {
        feature: feature.name().to_owned(),
        since: feature.since().to_owned(),
        consequence: feature.without().to_owned(),
    }
}

/// A pod without a gate, as the API writes it.
fn unenforced_pod(ungated: UngatedPod) -> UnenforcedPod {
    UnenforcedPod { pod: ungated.pod.to_string(), reason: ungated.reason }
}

fn watches(server: Option<&Arc<Health>>) -> Vec<WatchStatus> {
    let mut watches = Vec::new();
    for (kind, watch) in server.map(|server| server.watches()).unwrap_or_default() {
        let connected = watch.connection == Connection::Up;
        let absent = watch.connection == Connection::Absent;
        let (lost_for, error) = match watch.connection {
            Connection::Lost { since, error } => (Some(since.elapsed().as_secs()), Some(error)),
            Connection::Forbidden { error } => (None, Some(error)),
            Connection::Up | Connection::Absent | Connection::Waiting => (None, None),
        };
        watches.push(WatchStatus {
            kind: kind.names().plural.to_owned(),
            connected,
            absent,
            lost_for,
            error,
            heard: watch.last_response.map(|at| at.elapsed().as_secs()),
            lists: watch.lists,
            errors: watch.errors,
        });
    }
    watches
}

pub(super) async fn get(State(api): State<Api>) -> Result<Json<Status>, Refusal> {
    let flows = shares::tables(&api.shared).map_err(|e| Refusal::internal(e.to_string()))?;
    let Gating { snapshot, unenforced, ready } = api.shared.gating();
    let control = api.shared.datapath.maps.control();
    let servers = api.shared.servers();
    let (pending, ungated): (Vec<_>, Vec<_>) =
        unenforced.into_iter().partition(|pod| pod.stage == Stage::Pending);
    let mut endpoints = snapshot.endpoint_counts();
    endpoints.pending += pending.len();
    endpoints.ungated = ungated.len();
    let mut pending: Vec<_> = pending.into_iter().map(unenforced_pod).collect();
    pending.extend(snapshot.endpoints.values().filter_map(|endpoint| match &endpoint.state {
        EndpointState::Pending(reason) => {
            Some(UnenforcedPod { pod: endpoint.name(), reason: reason.clone() })
        }
        _ => None,
    }));
    pending.sort_by(|a, b| a.pod.cmp(&b.pod));
    let source = |state: &SourceState| SourceStatus {
        name: state.name.clone(),
        synced: state.synced,
        objects: state.objects,
        problems: state.problems.clone(),
        skipped: state.skipped.clone(),
        watches: watches(servers.iter().find(|server| server.name() == state.name)),
    };
    let kind = |(kind, objects): (UnenforcedKind, usize)| KindCount {
        kind: kind.name().to_owned(),
        objects,
    };
    let mut problems = snapshot.problems();
    problems.extend(api.shared.index().problems().iter().map(ToString::to_string));
    Ok(Json(Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        node: api.shared.node.clone(),
        kernel: api.shared.kernel.release.clone(),
        kernel_lacks: api.shared.kernel.missing.iter().copied().map(kernel_lack).collect(),
        cannot_enforce: None,
        ready,
        problems,
        pending,
        unenforced: ungated.into_iter().map(unenforced_pod).collect(),
        unenforced_kinds: snapshot.unenforced().into_iter().map(kind).collect(),
        new_pods: new_pods(&api.shared.install_state),
        enforcement: enforcement(control.mode()),
        epoch: control.epoch(),
        uptime: api.shared.started.elapsed().as_secs(),
        sources: snapshot.sources.iter().map(source).collect(),
        endpoints,
        objects: api.shared.object_counts(),
        services: ServiceCounts {
            frontends: snapshot.services.frontends,
            endpoints: snapshot.services.backends,
            degraded: snapshot.services.degraded,
        },
        maps: snapshot.map_counts(),
        commits: snapshot.commits.count,
        last_commit: snapshot.commits.last.as_secs_f64(),
        flows,
    }))
}
