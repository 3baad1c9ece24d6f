//! The numbers of rules, as table entries, flows and counters carry them.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, PoisonError, RwLock};

use crate::model::Direction;
use crate::tables::{RuleId, RuleOrigin};

/// How many rules are remembered after their policy is gone: flows and events may still carry their numbers. The oldest
/// are forgotten first, so memory is bounded however many policies come and go.
const REMEMBERED: usize = 16_384;

/// Shared, read-only view of rule number -> origin; updated by its engine.
#[derive(Clone, Debug, Default)]
pub struct RuleNames(Arc<RwLock<HashMap<RuleId, Arc<RuleOrigin>>>>);

impl RuleNames {
    /// The rule of a number: one in force, or one of the last [`REMEMBERED`] that were.
    pub fn get(&self, rule: RuleId) -> Option<Arc<RuleOrigin>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(&rule).cloned()
    }

    fn set(&self, rule: RuleId, origin: Option<Arc<RuleOrigin>>) {
        let mut names = self.0.write().unwrap_or_else(PoisonError::into_inner);
        match origin {
            Some(origin) => names.insert(rule, origin),
            None => names.remove(&rule),
        };
    }
}

/// The rules of the policies in force, and the last [`REMEMBERED`] that were.
#[derive(Debug)]
pub(crate) struct Rules {
    ids: HashMap<Arc<RuleOrigin>, RuleId>,
    names: RuleNames,
    origins: BTreeMap<RuleId, Rule>,
    /// Retired rules and the number of the retirement, oldest first; some are in use again.
    retired: VecDeque<(RuleId, u64)>,
    last: u32,
    retirements: u64,
}

#[derive(Debug)]
struct Rule {
    origin: Arc<RuleOrigin>,
    /// How many versions of its policy use it: two while one replaces the other.
    uses: u32,
    /// The number of its last retirement.
    retired: u64,
}

impl Rules {
    pub(crate) fn new() -> Self {
        let mut rules = Self {
            ids: HashMap::new(),
            names: RuleNames::default(),
            origins: BTreeMap::new(),
            retired: VecDeque::new(),
            last: 0,
            retirements: 0,
        };
        for direction in [Direction::Ingress, Direction::Egress] {
            rules.insert(RuleId::not_isolated(direction), RuleOrigin::NotIsolated(direction));
        }
        rules
    }

    fn insert(&mut self, id: RuleId, origin: RuleOrigin) {
        self.last = self.last.max(id.0);
        let origin = Arc::new(origin);
        self.names.set(id, Some(origin.clone()));
        self.ids.insert(origin.clone(), id);
        self.origins.insert(id, Rule { origin, uses: 1, retired: 0 });
    }

    pub(crate) fn origin(&self, id: RuleId) -> Option<&RuleOrigin> {
        self.origins.get(&id).map(|rule| &*rule.origin)
    }

    pub(crate) fn names(&self) -> &RuleNames {
        &self.names
    }

    /// Acquires the number of a rule: the one it had before, if that is still remembered.
    pub(crate) fn number(&mut self, origin: RuleOrigin) -> RuleId {
        if let Some(id) = self.ids.get(&origin).copied() {
            if let Some(rule) = self.origins.get_mut(&id) {
                rule.uses += 1;
            }
            return id;
        }
        let id = RuleId(self.last + 1);
        self.insert(id, origin);
        id
    }

    /// Releases one use acquired by [`Rules::number`].
    pub(crate) fn retire(&mut self, id: RuleId) {
        let Some(rule) = self.origins.get_mut(&id) else { return };
        rule.uses = rule.uses.saturating_sub(1);
        if rule.uses > 0 {
            return;
        }
        self.retirements += 1;
        rule.retired = self.retirements;
        self.retired.push_back((id, self.retirements));
        while self.retired.len() > REMEMBERED {
            let Some((id, retirement)) = self.retired.pop_front() else { return };
            // it may be in use again, or retired a second time
            let forgotten = |rule: &Rule| rule.uses == 0 && rule.retired == retirement;
            if self.origins.get(&id).is_some_and(forgotten)
                && let Some(Rule { origin, .. }) = self.origins.remove(&id)
            {
                self.ids.remove(&origin);
                self.names.set(id, None);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ObjectKey, PolicyId};

    fn first_rule(number: usize, direction: Direction) -> RuleOrigin {
        let key = ObjectKey::new("shop", format!("p-{number}"));
        RuleOrigin::Policy { policy: PolicyId { source: "dir".into(), key }, direction, index: 0 }
    }

    #[test]
    fn a_rule_that_comes_back_has_its_number_and_old_ones_are_forgotten() {
        let mut rules = Rules::new();
        let first = rules.number(first_rule(0, Direction::Ingress));
        rules.retire(first);
        assert!(rules.origin(first).is_some(), "a flow may still name it");
        assert_eq!(rules.number(first_rule(0, Direction::Ingress)), first);
        for number in 1..3 * REMEMBERED {
            let id = rules.number(first_rule(number, Direction::Egress));
            assert_ne!(id, first);
            rules.retire(id);
        }
        assert!(rules.origin(first).is_some(), "it is in use");
        assert!(rules.origins.len() <= REMEMBERED + 3);
        assert_eq!(rules.ids.len(), rules.origins.len());
        let second = rules.number(first_rule(1, Direction::Egress));
        assert!(second.0 > 3 * REMEMBERED as u32, "no number twice");
    }
}
