//! The `Accepted` condition of ClusterNetworkPolicies: whether this release of podgate understands all of a policy.
//!
//! That follows from the policy alone, so every node would write the same, and one condition is enough. What differs from
//! node to node (whether it is in force there, which version stays if it cannot be read) is said by Events. The nodes need
//! not agree on who writes: each waits for a random time, and writes only if its watch has not shown it the condition by
//! then.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, ApiResource, DynamicObject, Patch, PatchParams};
use kube::{Client, Error};
use podgate_bpf::error::chain;
use podgate_policy::index::{Index, Problem, Sort};
use podgate_policy::model::ClusterPolicy;
use podgate_policy::object::{Kind, ObjectId, Resource};
use serde_json::{Value, json};
use tokio::time::{Instant, timeout};

use super::publish::truncate;
use crate::snapshot::NodeState;
use crate::sources::kubernetes::{ACCEPTED, Condition, Observed, ObservedMap, Rejected};

/// The owner of the condition.
const FIELD_MANAGER: &str = "podgate";
/// How long to wait before a condition is written, at least: the writer has to take the policy first.
const MIN_DELAY: Duration = Duration::from_secs(2);
/// And how much longer at most; spread over the nodes.
const SPREAD: Duration = Duration::from_secs(20);
/// When a request that failed is tried again; spread over the nodes.
const RETRY: Duration = Duration::from_secs(60);
/// How many conditions are written in one look.
const MAX_AT_ONCE: usize = 5;
/// How long the API server may take for one request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest message, bytes.
const MAX_MESSAGE: usize = 4000;

/// What the condition should say.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Wanted {
    status: &'static str,
    reason: &'static str,
    message: String,
    /// The generation that it is about.
    generation: i64,
}

/// Writes conditions.
pub(super) struct Accepting {
    client: Client,
    spread: Duration,
    policies: BTreeMap<ObjectId, Progress>,
}

/// How far this node is with the condition of a policy.
struct Progress {
    wanted: Wanted,
    /// When to write it; `None` once that was done or refused: what others make of it then is not undone.
    due: Option<Instant>,
}

impl Accepting {
    pub(super) fn new(client: Client) -> Self {
        Self { client, spread: SPREAD, policies: BTreeMap::new() }
    }

    /// Looks at the policies of the first API server, and writes what is due.
    pub(super) async fn look(&mut self, shared: &NodeState) {
        let Some(server) = shared.servers().first().cloned() else { return };
        let observed = server.observed();
        if observed.is_empty() {
            return self.policies.clear();
        }
        let Some(watch) = server.watches().remove(&Kind::ClusterPolicy) else { return };
        let wanted = wanted(&observed, &shared.index(), &watch.rejected);
        self.write(watch.version, &observed, wanted).await;
    }

    async fn write(
        &mut self,
        version: &'static str,
        observed: &ObservedMap,
        wanted: BTreeMap<ObjectId, Wanted>,
    ) {
        self.policies.retain(|id, _| wanted.contains_key(id));
        let now = Instant::now();
        let mut due = Vec::new();
        for (id, wanted) in wanted {
            let Some(present) = observed.get(&id) else { continue };
            let is_written = present.accepted.as_ref().is_some_and(|accepted| wanted.is(accepted));
            let wait = MIN_DELAY + self.spread.mul_f64(fastrand::f64());
            let new = |wanted| Progress { wanted, due: Some(now + wait) };
            let progress = self.policies.entry(id.clone()).or_insert_with(|| new(wanted.clone()));
            if progress.wanted != wanted {
                *progress = new(wanted);
            }
            if is_written {
                progress.due = None;
            }
            if progress.due.is_some_and(|at| at <= now) {
                due.push(id);
            }
        }
        for id in due.into_iter().take(MAX_AT_ONCE) {
            let Some(progress) = self.policies.get_mut(&id) else { continue };
            let Some(present) = observed.get(&id) else { continue };
            progress.due = match patch(&self.client, version, &id, present, &progress.wanted).await
            {
                Outcome::Done => None,
                Outcome::Later => Some(Instant::now() + RETRY.mul_f64(0.5 + fastrand::f64())),
            };
        }
    }
}

enum Outcome {
    /// It is written, or the server refuses it.
    Done,
    /// No answer.
    Later,
}

async fn patch(
    client: &Client,
    version: &'static str,
    id: &ObjectId,
    present: &Observed,
    wanted: &Wanted,
) -> Outcome {
    let ObjectId::ClusterPolicy(policy) = id else { return Outcome::Done };
    let conditions: Api<DynamicObject> = Api::all_with(client.clone(), &resource(version));
    let params = PatchParams::apply(FIELD_MANAGER).force();
    let body = Patch::Apply(wanted.body(version, &policy.name, present));
    match timeout(REQUEST_TIMEOUT, conditions.patch_status(&policy.name, &params, &body)).await {
        Ok(Ok(_)) => Outcome::Done,
        // it is gone, or it is another one, or RBAC does not allow it
        Ok(Err(Error::Api(status))) if status.code / 100 == 4 && status.code != 429 => {
            tracing::debug!(%status.message, %id, "the API server refuses a condition");
            Outcome::Done
        }
        Ok(Err(error)) => {
            tracing::debug!(error = chain(&error), %id, "cannot write a condition, trying again");
            Outcome::Later
        }
        Err(_) => Outcome::Later,
    }
}

fn resource(version: &'static str) -> ApiResource {
    let api = ClusterPolicy::API.in_version(version);
    let (group, version) = api.version.split_once('/').unwrap_or_default();
    ApiResource {
        group: group.to_owned(),
        version: version.to_owned(),
        api_version: api.version.to_owned(),
        kind: api.kind.to_owned(),
        plural: api.resource.to_owned(),
    }
}

/// What each condition should say. Policies that the index does not have yet are left out.
fn wanted(
    observed: &ObservedMap,
    index: &Index,
    rejected: &[Rejected],
) -> BTreeMap<ObjectId, Wanted> {
    let problems = index.problems();
    let of = |(id, present): (&ObjectId, &Observed)| {
        let say = |status, reason, message: &str| {
            let message = truncate(message, MAX_MESSAGE).to_owned();
            Some((id.clone(), Wanted { status, reason, message, generation: present.generation }))
        };
        if let Some(rejected) = rejected.iter().find(|rejected| rejected.id.as_ref() == Some(id)) {
            return say("False", "NotUnderstood", &rejected.field.to_string());
        }
        let ObjectId::ClusterPolicy(policy) = id else { return None };
        index.cluster_policy(policy)?;
        // their order is no matter of one policy
        let about = |problem: &&Problem| problem.of == *id && problem.sort == Sort::NotUnderstood;
        let texts: Vec<&str> =
            problems.iter().filter(about).map(|problem| problem.text.as_str()).collect();
        match texts.is_empty() {
            true => say("True", "Understood", "podgate understands every rule"),
            false => say("False", "PartlyUnderstood", &texts.join("\n")),
        }
    };
    observed.iter().filter_map(of).collect()
}

impl Wanted {
    /// Whether a condition says this.
    fn is(&self, condition: &Condition) -> bool {
        (self.status, self.reason, self.message.as_str(), self.generation)
            == (
                condition.status.as_str(),
                condition.reason.as_str(),
                condition.message.as_str(),
                condition.generation,
            )
    }

    /// The body of a server-side apply: the condition alone. With the uid, so that it is not written to a later policy of
    /// that name.
    fn body(&self, version: &str, name: &str, present: &Observed) -> Value {
        let Self { status, reason, message, generation } = self;
        let since = match &present.accepted {
            Some(accepted) if accepted.status == *status => json!(accepted.since),
            _ => json!(Time(Timestamp::now())),
        };
        let condition = json!({
            "type": ACCEPTED, "status": status, "reason": reason, "message": message,
            "observedGeneration": generation, "lastTransitionTime": since,
        });
        json!({
            "apiVersion": version,
            "kind": ClusterPolicy::API.kind,
            "metadata": {"name": name, "uid": &*present.uid},
            "status": {"conditions": [condition]},
        })
    }
}

#[cfg(test)]
#[path = "accepted_tests.rs"]
mod tests;
