//! What policyd does for the flow tables now and then. The programs keep them right by themselves; what gets lost in
//! races, with pods that end without a DEL or with processes that are killed is found here, and slots that a pod has
//! and no longer needs, if it opens no flow that would find them.

use std::collections::{BTreeMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::Duration;

use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::Result;
use crate::abi::{Flow, FlowSlotKey, Ring, Share};
use crate::clock::coarse_now;
use crate::flow_table::{FlowTable, Table};
use crate::maps::Maps;

/// Slots that one look takes off a ring at most.
const AT_ONCE: u32 = 8192;
/// However long it takes.
const ALL_OF_IT: Duration = Duration::from_secs(3600);
/// User space knows the programs' clock to a few seconds.
const MARGIN: u32 = 30;
/// A pod keeps this many slots, used or not.
const FEW: u32 = 64;

/// What the last look found.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    rings: BTreeMap<u32, (u32, [Ring; 2])>,
    /// By how much the count of slots was wrong.
    drift: [i64; 2],
    looks: u64,
}

/// What one look did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Repaired {
    /// Endpoints that are gone, whose flows were removed.
    pub endpoints: usize,
    /// Flows that belonged to no endpoint, or had ended and had no slot.
    pub flows: usize,
    /// Slots that went back from pods that do not need them.
    pub slots: usize,
    /// What the count of slots was corrected by, IPv4 and IPv6.
    pub drift: [i64; 2],
}

impl Maps {
    /// Removes flows, slots and shares of endpoints that are gone, returns slots that are not needed, and corrects
    /// the count of all slots. For one process of the node, about once a minute.
    pub fn repair_flow_table(&self) -> Result<Repaired> {
        let mut repaired = Repaired::default();
        let table = self.flow_table();
        let shares = table.shares()?;
        // after the shares: an endpoint has one only once it is registered
        let owners = self.owners()?;
        for (ifindex, share) in &shares {
            if owners.get(ifindex) != Some(&share.owner) {
                table.close(*ifindex, *share, ALL_OF_IT)?;
                repaired.endpoints += 1;
            }
        }
        let mut seen = table.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let first = seen.looks == 0;
        repaired.slots = table.trim(&seen)?;
        repaired.flows = self.repair_family(&table.v4, |key| key.ifindex)?
            + self.repair_family(&table.v6, |key| key.ifindex)?;
        repaired.drift = table.recount(&mut seen, first)?;
        let rings = table.shares()?.into_iter();
        seen.rings = rings.map(|(ifindex, share)| (ifindex, (share.owner, share.rings))).collect();
        seen.looks += 1;
        Ok(repaired)
    }

    /// Every endpoint's owner number, by interface.
    fn owners(&self) -> Result<BTreeMap<u32, u32>> {
        Ok(self.registrations()?.iter().map(|of| (of.ifindex, of.owner)).collect())
    }

    /// Removes flows and slots of no endpoint, and flows without a slot that have ended. A live flow without a slot stays:
    /// its pod would lose it.
    fn repair_family<K>(&self, table: &Table<K>, ifindex_of: impl Fn(&K) -> u32) -> Result<usize>
    where
        K: IntoBytes + FromBytes + Immutable + Copy,
    {
        let hasher = RandomState::new();
        let now = coarse_now();
        let has_ended =
            |flow: &Flow| (flow.expires.wrapping_add(MARGIN).wrapping_sub(now) as i32) < 0;
        let (mut flows, mut slots) = (Vec::new(), Vec::new());
        let mut placed = HashSet::new();
        let known: HashSet<u32> = self.owners()?.into_values().collect();
        table.flows.each(|key, flow| {
            if !known.contains(&flow.owner) || has_ended(&flow) {
                flows.push((key, flow.owner));
            }
        })?;
        table.slots.each(|at: FlowSlotKey, key| {
            if !known.contains(&at.owner) {
                slots.push(at);
            }
            placed.insert(hasher.hash_one(key.as_bytes()));
        })?;
        // read again: an endpoint that was registered meanwhile is not an unknown one
        let known = self.owners()?;
        let owners: HashSet<u32> = known.values().copied().collect();
        let mut removed = 0;
        for (key, owner) in flows {
            let is_its = known.get(&ifindex_of(&key)) == Some(&owner);
            if is_its && placed.contains(&hasher.hash_one(key.as_bytes())) {
                continue;
            }
            // one that began again meanwhile is no longer what was found
            let same = |flow: Flow| flow.owner == owner && (!is_its || has_ended(&flow));
            if table.flows.get(&key)?.is_some_and(same) {
                removed += usize::from(table.flows.remove(&key)?);
            }
        }
        for at in slots.iter().filter(|at| !owners.contains(&at.owner)) {
            table.slots.remove(at)?;
        }
        Ok(removed)
    }
}

impl FlowTable {
    /// Takes ended flows off the rings of endpoints that have opened none since the last look.
    fn trim(&self, seen: &Seen) -> Result<usize> {
        let mut given_back = 0;
        for (ifindex, share) in self.shares()? {
            let Some((owner, before)) = seen.rings.get(&ifindex) else { continue };
            if *owner != share.owner {
                continue;
            }
            given_back += self.trim_ring(&self.v4, ifindex, &share, before)?;
            given_back += self.trim_ring(&self.v6, ifindex, &share, before)?;
        }
        Ok(given_back)
    }

    fn trim_ring<K>(
        &self,
        table: &Table<K>,
        ifindex: u32,
        share: &Share,
        before: &[Ring; 2],
    ) -> Result<usize>
    where
        K: IntoBytes + FromBytes + Immutable + Copy,
    {
        let ring = share.rings[table.number];
        if ring != before[table.number] || ring.high <= FEW {
            return Ok(0);
        }
        let now = coarse_now();
        let mut ended = Vec::new();
        for index in (FEW..ring.high).rev().take(AT_ONCE as usize) {
            let at = FlowSlotKey { owner: share.owner, index };
            let Some(key) = table.slots.get(&at)? else { break };
            match table.flows.get(&key)? {
                Some(flow) if flow.owner != share.owner => {}
                Some(flow) if (flow.expires.wrapping_add(MARGIN).wrapping_sub(now) as i32) >= 0 => {
                    break;
                }
                _ => {}
            }
            ended.push((at, key));
        }
        if ended.is_empty() {
            return Ok(0);
        }
        // first the ring: no slot that is removed is handed out again
        let count = ended.len() as u32;
        let taken = self.shares.amend(&ifindex, |share| {
            let ring_now = &mut share.rings[table.number];
            let same = *ring_now == ring;
            if same {
                ring_now.high -= count;
            }
            same
        })?;
        if !taken {
            return Ok(0);
        }
        self.shared()?.slots(table.number).fetch_sub(u64::from(count), Ordering::Relaxed);
        for (at, key) in ended {
            if table.flows.get(&key)?.is_some_and(|flow| {
                flow.owner == share.owner
                    && (flow.expires.wrapping_add(MARGIN).wrapping_sub(now) as i32) < 0
            }) {
                table.flows.remove(&key)?;
            }
            table.slots.remove(&at)?;
        }
        Ok(count as usize)
    }

    /// Makes the count of slots what the rings have. What is wrong for a moment only, while a program is between the two,
    /// differs at the next look; at the first one, no earlier process has left anything else.
    fn recount(&self, seen: &mut Seen, first: bool) -> Result<[i64; 2]> {
        let shares = self.shares()?;
        let mut corrected = [0; 2];
        for (number, corrected) in corrected.iter_mut().enumerate() {
            let counted: u64 =
                shares.values().map(|share| u64::from(share.rings[number].high)).sum();
            let slots = self.shared()?.slots(number);
            let drift = counted.wrapping_sub(slots.load(Ordering::Relaxed)) as i64;
            if drift != 0 && (first || drift == seen.drift[number]) {
                slots.fetch_add(drift as u64, Ordering::Relaxed);
                *corrected = drift;
                seen.drift[number] = 0;
            } else {
                seen.drift[number] = drift;
            }
        }
        Ok(corrected)
    }
}
