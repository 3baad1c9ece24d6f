//! The choice is even, whatever the number of endpoints.

use podgate_bpf::services::Backend;
use podgate_bpf::testrun::Context;
use podgate_tests::kernel::NEXT;

use crate::prelude::*;

/// Choices made for each number of endpoints.
const PICKS: u16 = 20_000;

pub(crate) fn tables() -> Vec<Table> {
    [1, 2, 3, 10, 1000].into_iter().map(spread).collect()
}

/// The number of an endpoint is in its address.
fn backend(number: usize) -> Backend {
    let [.., high, low] = (number as u32).to_be_bytes();
    Backend { address: std::net::IpAddr::from([10, 20, high, low]), port: 80 }
}

fn spread(endpoints: usize) -> Table {
    let mut service = Service::new(V4.service, 80, UDP, &[]);
    service.ready = (0..endpoints).map(backend).collect();
    let title = format!("services: the choice among {endpoints} is even");
    table(title, World::open().service(service)).then("many flows", move |lab| {
        let mut counts = vec![0_u32; endpoints];
        let context = Context { ifindex: lab.ifindex, ingress_ifindex: 0 };
        for port in 0..PICKS {
            let frame = udp(10_000 + port, 80).between(V4.pod, V4.service).frame();
            let outcome = lab.datapath().test_run(Egress, context, &frame, 1).unwrap();
            assert_eq!(outcome.action, NEXT);
            let to = &outcome.packet[30..34];
            assert_eq!(to[..2], [10, 20]);
            counts[usize::from(to[2]) << 8 | usize::from(to[3])] += 1;
        }
        let expected = f64::from(PICKS) / endpoints as f64;
        let squares = counts.iter().map(|count| (f64::from(*count) - expected).powi(2) / expected);
        let (chi, freedom) = (squares.sum::<f64>(), (endpoints - 1) as f64);
        // beyond six standard deviations, and the long tail that few degrees of freedom have
        let bound = freedom + 6.0 * (2.0 * freedom).sqrt() + 30.0;
        println!("{endpoints} endpoints: chi-square {chi:.1}, at most {bound:.1}");
        assert!(chi < bound, "chi-square {chi:.1} of {counts:?}");
    })
}
