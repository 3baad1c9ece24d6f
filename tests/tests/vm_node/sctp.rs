//! SCTP between real sockets: associations directly and through a service, whose CRC32c the kernel checks.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use podgate_tests::runtime::traffic::SOON;
use podgate_tests::runtime::world::World;
use podgate_tests::runtime::{Conflist, Node, Policyd};
use serde_json::json;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::REFUSED;
use crate::pod::{ChainedPod, service};

/// Where the server listens, and a port of the same server that policy leaves out.
const PORTS: [u16; 2] = [7000, 7001];
const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 20);

/// More than one packet holds.
const LARGE: usize = 20_000;

fn socket() -> io::Result<Socket> {
    Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::SCTP))
}

/// Answers every association with what it says, until the test ends.
fn listen(node: &Node, netns: &str, port: u16) -> Result<()> {
    let listener = node
        .inside_pod(netns, || {
            let listener = socket()?;
            listener.bind(&SockAddr::from(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))))?;
            listener.listen(16)?;
            Ok::<_, io::Error>(listener)
        })?
        .context("listen for SCTP (is the module sctp loaded?)")?;
    thread::spawn(move || {
        while let Ok((mut association, _)) = listener.accept() {
            thread::spawn(move || io::copy(&mut association.try_clone()?, &mut association));
        }
    });
    Ok(())
}

/// Says `size` bytes on a new association and reads as many.
fn associate(
    node: &Node,
    netns: &str,
    to: (IpAddr, u16),
    size: usize,
    limit: Duration,
) -> Result<io::Result<()>> {
    node.inside_pod(netns, || {
        let mut association = socket()?;
        association.connect_timeout(&SockAddr::from(SocketAddr::from(to)), limit)?;
        association.set_read_timeout(Some(limit))?;
        let said: Vec<u8> = (0..=u8::MAX).cycle().take(size).collect();
        association.write_all(&said)?;
        let mut heard = vec![0; size];
        association.read_exact(&mut heard)?;
        if heard == said { Ok(()) } else { Err(io::Error::other("another answer")) }
    })
}

#[test]
fn associations_meet_policy_directly_and_through_a_service() -> Result<()> {
    let node = Node::bare()?;
    let world = World::of(&node)?;
    let [allowed, left_out] = PORTS;
    world.policy(
        "server",
        json!({
            "podSelector": { "matchLabels": { "app": "server" } },
            "policyTypes": ["Ingress"],
            "ingress": [{
                "from": [{ "podSelector": { "matchLabels": { "app": "client" } } }],
                "ports": [{ "port": allowed, "protocol": "SCTP" }],
            }],
        }),
    )?;
    let ports = [("SCTP", 80, allowed), ("SCTP", 82, left_out)];
    service(&node, "server", &SERVICE.to_string(), &ports)?;
    let policyd = Policyd::start(&node)?;
    let conflist = Conflist::default();
    let run = |name: &str, app: &str| ChainedPod::run(&node, &world, name, app, &conflist);
    let (server, client, other) =
        (run("server", "server")?, run("client", "client")?, run("other", "other")?);
    let address = server.address()?;
    for port in PORTS {
        listen(&node, &server.netns, port)?;
    }
    let of_client = |to, size, limit| associate(&node, &client.netns, to, size, limit);

    for size in [1, LARGE] {
        of_client((address, allowed), size, SOON)?.with_context(|| format!("{size} B directly"))?;
        let through = of_client((SERVICE.into(), 80), size, SOON)?;
        through.with_context(|| format!("{size} B through the service"))?;
    }
    for (what, netns, to) in [
        ("a port that is not allowed", &client.netns, (address, left_out)),
        ("that port through the service", &client.netns, (SERVICE.into(), 82)),
        ("another pod", &other.netns, (address, allowed)),
        ("another pod through the service", &other.netns, (SERVICE.into(), 80)),
    ] {
        let answer = associate(&node, netns, to, 1, REFUSED)?;
        ensure!(answer.is_err(), "{what}: an association was made");
    }
    for pod in [&server, &client] {
        let counters = node.inside_pod(&pod.netns, || {
            std::fs::read_to_string("/proc/thread-self/net/sctp/snmp")
        })??;
        let errors = counters.lines().find_map(|line| line.strip_prefix("SctpChecksumErrors"));
        let errors = errors.context("read SctpChecksumErrors")?.trim();
        ensure!(errors == "0", "{errors} wrong checksums at {}", pod.pod.name);
    }
    for pod in [server, client, other] {
        pod.end(&world)?;
    }
    policyd.daemon.terminate()?;
    node.finish()
}
