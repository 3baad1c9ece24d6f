//! What is news, from one look to the next.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant, SystemTime};

use podgate_bpf::abi::Mode;
use podgate_policy::model::PolicyId;

use super::notice::{About, Notice, PodRef, Severity};
use super::standing::{PodStanding, Standing, State, refused_key};
use crate::sources::unenforced::{self, UnenforcedKind};

/// When something is told.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// What is wrong for less than this is not told: a pod is gated before its object is known, and a
    /// policy may be mended at once.
    pub grace: Duration,
    /// What every node says is told this much later, another time on each node.
    pub spread: Duration,
    /// What is still wrong is told again after this: events are forgotten after an hour.
    pub again: Duration,
    /// How many pods have their policies in force is corrected after this at the earliest, then after twice that, and so
    /// on up to `again`: pods come and go.
    pub correct: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            grace: Duration::from_secs(10),
            spread: Duration::from_secs(20).mul_f64(fastrand::f64()),
            again: Duration::from_secs(30 * 60),
            correct: Duration::from_secs(15),
        }
    }
}

/// What was told, and how things stood at the last look.
#[derive(Debug)]
pub(super) struct Tracker {
    settings: Settings,
    summary: Option<Summary>,
    mode: Mode,
    /// When the mode was told, if it ever was.
    mode_told: Option<Instant>,
    /// Of each pod the isolation that is known to be in force.
    pods: BTreeMap<PodRef, InForce>,
    /// What is wrong.
    wrong: BTreeMap<Key, Wrong>,
}

/// How many pods have their policies in force, as last told.
#[derive(Debug)]
struct Summary {
    note: String,
    told: Instant,
    /// The next one is told so much later at the earliest.
    wait: Duration,
}

/// The isolation of a pod that was told to be in force.
#[derive(Clone, Debug, PartialEq, Eq)]
enum InForce {
    /// By these policies, for ingress and for egress.
    By(Vec<PolicyId>, Vec<PolicyId>),
    /// An earlier policyd left it; what it was, is not known, and it has been told.
    Adopted,
    /// It was told not to be.
    Lacking,
}

/// One thing that can be wrong.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Pod(PodRef),
    Policy(PolicyId),
    Refused(PolicyId, String),
    Ungated(PodRef),
    Kind(UnenforcedKind),
    Classes,
    Manifests,
    Pods,
    AnyUngated,
}

#[derive(Debug)]
struct Wrong {
    since: Instant,
    told: Option<Instant>,
}

impl Tracker {
    pub(super) fn new(settings: Settings) -> Self {
        Self {
            settings,
            summary: None,
            mode: Mode::Enforce,
            mode_told: None,
            pods: BTreeMap::new(),
            wrong: BTreeMap::new(),
        }
    }

    /// What is news at this look.
    pub(super) fn news(&mut self, now: Instant, standing: Standing) -> Vec<Notice> {
        let mut news = Vec::new();
        self.mode(now, &standing, &mut news);
        if !standing.ready {
            for (pod, stands) in &standing.pods {
                if matches!(stands.state, State::Earlier(_)) {
                    self.pods.entry(pod.clone()).or_insert(InForce::Adopted);
                }
            }
            return news;
        }
        self.summarize(now, &standing, &mut news);
        let wrongs = wrongs(&standing);
        self.mended(&standing, &wrongs, &mut news);
        self.broken(now, wrongs, &mut news);
        self.in_force(&standing, &mut news);
        news
    }

    /// How many pods have their policies in force: once that is settled, and when it is no longer so.
    fn summarize(&mut self, now: Instant, standing: &Standing, news: &mut Vec<Notice>) {
        if !standing.settled {
            return;
        }
        let in_force = standing.pods.values().filter(|pod| pod.state == State::InForce).count();
        let all = standing.pods.len() + standing.ungated.len();
        let have = |count: usize| if count == 1 { "pod has its" } else { "pods have their" };
        let mut note = match all - in_force {
            0 => format!("{in_force} {} policies in force", have(in_force)),
            _ => format!("{in_force} of {all} pods have their policies in force"),
        };
        if !standing.ungated.is_empty() {
            note += &format!(", without a gate: {}", some(standing.ungated.keys()));
        }
        let Settings { again, correct, .. } = self.settings;
        let wait = match &self.summary {
            None => correct,
            Some(last) => {
                let passed = now.duration_since(last.told);
                if last.note == note || passed < last.wait {
                    return;
                }
                if passed >= again { correct } else { (last.wait * 2).min(again) }
            }
        };
        self.summary = Some(Summary { note: note.clone(), told: now, wait });
        news.push(notice(About::Node, Severity::Normal, "PolicyInForce", note));
    }

    /// Whether denials mean anything.
    fn mode(&mut self, now: Instant, standing: &Standing, news: &mut Vec<Notice>) {
        let old = |told| now.duration_since(told) >= self.settings.again;
        let forgotten = standing.mode != Mode::Enforce && self.mode_told.is_some_and(old);
        if standing.mode == self.mode && !forgotten {
            return;
        }
        (self.mode, self.mode_told) = (standing.mode, Some(now));
        let (severity, reason, note) = match standing.mode {
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

    /// What was told to be wrong and is not any more. Of pods this is told with what is in force instead.
    fn mended(
        &mut self,
        standing: &Standing,
        wrongs: &BTreeMap<Key, Notice>,
        news: &mut Vec<Notice>,
    ) {
        let mended: Vec<Key> =
            self.wrong.keys().filter(|key| !wrongs.contains_key(key)).cloned().collect();
        for key in mended {
            let told = self.wrong.remove(&key).is_some_and(|wrong| wrong.told.is_some());
            if !told {
                continue;
            }
            let note = match &key {
                // what is in force instead is told below
                Key::Pod(pod) => {
                    self.pods.insert(pod.clone(), InForce::Lacking);
                    continue;
                }
                Key::Policy(_) => "in force again on every pod of this node that it selects",
                Key::Refused(..) | Key::Kind(_) => continue,
                Key::Ungated(_) => "a gate stands at the pod",
                Key::AnyUngated => "a gate stands at every pod",
                Key::Classes => "changes are put in force again",
                Key::Manifests => "every manifest can be read again",
                Key::Pods => "every pod has its policies in force again",
            };
            let about = match key {
                Key::Policy(id) => match standing.uids.get(&id.key) {
                    Some(uid) => About::Policy { key: id.key, uid: uid.to_string() },
                    // it is gone, and with it what was wrong
                    None => continue,
                },
                Key::Ungated(pod) if standing.pods.contains_key(&pod) => About::Pod(pod),
                Key::Ungated(_) => continue,
                _ => About::Node,
            };
            news.push(notice(about, Severity::Normal, "PolicyInForce", note.to_owned()));
        }
    }

    fn broken(&mut self, now: Instant, wrongs: BTreeMap<Key, Notice>, news: &mut Vec<Notice>) {
        for (key, mut notice) in wrongs {
            let grace = match &key {
                Key::Refused(..) => self.settings.grace + self.settings.spread,
                _ => self.settings.grace,
            };
            let wrong = self.wrong.entry(key).or_insert(Wrong { since: now, told: None });
            let due = match wrong.told {
                None => now.duration_since(wrong.since) >= grace,
                Some(told) => now.duration_since(told) >= self.settings.again,
            };
            if due {
                wrong.told = Some(now);
                notice.shared = notice.shared.map(|_| round(self.settings.again));
                news.push(notice);
            }
        }
    }

    /// Pods whose isolation is in force and was not, or was another.
    fn in_force(&mut self, standing: &Standing, news: &mut Vec<Notice>) {
        self.pods.retain(|pod, _| standing.pods.contains_key(pod));
        for (pod, stands) in &standing.pods {
            if stands.state != State::InForce {
                continue;
            }
            let isolation = InForce::By(stands.ingress.clone(), stands.egress.clone());
            let before = self.pods.insert(pod.clone(), isolation.clone());
            let isolated = !stands.ingress.is_empty() || !stands.egress.is_empty();
            let (reason, note) = match before {
                Some(InForce::Adopted) => continue,
                Some(before) if before == isolation => continue,
                None if !isolated => continue,
                Some(InForce::By(..)) if !isolated => (
                    "PolicyLifted",
                    "no NetworkPolicy selects the pod any more: all traffic is allowed".to_owned(),
                ),
                Some(InForce::By(..) | InForce::Lacking) | None => {
                    ("PolicyInForce", describe(stands))
                }
            };
            news.push(notice(About::Pod(pod.clone()), Severity::Normal, reason, note));
        }
    }
}

/// Everything that is wrong, and what there is to say of it.
fn wrongs(standing: &Standing) -> BTreeMap<Key, Notice> {
    let mut wrongs = BTreeMap::new();
    let mut warn = |key, about, reason, note| {
        wrongs.insert(key, notice(about, Severity::Warning, reason, note));
    };
    let mut by_policy: BTreeMap<&PolicyId, (BTreeSet<&PodRef>, &str)> = BTreeMap::new();
    let mut lacking: Vec<(&PodRef, &str)> = Vec::new();
    for (pod, stands) in &standing.pods {
        let Some(reason) = stands.state.reason() else { continue };
        lacking.push((pod, reason));
        for policy in stands.policies() {
            by_policy.entry(policy).or_insert((BTreeSet::new(), reason)).0.insert(pod);
        }
        let meets = match stands.state {
            State::Earlier(_) => "its last complete policy stays in force",
            _ => "it stays in its startup state",
        };
        let note = format!("cannot put the pod's NetworkPolicies in force: {reason}; {meets}");
        warn(Key::Pod(pod.clone()), About::Pod(pod.clone()), "PolicyNotInForce", note);
    }
    for (policy, (pods, reason)) in by_policy {
        let Some(uid) = standing.uid_of(policy) else { continue };
        let about = About::Policy { key: policy.key.clone(), uid };
        let note = format!("not in force on {}: {reason}", some(pods.into_iter()));
        warn(Key::Policy(policy.clone()), about, "PolicyNotInForce", note);
    }
    if let Some((_, reason)) = lacking.first() {
        let note =
            format!("{} lack their policies: {reason}", some(lacking.iter().map(|(pod, _)| *pod)));
        warn(Key::Pods, About::Node, "PolicyNotInForce", note);
    }
    for (pod, reason) in &standing.ungated {
        let note = format!("no gate stands at the pod, so no NetworkPolicy holds for it: {reason}");
        warn(Key::Ungated(pod.clone()), About::Pod(pod.clone()), "NotEnforcing", note);
    }
    if let Some((_, reason)) = standing.ungated.first_key_value() {
        let note = format!("no gate stands at {}: {reason}", some(standing.ungated.keys()));
        warn(Key::AnyUngated, About::Node, "NotEnforcing", note);
    }
    for (kind, count) in &standing.unenforced {
        let objects = unenforced::describe(kind.name(), *count);
        let note = format!("not enforced: {objects}; podgate enforces NetworkPolicy only");
        warn(Key::Kind(*kind), About::Node, "NotEnforcing", note);
    }
    if let Some(reason) = &standing.stopped {
        let note = format!(
            "cannot change the classes of addresses: {reason}; what was in force stays, trying again"
        );
        warn(Key::Classes, About::Node, "PolicyNotInForce", note);
    }
    if let Some(first) = standing.unread.first() {
        let note = match standing.unread.len() - 1 {
            0 => first.clone(),
            more => format!("{first}; and {more} more, see `podgatectl status`"),
        };
        warn(Key::Manifests, About::Node, "ManifestNotUnderstood", note);
    }
    for refused in &standing.refused {
        let (Some(key), Some(crate::sources::ObjectId::Policy(id))) =
            (refused_key(refused), &refused.id)
        else {
            continue;
        };
        let about = About::Policy { key: key.clone(), uid: refused.uid.to_string() };
        let note = refused.to_string();
        let mut notice = notice(about, Severity::Warning, "PolicyNotUnderstood", note.clone());
        notice.shared = Some(0);
        wrongs.insert(Key::Refused(id.clone(), note), notice);
    }
    wrongs
}

/// "isolated for ingress by shop/web, shop/all; egress is not isolated".
fn describe(stands: &PodStanding) -> String {
    let direction = |name: &str, policies: &[PolicyId]| match policies {
        [] => format!("{name} is not isolated"),
        policies => {
            let names: Vec<_> = policies.iter().map(|policy| policy.key.name.to_string()).collect();
            format!("{name} is isolated by {}", names.join(", "))
        }
    };
    format!(
        "in force: {}; {}",
        direction("ingress", &stands.ingress),
        direction("egress", &stands.egress)
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
    Notice { about, severity, reason, note, shared: None }
}

/// The same number on every node for as long as something is not told again.
fn round(again: Duration) -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    now.as_secs() / again.as_secs().max(1)
}

#[cfg(test)]
#[path = "tracker_tests.rs"]
mod tests;
