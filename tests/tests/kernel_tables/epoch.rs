//! A change of policy meets each live flow at its next packet, in both directions (docs/semantics.md 11.11).

use podgate_bpf::abi::Stat;
use podgate_tests::kernel::Lab;

use crate::prelude::*;

/// One kind of conversation, opened by the peer or by the pod.
struct Talk {
    name: &'static str,
    opener: Ip,
    again: Ip,
    answer: Ip,
    by_pod: bool,
}

fn talks(f: Family) -> Vec<Talk> {
    let mut talks = Vec::new();
    for by_pod in [false, true] {
        let go = |t| if by_pod { f.out(t) } else { f.back(t) };
        let come = |t| if by_pod { f.back(t) } else { f.out(t) };
        let talk = |name, opener, again, answer| Talk {
            name,
            opener: go(opener),
            again: go(again),
            answer: come(answer),
            by_pod,
        };
        talks.extend([
            talk("tcp", tcp(40000, 80).syn(), tcp(40000, 80).ack(), tcp(80, 40000).ack()),
            talk("udp", udp(40000, 80), udp(40000, 80), udp(80, 40000)),
            talk("sctp", sctp(40000, 80), sctp(40000, 80), sctp(80, 40000)),
            talk("echo", f.ping(7), f.ping(7), f.pong(7)),
            talk("gre", raw(47, &[0; 8]), raw(47, &[0; 8]), raw(47, &[0; 8])),
        ]);
    }
    talks
}

impl Talk {
    fn direction(&self) -> podgate_bpf::abi::Direction {
        if self.by_pod { Egress } else { Ingress }
    }

    fn go(&self, table: Table, frame: &Ip, expected: podgate_bpf::abi::Reason) -> Table {
        if self.by_pod {
            table.from_pod(frame.clone(), expected)
        } else {
            table.to_pod(frame.clone(), expected)
        }
    }

    fn come(&self, table: Table, expected: podgate_bpf::abi::Reason) -> Table {
        if self.by_pod {
            table.to_pod(self.answer.clone(), expected)
        } else {
            table.from_pod(self.answer.clone(), expected)
        }
    }

    /// Opened, answered, under way.
    fn running(&self, f: Family, name: &str, world: World) -> Table {
        let side = if self.by_pod { "of the pod" } else { "to the pod" };
        let table = table(f.named(&format!("epoch: {} {side}, {name}", self.name)), world);
        let table = self.go(table, &self.opener, AllowPolicy);
        let table = self.come(table, AllowFlow);
        self.go(table, &self.again, AllowFlow)
    }
}

pub(crate) fn tables() -> Vec<Table> {
    let mut tables = both(|f| {
        talks(f).iter().flat_map(|talk| s11_11_live_flows_are_judged_again(f, talk)).collect()
    });
    tables.extend(both(connections));
    tables.extend(both(others));
    tables
}

fn s11_11_live_flows_are_judged_again(f: Family, talk: &Talk) -> Vec<Table> {
    let direction = talk.direction();
    let other = if talk.by_pod { Ingress } else { Egress };
    let judged = |times| move |lab: &mut Lab| assert_eq!(lab.stat(Stat::Revalidated), times);
    let allowed = || World::isolated().allow(direction, ANY, Ports::Every);
    // nothing but the flow's own direction may decide
    let wide = || allowed().not_isolated(other);

    let kept = talk.running(f, "still allowed", allowed()).change(|_| ());
    let kept = talk.come(kept, AllowFlow).then("judged once", judged(1));
    let kept = talk.go(kept, &talk.again, AllowFlow);
    let kept = talk.come(kept, AllowFlow).then("and not again", judged(1));
    let kept =
        talk.go(kept.change(|_| ()), &talk.again, AllowFlow).then("until the next", judged(2));

    let cut = talk
        .running(f, "cut", wide())
        .change(move |lab| lab.withdraw(direction, ANY, Ports::Every));
    let cut = talk.go(cut, &talk.again, DenyPolicy);
    let cut = talk.come(cut, DenyPolicy);
    let cut = talk.come(cut, DenyPolicy);
    let cut = talk.go(cut, &talk.again, DenyPolicy);
    let back = cut.change(move |lab| lab.allow(direction, ANY, Ports::Every));
    let back = talk.come(back, AllowFlow);
    let back = talk.go(back, &talk.again, AllowFlow);

    let reply_first = talk
        .running(f, "cut at a reply", wide())
        .change(move |lab| lab.withdraw(direction, ANY, Ports::Every));
    let reply_first = talk.come(reply_first, DenyPolicy);
    let reply_first = talk.go(reply_first, &talk.again, DenyPolicy);

    let replies_free = talk
        .running(f, "the other direction isolated", wide())
        .change(move |lab| lab.withdraw(other, ANY, Ports::Every));
    let replies_free = talk.come(replies_free, AllowFlow);
    let replies_free = talk.go(replies_free, &talk.again, AllowFlow);
    vec![kept, back, reply_first, replies_free]
}

fn connections(f: Family) -> Vec<Table> {
    let opened = |name: &str| {
        table(f.named(name), World::open())
            .to_pod(f.back(tcp(40000, 80).syn()), AllowPolicy)
            .from_pod(f.out(tcp(80, 40000).syn_ack()), AllowFlow)
            .to_pod(f.back(tcp(40000, 80).ack()), AllowFlow)
    };
    let cut = |name: &str| {
        opened(name)
            .change(|lab| lab.withdraw(Ingress, ANY, Ports::Every))
            .to_pod(f.back(tcp(40000, 80).ack()), DenyPolicy)
    };
    vec![
        opened("epoch: the first policy on a pod does not cut what it allows")
            .change(|lab| lab.replace(&web()))
            .from_pod(f.out(tcp(80, 40000).ack()), AllowFlow)
            .to_pod(f.back(tcp(40000, 80).ack()), AllowFlow),
        cut("epoch: the server's retransmissions revive nothing")
            .from_pod(f.out(tcp(80, 40000).ack()), DenyPolicy)
            .then("four days", |lab| lab.age_flows(345_000))
            .from_pod(f.out(tcp(80, 40000).ack()), DenyPolicy)
            .then("four more", |lab| lab.age_flows(345_000))
            .from_pod(f.out(tcp(80, 40000).ack()), DenyPolicy)
            .to_pod(f.back(tcp(40000, 80).ack()), DenyPolicy),
        cut("epoch: a cut connection's opener tries again")
            .to_pod(f.back(tcp(40000, 80).syn()), DenyPolicy)
            .from_pod(f.out(tcp(80, 40000).ack()), DenyPolicy)
            .change(|lab| lab.allow(Ingress, ANY, Ports::One(TCP, 80)))
            .to_pod(f.back(tcp(40000, 80).syn()), AllowPolicy)
            .from_pod(f.out(tcp(80, 40000).syn_ack()), AllowFlow),
        cut("epoch: the other side may open a connection of its own")
            .from_pod(f.out(tcp(80, 40000).syn()), AllowPolicy)
            .to_pod(f.back(tcp(40000, 80).syn_ack()), AllowFlow),
        cut("epoch: endings of a cut connection do not pass")
            .from_pod(f.out(tcp(80, 40000).fin()), DenyPolicy)
            .from_pod(f.out(tcp(80, 40000).rst()), DenyPolicy)
            .to_pod(f.back(tcp(40000, 80).rst()), DenyPolicy),
        opened("epoch: without a change nothing is judged again")
            .then("an entry goes, the epoch stays", |lab| lab.withdraw(Ingress, ANY, Ports::Every))
            .to_pod(f.back(tcp(40000, 80).ack()), AllowFlow)
            .then("nothing noted", |lab| assert_eq!(lab.stat(Stat::Revalidated), 0)),
    ]
}

fn others(f: Family) -> Vec<Table> {
    let classes = || {
        World::isolated()
            .allow(Ingress, 1, Ports::One(TCP, 80))
            .allow(Ingress, 2, Ports::One(TCP, 80))
            .peer(f.peer, 1)
            .peer(f.stranger, 2)
    };
    let stranger = |t: Transport| t.between(f.stranger, f.pod);
    let (peer, node) = (f.peer, f.node);
    vec![
        table(f.named("epoch: a change for one peer leaves the other's flow"), classes())
            .to_pod(f.back(tcp(1, 80).syn()), AllowPolicy)
            .to_pod(stranger(tcp(1, 80).syn()), AllowPolicy)
            .change(|lab| lab.withdraw(Ingress, 1, Ports::One(TCP, 80)))
            .to_pod(stranger(tcp(1, 80).ack()), AllowFlow)
            .to_pod(f.back(tcp(1, 80).ack()), DenyPolicy)
            .to_pod(stranger(tcp(1, 80).ack()), AllowFlow),
        table(f.named("epoch: an address moves to another class"), classes())
            .to_pod(f.back(tcp(1, 80).syn()), AllowPolicy)
            .change(move |lab| lab.set_peer(peer, 2))
            .to_pod(f.back(tcp(1, 80).ack()), AllowFlow)
            .change(move |lab| lab.set_peer(peer, 3))
            .to_pod(f.back(tcp(1, 80).ack()), DenyPolicy)
            .change(move |lab| lab.set_peer(peer, 1))
            .to_pod(f.back(tcp(1, 80).ack()), AllowFlow),
        table(f.named("epoch: a flow that becomes the node's is cut with its rule"), {
            web().node(node)
        })
        .to_pod(tcp(1, 80).syn().between(node, f.pod), AllowPolicy)
        .change(|lab| lab.withdraw(Ingress, ANY, Ports::One(TCP, 80)))
        .from_pod(tcp(80, 1).ack().between(f.pod, node), DenyPolicy),
    ]
}
