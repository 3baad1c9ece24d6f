//! What metered pods may use, and how much of it they do (`c/abi_limits.h`).

use libbpf_rs::{MapCore, MapType};
use zerocopy::FromZeros;

use crate::abi::{
    Account, AccountKey, LimitsFlag, LimitsKey, LimitsRecord, Meter, NodeKey, ScopeValue,
    TRAFFIC_RULES_MOST,
};
use crate::typed_map::{PinnedMap, TypedMap, errno, wrote};
use crate::{Error, PinRoot, Result};

/// The maps of what pods may use.
#[derive(Debug)]
pub struct LimitMaps {
    limits: TypedMap<LimitsKey, LimitsRecord>,
    pub(crate) meters: TypedMap<LimitsKey, Meter>,
    pub(crate) traffic: PinnedMap,
    pub(crate) scopes: TypedMap<NodeKey, ScopeValue>,
    pub(crate) accounts: PinnedMap,
}

impl LimitMaps {
    pub(crate) fn pinned(root: &PinRoot) -> Self {
        const WORD: usize = size_of::<u32>();
        Self {
            limits: TypedMap::pinned(root, "limits", MapType::Hash),
            meters: TypedMap::pinned(root, "meters", MapType::Hash),
            traffic: PinnedMap::new(root, "traffic", MapType::HashOfMaps, WORD, WORD),
            scopes: TypedMap::pinned(root, "scopes", MapType::LpmTrie),
            accounts: PinnedMap::new(
                root,
                "accounts",
                MapType::PercpuHash,
                size_of::<AccountKey>(),
                size_of::<Account>(),
            ),
        }
    }

    pub(crate) fn open_all(&self) -> Result<()> {
        self.limits.handle()?;
        self.meters.handle()?;
        self.traffic.handle()?;
        self.scopes.handle()?;
        self.accounts.handle().map(drop)
    }

    /// Puts limits in force at a metered pod, or at one of its traffic rules, from the next packet on. What it has used so
    /// far still counts.
    pub fn set(&self, key: LimitsKey, limits: &LimitsRecord) -> Result<()> {
        self.meters.add(&key, &Meter::new_zeroed())?;
        self.limits.set(&key, limits)
    }

    /// Takes limits out of force, with what is known of their use; missing ones are fine.
    pub fn remove(&self, key: LimitsKey) -> Result<()> {
        self.limits.remove(&key)?;
        self.meters.remove(&key).map(drop)
    }

    /// Removes everything that is known of an endpoint's limits and their use: its traffic rules and accounts, then the limits
    /// of the pod as a whole, which say what else there is. Nothing there is fine.
    pub(crate) fn remove_endpoint(&self, ifindex: u32, owner: u32) -> Result<()> {
        let whole_pod = LimitsKey::of_pod(owner);
        let Some(limits) = self.limits.get(&whole_pod)? else { return Ok(()) };
        if limits.flags & LimitsFlag::Rules as u8 != 0 {
            self.remove_traffic(ifindex)?;
            for rule in 1..=TRAFFIC_RULES_MOST {
                self.remove(LimitsKey { owner, rule })?;
            }
        }
        if limits.flags & LimitsFlag::Account as u8 != 0 {
            self.close_accounts(owner)?;
        }
        self.remove(whole_pod)
    }

    pub(crate) fn remove_from(&self, map: &PinnedMap, key: &[u8]) -> Result<()> {
        match map.handle()?.delete(key).map_err(|e| errno(&e)) {
            Ok(()) => wrote(map.name(), "remove", key),
            Err(cause) if cause.raw_os_error() == Some(nix::libc::ENOENT) => {}
            Err(cause) => return Err(Error::io("write map", map.name(), cause)),
        }
        Ok(())
    }

    /// The limits in force.
    pub fn get(&self, key: LimitsKey) -> Result<Option<LimitsRecord>> {
        self.limits.get(&key)
    }

    /// All limits in force.
    pub fn all(&self) -> Result<Vec<(LimitsKey, LimitsRecord)>> {
        self.limits.entries()
    }

    /// How much of its limits a pod, or one of its traffic rules, uses.
    pub fn meter(&self, key: LimitsKey) -> Result<Option<Meter>> {
        self.meters.get(&key)
    }
}
