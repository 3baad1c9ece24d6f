//! Nodes.

use std::net::IpAddr;

use k8s_openapi::api::core::v1 as api;

use super::{FieldError, name, parse_address};
use crate::model::Node;

/// Reads a node's labels and addresses. Host names, and addresses that cannot be read, are left out: no policy names them, and they do
/// no harm to the rest of the node.
pub fn node(object: &api::Node) -> Result<Node, FieldError> {
    let status = object.status.as_ref();
    let given = status.and_then(|status| status.addresses.as_ref());
    let mut addresses: Vec<IpAddr> = Vec::new();
    let rank = |kind: &str| {
        ["InternalIP", "ExternalIP"].iter().position(|known| *known == kind).unwrap_or(2)
    };
    for kind in 0..=2 {
        let of_kind = given.into_iter().flatten().filter(|address| rank(&address.type_) == kind);
        for address in of_kind.filter_map(|address| parse_address(&address.address)) {
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
    }
    let labels = object.metadata.labels.iter().flatten();
    let labels = labels.map(|(key, value)| (key.as_str().into(), value.as_str().into())).collect();
    Ok(Node { name: name(&object.metadata)?.into(), labels, addresses })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn internal_addresses_come_first_and_host_names_are_none() {
        let object = json!({"metadata": {"name": "n1"}, "status": {"addresses": [
            {"type": "Hostname", "address": "n1.example"},
            {"type": "ExternalIP", "address": "1.2.3.4"},
            {"type": "InternalIP", "address": "192.0.2.1"},
            {"type": "InternalIP", "address": "fd00:2::1"},
            {"type": "InternalIP", "address": "nonsense"},
        ]}});
        let node = node(&serde_json::from_value(object).unwrap()).unwrap();
        let addresses: Vec<_> = node.addresses.iter().map(ToString::to_string).collect();
        assert_eq!(
            (&*node.name, addresses),
            ("n1", vec!["192.0.2.1".into(), "fd00:2::1".into(), "1.2.3.4".into()])
        );
    }
}
