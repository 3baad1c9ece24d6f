//! What a pod may use and why, for people and programs that ask.

use podgate_contract::api::{self, Limit, LimitOrigin, OverriddenLimit, PodLimits, RuleLimit};

use super::{Effective, MAX_RULES, NamedValue, Origin, TrafficRule};
use crate::index::Index;
use crate::model::Pod;

impl Index {
    /// What is said of a pod: what holds, what says so, and what does not hold because of it.
    pub fn pod_limits(&self, pod: &Pod) -> PodLimits {
        let effective = self.effective_limits(pod);
        let values = effective.limits.values();
        PodLimits {
            pod: pod.key.to_string(),
            limits: values.into_iter().map(|value| limit(value, &effective)).collect(),
            rules: effective.limits.rules.iter().map(|of| rule(of)).collect(),
            problems: self.limit_problems(pod, &effective),
            used: Vec::new(),
        }
    }

    /// What of all that is said of a pod has no effect.
    fn limit_problems(&self, pod: &Pod, effective: &Effective) -> Vec<String> {
        let mut problems = Vec::new();
        if effective.left_out > 0 {
            problems.push(format!(
                "pod {}: has more than {MAX_RULES} traffic rules; the last {} are left out",
                pod.key, effective.left_out
            ));
        }
        for policy in self.pod_traffic_policies_selecting(pod) {
            let of_policy = policy.problems.iter();
            problems
                .extend(of_policy.map(|text| format!("podtrafficpolicy {}: {text}", policy.id)));
        }
        if let Some(annotated) = pod.annotated_limits.as_ref().filter(|_| !pod.host_network) {
            let of_pod = annotated.problems.iter();
            problems.extend(of_pod.map(|text| format!("pod {}: {text}", pod.key)));
        }
        problems
    }
}

fn limit((direction, value, origin): NamedValue<'_>, effective: &Effective) -> Limit {
    let overridden = effective.overridden.iter().filter(|of| of.is_of(direction, &value));
    let overridden = overridden
        .map(|of| OverriddenLimit { value: of.value, origin: origin_of(&of.origin) })
        .collect();
    Limit { direction, value, origin: origin_of(origin), overridden }
}

fn origin_of(origin: &Origin) -> LimitOrigin {
    LimitOrigin { object: origin.object.to_string(), field: origin.field.to_string() }
}

fn rule(rule: &TrafficRule) -> api::TrafficRule {
    let values = rule.values().into_iter();
    api::TrafficRule {
        name: rule.name.to_string(),
        direction: rule.direction,
        origin: origin_of(&rule.origin),
        limits: values.map(|(direction, value, _)| RuleLimit { direction, value }).collect(),
    }
}
