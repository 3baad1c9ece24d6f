//! Copies as fast as the machine can, in packets as large as its offloads make them.

use std::io::{Read, Write};
use std::thread;
use std::time::{Duration, Instant};

use podgate_bpf::abi::Reason;
use podgate_testkit::wait::{WAIT_TIMEOUT, eventually};
use podgate_tests::netlab::Lab;

use crate::Test;
use crate::talk::*;

pub(crate) const TESTS: &[Test] = &[
    ("bulk_copies_pass_in_large_packets_both_ways", both_ways),
    ("big_tcp_passes", big_tcp),
    ("a_bulk_copy_is_cut_in_the_middle", cut),
];

const TIME: Duration = Duration::from_secs(1);

/// Copies for a while; returns how much arrived.
fn copy(mut from: &std::net::TcpStream, mut to: &std::net::TcpStream, time: Duration) -> usize {
    let end = Instant::now() + time;
    to.set_read_timeout(Some(WAIT_TIMEOUT)).unwrap();
    thread::scope(|scope| {
        let sending = scope.spawn(move || {
            let (block, mut sent) = (vec![0x5a; 1 << 18], 0);
            while Instant::now() < end {
                from.write_all(&block).unwrap();
                sent += block.len();
            }
            from.shutdown(std::net::Shutdown::Write).unwrap();
            sent
        });
        let (mut block, mut received) = (vec![0; 1 << 18], 0);
        loop {
            match to.read(&mut block).unwrap_or_else(|e| panic!("the copy stalls: {e}")) {
                0 => break,
                length => received += length,
            }
        }
        assert_eq!(received, sending.join().unwrap(), "all that was sent arrives");
        received
    })
}

fn guarded(lab: &Lab) -> (Pod, Pod) {
    let client = lab.gated(&port(Policy::isolated(), Policed::Egress));
    let server = lab.gated(&port(Policy::isolated(), Policed::Ingress));
    (client, server)
}

fn both_ways(lab: &Lab, family: Family) {
    let (client, server) = guarded(lab);
    for from_client in [true, false] {
        let ends = tcp(&client, &server, family, PORT);
        let (from, to) =
            if from_client { (&ends.client, &ends.server) } else { (&ends.server, &ends.client) };
        let before = largest(lab);
        let copied = copy(from, to, TIME);
        let mean = mean_since(lab, before);
        println!(
            "{}: {} MB/s through two gates, {mean} bytes a packet",
            family.name(),
            copied as u64 / 1_000_000 / TIME.as_secs()
        );
        assert!(copied > 10 << 20, "{copied} bytes in {TIME:?}");
    }
    nothing_denied(lab);
}

/// Packets and bytes of known flows.
fn largest(lab: &Lab) -> (u64, u64) {
    let counters = lab.datapath.maps.counters().unwrap();
    let both = [Egress, Ingress].map(|direction| counters.get(direction, Reason::AllowFlow));
    (both[0].packets + both[1].packets, both[0].bytes + both[1].bytes)
}

/// Bytes a packet, those without data included.
fn mean_since(lab: &Lab, before: (u64, u64)) -> u64 {
    let now = largest(lab);
    let mean = (now.1 - before.1) / (now.0 - before.0).max(1);
    assert!(mean > 2000, "{mean} bytes a packet: no segmentation offload at work");
    mean
}

/// Packets beyond 64 kB, whose IP headers cannot tell their length.
fn big_tcp(lab: &Lab, family: Family) {
    let (client, server) = guarded(lab);
    let size = match family {
        Family::V4 => "gso_ipv4_max_size 150000 gro_ipv4_max_size 150000",
        Family::V6 => "gso_max_size 150000 gro_max_size 150000",
    };
    if family == Family::V4 && !knows_ipv4_big_tcp(lab) {
        // the limit is then that of both families, or there is none to set: the copy itself must work
        println!("this iproute2 cannot set gso_ipv4_max_size: packets of 64 kB only");
    } else {
        for pod in [&client, &server] {
            pod.net.ip(&format!("link set eth0 {size}"));
            lab.node.ip(&format!("link set {} {size}", pod.host));
        }
        lab.node.ip(&format!("link set br0 {size}"));
    }
    let ends = tcp(&client, &server, family, PORT);
    let before = largest(lab);
    let copied = copy(&ends.client, &ends.server, TIME);
    println!("{}: {} MB, {} bytes a packet", family.name(), copied >> 20, mean_since(lab, before));
    assert!(copied > 10 << 20);
    nothing_denied(lab);
}

fn knows_ipv4_big_tcp(lab: &Lab) -> bool {
    lab.node.run(|| podgate_testkit::sandbox::ip("link set br0 gso_ipv4_max_size 65536")).is_ok()
}

/// Megabytes are under way when the rule goes.
fn cut(lab: &Lab, family: Family) {
    let allowed = port(Policy::isolated(), Policed::Ingress).open_for(Policed::Egress);
    let (client, server) = (lab.pod(), lab.gated(&allowed));
    let (ends, watch) = (tcp(&client, &server, family, PORT), Watch::new(&client, &server, family));
    ends.client.set_write_timeout(Some(SILENCE)).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            let block = vec![1; 1 << 16];
            while (&ends.client).write_all(&block).is_ok() {}
        });
        ends.server.hear(1 << 20, WAIT_TIMEOUT).unwrap();
        lab.set_policy(&server, &Policy::isolated().open_for(Policed::Egress));
        // what was past the gate at that moment may still be on its last few metres
        watch.begin();
        eventually("what was past the gate has arrived", || {
            thread::sleep(Duration::from_millis(20));
            watch.arrived() == (0, 0)
        });
        thread::sleep(SILENCE);
        assert_eq!(watch.arrived(), (0, 0), "packets arrive at (client, server)");
        assert!(refused(lab, Ingress) > 0);
    });
}
