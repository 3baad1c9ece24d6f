//! Where the peers of this node's pods are, address by address, as accounting tells them apart.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use podgate_contract::api::Scope;

use crate::index::{Changes, Index};
use crate::model::{Node, Pod};

/// The label of nodes that says in which zone they are.
pub const ZONE_LABEL: &str = "topology.kubernetes.io/zone";

/// The scope of every address that is known, followed from what changes in the index. Every other address is
/// [`Scope::External`].
#[derive(Debug)]
pub struct Scopes {
    /// This node.
    node: Arc<str>,
    of: HashMap<IpAddr, Scope>,
    zones: BTreeMap<Arc<str>, Arc<str>>,
    /// The addresses of nodes.
    nodes: Arc<BTreeSet<IpAddr>>,
}

impl Scopes {
    /// Of everything that the index knows now. `nodes`: the addresses of all nodes.
    pub fn new(node: Arc<str>, index: &Index, nodes: Arc<BTreeSet<IpAddr>>) -> Self {
        let mut scopes = Self { node, of: HashMap::new(), zones: zones(index), nodes };
        for address in scopes.known(index) {
            scopes.follow(index, address);
        }
        scopes
    }

    /// Where an address is.
    pub fn get(&self, address: IpAddr) -> Scope {
        self.of.get(&address).copied().unwrap_or(Scope::External)
    }

    /// Every address that is not external.
    pub fn all(&self) -> impl Iterator<Item = (IpAddr, Scope)> {
        self.of.iter().map(|(address, scope)| (*address, *scope))
    }

    /// Follows the index, which has changed in this way since the last call. `nodes`: the addresses of all nodes now; the same
    /// `Arc` if they have not changed. Returns the addresses whose scope is another one than before.
    pub fn update(
        &mut self,
        index: &Index,
        nodes: &Arc<BTreeSet<IpAddr>>,
        changes: &Changes,
    ) -> BTreeSet<IpAddr> {
        let mut dirty: BTreeSet<IpAddr> = changes.addresses.iter().copied().collect();
        if !Arc::ptr_eq(&self.nodes, nodes) {
            dirty.extend(self.nodes.symmetric_difference(nodes));
            self.nodes = nodes.clone();
        }
        if !changes.nodes.is_empty() {
            let zones = zones(index);
            if self.zones != zones {
                self.zones = zones;
                dirty.extend(self.known(index));
            }
        }
        dirty.retain(|address| self.follow(index, *address));
        dirty
    }

    fn known(&self, index: &Index) -> BTreeSet<IpAddr> {
        let owned = index.owners().map(|(address, _)| address);
        owned.chain(self.nodes.iter().copied()).chain(index.node_addresses()).collect()
    }

    /// True if the address has another scope than before.
    fn follow(&mut self, index: &Index, address: IpAddr) -> bool {
        let scope = self.scope(index, address);
        let before = match scope {
            Some(scope) => self.of.insert(address, scope),
            None => self.of.remove(&address),
        };
        before != scope
    }

    fn scope(&self, index: &Index, address: IpAddr) -> Option<Scope> {
        // a pod that has the address of a node uses the node's network, whatever it says of itself
        if self.nodes.contains(&address) || index.node_at(address).is_some() {
            return Some(Scope::Node);
        }
        index.owner_of(address).map(|pod| self.scope_of_pod(pod))
    }

    fn scope_of_pod(&self, pod: &Pod) -> Scope {
        let Some(node) = &pod.node else { return Scope::Cluster };
        if *node == self.node {
            return Scope::SameNode;
        }
        match (self.zones.get(&self.node), self.zones.get(node)) {
            (Some(here), Some(there)) if here == there => Scope::SameZone,
            (Some(_), Some(_)) => Scope::OtherZone,
            _ => Scope::Cluster,
        }
    }
}

/// The zones of nodes that say it.
fn zones(index: &Index) -> BTreeMap<Arc<str>, Arc<str>> {
    let zone = |node: &Node| Some((node.name.clone(), node.labels.get(ZONE_LABEL)?.clone()));
    index.nodes().filter_map(zone).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::convert;
    use crate::object::{Event, ObjectId};

    const HERE: &str = "here";

    fn node(name: &str, address: &str, zone: Option<&str>) -> Event {
        let labels = zone.map_or(json!({}), |zone| json!({ZONE_LABEL: zone}));
        let object = json!({
            "metadata": {"name": name, "labels": labels},
            "status": {"addresses": [{"type": "InternalIP", "address": address}]},
        });
        let object = serde_json::from_value(object).unwrap();
        Event::Set(convert::node(&object).unwrap().into())
    }

    fn pod(name: &str, address: &str, node: Value, host_network: bool) -> Event {
        let object = json!({
            "metadata": {"name": name, "namespace": "shop"},
            "spec": {"nodeName": node, "hostNetwork": host_network, "containers": []},
            "status": {"phase": "Running", "podIPs": [{"ip": address}]},
        });
        let object = serde_json::from_value(object).unwrap();
        Event::Set(convert::pod(&object).unwrap().into())
    }

    fn of_cluster() -> Index {
        let mut index = Index::of_node(HERE);
        for event in [
            node(HERE, "192.0.2.1", Some("a")),
            node("near", "192.0.2.2", Some("a")),
            node("far", "192.0.2.3", Some("b")),
            node("unlabelled", "192.0.2.4", None),
            pod("mine", "10.0.0.1", json!(HERE), false),
            pod("near", "10.0.0.2", json!("near"), false),
            pod("far", "10.0.0.3", json!("far"), false),
            pod("lost", "10.0.0.4", json!("unlabelled"), false),
            pod("nowhere", "fd00::5", json!(null), false),
            pod("agent", "192.0.2.9", json!("far"), true),
        ] {
            assert!(index.apply(event));
        }
        index
    }

    fn scopes_of(index: &mut Index) -> Scopes {
        index.take_changes();
        let nodes = index.host_addresses();
        Scopes::new(HERE.into(), index, nodes)
    }

    fn update(scopes: &mut Scopes, index: &mut Index) -> Vec<String> {
        let nodes = index.host_addresses();
        let changes = index.take_changes();
        let changed = scopes.update(index, &nodes, &changes);
        let fresh = Scopes::new(HERE.into(), index, nodes);
        assert_eq!(scopes.of, fresh.of, "followed as built anew");
        changed.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn each_kind_of_address_has_its_scope() {
        let scopes = scopes_of(&mut of_cluster());
        for (address, scope) in [
            ("10.0.0.1", Scope::SameNode),
            ("10.0.0.2", Scope::SameZone),
            ("10.0.0.3", Scope::OtherZone),
            ("10.0.0.4", Scope::Cluster),
            ("fd00::5", Scope::Cluster),
            ("192.0.2.1", Scope::Node),
            ("192.0.2.3", Scope::Node),
            ("192.0.2.9", Scope::Node),
            ("10.0.0.9", Scope::External),
            ("203.0.113.7", Scope::External),
        ] {
            assert_eq!(scopes.get(address.parse().unwrap()), scope, "{address}");
        }
        assert_eq!(scopes.all().count(), 10);
    }

    #[test]
    fn without_a_zone_of_this_node_pods_elsewhere_are_of_the_cluster() {
        let mut index = of_cluster();
        index.apply(node(HERE, "192.0.2.1", None));
        let scopes = scopes_of(&mut index);
        for (address, scope) in [("10.0.0.1", Scope::SameNode), ("10.0.0.2", Scope::Cluster)] {
            assert_eq!(scopes.get(address.parse().unwrap()), scope, "{address}");
        }
    }

    #[test]
    fn what_changes_is_followed_and_nothing_else() {
        let mut index = of_cluster();
        let mut scopes = scopes_of(&mut index);
        let none: [&str; 0] = [];
        assert_eq!(update(&mut scopes, &mut index), none);
        let far = ["10.0.0.2"];
        for (event, changed) in [
            (pod("near", "10.0.0.2", json!("far"), false), &far[..]),
            (pod("new", "10.0.0.6", json!(HERE), false), &["10.0.0.6"]),
            // the same scope as before
            (pod("other", "10.0.0.7", json!("unlabelled"), false), &["10.0.0.7"]),
            (pod("other", "10.0.0.7", json!("gone"), false), &[]),
            // a zone is labelled, and a node renumbered
            (node("unlabelled", "192.0.2.4", Some("b")), &["10.0.0.4"]),
            (node("near", "192.0.2.5", Some("a")), &["192.0.2.2", "192.0.2.5"]),
            (Event::Gone(ObjectId::Node("far".into())), &["10.0.0.2", "10.0.0.3", "192.0.2.3"]),
        ] {
            let shown = format!("{event:?}");
            assert!(index.apply(event), "{shown}");
            assert_eq!(update(&mut scopes, &mut index), changed, "{shown}");
        }
    }
}
