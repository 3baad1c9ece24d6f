//! The state of the watches of one API server.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use podgate_policy::object::Kind;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use super::feed::Rejected;
use super::observed::{ObservedMap, ObservedPolicies};
use super::policy_uids::{PolicyUids, UidMap};

/// How many rejected objects of a kind the status names.
const MAX_NAMED: usize = 20;

/// Filled by the watches, read by status, metrics and reports.
#[derive(Debug)]
pub struct Health {
    name: String,
    kinds: Mutex<BTreeMap<Kind, Watch>>,
    uids: PolicyUids,
    observed: ObservedPolicies,
    /// Ends the waits of all watches.
    wake: Notify,
    /// Held while problems are published.
    publishing: Mutex<()>,
}

/// The watch of one kind.
#[derive(Clone, Debug)]
pub struct Watch {
    /// The version in which the kind was last listed, its first one before that.
    pub version: &'static str,
    /// Whether the API server answers.
    pub connection: Connection,
    /// When it last sent anything, a bookmark included.
    pub last_response: Option<Instant>,
    /// Lists that were begun: one at the start, and one whenever a watch could not go on where it was.
    pub lists: u64,
    /// Requests and watches that failed.
    pub errors: u64,
    /// Objects that cannot be converted.
    pub rejected: Vec<Rejected>,
}

/// Whether the API server answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Connection {
    /// No answer yet.
    Waiting,
    /// It answers.
    Up,
    /// It answers that it does not have the kind: no object of it exists.
    Absent,
    /// It answers that the kind may not be read: what was read before that stays in force.
    Forbidden {
        /// Its answer.
        error: String,
    },
    /// It does not answer: what was read stays in force.
    Lost {
        /// When the first request failed.
        since: Instant,
        /// The last error.
        error: String,
    },
}

impl Health {
    /// Before the first request. `name` is the source's, as on the command line.
    pub fn new(name: String) -> Self {
        let watch = |kind: Kind| Watch {
            version: kind.api().version,
            connection: Connection::Waiting,
            last_response: None,
            lists: 0,
            errors: 0,
            rejected: Vec::new(),
        };
        let kinds = Kind::ALL.iter().map(|kind| (*kind, watch(*kind))).collect();
        Self {
            name,
            kinds: Mutex::new(kinds),
            uids: PolicyUids::default(),
            observed: ObservedPolicies::default(),
            wake: Notify::new(),
            publishing: Mutex::default(),
        }
    }

    /// The uids of the policies that could be converted.
    pub fn policy_uids(&self) -> Arc<UidMap> {
        self.uids.all()
    }

    pub(super) fn uids(&self) -> PolicyUids {
        self.uids.clone()
    }

    /// What the server has of each cluster policy beside its spec.
    pub fn observed(&self) -> Arc<ObservedMap> {
        self.observed.all()
    }

    pub(super) fn observed_policies(&self) -> ObservedPolicies {
        self.observed.clone()
    }

    /// The source's name, as on the command line.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Every watch.
    pub fn watches(&self) -> BTreeMap<Kind, Watch> {
        self.lock().clone()
    }

    /// Whether the server has answered a request for pods, and does not any more.
    pub fn is_away(&self) -> bool {
        let away = |watch: &Watch| {
            watch.last_response.is_some() && matches!(watch.connection, Connection::Lost { .. })
        };
        self.lock().get(&Kind::Pod).is_some_and(away)
    }

    /// Ends the backoff of all watches: a new pod waits for its object.
    pub fn wake(&self) {
        self.wake.notify_waiters();
    }

    /// Resolves at the next [`Health::wake`] after this call.
    pub(super) fn woken(&self) -> Notified<'_> {
        self.wake.notified()
    }

    /// Publishes what cannot be read. Serialized over all watches, so that an older state is never published after a newer
    /// one.
    pub(super) fn publish_problems(&self, publish: impl FnOnce(Vec<String>)) {
        let _one = self.publishing.lock().unwrap_or_else(PoisonError::into_inner);
        publish(self.problems());
    }

    /// What cannot be read, as text.
    fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        for (kind, watch) in self.lock().iter() {
            let plural = kind.names().plural;
            match &watch.connection {
                Connection::Lost { error, .. } => problems
                    .push(format!("watch {plural}: {error}; what was read before stays in force")),
                Connection::Forbidden { error } => problems.push(format!(
                    "list {plural}: {error}; none of them are known but what was read before; the ClusterRole of this \
                     release permits it"
                )),
                Connection::Waiting | Connection::Up | Connection::Absent => {}
            }
            problems.extend(watch.rejected.iter().take(MAX_NAMED).map(ToString::to_string));
            if let Some(more) = watch.rejected.len().checked_sub(MAX_NAMED + 1) {
                problems.push(format!("read {} more {plural}: see the log", more + 1));
            }
        }
        problems
    }

    /// A kind was listed in this version.
    pub(super) fn served(&self, kind: Kind, version: &'static str) {
        self.change(kind, |watch| watch.version = version);
    }

    pub(super) fn listing(&self, kind: Kind) {
        self.change(kind, |watch| watch.lists += 1);
    }

    /// The API server answered. True if it did not before.
    pub(super) fn responded(&self, kind: Kind) -> bool {
        let was = self.change(kind, |watch| {
            watch.last_response = Some(Instant::now());
            std::mem::replace(&mut watch.connection, Connection::Up)
        });
        match was {
            Some(Connection::Lost { since, .. }) => {
                let seconds = since.elapsed().as_secs();
                tracing::info!(
                    source = self.name,
                    seconds,
                    "watching {} again",
                    kind.names().plural
                );
                true
            }
            Some(Connection::Absent | Connection::Forbidden { .. }) => {
                tracing::info!(
                    source = self.name,
                    "the API server has {} now",
                    kind.names().plural
                );
                true
            }
            Some(Connection::Waiting) => true,
            Some(Connection::Up) | None => false,
        }
    }

    /// The API server answered that it does not have a kind, or does not permit it. True if it said something else before.
    pub(super) fn unavailable(&self, kind: Kind, connection: Connection) -> bool {
        let was = self.change(kind, |watch| {
            watch.last_response = Some(Instant::now());
            std::mem::replace(&mut watch.connection, connection.clone())
        });
        if was.as_ref() == Some(&connection) {
            return false;
        }
        let (source, plural) = (self.name.as_str(), kind.names().plural);
        match connection {
            Connection::Forbidden { error } => tracing::warn!(
                source,
                error,
                "may not list {plural}, asking again; the ClusterRole of this release permits it"
            ),
            _ => tracing::info!(source, "the API server does not have {plural}, asking again"),
        }
        true
    }

    /// A request failed. True if the error is another one than before.
    pub(super) fn failed(&self, kind: Kind, error: String) -> bool {
        let was = self.change(kind, |watch| {
            watch.errors += 1;
            let since = match &watch.connection {
                Connection::Lost { since, .. } => *since,
                _ => Instant::now(),
            };
            std::mem::replace(
                &mut watch.connection,
                Connection::Lost { since, error: error.clone() },
            )
        });
        let source = self.name.as_str();
        match was {
            Some(Connection::Lost { error: before, .. }) if before == error => {
                tracing::debug!(source, error, "cannot watch {}", kind.names().plural);
                false
            }
            _ => {
                tracing::warn!(
                    source,
                    error,
                    "cannot watch {}, trying again; what was read before stays in force",
                    kind.names().plural
                );
                true
            }
        }
    }

    /// Sets the rejected objects of a kind. True if they have changed.
    pub(super) fn set_rejected(&self, kind: Kind, rejected: Vec<Rejected>) -> bool {
        let changed = |watch: &mut Watch| {
            std::mem::replace(&mut watch.rejected, rejected.clone()) != rejected
        };
        self.change(kind, changed).unwrap_or_default()
    }

    fn change<T>(&self, kind: Kind, change: impl FnOnce(&mut Watch) -> T) -> Option<T> {
        self.lock().get_mut(&kind).map(change)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Kind, Watch>> {
        // every change is one assignment
        self.kinds.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_last_published_problems_are_the_current_ones() {
        let health = Health::new("kubernetes".into());
        let published = Mutex::new(Vec::new());
        let publish = |problems| *published.lock().unwrap() = problems;
        let (done, is_done) = mpsc::channel();
        health.failed(Kind::Pod, "list: refused".into());
        thread::scope(|scope| {
            health.publish_problems(|problems| {
                assert_eq!(problems.len(), 1);
                scope.spawn(|| {
                    health.responded(Kind::Pod);
                    health.publish_problems(publish);
                    done.send(()).unwrap();
                });
                // another watch has news after this one has collected the problems and before it publishes them
                let _ = is_done.recv_timeout(Duration::from_millis(300));
                publish(problems);
            });
        });
        assert_eq!(*published.lock().unwrap(), [""; 0]);
    }
}
