//! The numbers by which the kernel names what has set a limit.

use std::collections::BTreeMap;
use std::sync::Arc;

use podgate_bpf::abi::ORIGIN_RUNTIME;
use podgate_policy::limits::Origin;

/// Names by number, for readers of events. Numbers are not used again: an event may be older than what it names.
pub type OriginNames = BTreeMap<u32, Arc<str>>;

/// Gives each origin a number.
#[derive(Debug)]
pub(super) struct Origins {
    numbers: BTreeMap<Origin, u32>,
    names: Arc<OriginNames>,
    next: u32,
}

impl Default for Origins {
    fn default() -> Self {
        let runtime = "runtime: runtimeConfig.bandwidth";
        Self {
            numbers: BTreeMap::new(),
            names: Arc::new([(ORIGIN_RUNTIME, runtime.into())].into()),
            next: 1,
        }
    }
}

impl Origins {
    /// The number of an origin, a new one if it has none yet.
    pub(super) fn number(&mut self, origin: &Origin) -> u32 {
        if let Some(number) = self.numbers.get(origin) {
            return *number;
        }
        let number = self.next;
        self.next += 1;
        self.numbers.insert(origin.clone(), number);
        Arc::make_mut(&mut self.names).insert(number, origin.to_string().into());
        number
    }

    /// All names.
    pub(super) fn names(&self) -> &Arc<OriginNames> {
        &self.names
    }
}
