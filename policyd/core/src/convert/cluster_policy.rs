//! ClusterNetworkPolicies: what the API's schema would reject is an error, what a later version of the API may mean something
//! by fails closed, rule by rule (docs/semantics.md 15).
//!
//! Rules are read from JSON values and not from types, because a type would pass over the fields that it does not know,
//! and a peer without its only field would match everything or nothing as the reader likes.

mod peer;
mod port;

use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;
use serde_json::Value;

use super::settings::settings;
use super::value::{self, Fields, Unread, items, text};
use super::{FieldError, name};
use crate::model::{
    Action, ClusterPolicy, ClusterPolicyId, Direction, Peers, Ports, RankedRule, Subject, Tier,
};
use crate::selector::Selector;

/// The most items that any list of the API may have.
const MAX_ITEMS: usize = 25;

/// The largest priority, which is evaluated last.
const MAX_PRIORITY: i64 = 1000;

/// The longest name of a rule, in bytes.
const MAX_RULE_NAME: usize = 100;

/// `policy.networking.k8s.io/v1alpha2` ClusterNetworkPolicy.
#[derive(Clone, Debug, Deserialize)]
pub struct ApiClusterPolicy {
    /// Its name and annotations.
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// Required.
    pub spec: Option<ApiSpec>,
}

/// The `spec` of [`ApiClusterPolicy`].
#[derive(Clone, Debug, Deserialize)]
pub struct ApiSpec {
    /// Required: `Admin` or `Baseline`.
    pub tier: Option<String>,
    /// Required: 0 to 1000.
    pub priority: Option<i64>,
    /// Required: an object with one of `namespaces` and `pods`.
    pub subject: Option<Value>,
    /// At most 25 rules.
    pub ingress: Option<Vec<Value>>,
    /// At most 25 rules.
    pub egress: Option<Vec<Value>>,
}

/// Reads a cluster policy that the source of this name gave.
pub fn cluster_policy(
    source: impl Into<Arc<str>>,
    object: &ApiClusterPolicy,
) -> Result<ClusterPolicy, FieldError> {
    let source = source.into();
    let name = name(&object.metadata)?.into();
    let settings = settings(&source, &object.metadata)?;
    let spec = required(object.spec.as_ref(), "spec")?;
    let priority = priority(*required(spec.priority.as_ref(), "spec.priority")?)?;
    let subject = required(spec.subject.as_ref(), "spec.subject")?;
    // a policy that says whom it governs in a way that is not known governs nobody that could be named here
    let subject = subject_of(subject).map_err(Unread::into_field)?;
    let mut problems = Vec::new();
    let ingress = rules(spec.ingress.as_deref(), Direction::Ingress, &mut problems)?;
    let egress = rules(spec.egress.as_deref(), Direction::Egress, &mut problems)?;
    let id = ClusterPolicyId { name, source };
    let policy = |tier, ingress, egress, problems| ClusterPolicy {
        id,
        tier,
        priority,
        subject,
        ingress,
        egress,
        settings,
        problems,
    };
    Ok(match required(spec.tier.as_deref(), "spec.tier")? {
        "Admin" => policy(Tier::Admin, ingress, egress, problems),
        "Baseline" => policy(Tier::Baseline, ingress, egress, problems),
        // without rules, and not an error, so that an earlier version does not stay in force in a tier that it has left
        other => {
            let cause = format!("must be Admin or Baseline, is {other:?}");
            let problem = format!("spec.tier: {cause}; the policy is left out");
            policy(Tier::Baseline, Vec::new(), Vec::new(), vec![problem])
        }
    })
}

fn required<'a, T: ?Sized>(field: Option<&'a T>, path: &str) -> Result<&'a T, FieldError> {
    field.ok_or_else(|| FieldError::new(path, "must be given"))
}

fn priority(given: i64) -> Result<u16, FieldError> {
    match u16::try_from(given) {
        Ok(priority) if given <= MAX_PRIORITY => Ok(priority),
        _ => {
            let cause = format!("must be from 0 to {MAX_PRIORITY}, is {given}");
            Err(FieldError::new("spec.priority", cause))
        }
    }
}

fn subject_of(value: &Value) -> Result<Subject, Unread> {
    let path = "spec.subject";
    let (namespaces, pods) = match Fields::of(value, path)?.exactly_one(&["namespaces", "pods"])? {
        ("namespaces", selector) => {
            (value::selector(selector, &format!("{path}.namespaces"))?, Selector::everything())
        }
        (_, selectors) => value::pods(selectors, &format!("{path}.pods"))?,
    };
    Ok(Subject { namespaces, pods })
}

fn rules(
    given: Option<&[Value]>,
    direction: Direction,
    problems: &mut Vec<String>,
) -> Result<Vec<RankedRule>, FieldError> {
    let (path, peers) = match direction {
        Direction::Ingress => ("spec.ingress", "from"),
        Direction::Egress => ("spec.egress", "to"),
    };
    let given = given.unwrap_or_default();
    if given.len() > MAX_ITEMS {
        let cause = format!("must have at most {MAX_ITEMS} items, has {}", given.len());
        return Err(FieldError::new(path, cause));
    }
    let given = given.iter().enumerate();
    given.map(|(nth, rule)| read_rule(rule, &format!("{path}[{nth}]"), peers, problems)).collect()
}

/// A rule under reading: what failed, so that the rule as a whole does.
struct Failed<'a> {
    problems: &'a mut Vec<String>,
    /// What holds in the place of what failed.
    instead: &'static str,
    closed: bool,
}

impl Failed<'_> {
    /// Takes a value, or closes the rule.
    fn read<T>(&mut self, read: Result<T, Unread>) -> Result<Option<T>, FieldError> {
        match read {
            Ok(value) => Ok(Some(value)),
            Err(Unread::Invalid(error)) => Err(error),
            Err(Unread::Unknown(error)) => {
                self.problems.push(format!("{error}; {}", self.instead));
                self.closed = true;
                Ok(None)
            }
        }
    }
}

fn read_rule(
    rule: &Value,
    path: &str,
    peers_field: &'static str,
    problems: &mut Vec<String>,
) -> Result<RankedRule, FieldError> {
    let fields = Fields::of(rule, path).map_err(Unread::into_field)?;
    let action = read_action(&fields, path, problems)?;
    let instead = match action {
        Action::Accept => "the rule fails closed: it matches nothing",
        Action::Deny | Action::Pass => "the rule fails closed: it denies everything",
    };
    let mut failed = Failed { problems, instead, closed: false };
    let known = ["name", "action", peers_field, "protocols"];
    failed.read(fields.no_other_than(&known))?;
    let name =
        fields.get("name").map(|name| rule_name(name, &format!("{path}.name"))).transpose()?;
    let peers = read_peers(&fields, path, peers_field, action, &mut failed)?;
    let ports = read_ports(&fields, path, &mut failed)?;
    let (action, peers, ports) = match (failed.closed, action) {
        (false, action) => (action, peers, ports),
        (true, Action::Accept) => (action, Peers::of([]), ports),
        (true, Action::Deny | Action::Pass) => (Action::Deny, Peers::Any, Ports::Any),
    };
    Ok(RankedRule { name: name.flatten(), action, peers, ports })
}

/// An action that is not known denies: whatever it is, it is not known to let anything pass.
fn read_action(
    fields: &Fields<'_>,
    path: &str,
    problems: &mut Vec<String>,
) -> Result<Action, FieldError> {
    let path = format!("{path}.action");
    let action = text(required(fields.get("action"), &path)?, &path)?;
    Ok(match action {
        "Accept" => Action::Accept,
        "Deny" => Action::Deny,
        "Pass" => Action::Pass,
        other => {
            let cause = format!("must be Accept, Deny or Pass, is {other:?}");
            problems.push(format!("{path}: {cause}; the rule denies what it matches"));
            Action::Deny
        }
    })
}

fn rule_name(value: &Value, path: &str) -> Result<Option<Arc<str>>, FieldError> {
    let name = text(value, path)?;
    if name.len() > MAX_RULE_NAME {
        let cause = format!("must have at most {MAX_RULE_NAME} bytes, has {}", name.len());
        return Err(FieldError::new(path, cause));
    }
    Ok((!name.is_empty()).then(|| name.into()))
}

fn read_peers(
    fields: &Fields<'_>,
    path: &str,
    field: &'static str,
    action: Action,
    failed: &mut Failed<'_>,
) -> Result<Peers, FieldError> {
    let path = format!("{path}.{field}");
    let given = match fields.get(field) {
        Some(given) => items(given, &path, MAX_ITEMS)?,
        // a later version of the API may have another way to say it
        None if failed.closed => return Ok(Peers::of([])),
        None => return Err(FieldError::new(path, "must be given")),
    };
    let mut peers = Vec::new();
    let mut has_names = false;
    for (nth, item) in given.iter().enumerate() {
        let path = format!("{path}[{nth}]");
        match failed.read(peer::read(item, &path, field, action))? {
            Some(peer::Read::Peers(of)) => peers.extend(of),
            Some(peer::Read::Names) => {
                let cause = "names are not resolved yet; the rule matches nothing";
                failed.problems.push(format!("{path}.domainNames: {cause}"));
                has_names = true;
            }
            None => {}
        }
    }
    Ok(if has_names { Peers::of([]) } else { Peers::of(peers) })
}

fn read_ports(
    fields: &Fields<'_>,
    path: &str,
    failed: &mut Failed<'_>,
) -> Result<Ports, FieldError> {
    let Some(given) = fields.get("protocols") else { return Ok(Ports::Any) };
    let path = format!("{path}.protocols");
    let mut ports = Vec::new();
    for (nth, item) in items(given, &path, MAX_ITEMS)?.iter().enumerate() {
        let read = port::read(item, &format!("{path}[{nth}]"));
        ports.extend(failed.read(read)?.into_iter().flatten());
    }
    Ok(Ports::Of(ports))
}

#[cfg(test)]
mod tests;
