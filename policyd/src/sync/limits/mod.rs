//! What pods may use: brings the map `limits`, and the programs of each gate, up to date with the index.
//!
//! The gate of a pod with limits runs the metered programs. They do nothing more for a pod without limits, so they come before
//! the first entry of a pod and go after the last: at each moment an entry that is there is heeded.

mod origins;
mod record;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use podgate_bpf::abi::{LimitsFlag, LimitsKey, LimitsRecord};
use podgate_bpf::shaping::{self, Shaping};
use podgate_bpf::{Datapath, Result};
use podgate_policy::index::{Changes, Index};
use podgate_policy::limits::{EndpointLimits, Limits};
use podgate_policy::tables::{Endpoint, EndpointId};

use super::{Failed, Owners};
use origins::Origins;

pub use origins::OriginNames;

/// The limits that are in force, and what could not be written.
#[derive(Debug)]
pub struct LimitSync {
    datapath: Arc<Datapath>,
    /// What should be in force.
    wanted: EndpointLimits,
    /// Endpoints of which it may be different from what is.
    pending: BTreeSet<EndpointId>,
    /// What is in force.
    held: BTreeMap<EndpointId, Held>,
    origins: Origins,
    /// Endpoints of which the limits are not what they should be, with the reason.
    failed: BTreeMap<EndpointId, String>,
}

/// The entries of one endpoint.
#[derive(Debug)]
struct Held {
    owner: u32,
    record: LimitsRecord,
    /// How the bandwidth to the pod is held, if that is limited, and by this process.
    shaping: Option<Shaping>,
}

impl LimitSync {
    /// Reads what an earlier policyd, or the plugin, left in the map.
    pub fn recover(datapath: Arc<Datapath>) -> Result<Self> {
        let pods = datapath.maps.limits().all()?.into_iter().filter(|(key, _)| key.rule == 0);
        let by_owner: BTreeMap<u32, LimitsRecord> =
            pods.map(|(key, record)| (key.owner, record)).collect();
        let registrations = datapath.maps.registrations()?;
        let held = registrations.into_iter().filter_map(|registration| {
            let owner = registration.owner;
            let record = *by_owner.get(&owner)?;
            let held = Held { owner, record, shaping: None };
            Some((EndpointId(registration.ifindex), held))
        });
        let held = held.collect();
        Ok(Self {
            datapath,
            wanted: EndpointLimits::default(),
            pending: BTreeSet::new(),
            held,
            origins: Origins::default(),
            failed: BTreeMap::new(),
        })
    }

    /// Sets the node's endpoints.
    pub fn set_endpoints(&mut self, endpoints: &[Endpoint]) {
        self.wanted.set_endpoints(endpoints.iter().cloned());
    }

    /// Follows the index, which has changed in this way. The next commit writes what is different.
    pub fn follow(&mut self, index: &Index, changes: &Changes) {
        self.pending.extend(self.wanted.update(index, changes));
    }

    /// Forgets an endpoint whose registration is gone: its entries went with it.
    pub fn forget(&mut self, endpoint: EndpointId) {
        self.held.remove(&endpoint);
        self.failed.remove(&endpoint);
    }

    /// Endpoints that keep other limits than they should have, with the reason. They are tried again with everything else that
    /// failed.
    pub fn failed(&self) -> &BTreeMap<EndpointId, String> {
        &self.failed
    }

    /// Whether some pod should be accounted.
    pub fn is_accounting(&self) -> bool {
        let is_accounted = |limits: &Limits| limits.accounting.as_ref().is_some_and(|of| of.value);
        self.wanted.all().any(|(_, limits)| limits.is_some_and(|limits| is_accounted(limits)))
    }

    /// The names of what has set limits, by the numbers that events carry.
    pub fn origins(&self) -> &Arc<OriginNames> {
        self.origins.names()
    }

    /// The endpoints that have limits, marks or accounting in force, and how the bandwidth to each is held where it is limited.
    pub fn metered(&self) -> BTreeMap<EndpointId, Option<Shaping>> {
        self.held.iter().map(|(id, held)| (*id, held.shaping.clone())).collect()
    }

    /// Writes what has changed. An endpoint that fails keeps the limits that it has. `failed`: whether to try those again that
    /// failed before.
    pub fn commit(&mut self, owners: &Owners, failed: Failed) {
        let mut pending = std::mem::take(&mut self.pending);
        if failed == Failed::Retry {
            pending.extend(self.failed.keys());
        }
        for endpoint in pending {
            let Some(owner) = owners.get(&endpoint).copied() else { continue };
            // of a pod that no source knows holds what the runtime passed
            let Some(limits) = self.wanted.get(endpoint).cloned() else {
                self.failed.remove(&endpoint);
                continue;
            };
            match self.set(endpoint, owner, &limits) {
                Ok(()) => drop(self.failed.remove(&endpoint)),
                Err(error) => {
                    let reason = error.to_string();
                    if self.failed.get(&endpoint) != Some(&reason) {
                        tracing::error!(
                            ifindex = endpoint.0,
                            reason,
                            "cannot write a pod's limits"
                        );
                    }
                    self.failed.insert(endpoint, reason);
                }
            }
        }
    }

    fn set(&mut self, endpoint: EndpointId, owner: u32, limits: &Limits) -> Result<()> {
        let before = self.before(endpoint, owner)?;
        let maps = self.datapath.maps.limits();
        let key = LimitsKey::of_pod(owner);
        if !limits.has_effect() {
            self.held.remove(&endpoint);
            // after a failure the entry may be gone, and the rest not yet
            if before.is_none() && !self.failed.contains_key(&endpoint) {
                return Ok(());
            }
            maps.remove(key)?;
            maps.close_accounts(owner)?;
            self.datapath.set_metered(endpoint.0, false)?;
            return shaping::remove_fq(endpoint.0);
        }
        // a limit that cannot be shaped is policed, whatever the reason
        let shaping = limits.each_way.ingress.bandwidth.as_ref().map(|_| {
            let polices =
                |error: podgate_bpf::Error| Shaping::Policed { reason: error.to_string() };
            shaping::ensure_fq(endpoint.0).unwrap_or_else(polices)
        });
        let shaped = shaping == Some(Shaping::Shaped);
        let record = record::of_pod(limits, shaped, &mut self.origins);
        if before.is_none() {
            self.datapath.set_metered(endpoint.0, true)?;
        }
        let accounted = record.flags & LimitsFlag::Account as u8 != 0;
        if accounted {
            maps.open_accounts(owner)?;
        }
        if before != Some(record) {
            maps.set(key, &record)?;
            // flows that are open get their place in what is counted at their next packet
            self.datapath.maps.control().bump_epoch();
        }
        if !accounted {
            maps.close_accounts(owner)?;
        }
        self.held.insert(endpoint, Held { owner, record, shaping });
        Ok(())
    }

    /// What is in the map of this registration: what was written, or, of a new one, what the plugin wrote.
    fn before(&self, endpoint: EndpointId, owner: u32) -> Result<Option<LimitsRecord>> {
        match self.held.get(&endpoint).filter(|held| held.owner == owner) {
            Some(held) => Ok(Some(held.record)),
            None => self.datapath.maps.limits().get(LimitsKey::of_pod(owner)),
        }
    }
}
