//! `GET /v1/endpoints/{namespace}/{pod}/limits`.

use axum::Json;
use axum::extract::{Path, State};
use podgate_bpf::abi::{Limit, LimitsKey, Meter};
use podgate_contract::api::{Direction, LimitUse, PodLimits, RefusedPackets};
use podgate_policy::model::ObjectKey;

use super::{Api, Refusal};
use crate::pod_key::registered_pod;
use crate::snapshot::NodeState;

/// Of any pod that is known: what is said of it does not depend on where it runs.
pub(super) async fn get(
    State(api): State<Api>,
    Path((namespace, name)): Path<(String, String)>,
) -> Result<Json<PodLimits>, Refusal> {
    let key = ObjectKey::new(namespace, name);
    let limits = {
        let index = api.shared.index();
        index.pod(&key).map(|pod| index.pod_limits(pod))
    };
    let limits =
        limits.ok_or_else(|| Refusal::not_found(format!("find pod {key}: no source has it")))?;
    let mut limits = PodLimits { used: used(&api.shared, &key)?, ..limits };
    if !limits.rules.is_empty() {
        limits.problems.push(format!("pod {key}: traffic rules are not held yet"));
    }
    Ok(Json(limits))
}

/// What the pod has used at each of its interfaces here.
fn used(shared: &NodeState, pod: &ObjectKey) -> Result<Vec<LimitUse>, Refusal> {
    let snapshot = shared.snapshot();
    let mut used = Vec::new();
    for (id, shaping) in &snapshot.metered {
        let Some(endpoint) = snapshot.endpoints.get(id) else { continue };
        let registration = &endpoint.registration;
        if registered_pod(registration).as_ref() != Some(pod) {
            continue;
        }
        let key = LimitsKey::of_pod(registration.owner);
        let meter = shared.datapath.maps.limits().meter(key);
        let meter = meter.map_err(|error| Refusal::internal(error.to_string()))?;
        let Some(meter) = meter else { continue };
        let held = shaping.as_ref().map(ToString::to_string);
        let of = |direction, held| limit_use(&registration.host_interface, direction, held, &meter);
        used.extend([of(Direction::Ingress, held), of(Direction::Egress, None)]);
    }
    Ok(used)
}

fn limit_use(
    interface: &str,
    direction: Direction,
    bandwidth_held: Option<String>,
    meter: &Meter,
) -> LimitUse {
    let way = match direction {
        Direction::Egress => 0,
        Direction::Ingress => 1,
    };
    let refused = |limit: Limit| meter.refused[way][limit as usize];
    LimitUse {
        interface: interface.to_owned(),
        direction,
        bandwidth_held,
        open_connections: meter.open[way],
        packets: meter.passed[way].packets,
        bytes: meter.passed[way].bytes,
        delayed: meter.delayed[way],
        marked: meter.marked[way],
        refused: RefusedPackets {
            bandwidth: refused(Limit::Bandwidth),
            packets: refused(Limit::Packets),
            new_connections: refused(Limit::NewConnections),
            open_connections: refused(Limit::OpenConnections),
        },
    }
}
