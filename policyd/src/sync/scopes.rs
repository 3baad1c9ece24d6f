//! Where peers are: brings the map `scopes` up to date with the index, while some pod of this node is accounted.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use podgate_bpf::abi::Scope;
use podgate_bpf::maps::{Net, host_net};
use podgate_bpf::{Datapath, Result};
use podgate_policy::index::{Changes, Index};
use podgate_policy::scopes::Scopes;

use super::Failed;
use crate::encode;

/// The prefixes that the map holds, and those that it should hold.
#[derive(Debug)]
pub struct ScopeSync {
    datapath: Arc<Datapath>,
    /// This node's name.
    node: Arc<str>,
    /// The addresses of all nodes, this one's own included.
    nodes: Arc<BTreeSet<IpAddr>>,
    /// What the map should hold; `None` while no pod is accounted.
    wanted: Option<Scopes>,
    /// What it holds; `None` for a number that this build does not know.
    held: BTreeMap<Net, Option<Scope>>,
    /// Prefixes of which the two may differ.
    pending: BTreeSet<Net>,
    /// Prefixes that could not be written.
    failed: BTreeSet<Net>,
    /// Why not.
    reason: Option<String>,
}

impl ScopeSync {
    /// Reads what an earlier policyd left in the map.
    pub fn recover(datapath: Arc<Datapath>, node: &str) -> Result<Self> {
        let held = datapath.maps.limits().scopes()?;
        Ok(Self {
            datapath,
            node: node.into(),
            nodes: Arc::default(),
            wanted: None,
            pending: held.keys().copied().collect(),
            held,
            failed: BTreeSet::new(),
            reason: None,
        })
    }

    /// Sets the addresses of all nodes, this one's own included; [`ScopeSync::follow`] takes them into account.
    pub fn set_nodes(&mut self, nodes: Arc<BTreeSet<IpAddr>>) {
        self.nodes = nodes;
    }

    /// Follows the index, which has changed in this way. `accounting`: whether some pod is accounted. The next commit writes what
    /// is different.
    pub fn follow(&mut self, index: &Index, changes: &Changes, accounting: bool) {
        match (&mut self.wanted, accounting) {
            (Some(wanted), true) => {
                let changed = wanted.update(index, &self.nodes, changes);
                self.pending.extend(changed.into_iter().map(host_net));
            }
            (None, true) => {
                let wanted = Scopes::new(self.node.clone(), index, self.nodes.clone());
                self.pending.extend(wanted.all().map(|(address, _)| host_net(address)));
                self.pending.extend(self.held.keys());
                self.wanted = Some(wanted);
            }
            (Some(_), false) => {
                self.pending.extend(self.held.keys());
                self.wanted = None;
            }
            (None, false) => {}
        }
    }

    /// Writes what has changed; true if that is anything. What fails is tried again when `failed` says so.
    pub fn commit(&mut self, failed: Failed) -> bool {
        if failed == Failed::Retry {
            self.pending.append(&mut self.failed);
        }
        let different = std::mem::take(&mut self.pending).into_iter().filter_map(|net| {
            let wanted = self.scope_of(net);
            (self.held.get(&net) != wanted.map(Some).as_ref()).then_some((net, wanted))
        });
        // what goes makes room for what comes
        let mut steps: Vec<(Net, Option<Scope>)> = different.collect();
        steps.sort_by_key(|(_, wanted)| wanted.is_some());
        let mut changed = false;
        let mut reason = None;
        for (net, wanted) in steps {
            match self.write(net, wanted) {
                Ok(()) => {
                    self.failed.remove(&net);
                    changed = true;
                }
                Err(error) => {
                    self.failed.insert(net);
                    reason = Some(error.to_string());
                }
            }
        }
        if let Some(reason) = reason {
            if self.reason.as_ref() != Some(&reason) {
                tracing::error!(reason, "cannot write where addresses are");
            }
            self.reason = Some(reason);
        }
        if self.failed.is_empty() {
            self.reason = None;
        }
        changed
    }

    /// Why the map does not hold all that it should, for users.
    pub fn problem(&self) -> Option<String> {
        let reason = self.reason.as_ref()?;
        let count = self.failed.len();
        Some(format!(
            "account for traffic: {reason}; where {count} addresses are is not known, their traffic counts as what it was, \
             or as external; retrying"
        ))
    }

    fn scope_of(&self, net: Net) -> Option<Scope> {
        let wanted = self.wanted.as_ref()?;
        // every prefix that is wanted is one address
        if net != host_net(net.0) {
            return None;
        }
        match encode::scope(wanted.get(net.0)) {
            Scope::External => None,
            scope => Some(scope),
        }
    }

    fn write(&mut self, net: Net, wanted: Option<Scope>) -> Result<()> {
        let maps = self.datapath.maps.limits();
        match wanted {
            Some(scope) => {
                maps.set_scope(net, scope)?;
                self.held.insert(net, Some(scope));
            }
            None => {
                maps.remove_scope(net)?;
                self.held.remove(&net);
            }
        }
        Ok(())
    }
}
