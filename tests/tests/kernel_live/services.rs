//! Real sockets through services: offloaded packets, fragments, errors, and pods that reach themselves.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

use podgate_bpf::abi::Reason;
use podgate_bpf::services::{Backend, Frontend};
use podgate_policy::tables::{Class, PortMatch};
use podgate_testkit::wait::{WAIT_TIMEOUT, eventually};
use podgate_tests::netlab::Lab;

use crate::Test;
use crate::talk::*;

pub(crate) const TESTS: &[Test] = &[
    ("megabytes_pass_a_service_unharmed_in_large_packets", bulk),
    ("megabytes_pass_a_service_unharmed_without_checksum_offload", bulk_without_offload),
    ("megabytes_pass_a_service_through_a_narrow_link", narrow),
    ("datagrams_of_8_kb_pass_a_service_both_ways", fragments),
    ("a_server_behind_a_service_sees_its_client", real_client),
    ("a_service_with_mixed_endpoints_reaches_the_allowed_ones_only", mixed),
    ("a_closed_port_behind_a_service_refuses", closed),
    ("a_pod_reaches_itself_through_its_service", hairpin),
    ("a_closed_port_of_its_own_refuses_through_the_service", hairpin_closed),
    ("datagrams_move_to_another_endpoint_and_connections_stay", moves),
    ("one_socket_talks_to_two_services_of_one_endpoint", two_services),
    ("one_socket_talks_to_a_service_and_to_its_endpoint", service_and_endpoint),
    ("one_port_connects_to_a_service_and_to_its_endpoint", connections_of_one_port),
];

/// Where services listen; their endpoints listen on [`PORT`].
const SERVICE_PORT: u16 = 8000;

/// Enough for segments of every size.
const LOAD: usize = 8 << 20;

fn frontend(family: Family, protocol: u8) -> Frontend {
    Frontend { address: Lab::service_address(family), port: SERVICE_PORT, protocol }
}

fn service(family: Family) -> SocketAddr {
    SocketAddr::new(Lab::service_address(family), SERVICE_PORT)
}

/// Makes a TCP and a UDP service of these pods' port.
fn serve(lab: &Lab, family: Family, pods: &[&Pod]) {
    without_redirects(lab);
    let endpoints: Vec<_> =
        pods.iter().map(|pod| Backend { address: pod.address(family), port: PORT }).collect();
    lab.serve(1, frontend(family, 6), &endpoints);
    lab.serve(2, frontend(family, 17), &endpoints);
}

/// What pods send to services goes by way of the node, which would tell them that the endpoint is their neighbour.
fn without_redirects(lab: &Lab) {
    for which in ["all", "br0"] {
        lab.node.sysctl(&format!("ipv4/conf/{which}/send_redirects"), "0");
    }
}

/// A client that may reach [`PORT`] and nothing else, and a server that serves it and may not send.
fn guarded(lab: &Lab) -> (Pod, Pod) {
    let client = lab.gated(&port(Policy::isolated(), Policed::Egress));
    let server = lab.gated(&port(Policy::isolated(), Policed::Ingress));
    (client, server)
}

/// Bytes of which each says where it is.
fn load(seed: u32) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state.to_le_bytes()
    };
    (0..LOAD / 4).flat_map(|_| next()).collect()
}

/// Sends megabytes both ways at once; every byte must arrive as it was sent.
fn carry(client: &TcpStream, server: &TcpStream) {
    let send = |mut stream: &TcpStream, seed| {
        stream.set_write_timeout(Some(WAIT_TIMEOUT)).unwrap();
        stream.write_all(&load(seed)).unwrap_or_else(|e| panic!("the transfer stalls: {e}"));
    };
    let receive = |mut stream: &TcpStream, seed| {
        stream.set_read_timeout(Some(WAIT_TIMEOUT)).unwrap();
        let mut got = vec![0; LOAD];
        stream.read_exact(&mut got).unwrap_or_else(|e| panic!("the transfer stalls: {e}"));
        assert!(got == load(seed), "bytes are not those that were sent");
    };
    thread::scope(|scope| {
        scope.spawn(|| send(client, 7));
        scope.spawn(|| send(server, 11));
        scope.spawn(|| receive(client, 11));
        receive(server, 7);
    });
}

fn bulk(lab: &Lab, family: Family) {
    let (client, server) = guarded(lab);
    serve(lab, family, &[&server]);
    let listener = listen(&server.net, server.address(family), PORT);
    let dialled = dial(&client.net, service(family), WAIT_TIMEOUT).unwrap();
    let before = known(lab);
    carry(&dialled, &accept(&listener));
    let after = known(lab);
    let mean = (after.1 - before.1) / (after.0 - before.0).max(1);
    assert!(mean > 2000, "{mean} bytes a packet: no segmentation offload at work");
    nothing_denied(lab);
}

/// Packets and bytes of known flows.
fn known(lab: &Lab) -> (u64, u64) {
    let counters = lab.datapath.maps.counters().unwrap();
    let both = [Egress, Ingress].map(|direction| counters.get(direction, Reason::AllowFlow));
    (both[0].packets + both[1].packets, both[0].bytes + both[1].bytes)
}

/// The senders' kernels compute the checksums themselves, and the receivers' verify them.
fn bulk_without_offload(lab: &Lab, family: Family) {
    let (client, server) = guarded(lab);
    for net in [&client.net, &server.net] {
        without_offload(net, "eth0");
    }
    for host in [&client.host, &server.host] {
        without_offload(&lab.node, host);
    }
    serve(lab, family, &[&server]);
    let listener = listen(&server.net, server.address(family), PORT);
    let dialled = dial(&client.net, service(family), WAIT_TIMEOUT).unwrap();
    carry(&dialled, &accept(&listener));
    nothing_denied(lab);
    let errors = client.net.run(checksum_errors) + server.net.run(checksum_errors);
    assert_eq!(errors, 0, "segments with a wrong checksum");
}

/// TCP and UDP segments that the namespace's kernel has thrown away for their checksums.
fn checksum_errors() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/net/snmp").unwrap();
    let text = text + &std::fs::read_to_string("/proc/thread-self/net/snmp6").unwrap();
    let mut lines = text.lines().peekable();
    let mut errors = 0;
    while let Some(line) = lines.next() {
        if let Some(number) = line.strip_prefix("Udp6InCsumErrors") {
            errors += number.trim().parse::<u64>().unwrap();
        } else if let Some(values) = lines.peek()
            && let Some(at) = line.split_whitespace().position(|name| name == "InCsumErrors")
            && (line.starts_with("Tcp:") || line.starts_with("Udp:"))
        {
            errors += values.split_whitespace().nth(at).unwrap().parse::<u64>().unwrap();
        }
    }
    errors
}

/// The endpoint is behind a link that takes less at a time: the errors that say so must reach both ends.
fn narrow(lab: &Lab, family: Family) {
    without_redirects(lab);
    let (router, far) = lab.behind_router(1280);
    let client = lab.gated(&port(Policy::isolated(), Policed::Egress));
    lab.route(&client, &router);
    // what the pod sends to the service goes by way of the node
    lab.node.ip(&format!(
        "route add 10.9.0.0/24 via {}\nroute add fd09::/64 via {}",
        router.v4, router.v6
    ));
    lab.serve(1, frontend(family, 6), &[Backend { address: Lab::far_address(family), port: PORT }]);
    let listener = listen(&far, Lab::far_address(family), PORT);
    let dialled = dial(&client.net, service(family), WAIT_TIMEOUT).unwrap();
    carry(&dialled, &accept(&listener));
    assert!(lab.count(Ingress, Reason::AllowRelated) > 0, "{:?}", lab.counted());
    nothing_denied(lab);
}

fn fragments(lab: &Lab, family: Family) {
    let (client, server) = guarded(lab);
    serve(lab, family, &[&server]);
    let at_server = datagrams(&server.net, server.address(family), PORT);
    let asking = datagrams(&client.net, client.address(family), 0);
    asking.connect(service(family)).unwrap();
    for round in 0..20 {
        let datagram: Vec<u8> = (0..8192_u32).map(|n| (n as u8).wrapping_mul(31) ^ round).collect();
        asking.say(&datagram);
        at_server.set_read_timeout(Some(WAIT_TIMEOUT)).unwrap();
        let mut heard = vec![0; 9000];
        let (length, from) = at_server.recv_from(&mut heard).unwrap();
        assert!(heard[..length] == datagram);
        at_server.send_to(&datagram, from).unwrap();
        assert_eq!(asking.hear(8192, WAIT_TIMEOUT), Some(datagram), "{:?}", lab.counted());
        lab.datapath.maps.control().bump_epoch();
    }
    nothing_denied(lab);
}

fn real_client(lab: &Lab, family: Family) {
    let (client, server) = guarded(lab);
    serve(lab, family, &[&server]);
    let listener = listen(&server.net, server.address(family), PORT);
    let dialled = dial(&client.net, service(family), WAIT_TIMEOUT).unwrap();
    let accepted = accept(&listener);
    assert_eq!(accepted.peer_addr().unwrap(), dialled.local_addr().unwrap());
    assert_eq!(dialled.peer_addr().unwrap(), service(family));
    Ends { client: dialled, server: accepted }.exchange("through the service");
    nothing_denied(lab);
}

fn mixed(lab: &Lab, family: Family) {
    let allowed = Class(7);
    let client = lab.gated(&Policy::isolated().entry(
        Policed::Egress,
        allowed,
        PortMatch::one(Protocol::Tcp, PORT),
    ));
    let servers = [lab.pod(), lab.pod(), lab.pod()];
    for server in &servers[..2] {
        lab.set_class(server.address(family), allowed);
    }
    serve(lab, family, &servers.iter().collect::<Vec<_>>());
    let listeners = servers.each_ref().map(|pod| listen(&pod.net, pod.address(family), PORT));
    // One SYN a dial: its retransmission, after a second, would choose again.
    let (dials, patience) = (40, Duration::from_millis(500));
    let mut reached = [0_u64; 3];
    for _ in 0..dials {
        match dial(&client.net, service(family), patience) {
            Ok(stream) => reached[whose(&listeners, &stream)] += 1,
            Err(e) => assert_eq!(e.kind(), ErrorKind::TimedOut),
        }
    }
    let (passed, denied) = (lab.count(Egress, Reason::AllowPolicy), refused(lab, Egress));
    let again = client.net.run(segments_sent_again);
    // 40 throws of a die with three sides: beyond four standard deviations
    assert!(reached[0] > 1 && reached[1] > 1 && denied > 1, "{reached:?}, {denied} denied");
    assert_eq!(reached[2], 0, "the endpoint that is not allowed is reached");
    // on a slow machine one that passed may not have connected in time
    assert!(reached[0] + reached[1] <= passed, "{reached:?}, {passed} passed");
    let judged = passed + denied;
    assert!(
        (dials..=dials + again).contains(&judged),
        "each is judged once: {judged} judgements, {again} sent again: {:?}",
        lab.counted()
    );
}

/// Which of the listeners has the other end of a connection. It may hear of it a little later than the dialler, and
/// first of others, which came too late for their diallers' patience.
fn whose(listeners: &[TcpListener], dialled: &TcpStream) -> usize {
    let from = dialled.local_addr().unwrap();
    let mut found = None;
    eventually("the connection arrives", || {
        found = listeners.iter().position(|listener| {
            listener.set_nonblocking(true).unwrap();
            std::iter::from_fn(|| listener.accept().ok()).any(|(_, peer)| peer == from)
        });
        found.is_some()
    });
    found.unwrap()
}

/// TCP segments that the namespace's kernel has sent again.
fn segments_sent_again() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/net/snmp").unwrap();
    let mut tcp = text.lines().filter(|line| line.starts_with("Tcp:"));
    let (names, values) = (tcp.next().unwrap(), tcp.next().unwrap());
    let at = names.split_whitespace().position(|name| name == "RetransSegs").unwrap();
    values.split_whitespace().nth(at).unwrap().parse().unwrap()
}

fn closed(lab: &Lab, family: Family) {
    let (client, server) = guarded(lab);
    serve(lab, family, &[&server]);
    refuses(&client, family);
    assert_eq!(lab.count(Egress, Reason::AllowRelated), 1);
    assert_eq!(lab.count(Ingress, Reason::AllowRelated), 1);
    nothing_denied(lab);
}

/// Nobody listens behind the service: both kinds of socket must hear of it at once.
fn refuses(client: &Pod, family: Family) {
    let refused = dial(&client.net, service(family), WAIT_TIMEOUT).map_err(|e| e.kind());
    assert_eq!(refused.err(), Some(ErrorKind::ConnectionRefused));
    let socket = datagrams(&client.net, client.address(family), 0);
    socket.connect(service(family)).unwrap();
    socket.set_read_timeout(Some(WAIT_TIMEOUT)).unwrap();
    socket.send(b"anybody?").unwrap();
    let answer = socket.recv(&mut [0; 8]).map_err(|e| e.kind());
    assert_eq!(answer, Err(ErrorKind::ConnectionRefused));
}

/// The pod may do nothing: but itself it always reaches.
fn hairpin(lab: &Lab, family: Family) {
    let pod = lab.gated(&Policy::isolated());
    serve(lab, family, &[&pod]);
    let listener = listen(&pod.net, pod.address(family), PORT);
    let dialled = dial(&pod.net, service(family), WAIT_TIMEOUT).unwrap();
    let accepted = accept(&listener);
    assert_eq!(accepted.peer_addr().unwrap().ip(), Lab::service_address(family));
    carry(&dialled, &accepted);

    let server = datagrams(&pod.net, pod.address(family), PORT);
    let client = datagrams(&pod.net, pod.address(family), 0);
    client.connect(service(family)).unwrap();
    for length in [8, 8192] {
        let question = vec![length as u8 ^ 0x5a; length];
        client.say(&question);
        server.set_read_timeout(Some(WAIT_TIMEOUT)).unwrap();
        let mut heard = vec![0; 9000];
        let (heard_length, from) = server.recv_from(&mut heard).unwrap();
        assert!(heard[..heard_length] == question);
        server.send_to(&question, from).unwrap();
        assert_eq!(client.hear(length, WAIT_TIMEOUT), Some(question));
    }
    nothing_denied(lab);
}

fn hairpin_closed(lab: &Lab, family: Family) {
    let pod = lab.gated(&Policy::isolated());
    serve(lab, family, &[&pod]);
    refuses(&pod, family);
    nothing_denied(lab);
}

fn moves(lab: &Lab, family: Family) {
    let client = lab.gated(&port(Policy::isolated(), Policed::Egress));
    let (one, two) = (lab.pod(), lab.pod());
    serve(lab, family, &[&one]);
    let listener = listen(&one.net, one.address(family), PORT);
    let dialled = dial(&client.net, service(family), WAIT_TIMEOUT).unwrap();
    let connection = Ends { client: dialled, server: accept(&listener) };
    connection.exchange("before");
    let bind = |pod: &Pod| {
        let socket = datagrams(&pod.net, pod.address(family), PORT);
        socket.set_read_timeout(Some(WAIT_TIMEOUT)).unwrap();
        socket
    };
    let (at_one, at_two) = (bind(&one), bind(&two));
    let asking = datagrams(&client.net, client.address(family), 0);
    asking.connect(service(family)).unwrap();
    let answered_by = |socket: &UdpSocket| {
        asking.say(b"who?");
        let (_, from) = socket.recv_from(&mut [0; 8]).unwrap();
        socket.send_to(b"me", from).unwrap();
        assert_eq!(asking.hear(2, WAIT_TIMEOUT).as_deref(), Some(&b"me"[..]));
    };
    answered_by(&at_one);
    answered_by(&at_one);
    serve(lab, family, &[&two]);
    answered_by(&at_two);
    answered_by(&at_two);
    connection.exchange("after");
    nothing_denied(lab);
}

/// Two services, one endpoint, one socket of the client: each answer comes from the service that was asked.
fn two_services(lab: &Lab, family: Family) {
    let (client, server) = guarded(lab);
    serve(lab, family, &[&server]);
    let other = Frontend { port: SERVICE_PORT + 1, ..frontend(family, 17) };
    lab.serve(3, other, &[Backend { address: server.address(family), port: PORT }]);
    let at_server = datagrams(&server.net, server.address(family), PORT);
    let asking = datagrams(&client.net, client.address(family), 0);
    for socket in [&at_server, &asking] {
        socket.set_read_timeout(Some(WAIT_TIMEOUT)).unwrap();
    }
    let services = [service(family), SocketAddr::new(other.address, other.port)];
    for round in 0..10_u8 {
        for (n, service) in (0_u8..).zip(services) {
            asking.send_to(&[round, n], service).unwrap();
        }
        for _ in services {
            let mut heard = [0; 2];
            let (_, from) = at_server.recv_from(&mut heard).unwrap();
            at_server.send_to(&heard, from).unwrap();
        }
        for _ in services {
            let mut heard = [0; 2];
            let (_, from) = asking.recv_from(&mut heard).unwrap();
            assert_eq!((heard[0], from), (round, services[usize::from(heard[1])]));
        }
    }
    nothing_denied(lab);
}

/// One socket of the client, a service and its endpoint in turn: each answer comes from the one that was asked.
fn service_and_endpoint(lab: &Lab, family: Family) {
    let (client, server) = guarded(lab);
    serve(lab, family, &[&server]);
    let at_server = datagrams(&server.net, server.address(family), PORT);
    let direct = at_server.local_addr().unwrap();
    // the service first, and the endpoint first
    for ways in [[service(family), direct], [direct, service(family)]] {
        let asking = datagrams(&client.net, client.address(family), 0);
        for socket in [&at_server, &asking] {
            socket.set_read_timeout(Some(WAIT_TIMEOUT)).unwrap();
        }
        for round in 0..10_u8 {
            for (n, way) in (0_u8..).zip(ways) {
                asking.send_to(&[round, n], way).unwrap();
            }
            let mut clients = Vec::new();
            for _ in ways {
                let mut heard = [0; 2];
                let (_, from) = at_server.recv_from(&mut heard).unwrap();
                at_server.send_to(&heard, from).unwrap();
                clients.push(from);
            }
            assert_ne!(clients[0], clients[1], "the server can tell them apart");
            for _ in ways {
                let mut heard = [0; 2];
                let (_, from) = asking.recv_from(&mut heard).unwrap();
                assert_eq!((heard[0], from), (round, ways[usize::from(heard[1])]));
            }
        }
    }
    nothing_denied(lab);
}

/// Connections from one port to a service and to its endpoint, open at once, in each order.
fn connections_of_one_port(lab: &Lab, family: Family) {
    let (client, server) = guarded(lab);
    serve(lab, family, &[&server]);
    let listener = listen(&server.net, server.address(family), PORT);
    let direct = listener.local_addr().unwrap();
    for (port, ways) in [(40_001, [service(family), direct]), (40_002, [direct, service(family)])] {
        let from = SocketAddr::new(client.address(family), port);
        let mut open: Vec<_> = ways
            .into_iter()
            .map(|way| {
                let client = dial_from(&client.net, from, way).unwrap();
                Ends { client, server: accept(&listener) }
            })
            .collect();
        for _ in 0..3 {
            open.iter().for_each(|ends| ends.exchange("both are open"));
        }
        // the one that came first ends
        drop(open.remove(0));
        for _ in 0..3 {
            open[0].exchange("the other goes on");
        }
    }
    nothing_denied(lab);
}
