//! Local rules: what the operator of this node says of single pods, before every policy, and of traffic that nothing speaks of
//! (docs/semantics.md 16).
//!
//! ```text
//!   API  -->  state (in memory)  -->  file (state directory)  -->  the writer
//!                   ^ expiry, by the wall clock
//! ```
//!
//! The file is written before a change is in force. A file that cannot be read keeps policyd from starting, as that of the
//! local policies does: what is in force stays in force, and new pods wait in their startup state. "No rules" would open what they
//! deny.

mod file;
mod rule;
mod state;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use podgate_contract::api::{Defaults, LocalRule, NewRule};
use podgate_policy::convert::FieldError;
use podgate_policy::model::{LocalDefaults, LocalRules, ObjectKey};
use tokio::sync::Notify;

use crate::sources::local::Was;
use rule::Rule;
use state::{PodEntry, State};

/// The file's name in the state directory.
const FILE: &str = "local-rules.json";

/// How late a rule may end after the wall clock was set forward: sleeping follows another clock.
const LOOK_AGAIN: Duration = Duration::from_secs(10);

/// Something that the engine is to be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LocalUpdate {
    /// All that is said of a pod now. Empty: nothing any more.
    Pod(LocalRules),
    /// The modes of the node now.
    Node(LocalDefaults),
}

/// Why local rules were not read or changed.
#[derive(Debug, thiserror::Error)]
pub enum LocalRulesError {
    /// What was asked for is wrong.
    #[error("change rules of {pod}: {field}")]
    Invalid {
        /// The pod.
        pod: ObjectKey,
        /// The field that is wrong.
        field: FieldError,
    },
    /// The state file cannot be read.
    #[error(
        "read local rules {path}: {reason}; mend the file, or remove it to start without local rules"
    )]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The state file cannot be written; nothing has changed.
    #[error("write local rules {path}: {source}")]
    Unwritable {
        /// The file.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
}

/// All that is said of one pod.
#[derive(Clone, Debug)]
pub struct Said {
    /// The pod.
    pub pod: ObjectKey,
    /// Its rules, in the order of evaluation, without what was counted of them.
    pub rules: Vec<LocalRule>,
    /// Its modes.
    pub defaults: Defaults,
}

/// The local rules of this node, in memory and on disk.
pub struct LocalRuleBook {
    path: PathBuf,
    inner: Mutex<Inner>,
    /// There may be a rule that ends earlier than all before.
    changed: Notify,
}

struct Inner {
    state: State,
    sink: Box<dyn FnMut(LocalUpdate) + Send>,
}

impl std::fmt::Debug for LocalRuleBook {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LocalRuleBook").field("path", &self.path).finish_non_exhaustive()
    }
}

impl LocalRuleBook {
    /// Reads the state file and tells `sink` all that is in it, without rules whose lifetime is over by now.
    pub fn open(
        state_dir: &Path,
        now: SystemTime,
        mut sink: impl FnMut(LocalUpdate) + Send + 'static,
    ) -> Result<Self, LocalRulesError> {
        let path = state_dir.join(FILE);
        let mut state = file::read(&path)
            .map_err(|reason| LocalRulesError::Unreadable { path: path.clone(), reason })?;
        note(&state.expire(now));
        sink(LocalUpdate::Node(state.node.compiled()));
        state.pods.keys().for_each(|pod| sink(LocalUpdate::Pod(state.compiled(pod))));
        let inner = Mutex::new(Inner { state, sink: Box::new(sink) });
        Ok(Self { path, inner, changed: Notify::new() })
    }

    /// Adds a rule to a pod, whether the pod is here or not. The same rule again keeps its number and gets the new comment and
    /// lifetime.
    pub fn add(
        &self,
        pod: &ObjectKey,
        rule: NewRule,
        now: SystemTime,
    ) -> Result<(LocalRule, Was), LocalRulesError> {
        let (id, was) = self.change(pod, |state| {
            rule::read_pod(pod)?;
            state.add(pod, rule, now)
        })?;
        let added = self.of(pod).rules.into_iter().find(|rule| rule.id == id);
        // another request may have removed it meanwhile
        let gone = || FieldError::new("pod", format!("rule {id} was removed meanwhile"));
        let added =
            added.ok_or_else(|| LocalRulesError::Invalid { pod: pod.clone(), field: gone() })?;
        Ok((added, was))
    }

    /// Removes a rule of a pod, or all of them. Returns the numbers of those that are gone; none is no error.
    pub fn remove(&self, pod: &ObjectKey, id: Option<u32>) -> Result<Vec<u32>, LocalRulesError> {
        self.change(pod, |state| Ok(state.remove(pod, id)))
    }

    /// Sets the modes of a pod, those that are given. Returns all.
    pub fn set_defaults(
        &self,
        pod: &ObjectKey,
        change: Defaults,
    ) -> Result<Defaults, LocalRulesError> {
        self.change(pod, |state| {
            rule::read_pod(pod)?;
            state.set_defaults(pod, change)
        })?;
        Ok(self.of(pod).defaults)
    }

    /// Sets the modes of the node, those that are given. Returns all.
    pub fn set_node_defaults(&self, change: Defaults) -> Result<Defaults, LocalRulesError> {
        let mut inner = self.lock();
        let mut state = inner.state.clone();
        state.set_node_defaults(change);
        self.write(&state)?;
        let node = state.node;
        inner.state = state;
        (inner.sink)(LocalUpdate::Node(node.compiled()));
        Ok(node.api())
    }

    /// The modes of the node.
    pub fn node_defaults(&self) -> Defaults {
        self.lock().state.node.api()
    }

    /// What is said of a pod.
    pub fn of(&self, pod: &ObjectKey) -> Said {
        let inner = self.lock();
        said(pod, &inner.state.pods.get(pod).cloned().unwrap_or_default())
    }

    /// What is said of each pod of which something is.
    pub fn all(&self) -> Vec<Said> {
        self.lock().state.pods.iter().map(|(pod, entry)| said(pod, entry)).collect()
    }

    /// Ends rules when their lifetime is over. Runs until it is dropped.
    pub async fn end_in_time(&self) {
        loop {
            let next = self.lock().state.next_end();
            let left = next.map(|at| at.duration_since(SystemTime::now()).unwrap_or_default());
            match left {
                None => self.changed.notified().await,
                Some(Duration::ZERO) => self.expire(SystemTime::now()),
                Some(left) => {
                    tokio::select! {
                        () = tokio::time::sleep(left.min(LOOK_AGAIN)) => {}
                        () = self.changed.notified() => {}
                    }
                }
            }
        }
    }

    /// Ends the rules whose lifetime is over, in memory whatever becomes of the file: at the next start they are over, too.
    fn expire(&self, now: SystemTime) {
        let mut inner = self.lock();
        let expired = inner.state.expire(now);
        for pod in expired.keys() {
            let update = LocalUpdate::Pod(inner.state.compiled(pod));
            (inner.sink)(update);
        }
        note(&expired);
        if let Err(error) = self.write(&inner.state) {
            tracing::warn!(%error, "rules whose lifetime is over are still in the file");
        }
    }

    /// Changes what is said of a pod: on disk, then in memory, then in force.
    fn change<T>(
        &self,
        pod: &ObjectKey,
        change: impl FnOnce(&mut State) -> Result<T, FieldError>,
    ) -> Result<T, LocalRulesError> {
        let mut inner = self.lock();
        let mut state = inner.state.clone();
        let done = change(&mut state)
            .map_err(|field| LocalRulesError::Invalid { pod: pod.clone(), field })?;
        self.write(&state)?;
        let update = LocalUpdate::Pod(state.compiled(pod));
        inner.state = state;
        (inner.sink)(update);
        self.changed.notify_one();
        Ok(done)
    }

    fn write(&self, state: &State) -> Result<(), LocalRulesError> {
        file::write(&self.path, state)
            .map_err(|source| LocalRulesError::Unwritable { path: self.path.clone(), source })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // the state is replaced in one step, so a panic elsewhere leaves nothing half done
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn note(expired: &std::collections::BTreeMap<ObjectKey, Vec<u32>>) {
    for (pod, rules) in expired {
        tracing::info!(%pod, ?rules, "local rules ended: their lifetime is over");
    }
}

fn said(pod: &ObjectKey, entry: &PodEntry) -> Said {
    let rule = |rule: &Rule| LocalRule {
        id: rule.id(),
        spec: rule.spec.clone(),
        comment: rule.comment.clone(),
        expires: rule.expires,
        new_flows: 0,
    };
    Said {
        pod: pod.clone(),
        rules: entry.rules.iter().map(rule).collect(),
        defaults: entry.defaults.api(),
    }
}

#[cfg(test)]
mod tests;
