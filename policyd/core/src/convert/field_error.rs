//! The error of every conversion: a field and its cause. The caller knows the object and names it.

use std::fmt;

use thiserror::Error;

/// A field of an object that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{path}: {cause}")]
pub struct FieldError {
    /// The field, as in `spec.ingress[0].ports[1].endPort`.
    pub path: String,
    /// What is wrong with it.
    pub cause: String,
}

impl FieldError {
    /// An error at `path`, relative to the value that is being read; see [`FieldError::under`].
    pub fn new(path: impl Into<String>, cause: impl Into<String>) -> Self {
        Self { path: path.into(), cause: cause.into() }
    }

    /// The same error seen from the parent field.
    #[must_use]
    pub fn under(self, parent: impl fmt::Display) -> Self {
        Self { path: format!("{parent}.{}", self.path), ..self }
    }
}
