//! `GET /v1/status`.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use podgate_bpf::abi::Mode;
use podgate_bpf::features::Feature;

use super::types::{
    EndpointCounts, Enforcement, KernelLack, KindCount, MapCounts, ObjectCounts, ServiceCounts,
    SourceStatus, Status, UnenforcedPod, WatchStatus,
};
use super::{Api, Refusal};
use crate::install::new_pods;
use crate::shares;
use crate::sources::SourceState;
use crate::sources::kubernetes::{Health, Link};
use crate::sources::unenforced::UnenforcedKind;
use crate::ungated::{Gating, Stage, Unenforced};
use crate::view::{EndpointState, Shared, View};

impl From<Mode> for Enforcement {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Enforce => Self::Enforce,
            Mode::Audit => Self::Audit,
            Mode::Off => Self::Off,
        }
    }
}

impl From<Feature> for KernelLack {
    fn from(feature: Feature) -> Self {
        Self {
            feature: feature.name().to_owned(),
            since: feature.since().to_owned(),
            consequence: feature.without().to_owned(),
        }
    }
}

impl From<Unenforced> for UnenforcedPod {
    fn from(unenforced: Unenforced) -> Self {
        Self { pod: unenforced.pod.to_string(), reason: unenforced.reason }
    }
}

/// How many endpoints are in which state.
pub(crate) fn count_endpoints(view: &View) -> EndpointCounts {
    let mut counts = EndpointCounts::default();
    for endpoint in view.endpoints.values() {
        match endpoint.state {
            EndpointState::Enforced => counts.enforced += 1,
            EndpointState::Pending(_) => counts.pending += 1,
            EndpointState::Degraded(_) => counts.degraded += 1,
        }
    }
    counts
}

/// How many objects are known.
pub(crate) fn count_objects(shared: &Shared) -> ObjectCounts {
    let index = shared.index();
    ObjectCounts {
        pods: index.pods().len(),
        namespaces: index.namespaces().len(),
        policies: index.policies().len(),
    }
}

/// How many entries the class maps and the policy maps should have.
pub(crate) fn count_entries(view: &View) -> MapCounts {
    MapCounts { peers: view.peers, nets: view.nets, rules: view.rules }
}

fn watches(server: Option<&Arc<Health>>) -> Vec<WatchStatus> {
    let mut watches = Vec::new();
    for (kind, watch) in server.map(|server| server.watches()).unwrap_or_default() {
        let connected = watch.link == Link::Up;
        let (lost_for, error) = match watch.link {
            Link::Lost { since, error } => (Some(since.elapsed().as_secs()), Some(error)),
            Link::Up | Link::Waiting => (None, None),
        };
        watches.push(WatchStatus {
            kind: kind.plural().to_owned(),
            connected,
            lost_for,
            error,
            heard: watch.heard.map(|at| at.elapsed().as_secs()),
            lists: watch.lists,
            errors: watch.errors,
        });
    }
    watches
}

pub(super) async fn get(State(api): State<Api>) -> Result<Json<Status>, Refusal> {
    let flows = shares::tables(&api.shared).map_err(|e| Refusal::internal(e.to_string()))?;
    let Gating { view, unenforced, ready } = api.shared.gating();
    let control = api.shared.gate.maps.control();
    let servers = api.shared.servers();
    let (pending, ungated): (Vec<_>, Vec<_>) =
        unenforced.into_iter().partition(|pod| pod.stage == Stage::Pending);
    let mut endpoints = count_endpoints(&view);
    endpoints.pending += pending.len();
    endpoints.ungated = ungated.len();
    let mut pending: Vec<_> = pending.into_iter().map(UnenforcedPod::from).collect();
    pending.extend(view.endpoints.values().filter_map(|endpoint| match &endpoint.state {
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
    Ok(Json(Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        node: api.shared.node.clone(),
        kernel: api.shared.kernel.release.clone(),
        kernel_lacks: api.shared.kernel.missing.iter().copied().map(KernelLack::from).collect(),
        ready,
        problems: view.problems(),
        pending,
        unenforced: ungated.into_iter().map(UnenforcedPod::from).collect(),
        unenforced_kinds: view.unenforced().into_iter().map(kind).collect(),
        new_pods: new_pods(&api.shared.install_state),
        enforcement: control.mode().into(),
        epoch: control.epoch(),
        uptime: api.shared.started.elapsed().as_secs(),
        sources: view.sources.iter().map(source).collect(),
        endpoints,
        objects: count_objects(&api.shared),
        services: ServiceCounts {
            frontends: view.services.frontends,
            endpoints: view.services.backends,
            degraded: view.services.degraded,
        },
        maps: count_entries(&view),
        commits: view.commits.count,
        last_commit: view.commits.last.as_secs_f64(),
        flows,
    }))
}
