//! How the limits of a pod are spelled in entries of the kernel's map.

use podgate_bpf::abi::{Direction, Limit, LimitsFlag, LimitsRecord, Rate as KernelRate};
use podgate_policy::limits::{DirectionLimits, EachWay, Limits, Marks, OnExceed, Rate, Stated};

use super::origins::Origins;

/// The entry of a pod as a whole. `shape`: what exceeds the bandwidth to it is delayed, not dropped.
pub(super) fn of_pod(limits: &Limits, shape: bool, origins: &mut Origins) -> LimitsRecord {
    let mut record = LimitsRecord::default();
    let EachWay { ingress, egress } = &limits.each_way;
    for (direction, of) in [(Direction::Ingress, ingress), (Direction::Egress, egress)] {
        set_direction(&mut record, direction, of, origins);
    }
    set_marks(&mut record, &limits.marks);
    set(&mut record, LimitsFlag::Shape, shape);
    let accounted = limits.accounting.as_ref().is_some_and(|accounting| accounting.value);
    set(&mut record, LimitsFlag::Account, accounted);
    record
}

fn set_direction(
    record: &mut LimitsRecord,
    direction: Direction,
    of: &DirectionLimits,
    origins: &mut Origins,
) {
    let DirectionLimits { bandwidth, packets, new_connections, open_connections, on_exceed } = of;
    for (limit, rate) in [
        (Limit::Bandwidth, bandwidth),
        (Limit::Packets, packets),
        (Limit::NewConnections, new_connections),
    ] {
        set_rate(record, direction, limit, rate.as_ref(), origins);
    }
    if let Some(most) = open_connections {
        record.open_most[direction as usize] = most.value;
        record.origins[direction as usize][Limit::OpenConnections as usize] =
            origins.number(&most.origin);
    }
    let flag = match direction {
        Direction::Egress => LimitsFlag::RejectEgress,
        Direction::Ingress => LimitsFlag::RejectIngress,
    };
    set(record, flag, on_exceed.as_ref().is_some_and(|of| of.value == OnExceed::Reject));
}

fn set_rate(
    record: &mut LimitsRecord,
    direction: Direction,
    limit: Limit,
    rate: Option<&Stated<Rate>>,
    origins: &mut Origins,
) {
    if let Some(Stated { value: Rate { per_second, burst }, origin }) = rate {
        let rate = KernelRate::per_second(*per_second, *burst);
        record.set_rate(direction, limit, rate, origins.number(origin));
    }
}

fn set_marks(record: &mut LimitsRecord, marks: &Marks) {
    let Marks { dscp, priority, mark } = marks;
    if let Some(dscp) = dscp {
        record.dscp = dscp.value;
    }
    set(record, LimitsFlag::Dscp, dscp.is_some());
    if let Some(priority) = priority {
        record.priority = u32::from(priority.value);
    }
    set(record, LimitsFlag::Priority, priority.is_some());
    if let Some(mark) = mark {
        (record.mark, record.mark_mask) = (mark.value.value, mark.value.mask);
    }
}

fn set(record: &mut LimitsRecord, flag: LimitsFlag, on: bool) {
    if on {
        record.flags |= flag as u8;
    }
}
