//! Pods and namespaces.

use std::sync::Arc;

use k8s_openapi::api::core::v1 as api;

use super::settings::settings;
use super::{FieldError, key, name, parse_address};
use crate::limits::{self, Origin, OriginObject, Stated};
use crate::model::{Labels, NamedPort, Namespace, Pod, PodLife, PolicySettings, Protocol};
use crate::object::KUBERNETES_SOURCE;

/// The label that the API server sets on every namespace, immutable (KEP-2161). A manifest lacks it.
pub const METADATA_NAME: &str = "kubernetes.io/metadata.name";

/// The annotation of a static pod's mirror in the API. It holds the uid that the runtime knows the static pod by, which
/// is another one than the uid of the mirror.
pub const MIRROR: &str = "kubernetes.io/config.mirror";

/// Reads a pod, stripped to what policy needs.
pub fn pod(object: &api::Pod) -> Result<Pod, FieldError> {
    let metadata = &object.metadata;
    let spec = object.spec.as_ref();
    let phase = object.status.as_ref().and_then(|status| status.phase.as_deref());
    let life = match phase {
        // also while it is being deleted: its address may already belong to another pod
        Some("Succeeded" | "Failed") => PodLife::Finished,
        _ if metadata.deletion_timestamp.is_some() => PodLife::Terminating,
        _ => PodLife::Live,
    };
    let mirrored = metadata.annotations.as_ref().and_then(|annotations| annotations.get(MIRROR));
    let key = key(metadata)?;
    let annotations = metadata.annotations.as_ref();
    let annotated_limits = annotations.and_then(|annotations| limits::of_pod(&key, annotations));
    Ok(Pod {
        key,
        uid: mirrored.or(metadata.uid.as_ref()).map_or("", |uid| uid).into(),
        created: metadata.creation_timestamp.as_ref().map_or(0, |time| time.0.as_second()),
        labels: labels(metadata.labels.iter().flatten()),
        addresses: addresses(object.status.as_ref())?,
        ports: spec.map_or(Ok(Vec::new()), ports)?.into(),
        life,
        host_network: spec.and_then(|spec| spec.host_network).unwrap_or(false),
        node: spec
            .and_then(|spec| spec.node_name.as_deref())
            .filter(|node| !node.is_empty())
            .map(Arc::from),
        host_addresses: host_addresses(object.status.as_ref()),
        annotated_limits,
    })
}

/// Reads a namespace that the source of this name gave.
pub fn namespace(source: &str, object: &api::Namespace) -> Result<Namespace, FieldError> {
    let metadata = &object.metadata;
    let namespace = Namespace::new(name(metadata)?, labels(metadata.labels.iter().flatten()));
    let mut settings = settings(source, metadata)?;
    let field = limits::annotation(limits::ACCOUNTING);
    let accounting = match metadata.annotations.as_ref().map(limits::accounting) {
        None => None,
        Some(Ok(accounting)) => accounting,
        Some(Err(cause)) if source == KUBERNETES_SOURCE => {
            settings.problems.push(format!("{field}: {cause}; it has no effect"));
            None
        }
        Some(Err(cause)) => return Err(FieldError::new(field, cause)),
    };
    let origin = || Origin {
        object: OriginObject::Namespace(namespace.name.clone()),
        field: field.as_str().into(),
    };
    let accounting = accounting.map(|value| Stated { value, origin: origin() });
    Ok(Namespace { settings, accounting, ..namespace })
}

impl Namespace {
    /// A namespace; its `kubernetes.io/metadata.name` label is always set to the name.
    pub fn new(name: impl Into<Arc<str>>, mut labels: Labels) -> Self {
        let name = name.into();
        labels.insert(METADATA_NAME.into(), name.clone());
        Self { name, labels, settings: PolicySettings::default(), accounting: None }
    }
}

fn labels<'a>(labels: impl Iterator<Item = (&'a String, &'a String)>) -> Labels {
    labels.map(|(key, value)| (key.as_str().into(), value.as_str().into())).collect()
}

fn addresses(status: Option<&api::PodStatus>) -> Result<Vec<std::net::IpAddr>, FieldError> {
    let Some(status) = status else { return Ok(Vec::new()) };
    let many = status.pod_ips.iter().flatten().enumerate();
    let many = many.map(|(index, ip)| (format!("status.podIPs[{index}].ip"), ip.ip.as_str()));
    let one = status.pod_ip.iter().map(|ip| ("status.podIP".to_owned(), ip.as_str()));
    let mut addresses = Vec::new();
    for (path, text) in many.chain(one).filter(|(_, text)| !text.is_empty()) {
        let address = parse_address(text)
            .ok_or_else(|| FieldError::new(path, format!("must be an address, is {text:?}")))?;
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    Ok(addresses)
}

/// Those that can be read: no policy speaks of them, so one that cannot does no harm to the pod.
fn host_addresses(status: Option<&api::PodStatus>) -> Vec<std::net::IpAddr> {
    let many = status.and_then(|status| status.host_ips.as_ref()).into_iter().flatten();
    let one = status.and_then(|status| status.host_ip.as_deref());
    let texts = many.map(|host| host.ip.as_str()).chain(one);
    let addresses: std::collections::BTreeSet<_> = texts.filter_map(parse_address).collect();
    addresses.into_iter().collect()
}

/// Named ports of the containers that run beside each other: sidecars count, plain init containers do
/// not, for they are gone when the pod serves (docs/semantics.md 6.15).
fn ports(spec: &api::PodSpec) -> Result<Vec<NamedPort>, FieldError> {
    let containers = spec.containers.iter().enumerate();
    let containers = containers.map(|(index, container)| ("containers", index, container));
    let sidecars = spec.init_containers.iter().flatten().enumerate();
    let sidecars = sidecars
        .filter(|(_, container)| container.restart_policy.as_deref() == Some("Always"))
        .map(|(index, container)| ("initContainers", index, container));
    let mut named = Vec::new();
    for (list, index, container) in containers.chain(sidecars) {
        for (nth, port) in container.ports.iter().flatten().enumerate() {
            let Some(name) = port.name.as_deref().filter(|name| !name.is_empty()) else { continue };
            let port = read_port(name, port)
                .map_err(|error| error.under(format_args!("spec.{list}[{index}].ports[{nth}]")))?;
            if !named.contains(&port) {
                named.push(port);
            }
        }
    }
    Ok(named)
}

fn read_port(name: &str, port: &api::ContainerPort) -> Result<NamedPort, FieldError> {
    let number = super::policy::port_number("containerPort", port.container_port)?;
    let protocol = super::policy::protocol_or_default(port.protocol.as_deref())?;
    Ok(NamedPort { name: name.into(), protocol, number })
}

impl Protocol {
    /// The protocol of this API name.
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "TCP" => Some(Self::Tcp),
            "UDP" => Some(Self::Udp),
            "SCTP" => Some(Self::Sctp),
            _ => None,
        }
    }
}
