//! Counting open connections again (`c/open_count.h`). The programs keep the count by themselves; what is lost in races and with
//! flows that user space removes is found here.

use std::collections::BTreeMap;

use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::Result;
use crate::abi::{Direction, Flow, LimitsKey, Meter};
use crate::maps::Maps;
use crate::typed_map::TypedMap;

/// Open connections by [`Direction`] of their first packet.
type Open = [u32; 2];

/// Counts again, now and then, for one process of the node. While programs run, a count of flows and a meter are never of the
/// same moment: what differs twice in a row, in the same sense, by as much each time, is no matter of that.
#[derive(Debug, Default)]
pub struct Recount {
    /// By how much each meter was wrong last.
    differences: BTreeMap<LimitsKey, [i64; 2]>,
}

impl Recount {
    /// Counts the flows of all metered pods, and corrects those meters that were wrong last time too. Returns how many
    /// connections were added or taken away.
    pub fn look(&mut self, maps: &Maps) -> Result<u64> {
        let before = meters(maps)?;
        let mut counted = BTreeMap::new();
        add_flows(&maps.flow_table().v4.flows, &mut counted)?;
        add_flows(&maps.flow_table().v6.flows, &mut counted)?;
        let after = meters(maps)?;
        let mut corrected = 0;
        let mut differences = BTreeMap::new();
        for (key, before) in before {
            let Some(after) = after.get(&key) else { continue };
            let counted = counted.get(&key).copied().unwrap_or_default();
            let earlier = self.differences.get(&key).copied().unwrap_or_default();
            let mut difference: [i64; 2] =
                std::array::from_fn(|way| beyond(counted[way], before[way], after[way]));
            let lasting = std::array::from_fn(|way| in_common(earlier[way], difference[way]));
            if lasting != [0; 2] {
                maps.limits().meters.amend(&key, |meter| {
                    correct(meter, lasting);
                    true
                })?;
                corrected += lasting.iter().map(|by: &i64| by.unsigned_abs()).sum::<u64>();
                difference = std::array::from_fn(|way| difference[way] - lasting[way]);
            }
            if difference != [0; 2] {
                differences.insert(key, difference);
            }
        }
        self.differences = differences;
        Ok(corrected)
    }
}

fn meters(maps: &Maps) -> Result<BTreeMap<LimitsKey, Open>> {
    let mut open = BTreeMap::new();
    maps.limits().meters.each(|key, meter| {
        open.insert(key, meter.open);
    })?;
    Ok(open)
}

/// Each flow that is counted, at its pod's meter and at that of its traffic rule.
fn add_flows<K>(flows: &TypedMap<K, Flow>, to: &mut BTreeMap<LimitsKey, Open>) -> Result<()>
where
    K: IntoBytes + FromBytes + Immutable + Copy,
{
    flows.each(|_, flow| {
        if flow.counted == 0 {
            return;
        }
        let way = usize::from(flow.direction == Direction::Ingress as u8);
        let rule = u32::from(flow.traffic_rule);
        for rule in [0].into_iter().chain((rule != 0).then_some(rule)) {
            to.entry(LimitsKey { owner: flow.owner, rule }).or_default()[way] += 1;
        }
    })
}

/// How far a count of flows is from all that the meter said meanwhile.
fn beyond(counted: u32, before: u32, after: u32) -> i64 {
    let counted = i64::from(counted);
    let (least, most) = (i64::from(before.min(after)), i64::from(before.max(after)));
    counted - counted.clamp(least, most)
}

/// As much of two differences as they have in common.
fn in_common(earlier: i64, now: i64) -> i64 {
    match (earlier.signum(), now.signum()) {
        (1, 1) => earlier.min(now),
        (-1, -1) => earlier.max(now),
        _ => 0,
    }
}

/// By a difference, as the programs have gone on counting since it was found.
fn correct(meter: &mut Meter, by: [i64; 2]) {
    for (open, by) in meter.open.iter_mut().zip(by) {
        *open = u32::try_from((i64::from(*open) + by).max(0)).unwrap_or(u32::MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_within_what_the_meter_said_meanwhile_is_right() {
        assert_eq!(beyond(7, 7, 7), 0);
        assert_eq!(beyond(7, 5, 9), 0);
        assert_eq!(beyond(7, 9, 5), 0);
        assert_eq!(beyond(10, 9, 5), 1);
        assert_eq!(beyond(3, 5, 9), -2);
    }

    #[test]
    fn only_what_two_counts_agree_on_is_corrected() {
        assert_eq!(in_common(3, 5), 3);
        assert_eq!(in_common(-3, -5), -3);
        assert_eq!(in_common(-5, -3), -3);
        assert_eq!(in_common(2, -2), 0);
        assert_eq!(in_common(0, 4), 0);
        assert_eq!(in_common(4, 0), 0);
    }
}
