//! One endpoint's table.

use std::sync::Arc;

use libbpf_rs::MapHandle;

use crate::Result;
use crate::abi::{PolicyKey, PolicyValue};
use crate::control::CommitSteps;
use crate::typed_map::TypedMap;

/// One endpoint's table.
#[derive(Debug)]
pub struct PolicyMap {
    map: TypedMap<PolicyKey, PolicyValue>,
    steps: Arc<CommitSteps>,
}

impl PolicyMap {
    pub(crate) fn new(map: MapHandle, steps: Arc<CommitSteps>) -> Self {
        Self { map: TypedMap::new("policy map", map), steps }
    }

    pub(crate) fn handle(&self) -> Result<&MapHandle> {
        self.map.handle()
    }

    /// Adds entries to a map that no packet meets yet.
    pub(crate) fn fill(&self, entries: &[(PolicyKey, PolicyValue)]) -> Result<()> {
        entries.iter().try_for_each(|(key, value)| self.map.set(key, value))
    }

    /// Adds or changes an entry, in place: about a microsecond, at once in force.
    pub fn set(&self, key: &PolicyKey, value: &PolicyValue) -> Result<()> {
        self.map.set(key, value)?;
        self.steps.count();
        Ok(())
    }

    /// Removes an entry; a missing one is fine.
    pub fn remove(&self, key: &PolicyKey) -> Result<()> {
        self.map.remove(key)?;
        self.steps.count();
        Ok(())
    }

    /// What the programs would find: the longest entry that is a prefix of `key`.
    pub fn get(&self, key: &PolicyKey) -> Result<Option<PolicyValue>> {
        self.map.get(key)
    }

    /// All entries, with their hit counters.
    pub fn entries(&self) -> Result<Vec<(PolicyKey, PolicyValue)>> {
        self.map.entries()
    }
}
