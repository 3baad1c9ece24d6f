//! EndpointSlices.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::discovery::v1 as api;

use super::policy::{port_number, protocol};
use super::{FieldError, key, parse_address};
use crate::model::{Condition, EndpointSlice, SliceEndpoint, SlicePort, TopologyHints};

/// The label that names a slice's service.
pub const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// The label by which kube-proxy passes a slice over, whatever its value. The same label on a service means nothing to it.
pub const HEADLESS: &str = "service.kubernetes.io/headless";

/// Reads an EndpointSlice.
pub fn endpoint_slice(object: &api::EndpointSlice) -> Result<EndpointSlice, FieldError> {
    let labels = object.metadata.labels.as_ref();
    let headless = labels.is_some_and(|labels| labels.contains_key(HEADLESS));
    let service = labels.and_then(|labels| labels.get(SERVICE_NAME)).filter(|_| !headless);
    let v4 = match object.address_type.as_str() {
        "IPv4" => Some(true),
        "IPv6" => Some(false),
        "FQDN" => None,
        other => {
            let cause = format!("must be IPv4, IPv6 or FQDN, is {other:?}");
            return Err(FieldError::new("addressType", cause));
        }
    };
    let mut ports = Vec::new();
    for (index, port) in object.ports.iter().flatten().enumerate() {
        let port = read_port(port);
        ports.extend(port.map_err(|error| error.under(format_args!("ports[{index}]")))?);
    }
    let mut endpoints = Vec::new();
    // few nodes, many endpoints
    let mut nodes: BTreeMap<&str, Arc<str>> = BTreeMap::new();
    let mut hints: BTreeSet<Arc<TopologyHints>> = BTreeSet::new();
    for (index, endpoint) in object.endpoints.iter().enumerate() {
        let Some(v4) = v4 else { break };
        let Some(text) = endpoint.addresses.first() else { continue };
        let path = || format!("endpoints[{index}].addresses[0]");
        let address = parse_address(text)
            .ok_or_else(|| FieldError::new(path(), format!("must be an address, is {text:?}")))?;
        if address.is_ipv4() != v4 {
            let cause = format!("must be of the addressType {}, is {text:?}", object.address_type);
            return Err(FieldError::new(path(), cause));
        }
        let node = endpoint.node_name.as_deref().filter(|node| !node.is_empty());
        endpoints.push(SliceEndpoint {
            address,
            condition: condition(endpoint.conditions.as_ref()),
            node: node.map(|node| nodes.entry(node).or_insert_with(|| node.into()).clone()),
            hints: shared(&mut hints, topology_hints(endpoint.hints.as_ref())),
        });
    }
    Ok(EndpointSlice {
        key: key(&object.metadata)?,
        service: service.filter(|name| !name.is_empty()).map(|name| name.as_str().into()),
        ports,
        endpoints,
    })
}

fn topology_hints(hints: Option<&api::EndpointHints>) -> TopologyHints {
    let nodes = hints.into_iter().flat_map(|hints| hints.for_nodes.iter().flatten());
    let zones = hints.into_iter().flat_map(|hints| hints.for_zones.iter().flatten());
    let nodes: BTreeSet<Arc<str>> = nodes.map(|node| node.name.as_str().into()).collect();
    let zones: BTreeSet<Arc<str>> = zones.map(|zone| zone.name.as_str().into()).collect();
    TopologyHints { nodes: nodes.into_iter().collect(), zones: zones.into_iter().collect() }
}

/// Many endpoints of a slice have the same few hints.
fn shared(known: &mut BTreeSet<Arc<TopologyHints>>, hints: TopologyHints) -> Arc<TopologyHints> {
    if let Some(known) = known.get(&hints) {
        return known.clone();
    }
    let hints = Arc::new(hints);
    known.insert(hints.clone());
    hints
}

/// A port with a number; one without means "any", which no packet can be translated to, nor can it to 0, which the API
/// server stores.
fn read_port(port: &api::EndpointPort) -> Result<Option<SlicePort>, FieldError> {
    let Some(number) = port.port.filter(|number| *number != 0) else { return Ok(None) };
    Ok(Some(SlicePort {
        name: port.name.as_deref().unwrap_or_default().into(),
        protocol: protocol(port.protocol.as_deref())?,
        number: port_number("port", number)?,
    }))
}

/// Missing conditions default to the best: ready, serving, not terminating.
fn condition(conditions: Option<&api::EndpointConditions>) -> Condition {
    let Some(conditions) = conditions else { return Condition::Ready };
    let serving = conditions.serving.unwrap_or(true);
    match (conditions.ready.unwrap_or(true), conditions.terminating.unwrap_or(false)) {
        (true, _) => Condition::Ready,
        (false, true) if serving => Condition::Draining,
        (false, false) if serving => Condition::Serving,
        (false, _) => Condition::Unready,
    }
}
