//! Flows of all endpoints, and who has how much of their tables (`c/flow_table.h`).

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use libbpf_rs::{MapCore, MapType};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes};

use crate::abi::{Flow, Flow4Key, Flow6Key, FlowSlotKey, FlowUse, Share};
use crate::flow_table_repair::Seen;
use crate::sys::SharedUse;
use crate::typed_map::{PinnedMap, TypedMap};
use crate::{Error, PinRoot, Result};

/// How long removing a pod's flows may take when its endpoint is removed; policyd removes the rest (100,000 take about half a second).
const CLEANUP_TIMEOUT: Duration = Duration::from_millis(200);

/// How much of one family's table is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Slots of all endpoints' rings: flows, and room for the next ones.
    pub slots: u64,
    /// Entries of the table.
    pub size: u32,
}

/// The table of one family and the slots of its flows.
#[derive(Debug)]
pub(crate) struct Table<K> {
    pub(crate) flows: TypedMap<K, Flow>,
    pub(crate) slots: TypedMap<FlowSlotKey, K>,
    /// Of its rings in a share, and of its number in `flow_use`.
    pub(crate) number: usize,
}

/// The flow tables, their rings and shares.
#[derive(Debug)]
pub struct FlowTable {
    pub(crate) v4: Table<Flow4Key>,
    pub(crate) v6: Table<Flow6Key>,
    pub(crate) shares: TypedMap<u32, Share>,
    flow_use: PinnedMap,
    shared: OnceLock<SharedUse>,
    /// What the last look found: what did not change since is no race.
    pub(crate) seen: Mutex<Seen>,
}

impl FlowTable {
    pub(crate) fn pinned(root: &PinRoot) -> Self {
        Self {
            v4: Table {
                flows: TypedMap::pinned(root, "flows4", MapType::Hash),
                slots: TypedMap::pinned(root, "flow_slots4", MapType::Hash),
                number: 0,
            },
            v6: Table {
                flows: TypedMap::pinned(root, "flows6", MapType::Hash),
                slots: TypedMap::pinned(root, "flow_slots6", MapType::Hash),
                number: 1,
            },
            shares: TypedMap::pinned(root, "shares", MapType::Hash),
            flow_use: PinnedMap::new(
                root,
                "flow_use",
                MapType::Array,
                size_of::<u32>(),
                size_of::<FlowUse>(),
            ),
            shared: OnceLock::new(),
            seen: Mutex::default(),
        }
    }

    pub(crate) fn open_all(&self) -> Result<()> {
        self.v4.flows.handle()?;
        self.v6.flows.handle()?;
        self.v4.slots.handle()?;
        self.v6.slots.handle()?;
        self.shares.handle()?;
        self.shared().map(drop)
    }

    pub(crate) fn shared(&self) -> Result<&SharedUse> {
        if let Some(shared) = self.shared.get() {
            return Ok(shared);
        }
        let shared = SharedUse::map(self.flow_use.handle()?.as_fd())
            .map_err(|e| Error::io("map into memory", "flow_use", e))?;
        Ok(self.shared.get_or_init(|| shared))
    }

    /// All IPv4 flows, expired ones too.
    pub fn flows4(&self) -> Result<Vec<(Flow4Key, Flow)>> {
        all(&self.v4.flows)
    }

    /// All IPv6 flows.
    pub fn flows6(&self) -> Result<Vec<(Flow6Key, Flow)>> {
        all(&self.v6.flows)
    }

    /// Forgets an IPv4 flow: what eviction does.
    pub fn forget4(&self, key: &Flow4Key) -> Result<()> {
        self.v4.flows.remove(key).map(drop)
    }

    /// How much of the tables is taken: IPv4, IPv6.
    pub fn usage(&self) -> Result<[Usage; 2]> {
        let shared = self.shared()?;
        let of = |number, size| Usage { slots: shared.slots(number).load(Ordering::Relaxed), size };
        Ok([
            of(0, self.v4.flows.handle()?.max_entries()),
            of(1, self.v6.flows.handle()?.max_entries()),
        ])
    }

    /// What each endpoint has, by interface.
    pub fn shares(&self) -> Result<BTreeMap<u32, Share>> {
        let mut shares = BTreeMap::new();
        self.shares.each(|ifindex, share| {
            shares.insert(ifindex, share);
        })?;
        Ok(shares)
    }

    /// Makes the share of an endpoint that is being registered, in place of that of an earlier one at the same
    /// interface.
    pub(crate) fn open_share(&self, ifindex: u32, owner: u32) -> Result<()> {
        match self.shares.get(&ifindex)? {
            Some(share) if share.owner == owner => return Ok(()),
            Some(share) => drop(self.empty(ifindex, share, CLEANUP_TIMEOUT)?),
            None => {}
        }
        let mut share = Share::new_zeroed();
        share.owner = owner;
        self.shares.set(&ifindex, &share)
    }

    /// Removes the share of an endpoint that is gone, and its flows, as far as time allows: the share stays while
    /// flows are left, for [`crate::maps::Maps::repair_flow_table`].
    pub(crate) fn close_share(&self, ifindex: u32) -> Result<()> {
        let Some(share) = self.shares.get(&ifindex)? else { return Ok(()) };
        self.close(ifindex, share, CLEANUP_TIMEOUT)
    }

    pub(crate) fn close(&self, ifindex: u32, share: Share, patience: Duration) -> Result<()> {
        let left = self.empty(ifindex, share, patience)?;
        // the interface may have got another endpoint meanwhile
        if self.shares.get(&ifindex)?.is_none_or(|now| now.owner != share.owner) {
            return Ok(());
        }
        if left.rings.iter().all(|ring| ring.high == 0) {
            return self.shares.remove(&ifindex).map(drop);
        }
        self.shares.change(&ifindex, &left).map(drop)
    }

    /// Removes an endpoint's flows and slots. Returns its share with what was left for lack of time.
    fn empty(&self, ifindex: u32, mut share: Share, patience: Duration) -> Result<Share> {
        let until = Instant::now() + patience;
        let owner = share.owner;
        let of4 = |key: &Flow4Key| key.ifindex == ifindex;
        let of6 = |key: &Flow6Key| key.ifindex == ifindex;
        share.rings[0].high = self.empty_ring(&self.v4, owner, share.rings[0].high, of4, until)?;
        share.rings[1].high = self.empty_ring(&self.v6, owner, share.rings[1].high, of6, until)?;
        Ok(share)
    }

    fn empty_ring<K>(
        &self,
        table: &Table<K>,
        owner: u32,
        mut high: u32,
        is_its: impl Fn(&K) -> bool,
        until: Instant,
    ) -> Result<u32>
    where
        K: IntoBytes + FromBytes + Immutable + Copy,
    {
        let before = high;
        while high > 0 {
            if high.is_multiple_of(64) && Instant::now() > until {
                break;
            }
            let at = FlowSlotKey { owner, index: high - 1 };
            if let Some(key) = table.slots.get(&at)? {
                // another endpoint of the same interface may have one of the same key already
                if is_its(&key) && table.flows.get(&key)?.is_some_and(|flow| flow.owner == owner) {
                    table.flows.remove(&key)?;
                }
                table.slots.remove(&at)?;
            }
            high -= 1;
        }
        let given_back = u64::from(before - high);
        self.shared()?.slots(table.number).fetch_sub(given_back, Ordering::Relaxed);
        Ok(high)
    }
}

fn all<K>(flows: &TypedMap<K, Flow>) -> Result<Vec<(K, Flow)>>
where
    K: IntoBytes + FromBytes + Immutable + Copy,
{
    let mut found = Vec::new();
    flows.each(|key, flow| found.push((key, flow)))?;
    Ok(found)
}
