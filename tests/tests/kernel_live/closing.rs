//! Connections that end, half or wholly, and what follows on the same tuple.

use std::io::Read;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::thread;
use std::time::Duration;

use nix::libc;
use nix::sys::socket::{setsockopt, sockopt};
use podgate_testkit::wait::{WAIT_TIMEOUT, eventually};
use podgate_tests::netlab::Lab;

use crate::Test;
use crate::talk::*;

pub(crate) const TESTS: &[Test] = &[
    ("a_half_closed_connection_goes_on_the_other_way", half_closed),
    ("a_half_closed_connection_is_cut_too", half_closed_and_cut),
    ("the_same_ports_connect_again_after_a_close", reuse_after_close),
    ("the_same_ports_connect_again_after_a_reset", reuse_after_reset),
    ("the_same_ports_are_judged_anew_after_a_close", reuse_is_judged),
];

fn web(lab: &Lab) -> (Pod, Pod) {
    let server = port(Policy::isolated(), Policed::Ingress);
    let client = port(Policy::isolated(), Policed::Egress);
    (lab.gated(&client), lab.gated(&server))
}

fn half_closed(lab: &Lab, family: Family) {
    let (client, server) = web(lab);
    let ends = tcp(&client, &server, family, PORT);
    ends.exchange("open");
    ends.client.shutdown(Shutdown::Write).unwrap();
    assert_eq!((&ends.server).read(&mut [0; 8]).unwrap(), 0, "the server is told");
    // longer than a closed flow is remembered would take too long: the epoch stands in for time
    for round in 0..50 {
        ends.server.say(b"more");
        assert!(ends.client.hear(4, WAIT_TIMEOUT).is_some(), "round {round}");
        if round % 10 == 0 {
            lab.datapath.maps.control().bump_epoch();
        }
    }
    drop(ends.server);
    assert_eq!((&ends.client).read(&mut [0; 8]).unwrap(), 0, "the client is told");
    nothing_denied(lab);
}

fn half_closed_and_cut(lab: &Lab, family: Family) {
    let allowed = port(Policy::isolated(), Policed::Ingress).open_for(Policed::Egress);
    let (client, server) = (lab.pod(), lab.gated(&allowed));
    let (ends, watch) = (tcp(&client, &server, family, PORT), Watch::new(&client, &server, family));
    ends.client.shutdown(Shutdown::Write).unwrap();
    assert_eq!((&ends.server).read(&mut [0; 8]).unwrap(), 0);
    thread::sleep(Duration::from_millis(60));
    lab.set_policy(&server, &Policy::isolated().open_for(Policed::Egress));
    watch.begin();
    ends.server.say(b"more");
    assert_eq!(ends.client.hear(4, SILENCE), None);
    assert_eq!(watch.arrived(), (0, 0), "packets arrive at (client, server)");
}

/// A connection between fixed ports.
fn fixed(client: &Pod, server: &Pod, family: Family) -> std::io::Result<Ends<TcpStream>> {
    let listener = listen(&server.net, server.address(family), PORT);
    let from = SocketAddr::new(client.address(family), 40_000);
    let to = SocketAddr::new(server.address(family), PORT);
    let stream = dial_from(&client.net, from, to)?;
    Ok(Ends { client: stream, server: accept(&listener) })
}

/// Closes in the order in which the client's port is free at once.
fn close(ends: Ends<TcpStream>) {
    drop(ends.server);
    assert_eq!((&ends.client).read(&mut [0; 8]).unwrap(), 0, "the client is told");
    drop(ends.client);
    // the last acknowledgement
    thread::sleep(Duration::from_millis(20));
}

fn reuse_after_close(lab: &Lab, family: Family) {
    let (client, server) = web(lab);
    for round in 0..4 {
        let ends = fixed(&client, &server, family).unwrap_or_else(|e| panic!("round {round}: {e}"));
        ends.exchange("again");
        close(ends);
    }
    nothing_denied(lab);
}

fn reuse_after_reset(lab: &Lab, family: Family) {
    let (client, server) = web(lab);
    for round in 0..4 {
        let ends = fixed(&client, &server, family).unwrap_or_else(|e| panic!("round {round}: {e}"));
        ends.exchange("again");
        // closing at once, with a reset, from either side
        let (resetting, told) =
            if round % 2 == 0 { (ends.client, ends.server) } else { (ends.server, ends.client) };
        let at_once = libc::linger { l_onoff: 1, l_linger: 0 };
        setsockopt(&resetting, sockopt::Linger, &at_once).unwrap();
        drop(resetting);
        told.set_read_timeout(Some(WAIT_TIMEOUT)).unwrap();
        let end = (&told).read(&mut [0; 8]).map_err(|e| e.kind());
        assert_eq!(end, Err(std::io::ErrorKind::ConnectionReset));
    }
    nothing_denied(lab);
}

fn reuse_is_judged(lab: &Lab, family: Family) {
    let allowed = port(Policy::isolated(), Policed::Ingress).open_for(Policed::Egress);
    let (client, server) = (lab.pod(), lab.gated(&allowed));
    let ends = fixed(&client, &server, family).unwrap();
    ends.exchange("while allowed");
    close(ends);
    lab.set_policy(&server, &Policy::isolated().open_for(Policed::Egress));
    let before = refused(lab, Ingress);
    let again = fixed(&client, &server, family);
    assert!(again.is_err(), "connected although no rule allows it any more");
    assert!(refused(lab, Ingress) > before);
    drop(again);
    lab.set_policy(&server, &allowed);
    eventually("connect when it is allowed again", || {
        fixed(&client, &server, family).is_ok_and(|ends| {
            ends.exchange("allowed again");
            true
        })
    });
}
