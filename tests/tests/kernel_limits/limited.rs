//! Pods with limits.

use podgate_bpf::abi::{Direction, Limit, LimitsKey, LimitsRecord, Meter, Rate};
use podgate_tests::netlab::{Lab, Pod};

/// Bytes a second of so many megabits.
pub(crate) fn megabits(rate: u64) -> u64 {
    rate * 1_000_000 / 8
}

/// The burst that pods get by default: 50 ms of their bandwidth, and 128 KiB at least.
pub(crate) fn burst(bytes: u64) -> u64 {
    (bytes / 20).max(128 << 10)
}

/// A bandwidth, bytes a second, with its default burst.
pub(crate) fn bandwidth(limits: &mut LimitsRecord, direction: Direction, bytes: u64) {
    let rate = Rate::per_second(bytes, burst(bytes));
    limits.set_rate(direction, Limit::Bandwidth, rate, 0);
}

/// The key of what a pod as a whole may use.
pub(crate) fn whole(lab: &Lab, pod: &Pod) -> LimitsKey {
    let registration = lab.datapath.maps.registration(pod.ifindex).unwrap().unwrap();
    LimitsKey::of_pod(registration.owner)
}

/// Puts limits in force, as policyd does.
pub(crate) fn limit(lab: &Lab, pod: &Pod, limits: &LimitsRecord) {
    lab.node.run(|| lab.datapath.set_metered(pod.ifindex, true)).unwrap();
    lab.datapath.maps.limits().set(whole(lab, pod), limits).unwrap();
}

/// And out of force.
pub(crate) fn unlimit(lab: &Lab, pod: &Pod) {
    lab.datapath.maps.limits().remove(whole(lab, pod)).unwrap();
    lab.node.run(|| lab.datapath.set_metered(pod.ifindex, false)).unwrap();
}

/// How much of its limits the pod has used.
pub(crate) fn meter(lab: &Lab, pod: &Pod) -> Meter {
    lab.datapath.maps.limits().meter(whole(lab, pod)).unwrap().unwrap()
}
