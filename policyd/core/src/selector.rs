//! Label selectors, in a normal form: equal selectors of two policies compare equal and so share one peer set.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use crate::model::Labels;

/// The operator of a requirement, with its values.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Operator {
    /// The key is there with one of these values. The empty string is a value.
    In(BTreeSet<Arc<str>>),
    /// The key is missing, or its value is none of these.
    NotIn(BTreeSet<Arc<str>>),
    /// The key is there, with any value.
    Exists,
    /// The key is missing.
    DoesNotExist,
}

/// One requirement of a [`Selector`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Requirement {
    /// The label's key.
    pub key: Arc<str>,
    /// The condition on it.
    pub operator: Operator,
}

impl Requirement {
    /// Whether `labels` fulfil it.
    pub fn matches(&self, labels: &Labels) -> bool {
        self.accepts(labels.get(&self.key).map(|value| &**value))
    }

    /// Whether this value of its key fulfils it; `None`: the key is missing.
    pub fn accepts(&self, value: Option<&str>) -> bool {
        match &self.operator {
            Operator::In(values) => value.is_some_and(|value| values.contains(value)),
            Operator::NotIn(values) => !value.is_some_and(|value| values.contains(value)),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
        }
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |f: &mut fmt::Formatter<'_>, word: &str, values: &BTreeSet<Arc<str>>| {
            let values: Vec<&str> = values.iter().map(|value| &**value).collect();
            write!(f, "{} {word} ({})", self.key, values.join(","))
        };
        match &self.operator {
            Operator::In(values) => match (values.len(), values.first()) {
                (1, Some(only)) => write!(f, "{}={only}", self.key),
                _ => list(f, "in", values),
            },
            Operator::NotIn(values) => list(f, "notin", values),
            Operator::Exists => f.write_str(&self.key),
            Operator::DoesNotExist => write!(f, "!{}", self.key),
        }
    }
}

/// Requirements that must all hold. Sorted and without repetitions, so that equal meanings written in
/// another order compare equal. Prints as kubectl does.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Selector {
    requirements: Vec<Requirement>,
}

impl Selector {
    /// The selector without requirements: it matches everything.
    pub fn everything() -> Self {
        Self { requirements: Vec::new() }
    }

    /// A selector of these requirements.
    pub fn new(requirements: impl IntoIterator<Item = Requirement>) -> Self {
        let sorted: BTreeSet<Requirement> = requirements.into_iter().collect();
        Self { requirements: sorted.into_iter().collect() }
    }

    /// Whether these labels fulfil every requirement.
    pub fn matches(&self, labels: &Labels) -> bool {
        self.requirements.iter().all(|requirement| requirement.matches(labels))
    }

    /// Whether it has no requirement.
    pub fn is_everything(&self) -> bool {
        self.requirements.is_empty()
    }

    /// Its requirements, sorted.
    pub fn requirements(&self) -> &[Requirement] {
        &self.requirements
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.requirements.is_empty() {
            return f.write_str("<none>");
        }
        for (index, requirement) in self.requirements.iter().enumerate() {
            if index > 0 {
                f.write_str(",")?;
            }
            requirement.fmt(f)?;
        }
        Ok(())
    }
}
