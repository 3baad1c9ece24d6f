//! Field masks: which parts of an API object are kept when it is received.

use crate::convert::{DENY, LOG, MIRROR, MODE};
use crate::limits::{ACCOUNTING, ANNOTATIONS};

/// Which parts of a JSON value are kept.
#[derive(Debug)]
pub enum FieldMask {
    /// Everything.
    All,
    /// These fields of an object.
    Fields(&'static [Field]),
    /// This of every item of a list.
    Each(&'static FieldMask),
}

/// A field, and what is kept of it.
pub type Field = (&'static str, FieldMask);

impl FieldMask {
    /// The field of this name, whole.
    pub const fn whole(name: &'static str) -> Field {
        (name, Self::All)
    }
}

/// `metadata` fields that most kinds need.
pub(super) const NAME: Field = FieldMask::whole("name");
pub(super) const NAMESPACE: Field = FieldMask::whole("namespace");
pub(super) const UID: Field = FieldMask::whole("uid");
pub(super) const VERSION: Field = FieldMask::whole("resourceVersion");
pub(super) const LABELS: Field = FieldMask::whole("labels");

/// The annotations of policies and namespaces that say something of policies.
pub(super) const SETTINGS: Field = (
    "annotations",
    FieldMask::Fields(&[FieldMask::whole(MODE), FieldMask::whole(LOG), FieldMask::whole(DENY)]),
);

/// The annotations of namespaces: those, and one of limits.
pub(super) const NAMESPACE_SETTINGS: Field = (
    "annotations",
    FieldMask::Fields(&[
        FieldMask::whole(MODE),
        FieldMask::whole(LOG),
        FieldMask::whole(DENY),
        FieldMask::whole(ACCOUNTING),
    ]),
);

/// The annotations of pods: those of limits, and one that static pods have.
pub(super) const POD_SETTINGS: Field = ("annotations", FieldMask::Fields(&POD_ANNOTATIONS));

const POD_ANNOTATIONS: [Field; ANNOTATIONS.len() + 1] = {
    let mut fields = [const { FieldMask::whole(MIRROR) }; ANNOTATIONS.len() + 1];
    let mut nth = 0;
    while nth < ANNOTATIONS.len() {
        fields[nth].0 = ANNOTATIONS[nth];
        nth += 1;
    }
    fields
};
