//! Clients that keep their endpoint (session affinity), as kube-proxy's do.

use std::collections::BTreeSet;

use podgate_tests::kernel::Lab;

use crate::prelude::*;
use crate::service_steps::*;

/// Longer than a client of [`sticky`] is remembered: clocks are coarse.
const LONG: u32 = 103;

pub(crate) fn tables() -> Vec<Table> {
    let mut tables = both(one_address);
    tables.extend(both(several_addresses));
    tables
}

/// A service of which clients keep their endpoint for 100 seconds, remembered under `number`.
fn sticky(f: Family, endpoints: u16, number: u32) -> Service {
    many(f, endpoints).affinity(100, number)
}

/// The same endpoints, at another of the service's addresses.
fn elsewhere(f: Family, mut service: Service) -> Service {
    service.frontend.address = podgate_testkit::packet::addr(second(f));
    service
}

fn second(f: Family) -> &'static str {
    if f.icmp == ICMP { "192.0.2.80" } else { "2001:db8::80" }
}

/// Which endpoint a new connection from this port to a service address gets.
fn choice(lab: &Lab, f: Family, (address, to): (&str, u16), port: u16) -> Vec<u8> {
    let frame = tcp(port, to).syn().between(f.pod, address).frame();
    let met = lab.send(Egress, &frame, Via::Nothing);
    assert_eq!(met.reason(), Some(AllowPolicy), "{met:?}");
    left(f, &met.packet).2
}

fn octets(address: std::net::IpAddr) -> Vec<u8> {
    match address {
        std::net::IpAddr::V4(ip) => ip.octets().to_vec(),
        std::net::IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

/// Lets time pass for everything that is remembered of clients.
fn age(lab: &Lab, seconds: u32) {
    use libbpf_rs::{MapCore as _, MapFlags};
    let map = lab.map("affinity");
    for key in map.keys().collect::<Vec<_>>() {
        let mut value = map.lookup(&key, MapFlags::ANY).unwrap().unwrap();
        let seen = u32::from_ne_bytes(value[20..24].try_into().unwrap());
        value[20..24].copy_from_slice(&(seen - seconds).to_ne_bytes());
        map.update(&key, &value, MapFlags::ANY).unwrap();
    }
}

/// Has the endpoint with these octets drain.
fn drain(service: &mut Service, endpoint: &[u8]) {
    let at = service.ready.iter().position(|of| octets(of.address) == endpoint).unwrap();
    let drained = service.ready.swap_remove(at);
    service.serving.push(drained);
}

fn one_address(f: Family) -> Vec<Table> {
    let web = (f.service, 80);
    let world = || World::open().service(sticky(f, 99, 0));
    vec![
        table(f.named("affinity: a client keeps its endpoint"), world()).then(
            "50 flows",
            move |lab| {
                let first = choice(lab, f, web, 1000);
                for port in 1001..1050 {
                    assert_eq!(choice(lab, f, web, port), first, "port {port}");
                    age(lab, 90); // each new flow begins the time anew
                }
            },
        ),
        table(f.named("affinity: it ends with its time"), world()).then(
            "flows far apart",
            move |lab| {
                let choices: BTreeSet<_> = (1000..1020)
                    .map(|port| {
                        let choice = choice(lab, f, web, port);
                        age(lab, LONG);
                        choice
                    })
                    .collect();
                assert!(choices.len() > 5, "{choices:?}");
            },
        ),
        table(f.named("affinity: an endpoint that drains, or goes, is not kept"), world()).then(
            "its endpoint drains, and comes back",
            move |lab| {
                let first = choice(lab, f, web, 1000);
                let mut service = sticky(f, 99, 0);
                drain(&mut service, &first);
                lab.serve(1, &service);
                let second = choice(lab, f, web, 1001);
                assert_ne!(second, first);
                assert_eq!(choice(lab, f, web, 1002), second);
                lab.serve(1, &sticky(f, 99, 0));
                for port in 1003..1020 {
                    assert_eq!(choice(lab, f, web, port), second, "port {port}");
                }
            },
        ),
        table(f.named("affinity: none, and flows spread"), World::open().service(many(f, 99)))
            .then("flows", move |lab| {
                let choices: BTreeSet<_> =
                    (1000..1050).map(|port| choice(lab, f, web, port)).collect();
                assert!(choices.len() > 20, "{}", choices.len());
            }),
    ]
}

fn several_addresses(f: Family) -> Vec<Table> {
    let (web, also, other) = ((f.service, 80), (second(f), 80), (f.service, 81));
    // whether a client that is remembered no more gets the same endpoint twice, 20 times over: else once in 10^40
    let agree = move |lab: &Lab, a: (&str, u16), b: (&str, u16)| {
        (0..20).all(|n| {
            age(lab, LONG);
            choice(lab, f, a, 1000 + 2 * n) == choice(lab, f, b, 1001 + 2 * n)
        })
    };
    let two = |number: u32| {
        let service = sticky(f, 99, number);
        World::open().service(service.clone()).service(elsewhere(f, service))
    };
    vec![
        table(f.named("affinity: the addresses of a service port share it"), two(7)).then(
            "flows to both",
            move |lab| {
                assert!(agree(lab, web, also), "the first address decides");
                assert!(agree(lab, also, web), "the second address decides");
            },
        ),
        table(f.named("affinity: the time of one address slides with flows to another"), two(7))
            .then("flows to both in turn", move |lab| {
                let first = choice(lab, f, web, 1000);
                for port in 1001..1040 {
                    age(lab, 90);
                    let to = if port % 2 == 0 { web } else { also };
                    assert_eq!(choice(lab, f, to, port), first, "port {port}");
                }
            }),
        table(f.named("affinity: an older policyd's entries have a memory each"), two(0))
            .then("flows to both", move |lab| assert!(!agree(lab, web, also))),
        table(f.named("affinity: another port of the service has its own"), {
            let mut admin = sticky(f, 99, 8);
            admin.frontend.port = 81;
            World::open().service(sticky(f, 99, 7)).service(admin)
        })
        .then("flows to both", move |lab| assert!(!agree(lab, web, other))),
        table(f.named("affinity: an endpoint that the other address has not is not used"), {
            let mut few = elsewhere(f, sticky(f, 99, 7));
            few.ready.truncate(2);
            World::open().service(sticky(f, 99, 7)).service(few)
        })
        .then("flows to both", move |lab| {
            // 40 choices of 100, all of which are among these two: once in 10^68
            let few: Vec<_> =
                sticky(f, 99, 7).ready[..2].iter().map(|of| octets(of.address)).collect();
            let mut wide = BTreeSet::new();
            for port in (1000..1080).step_by(2) {
                age(lab, LONG);
                wide.insert(choice(lab, f, web, port));
                let narrow = choice(lab, f, also, port + 1);
                assert!(few.contains(&narrow), "{narrow:?}");
            }
            assert!(wide.iter().any(|of| !few.contains(of)), "{wide:?}");
            // what the narrow one picked is ready at the wide one too
            let last = choice(lab, f, also, 1100);
            assert_eq!(choice(lab, f, web, 1101), last);
        }),
        table(f.named("affinity: an endpoint drains, at all addresses at once"), two(7)).then(
            "its endpoint drains, first for the second address",
            move |lab| {
                let first = choice(lab, f, web, 1000);
                let mut service = sticky(f, 99, 7);
                drain(&mut service, &first);
                lab.serve(2, &elsewhere(f, service.clone()));
                let second = choice(lab, f, also, 1001);
                assert_ne!(second, first);
                lab.serve(1, &service);
                assert_eq!(choice(lab, f, web, 1002), second);
            },
        ),
    ]
}
