//! The epoch and the switches, and the counters.

use std::sync::atomic::Ordering;

use libbpf_rs::{MapCore, MapFlags, MapHandle};
use zerocopy::{FromBytes, IntoBytes};

use crate::abi::{COUNTER_COUNT, Counter, Direction, Mode, REASON_COUNT, Reason, STAT_BASE, Stat};
use crate::sys::{ControlWord, SharedControl, SharedSteps};
use crate::typed_map::{errno, wrote};
use crate::{Error, Result};

/// The `control` map's record, shared with the programs.
#[derive(Debug)]
pub struct Control {
    shared: SharedControl,
}

impl Control {
    pub(crate) fn new(shared: SharedControl) -> Self {
        Self { shared }
    }

    /// The number that flows are compared with.
    pub fn epoch(&self) -> u32 {
        self.shared.load(ControlWord::Epoch)
    }

    /// Has every flow revalidated at its next packet. Call it after the maps are written. Returns the new epoch.
    pub fn bump_epoch(&self) -> u32 {
        let epoch = self.shared.add(ControlWord::Epoch, 1);
        wrote("control", "bump the epoch", &[]);
        epoch
    }

    /// What a denial does. A number this build does not know counts as `enforce`, as it does in the programs.
    pub fn mode(&self) -> Mode {
        Mode::from_number(self.shared.load(ControlWord::Mode)).unwrap_or(Mode::Enforce)
    }

    /// Changes what a denial does, from the next packet on.
    pub fn set_mode(&self, mode: Mode) {
        self.shared.store(ControlWord::Mode, mode as u32);
    }

    /// Whether new allowed flows raise events; denials always do.
    pub fn set_report_allowed(&self, report: bool) {
        self.shared.store(ControlWord::TellAllowed, u32::from(report));
    }

    /// Fingerprint of the object that the pinned programs came from.
    pub(crate) fn build(&self) -> u32 {
        self.shared.load(ControlWord::Build)
    }

    /// Sets the limit of events in a second that all endpoints share, beside their own tokens; 0: no events at all.
    pub fn set_event_limit(&self, limit: u32) {
        self.shared.store(ControlWord::EventsPerSecond, limit);
    }
}

/// The `commit_steps` map's only value, shared with the programs.
#[derive(Debug)]
pub struct CommitSteps {
    shared: SharedSteps,
}

impl CommitSteps {
    pub(crate) fn new(shared: SharedSteps) -> Self {
        Self { shared }
    }

    /// After each write of an address's class or of a policy map that packets may meet: programs that were between two
    /// reads meanwhile read both again.
    pub(crate) fn count(&self) {
        self.shared.word().fetch_add(1, Ordering::SeqCst);
    }

    /// How many were counted, by all processes since the map was made.
    pub fn counted(&self) -> u32 {
        self.shared.word().load(Ordering::SeqCst)
    }
}

/// A reading of all counters, summed over the CPUs.
#[derive(Clone, Debug)]
pub struct Counters {
    slots: Vec<Counter>,
}

impl Counters {
    pub(crate) fn read(map: &MapHandle) -> Result<Self> {
        let mut slots = Vec::with_capacity(COUNTER_COUNT as usize);
        for slot in 0..COUNTER_COUNT {
            let per_cpu = map
                .lookup_percpu(slot.as_bytes(), MapFlags::ANY)
                .map_err(|e| Error::io("read map", "counters", errno(&e)))?;
            let mut sum = Counter { packets: 0, bytes: 0 };
            for bytes in per_cpu.into_iter().flatten() {
                if let Ok((counter, _)) = Counter::read_from_prefix(&bytes) {
                    sum.packets += counter.packets;
                    sum.bytes += counter.bytes;
                }
            }
            slots.push(sum);
        }
        Ok(Self { slots })
    }

    /// Packets and bytes that met this reason in this direction since the maps were made.
    pub fn get(&self, direction: Direction, reason: Reason) -> Counter {
        self.slots[(direction as u32 * REASON_COUNT + u32::from(reason as u8)) as usize]
    }

    /// How often this happened.
    pub fn stat(&self, stat: Stat) -> u64 {
        self.slots[(STAT_BASE + stat as u32) as usize].packets
    }
}
