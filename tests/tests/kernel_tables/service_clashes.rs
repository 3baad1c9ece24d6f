//! Flows that would look the same to one endpoint.

use podgate_tests::kernel::NEXT;

use crate::prelude::*;
use crate::service_steps::*;

pub(crate) fn tables() -> Vec<Table> {
    both(clashes)
}

fn clashes(f: Family) -> Vec<Table> {
    let two = if f.icmp == ICMP { "10.96.0.11" } else { "fd00:10:96::b" };
    let world = || {
        World::open().service(domain_service(f, &[f.peer])).service(Service::new(
            two,
            53,
            UDP,
            &[(f.peer, 5353)],
        ))
    };
    let direct = || udp(40000, 5353).between(f.pod, f.peer);
    vec![
        table(f.named("clash: one socket, two services, one endpoint"), world())
            .out(ask(f, f.peer), AllowPolicy)
            .then("the second leaves from another port", move |lab| {
                let frame = udp(40000, 53).between(f.pod, two).frame();
                let first = lab.send(Egress, &frame, Via::Nothing);
                assert_eq!((first.action, first.reason()), (NEXT, Some(AllowPolicy)), "{first:?}");
                let (port, to, _) = left(f, &first.packet);
                assert!(port >= 32768 && port != 40000 && to == 5353, "{port} {to}");
                assert_eq!(first.packet, udp(port, 5353).between(f.pod, f.peer).frame());
                let again = lab.send(Egress, &frame, Via::Nothing);
                assert_eq!((again.reason(), &again.packet), (Some(AllowFlow), &first.packet));
                // each answer comes from the service that was asked, to the port that asked
                let back =
                    lab.send(Ingress, &udp(5353, port).between(f.peer, f.pod).frame(), Via::Uplink);
                assert_eq!(back.packet, udp(53, 40000).between(two, f.pod).frame());
            })
            .back(answer(f, f.peer)),
        table(f.named("clash: a flow of the pod's own to the endpoint, then the service"), world())
            .from_pod(direct(), AllowPolicy)
            .then("the service's leaves from another port", move |lab| {
                let met = lab.send(Egress, &ask(f, f.peer).0.frame(), Via::Nothing);
                let (port, _, _) = left(f, &met.packet);
                assert_ne!(port, 40000);
                let back =
                    lab.send(Ingress, &udp(5353, port).between(f.peer, f.pod).frame(), Via::Uplink);
                assert_eq!(back.packet, answer(f, f.peer).1.frame());
            })
            .to_pod(udp(5353, 40000).between(f.peer, f.pod), AllowFlow)
            .from_pod(direct(), AllowFlow),
        table(f.named("clash: another endpoint before another port"), {
            World::open().service(many(f, 20))
        })
        .from_pod(tcp(40000, 8080).syn().between(f.pod, f.peer), AllowPolicy)
        .then("a hundred connections from that port", move |lab| {
            let syn = tcp(40000, 80).syn().between(f.pod, f.service).frame();
            for _ in 0..100 {
                let met = lab.send(Egress, &syn, Via::Nothing);
                let (port, _, to) = left(f, &met.packet);
                let peer = to == left(f, &tcp(1, 1).between(f.pod, f.peer).frame()).2;
                assert!(port == 40000 && !peer, "{met:?}");
                let rst = tcp(40000, 80).rst().between(f.pod, f.service).frame();
                assert_eq!(lab.send(Egress, &rst, Via::Nothing).reason(), Some(AllowFlow));
            }
        }),
        table(f.named("clash: what the pod may not reach is no clash"), {
            World::isolated().service(domain_service(f, &[f.peer]))
        })
        .from_pod(ask(f, f.peer).0, DenyPolicy)
        .from_pod(direct(), DenyPolicy),
    ]
}
