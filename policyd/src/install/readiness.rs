//! Requests policyd's state over the plugin's socket and decides what `install` does with the entry.

use std::path::PathBuf;
use std::time::Duration;

use clap::ValueEnum;
use podgate_contract::client;
use podgate_contract::handshake::{Request, Response};

use super::reconcile::Edit;

/// How long a policyd may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

/// What becomes of new pods while policyd says that it cannot enforce on this node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum OnCannotEnforce {
    /// The entry is in the configuration, so that the plugin refuses each pod and names the cause, or holds it in its
    /// startup state where it can load the programs itself
    #[default]
    Refuse,
    /// The entry is not in the configuration: pods start without a gate, and no policy holds for them
    Allow,
}

/// Decides at each reconciliation what to do with the entry.
#[derive(Debug)]
pub(super) struct Readiness {
    socket: Option<PathBuf>,
    on_cannot_enforce: OnCannotEnforce,
    /// Whether policyd has been ready once. From then on the entry stays while policyd does not answer, and the plugin
    /// holds or refuses new pods (`onTimeout`).
    was_ready: bool,
}

impl Readiness {
    /// Without a socket policyd's state is not requested, and the entry is always added.
    pub(super) fn new(socket: Option<PathBuf>, on_cannot_enforce: OnCannotEnforce) -> Self {
        Self { socket, on_cannot_enforce, was_ready: false }
    }

    /// What to do with the entry now.
    pub(super) fn edit(&mut self) -> Edit {
        let Some(socket) = &self.socket else { return Edit::Add };
        match (client::send(socket, &Request::Status, ANSWER_TIMEOUT), self.on_cannot_enforce) {
            (Ok(Response::Ok), _) => {
                self.was_ready = true;
                Edit::Add
            }
            (Ok(Response::Error { message }), OnCannotEnforce::Refuse) => Edit::Refuse(message),
            (Ok(Response::Error { message }), OnCannotEnforce::Allow) => Edit::Remove(message),
            (Ok(Response::Pending { .. }) | Err(_), _) if self.was_ready => Edit::Add,
            (Ok(Response::Pending { .. }) | Err(_), _) => Edit::Wait,
        }
    }
}
