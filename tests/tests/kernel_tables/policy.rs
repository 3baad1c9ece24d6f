//! Looking up the pod's table (docs/semantics.md 1.2, 5, 6): ports, ranges, classes, prefixes.

use podgate_bpf::abi::Direction;
use podgate_tests::kernel::Lab;

use crate::prelude::*;

pub(crate) fn tables() -> Vec<Table> {
    let mut tables = both(ports);
    tables.extend(both(classes));
    tables.extend(both(denials));
    tables.extend(prefixes());
    tables
}

fn ports(f: Family) -> Vec<Table> {
    let mut tables = Vec::new();
    for direction in [Ingress, Egress] {
        let send = |table: Table, transport: fn(u16, u16) -> Transport, port: u16, expected| {
            match direction {
                Ingress => table.to_pod(f.back(transport(33333, port)), expected),
                Egress => table.from_pod(f.out(transport(33333, port)), expected),
            }
        };
        let syn: fn(u16, u16) -> Transport = |a, b| tcp(a, b).syn();
        let named = |what: &str| f.named(&format!("ports: {}, {what}", direction.name()));
        let world = |ports| World::isolated().allow(direction, ANY, ports);

        let one = table(named("one"), world(Ports::One(TCP, 80)));
        let one = send(one, syn, 79, DenyPolicy);
        let one = send(one, syn, 80, AllowPolicy);
        let one = send(one, syn, 81, DenyPolicy);
        let one = send(one, syn, 0, DenyPolicy);
        let one = send(one, syn, 80 << 8, DenyPolicy);
        let one = send(one, udp, 80, DenyPolicy);
        tables.push(send(one, sctp, 80, DenyPolicy));

        for (first, bits) in
            [(8000_u16, 14_u32), (0, 1), (32768, 1), (0, 15), (65534, 15), (1024, 6)]
        {
            let last = first + ((1_u32 << (16 - bits)) - 1) as u16;
            let range =
                table(named(&format!("{first} to {last}")), world(Ports::Prefix(UDP, first, bits)));
            let mut range = send(range, udp, first, AllowPolicy);
            range = send(range, udp, last, if last == first { AllowFlow } else { AllowPolicy });
            if let Some(below) = first.checked_sub(1) {
                range = send(range, udp, below, DenyPolicy);
            }
            if let Some(above) = last.checked_add(1) {
                range = send(range, udp, above, DenyPolicy);
            }
            tables.push(send(range, syn, first, DenyPolicy));
        }

        let all = table(named("all of a protocol"), world(Ports::All(UDP)));
        let all = send(all, udp, 0, AllowPolicy);
        let all = send(all, udp, 1, AllowPolicy);
        let all = send(all, udp, 65535, AllowPolicy);
        let all = send(all, syn, 1, DenyPolicy);
        tables.push(send(all, |_, _| raw(136, &[0; 8]), 0, DenyPolicy));

        let every = table(named("every protocol"), world(Ports::Every));
        let every = send(every, udp, 1, AllowPolicy);
        let every = send(every, syn, 1, AllowPolicy);
        let every = send(every, sctp, 1, AllowPolicy);
        let every = send(every, |_, _| raw(255, &[0; 8]), 0, AllowPolicy);
        tables.push(send(every, |_, _| raw(99, &[0; 8]), 0, AllowPolicy));

        let nothing = table(named("nothing"), World::isolated());
        let nothing = send(nothing, syn, 0, DenyPolicy);
        let nothing = send(nothing, |_, _| raw(255, &[0; 8]), 0, DenyPolicy);
        tables.push(send(nothing, udp, 65535, DenyPolicy));
    }
    let web = || web().allow(Ingress, ANY, Ports::All(UDP));
    let hits = |direction: Direction, ports, wanted| {
        move |lab: &mut Lab| assert_eq!(lab.hits(direction, ANY, ports), wanted)
    };
    tables.push(
        table(f.named("ports: an entry counts the flows it decides"), web())
            .to_pod(f.back(tcp(1, 80).syn()), AllowPolicy)
            .from_pod(f.out(tcp(80, 1).syn_ack()), AllowFlow)
            .to_pod(f.back(tcp(1, 80).ack()), AllowFlow)
            .to_pod(f.back(tcp(2, 80).syn()), AllowPolicy)
            .to_pod(f.back(tcp(2, 81).syn()), DenyPolicy)
            .then("two", hits(Ingress, Ports::One(TCP, 80), 2))
            .change(|_| ())
            .to_pod(f.back(tcp(1, 80).ack()), AllowFlow)
            .then("still two", hits(Ingress, Ports::One(TCP, 80), 2))
            .then("of another", hits(Ingress, Ports::All(UDP), 0)),
    );
    tables
}

fn classes(f: Family) -> Vec<Table> {
    let (peer, stranger) =
        (|port| f.back(tcp(1, port).syn()), |port| tcp(1, port).syn().between(f.stranger, f.pod));
    let world = || World::isolated().peer(f.peer, 1);
    vec![
        table(f.named("classes: what is allowed to one is not to another"), {
            world().allow(Ingress, 1, Ports::One(TCP, 80)).allow(Ingress, 2, Ports::One(TCP, 81))
        })
        .to_pod(peer(80), AllowPolicy)
        .to_pod(peer(81), DenyPolicy)
        .to_pod(stranger(80), DenyPolicy)
        .to_pod(stranger(81), DenyPolicy),
        table(f.named("classes: what is allowed to all is allowed to each"), {
            world().allow(Ingress, 1, Ports::One(TCP, 80)).allow(Ingress, ANY, Ports::One(TCP, 81))
        })
        .to_pod(peer(80), AllowPolicy)
        .to_pod(peer(81), AllowPolicy)
        .to_pod(stranger(81), AllowPolicy)
        .to_pod(stranger(80), DenyPolicy),
        table(f.named("classes: a class without entries has what all have"), {
            World::isolated().peer(f.peer, 9).allow(Ingress, ANY, Ports::Every)
        })
        .to_pod(peer(80), AllowPolicy),
        table(f.named("classes: everything to one class is nothing to others"), {
            world().allow(Ingress, 1, Ports::Every)
        })
        .to_pod(peer(80), AllowPolicy)
        .to_pod(stranger(80), DenyPolicy)
        .from_pod(f.out(tcp(1, 80).syn()), DenyPolicy),
        table(f.named("classes: large numbers"), {
            World::isolated().peer(f.peer, u32::MAX).allow(Ingress, u32::MAX, Ports::Every)
        })
        .to_pod(peer(80), AllowPolicy)
        .to_pod(stranger(80), DenyPolicy),
    ]
}

fn denials(f: Family) -> Vec<Table> {
    let peer = |port| f.back(tcp(1, port).syn());
    let stranger = |port| tcp(1, port).syn().between(f.stranger, f.pod);
    let world = || World::isolated().peer(f.peer, 1);
    vec![
        table(f.named("denials: a class before any class"), {
            world().deny(Ingress, 1, Ports::One(TCP, 80)).allow(Ingress, ANY, Ports::All(TCP))
        })
        .to_pod(peer(80), DenyPolicy)
        .to_pod(peer(81), AllowPolicy)
        .to_pod(stranger(80), AllowPolicy),
        table(f.named("denials: a class that may, though all may not"), {
            world().allow(Ingress, 1, Ports::All(TCP)).deny(Ingress, ANY, Ports::Every)
        })
        .to_pod(peer(80), AllowPolicy)
        .to_pod(f.back(udp(1, 80)), DenyPolicy)
        .to_pod(stranger(80), DenyPolicy),
        table(f.named("denials: one port of all"), {
            world().allow(Ingress, 1, Ports::Every).deny(Ingress, 1, Ports::Prefix(TCP, 80, 15))
        })
        .to_pod(peer(79), AllowPolicy)
        .to_pod(peer(80), DenyPolicy)
        .to_pod(peer(81), DenyPolicy)
        .to_pod(peer(82), AllowPolicy)
        .to_pod(f.back(udp(1, 80)), AllowPolicy),
        table(f.named("denials: and one port of those again"), {
            world().allow(Ingress, ANY, Ports::Every).deny(Ingress, ANY, Ports::All(TCP)).allow(
                Ingress,
                ANY,
                Ports::One(TCP, 80),
            )
        })
        .to_pod(stranger(80), AllowPolicy)
        .to_pod(stranger(81), DenyPolicy)
        .to_pod(f.back(udp(1, 81)), AllowPolicy),
        table(f.named("denials: cut packets, where all is denied by an entry"), {
            world().deny(Ingress, ANY, Ports::Every)
        })
        .to_pod(f.back(tcp(1, 80).truncated(9)), DenyMalformed),
        // as the compiler writes it where somebody is denied something
        table(f.named("denials: cut packets, where all is allowed but they"), {
            let unreadable = Ports::All(255);
            world().allow(Ingress, ANY, Ports::Every).deny(Ingress, ANY, unreadable)
        })
        .to_pod(f.back(tcp(1, 80).truncated(9)), DenyMalformed)
        .to_pod(f.back(udp(1, 80)), AllowPolicy),
    ]
}

fn prefixes() -> Vec<Table> {
    let from = |source: &str| udp(1, 2).between(source, POD);
    let from6 = |source: &str| udp(1, 2).between(source, POD6);
    let classed = |class| World::isolated().allow(Ingress, class, Ports::Every);
    let nested = |class| {
        classed(class)
            .net("10.0.0.0", 8, 1)
            .net("10.1.0.0", 16, 2)
            .net("10.1.2.0", 24, 3)
            .net("10.1.2.3", 32, 4)
            .peer("10.1.2.4", 5)
            .peer("10.1.2.3", 6)
            .net("0.0.0.0", 0, 7)
    };
    let of = [
        ("10.2.0.0", 1),
        ("10.255.255.255", 1),
        ("10.1.0.0", 2),
        ("10.1.3.0", 2),
        ("10.1.2.0", 3),
        ("10.1.2.255", 3),
        ("10.1.2.4", 5),
        ("10.1.2.3", 6),
        ("9.255.255.255", 7),
        ("11.0.0.0", 7),
        ("192.0.2.1", 7),
    ];
    let mut tables: Vec<Table> = (1..=7)
        .map(|class| {
            of.iter().fold(
                table(format!("prefixes: nested, class {class}"), nested(class)),
                |table, (source, theirs)| {
                    table.to_pod(
                        from(source),
                        if *theirs == class { AllowPolicy } else { DenyPolicy },
                    )
                },
            )
        })
        .collect();
    tables.extend([
        table("prefixes: everything of IPv4 is nothing of IPv6", classed(1).net("0.0.0.0", 0, 1))
            .to_pod(from("192.0.2.1"), AllowPolicy)
            .to_pod(from6("2001:db8::1"), DenyPolicy)
            .to_pod(from6("::ffff:192.0.2.1"), DenyMalformed),
        table("prefixes: everything of IPv6 is nothing of IPv4", classed(1).net("::", 0, 1))
            .to_pod(from6("2001:db8::1"), AllowPolicy)
            .to_pod(from("192.0.2.1"), DenyPolicy),
        table("prefixes: of IPv6, nested and hosts first", {
            classed(2)
                .net("2001:db8::", 32, 1)
                .net("2001:db8:1::", 48, 2)
                .net("2001:db8:1::5", 128, 3)
                .peer("2001:db8:1::6", 4)
                .peer("2001:db8:2::7", 2)
        })
        .to_pod(from6("2001:db8::1"), DenyPolicy)
        .to_pod(from6("2001:db8:1::1"), AllowPolicy)
        .to_pod(from6("2001:db8:1::5"), DenyPolicy)
        .to_pod(from6("2001:db8:1::6"), DenyPolicy)
        .to_pod(from6("2001:db8:2::7"), AllowPolicy)
        .to_pod(from6("2001:db7:ffff::1"), DenyPolicy),
        table("prefixes: an address of class 0 is a stranger, whatever contains it", {
            classed(1).net("10.0.0.0", 8, 1).peer("10.1.1.1", ANY)
        })
        .to_pod(from("10.1.1.2"), AllowPolicy)
        .to_pod(from("10.1.1.1"), DenyPolicy),
    ]);
    tables
}
