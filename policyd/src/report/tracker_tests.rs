use std::sync::Arc;

use podgate_policy::convert::FieldError;
use podgate_policy::model::ObjectKey;

use super::*;
use crate::sources::ObjectId;
use crate::sources::kubernetes::{Instead, Refused};

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
            again: Duration::from_secs(1800),
            // these tests are about other news
            correct: Duration::from_secs(1_000_000),
        };
        Self { tracker: Tracker::new(settings), now: Instant::now() }
    }

    /// One that has been ready for a while, with nothing on it.
    fn ready() -> Self {
        let mut world = Self::new();
        assert_eq!(
            world.look(0, standing([])),
            ["node Normal PolicyInForce: 0 pods have their policies in force"]
        );
        world
    }

    /// What is told so many seconds later.
    fn look(&mut self, seconds: u64, standing: Standing) -> Vec<String> {
        self.now += Duration::from_secs(seconds);
        let tell = |notice: Notice| {
            let about = match &notice.about {
                About::Pod(pod) => format!("pod {} ({})", pod.key, pod.uid),
                About::Policy { key, uid } => format!("policy {key} ({uid})"),
                About::Node => "node".to_owned(),
            };
            format!("{about} {:?} {}: {}", notice.severity, notice.reason, notice.note)
        };
        self.tracker.news(self.now, standing).into_iter().map(tell).collect()
    }
}

fn standing<const N: usize>(pods: [(&str, PodStanding); N]) -> Standing {
    let pod = |name: &str| PodRef { key: ObjectKey::new("shop", name), uid: format!("uid-{name}") };
    Standing {
        ready: true,
        settled: true,
        mode: Mode::Enforce,
        stopped: None,
        pods: pods.into_iter().map(|(name, stands)| (pod(name), stands)).collect(),
        ungated: BTreeMap::new(),
        unenforced: BTreeMap::new(),
        unread: vec![],
        refused: vec![],
        uids: Arc::new([(ObjectKey::new("shop", "p"), Arc::from("uid-p"))].into()),
    }
}

fn policy(source: &str, name: &str) -> PolicyId {
    PolicyId { source: source.into(), key: ObjectKey::new("shop", name) }
}

/// Isolated for ingress by these policies of the cluster.
fn by(policies: &[&str], state: State) -> PodStanding {
    let ingress = policies.iter().map(|name| policy("kubernetes", name)).collect();
    PodStanding { ingress, egress: vec![], state }
}

fn full() -> State {
    State::Earlier("the map is full".into())
}

#[test]
fn a_pod_hears_of_its_policies_once_and_of_every_change() {
    let mut world = World::ready();
    let told = world
        .look(1, standing([("a", by(&["p"], State::InForce)), ("b", by(&[], State::InForce))]));
    assert_eq!(
        told,
        [
            "pod shop/a (uid-a) Normal PolicyInForce: in force: ingress is isolated by p; egress is not isolated"
        ]
    );
    assert!(world.look(1, standing([("a", by(&["p"], State::InForce))])).is_empty());
    let mut both = by(&["p", "q"], State::InForce);
    both.egress = vec![policy("kubernetes", "p")];
    let told = world.look(1, standing([("a", both)]));
    assert_eq!(
        told,
        [
            "pod shop/a (uid-a) Normal PolicyInForce: in force: ingress is isolated by p, q; egress is isolated by p"
        ]
    );
    let told = world.look(1, standing([("a", by(&[], State::InForce))]));
    assert_eq!(
        told,
        [
            "pod shop/a (uid-a) Normal PolicyLifted: no NetworkPolicy selects the pod any more: all traffic is allowed"
        ]
    );
    assert!(world.look(1, standing([("a", by(&[], State::InForce))])).is_empty());
}

#[test]
fn a_restart_tells_no_pod_what_it_knows() {
    let mut world = World::new();
    let unready = |state| Standing { ready: false, ..standing([("a", by(&["p"], state))]) };
    assert!(world.look(0, unready(State::Earlier("not read whole yet".into()))).is_empty());
    assert!(world.look(60, unready(State::Earlier("not read whole yet".into()))).is_empty());
    let now = || standing([("a", by(&["p"], State::InForce)), ("new", by(&["p"], State::InForce))]);
    let told = world.look(1, now());
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(told[0].starts_with("node "), "{told:?}");
    assert!(told[1].starts_with("pod shop/new "), "{told:?}");
    assert!(world.look(1, now()).is_empty());
}

#[test]
fn what_is_short_is_not_told_and_what_lasts_is_told_again() {
    let mut world = World::ready();
    let pending = || standing([("a", by(&[], State::Startup("pod shop/a is not known".into())))]);
    assert!(world.look(1, pending()).is_empty());
    assert!(world.look(9, pending()).is_empty());
    assert_eq!(
        world.look(1, standing([("a", by(&["p"], State::InForce))])).len(),
        1,
        "only that it is in force"
    );

    assert!(world.look(1, pending()).is_empty());
    let told = world.look(10, pending());
    assert_eq!(
        told,
        [
            "pod shop/a (uid-a) Warning PolicyNotInForce: cannot put the pod's NetworkPolicies in force: pod \
             shop/a is not known; it stays in its startup state",
            "node Warning PolicyNotInForce: shop/a lack their policies: pod shop/a is not known",
        ]
    );
    assert!(world.look(1799, pending()).is_empty());
    assert_eq!(world.look(1, pending()).len(), 2, "events are forgotten after an hour");
    let told = world.look(1, standing([("a", by(&[], State::InForce))]));
    assert_eq!(
        told,
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
        standing([
            ("a", a),
            ("b", by(&["p"], full())),
            ("c", by(&["p"], full())),
            ("d", by(&["p"], full())),
            ("e", by(&["p"], full())),
            ("f", by(&["p"], State::InForce)),
        ])
    };
    world.look(1, stuck());
    let told = world.look(10, stuck());
    assert_eq!(told.len(), 7, "five pods, one policy of the cluster, the node: {told:#?}");
    assert!(
        told[0].ends_with("the map is full; its last complete policy stays in force"),
        "{told:#?}"
    );
    let of_policy = "policy shop/p (uid-p) Warning PolicyNotInForce: not in force on shop/a, shop/b, shop/c and 2 more: \
                     the map is full";
    assert!(told.contains(&of_policy.to_owned()), "{told:#?}");

    let told = world.look(1, standing([("a", by(&["p"], State::InForce))]));
    assert!(
        told.contains(
            &"policy shop/p (uid-p) Normal PolicyInForce: in force again on every pod of this node that it selects"
                .to_owned()
        ),
        "{told:#?}"
    );
    // one that is gone is not told anything
    world.look(1, stuck());
    world.look(10, stuck());
    let gone = Standing { uids: Arc::default(), ..standing([]) };
    let told = world.look(1, gone);
    assert_eq!(told, ["node Normal PolicyInForce: every pod has its policies in force again"]);
}

#[test]
fn a_pod_without_a_gate_is_told_and_so_is_its_gate() {
    let mut world = World::ready();
    let pod = PodRef { key: ObjectKey::new("shop", "old"), uid: "uid-old".into() };
    let bare = || {
        let ungated = [(pod.clone(), "its interface is no veth".to_owned())].into();
        Standing { ungated, ..standing([]) }
    };
    assert!(world.look(1, bare()).is_empty());
    let told = world.look(10, bare());
    assert_eq!(
        told,
        [
            "pod shop/old (uid-old) Warning NotEnforcing: no gate stands at the pod, so no NetworkPolicy holds for \
             it: its interface is no veth",
            "node Warning NotEnforcing: no gate stands at shop/old: its interface is no veth",
        ]
    );
    let told = world.look(1, standing([("old", by(&[], State::InForce))]));
    assert_eq!(
        told,
        [
            "pod shop/old (uid-old) Normal PolicyInForce: a gate stands at the pod",
            "node Normal PolicyInForce: a gate stands at every pod",
        ]
    );
}

#[test]
fn a_policy_that_is_not_understood_is_told_for_all_nodes() {
    let mut world = World::ready();
    let refused = |cause: &str| {
        let refused = Refused {
            id: Some(ObjectId::Policy(policy("kubernetes", "p"))),
            uid: "uid-p".into(),
            field: FieldError::new("spec.ingress[0]", cause),
            instead: Instead::Closed,
        };
        Standing { refused: vec![refused], ..standing([]) }
    };
    world.look(1, refused("nonsense"));
    assert!(world.look(16, refused("nonsense")).is_empty(), "each node in its own time");
    let told = world.look(1, refused("nonsense"));
    assert_eq!(
        told,
        [
            "policy shop/p (uid-p) Warning PolicyNotUnderstood: read policy shop/p: spec.ingress[0]: nonsense; \
          until it can be read, it isolates its pods and allows nothing"
        ]
    );
    assert!(world.look(60, refused("nonsense")).is_empty());
    world.look(1, refused("other nonsense"));
    assert_eq!(world.look(17, refused("other nonsense")).len(), 1, "another mistake is news");
    assert!(world.look(1, standing([])).is_empty());

    let mut tracker = Tracker::new(Settings {
        grace: Duration::ZERO,
        spread: Duration::ZERO,
        ..Settings::default()
    });
    let notices = tracker.news(Instant::now(), refused("nonsense"));
    assert!(notices.iter().any(|notice| notice.shared.is_some()), "{notices:?}");
}

#[test]
fn the_node_says_when_it_does_not_enforce() {
    let mut world = World::ready();
    let with = |mode| Standing { mode, ..standing([]) };
    let told = world.look(1, with(Mode::Audit));
    assert!(told[0].starts_with("node Warning NotEnforcing: enforcement is on audit"), "{told:?}");
    assert!(world.look(1, with(Mode::Audit)).is_empty());
    let told = world.look(1, with(Mode::Off));
    assert!(told[0].starts_with("node Warning NotEnforcing: enforcement is off"), "{told:?}");
    assert!(world.look(1799, with(Mode::Off)).is_empty());
    assert_eq!(world.look(1, with(Mode::Off)), told, "events are forgotten after an hour");
    let told = world.look(1, with(Mode::Enforce));
    assert!(told[0].starts_with("node Normal Enforcing: "), "{told:?}");
    assert!(world.look(3600, with(Mode::Enforce)).is_empty(), "all is well");

    let stopped = || Standing { stopped: Some("peers4 is full".into()), ..standing([]) };
    world.look(1, stopped());
    let told = world.look(10, stopped());
    assert_eq!(told.len(), 1);
    assert!(told[0].contains("cannot change the classes of addresses: peers4 is full"), "{told:?}");
    let told = world.look(1, standing([]));
    assert_eq!(told, ["node Normal PolicyInForce: changes are put in force again"]);
}

#[test]
fn a_manifest_that_cannot_be_read_is_reported_at_the_node() {
    let mut world = World::ready();
    let unread = |files: &[&str]| Standing {
        unread: files.iter().map(|file| format!("read {file}: oh")).collect(),
        ..standing([])
    };
    world.look(1, unread(&["a.yaml", "b.yaml"]));
    let told = world.look(10, unread(&["a.yaml", "b.yaml"]));
    let note = "read a.yaml: oh; and 1 more, see `podgatectl status`";
    assert_eq!(told, [format!("node Warning ManifestNotUnderstood: {note}")]);
    let told = world.look(1, standing([]));
    assert_eq!(told.len(), 1);
    assert!(told[0].ends_with("every manifest can be read again"), "{told:?}");
}

/// The first number is told when it is settled, and does not stand for ever.
#[test]
fn how_many_are_in_force_is_corrected_and_not_too_often() {
    let mut world = World::new();
    world.tracker.settings.correct = Duration::from_secs(15);
    let node = |note: &str| vec![format!("node Normal PolicyInForce: {note}")];
    let early = Standing { settled: false, ..standing([]) };
    assert!(world.look(0, early).is_empty(), "pods are being gated");
    let stands = |ungated: &[&str], count: usize| {
        let names = ["a", "b", "c", "d"];
        let pods = names[..count].iter().map(|name| (*name, by(&[], State::InForce)));
        let mut now = standing([]);
        let pod =
            |name: &str| PodRef { key: ObjectKey::new("shop", name), uid: format!("uid-{name}") };
        now.pods = pods.map(|(name, stands)| (pod(name), stands)).collect();
        now.ungated = ungated.iter().map(|name| (pod(name), "no veth".to_owned())).collect();
        now
    };
    let told = world.look(1, stands(&["x"], 1));
    assert_eq!(told, node("1 of 2 pods have their policies in force, without a gate: shop/x"));
    assert!(world.look(1, stands(&["x"], 1)).is_empty());
    assert!(world.look(1, stands(&[], 2)).is_empty(), "too soon");
    assert_eq!(world.look(13, stands(&[], 2)), node("2 pods have their policies in force"));
    assert!(world.look(29, stands(&[], 3)).is_empty(), "twice as long");
    assert!(world.look(1, stands(&[], 2)).is_empty(), "as it was told");
    assert_eq!(world.look(1, stands(&[], 4)), node("4 pods have their policies in force"));
    assert!(world.look(59, stands(&[], 1)).is_empty());
    assert_eq!(world.look(1, stands(&[], 1)), node("1 pod has its policies in force"));
    // after a quiet time it is told soon again
    assert_eq!(world.look(1800, stands(&[], 2)), node("2 pods have their policies in force"));
    assert_eq!(world.look(15, stands(&[], 3)), node("3 pods have their policies in force"));
}

#[test]
fn a_kind_that_is_not_enforced_is_told_of_on_the_node() {
    let mut world = World::ready();
    let with = |count| Standing {
        unenforced: [(UnenforcedKind::ClusterNetworkPolicy, count)].into(),
        ..standing([])
    };
    assert!(world.look(1, with(3)).is_empty());
    let told = world.look(10, with(3));
    assert_eq!(
        told,
        [
            "node Warning NotEnforcing: not enforced: 3 ClusterNetworkPolicy objects; podgate enforces NetworkPolicy only"
        ]
    );
    // once, and again when events are forgotten
    assert!(world.look(60, with(4)).is_empty());
    assert_eq!(world.look(1800, with(4)).len(), 1);
    assert!(world.look(1, standing([])).is_empty());
}
