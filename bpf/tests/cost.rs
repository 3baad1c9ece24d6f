//! What the programs cost: instructions, the verifier's walk, and time per packet. Prints its numbers:
//! `cargo test -p podgate-bpf --test cost`. The bounds are wide, as the machine may be busy with other tests; they
//! catch a datapath that does something entirely different for each packet, not a slow day.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

use std::net::IpAddr;
use std::os::fd::AsFd;

use libbpf_rs::Program;
use libbpf_rs::btf::types::Func;
use libbpf_rs::btf::{Btf, TypeId};
use libbpf_rs::query::{ProgInfoIter, ProgInfoQueryOptions};
use podgate_bpf::abi::Direction::{self, Egress, Ingress};
use podgate_bpf::abi::{
    BackendState, POLICY_PREFIX_ANY, POLICY_PREFIX_PORT, PolicyKey, PolicyValue, SOME_PORT,
    Startup, Verdict,
};
use podgate_bpf::loader::Sizes;
use podgate_bpf::maps::Registration;
use podgate_bpf::services::{Backend, Frontend, ServiceEntry};
use podgate_bpf::testrun::{Context, Outcome};
use podgate_bpf::{Datapath, PinRoot};
use podgate_testkit::packet::{Ip, tcp, udp};
use podgate_testkit::sandbox::{self, Veth, pin_dir, trial};

fn main() -> std::process::ExitCode {
    sandbox::run(|| {
        vec![trial("cost: the verifier's work", verifier), trial("cost: time per packet", time)]
    })
}

fn load() -> Datapath {
    Datapath::open_or_load(&PinRoot::new(pin_dir()), &Sizes::default()).unwrap()
}

/// The verifier gives up at a million instructions; kernels differ in how many they walk for the same program.
const VERIFIER_BOUND: u32 = 250_000;

fn verifier() {
    let datapath = load();
    let (from_pod, to_pod) = datapath.programs();
    for (name, program) in [("from_pod", from_pod), ("to_pod", to_pod)] {
        let id = Program::id_from_fd(program.as_fd()).unwrap();
        let wanted =
            ProgInfoQueryOptions::default().include_xlated_prog_insns(true).include_func_info(true);
        let info = ProgInfoIter::with_query_opts(wanted).find(|info| info.id == id).unwrap();
        let instructions = info.xlated_prog_insns.len() / 8;
        println!("{name}: {instructions} instructions, {} verified", info.verified_insns);
        let btf = Btf::from_prog_id(id).unwrap();
        assert!(
            !info.func_info.is_empty() && instructions > 0,
            "the kernel hides them (bpf_jit_harden?)"
        );
        let ends =
            info.func_info.iter().skip(1).map(|next| next.insn_off as usize).chain([instructions]);
        for (function, end) in info.func_info.iter().zip(ends) {
            let ty: Func<'_> = btf.type_by_id(TypeId::from(function.type_id)).unwrap();
            let called = ty.name().unwrap().to_string_lossy();
            println!("  {called}: {}", end - function.insn_off as usize);
        }
        assert!(info.verified_insns > 0, "this kernel does not say (before 5.16)");
        assert!(info.verified_insns < VERIFIER_BOUND, "{name}: {}", info.verified_insns);
    }
}

/// What is in force: of NetworkPolicies only, entries only allow; where ranked rules apply, those of a class are complete,
/// with ports that are denied between those that are not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rules {
    NetworkPolicies,
    Ranked,
}

impl Rules {
    fn entries(self) -> Vec<(PolicyKey, PolicyValue)> {
        let allowed = (8000..8010).flat_map(|port| {
            [allow(Ingress, 6, port), allow(Egress, 6, port), allow(Ingress, 17, port)]
        });
        let mut entries: Vec<_> = allowed.flatten().collect();
        if self == Self::NetworkPolicies {
            return entries;
        }
        let deny = |(key, value)| (key, PolicyValue { verdict: Verdict::Deny as u8, ..value });
        for direction in [Ingress, Egress] {
            for port in 7000..7030 {
                let [(key, value), _] = allow(direction, 6, port);
                entries.push(deny((key, value)));
            }
            let [entry, twin] = allow(direction, 0, 0);
            for (key, value) in [entry, twin] {
                for class in [0, 1] {
                    entries.push(deny((
                        PolicyKey { class, prefixlen: POLICY_PREFIX_ANY, ..key },
                        value,
                    )));
                }
            }
        }
        entries
    }
}

/// One allowed port of class 1, with its "some port" twin.
fn allow(direction: Direction, protocol: u8, port: u16) -> [(PolicyKey, PolicyValue); 2] {
    let key = PolicyKey {
        prefixlen: POLICY_PREFIX_PORT,
        owner: 7,
        class: 1,
        direction: direction as u8,
        protocol,
        port: port.to_be_bytes(),
    };
    let value =
        PolicyValue { rule: 1, verdict: Verdict::Allow as u8, flags: 0, pad: [0; 2], hits: 0 };
    [(key, value), (PolicyKey { direction: key.direction + SOME_PORT, ..key }, value)]
}

fn time() {
    [Rules::NetworkPolicies, Rules::Ranked].into_iter().for_each(packets_under);
}

/// Of a pod with tables of flows that are empty, as a new flow costs more where another has to make room.
fn packets_under(rules: Rules) {
    let datapath = load();
    let veth = Veth::new().unwrap();
    datapath
        .maps
        .register(&Registration {
            ifindex: veth.ifindex,
            owner: 7,
            startup: Startup::Hold,
            anti_spoofing: true,
            addresses: vec!["10.0.0.5".parse().unwrap(), "fd00::5".parse().unwrap()],
            mac: None,
            netns_cookie: 0,
            container_id: "cost".into(),
            interface: "eth0".into(),
            host_interface: veth.host.clone(),
            network: "cost".into(),
            pod: None,
            netns: String::new(),
        })
        .unwrap();
    for n in 9..19 {
        datapath.maps.set_peer(std::net::IpAddr::from([10, 0, 0, n]), 1).unwrap();
        datapath.maps.set_peer(format!("fd00::{n:x}").parse().unwrap(), 1).unwrap();
    }
    let run = |direction: Direction, frame: &Ip, repeat: u32| {
        let context = Context { ifindex: veth.ifindex, ingress_ifindex: 1 };
        datapath.test_run(direction, context, &frame.frame(), repeat).unwrap()
    };
    // the quietest of some rounds, nanoseconds
    let repeated = |direction: Direction, frame: &Ip, action: i32| {
        let rounds = (0..7).map(|_| {
            let outcome = run(direction, frame, 100_000);
            assert_eq!(outcome.action, action);
            outcome.duration.as_nanos() as u64
        });
        rounds.min().unwrap_or_default()
    };
    let policy = datapath.maps.new_policy_map(&rules.entries()).unwrap();
    datapath.maps.install_policy_maps(&[(veth.ifindex, &policy)]).unwrap();
    datapath.maps.control().bump_epoch();
    for (pod, peer, stranger) in
        [("10.0.0.5", "10.0.0.9", "10.0.1.9"), ("fd00::5", "fd00::9", "fd00:1::9")]
    {
        let family = if pod.contains(':') { "v6" } else { "v4" };
        let syn = tcp(40000, 8000).syn().between(peer, pod);
        assert_eq!(run(Ingress, &syn, 1).action, -1);
        let established = repeated(Ingress, &tcp(40000, 8000).ack().between(peer, pod), -1);
        let reply = repeated(Egress, &tcp(8000, 40000).ack().between(pod, peer), -1);
        let denied = repeated(Ingress, &tcp(40000, 80).syn().between(peer, pod), 2);
        let stranger = repeated(Ingress, &udp(40000, 8000).between(stranger, pod), 2);
        let datagram = udp(40000, 8001).between(peer, pod);
        assert_eq!(run(Ingress, &datagram, 1).action, -1);
        let datagram = repeated(Ingress, &datagram, -1);
        // each opens a flow of its own, so none can be repeated: the median of many
        let mut opened: Vec<u64> = (1024..21_024)
            .map(|port| {
                let outcome = run(Ingress, &tcp(port, 8001).syn().between(peer, pod), 1);
                assert_eq!(outcome.action, -1);
                outcome.duration.as_nanos() as u64
            })
            .collect();
        opened.sort_unstable();
        let allowed = opened[opened.len() / 2];
        println!(
            "{rules:?}, {family}: established {established} ns, reply {reply}, datagram {datagram}; new denied {denied}, \
             from a stranger {stranger}; new allowed {allowed} (with the clock's own cost)"
        );
        let service: std::net::IpAddr =
            if family == "v4" { "10.96.0.10" } else { "fd00:10:96::a" }.parse().unwrap();
        if rules == Rules::NetworkPolicies {
            to_itself(&datapath, &run, (pod, service));
            through_service(&datapath, &run, (pod, peer, service));
        }
        assert!(established < 1000 && reply < 1000 && datagram < 1000, "of a known flow");
        assert!(established < denied, "a known flow is the short way");
        assert!(denied < 10_000 && stranger < 10_000 && allowed < 20_000, "of a new flow");
    }
    veth.delete().unwrap();
}

/// Packets through a service with a hundred endpoints; one with one where each packet must be of the same flow.
fn through_service(
    datapath: &Datapath,
    run: &impl Fn(Direction, &Ip, u32) -> Outcome,
    (pod, peer, service): (&str, &str, IpAddr),
) {
    let maps = datapath.maps.services();
    let to = service.to_string();
    let backend = Backend { address: peer.parse().unwrap(), port: 8001 };
    for (id, protocol, port, count) in [(1, 6, 80, 1), (2, 6, 81, 100)] {
        maps.set_backend(id, backend, BackendState::Ready).unwrap();
        for slot in 0..count {
            maps.set_slot(id, slot, backend).unwrap();
        }
        let frontend = Frontend { address: service, port, protocol };
        maps.set_service(&frontend, ServiceEntry { id, count, affinity: None }).unwrap();
    }
    let opened = run(Egress, &tcp(50000, 80).syn().between(pod, &to), 1);
    assert_eq!(
        (opened.action, opened.packet),
        (-1, tcp(50000, 8001).syn().between(pod, peer).frame())
    );
    // a program that is repeated meets the packet as it left it: only single runs are of the flow
    let out = tcp(50000, 80).ack().between(pod, &to);
    let back = tcp(8001, 50000).ack().between(peer, pod);
    let median = |direction, frame: &Ip| {
        let mut times: Vec<_> = (0..5000)
            .map(|_| {
                let outcome = run(direction, frame, 1);
                assert_eq!(outcome.action, -1);
                outcome.duration.as_nanos() as u64
            })
            .collect();
        times.sort_unstable();
        times[times.len() / 2]
    };
    let plain = tcp(50001, 8001).syn().between(pod, peer);
    assert_eq!(run(Egress, &plain, 1).action, -1);
    let plain = tcp(50001, 8001).ack().between(pod, peer);
    let (bare, sent, received) =
        (median(Egress, &plain), median(Egress, &out), median(Ingress, &back));
    let mut news: Vec<u64> = (1024..11_024)
        .map(|port| {
            let outcome = run(Egress, &tcp(port, 81).syn().between(pod, &to), 1);
            assert_eq!(outcome.action, -1);
            outcome.duration.as_nanos() as u64
        })
        .collect();
    news.sort_unstable();
    let mut plains: Vec<u64> = (11_024..21_024)
        .map(|port| {
            let outcome = run(Egress, &tcp(port, 8001).syn().between(pod, peer), 1);
            assert_eq!(outcome.action, -1);
            outcome.duration.as_nanos() as u64
        })
        .collect();
    plains.sort_unstable();
    println!(
        "  service: {} ns more than without for an established packet out, {} back; new flow {} ns, without {} \
         (with the clock's own cost)",
        sent.saturating_sub(bare),
        received.saturating_sub(bare),
        news[news.len() / 2],
        plains[plains.len() / 2],
    );
}

/// New flows of a pod that is the only endpoint of a service.
fn to_itself(
    datapath: &Datapath,
    run: &impl Fn(Direction, &Ip, u32) -> Outcome,
    (pod, service): (&str, IpAddr),
) {
    const REDIRECT: i32 = 7;
    let maps = datapath.maps.services();
    let backend = Backend { address: pod.parse().unwrap(), port: 8001 };
    maps.set_backend(3, backend, BackendState::Ready).unwrap();
    maps.set_slot(3, 0, backend).unwrap();
    let frontend = Frontend { address: service, port: 82, protocol: 6 };
    maps.set_service(&frontend, ServiceEntry { id: 3, count: 1, affinity: None }).unwrap();
    let to = service.to_string();
    let mut news: Vec<u64> = (1024..4024)
        .map(|port| {
            let outcome = run(Egress, &tcp(port, 82).syn().between(pod, &to), 1);
            assert_eq!(outcome.action, REDIRECT);
            outcome.duration.as_nanos() as u64
        })
        .collect();
    news.sort_unstable();
    println!("  to itself: new flow {} ns (with the clock's own cost)", news[news.len() / 2]);
}
