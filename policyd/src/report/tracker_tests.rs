use std::sync::Arc;

use podgate_policy::convert::FieldError;
use podgate_policy::model::{ClusterPolicyId, ObjectKey};
use podgate_policy::object::ObjectId;

use super::*;
use crate::sources::kubernetes::{Fallback, Rejected};

/// A clock and a tracker.
struct World {
    tracker: Tracker,
    now: Instant,
}

impl World {
    fn new() -> Self {
        let settings = Settings {
            grace: Duration::from_secs(10),
            spread: Duration::from_secs(7),
            repeat_after: Duration::from_secs(1800),
            // these tests are about other news
            summary_interval: Duration::from_secs(1_000_000),
        };
        Self { tracker: Tracker::new(settings), now: Instant::now() }
    }

    /// One that has been ready for a while, with nothing on it.
    fn ready() -> Self {
        let mut world = Self::new();
        assert_eq!(
            world.update(0, status([])),
            ["node Normal PolicyInForce: 0 pods have their policies in force"]
        );
        world
    }

    /// What is reported so many seconds later.
    fn update(&mut self, seconds: u64, status: NodeStatus) -> Vec<String> {
        self.now += Duration::from_secs(seconds);
        let tell = |notice: Notice| {
            let about = match &notice.about {
                About::Pod(pod) => format!("pod {} ({})", pod.key, pod.uid),
                About::Policy { key, uid } => format!("policy {key} ({uid})"),
                About::ClusterPolicy { name, uid } => format!("cluster policy {name} ({uid})"),
                About::PodTrafficPolicy { key, uid } => format!("traffic policy {key} ({uid})"),
                About::Namespace(name) => format!("namespace {name}"),
                About::Node => "node".to_owned(),
            };
            format!("{about} {:?} {}: {}", notice.severity, notice.reason, notice.note)
        };
        self.tracker.update(self.now, status).into_iter().map(tell).collect()
    }
}

fn status<const N: usize>(pods: [(&str, PodStatus); N]) -> NodeStatus {
    let pod = |name: &str| PodRef { key: ObjectKey::new("shop", name), uid: format!("uid-{name}") };
    NodeStatus {
        ready: true,
        settled: true,
        mode: Mode::Enforce,
        stopped: None,
        pods: pods.into_iter().map(|(name, status)| (pod(name), status)).collect(),
        ungated: BTreeMap::new(),
        unenforced: BTreeMap::new(),
        unread: vec![],
        refused: vec![],
        problems: vec![],
        uids: Arc::new([(ObjectId::Policy(policy("kubernetes", "p")), Arc::from("uid-p"))].into()),
    }
}

fn policy(source: &str, name: &str) -> PolicyId {
    PolicyId { source: source.into(), key: ObjectKey::new("shop", name) }
}

/// Isolated for ingress by these policies of the cluster.
fn by(policies: &[&str], state: State) -> PodStatus {
    let ingress = policies.iter().map(|name| policy("kubernetes", name)).collect();
    PodStatus { ingress, egress: vec![], state }
}

fn full() -> State {
    State::Earlier("the map is full".into())
}

#[test]
fn a_pod_hears_of_its_policies_once_and_of_every_change() {
    let mut world = World::ready();
    let reported = world
        .update(1, status([("a", by(&["p"], State::InForce)), ("b", by(&[], State::InForce))]));
    assert_eq!(
        reported,
        [
            "pod shop/a (uid-a) Normal PolicyInForce: in force: ingress is isolated by p; egress is not isolated"
        ]
    );
    assert!(world.update(1, status([("a", by(&["p"], State::InForce))])).is_empty());
    let mut both = by(&["p", "q"], State::InForce);
    both.egress = vec![policy("kubernetes", "p")];
    let reported = world.update(1, status([("a", both)]));
    assert_eq!(
        reported,
        [
            "pod shop/a (uid-a) Normal PolicyInForce: in force: ingress is isolated by p, q; egress is isolated by p"
        ]
    );
    let reported = world.update(1, status([("a", by(&[], State::InForce))]));
    assert_eq!(
        reported,
        [
            "pod shop/a (uid-a) Normal PolicyLifted: no NetworkPolicy selects the pod any more: all traffic is allowed"
        ]
    );
    assert!(world.update(1, status([("a", by(&[], State::InForce))])).is_empty());
}

#[test]
fn a_restart_tells_no_pod_what_it_knows() {
    let mut world = World::new();
    let unready = |state| NodeStatus { ready: false, ..status([("a", by(&["p"], state))]) };
    assert!(world.update(0, unready(State::Earlier("not read whole yet".into()))).is_empty());
    assert!(world.update(60, unready(State::Earlier("not read whole yet".into()))).is_empty());
    let now = || status([("a", by(&["p"], State::InForce)), ("new", by(&["p"], State::InForce))]);
    let reported = world.update(1, now());
    assert_eq!(reported.len(), 2, "{reported:?}");
    assert!(reported[0].starts_with("node "), "{reported:?}");
    assert!(reported[1].starts_with("pod shop/new "), "{reported:?}");
    assert!(world.update(1, now()).is_empty());
}

#[test]
fn what_is_short_is_not_told_and_what_lasts_is_told_again() {
    let mut world = World::ready();
    let pending = || status([("a", by(&[], State::Startup("pod shop/a is not known".into())))]);
    assert!(world.update(1, pending()).is_empty());
    assert!(world.update(9, pending()).is_empty());
    assert_eq!(
        world.update(1, status([("a", by(&["p"], State::InForce))])).len(),
        1,
        "only that it is in force"
    );

    assert!(world.update(1, pending()).is_empty());
    let reported = world.update(10, pending());
    assert_eq!(
        reported,
        [
            "pod shop/a (uid-a) Warning PolicyNotInForce: cannot put the pod's NetworkPolicies in force: pod \
             shop/a is not known; it stays in its startup state",
            "node Warning PolicyNotInForce: shop/a lack their policies: pod shop/a is not known",
        ]
    );
    assert!(world.update(1799, pending()).is_empty());
    assert_eq!(world.update(1, pending()).len(), 2, "events are forgotten after an hour");
    let reported = world.update(1, status([("a", by(&[], State::InForce))]));
    assert_eq!(
        reported,
        [
            "node Normal PolicyInForce: every pod has its policies in force again",
            "pod shop/a (uid-a) Normal PolicyInForce: in force: ingress is not isolated; egress is not isolated",
        ]
    );
}

#[test]
fn a_policy_that_cannot_be_programmed_says_where_and_why() {
    let mut world = World::ready();
    let stuck = || {
        let mut a = by(&["p"], full());
        a.ingress.push(policy("local", "mine"));
        status([
            ("a", a),
            ("b", by(&["p"], full())),
            ("c", by(&["p"], full())),
            ("d", by(&["p"], full())),
            ("e", by(&["p"], full())),
            ("f", by(&["p"], State::InForce)),
        ])
    };
    world.update(1, stuck());
    let reported = world.update(10, stuck());
    assert_eq!(reported.len(), 7, "five pods, one policy of the cluster, the node: {reported:#?}");
    assert!(
        reported[0].ends_with("the map is full; its last complete policy stays in force"),
        "{reported:#?}"
    );
    let of_policy = "policy shop/p (uid-p) Warning PolicyNotInForce: not in force on shop/a, shop/b, shop/c and 2 more: \
                     the map is full";
    assert!(reported.contains(&of_policy.to_owned()), "{reported:#?}");

    let reported = world.update(1, status([("a", by(&["p"], State::InForce))]));
    assert!(
        reported.contains(
            &"policy shop/p (uid-p) Normal PolicyInForce: in force again on every pod of this node that it selects"
                .to_owned()
        ),
        "{reported:#?}"
    );
    // one that is gone is not reported anything
    world.update(1, stuck());
    world.update(10, stuck());
    let gone = NodeStatus { uids: Arc::default(), ..status([]) };
    let reported = world.update(1, gone);
    assert_eq!(reported, ["node Normal PolicyInForce: every pod has its policies in force again"]);
}

#[test]
fn a_pod_without_a_gate_is_told_and_so_is_its_gate() {
    let mut world = World::ready();
    let pod = PodRef { key: ObjectKey::new("shop", "old"), uid: "uid-old".into() };
    let bare = || {
        let ungated = [(pod.clone(), "its interface is no veth".to_owned())].into();
        NodeStatus { ungated, ..status([]) }
    };
    assert!(world.update(1, bare()).is_empty());
    let reported = world.update(10, bare());
    assert_eq!(
        reported,
        [
            "pod shop/old (uid-old) Warning NotEnforcing: the pod has no gate, so no NetworkPolicy is enforced for \
             it: its interface is no veth",
            "node Warning NotEnforcing: without a gate: shop/old: its interface is no veth",
        ]
    );
    let reported = world.update(1, status([("old", by(&[], State::InForce))]));
    assert_eq!(
        reported,
        [
            "pod shop/old (uid-old) Normal PolicyInForce: the pod has a gate",
            "node Normal PolicyInForce: every pod has a gate",
        ]
    );
}

#[test]
fn a_policy_that_is_not_understood_is_told_for_all_nodes() {
    let mut world = World::ready();
    let refused = |cause: &str| {
        let refused = Rejected {
            id: Some(ObjectId::Policy(policy("kubernetes", "p"))),
            uid: "uid-p".into(),
            field: FieldError::new("spec.ingress[0]", cause),
            fallback: Fallback::DenyAll,
        };
        NodeStatus { refused: vec![refused], ..status([]) }
    };
    world.update(1, refused("nonsense"));
    assert!(world.update(16, refused("nonsense")).is_empty(), "each node in its own time");
    let reported = world.update(1, refused("nonsense"));
    assert_eq!(
        reported,
        [
            "policy shop/p (uid-p) Warning PolicyNotUnderstood: read policy shop/p: spec.ingress[0]: nonsense; \
          until it can be read, it isolates its pods and allows nothing"
        ]
    );
    assert!(world.update(60, refused("nonsense")).is_empty());
    world.update(1, refused("other nonsense"));
    assert_eq!(world.update(17, refused("other nonsense")).len(), 1, "another mistake is news");
    assert!(world.update(1, status([])).is_empty());

    let mut tracker = Tracker::new(Settings {
        grace: Duration::ZERO,
        spread: Duration::ZERO,
        ..Settings::default()
    });
    let notices = tracker.update(Instant::now(), refused("nonsense"));
    assert!(
        notices.iter().any(|notice| matches!(notice.dedupe, Dedupe::Cluster(_))),
        "{notices:?}"
    );
}

#[test]
fn what_of_a_policy_is_not_in_force_as_written_is_told_for_all_nodes() {
    let mut world = World::ready();
    let cluster = |name: &str, source: &str| {
        ObjectId::ClusterPolicy(ClusterPolicyId { name: name.into(), source: source.into() })
    };
    let problem = |of: ObjectId, sort, text: &str| Problem { of, sort, text: text.into() };
    let with = |problems: &[Problem]| NodeStatus {
        problems: problems.to_vec(),
        uids: Arc::new([(cluster("a", "kubernetes"), Arc::from("uid-a"))].into()),
        ..status([])
    };
    let problems = [
        problem(cluster("a", "kubernetes"), Sort::NotUnderstood, "spec.tier: must be Admin"),
        problem(cluster("b", "kubernetes"), Sort::EqualPriority, "spec.priority: 5 too"),
        problem(cluster("c", "dir"), Sort::NotUnderstood, "of a manifest, see the status"),
        problem(ObjectId::Namespace("shop".into()), Sort::NotUnderstood, "mode: must be audit"),
        problem(ObjectId::Policy(policy("kubernetes", "p")), Sort::NotUnderstood, "log: must be"),
    ];
    world.update(1, with(&problems));
    let reported = world.update(17, with(&problems));
    assert_eq!(
        reported,
        [
            "namespace shop Warning PolicyNotUnderstood: mode: must be audit",
            "policy shop/p () Warning PolicyNotUnderstood: log: must be",
            "cluster policy a (uid-a) Warning PolicyNotUnderstood: spec.tier: must be Admin",
            "cluster policy b () Warning EqualPriority: spec.priority: 5 too",
        ]
    );
    assert!(world.update(60, with(&problems)).is_empty());
    assert!(world.update(1, status([])).is_empty());
}

#[test]
fn the_node_says_when_it_does_not_enforce() {
    let mut world = World::ready();
    let with = |mode| NodeStatus { mode, ..status([]) };
    let reported = world.update(1, with(Mode::Audit));
    assert!(
        reported[0].starts_with("node Warning NotEnforcing: enforcement is on audit"),
        "{reported:?}"
    );
    assert!(world.update(1, with(Mode::Audit)).is_empty());
    let reported = world.update(1, with(Mode::Off));
    assert!(
        reported[0].starts_with("node Warning NotEnforcing: enforcement is off"),
        "{reported:?}"
    );
    assert!(world.update(1799, with(Mode::Off)).is_empty());
    assert_eq!(world.update(1, with(Mode::Off)), reported, "events are forgotten after an hour");
    let reported = world.update(1, with(Mode::Enforce));
    assert!(reported[0].starts_with("node Normal Enforcing: "), "{reported:?}");
    assert!(world.update(3600, with(Mode::Enforce)).is_empty(), "all is well");

    let stopped = || NodeStatus { stopped: Some("peers4 is full".into()), ..status([]) };
    world.update(1, stopped());
    let reported = world.update(10, stopped());
    assert_eq!(reported.len(), 1);
    assert!(
        reported[0].contains("cannot change the classes of addresses: peers4 is full"),
        "{reported:?}"
    );
    let reported = world.update(1, status([]));
    assert_eq!(reported, ["node Normal PolicyInForce: changes are put in force again"]);
}

#[test]
fn a_manifest_that_cannot_be_read_is_reported_at_the_node() {
    let mut world = World::ready();
    let unread = |files: &[&str]| NodeStatus {
        unread: files.iter().map(|file| format!("read {file}: oh")).collect(),
        ..status([])
    };
    world.update(1, unread(&["a.yaml", "b.yaml"]));
    let reported = world.update(10, unread(&["a.yaml", "b.yaml"]));
    let note = "read a.yaml: oh; and 1 more, see `podgatectl status`";
    assert_eq!(reported, [format!("node Warning ManifestNotUnderstood: {note}")]);
    let reported = world.update(1, status([]));
    assert_eq!(reported.len(), 1);
    assert!(reported[0].ends_with("every manifest can be read again"), "{reported:?}");
}

/// The first number is reported when it is settled, and does not stand for ever.
#[test]
fn how_many_are_in_force_is_corrected_and_not_too_often() {
    let mut world = World::new();
    world.tracker.settings.summary_interval = Duration::from_secs(15);
    let node = |note: &str| vec![format!("node Normal PolicyInForce: {note}")];
    let early = NodeStatus { settled: false, ..status([]) };
    assert!(world.update(0, early).is_empty(), "pods are being gated");
    let with_gates = |ungated: &[&str], count: usize| {
        let names = ["a", "b", "c", "d"];
        let pods = names[..count].iter().map(|name| (*name, by(&[], State::InForce)));
        let mut now = status([]);
        let pod =
            |name: &str| PodRef { key: ObjectKey::new("shop", name), uid: format!("uid-{name}") };
        now.pods = pods.map(|(name, status)| (pod(name), status)).collect();
        now.ungated = ungated.iter().map(|name| (pod(name), "no veth".to_owned())).collect();
        now
    };
    let reported = world.update(1, with_gates(&["x"], 1));
    assert_eq!(reported, node("1 of 2 pods have their policies in force, without a gate: shop/x"));
    assert!(world.update(1, with_gates(&["x"], 1)).is_empty());
    assert!(world.update(1, with_gates(&[], 2)).is_empty(), "too soon");
    assert_eq!(world.update(13, with_gates(&[], 2)), node("2 pods have their policies in force"));
    assert!(world.update(29, with_gates(&[], 3)).is_empty(), "twice as long");
    assert!(world.update(1, with_gates(&[], 2)).is_empty(), "as it was reported");
    assert_eq!(world.update(1, with_gates(&[], 4)), node("4 pods have their policies in force"));
    assert!(world.update(59, with_gates(&[], 1)).is_empty());
    assert_eq!(world.update(1, with_gates(&[], 1)), node("1 pod has its policies in force"));
    // after a quiet time it is reported soon again
    assert_eq!(world.update(1800, with_gates(&[], 2)), node("2 pods have their policies in force"));
    assert_eq!(world.update(15, with_gates(&[], 3)), node("3 pods have their policies in force"));
}

#[test]
fn a_kind_that_is_not_enforced_is_told_of_on_the_node() {
    let mut world = World::ready();
    let with = |count| NodeStatus {
        unenforced: [(UnenforcedKind::AdminNetworkPolicy, count)].into(),
        ..status([])
    };
    assert!(world.update(1, with(3)).is_empty());
    let reported = world.update(10, with(3));
    assert_eq!(
        reported,
        [
            "node Warning NotEnforcing: not enforced: 3 AdminNetworkPolicy objects; podgate enforces NetworkPolicy and \
             ClusterNetworkPolicy of policy.networking.k8s.io/v1alpha2"
        ]
    );
    // once, and again when events are forgotten
    assert!(world.update(60, with(4)).is_empty());
    assert_eq!(world.update(1800, with(4)).len(), 1);
    assert!(world.update(1, status([])).is_empty());
}
