//! All that the node's operator has said, and what may be said.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use podgate_contract::api::{DefaultMode, Defaults, NewRule};
use podgate_policy::convert::{FieldError, local_defaults};
use podgate_policy::model::{LocalDefaults, LocalRules, ObjectKey};

use super::rule::Rule;
use crate::sources::local::Was;

/// Rules of one pod. Each may become several entries of each class of peers, and a table has room for thousands.
pub(super) const RULES_OF_A_POD: usize = 256;

/// Rules of the node, and pods of which anything is said.
pub(super) const RULES_OF_THE_NODE: usize = 4096;

/// Default modes by direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Modes {
    pub(super) ingress: DefaultMode,
    pub(super) egress: DefaultMode,
}

impl Default for Modes {
    fn default() -> Self {
        Self { ingress: DefaultMode::Unset, egress: DefaultMode::Unset }
    }
}

impl Modes {
    /// With those that are given.
    fn with(self, change: Defaults) -> Self {
        Self {
            ingress: change.ingress.unwrap_or(self.ingress),
            egress: change.egress.unwrap_or(self.egress),
        }
    }

    /// As the API writes them.
    pub(super) fn api(self) -> Defaults {
        Defaults { ingress: Some(self.ingress), egress: Some(self.egress) }
    }

    /// As the engine evaluates them.
    pub(super) fn compiled(self) -> LocalDefaults {
        local_defaults(self.api())
    }
}

/// What is said of one pod.
#[derive(Clone, Debug, Default)]
pub(super) struct PodEntry {
    /// In the order of evaluation.
    pub(super) rules: Vec<Rule>,
    pub(super) defaults: Modes,
}

/// All that is said. Pods of which nothing is said are left out.
#[derive(Clone, Debug)]
pub(super) struct State {
    /// The number of the next rule.
    pub(super) next: u32,
    pub(super) node: Modes,
    pub(super) pods: BTreeMap<ObjectKey, PodEntry>,
}

impl Default for State {
    fn default() -> Self {
        Self { next: 1, node: Modes::default(), pods: BTreeMap::new() }
    }
}

impl State {
    /// Adds a rule to a pod, or gives the same rule another comment and lifetime. Returns its number.
    pub(super) fn add(
        &mut self,
        pod: &ObjectKey,
        new: NewRule,
        now: SystemTime,
    ) -> Result<(u32, Was), FieldError> {
        let before = new.before;
        let mut rule = Rule::new(self.next, new, now)?;
        let held = self.held();
        let entry = self.pods.get(pod);
        let known = entry.map(|entry| entry.rules.as_slice()).unwrap_or_default();
        let same = known.iter().position(|known| known.spec == rule.spec);
        if let Some(before) = before
            && !known.iter().any(|known| known.id() == before)
        {
            return Err(FieldError::new("before", format!("{pod} has no rule {before}")));
        }
        if same.is_none() && known.len() >= RULES_OF_A_POD {
            let cause =
                format!("{pod} has {RULES_OF_A_POD} rules already, as many as a pod may have");
            return Err(FieldError::new("pod", cause));
        }
        if same.is_none() && held >= RULES_OF_THE_NODE {
            let cause =
                format!("this node has {RULES_OF_THE_NODE} rules already, as many as it may have");
            return Err(FieldError::new("pod", cause));
        }
        let rules = &mut self.pods.entry(pod.clone()).or_default().rules;
        let was = match same {
            None => {
                self.next = self.next.saturating_add(1);
                Was::Absent
            }
            Some(at) => {
                rule.rule.id = rules[at].id();
                // its place stays, unless another is asked for
                if before.is_none() || before == Some(rule.id()) {
                    let id = rule.id();
                    rules[at] = rule;
                    return Ok((id, Was::Present));
                }
                rules.remove(at);
                Was::Present
            }
        };
        let at = before.and_then(|before| rules.iter().position(|known| known.id() == before));
        let id = rule.id();
        rules.insert(at.unwrap_or(rules.len()), rule);
        Ok((id, was))
    }

    /// Removes a rule of a pod, or all. Returns the numbers of those that are gone.
    pub(super) fn remove(&mut self, pod: &ObjectKey, id: Option<u32>) -> Vec<u32> {
        let goes = |rule: &Rule| id.is_none_or(|id| rule.id() == id);
        let Some(entry) = self.pods.get_mut(pod) else { return Vec::new() };
        let gone = entry.rules.extract_if(.., |rule| goes(rule)).map(|rule| rule.id()).collect();
        self.tidy(pod);
        gone
    }

    /// Sets the modes of a pod, those that are given.
    pub(super) fn set_defaults(
        &mut self,
        pod: &ObjectKey,
        change: Defaults,
    ) -> Result<(), FieldError> {
        if !self.pods.contains_key(pod) && self.held() >= RULES_OF_THE_NODE {
            let cause =
                format!("of {RULES_OF_THE_NODE} pods something is said already, as many as may be");
            return Err(FieldError::new("pod", cause));
        }
        let entry = self.pods.entry(pod.clone()).or_default();
        entry.defaults = entry.defaults.with(change);
        self.tidy(pod);
        Ok(())
    }

    /// Sets the modes of the node, those that are given.
    pub(super) fn set_node_defaults(&mut self, change: Defaults) {
        self.node = self.node.with(change);
    }

    /// Removes the rules whose lifetime is over. Returns their pods, with their numbers.
    pub(super) fn expire(&mut self, now: SystemTime) -> BTreeMap<ObjectKey, Vec<u32>> {
        let mut expired = BTreeMap::new();
        for (pod, entry) in &mut self.pods {
            let over = entry.rules.extract_if(.., |rule| rule.is_over(now));
            let over: Vec<u32> = over.map(|rule| rule.id()).collect();
            if !over.is_empty() {
                expired.insert(pod.clone(), over);
            }
        }
        expired.keys().for_each(|pod| self.tidy(pod));
        expired
    }

    /// When the next lifetime is over.
    pub(super) fn next_end(&self) -> Option<SystemTime> {
        let ends =
            self.pods.values().flat_map(|entry| &entry.rules).filter_map(|rule| rule.expires);
        ends.min().map(|seconds| UNIX_EPOCH + std::time::Duration::from_secs(seconds))
    }

    /// What the engine is told of a pod; empty: nothing.
    pub(super) fn compiled(&self, pod: &ObjectKey) -> LocalRules {
        let entry = self.pods.get(pod).cloned().unwrap_or_default();
        LocalRules {
            pod: pod.clone(),
            rules: entry.rules.iter().map(|rule| rule.rule.clone()).collect(),
            defaults: entry.defaults.compiled(),
        }
    }

    fn held(&self) -> usize {
        self.pods.values().map(|entry| entry.rules.len().max(1)).sum()
    }

    fn tidy(&mut self, pod: &ObjectKey) {
        let nothing =
            |entry: &PodEntry| entry.rules.is_empty() && entry.defaults == Modes::default();
        if self.pods.get(pod).is_some_and(nothing) {
            self.pods.remove(pod);
        }
    }
}
