//! The compiler: the numbers that outlive a compilation, and the way from an index to a [`Compiled`].

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use crate::classes::{Numbering, Used};
use crate::compile::{Class, Compiled, Endpoint, RuleId, RuleOrigin};
use crate::index::Index;
use crate::model::{Pod, Policy};
use crate::peers::{PeerIndex, Wanted};
use crate::tables::{Rules, TableMaker};

/// Compiles, and keeps the numbers of classes and rules from one compilation to the next, so that two
/// results of one compiler can be compared. Held by the one writer of the maps.
#[derive(Debug)]
pub struct Compiler {
    numbering: Numbering,
    rules: Rules,
}

impl Default for Compiler {
    fn default() -> Self {
        Self::new()
    }
}

impl Compiler {
    /// A compiler over empty maps.
    pub fn new() -> Self {
        Self::starting_at(1)
    }

    /// A compiler whose classes begin at `first_class`: above every class that the kernel's maps still
    /// hold, for what those meant is not known any more. See also [`Compiler::above`].
    pub fn starting_at(first_class: u32) -> Self {
        Self { numbering: Numbering::starting_at(first_class), rules: Rules::new() }
    }

    /// A compiler whose classes begin above these, found in the kernel's maps.
    pub fn above(classes: impl IntoIterator<Item = Class>) -> Self {
        let classes = classes.into_iter().filter(|class| !class.is_transient());
        Self::starting_at(classes.max().map_or(1, |class| class.0 + 1))
    }

    /// What a rule number stands for.
    pub fn origin(&self, rule: RuleId) -> Option<&RuleOrigin> {
        self.rules.origin(rule)
    }

    /// What the maps should hold for these endpoints. The result depends on the index, on the endpoints, whatever
    /// their order, and on the numbers given before.
    pub fn compile(&mut self, index: &Index, endpoints: &[Endpoint]) -> Compiled {
        let mut endpoints: Vec<&Endpoint> = endpoints.iter().collect();
        endpoints.sort_by_key(|endpoint| endpoint.id);

        let mut subjects = Vec::new();
        let mut in_force: BTreeMap<_, &Arc<Policy>> = BTreeMap::new();
        for endpoint in &endpoints {
            if let Some(pod) = known_pod(index, endpoint) {
                let policies: Vec<&Arc<Policy>> = index.policies_selecting(pod).collect();
                in_force.extend(policies.iter().map(|policy| (&policy.id, *policy)));
                subjects.push((endpoint.id, pod, policies));
            }
        }
        let mut wanted = Wanted::default();
        in_force.values().for_each(|policy| wanted.add(policy));

        let numbering = &mut self.numbering;
        let mut used = Used::default();
        let mut peers = PeerIndex::new(index, &wanted, numbering);
        let mut compiled = Compiled::default();
        for (prefix, blocks) in peers.blocks().members() {
            let class = used.class(numbering, blocks.iter().copied().collect());
            compiled.nets.insert(*prefix, class);
        }
        for (address, pod) in owners(index, &endpoints) {
            let mut atoms = peers.atoms_of(pod, address, numbering);
            if atoms.is_empty() {
                // its class is that of its blocks, which is what `nets` says
                continue;
            }
            atoms.extend(peers.blocks().holding(address).into_iter().flatten());
            compiled.hosts.insert(address, used.class(numbering, atoms));
        }

        let mut tables = TableMaker {
            peers: &peers,
            numbering: &self.numbering,
            used: &used,
            rules: &mut self.rules,
            made: HashMap::new(),
        };
        for (endpoint, pod, policies) in &subjects {
            compiled.tables.insert(*endpoint, tables.table(pod, policies));
        }
        for endpoint in endpoints.iter().filter(|endpoint| endpoint.pod.is_none()) {
            compiled.tables.insert(endpoint.id, TableMaker::not_isolated());
        }
        self.numbering.forget_all_but(&used);
        compiled
    }
}

/// The pod of an endpoint, if the index has it and not a namesake.
fn known_pod<'a>(index: &'a Index, endpoint: &Endpoint) -> Option<&'a Arc<Pod>> {
    let pod = index.pod(endpoint.pod.as_ref()?)?;
    let same = endpoint.uid.is_empty() || pod.uid.is_empty() || endpoint.uid == pod.uid;
    same.then_some(pod)
}

/// Every address that some pod owns, and the pod.
///
/// What the node's own interfaces have is the kernel's truth: such an address is no other pod's, whatever
/// the API server still says. It is nobody's while the API server does not know the pod, so that a new
/// pod is never taken for the last one that had its address.
fn owners<'a>(index: &'a Index, endpoints: &[&Endpoint]) -> Vec<(IpAddr, &'a Arc<Pod>)> {
    let mut local: BTreeMap<IpAddr, Option<&Arc<Pod>>> = BTreeMap::new();
    for endpoint in endpoints {
        let pod = known_pod(index, endpoint);
        if pod.is_some_and(|pod| !pod.may_own_addresses()) {
            continue;
        }
        for address in &endpoint.addresses {
            let owner = local.entry(address.to_canonical()).or_insert(pod);
            let claims = [*owner, pod].into_iter().flatten();
            *owner = claims.min_by_key(|pod| pod.claim_rank());
        }
    }
    let elsewhere = index.owners().filter(|(address, _)| !local.contains_key(address));
    let mut owners: Vec<_> = elsewhere.collect();
    owners.extend(local.iter().filter_map(|(address, pod)| Some((*address, (*pod)?))));
    owners
}
