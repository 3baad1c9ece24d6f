//! Every map that the writer writes, and the order in which one commit writes them.
//!
//! # The order of a commit
//!
//! | | step | why here |
//! |---|---|---|
//! | a | endpoints leave their services | an endpoint that is still picked keeps the class that allows it: policies change after it has left |
//! | b | the first services of a node enter | a policy judges endpoints. Where no service is translated yet, a policy that came first would be asked about service addresses, and refuse them |
//! | c | untranslated service addresses get their numbers; their entries go into the first tables of step 3, and where no table is in force, the addresses get their classes at once | a pod's first table has to answer for such an address from its first packet on |
//! | 1-4 | policies: entries are added, addresses change classes, tables are installed, entries are removed ([`podgate_policy::diff::plan`]) | every other step speaks of classes and endpoints that these have put in place |
//! | 5 | the epoch is bumped ([`PolicyMaps::commit`]) | flows of a policy that is gone do not wait for the services |
//! | d | entries, then classes, of untranslated service addresses are written | their verdicts follow from the policies of step 1-4. Those of an address that is no longer left alone stay |
//! | e | services that are no longer translated leave | what is sent to their addresses has its verdict by (d) |
//! | f | services and endpoints enter | whatever is picked has its class by (2) |
//! | g | classes, then entries, of service addresses that are now translated are removed | by (f) nothing is sent there untranslated. Between being translated and being left alone an address is both for a moment, never neither |
//! | h | the epoch is bumped again, if anything but policies or limits changed | a flow keeps what it was told until it is revalidated |
//! | i | where peers are is written ([`ScopeSync`]); then the epoch is bumped if that is other than before | a flow has its peer's scope from when it is remembered or revalidated |
//! | j | limits are written ([`LimitSync`]) | they hold for what policy allows, from the next packet on, and nothing else waits for them |
//!
//! Endpoints leave their services before step 1 and enter them after step 4, so whatever is picked at any moment has its
//! class. Where a step fails, those that depend on it are left out by the part that it belongs to; the others are taken.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use podgate_bpf::{Datapath, Result};
use podgate_policy::compile::{Engine, EngineDelta, TableDelta};
use podgate_policy::index::{Changes, Index};
use podgate_policy::tables::{Endpoint, EndpointId};

use super::limits::LimitSync;
use super::scopes::ScopeSync;
use super::services::{ServiceMode, ServiceSync};
use super::vip_policy::VipPolicy;
use super::{MapState, Owners, PolicyMaps, Recovered, change};

/// The policy maps, the service maps and the entries for untranslated service addresses, with what they do not hold yet.
/// Owned by the writer.
#[derive(Debug)]
pub struct MapSync {
    datapath: Arc<Datapath>,
    policies: PolicyMaps,
    services: ServiceSync,
    vip_policy: VipPolicy,
    limits: LimitSync,
    scopes: ScopeSync,
    /// What the engine has changed and the policy maps may not have yet.
    pending: EngineDelta,
    /// Endpoints that keep an earlier policy (or their startup state), with the reason.
    degraded: BTreeMap<EndpointId, String>,
    /// Why the last commit stopped before all addresses had their classes.
    stopped: Option<String>,
    /// This process has committed before.
    has_committed: bool,
}

/// What the maps should hold. The services are those of [`MapSync::follow_services`].
#[derive(Debug)]
pub struct Desired<'a> {
    /// The compiled policies.
    pub engine: &'a Engine,
    /// What has changed in them since the last commit.
    pub fresh: EngineDelta,
    /// Owner numbers of all registered endpoints.
    pub owners: &'a Owners,
    /// What to do with endpoints that failed before.
    pub failed: Failed,
}

/// What a commit does with endpoints whose policy could not be written before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Failed {
    /// Leaves them alone, unless their policies have changed: what failed would fail again at every event.
    #[default]
    Hold,
    /// Tries them again.
    Retry,
}

/// Result of a commit.
#[derive(Debug, Default)]
pub struct Committed {
    /// Number of steps that the policy maps took.
    pub steps: usize,
    /// Number of policy maps that were replaced as a whole.
    pub swapped: usize,
    /// The maps hold everything that was requested.
    pub is_complete: bool,
    /// Endpoints that failed, with a reason that they did not have after the commit before.
    pub newly_degraded: Vec<(EndpointId, String)>,
    /// Why it stopped before all addresses had their classes, if the commit before did not for the same reason.
    pub newly_stopped: Option<String>,
}

impl MapSync {
    /// Reads what an earlier policyd left in the maps and changes nothing. With an engine whose classes are new to them.
    pub fn recover(
        datapath: Arc<Datapath>,
        node: &str,
        mode: ServiceMode,
    ) -> Result<(Self, Engine)> {
        let Recovered { policy_maps, registrations, engine } =
            PolicyMaps::recover(datapath.clone())?;
        tracing::info!(
            endpoints = registrations.len(),
            enforced = policy_maps.shadow().tables.len(),
            peers = policy_maps.shadow().hosts.len(),
            nets = policy_maps.shadow().nets.len(),
            "recovered the state of the maps"
        );
        let maps = Self {
            policies: policy_maps,
            services: ServiceSync::recover(datapath.clone(), node, mode)?,
            vip_policy: VipPolicy::recover(datapath.clone())?,
            limits: LimitSync::recover(datapath.clone())?,
            scopes: ScopeSync::recover(datapath.clone(), node)?,
            datapath,
            pending: EngineDelta::default(),
            degraded: BTreeMap::new(),
            stopped: None,
            has_committed: false,
        };
        Ok((maps, engine))
    }

    /// Takes in the changes of the services. The next commit writes them.
    pub fn follow_services(&mut self, index: &mut Index) {
        self.services.follow(index);
    }

    /// What pods may use; the next commit writes what has changed.
    pub fn limits_mut(&mut self) -> &mut LimitSync {
        &mut self.limits
    }

    /// Takes in where peers are, after the limits, which say whether that is needed. The next commit writes what has changed.
    pub fn follow_scopes(&mut self, index: &Index, changes: &Changes) {
        self.scopes.follow(index, changes, self.limits.is_accounting());
    }

    /// See [`ServiceSync::set_addresses`].
    pub fn set_addresses(&mut self, own: Arc<BTreeSet<IpAddr>>, nodes: Arc<BTreeSet<IpAddr>>) {
        self.scopes.set_nodes(nodes.clone());
        self.services.set_addresses(own, nodes);
    }

    /// Forgets an endpoint whose registration is gone; see [`PolicyMaps::forget`].
    pub fn forget(&mut self, endpoint: EndpointId) {
        self.policies.forget(endpoint);
        self.limits.forget(endpoint);
        self.degraded.remove(&endpoint);
    }

    /// Brings all maps up to date, in the order that is said above.
    pub fn commit(&mut self, desired: Desired<'_>) -> Committed {
        let Desired { engine, fresh, owners, failed } = desired;
        let held = self.held(&fresh, failed);
        self.owe(fresh, owners);
        let change = change(engine, &self.pending, owners);
        let Self { policies, services, vip_policy, pending, .. } = self;
        let compiled = engine.compiled();
        let endpoints = owned(engine, owners);

        services.retire_backends();
        if services.mode() == ServiceMode::Translate && services.is_unused() {
            services.extend();
        }
        let has_vip_entries = !vip_policy.is_empty();
        let nothing_in_force = policies.shadow().tables.is_empty();
        let untranslated = services.take_untranslated();
        let first =
            vip_policy.prepare(untranslated, (compiled, pending), &endpoints, nothing_in_force);
        policies.set_vip_entries(has_vip_entries, first);

        let outcome = policies.commit(&change, owners, &held);

        let written = vip_policy.write(compiled, pending, &endpoints);
        services.retire_frontends();
        services.extend();
        let removed = vip_policy.remove_old(compiled, &endpoints);
        // The process before may have died after writing the maps but before bumping the epoch: bump once at start.
        if services.take_changed() || written || removed || !self.has_committed {
            self.datapath.maps.control().bump_epoch();
        }

        if self.scopes.commit(failed) {
            self.datapath.maps.control().bump_epoch();
        }
        self.limits.commit(owners, failed);

        self.has_committed = true;
        let is_complete = outcome.is_complete() && self.is_complete();
        let super::Outcome { steps, swapped, degraded, stopped } = outcome;
        self.settle(&degraded, stopped.as_deref());
        let is_news = |(endpoint, reason): &(&EndpointId, &String)| {
            self.degraded.get(endpoint) != Some(reason)
        };
        let news = degraded.iter().filter(is_news);
        let newly_degraded = news.map(|(id, reason)| (*id, reason.clone())).collect();
        let newly_stopped = stopped.clone().filter(|_| self.stopped != stopped);
        (self.degraded, self.stopped) = (degraded, stopped);
        Committed { steps, swapped, is_complete, newly_degraded, newly_stopped }
    }

    /// The endpoints that failed before and are not tried in this commit, with the reason.
    fn held(&self, fresh: &EngineDelta, failed: Failed) -> BTreeMap<EndpointId, String> {
        match failed {
            Failed::Retry => BTreeMap::new(),
            Failed::Hold => {
                let known = self.degraded.iter();
                let held = known.filter(|(id, _)| fresh.tables.get(id) != Some(&TableDelta::Whole));
                held.map(|(id, reason)| (*id, reason.clone())).collect()
            }
        }
    }

    /// Adds to what the policy maps may not have yet.
    fn owe(&mut self, fresh: EngineDelta, owners: &Owners) {
        self.pending.merge(fresh);
        if !self.has_committed {
            // everything that an earlier policyd wrote counts as changed
            let shadow = self.policies.shadow();
            self.pending.hosts.extend(shadow.hosts.keys());
            self.pending.nets.extend(shadow.nets.keys());
        }
        for (endpoint, owner) in owners {
            if !self.policies.in_force(*endpoint, *owner) || !self.has_committed {
                self.pending.table(*endpoint);
            }
        }
    }

    /// After a commit: keeps what the policy maps still do not have.
    fn settle(&mut self, degraded: &BTreeMap<EndpointId, String>, stopped: Option<&str>) {
        match stopped {
            None => self.pending = EngineDelta::default(),
            // members may be stranded in transient classes: include them in the next plan
            Some(_) => self.policies.add_stranded(&mut self.pending),
        }
        degraded.keys().for_each(|endpoint| self.pending.table(*endpoint));
    }

    fn is_complete(&self) -> bool {
        self.services.is_complete()
            && self.vip_policy.is_complete()
            && self.limits.failed().is_empty()
            && self.scopes.problem().is_none()
    }

    /// Removes some of what no program reads any more: one policy map without a registration, some entries of services.
    /// For idle moments: it waits for an RCU grace period. True if there may be more.
    pub fn sweep(&mut self) -> Result<bool> {
        let more = self.policies.sweep()?;
        Ok(more | self.services.sweep())
    }

    /// Whether services have left something to [`MapSync::sweep`].
    pub fn has_garbage(&self) -> bool {
        self.services.has_garbage()
    }

    /// Whether a policy map of this registration is in force.
    pub fn in_force(&self, endpoint: EndpointId, owner: u32) -> bool {
        self.policies.in_force(endpoint, owner)
    }

    /// Why an endpoint keeps an earlier policy or its startup state.
    pub fn degraded(&self, endpoint: EndpointId) -> Option<&str> {
        self.degraded.get(&endpoint).map(String::as_str)
    }

    /// Why the last commit stopped before all addresses had their classes.
    pub fn stopped(&self) -> Option<&str> {
        self.stopped.as_deref()
    }

    /// What the policy maps and class maps hold.
    pub fn policies(&self) -> &MapState {
        self.policies.shadow()
    }

    /// The services and what the maps hold of them.
    pub fn services(&self) -> &ServiceSync {
        &self.services
    }

    /// What the maps hold of pods' limits.
    pub fn limits(&self) -> &LimitSync {
        &self.limits
    }

    /// Why where peers are is not all known to the programs, for users.
    pub fn scope_problem(&self) -> Option<String> {
        self.scopes.problem()
    }

    /// All problems with services and their addresses, for users.
    pub fn service_problems(&self) -> Vec<String> {
        self.services.problems().into_iter().chain(self.vip_policy.problem()).collect()
    }
}

/// The endpoints and the numbers of their registrations.
fn owned<'a>(engine: &'a Engine, owners: &Owners) -> Vec<(&'a Endpoint, u32)> {
    let owner = |of: &'a Endpoint| Some((of, *owners.get(&of.id)?));
    engine.endpoints().filter_map(owner).collect()
}
