//! Two CPUs at once, on the same tuples: what one finds closed, expired or new, the other may at the same moment.

use std::thread;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use podgate_bpf::abi::Direction::{Egress, Ingress};
use podgate_bpf::open_count::Recount;
use podgate_bpf::testrun::Context;
use podgate_tests::fuzz::dice::Dice;
use podgate_tests::kernel::UPLINK;

use crate::random::{counted, frame, limited, segment, tuples};

const MOST: [u32; 2] = [25, 18];
const PACKETS: u64 = 20_000;

fn cpus() -> Vec<usize> {
    let mine = sched_getaffinity(Pid::from_raw(0)).unwrap();
    (0..CpuSet::count()).filter(|&cpu| mine.is_set(cpu).unwrap()).take(2).collect()
}

pub(crate) fn two_cpus() {
    let cpus = cpus();
    assert_eq!(cpus.len(), 2, "this test needs two CPUs");
    let lab = limited(MOST);
    for round in 0..5 {
        thread::scope(|scope| {
            for &cpu in &cpus {
                let lab = &lab;
                scope.spawn(move || {
                    let mut one = CpuSet::new();
                    one.set(cpu).unwrap();
                    sched_setaffinity(Pid::from_raw(0), &one).unwrap();
                    let mut dice = Dice::new(round, cpu as u64);
                    let tuples = tuples();
                    for _ in 0..PACKETS {
                        let tuple = &tuples[dice.below(tuples.len())];
                        let direction = dice.pick(&[Egress, Ingress]);
                        let context = Context {
                            ifindex: lab.ifindex,
                            ingress_ifindex: if direction == Ingress { UPLINK } else { 0 },
                        };
                        let bytes = frame(segment(&mut dice, tuple), tuple, direction);
                        lab.datapath().test_run(direction, context, &bytes, 1).unwrap();
                    }
                });
            }
        });
        let (meter, flows) = (lab.meter(0).open, counted(&lab));
        println!("round {round}: {meter:?} counted, {flows:?} flows say so");
        // an entry that is used for another flow while a CPU still looks at it
        for (meter, flows) in meter.into_iter().zip(flows) {
            assert!(meter.abs_diff(flows) <= 8, "{meter} and {flows}");
        }
        let mut recount = Recount::default();
        let first = recount.look(&lab.datapath().maps).unwrap();
        assert_eq!(first, 0, "one look corrects nothing");
        recount.look(&lab.datapath().maps).unwrap();
        assert_eq!(lab.meter(0).open, counted(&lab), "two looks do");
        lab.age_flows(150);
    }
}
