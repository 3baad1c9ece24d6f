//! The programs of pods with limits: loaded when the first needs them, once, and replaced with the others.

use std::collections::BTreeSet;

use podgate_bpf::Datapath;
use podgate_bpf::abi::{LimitsFlag, LimitsKey, LimitsRecord, Meter};
use podgate_bpf::attach::AttachMode;
use podgate_testkit::sandbox::Veth;

use crate::{OWNER, pins, registration, root, small};

const WHOLE_POD: LimitsKey = LimitsKey { owner: OWNER, rule: 0 };

fn names(datapath: &Datapath) -> Vec<&'static str> {
    datapath.program_sizes().unwrap().into_iter().map(|(name, _)| name).collect()
}

pub(crate) fn loaded_when_needed() {
    let root = root();
    let datapath = Datapath::open_or_load(&root, &small()).unwrap();
    let other = Datapath::open(&root).unwrap();
    let before = pins(&root);
    assert_eq!(names(&datapath), ["from_pod", "to_pod"]);
    std::thread::scope(|scope| {
        let load = || Datapath::open(&root).unwrap().load_metered().unwrap();
        for thread in (0..4).map(|_| scope.spawn(load)).collect::<Vec<_>>() {
            thread.join().unwrap();
        }
    });
    let new: BTreeSet<_> = pins(&root).difference(&before).cloned().collect();
    assert_eq!(new, ["from_pod_metered", "to_pod_metered"].map(String::from).into());
    for each in [&datapath, &other, &Datapath::open(&root).unwrap()] {
        assert_eq!(names(each), ["from_pod", "to_pod", "from_pod_metered", "to_pod_metered"]);
    }
    assert_eq!(podgate_bpf::trust::foreign(&root).unwrap(), [""; 0].map(std::path::PathBuf::from));
}

pub(crate) fn replaced() {
    let root = root();
    let datapath = Datapath::open_or_load(&root, &small()).unwrap();
    let veths = [Veth::new().unwrap(), Veth::new().unwrap()];
    let kinds = AttachMode::of_this_kernel().iter().cycle();
    for (veth, &mode) in veths.iter().zip(kinds) {
        datapath.maps.register(&registration(veth.ifindex)).unwrap();
        datapath.maps.limits().set(WHOLE_POD, &LimitsRecord::default()).unwrap();
        datapath.attach(veth.ifindex, mode).unwrap();
        assert!(datapath.is_metered(veth.ifindex).unwrap());
    }
    let new = Datapath::replace_programs(&root, &small()).unwrap();
    for veth in &veths {
        new.verify(veth.ifindex).unwrap();
        assert!(new.is_metered(veth.ifindex).unwrap());
        assert!(!datapath.is_metered(veth.ifindex).unwrap(), "these are another build's");
        new.detach(veth.ifindex).unwrap();
        veth.delete().unwrap();
    }
}

/// Also what an earlier pod of the same interface had.
pub(crate) fn forgotten_with_the_pod() {
    let datapath = Datapath::open_or_load(&root(), &small()).unwrap();
    let limits = datapath.maps.limits();
    let of_pod = LimitsRecord { flags: LimitsFlag::Rules as u8, ..LimitsRecord::default() };
    let rules = [0, 1, 254].map(|rule| LimitsKey { owner: OWNER, rule });
    let left = || {
        let meters = rules.iter().filter_map(|key| limits.meter(*key).unwrap());
        (limits.all().unwrap().len(), meters.collect::<Vec<Meter>>().len())
    };
    let other = LimitsKey { owner: OWNER + 1, rule: 0 };
    limits.set(other, &LimitsRecord::default()).unwrap();
    for end in ["unregister", "another pod", "the same pod again"] {
        datapath.maps.register(&registration(7)).unwrap();
        for key in rules {
            limits.set(key, &of_pod).unwrap();
        }
        assert_eq!(left(), (4, 3), "{end}");
        let again = match end {
            "unregister" => {
                datapath.maps.unregister(7).unwrap();
                (1, 0)
            }
            "another pod" => {
                let registration = registration(7);
                let owner = OWNER + 2;
                datapath
                    .maps
                    .register(&podgate_bpf::maps::Registration { owner, ..registration })
                    .unwrap();
                (1, 0)
            }
            _ => {
                datapath.maps.register(&registration(7)).unwrap();
                (4, 3)
            }
        };
        assert_eq!(left(), again, "{end}");
    }
}
