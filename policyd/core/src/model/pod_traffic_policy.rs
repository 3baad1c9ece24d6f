//! PodTrafficPolicy, as podgate sees it.

use std::sync::Arc;

use super::PolicyId;
use crate::limits::Limits;
use crate::selector::Selector;

/// A PodTrafficPolicy with all defaults applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodTrafficPolicy {
    /// Its name and source.
    pub id: PolicyId,
    /// Of two policies that state the same, the one with the lower order holds; of equal ones the one whose name comes first.
    pub order: u32,
    /// Which pods of its namespace it selects.
    pub selector: Selector,
    /// What it states.
    pub limits: Box<Limits>,
    /// What could not be read and has no effect, each with its field and the cause, as a sentence for people.
    pub problems: Vec<String>,
}

impl PodTrafficPolicy {
    /// By this, policies are in the order of precedence.
    pub fn rank(&self) -> (u32, &Arc<str>, &Arc<str>) {
        (self.order, &self.id.key.name, &self.id.source)
    }
}
