//! `podgatectl`, also `kubectl podgate`: the operator's command.
//!
//! ```text
//!  offline:  manifests --cluster--> compiled tables --reach--> explain, matrix, check
//!  online:   /run/podgate/api.sock --client--> status, endpoints, rules, explain, observe, top, apply, ...
//!  lab:      manifests --lab--> real namespaces and packets, compared with the same tables
//! ```
//!
//! Exit status: 0 done, 1 an expectation failed (or, with `explain --exit-code`, the answer is not "allow"),
//! 2 the command itself failed.

mod cli;
mod cluster;
mod explain;
mod lab;
mod limits;
mod matrix;
mod offline;
mod online;
mod output;
mod probes;
mod rules;
mod target;

use std::process::ExitCode;

pub use cli::main;
pub(crate) use cluster::{Cluster, LocalPod};
pub(crate) use matrix::Matrix;
pub(crate) use offline::{answer_all, report};
pub(crate) use output::{Format, Mark, Printer};
pub(crate) use probes::{Probe, read as read_probes};
pub(crate) use target::PortSpec;

/// What came of a command that did not fail itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Nothing else was expected.
    Expected,
    /// It worked, and the answer is not the expected one.
    Unexpected,
}

impl From<Outcome> for ExitCode {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Expected => Self::SUCCESS,
            Outcome::Unexpected => Self::from(1),
        }
    }
}

/// A failed command: one line for people, "verb object: cause". Lists of mistakes have a line each below.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Failure(pub String);

impl From<String> for Failure {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self(format!("write to standard output: {error}"))
    }
}
