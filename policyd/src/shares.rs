//! What each pod has of the flow tables and of the events, for metrics and the API: read from the kernel when asked.

use std::collections::BTreeMap;
use std::fmt;

use podgate_bpf::abi::Share;
use podgate_bpf::flow_table::Usage;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use crate::api::types::{EndpointShare, FlowTableUse, FlowTables};
use crate::view::{EndpointView, Shared};

const FAMILIES: [&str; 2] = ["ipv4", "ipv6"];

/// The share of an endpoint, if it is this endpoint's and not an earlier one's of the same interface.
pub(crate) fn of(shares: &BTreeMap<u32, Share>, endpoint: &EndpointView) -> EndpointShare {
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

/// How full the tables are.
pub(crate) fn tables(shared: &Shared) -> podgate_bpf::Result<FlowTables> {
    let [ipv4, ipv6] = shared.gate.maps.flow_table().usage()?;
    let of = |usage: Usage| FlowTableUse { flows: usage.slots, size: usage.size };
    Ok(FlowTables { ipv4: of(ipv4), ipv6: of(ipv6) })
}

/// Metrics: of each family's table, and of each pod of this node.
pub(crate) fn encode(shared: &Shared, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let failed = |error: podgate_bpf::Error| {
        tracing::error!(%error, "cannot read the shares of the flow tables");
        fmt::Error
    };
    let tables = tables(shared).map_err(failed)?;
    let shares = shared.gate.maps.flow_table().shares().map_err(failed)?;
    let view = shared.view();
    let gauge = |value: u64| ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
    let of_tables = |which: fn(&FlowTableUse) -> u64| {
        FAMILIES.into_iter().zip([which(&tables.ipv4), which(&tables.ipv6)])
    };
    let mut family = encoder.encode_descriptor(
        "flow_table_flows",
        "Places of the flow table that pods have taken",
        None,
        MetricType::Gauge,
    )?;
    for (name, value) in of_tables(|table| table.flows) {
        gauge(value).encode(family.encode_family(&[("family", name)])?)?;
    }
    let mut family = encoder.encode_descriptor(
        "flow_table_size",
        "Places that the flow table has",
        None,
        MetricType::Gauge,
    )?;
    for (name, value) in of_tables(|table| table.size.into()) {
        gauge(value).encode(family.encode_family(&[("family", name)])?)?;
    }
    let pods: Vec<_> =
        view.endpoints.values().map(|endpoint| (endpoint, of(&shares, endpoint))).collect();
    let labels = |endpoint: &EndpointView| {
        let registration = &endpoint.registration;
        let pod = registration.pod.as_ref();
        [
            ("namespace", pod.map(|pod| pod.namespace.clone()).unwrap_or_default()),
            ("pod", pod.map(|pod| pod.name.clone()).unwrap_or_default()),
            ("interface", registration.host_interface.clone()),
        ]
    };
    let mut family = encoder.encode_descriptor(
        "pod_flows",
        "Places of the flow tables that a pod has taken",
        None,
        MetricType::Gauge,
    )?;
    for (endpoint, share) in &pods {
        let flows = u64::from(share.ipv4_flows) + u64::from(share.ipv6_flows);
        gauge(flows).encode(family.encode_family(&labels(endpoint))?)?;
    }
    type Read = fn(&EndpointShare) -> u64;
    let counters: [(&str, &str, Read); 2] = [
        (
            "pod_flows_evicted",
            "Live flows of a pod that had to make room for others of the same pod",
            |share| share.flows_evicted,
        ),
        ("pod_events_held", "Verdict events of a pod that the rate limit held back", |share| {
            share.events_held
        }),
    ];
    for (name, help, read) in counters {
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (endpoint, share) in &pods {
            let counter = ConstCounter::new(read(share));
            counter.encode(family.encode_family(&labels(endpoint))?)?;
        }
    }
    Ok(())
}
