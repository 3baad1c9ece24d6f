//! Services.

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::Arc;

use k8s_openapi::api::core::v1 as api;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use ipnet::IpNet;

use super::policy::{is_port_name, port_number, protocol_or_default};
use super::{FieldError, key, parse_address, parse_cidr};
use crate::model::{Addressing, Service, ServicePort, TargetPort, TrafficPolicy};

/// How long a client keeps its backend by default, without `sessionAffinityConfig`. Seconds.
const AFFINITY_SECONDS: i32 = 10_800;
/// The longest affinity that the API server accepts. Seconds.
const AFFINITY_MAX: i32 = 86_400;
/// The label by which kube-proxy leaves a service to another proxy, whatever its value.
pub const PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";

/// Reads a service.
pub fn service(object: &api::Service) -> Result<Service, FieldError> {
    let default = api::ServiceSpec::default();
    let spec = object.spec.as_ref().unwrap_or(&default);
    let mut ports = Vec::new();
    for (index, port) in spec.ports.iter().flatten().enumerate() {
        let port = read_port(port);
        ports.push(port.map_err(|error| error.under(format_args!("spec.ports[{index}]")))?);
    }
    let selector = spec.selector.iter().flatten();
    let source_ranges = source_ranges(spec);
    let (external, guarded) = external(spec, object.status.as_ref(), &source_ranges)?;
    let labels = object.metadata.labels.as_ref();
    Ok(Service {
        key: key(&object.metadata)?,
        addressing: addressing(spec)?,
        external,
        guarded,
        source_ranges: source_ranges.into(),
        ports,
        affinity: affinity(spec)?,
        internal: match spec.internal_traffic_policy.as_deref() {
            None | Some("Cluster") => TrafficPolicy::Cluster,
            Some("Local") => TrafficPolicy::Local,
            Some(other) => {
                let cause = format!("must be Cluster or Local, is {other:?}");
                return Err(FieldError::new("spec.internalTrafficPolicy", cause));
            }
        },
        inbound: match spec.external_traffic_policy.as_deref() {
            Some("Local") => TrafficPolicy::Local,
            _ => TrafficPolicy::Cluster,
        },
        other_proxy: labels.is_some_and(|labels| labels.contains_key(PROXY_NAME)),
        distribution: spec.traffic_distribution.as_deref().map(Arc::from),
        selector: selector
            .map(|(key, value)| (key.as_str().into(), value.as_str().into()))
            .collect(),
    })
}

fn addressing(spec: &api::ServiceSpec) -> Result<Addressing, FieldError> {
    match spec.type_.as_deref() {
        Some("ExternalName") => return Ok(Addressing::ExternalName),
        None | Some("ClusterIP" | "NodePort" | "LoadBalancer") => {}
        Some(other) => {
            let cause =
                format!("must be ClusterIP, NodePort, LoadBalancer or ExternalName, is {other:?}");
            return Err(FieldError::new("spec.type", cause));
        }
    }
    let many = spec.cluster_ips.iter().flatten().enumerate();
    let many = many.map(|(index, text)| (format!("spec.clusterIPs[{index}]"), text.as_str()));
    let one = spec.cluster_ip.iter().map(|text| ("spec.clusterIP".to_owned(), text.as_str()));
    let given: Vec<_> = many.chain(one).filter(|(_, text)| !text.is_empty()).collect();
    if given.iter().any(|(_, text)| *text == "None") {
        return Ok(Addressing::Headless);
    }
    match addresses(given.into_iter())? {
        none if none.is_empty() => Ok(Addressing::Unassigned),
        some => Ok(Addressing::Virtual(some)),
    }
}

/// What leads to the service from outside and, for a pod, is cut short at its node: for everybody, and for sources in
/// the ranges only.
fn external(
    spec: &api::ServiceSpec,
    status: Option<&api::ServiceStatus>,
    ranges: &[IpNet],
) -> Result<(Vec<IpAddr>, Vec<IpAddr>), FieldError> {
    let ips = spec.external_ips.iter().flatten().enumerate();
    let ips = ips.map(|(index, text)| (format!("spec.externalIPs[{index}]"), text.as_str()));
    let balancer = spec.type_.as_deref() == Some("LoadBalancer");
    let ingress = status
        .and_then(|status| status.load_balancer.as_ref()?.ingress.as_deref())
        .filter(|_| balancer)
        .unwrap_or_default();
    // "Proxy": packets must really go through the load balancer, which does something to them.
    let ingress = ingress
        .iter()
        .enumerate()
        .filter(|(_, ingress)| ingress.ip_mode.as_deref() != Some("Proxy"))
        .filter_map(|(index, ingress)| {
            let path = format!("status.loadBalancer.ingress[{index}].ip");
            Some((path, ingress.ip.as_deref()?))
        });
    let given = |(_, text): &(String, &str)| !text.is_empty();
    let mut external = addresses(ips.filter(given))?;
    // kube-proxy splits the ranges by family, and a family without ranges is open
    let all_read = spec.load_balancer_source_ranges.as_ref().map_or(0, Vec::len) == ranges.len();
    let is_guarded = |address: &IpAddr| {
        let v4 = address.is_ipv4();
        !all_read || ranges.iter().any(|range| range.addr().is_ipv4() == v4)
    };
    let (guarded, open): (Vec<_>, Vec<_>) =
        addresses(ingress.filter(given))?.into_iter().partition(is_guarded);
    external.extend(open);
    external.sort_unstable();
    external.dedup();
    Ok((external, guarded))
}

/// The ranges that can be read. A load balancer address is closed to sources outside of all of them.
fn source_ranges(spec: &api::ServiceSpec) -> Vec<IpNet> {
    let ranges = spec.load_balancer_source_ranges.iter().flatten();
    ranges.filter_map(|text| parse_cidr(text.trim())).collect()
}

fn addresses<'a>(
    texts: impl Iterator<Item = (String, &'a str)>,
) -> Result<Vec<IpAddr>, FieldError> {
    let mut addresses = Vec::new();
    for (path, text) in texts {
        let address = parse_address(text)
            .ok_or_else(|| FieldError::new(path, format!("must be an address, is {text:?}")))?;
        addresses.push(address);
    }
    addresses.sort_unstable();
    addresses.dedup();
    Ok(addresses)
}

fn affinity(spec: &api::ServiceSpec) -> Result<Option<NonZeroU32>, FieldError> {
    match spec.session_affinity.as_deref() {
        None | Some("None" | "") => return Ok(None),
        Some("ClientIP") => {}
        Some(other) => {
            let cause = format!("must be None or ClientIP, is {other:?}");
            return Err(FieldError::new("spec.sessionAffinity", cause));
        }
    }
    let config = spec.session_affinity_config.as_ref();
    let seconds = config
        .and_then(|config| config.client_ip.as_ref()?.timeout_seconds)
        .unwrap_or(AFFINITY_SECONDS);
    match u32::try_from(seconds).ok().and_then(NonZeroU32::new) {
        Some(valid) if seconds <= AFFINITY_MAX => Ok(Some(valid)),
        _ => Err(FieldError::new(
            "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
            format!("must be from 1 to {AFFINITY_MAX}, is {seconds}"),
        )),
    }
}

fn read_port(port: &api::ServicePort) -> Result<ServicePort, FieldError> {
    let number = port_number("port", port.port)?;
    let target = match &port.target_port {
        // 0 and "" are what a missing field looks like after some tools
        None | Some(IntOrString::Int(0)) => TargetPort::Number(number),
        Some(IntOrString::String(name)) if name.is_empty() => TargetPort::Number(number),
        Some(IntOrString::Int(target)) => TargetPort::Number(port_number("targetPort", *target)?),
        Some(IntOrString::String(name)) if is_port_name(name) => {
            TargetPort::Name(Arc::from(name.as_str()))
        }
        Some(IntOrString::String(name)) => {
            let cause = format!("must be a number or a port name, is {name:?}");
            return Err(FieldError::new("targetPort", cause));
        }
    };
    Ok(ServicePort {
        name: port.name.as_deref().unwrap_or_default().into(),
        protocol: protocol_or_default(port.protocol.as_deref())?,
        port: number,
        node_port: match port.node_port {
            None | Some(0) => None,
            Some(number) => Some(port_number("nodePort", number)?),
        },
        target,
    })
}
