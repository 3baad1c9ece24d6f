//! What of the policies that are known could not be read and has failed closed or has no effect.

use std::fmt;
use std::sync::Arc;

use super::Index;
use crate::model::{ClusterPolicy, Pod, PolicySettings};
use crate::object::{Object, ObjectId};

/// Something of an object that is not in force as its author may believe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The object.
    pub of: ObjectId,
    /// Which sort of problem it is.
    pub sort: Sort,
    /// What, with its field, the cause and what holds in its place, as a sentence for people.
    pub text: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.of, self.text)
    }
}

/// The sorts of problems.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Sort {
    /// Something could not be read: it has failed closed or has no effect.
    NotUnderstood,
    /// Only its name orders it among policies of equal priority.
    EqualPriority,
}

/// Whether [`Index::problems`] has something to say of this object by itself.
pub(super) fn has_any(object: &Object) -> bool {
    match object {
        Object::Policy(policy) => !policy.settings.problems.is_empty(),
        Object::Namespace(namespace) => !namespace.settings.problems.is_empty(),
        Object::ClusterPolicy(ClusterPolicy { settings, problems, .. }) => {
            !settings.problems.is_empty() || !problems.is_empty()
        }
        Object::PodTrafficPolicy(policy) => !policy.problems.is_empty(),
        Object::Pod(pod) => {
            pod.annotated_limits.as_ref().is_some_and(|limits| !limits.problems.is_empty())
        }
        Object::Service(_) | Object::EndpointSlice(_) | Object::Node(_) => false,
    }
}

impl Index {
    /// Every problem of the policies, namespaces and pods, of pods only of those that may be on this node, by object; then the cluster policies whose order only their names decide.
    pub fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        for id in &self.with_problems {
            let none = PolicySettings::default();
            let (settings, more): (&PolicySettings, &[String]) = match id {
                ObjectId::Policy(id) => match self.policy(id) {
                    Some(policy) => (&policy.settings, &[]),
                    None => continue,
                },
                ObjectId::Namespace(name) => match self.namespace(name) {
                    Some(namespace) => (&namespace.settings, &[]),
                    None => continue,
                },
                ObjectId::ClusterPolicy(id) => match self.cluster_policy(id) {
                    Some(policy) => (&policy.settings, &policy.problems),
                    None => continue,
                },
                ObjectId::PodTrafficPolicy(id) => match self.pod_traffic_policy(id) {
                    Some(policy) => (&none, &policy.problems),
                    None => continue,
                },
                ObjectId::Pod(key) => {
                    let of_other = |pod: &Pod| {
                        self.node.is_some() && pod.node.is_some() && pod.node != self.node
                    };
                    let pod = self.pod(key).filter(|pod| !of_other(pod));
                    match pod.and_then(|pod| pod.annotated_limits.as_ref()) {
                        Some(limits) => (&none, &limits.problems),
                        None => continue,
                    }
                }
                ObjectId::Service(_) | ObjectId::EndpointSlice(_) | ObjectId::Node(_) => continue,
            };
            let texts = settings.problems.iter().chain(more);
            problems.extend(texts.map(|text| Problem {
                of: id.clone(),
                sort: Sort::NotUnderstood,
                text: text.clone(),
            }));
        }
        problems.extend(self.equal_priorities());
        problems
    }

    /// The policies after the first of each priority of a tier, each with its predecessor. Only those that have rules: one
    /// that has none, because its tier is not known, has no place in the order.
    fn equal_priorities(&self) -> Vec<Problem> {
        let with_rules =
            |policy: &&Arc<ClusterPolicy>| !policy.ingress.is_empty() || !policy.egress.is_empty();
        let all: Vec<_> = self.cluster_policies().filter(with_rules).collect();
        let equal = all.windows(2).filter_map(|pair| match pair {
            [before, policy] => ((before.tier, before.priority) == (policy.tier, policy.priority))
                .then_some((before, policy)),
            _ => None,
        });
        let tell = |(before, policy): (&&Arc<ClusterPolicy>, &&Arc<ClusterPolicy>)| Problem {
            of: ObjectId::ClusterPolicy(policy.id.clone()),
            sort: Sort::EqualPriority,
            text: format!(
                "spec.priority: {} in tier {} is that of {} too; they are evaluated in the order of their names",
                policy.priority, policy.tier, before.id
            ),
        };
        equal.map(tell).collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::convert;
    use crate::object::Event;

    fn cluster_policy(name: &str, tier: &str, priority: u16, action: &str) -> ClusterPolicy {
        let object = json!({
            "metadata": {"name": name},
            "spec": {
                "tier": tier, "priority": priority, "subject": {"namespaces": {}},
                "ingress": [{"action": action, "from": [{"namespaces": {}}]}],
            },
        });
        convert::cluster_policy("kubernetes", &serde_json::from_value(object).unwrap()).unwrap()
    }

    fn texts(index: &Index) -> Vec<String> {
        let problems = index.problems();
        problems.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn problems_come_and_go_with_their_objects() {
        let mut index = Index::new();
        index.apply(Event::from(cluster_policy("a", "Admin", 1, "Allow")));
        let namespace = json!({"metadata": {"name": "s", "annotations": {"podgate.io/mode": "x"}}});
        let namespace = serde_json::from_value(namespace).unwrap();
        index.apply(Event::from(convert::namespace("kubernetes", &namespace).unwrap()));
        let told = texts(&index);
        assert_eq!(told.len(), 2, "{told:?}");
        assert!(told[0].starts_with("namespace s: metadata.annotations[podgate.io/mode]: "));
        assert!(
            told[1].starts_with("clusternetworkpolicy a: spec.ingress[0].action: "),
            "{told:?}"
        );
        index.apply(Event::from(cluster_policy("a", "Admin", 1, "Accept")));
        index.apply(Event::Gone(ObjectId::Namespace("s".into())));
        assert_eq!(texts(&index), [""; 0]);
    }

    #[test]
    fn s15_6_equal_priorities_of_a_tier_are_evaluated_by_name_and_reported() {
        let mut index = Index::new();
        for (name, tier, priority) in [
            ("c", "Admin", 5),
            ("a", "Admin", 5),
            ("b", "Baseline", 5),
            ("d", "Admin", 6),
            ("e", "Tenant", 5),
        ] {
            index.apply(Event::from(cluster_policy(name, tier, priority, "Deny")));
        }
        let order: Vec<_> = index.cluster_policies().map(|policy| policy.id.to_string()).collect();
        assert_eq!(order, ["a", "c", "d", "b", "e"]);
        let told = texts(&index);
        let equal = "clusternetworkpolicy c: spec.priority: 5 in tier Admin is that of a too; they are evaluated in the order of their names";
        assert_eq!(told[1..], [equal], "{told:?}");
        index.apply(Event::from(cluster_policy("a", "Admin", 4, "Deny")));
        assert_eq!(texts(&index).len(), 1, "that of the unknown tier");
    }
}
