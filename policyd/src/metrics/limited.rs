//! What pods with limits use of them: one set of samples for each such pod of this node.

use std::fmt;

use podgate_bpf::abi::{Direction, Limit, LimitsKey, Meter};
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::counter::ConstCounter;

use super::families::{LIMITED_PACKETS, OPEN_CONNECTIONS, gauge};
use crate::snapshot::{EndpointSnapshot, NodeState};

pub(super) fn encode(shared: &NodeState, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let meters = meters(shared);
    let each_way = || {
        meters
            .iter()
            .flat_map(|(names, meter)| Direction::ALL.iter().map(move |way| (names, meter, *way)))
    };
    let outcomes = each_way().flat_map(|(names, meter, direction)| {
        outcomes(meter, direction).map(move |(outcome, packets)| {
            let [namespace, pod, interface] = names.clone();
            let labels = [namespace, pod, interface, direction.name().into(), outcome.into()];
            (labels, ConstCounter::new(packets))
        })
    });
    LIMITED_PACKETS.samples(encoder, outcomes)?;
    let open = each_way().map(|(names, meter, direction)| {
        let [namespace, pod, interface] = names.clone();
        let labels = [namespace, pod, interface, direction.name().into()];
        (labels, gauge(meter.open[direction as usize].into()))
    });
    OPEN_CONNECTIONS.samples(encoder, open)
}

/// Namespace, name and host interface of each pod with limits, and its meter.
fn meters(shared: &NodeState) -> Vec<([String; 3], Meter)> {
    let snapshot = shared.snapshot();
    let metered = snapshot.metered.keys().filter_map(|id| snapshot.endpoints.get(id));
    let meter = |endpoint: &EndpointSnapshot| {
        let registration = &endpoint.registration;
        let pod = registration.pod.as_ref();
        let names = [
            pod.map(|pod| pod.namespace.clone()).unwrap_or_default(),
            pod.map(|pod| pod.name.clone()).unwrap_or_default(),
            registration.host_interface.clone(),
        ];
        let key = LimitsKey::of_pod(registration.owner);
        match shared.datapath.maps.limits().meter(key) {
            Ok(meter) => Some((names, meter?)),
            Err(error) => {
                tracing::warn!(%error, "cannot read what a pod uses");
                None
            }
        }
    };
    metered.filter_map(meter).collect()
}

fn outcomes(meter: &Meter, direction: Direction) -> impl Iterator<Item = (&'static str, u64)> {
    let way = direction as usize;
    let refused = meter.refused[way];
    let of = [
        ("passed", meter.passed[way].packets),
        ("delayed", meter.delayed[way]),
        ("marked", meter.marked[way]),
    ];
    of.into_iter()
        .chain(Limit::ALL.iter().map(move |limit| (limit.name(), refused[*limit as usize])))
}
