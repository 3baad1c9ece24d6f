//! Random packets of few tuples, one after another.

use std::time::Instant;

use podgate_bpf::abi::Direction::{self, Egress, Ingress};
use podgate_bpf::abi::{LimitsRecord, Meter};
use podgate_bpf::testrun::Context;
use podgate_testkit::packet::{Transport, protocol, sctp, tcp, udp};
use podgate_tests::fuzz::dice::Dice;
use podgate_tests::kernel::{DROP, Lab, NEXT, PEER, POD, UPLINK, World};

use crate::model::{Effect, Life, Segment, Tuple};

/// By direction.
const MOST: [u32; 2] = [25, 18];

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("a number"))
}

/// The programs' clock, as far as a test that makes time pass can follow it.
struct Clock {
    began: Instant,
    passed: i64,
}

impl Clock {
    fn now(&self) -> i64 {
        self.passed + (self.began.elapsed().as_nanos() >> 30) as i64
    }
}

pub(crate) fn frame(segment: Segment, tuple: &Tuple, direction: Direction) -> Vec<u8> {
    let (pod, peer) = (1000 + tuple.number, 3000 + tuple.number);
    let (from, to) = if direction == Egress { (pod, peer) } else { (peer, pod) };
    let transport: Transport = match (tuple.protocol, segment) {
        (protocol::UDP, _) => udp(from, to),
        (protocol::SCTP, _) => sctp(from, to).crc(),
        (_, Segment::Syn) => tcp(from, to).syn(),
        (_, Segment::SynAck) => tcp(from, to).syn_ack(),
        (_, Segment::Fin) => tcp(from, to).fin(),
        (_, Segment::Rst) => tcp(from, to).rst(),
        _ => tcp(from, to).ack(),
    };
    match direction {
        Egress => transport.between(POD, PEER),
        Ingress => transport.between(PEER, POD),
    }
    .frame()
}

pub(crate) fn tuples() -> Vec<Tuple> {
    [(protocol::TCP, 60), (protocol::UDP, 20), (protocol::SCTP, 8)]
        .into_iter()
        .flat_map(|(protocol, count)| (0..count).map(move |n| Tuple::new(protocol, n)))
        .collect()
}

pub(crate) fn segment(dice: &mut Dice, tuple: &Tuple) -> Segment {
    if tuple.protocol != protocol::TCP {
        return Segment::Datagram;
    }
    use Segment::{Ack, Fin, Rst, Syn, SynAck};
    dice.pick(&[Syn, SynAck, Ack, Ack, Fin, Fin, Rst, Rst])
}

pub(crate) fn limited(most: [u32; 2]) -> Lab {
    let lab = Lab::new(&World::open());
    lab.limit(0, &LimitsRecord { open_most: most, ..LimitsRecord::default() });
    lab
}

/// How many flows of the table say that they are counted.
pub(crate) fn counted(lab: &Lab) -> [u32; 2] {
    let mut counted = [0; 2];
    for flow in lab.flows().iter().filter(|flow| flow.counted != 0) {
        counted[usize::from(flow.direction)] += 1;
    }
    counted
}

struct Run {
    lab: Lab,
    clock: Clock,
    tuples: Vec<Tuple>,
    opened: u64,
    refused: u64,
}

impl Run {
    fn of(&self, direction: Direction, life: Life, now: i64) -> u32 {
        let its = self.tuples.iter().filter(|tuple| tuple.direction() == Some(direction));
        its.filter(|tuple| tuple.life(now) == life).count() as u32
    }

    fn meter(&self) -> Meter {
        self.lab.meter(0)
    }

    fn send(&mut self, dice: &mut Dice) {
        let at = dice.below(self.tuples.len());
        let direction = dice.pick(&[Egress, Ingress]);
        let now = self.clock.now();
        let tuple = &self.tuples[at];
        // connections that are picked up are never refused: too many of them, and the pod may open none
        let opens = tuple.life(now) != Life::Open && dice.chance(90);
        let segment = match segment(dice, tuple) {
            Segment::Datagram => Segment::Datagram,
            _ if opens => Segment::Syn,
            other => other,
        };
        if tuple.life(now) == Life::Unsure {
            return;
        }
        let effect = tuple.effect(segment, direction, now);
        // the place that its own flow gives up, open the other way or expired
        let own = tuple.direction() == Some(direction);
        let own_open = u32::from(own && tuple.life(now) == Life::Open);
        let open = self.of(direction, Life::Open, now) - own_open;
        let perhaps =
            self.of(direction, Life::Lingering, now) + self.of(direction, Life::Unsure, now);
        let most = MOST[direction as usize];
        let context = Context {
            ifindex: self.lab.ifindex,
            ingress_ifindex: if direction == Ingress { UPLINK } else { 0 },
        };
        let bytes = frame(segment, tuple, direction);
        let run = self.lab.datapath().test_run(direction, context, &bytes, 1).unwrap();
        let passes = match run.action {
            NEXT => true,
            DROP => false,
            other => panic!("action {other}"),
        };
        let what = || format!("{segment:?} {direction:?} of {tuple:?}, {effect:?}, {open} open");
        match effect {
            Effect::Passes | Effect::PickedUp => assert!(passes, "{}", what()),
            Effect::Opens if open >= most => assert!(!passes, "{}", what()),
            Effect::Opens if open + perhaps < most => assert!(passes, "{}", what()),
            Effect::Opens => {}
        }
        if effect == Effect::Opens {
            *if passes { &mut self.opened } else { &mut self.refused } += 1;
        }
        if passes {
            self.tuples[at].passed(segment, direction, now);
        }
    }

    /// The meter says what the flow table says, and that is what the model says but for what has expired.
    fn compare(&self) {
        let meter = self.meter().open;
        assert_eq!(meter, counted(&self.lab), "the meter and the flow table");
        let now = self.clock.now();
        for direction in [Egress, Ingress] {
            let open = self.of(direction, Life::Open, now);
            let perhaps =
                self.of(direction, Life::Lingering, now) + self.of(direction, Life::Unsure, now);
            let says = meter[direction as usize];
            assert!(
                (open..=open + perhaps).contains(&says),
                "{direction:?}: {says} counted, {open} open, {perhaps} expired"
            );
        }
    }
}

pub(crate) fn packets() {
    let packets = number("PODGATE_CONNECTIONS").unwrap_or(100_000);
    let seed = number("PODGATE_SEED").unwrap_or(0x5eed_c0de);
    println!("PODGATE_SEED={seed} PODGATE_CONNECTIONS={packets}");
    let mut dice = Dice::new(seed, 0);
    let clock = Clock { began: Instant::now(), passed: 0 };
    let mut run = Run { lab: limited(MOST), clock, tuples: tuples(), opened: 0, refused: 0 };
    for sent in 0..packets {
        run.send(&mut dice);
        if sent % 500 == 499 {
            run.compare();
        }
        if sent % 1000 == 999 {
            let seconds = dice.pick(&[20, 90, 150, 250, 700]);
            run.lab.age_flows(seconds);
            run.clock.passed += i64::from(seconds);
        }
        if sent % 20_000 == 19_999 {
            run.lab.age_flows(500_000);
            run.clock.passed += 500_000;
        }
    }
    println!("{} opened, {} refused, {:?} at the end", run.opened, run.refused, run.meter().open);
    assert!(run.opened > packets / 1000 && run.refused > packets / 1000, "few of one kind");
}
