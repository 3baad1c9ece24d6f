//! Gates of pods with limits: they run programs of their own, and change over to them and back without a gap.

use podgate_bpf::abi::{LimitsFlag, LimitsKey, LimitsRecord};
use podgate_bpf::shaping::{self, Shaping};
use podgate_testkit::sandbox::command;

use crate::bench::{Bench, Kind, OWNER};
use crate::verify_says;

const WHOLE_POD: LimitsKey = LimitsKey { owner: OWNER, rule: 0 };

impl Bench {
    fn limit_with(&self, flags: u8) {
        let limits = LimitsRecord { flags, ..LimitsRecord::default() };
        self.datapath.maps.limits().set(WHOLE_POD, &limits).unwrap();
    }

    fn limit(&self, limits: bool) {
        match limits {
            true => self.limit_with(0),
            false => self.datapath.maps.limits().remove(WHOLE_POD).unwrap(),
        }
    }
}

pub(crate) fn from_the_start(kind: Kind) {
    let bench = Bench::open();
    let at = bench.ifindex();
    bench.limit(true);
    verify_says(&bench, "the programs for such pods are not loaded");
    assert_eq!(bench.datapath.attach(at, kind.mode()).unwrap(), kind.attached());
    assert_eq!(bench.datapath.verify(at).unwrap(), kind.attached());
    assert!(bench.datapath.is_metered(at).unwrap());
    bench.expect_passing(5, 5);
    bench.datapath.detach(at).unwrap();
    assert!(!bench.datapath.is_metered(at).unwrap());
    verify_says(&bench, "from_pod_metered is not attached");
}

pub(crate) fn plain_is_repaired(kind: Kind) {
    let bench = Bench::isolated();
    let at = bench.ifindex();
    bench.datapath.attach(at, kind.mode()).unwrap();
    bench.datapath.load_metered().unwrap();
    bench.limit(true);
    verify_says(&bench, "from_pod_metered is missing");
    assert!(!bench.datapath.is_metered(at).unwrap());
    assert_eq!(bench.datapath.attach(at, kind.mode()).unwrap(), kind.attached());
    assert!(bench.datapath.is_metered(at).unwrap());
    bench.expect_passing(5, 0);
}

pub(crate) fn change_has_no_gap(kind: Kind) {
    let bench = Bench::isolated();
    let at = bench.ifindex();
    bench.datapath.attach(at, kind.mode()).unwrap();
    let flood = bench.flood();
    for _ in 0..100 {
        bench.datapath.set_metered(at, true).unwrap();
        assert_eq!(bench.datapath.verify(at).unwrap(), kind.attached(), "ahead of the limits");
        bench.limit(true);
        assert_eq!(bench.datapath.verify(at).unwrap(), kind.attached());
        assert!(bench.datapath.is_metered(at).unwrap());
        bench.limit(false);
        assert_eq!(bench.datapath.verify(at).unwrap(), kind.attached(), "behind the limits");
        bench.datapath.set_metered(at, false).unwrap();
        assert_eq!(bench.datapath.verify(at).unwrap(), kind.attached());
        assert!(!bench.datapath.is_metered(at).unwrap());
    }
    flood.expect_none();
}

/// As far as the kernel has fq: without, it says so, and the pod's packets are dropped instead.
pub(crate) fn waiting(kind: Kind) {
    let bench = Bench::open();
    let at = bench.ifindex();
    let tc = |words: &str| command("tc", &words.replace("DEV", &bench.veth.host));
    let has_fq = tc("qdisc add dev DEV root fq").is_ok();
    if has_fq {
        let reason = match shaping::ensure_fq(at).unwrap() {
            Shaping::Policed { reason } => reason,
            Shaping::Shaped => panic!("another's fq was taken for podgate's"),
        };
        assert!(reason.contains("root qdisc of kind fq"), "{reason}");
        tc("qdisc del dev DEV root").unwrap();
    }
    bench.datapath.attach(at, kind.mode()).unwrap();
    for _ in 0..2 {
        match shaping::ensure_fq(at).unwrap() {
            Shaping::Shaped => assert!(has_fq && bench.qdiscs().contains("fq 7067:")),
            Shaping::Policed { reason } => {
                assert!(!has_fq && reason.contains("this kernel has no fq"), "{reason}");
            }
        }
        bench.expect_passing(5, 5);
    }
    bench.limit_with(LimitsFlag::Shape as u8);
    bench.datapath.detach(at).unwrap();
    assert!(!bench.qdiscs().contains("fq"), "{}", bench.qdiscs());
    tc("qdisc add dev DEV root pfifo limit 100").unwrap();
    let told = shaping::ensure_fq(at).unwrap().to_string();
    assert!(told.starts_with("policed: the interface has a root qdisc of kind pfifo"), "{told}");
    shaping::remove_fq(at).unwrap();
    assert!(bench.qdiscs().contains("pfifo"), "{}", bench.qdiscs());
}
