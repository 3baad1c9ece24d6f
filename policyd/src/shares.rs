//! Each pod's share of the flow tables and events, for metrics and the API. Read from the kernel at each request.

use std::collections::BTreeMap;
use std::fmt;

use podgate_bpf::abi::Share;
use podgate_bpf::flow_table::Usage;
use podgate_contract::api::{EndpointShare, FlowTableUse, FlowTables};
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::counter::ConstCounter;

use crate::metrics::families::*;
use crate::snapshot::{EndpointSnapshot, NodeState};

const FAMILIES: [&str; 2] = ["ipv4", "ipv6"];

/// The share of an endpoint; the default if the map's entry belongs to an earlier owner of the interface.
pub(crate) fn of(shares: &BTreeMap<u32, Share>, endpoint: &EndpointSnapshot) -> EndpointShare {
    let registration = &endpoint.registration;
    let share = shares.get(&registration.ifindex);
    let Some(share) = share.filter(|share| share.owner == registration.owner) else {
        return EndpointShare::default();
    };
    EndpointShare {
        ipv4_flows: share.rings[0].high,
        ipv6_flows: share.rings[1].high,
        flows_evicted: share.rings.iter().map(|ring| ring.evicted).sum(),
        events_held: share.events_held,
    }
}

/// Slots in use and size of both flow tables.
pub(crate) fn tables(shared: &NodeState) -> podgate_bpf::Result<FlowTables> {
    let [ipv4, ipv6] = shared.datapath.maps.flow_table().usage()?;
    let of = |usage: Usage| FlowTableUse { flows: usage.slots, size: usage.size };
    Ok(FlowTables { ipv4: of(ipv4), ipv6: of(ipv6) })
}

/// Writes the metrics of both flow tables and of each pod of this node.
pub(crate) fn encode(shared: &NodeState, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let failed = |error: podgate_bpf::Error| {
        tracing::error!(%error, "cannot read the shares of the flow tables");
        fmt::Error
    };
    let tables = tables(shared).map_err(failed)?;
    let shares = shared.datapath.maps.flow_table().shares().map_err(failed)?;
    let of_tables = |which: fn(&FlowTableUse) -> u64| {
        FAMILIES.into_iter().zip([which(&tables.ipv4), which(&tables.ipv6)])
    };
    FLOW_TABLE_FLOWS.gauges(encoder, of_tables(|table| table.flows))?;
    FLOW_TABLE_SIZE.gauges(encoder, of_tables(|table| table.size.into()))?;
    let snapshot = shared.snapshot();
    let pods: Vec<_> =
        snapshot.endpoints.values().map(|endpoint| (endpoint, of(&shares, endpoint))).collect();
    let labels = |endpoint: &EndpointSnapshot| {
        let registration = &endpoint.registration;
        let pod = registration.pod.as_ref();
        [
            pod.map(|pod| pod.namespace.clone()).unwrap_or_default(),
            pod.map(|pod| pod.name.clone()).unwrap_or_default(),
            registration.host_interface.clone(),
        ]
    };
    let of_pods = |which: fn(&EndpointShare) -> u64| {
        pods.iter().map(move |(endpoint, share)| (labels(endpoint), which(share)))
    };
    let flows = of_pods(|share| u64::from(share.ipv4_flows) + u64::from(share.ipv6_flows));
    POD_FLOWS.samples(encoder, flows.map(|(pod, flows)| (pod, gauge(flows))))?;
    let evicted = of_pods(|share| share.flows_evicted);
    POD_FLOWS_EVICTED
        .samples(encoder, evicted.map(|(pod, count)| (pod, ConstCounter::new(count))))?;
    let held = of_pods(|share| share.events_held);
    POD_EVENTS_HELD.samples(encoder, held.map(|(pod, count)| (pod, ConstCounter::new(count))))
}
