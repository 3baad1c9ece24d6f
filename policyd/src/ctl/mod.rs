//! `podgatectl`, also `kubectl podgate`: the operator's command.
//!
//! ```text
//!  offline:  manifests --world--> compiled tables --judge--> explain, matrix, check
//!  online:   /run/podgate/api.sock --client--> status, endpoints, rules, explain, observe, top, apply, ...
//!  lab:      manifests --crate::lab--> real namespaces and packets, compared with the same tables
//! ```
//!
//! Exit status: 0 done, 1 an expectation failed (or, with `explain --exit-code`, the answer is "deny"),
//! 2 the command itself failed.

mod cli;
mod end;
mod judge;
mod matrix;
mod offline;
mod online;
mod output;
mod probes;
mod through;
mod world;

use std::process::ExitCode;

pub use cli::{Cli, main};
pub use end::{End, Wire};
pub use judge::{Answer, Judged, Spot, Way, sum_up};
pub use matrix::{Matrix, Question};
pub(crate) use offline::{judge_all, report};
pub use output::{Colors, Format, Mark, Printer};
pub use probes::{Probe, ProbeError, name_of, read as read_probes};
pub use world::{Party, Seat, World};

/// How a command ended that did not fail itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Everything as wished.
    Fine,
    /// It worked, and the answer is not the expected one.
    Unexpected,
}

impl From<Ended> for ExitCode {
    fn from(ended: Ended) -> Self {
        match ended {
            Ended::Fine => Self::SUCCESS,
            Ended::Unexpected => Self::from(1),
        }
    }
}

/// A failed command: one line for people, "verb object: cause". Lists of mistakes have a line each below.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Failure(pub String);

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
