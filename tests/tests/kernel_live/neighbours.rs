//! Finding each other on the link works at pods that may do nothing else.

use podgate_bpf::abi::Reason;
use podgate_testkit::wait::eventually;
use podgate_tests::netlab::Lab;

use crate::Test;
use crate::talk::*;

pub(crate) const TESTS: &[Test] = &[
    ("an_isolated_pod_is_found_by_its_neighbours", found),
    ("an_isolated_pod_finds_its_neighbours", finds),
    ("an_isolated_pod_notices_a_duplicate_address", duplicate),
];

/// Whether `seeker` comes to know the link address of `sought`.
fn resolves(seeker: &Pod, sought: &Pod, family: Family) {
    let address = sought.address(family);
    let socket = datagrams(&seeker.net, seeker.address(family), 0);
    socket.send_to(b"x", (address, PORT)).unwrap();
    eventually("the neighbour's link address", || {
        seeker.net.ask_ip(&format!("neigh show {address} dev eth0")).contains("lladdr")
    });
}

fn found(lab: &Lab, family: Family) {
    let (isolated, seeker) = (lab.gated(&Policy::isolated()), lab.pod());
    resolves(&seeker, &isolated, family);
    eventually("what it was sought for is refused", || refused(lab, Ingress) > 0);
}

fn finds(lab: &Lab, family: Family) {
    let (isolated, sought) = (lab.gated(&Policy::isolated()), lab.pod());
    // ARP goes ahead of the packet that needs it, which then waits and is refused: nothing but the answer is let in
    resolves(&isolated, &sought, family);
    eventually("what it was sought for is refused", || refused(lab, Egress) > 0);
    assert!(lab.count(Ingress, Reason::AllowControl) > 0, "{:?}", lab.counted());
}

/// IPv6 asks before it uses an address; the owner's answer has to get in. IPv4's kernel does not ask.
fn duplicate(lab: &Lab, family: Family) {
    if family == Family::V4 {
        let (isolated, owner) = (lab.gated(&Policy::isolated()), lab.pod());
        isolated.net.ip(&format!("address add {}/32 dev eth0", owner.v4));
        let before = lab.count(Egress, Reason::AllowControl);
        isolated.net.sysctl("ipv4/conf/eth0/arp_notify", "1");
        isolated.net.ip("link set eth0 down\nlink set eth0 up");
        eventually("the announcement gets out", || {
            lab.count(Egress, Reason::AllowControl) > before
        });
        eventually("that of another's address does not", || {
            lab.count(Egress, Reason::DenySpoofed) > 0
        });
        return;
    }
    let (isolated, another) = (lab.gated(&Policy::isolated()), lab.pod());
    let own = format!("{}/64 dev eth0", isolated.v6);
    another.net.ip(&format!("address add {own} nodad"));
    isolated.net.ip(&format!("address del {own}\naddress add {own}"));
    eventually("the duplicate is noticed", || {
        let failed = isolated.net.ask_ip("-6 address show dev eth0 dadfailed");
        failed.contains(&isolated.v6.to_string())
    });
    another.net.ip(&format!("address del {own}"));
    isolated.net.ip(&format!("address del {own}\naddress add {own}"));
    eventually("an address that nobody else has can be used", || {
        let usable = isolated.net.ask_ip("-6 address show dev eth0 -tentative");
        usable.contains(&format!("{}/64", isolated.v6))
    });
    // It cannot be used to find out, or to claim, who has another address.
    isolated.net.ip(&format!("address add {}/64 dev eth0", another.v6));
    eventually("what it says of another's is refused", || {
        lab.count(Egress, Reason::DenySpoofed) > 0
    });
}
