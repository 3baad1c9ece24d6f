//! Standing at an interface: both kinds, other people's programs and filters, and no moment without a gate.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

#[path = "attach/bench.rs"]
mod bench;
#[path = "attach/metered.rs"]
mod metered;

use std::fs;
use std::time::{Duration, Instant};

use podgate_bpf::Error;
use podgate_bpf::attach::{AttachMode, Attached};
use podgate_bpf::features::Feature;
use podgate_testkit::sandbox::{self, command, trial};

use bench::{Bench, Kind, foreign_object};

/// Tests by their names.
type Tests<T, const N: usize> = [(&'static str, fn(T)); N];

fn main() -> std::process::ExitCode {
    // asked, not guessed: what a kernel has decides which promises hold there, and each has its tests
    let has_tcx = Feature::Tcx.is_present();
    sandbox::run(|| {
        let mut trials = Vec::new();
        let kinds: &[Kind] = if has_tcx { &[Kind::Clsact, Kind::Tcx] } else { &[Kind::Clsact] };
        for &kind in kinds {
            let tests: Tests<Kind, 13> = [
                ("attached, verified, again, detached twice", lifecycle),
                ("half of it missing is seen and repaired", half),
                ("the interface goes", interface_gone),
                ("a program ahead is seen and repaired", foreign_ahead),
                ("no packet passes while that is repaired", repair_has_no_gap),
                ("a program behind runs on what we allow", next_runs),
                ("others' programs survive our detach", others_survive),
                ("half an attach is undone", undone),
                ("another build's program is seen and replaced", another_build),
                ("a pod with limits has its own programs", metered::from_the_start),
                ("those of other pods there are seen and replaced", metered::plain_is_repaired),
                ("no packet passes while programs change", metered::change_has_no_gap),
                ("packets wait where the kernel has fq, else that is said", metered::waiting),
            ];
            trials.extend(
                tests.map(|(name, test)| {
                    trial(format!("{}: {name}", kind.name()), move || test(kind))
                }),
            );
        }
        let everywhere: [(&str, fn()); 3] = [
            ("auto: clsact where nobody is", auto_alone),
            ("modes: spelled and read", spelling),
            ("the kernel's BTF says whether it has TCX", btf_says),
        ];
        let with_tcx: [(&str, fn()); 5] = [
            ("auto: TCX where somebody has TCX", auto_beside_tcx),
            (
                "auto: TCX where a plain ingress qdisc stands (bandwidth plugin)",
                auto_beside_ingress,
            ),
            ("auto: TCX where a filter of another protocol has priority 1", auto_beside_filter),
            ("auto: keeps the kind that stands", auto_keeps),
            ("switch: no packet passes between the kinds", switch_has_no_gap),
        ];
        let without_tcx: [(&str, fn()); 3] = [
            ("no TCX: refused by name", tcx_refused),
            (
                "no TCX: a plain ingress qdisc (bandwidth plugin) is refused by name",
                ingress_refused,
            ),
            ("no TCX: a filter of another protocol at priority 1 is named", filter_refused),
        ];
        trials.extend(everywhere.map(|(name, test)| trial(name, test)));
        match has_tcx {
            true => trials.extend(with_tcx.map(|(name, test)| trial(name, test))),
            false => trials.extend(without_tcx.map(|(name, test)| trial(name, test))),
        }
        trials
    })
}

fn btf_says() {
    let by_call = Feature::Tcx.is_present();
    assert_eq!(podgate_bpf::features::btf_has_tcx(), Some(by_call));
}

fn spelling() {
    for (text, mode) in
        [("auto", AttachMode::Auto), ("tcx", AttachMode::Tcx), ("clsact", AttachMode::Clsact)]
    {
        assert_eq!((text.parse(), mode.to_string().as_str()), (Ok(mode), text));
    }
    assert_eq!(
        "TCX".parse::<AttachMode>().unwrap_err(),
        "unknown attach mode \"TCX\": auto, tcx or clsact"
    );
}

#[track_caller]
fn verify_says(bench: &Bench, words: &str) {
    match bench.datapath.verify(bench.ifindex()) {
        Err(Error::Attach { verb: "verify", reason, .. }) => {
            assert!(reason.contains(words), "{reason:?} does not say {words:?}");
        }
        other => panic!("expected {words:?}, not {other:?}"),
    }
}

fn lifecycle(kind: Kind) {
    let bench = Bench::isolated();
    let at = bench.ifindex();
    verify_says(&bench, "from_pod is not attached");
    bench.datapath.detach(at).unwrap();
    bench.expect_passing(5, 5);
    assert_eq!(bench.datapath.attach(at, kind.mode()).unwrap(), kind.attached());
    assert_eq!(bench.datapath.verify(at).unwrap(), kind.attached());
    assert_eq!(bench.datapath.attach(at, kind.mode()).unwrap(), kind.attached());
    assert_eq!(bench.links().len(), if kind == Kind::Tcx { 2 } else { 0 });
    bench.expect_passing(5, 0);
    bench.datapath.detach(at).unwrap();
    verify_says(&bench, "from_pod is not attached");
    assert_eq!(bench.links(), [""; 0]);
    bench.datapath.detach(at).unwrap();
    bench.expect_passing(5, 5);
    assert_eq!(bench.datapath.attach(at, kind.mode()).unwrap(), kind.attached());
    bench.expect_passing(5, 0);
}

fn half(kind: Kind) {
    let bench = Bench::isolated();
    let at = bench.ifindex();
    bench.datapath.attach(at, kind.mode()).unwrap();
    match kind {
        Kind::Clsact => {
            command("tc", &format!("filter del dev {} egress", bench.veth.host)).unwrap();
        }
        Kind::Tcx => {
            fs::remove_file(bench.link("to_pod")).unwrap();
            // the kernel lets go of the link in its own time
            let until = Instant::now() + Duration::from_secs(5);
            while bench.datapath.verify(at).is_ok() && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
    verify_says(&bench, "to_pod");
    assert_eq!(bench.datapath.attach(at, kind.mode()).unwrap(), kind.attached());
    bench.expect_passing(5, 0);
}

fn interface_gone(kind: Kind) {
    let bench = Bench::isolated();
    let at = bench.ifindex();
    bench.datapath.attach(at, kind.mode()).unwrap();
    bench.veth.delete().unwrap();
    // a kernel without TCX does not look for the interface when it is asked for filters
    let said = match Feature::Tcx.is_present() {
        true => "no such interface",
        false => "from_pod is not attached",
    };
    verify_says(&bench, said);
    bench.datapath.detach(at).unwrap();
    assert_eq!(bench.links(), [""; 0], "the pins of dead links are gone");
    bench.datapath.detach(at).unwrap();
    let told = bench.datapath.attach(at, kind.mode()).unwrap_err();
    assert!(matches!(told, Error::Attach { .. }), "{told}");
    assert_eq!(bench.links(), [""; 0], "and stay gone");
}

fn foreign_ahead(kind: Kind) {
    let bench = Bench::isolated();
    let at = bench.ifindex();
    bench.datapath.attach(at, kind.mode()).unwrap();
    let other = bench.attach_first(kind, "pass");
    // it says "ok", so our programs never run
    bench.expect_passing(5, 5);
    verify_says(&bench, "from_pod is");
    assert_eq!(bench.datapath.attach(at, kind.mode()).unwrap(), kind.attached());
    bench.expect_passing(5, 0);
    assert!(other.is_attached(&bench), "the repair removed another program");
}

fn repair_has_no_gap(kind: Kind) {
    let bench = Bench::isolated();
    let at = bench.ifindex();
    bench.datapath.attach(at, kind.mode()).unwrap();
    let flood = bench.flood();
    // the gap to look for is some 20 microseconds wide with filters, two grace periods with links
    for _ in 0..if kind == Kind::Clsact { 200 } else { 5 } {
        // ahead of us, but it lets us run: so each packet must still meet us
        let other = bench.attach_first(kind, "next");
        verify_says(&bench, "from_pod is");
        assert_eq!(bench.datapath.attach(at, kind.mode()).unwrap(), kind.attached());
        other.remove(&bench);
    }
    flood.expect_none();
}

fn next_runs(kind: Kind) {
    let bench = Bench::open();
    bench.datapath.attach(bench.ifindex(), kind.mode()).unwrap();
    bench.expect_passing(5, 5);
    let other = bench.attach_last(kind, "drop");
    bench.expect_passing(5, 0);
    assert_eq!(bench.datapath.verify(bench.ifindex()).unwrap(), kind.attached());
    other.remove(&bench);
    bench.expect_passing(5, 5);
}

fn others_survive(kind: Kind) {
    let bench = Bench::open();
    let first = bench.attach_first(kind, "next");
    bench.datapath.attach(bench.ifindex(), kind.mode()).unwrap();
    let last = bench.attach_last(kind, "next");
    bench.datapath.detach(bench.ifindex()).unwrap();
    assert!(first.is_attached(&bench) && last.is_attached(&bench));
    if kind == Kind::Clsact {
        assert!(bench.qdiscs().contains("clsact"), "{}", bench.qdiscs());
    }
}

fn undone(kind: Kind) {
    let bench = Bench::isolated();
    let at = bench.ifindex();
    match kind {
        // there the egress hook does not exist, so the second of the two filters fails
        Kind::Clsact => {
            command("tc", &format!("qdisc add dev {} ingress", bench.veth.host)).unwrap();
        }
        // the second pin cannot be made
        Kind::Tcx => fs::create_dir(bench.link("to_pod")).unwrap(),
    }
    let told = bench.datapath.attach(at, kind.mode()).unwrap_err();
    assert!(matches!(told, Error::Attach { .. } | Error::Io { .. }), "{told}");
    if kind == Kind::Tcx {
        fs::remove_dir(bench.link("to_pod")).unwrap();
    }
    verify_says(&bench, "from_pod is not attached");
    bench.expect_passing(5, 5);
}

fn another_build(kind: Kind) {
    let (bench, other) = (Bench::isolated(), Bench::isolated());
    other.datapath.attach(bench.ifindex(), kind.mode()).unwrap();
    let told = bench.datapath.verify(bench.ifindex()).unwrap_err();
    assert!(matches!(told, Error::Attach { .. }), "{told}");
    assert_eq!(bench.datapath.attach(bench.ifindex(), kind.mode()).unwrap(), kind.attached());
    assert_eq!(bench.datapath.verify(bench.ifindex()).unwrap(), kind.attached());
    bench.expect_passing(5, 0);
}

fn auto_alone() {
    let bench = Bench::isolated();
    assert_eq!(bench.datapath.attach(bench.ifindex(), AttachMode::Auto).unwrap(), Attached::Clsact);
    bench.expect_passing(5, 0);
}

fn auto_beside_tcx() {
    let bench = Bench::isolated();
    let other = bench.attach_first(Kind::Tcx, "pass");
    assert_eq!(bench.datapath.attach(bench.ifindex(), AttachMode::Auto).unwrap(), Attached::Tcx);
    bench.expect_passing(5, 0);
    assert!(other.is_attached(&bench));
}

fn auto_beside_ingress() {
    let bench = Bench::isolated();
    command("tc", &format!("qdisc add dev {} ingress", bench.veth.host)).unwrap();
    assert_eq!(bench.datapath.attach(bench.ifindex(), AttachMode::Auto).unwrap(), Attached::Tcx);
    bench.expect_passing(5, 0);
    assert!(bench.qdiscs().contains("ingress"), "{}", bench.qdiscs());
}

/// Kernels before 6.6: no gate, and why.
fn refused(bench: &Bench, mode: AttachMode, words: &[&str]) {
    let told = bench.datapath.attach(bench.ifindex(), mode).unwrap_err().to_string();
    assert!(words.iter().all(|word| told.contains(word)), "{told:?} does not say {words:?}");
    verify_says(bench, "from_pod is not");
}

fn tcx_refused() {
    refused(&Bench::isolated(), AttachMode::Tcx, &["TCX from_pod", "this kernel has none"]);
}

fn ingress_refused() {
    let bench = Bench::isolated();
    command("tc", &format!("qdisc add dev {} ingress", bench.veth.host)).unwrap();
    refused(
        &bench,
        AttachMode::Auto,
        &["qdisc of kind ingress", "bandwidth", "this kernel has none"],
    );
}

fn filter_refused() {
    let bench = Bench::isolated();
    filters_of_ip(&bench);
    refused(&bench, AttachMode::Auto, &["another protocol holds priority 1"]);
}

/// Somebody's filters for IPv4 alone at the first priority of both hooks.
fn filters_of_ip(bench: &Bench) {
    let host = &bench.veth.host;
    let folder = tempfile::tempdir().unwrap();
    let object = foreign_object("pass", folder.path());
    command("tc", &format!("qdisc add dev {host} clsact")).unwrap();
    for hook in ["ingress", "egress"] {
        let filter = format!("prio 1 protocol ip bpf da obj {} sec tc", object.display());
        command("tc", &format!("filter add dev {host} {hook} {filter}")).unwrap();
    }
}

fn auto_beside_filter() {
    let bench = Bench::isolated();
    filters_of_ip(&bench);
    assert_eq!(bench.datapath.attach(bench.ifindex(), AttachMode::Auto).unwrap(), Attached::Tcx);
    bench.expect_passing(5, 0);
}

fn auto_keeps() {
    let bench = Bench::isolated();
    for kind in [Kind::Tcx, Kind::Clsact] {
        bench.datapath.attach(bench.ifindex(), kind.mode()).unwrap();
        assert_eq!(
            bench.datapath.attach(bench.ifindex(), AttachMode::Auto).unwrap(),
            kind.attached()
        );
    }
    // a filter of somebody's behind a TCX gate is no reason to move
    bench.datapath.attach(bench.ifindex(), AttachMode::Tcx).unwrap();
    let _other = bench.attach_first(Kind::Clsact, "pass");
    assert_eq!(bench.datapath.attach(bench.ifindex(), AttachMode::Auto).unwrap(), Attached::Tcx);
}

fn switch_has_no_gap() {
    let bench = Bench::isolated();
    bench.datapath.attach(bench.ifindex(), AttachMode::Clsact).unwrap();
    let flood = bench.flood();
    for _ in 0..20 {
        for kind in [Kind::Tcx, Kind::Clsact] {
            assert_eq!(
                bench.datapath.attach(bench.ifindex(), kind.mode()).unwrap(),
                kind.attached()
            );
        }
    }
    flood.expect_none();
}
