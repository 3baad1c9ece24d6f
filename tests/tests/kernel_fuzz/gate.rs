//! Frames through the real programs, and what holds of every one of them whatever policy says.

use libbpf_rs::{MapCore, MapHandle};
use podgate_bpf::abi::{Counter, Direction, Reason};
use podgate_bpf::maps::Counters;
use podgate_bpf::testrun::Context;
use podgate_bpf::{Datapath, PinRoot};
use podgate_tests::fuzz::judge::{Expected, Judge, Pod, Policy};
use podgate_tests::fuzz::{Shot, Via};
use podgate_tests::kernel::{DROP, NEXT, REDIRECT, UPLINK};

/// Maps in which packets leave something for later ones, as far as this build has them.
const STATE: [&str; 4] = ["flows4", "flows6", "frags", "expected"];

/// What became of a frame.
pub(crate) struct Met {
    pub(crate) action: i32,
    pub(crate) packet: Vec<u8>,
}

/// A way to bring a frame before a program.
pub(crate) trait Fire {
    /// `None` if the kernel makes no packet of it.
    fn fire(&self, shot: &Shot) -> Option<Met>;

    /// Whether that many bytes may have been counted of it.
    fn counts(&self, shot: &Shot, bytes: u64) -> bool {
        bytes == shot.frame.len() as u64
    }
}

/// `BPF_PROG_TEST_RUN`.
pub(crate) struct TestRun<'a> {
    pub(crate) datapath: &'a Datapath,
    pub(crate) ifindex: u32,
}

impl Fire for TestRun<'_> {
    fn fire(&self, shot: &Shot) -> Option<Met> {
        let ingress_ifindex = match shot.via {
            Via::Uplink => UPLINK,
            Via::Nothing => 0,
            Via::Pod => self.ifindex,
        };
        let context = Context { ifindex: self.ifindex, ingress_ifindex };
        let outcome = self.datapath.test_run(shot.direction, context, &shot.frame, 1).ok()?;
        Some(Met { action: outcome.action, packet: outcome.packet })
    }
}

/// One pod's gate, and the maps that its packets write.
pub(crate) struct Target<'a> {
    pub(crate) datapath: &'a Datapath,
    pub(crate) state: &'a [MapHandle],
    pub(crate) fire: &'a dyn Fire,
    /// Packets to or from these addresses are translated.
    pub(crate) translates: bool,
}

/// The maps of packets' state.
pub(crate) fn state(root: &PinRoot) -> Vec<MapHandle> {
    let maps = STATE.iter().filter_map(|name| MapHandle::from_pinned_path(root.path(name)).ok());
    let maps: Vec<_> = maps.collect();
    assert!(maps.len() >= 3, "maps of other names hold the packets' state");
    maps
}

/// What went wrong, and with which of a sequence's frames.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(crate) at: usize,
    /// The same for the same kind of failure.
    pub(crate) kind: String,
    /// More about this one.
    pub(crate) detail: String,
}

/// How many frames met what.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) sequences: u64,
    pub(crate) frames: u64,
    pub(crate) must_pass: u64,
    pub(crate) must_drop: u64,
    pub(crate) open: u64,
    /// That the kernel does not make packets of.
    pub(crate) refused: u64,
}

impl Target<'_> {
    /// Plays a sequence at a gate that has seen nothing yet.
    pub(crate) fn play<P: Policy>(
        &self,
        pod: &Pod,
        policy: &P,
        shots: &[Shot],
        tally: &mut Tally,
    ) -> Result<(), Failure> {
        self.forget();
        tally.sequences += 1;
        let mut judge = Judge::new(pod, policy);
        let mut before = self.counters();
        let mut flows = 0;
        for (at, shot) in shots.iter().enumerate() {
            let failure = |kind: String, detail: String| Failure { at, kind, detail };
            let Some(met) = self.fire.fire(shot) else {
                tally.refused += 1;
                continue;
            };
            tally.frames += 1;
            let after = self.counters();
            let passed = match met.action {
                NEXT => true,
                DROP => false,
                REDIRECT if self.translates => true,
                other => return Err(failure(format!("action {other}"), String::new())),
            };
            let length = |bytes| self.fire.counts(shot, bytes);
            if let Some(wrong) = miscounted(&before, &after, shot.direction, passed, length) {
                return Err(failure("not counted once as what it met".into(), wrong));
            }
            before = after;
            if passed && !self.translates && met.packet != shot.frame {
                let left = podgate_tests::kernel::hex(&met.packet);
                return Err(failure("changed, and not translated".into(), left));
            }
            let expected = judge.expects(shot);
            let direction = shot.direction.name();
            match expected {
                Expected::Pass(why) if !passed => {
                    return Err(failure(format!("{direction}: dropped: {why}"), String::new()));
                }
                Expected::Drop(why) if passed => {
                    return Err(failure(format!("{direction}: passed: {why}"), String::new()));
                }
                Expected::Pass(_) => tally.must_pass += 1,
                Expected::Drop(_) => tally.must_drop += 1,
                Expected::Open => tally.open += 1,
            }
            let remembered = self.flows();
            if !passed && remembered > flows {
                return Err(failure(
                    format!("{direction}: a denied frame left a flow"),
                    String::new(),
                ));
            }
            flows = remembered;
            judge.learn(shot, passed);
        }
        Ok(())
    }

    fn counters(&self) -> Counters {
        self.datapath.maps.counters().unwrap()
    }

    fn flows(&self) -> usize {
        let flows = self.datapath.maps.flow_table();
        flows.flows4().unwrap().len() + flows.flows6().unwrap().len()
    }

    fn forget(&self) {
        for map in self.state {
            for key in map.keys().collect::<Vec<_>>() {
                map.delete(&key).unwrap();
            }
        }
    }
}

/// What is wrong with the counters after one frame, if anything is.
fn miscounted(
    before: &Counters,
    after: &Counters,
    direction: Direction,
    passed: bool,
    is_length: impl Fn(u64) -> bool,
) -> Option<String> {
    let mut rose = Vec::new();
    for &way in Direction::ALL {
        for &reason in Reason::ALL {
            let (old, new) = (before.get(way, reason), after.get(way, reason));
            if old != new {
                let (packets, bytes) = (new.packets - old.packets, new.bytes - old.bytes);
                rose.push((way, reason, Counter { packets, bytes }));
            }
        }
    }
    let right = match rose.as_slice() {
        [(way, reason, counter)] => {
            let once = counter.packets == 1 && is_length(counter.bytes);
            *way == direction && reason.is_denial() != passed && once
        }
        _ => false,
    };
    (!right).then(|| format!("passed: {passed}, counted: {rose:?}"))
}
