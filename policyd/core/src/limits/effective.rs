//! Which of all that is said of a pod holds.
//!
//! Of each single value the first source that states it decides: the PodTrafficPolicies that select the pod, in the order of
//! `spec.order` and name; the pod's annotations of Calico; those of Kubernetes; and last what the namespace says, which is only
//! whether its pods are accounted. The rules of all those policies are one list, in the same order.

use podgate_contract::api::LimitValue;

use super::values::{DirectionLimits, Limits, Marks, NamedValue, Origin, Stated};
use crate::model::{Direction, Namespace, Pod, PodTrafficPolicy};

/// How many rules a pod has at most: their numbers are one byte.
pub const MAX_RULES: usize = 254;

/// What holds for a pod, and what does not because of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Effective {
    /// What holds.
    pub limits: Limits,
    /// Values that do not hold, in the order of precedence.
    pub overridden: Vec<Overridden>,
    /// Rules that are left out because there are too many.
    pub left_out: usize,
}

/// A value that does not hold, because something before it states the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overridden {
    /// Seen from the pod; `None` where the value is for both.
    pub direction: Option<Direction>,
    /// The value.
    pub value: LimitValue,
    /// What states it.
    pub origin: Origin,
}

impl Overridden {
    /// Whether the value is of the same thing and direction.
    pub fn is_of(&self, direction: Option<Direction>, value: &LimitValue) -> bool {
        let kind = std::mem::discriminant::<LimitValue>;
        self.direction == direction && kind(&self.value) == kind(value)
    }
}

/// What holds for a pod that these policies select; they are in the order of precedence. A hostNetwork pod is its node, and
/// nothing holds for it.
pub fn effective<'a>(
    pod: &'a Pod,
    namespace: Option<&'a Namespace>,
    policies: impl IntoIterator<Item = &'a PodTrafficPolicy>,
) -> Effective {
    let mut effective = Effective::default();
    if pod.host_network {
        return effective;
    }
    for policy in policies {
        effective.add(&policy.limits);
    }
    if let Some(annotated) = &pod.annotated_limits {
        effective.add(&annotated.calico);
        effective.add(&annotated.kubernetes);
    }
    if let Some(stated) = namespace.and_then(|namespace| namespace.accounting.as_ref()) {
        effective.add(&Limits { accounting: Some(stated.clone()), ..Limits::default() });
    }
    let rules = &mut effective.limits.rules;
    effective.left_out = rules.len().saturating_sub(MAX_RULES);
    rules.truncate(MAX_RULES);
    effective
}

impl Effective {
    /// Adds what the next source in the order states.
    fn add(&mut self, source: &Limits) {
        let held = self.limits.values();
        let is_held = |(direction, value, _): &NamedValue<'_>| {
            let kind = std::mem::discriminant::<LimitValue>;
            held.iter().any(|held| held.0 == *direction && kind(&held.1) == kind(value))
        };
        let overridden = source.values().into_iter().filter(is_held);
        let overridden = overridden.map(|(direction, value, origin)| Overridden {
            direction,
            value,
            origin: origin.clone(),
        });
        self.overridden.extend(overridden.collect::<Vec<_>>());
        self.limits.complete_with(source);
    }
}

impl Limits {
    /// Takes every value that is not stated yet.
    fn complete_with(&mut self, source: &Self) {
        let Self { each_way, marks, accounting, rules } = source;
        self.each_way.ingress.complete_with(&each_way.ingress);
        self.each_way.egress.complete_with(&each_way.egress);
        self.marks.complete_with(marks);
        complete(&mut self.accounting, accounting);
        self.rules.extend(rules.iter().cloned());
    }
}

impl DirectionLimits {
    fn complete_with(&mut self, source: &Self) {
        let Self { bandwidth, packets, new_connections, open_connections, on_exceed } = source;
        complete(&mut self.bandwidth, bandwidth);
        complete(&mut self.packets, packets);
        complete(&mut self.new_connections, new_connections);
        complete(&mut self.open_connections, open_connections);
        complete(&mut self.on_exceed, on_exceed);
    }
}

impl Marks {
    fn complete_with(&mut self, source: &Self) {
        let Self { dscp, priority, mark } = source;
        complete(&mut self.dscp, dscp);
        complete(&mut self.priority, priority);
        complete(&mut self.mark, mark);
    }
}

fn complete<T: Clone>(held: &mut Option<Stated<T>>, source: &Option<Stated<T>>) {
    if held.is_none() {
        held.clone_from(source);
    }
}
