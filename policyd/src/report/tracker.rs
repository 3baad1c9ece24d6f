//! Compares the node's status with what was reported, and decides which Events to send.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant, SystemTime};

use podgate_bpf::abi::Mode;
use podgate_manifests::unenforced::{self, UnenforcedKind};
use podgate_policy::index::{Problem, Sort};
use podgate_policy::model::PolicyId;
use podgate_policy::object::ObjectId;

use super::node_status::{NodeStatus, PodStatus, State, about};
use super::notice::{About, Dedupe, Notice, PodRef, Severity};

/// When something is reported.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// A problem that lasts shorter is not reported: a pod is gated before its object is known, and a policy may be
    /// corrected at once.
    pub grace: Duration,
    /// What every node would report is delayed by this time in addition, a different one on each node.
    pub spread: Duration,
    /// A problem that lasts is reported again after this time: the API server keeps events for an hour.
    pub repeat_after: Duration,
    /// The number of pods with their policies in force is reported again after this time at the earliest, then after twice
    /// that, and so on up to `repeat_after`: pods come and go.
    pub summary_interval: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            grace: Duration::from_secs(10),
            spread: Duration::from_secs(20).mul_f64(fastrand::f64()),
            repeat_after: Duration::from_secs(30 * 60),
            summary_interval: Duration::from_secs(15),
        }
    }
}

/// What was reported.
#[derive(Debug)]
pub(super) struct Tracker {
    settings: Settings,
    summary: Option<Summary>,
    mode: Mode,
    /// When the mode was last reported.
    mode_reported: Option<Instant>,
    /// The isolation that is known to be in force, of each pod.
    pods: BTreeMap<PodRef, InForce>,
    /// The present problems.
    problems: BTreeMap<ProblemKey, Lasting>,
}

/// The last report of how many pods have their policies in force.
#[derive(Debug)]
struct Summary {
    note: String,
    reported: Instant,
    /// The earliest time after it for the next one.
    wait: Duration,
}

/// What was reported of a pod's isolation.
#[derive(Clone, Debug, PartialEq, Eq)]
enum InForce {
    /// It is in force, by these policies for ingress and for egress.
    By(Vec<PolicyId>, Vec<PolicyId>),
    /// It was put in force and reported by an earlier policyd, with policies that are not known.
    Recovered,
    /// It was reported as not in force.
    Lacking,
}

/// What a problem is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum ProblemKey {
    Pod(PodRef),
    Policy(PolicyId),
    Refused(ObjectId, String),
    Flaw(ObjectId, String),
    Ungated(PodRef),
    Kind(UnenforcedKind),
    Classes,
    Manifests,
    Pods,
    AnyUngated,
}

#[derive(Debug)]
struct Lasting {
    since: Instant,
    last_reported: Option<Instant>,
}

impl Tracker {
    pub(super) fn new(settings: Settings) -> Self {
        Self {
            settings,
            summary: None,
            mode: Mode::Enforce,
            mode_reported: None,
            pods: BTreeMap::new(),
            problems: BTreeMap::new(),
        }
    }

    /// The notices for the present status.
    pub(super) fn update(&mut self, now: Instant, status: NodeStatus) -> Vec<Notice> {
        let mut news = Vec::new();
        self.mode(now, &status, &mut news);
        if !status.ready {
            for (pod, pod_status) in &status.pods {
                if matches!(pod_status.state, State::Earlier(_)) {
                    self.pods.entry(pod.clone()).or_insert(InForce::Recovered);
                }
            }
            return news;
        }
        self.summarize(now, &status, &mut news);
        let problems = problems(&status);
        self.resolved(&status, &problems, &mut news);
        self.raised(now, problems, &mut news);
        self.in_force(&status, &mut news);
        news
    }

    /// Reports how many pods have their policies in force, once it is settled and when it changes.
    fn summarize(&mut self, now: Instant, status: &NodeStatus, news: &mut Vec<Notice>) {
        if !status.settled {
            return;
        }
        let in_force = status.pods.values().filter(|pod| pod.state == State::InForce).count();
        let all = status.pods.len() + status.ungated.len();
        let have = |count: usize| if count == 1 { "pod has its" } else { "pods have their" };
        let mut note = match all - in_force {
            0 => format!("{in_force} {} policies in force", have(in_force)),
            _ => format!("{in_force} of {all} pods have their policies in force"),
        };
        if !status.ungated.is_empty() {
            note += &format!(", without a gate: {}", some(status.ungated.keys()));
        }
        let Settings { repeat_after, summary_interval, .. } = self.settings;
        let wait = match &self.summary {
            None => summary_interval,
            Some(last) => {
                let passed = now.duration_since(last.reported);
                if last.note == note || passed < last.wait {
                    return;
                }
                if passed >= repeat_after {
                    summary_interval
                } else {
                    (last.wait * 2).min(repeat_after)
                }
            }
        };
        self.summary = Some(Summary { note: note.clone(), reported: now, wait });
        news.push(notice(About::Node, Severity::Normal, "PolicyInForce", note));
    }

    /// Reports a mode in which denials have no effect, and its end.
    fn mode(&mut self, now: Instant, status: &NodeStatus, news: &mut Vec<Notice>) {
        let is_old = |reported| now.duration_since(reported) >= self.settings.repeat_after;
        let has_expired = status.mode != Mode::Enforce && self.mode_reported.is_some_and(is_old);
        if status.mode == self.mode && !has_expired {
            return;
        }
        (self.mode, self.mode_reported) = (status.mode, Some(now));
        let (severity, reason, note) = match status.mode {
            Mode::Enforce => (
                Severity::Normal,
                "Enforcing",
                "policies are enforced again: what they deny is dropped",
            ),
            Mode::Audit => (
                Severity::Warning,
                "NotEnforcing",
                "enforcement is on audit: what policies deny passes and is reported",
            ),
            Mode::Off => {
                (Severity::Warning, "NotEnforcing", "enforcement is off: what policies deny passes")
            }
        };
        news.push(notice(About::Node, severity, reason, note.to_owned()));
    }

    /// Reports that problems are resolved. For pods the policies that are in force now are reported instead.
    fn resolved(
        &mut self,
        status: &NodeStatus,
        problems: &BTreeMap<ProblemKey, Notice>,
        news: &mut Vec<Notice>,
    ) {
        let resolved: Vec<ProblemKey> =
            self.problems.keys().filter(|key| !problems.contains_key(key)).cloned().collect();
        for key in resolved {
            let problem = self.problems.remove(&key);
            if problem.is_none_or(|problem| problem.last_reported.is_none()) {
                continue;
            }
            let note = match &key {
                // reported by `in_force`
                ProblemKey::Pod(pod) => {
                    self.pods.insert(pod.clone(), InForce::Lacking);
                    continue;
                }
                ProblemKey::Policy(_) => "in force again on every pod of this node that it selects",
                ProblemKey::Refused(..) | ProblemKey::Flaw(..) | ProblemKey::Kind(_) => continue,
                ProblemKey::Ungated(_) => "the pod has a gate",
                ProblemKey::AnyUngated => "every pod has a gate",
                ProblemKey::Classes => "changes are put in force again",
                ProblemKey::Manifests => "every manifest can be read again",
                ProblemKey::Pods => "every pod has its policies in force again",
            };
            let about = match key {
                ProblemKey::Policy(id) => match status.uids.get(&ObjectId::Policy(id.clone())) {
                    Some(uid) => About::Policy { key: id.key, uid: uid.to_string() },
                    // the policy was deleted
                    None => continue,
                },
                ProblemKey::Ungated(pod) if status.pods.contains_key(&pod) => About::Pod(pod),
                ProblemKey::Ungated(_) => continue,
                _ => About::Node,
            };
            news.push(notice(about, Severity::Normal, "PolicyInForce", note.to_owned()));
        }
    }

    /// Reports problems that have lasted longer than the grace time, and repeats them.
    fn raised(
        &mut self,
        now: Instant,
        problems: BTreeMap<ProblemKey, Notice>,
        news: &mut Vec<Notice>,
    ) {
        for (key, mut notice) in problems {
            let grace = match &key {
                ProblemKey::Refused(..) | ProblemKey::Flaw(..) => {
                    self.settings.grace + self.settings.spread
                }
                _ => self.settings.grace,
            };
            let problem =
                self.problems.entry(key).or_insert(Lasting { since: now, last_reported: None });
            let due = match problem.last_reported {
                None => now.duration_since(problem.since) >= grace,
                Some(reported) => now.duration_since(reported) >= self.settings.repeat_after,
            };
            if due {
                problem.last_reported = Some(now);
                if let Dedupe::Cluster(number) = &mut notice.dedupe {
                    *number = round(self.settings.repeat_after);
                }
                news.push(notice);
            }
        }
    }

    /// Reports pods whose isolation is in force and was not, or has changed.
    fn in_force(&mut self, status: &NodeStatus, news: &mut Vec<Notice>) {
        self.pods.retain(|pod, _| status.pods.contains_key(pod));
        for (pod, pod_status) in &status.pods {
            if pod_status.state != State::InForce {
                continue;
            }
            let isolation = InForce::By(pod_status.ingress.clone(), pod_status.egress.clone());
            let before = self.pods.insert(pod.clone(), isolation.clone());
            let isolated = !pod_status.ingress.is_empty() || !pod_status.egress.is_empty();
            let (reason, note) = match before {
                Some(InForce::Recovered) => continue,
                Some(before) if before == isolation => continue,
                None if !isolated => continue,
                Some(InForce::By(..)) if !isolated => (
                    "PolicyLifted",
                    "no NetworkPolicy selects the pod any more: all traffic is allowed".to_owned(),
                ),
                Some(InForce::By(..) | InForce::Lacking) | None => {
                    ("PolicyInForce", describe(pod_status))
                }
            };
            news.push(notice(About::Pod(pod.clone()), Severity::Normal, reason, note));
        }
    }
}

/// Which policies are enforced.
const ENFORCED: &str =
    "podgate enforces NetworkPolicy and ClusterNetworkPolicy of policy.networking.k8s.io/v1alpha2";

/// All present problems, with the notice of each.
fn problems(status: &NodeStatus) -> BTreeMap<ProblemKey, Notice> {
    let mut problems = BTreeMap::new();
    let mut warn = |key, about, reason, note| {
        problems.insert(key, notice(about, Severity::Warning, reason, note));
    };
    let mut by_policy: BTreeMap<&PolicyId, (BTreeSet<&PodRef>, &str)> = BTreeMap::new();
    let mut lacking: Vec<(&PodRef, &str)> = Vec::new();
    for (pod, pod_status) in &status.pods {
        let Some(reason) = pod_status.state.reason() else { continue };
        lacking.push((pod, reason));
        for policy in pod_status.policies() {
            by_policy.entry(policy).or_insert((BTreeSet::new(), reason)).0.insert(pod);
        }
        let meets = match pod_status.state {
            State::Earlier(_) => "its last complete policy stays in force",
            _ => "it stays in its startup state",
        };
        let note = format!("cannot put the pod's NetworkPolicies in force: {reason}; {meets}");
        warn(ProblemKey::Pod(pod.clone()), About::Pod(pod.clone()), "PolicyNotInForce", note);
    }
    for (policy, (pods, reason)) in by_policy {
        let Some(uid) = status.uid_of(policy) else { continue };
        let about = About::Policy { key: policy.key.clone(), uid };
        let note = format!("not in force on {}: {reason}", some(pods.into_iter()));
        warn(ProblemKey::Policy(policy.clone()), about, "PolicyNotInForce", note);
    }
    if let Some((_, reason)) = lacking.first() {
        let note =
            format!("{} lack their policies: {reason}", some(lacking.iter().map(|(pod, _)| *pod)));
        warn(ProblemKey::Pods, About::Node, "PolicyNotInForce", note);
    }
    for (pod, reason) in &status.ungated {
        let note = format!("the pod has no gate, so no NetworkPolicy is enforced for it: {reason}");
        warn(ProblemKey::Ungated(pod.clone()), About::Pod(pod.clone()), "NotEnforcing", note);
    }
    if let Some((_, reason)) = status.ungated.first_key_value() {
        let note = format!("without a gate: {}: {reason}", some(status.ungated.keys()));
        warn(ProblemKey::AnyUngated, About::Node, "NotEnforcing", note);
    }
    for (kind, count) in &status.unenforced {
        let objects = unenforced::describe(kind.name(), *count);
        let note = format!("not enforced: {objects}; {ENFORCED}");
        warn(ProblemKey::Kind(*kind), About::Node, "NotEnforcing", note);
    }
    if let Some(reason) = &status.stopped {
        let note = format!(
            "cannot change the classes of addresses: {reason}; what was in force stays, trying again"
        );
        warn(ProblemKey::Classes, About::Node, "PolicyNotInForce", note);
    }
    if let Some(first) = status.unread.first() {
        let note = match status.unread.len() - 1 {
            0 => first.clone(),
            more => format!("{first}; and {more} more, see `podgatectl status`"),
        };
        warn(ProblemKey::Manifests, About::Node, "ManifestNotUnderstood", note);
    }
    let mut warn_once = |key, about, reason, note| {
        let dedupe = Dedupe::Cluster(0);
        problems.insert(key, Notice { dedupe, ..notice(about, Severity::Warning, reason, note) });
    };
    for refused in &status.refused {
        let Some(id) = &refused.id else { continue };
        let Some(about) = about(id, refused.uid.to_string()) else { continue };
        let note = refused.to_string();
        warn_once(
            ProblemKey::Refused(id.clone(), note.clone()),
            about,
            "PolicyNotUnderstood",
            note,
        );
    }
    for Problem { of, sort, text } in &status.problems {
        let uid = status.uids.get(of).map_or("", |uid| uid).to_owned();
        let about = match of {
            // a directory's namespace has no problem: it would be an error there
            ObjectId::Namespace(name) => Some(About::Namespace(name.to_string())),
            ObjectId::Pod(key) => {
                let here = status.pods.keys().find(|pod| pod.key == *key);
                here.map(|pod| About::Pod(pod.clone()))
            }
            of => about(of, uid),
        };
        let Some(about) = about else { continue };
        let reason = match sort {
            Sort::NotUnderstood => "PolicyNotUnderstood",
            Sort::EqualPriority => "EqualPriority",
        };
        warn_once(ProblemKey::Flaw(of.clone(), text.clone()), about, reason, text.clone());
    }
    problems
}

/// "isolated for ingress by shop/web, shop/all; egress is not isolated".
fn describe(pod_status: &PodStatus) -> String {
    let direction = |name: &str, policies: &[PolicyId]| match policies {
        [] => format!("{name} is not isolated"),
        policies => {
            let names: Vec<_> = policies.iter().map(|policy| policy.key.name.to_string()).collect();
            format!("{name} is isolated by {}", names.join(", "))
        }
    };
    format!(
        "in force: {}; {}",
        direction("ingress", &pod_status.ingress),
        direction("egress", &pod_status.egress)
    )
}

/// "shop/a, shop/b and 7 more".
fn some<'a>(pods: impl ExactSizeIterator<Item = &'a PodRef>) -> String {
    const NAMED: usize = 3;
    let more = pods.len().saturating_sub(NAMED);
    let names: Vec<_> = pods.take(NAMED).map(|pod| pod.key.to_string()).collect();
    match more {
        0 => names.join(", "),
        more => format!("{} and {more} more", names.join(", ")),
    }
}

fn notice(about: About, severity: Severity, reason: &'static str, note: String) -> Notice {
    Notice { about, severity, reason, note, dedupe: Dedupe::No }
}

/// The number of the present interval of this length since 1970, for [`Dedupe`]: the same on every node and across restarts.
pub(super) fn round(interval: Duration) -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    now.as_secs() / interval.as_secs().max(1)
}

#[cfg(test)]
#[path = "tracker_tests.rs"]
mod tests;
