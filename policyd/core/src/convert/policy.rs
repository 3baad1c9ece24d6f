//! NetworkPolicies: defaulting (docs/semantics.md 2, 3) and what the API server would reject (docs/semantics.md 13).

use std::sync::Arc;

use ipnet::IpNet;
use k8s_openapi::api::networking::v1 as api;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::selector::read_selector;
use super::settings::settings;
use super::{FieldError, key, parse_cidr};
use crate::model::{
    Block, NamespaceScope, ObjectKey, Peer, Peers, Policy, PolicyId, Port, Ports, Protocol, Rule,
};
use crate::selector::Selector;

/// Reads a policy that the source of this name gave.
pub fn policy(
    source: impl Into<Arc<str>>,
    object: &api::NetworkPolicy,
) -> Result<Policy, FieldError> {
    let source = source.into();
    let key = key(&object.metadata)?;
    let settings = settings(&source, &object.metadata)?;
    let default = api::NetworkPolicySpec::default();
    let spec = object.spec.as_ref().unwrap_or(&default);
    let (ingress_isolated, egress_isolated) = policy_types(spec)?;
    let selector = match &spec.pod_selector {
        Some(selector) => {
            read_selector(selector).map_err(|error| error.under("spec.podSelector"))?
        }
        None => Selector::everything(),
    };
    // The rules of a direction that is not in policyTypes are validated all the same, as the API server does.
    let mut ingress = Vec::new();
    for (index, rule) in spec.ingress.iter().flatten().enumerate() {
        let rule = read_rule(&key, ("from", rule.from.as_deref()), rule.ports.as_deref());
        ingress.push(rule.map_err(|error| error.under(format_args!("spec.ingress[{index}]")))?);
    }
    let mut egress = Vec::new();
    for (index, rule) in spec.egress.iter().flatten().enumerate() {
        let rule = read_rule(&key, ("to", rule.to.as_deref()), rule.ports.as_deref());
        egress.push(rule.map_err(|error| error.under(format_args!("spec.egress[{index}]")))?);
    }
    Ok(Policy {
        id: PolicyId { source, key },
        selector,
        ingress: ingress_isolated.then_some(ingress),
        egress: egress_isolated.then_some(egress),
        settings,
    })
}

/// Whether the policy isolates for ingress and for egress.
fn policy_types(spec: &api::NetworkPolicySpec) -> Result<(bool, bool), FieldError> {
    let types = spec.policy_types.as_deref().unwrap_or_default();
    if types.is_empty() {
        return Ok((true, spec.egress.as_ref().is_some_and(|rules| !rules.is_empty())));
    }
    if types.len() > 2 {
        return Err(FieldError::new("spec.policyTypes", "must have at most two items"));
    }
    let (mut ingress, mut egress) = (false, false);
    for (index, kind) in types.iter().enumerate() {
        match kind.as_str() {
            "Ingress" => ingress = true,
            "Egress" => egress = true,
            other => {
                let cause = format!("must be Ingress or Egress, is {other:?}");
                return Err(FieldError::new(format!("spec.policyTypes[{index}]"), cause));
            }
        }
    }
    Ok((ingress, egress))
}

/// Reads the peers, which are in the field `field`, and the ports of a rule of a policy.
pub(super) fn read_rule(
    policy: &ObjectKey,
    (field, peers): (&str, Option<&[api::NetworkPolicyPeer]>),
    ports: Option<&[api::NetworkPolicyPort]>,
) -> Result<Rule, FieldError> {
    let mut of = Vec::new();
    for (index, port) in ports.unwrap_or_default().iter().enumerate() {
        let port = read_port(port);
        of.push(port.map_err(|error| error.under(format_args!("ports[{index}]")))?);
    }
    let ports = if of.is_empty() { Ports::Any } else { Ports::Of(of) };
    let mut of = Vec::new();
    for (index, peer) in peers.unwrap_or_default().iter().enumerate() {
        let parent = format!("{field}[{index}]");
        if peer == &api::NetworkPolicyPeer::default() {
            return Err(FieldError::new(parent, "must specify a peer"));
        }
        of.push(read_peer(policy, peer).map_err(|error| error.under(parent))?);
    }
    let peers = if of.is_empty() { Peers::Any } else { Peers::of(of) };
    Ok(Rule { peers, ports })
}

fn read_peer(policy: &ObjectKey, peer: &api::NetworkPolicyPeer) -> Result<Peer, FieldError> {
    if let Some(block) = &peer.ip_block {
        if peer.pod_selector.is_some() || peer.namespace_selector.is_some() {
            return Err(FieldError::new("ipBlock", "must not be combined with a selector"));
        }
        return read_block(block).map(Peer::Block).map_err(|error| error.under("ipBlock"));
    }
    let namespaces = match &peer.namespace_selector {
        Some(selector) => NamespaceScope::Matching(
            read_selector(selector).map_err(|error| error.under("namespaceSelector"))?,
        ),
        None => NamespaceScope::Own(policy.namespace.clone()),
    };
    let pods = match &peer.pod_selector {
        Some(selector) => read_selector(selector).map_err(|error| error.under("podSelector"))?,
        None => Selector::everything(),
    };
    Ok(Peer::Pods { namespaces, pods })
}

fn read_block(block: &api::IPBlock) -> Result<Block, FieldError> {
    let cidr = read_cidr("cidr", &block.cidr)?;
    let mut except = Vec::new();
    for (index, text) in block.except.iter().flatten().enumerate() {
        let path = format!("except[{index}]");
        let hole = read_cidr(&path, text)?;
        if !cidr.contains(&hole) || cidr.prefix_len() >= hole.prefix_len() {
            let cause = format!("must be a strict subset of `cidr` {cidr}, is {text:?}");
            return Err(FieldError::new(path, cause));
        }
        except.push(hole);
    }
    except.sort_unstable();
    except.dedup();
    Ok(Block { cidr, except })
}

fn read_cidr(path: &str, text: &str) -> Result<IpNet, FieldError> {
    parse_cidr(text).ok_or_else(|| {
        FieldError::new(path, format!("must be a CIDR like 10.0.0.0/8, is {text:?}"))
    })
}

fn read_port(port: &api::NetworkPolicyPort) -> Result<Port, FieldError> {
    let protocol = protocol(port.protocol.as_deref())?;
    let end = port.end_port;
    match &port.port {
        None if end.is_some() => {
            Err(FieldError::new("endPort", "must not be given without `port`"))
        }
        None => Ok(Port::All(protocol)),
        Some(IntOrString::Int(first)) => {
            let first = port_number("port", *first)?;
            let last = end.map_or(Ok(first), |end| port_number("endPort", end))?;
            if last < first {
                let cause = format!("must not be less than `port` {first}, is {last}");
                return Err(FieldError::new("endPort", cause));
            }
            Ok(Port::Numbers(protocol, first..=last))
        }
        Some(IntOrString::String(_)) if end.is_some() => {
            Err(FieldError::new("endPort", "must not be given when `port` is a name"))
        }
        Some(IntOrString::String(name)) if is_port_name(name) => {
            Ok(Port::Named(protocol, name.as_str().into()))
        }
        Some(IntOrString::String(name)) => {
            Err(FieldError::new("port", format!("must be a number or a port name, is {name:?}")))
        }
    }
}

/// Reads a `protocol` field for which the API server also defaults an empty string.
pub(super) fn protocol_or_default(name: Option<&str>) -> Result<Protocol, FieldError> {
    protocol(name.filter(|name| !name.is_empty()))
}

/// Reads a `protocol` field; missing means TCP, empty is an error.
pub(super) fn protocol(name: Option<&str>) -> Result<Protocol, FieldError> {
    let Some(name) = name else { return Ok(Protocol::Tcp) };
    Protocol::from_name(name).ok_or_else(|| {
        FieldError::new("protocol", format!("must be TCP, UDP or SCTP, is {name:?}"))
    })
}

/// A port number of the field `path`, 1 to 65535.
pub(super) fn port_number(path: &str, number: i32) -> Result<u16, FieldError> {
    match u16::try_from(number) {
        Ok(number) if number > 0 => Ok(number),
        _ => Err(FieldError::new(path, format!("must be from 1 to 65535, is {number}"))),
    }
}

/// The API server's rule (RFC 6335): "80" is no name, for it has no letter.
pub(super) fn is_port_name(name: &str) -> bool {
    let valid = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=15).contains(&name.len())
        && name.bytes().all(valid)
        && name.bytes().any(|byte| byte.is_ascii_lowercase())
        && !name.contains("--")
        && !name.starts_with('-')
        && !name.ends_with('-')
}
