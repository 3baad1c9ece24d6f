//! What a manifest held: its objects, its mistakes, and what they cost.

use std::fmt;
use std::path::{Path, PathBuf};

use podgate_policy::model::Policy;
use podgate_policy::object::Object;

use crate::interner::Interner;
use crate::unenforced::Unenforced;

/// The name of directories as a source, in [`podgate_policy::model::PolicyId`].
pub const DIR_SOURCE: &str = "dir";

/// How many mistakes of one file are listed one by one.
const MAX_ERRORS: usize = 50;

/// A place in a manifest that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestError {
    /// The file.
    pub file: PathBuf,
    /// Which document of it, from 1; `None` if the file itself cannot be read.
    pub document: Option<usize>,
    /// A line of the file, from 1: of the mistake where known, else of the document's start.
    pub line: Option<usize>,
    /// What object it is, as far as known: "policy default/web".
    pub object: Option<String>,
    /// The field, as in `spec.ingress[0].ports[1].endPort`; empty for a mistake of syntax.
    pub field: String,
    /// What is wrong.
    pub cause: String,
    /// What is missing because of it.
    pub lost: Lost,
}

/// What is missing because of a mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lost {
    /// An object that is no policy, or nothing.
    Object,
    /// A policy that selects pods of one namespace. Its substitute is in [`Manifest::closed`].
    Policy,
    /// A cluster policy. Nothing stands in for it: a substitute that denies could cut off every pod of the cluster, and one
    /// that accepts would open what other policies deny.
    ClusterPolicy,
    /// Policies of any namespace, perhaps.
    Any,
}

impl fmt::Display for ManifestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "read {}", self.file.display())?;
        if let Some(document) = self.document {
            write!(f, ", document {document}")?;
        }
        if let Some(line) = self.line {
            write!(f, ", line {line}")?;
        }
        if let Some(object) = &self.object {
            write!(f, ", {object}")?;
        }
        if !self.field.is_empty() {
            write!(f, ", {}", self.field)?;
        }
        write!(f, ": {}", self.cause)
    }
}

impl std::error::Error for ManifestError {}

/// What a file holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Manifest {
    /// In the order of the file.
    pub objects: Vec<Object>,
    /// Every mistake, not only the first; of very many the first ones. With any, `objects` lacks something.
    pub errors: Vec<ManifestError>,
    /// Substitutes for policies that cannot be read: each isolates at least the pods that its policy does, and allows
    /// nothing.
    pub closed: Vec<Policy>,
    /// Whether policies of any namespace may be missing.
    pub incomplete: bool,
    /// What was passed over because it is no object of Kubernetes: one line for each file.
    pub skipped: Vec<String>,
    /// Objects of kinds that are not enforced.
    pub unenforced: Unenforced,
    /// Mistakes that are not listed.
    omitted: usize,
    /// What the objects have in common: a hundred thousand pods would each hold their own until the file is read.
    interner: Interner,
}

/// How much a [`Manifest`] held at some moment.
#[derive(Debug)]
pub(crate) struct Mark {
    objects: usize,
    errors: usize,
    closed: usize,
    incomplete: bool,
    skipped: usize,
    unenforced: Unenforced,
    omitted: usize,
}

impl Manifest {
    pub(crate) fn mark(&self) -> Mark {
        Mark {
            objects: self.objects.len(),
            errors: self.errors.len(),
            closed: self.closed.len(),
            incomplete: self.incomplete,
            skipped: self.skipped.len(),
            unenforced: self.unenforced.clone(),
            omitted: self.omitted,
        }
    }

    /// Takes back what was added since.
    pub(crate) fn undo(&mut self, to: Mark) {
        self.objects.truncate(to.objects);
        self.errors.truncate(to.errors);
        self.closed.truncate(to.closed);
        self.skipped.truncate(to.skipped);
        self.unenforced = to.unenforced;
        (self.incomplete, self.omitted) = (to.incomplete, to.omitted);
    }

    pub(crate) fn push(&mut self, mut object: Object) {
        self.interner.share(&mut object);
        self.objects.push(object);
    }

    pub(crate) fn complain(&mut self, error: ManifestError) {
        match self.errors.len() {
            MAX_ERRORS.. => self.omitted += 1,
            _ => self.errors.push(error),
        }
    }

    /// A document that is no object. Once for each file: a chart's values are one document, a log may be a thousand.
    pub(crate) fn skip(&mut self, file: &Path, document: usize, line: usize) {
        if self.skipped.is_empty() {
            self.skipped.push(format!(
                "{}, document {document}, line {line}: no object of Kubernetes",
                file.display()
            ));
        }
    }

    /// The mistakes that are not listed come last, in one line.
    pub(crate) fn finish(mut self, file: &Path) -> Self {
        if self.omitted > 0 {
            self.errors.push(ManifestError {
                cause: format!("{} more mistakes", self.omitted),
                ..ManifestError::of_file(file, Lost::Object, String::new())
            });
        }
        self
    }

    /// A file that cannot be read at all: it may hold anything.
    pub fn unreadable(file: &Path, cause: String) -> Self {
        let errors = vec![ManifestError::of_file(file, Lost::Any, cause)];
        Self { errors, incomplete: true, ..Self::default() }
    }
}

impl ManifestError {
    /// A file of which something could not be read: what that costs, and why.
    pub fn of_file(file: &Path, lost: Lost, cause: String) -> Self {
        Self {
            file: file.to_owned(),
            document: None,
            line: None,
            object: None,
            field: String::new(),
            cause,
            lost,
        }
    }
}
