//! How the watches of one API server stand.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use podgate_policy::model::ObjectKey;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use super::feed::Refused;
use crate::sources::{Kind, ObjectId};

/// Objects of a kind that a status names, of those that cannot be read.
const NAMED: usize = 20;

/// Filled by the watches, read by status, metrics and reports.
#[derive(Debug)]
pub struct Health {
    name: String,
    kinds: Mutex<BTreeMap<Kind, Watch>>,
    uids: Uids,
    /// Ends the waits of all watches.
    wake: Notify,
    /// Held while problems are told.
    telling: Mutex<()>,
}

/// The watch of one kind.
#[derive(Clone, Debug)]
pub struct Watch {
    /// Whether the API server answers.
    pub link: Link,
    /// When it last said anything, be it that nothing has changed.
    pub heard: Option<Instant>,
    /// Lists that were begun: one at the start, and one whenever a watch could not go on where it was.
    pub lists: u64,
    /// Requests and watches that failed.
    pub errors: u64,
    /// Objects that cannot be read.
    pub refused: Vec<Refused>,
}

/// Whether the API server answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Link {
    /// Not asked yet.
    Waiting,
    /// It does.
    Up,
    /// It does not: what was read stays in force.
    Lost {
        /// Since when.
        since: Instant,
        /// What happened last.
        error: String,
    },
}

impl Health {
    /// Nothing was asked yet. `name` is the source's, as on the command line.
    pub fn new(name: String) -> Self {
        let watch =
            Watch { link: Link::Waiting, heard: None, lists: 0, errors: 0, refused: Vec::new() };
        let kinds = Kind::ALL.iter().map(|kind| (*kind, watch.clone())).collect();
        Self {
            name,
            kinds: Mutex::new(kinds),
            uids: Uids::default(),
            wake: Notify::new(),
            telling: Mutex::default(),
        }
    }

    /// The uids of the policies that could be read.
    pub fn policy_uids(&self) -> Arc<UidMap> {
        self.uids.lock().clone()
    }

    pub(super) fn uids(&self) -> Uids {
        self.uids.clone()
    }

    /// The source's name, as on the command line.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Every watch.
    pub fn watches(&self) -> BTreeMap<Kind, Watch> {
        self.lock().clone()
    }

    /// Whether the server has answered for pods and does not any more.
    pub fn is_away(&self) -> bool {
        let away = |watch: &Watch| watch.heard.is_some() && matches!(watch.link, Link::Lost { .. });
        self.lock().get(&Kind::Pod).is_some_and(away)
    }

    /// Somebody needs to know what is new: whoever waits before asking again asks now.
    pub fn hurry(&self) {
        self.wake.notify_waiters();
    }

    /// Resolves when somebody hurries, from this call on.
    pub(super) fn hurried(&self) -> Notified<'_> {
        self.wake.notified()
    }

    /// Tells what cannot be read. One watch after the other: what was true before must not be told after what is
    /// true now, or it stays where it was told.
    pub(super) fn tell_problems(&self, tell: impl FnOnce(Vec<String>)) {
        let _one = self.telling.lock().unwrap_or_else(PoisonError::into_inner);
        tell(self.problems());
    }

    /// What cannot be read, in words.
    fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        for (kind, watch) in self.lock().iter() {
            if let Link::Lost { error, .. } = &watch.link {
                problems.push(format!(
                    "watch {}: {error}; what was read before stays in force",
                    kind.plural()
                ));
            }
            problems.extend(watch.refused.iter().take(NAMED).map(ToString::to_string));
            if let Some(more) = watch.refused.len().checked_sub(NAMED + 1) {
                problems.push(format!("read {} more {}: see the log", more + 1, kind.plural()));
            }
        }
        problems
    }

    pub(super) fn listing(&self, kind: Kind) {
        self.change(kind, |watch| watch.lists += 1);
    }

    /// The API server said something. True if that is news.
    pub(super) fn heard(&self, kind: Kind) -> bool {
        let was = self.change(kind, |watch| {
            watch.heard = Some(Instant::now());
            std::mem::replace(&mut watch.link, Link::Up)
        });
        match was {
            Some(Link::Lost { since, .. }) => {
                let seconds = since.elapsed().as_secs();
                tracing::info!(source = self.name, seconds, "watching {} again", kind.plural());
                true
            }
            Some(Link::Waiting) => true,
            Some(Link::Up) | None => false,
        }
    }

    /// It did not, or not what was asked for. True if that is news.
    pub(super) fn failed(&self, kind: Kind, error: String) -> bool {
        let was = self.change(kind, |watch| {
            watch.errors += 1;
            let since = match &watch.link {
                Link::Lost { since, .. } => *since,
                Link::Waiting | Link::Up => Instant::now(),
            };
            std::mem::replace(&mut watch.link, Link::Lost { since, error: error.clone() })
        });
        let source = self.name.as_str();
        match was {
            Some(Link::Lost { error: before, .. }) if before == error => {
                tracing::debug!(source, error, "cannot watch {}", kind.plural());
                false
            }
            _ => {
                tracing::warn!(
                    source,
                    error,
                    "cannot watch {}, trying again; what was read before stays in force",
                    kind.plural()
                );
                true
            }
        }
    }

    pub(super) fn refuse(&self, kind: Kind, refused: Vec<Refused>) -> bool {
        let changed =
            |watch: &mut Watch| std::mem::replace(&mut watch.refused, refused.clone()) != refused;
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

/// The uids of the policies of which a version was read; of other kinds nothing is kept.
#[derive(Clone, Debug, Default)]
pub(super) struct Uids(Arc<Mutex<Arc<UidMap>>>);

/// Uids of policies.
pub type UidMap = BTreeMap<ObjectKey, Arc<str>>;

impl Uids {
    pub(super) fn get(&self, id: &ObjectId) -> Option<Arc<str>> {
        let ObjectId::Policy(id) = id else { return None };
        self.lock().get(&id.key).cloned()
    }

    pub(super) fn set(&self, id: &ObjectId, uid: Arc<str>) {
        let ObjectId::Policy(id) = id else { return };
        Arc::make_mut(&mut self.lock()).insert(id.key.clone(), uid);
    }

    pub(super) fn remove(&self, id: &ObjectId) {
        let ObjectId::Policy(id) = id else { return };
        Arc::make_mut(&mut self.lock()).remove(&id.key);
    }

    /// Forgets all others.
    pub(super) fn keep(&self, ids: &BTreeSet<ObjectId>) {
        let keys: BTreeSet<&ObjectKey> = ids
            .iter()
            .filter_map(|id| match id {
                ObjectId::Policy(id) => Some(&id.key),
                _ => None,
            })
            .collect();
        Arc::make_mut(&mut self.lock()).retain(|key, _| keys.contains(key));
    }

    fn lock(&self) -> MutexGuard<'_, Arc<UidMap>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_is_told_last_is_what_is_so() {
        let health = Health::new("kubernetes".into());
        let told = Mutex::new(Vec::new());
        let tell = |problems| *told.lock().unwrap() = problems;
        let (done, is_done) = mpsc::channel();
        health.failed(Kind::Pod, "list: refused".into());
        thread::scope(|scope| {
            health.tell_problems(|problems| {
                assert_eq!(problems.len(), 1);
                scope.spawn(|| {
                    health.heard(Kind::Pod);
                    health.tell_problems(tell);
                    done.send(()).unwrap();
                });
                // another watch has news between what this one found and what it tells
                let _ = is_done.recv_timeout(Duration::from_millis(300));
                tell(problems);
            });
        });
        assert_eq!(*told.lock().unwrap(), [""; 0]);
    }
}
