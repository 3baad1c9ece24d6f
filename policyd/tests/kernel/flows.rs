//! Real packets, and the events reported for them.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};

use podgate_bpf::abi::{Direction, Reason};
use podgate_bpf::attach::AttachMode;
use podgate_contract::handshake::Response;
use podgate_testkit::wait::WAIT_TIMEOUT;
use serde_json::Value;

use crate::node::{Node, ip, on_a_node, pod};
use crate::sandbox::Sandbox;

/// Reads lines of `GET /v1/flows` until one is `wanted`.
fn hear(node: &Node, act: impl Fn(), wanted: impl Fn(&Value) -> bool) -> Value {
    let mut stream = node.connect("api.sock");
    stream.set_read_timeout(Some(WAIT_TIMEOUT)).unwrap();
    stream.write_all(b"GET /v1/flows HTTP/1.1\r\nHost: node\r\n\r\n").unwrap();
    let mut lines = BufReader::new(stream).lines();
    let head = lines.next().unwrap().unwrap();
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    act();
    loop {
        let line = lines.next().expect("more events").expect("an event in time");
        // chunk sizes and headers are no JSON objects
        if let Some(event) = serde_json::from_str::<Value>(&line).ok().filter(&wanted) {
            return event;
        }
    }
}

#[test]
fn verdicts_are_told_with_the_rule_that_decided() {
    on_a_node(|node| {
        let isolated = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n\
            metadata: {namespace: shop, name: dns-only}\n\
            spec: {podSelector: {}, policyTypes: [Egress], egress: [{ports: [{protocol: UDP, port: 53}]}]}\n";
        node.manifest("pods.yaml", &pod("shop/api", "app: api", "10.7.0.2"));
        node.manifest("policies.yaml", isolated);
        let api = node.endpoint("shop/api", "10.7.0.2");
        ip(&format!("addr add 10.7.0.1/24 dev {}", api.host_interface));
        node.datapath.attach(api.ifindex, AttachMode::Auto).unwrap();
        let _policyd = node.policyd();
        node.ready();
        assert_eq!(node.add(&[&api]), Response::Ok);
        let sandbox = Sandbox::of(&api);
        let send = |port: u16| sandbox.run(&format!("echo hello > /dev/udp/10.7.0.1/{port}"));
        let allowed = hear(node, || send(53), |event| event["peer_port"] == 53);
        assert_eq!(allowed["verdict"], "allow", "{allowed}");
        assert_eq!(allowed["rule"], "shop/dns-only egress[0]");
        let denied = hear(node, || send(5353), |event| event["peer_port"] == 5353);
        assert_eq!(denied["verdict"], "deny", "{denied}");
        assert_eq!(denied["reason"], "policy");
        assert_eq!(denied["direction"], "egress");
        assert_eq!(denied["pod"], "shop/api");
        assert_eq!(denied["peer_address"], "10.7.0.1");
        assert_eq!(denied["protocol"], "UDP");
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        let ago = now.as_secs_f64() - denied["time"].as_f64().unwrap();
        assert!((-1.0..60.0).contains(&ago), "{ago} s ago");
        // the rule's counter, and the node's
        let detail = &node.get("/v1/endpoints/shop/api")[0];
        let allowed = detail["allowed"].as_array().unwrap();
        let rule = allowed.iter().find(|allowed| allowed["ports"] == "UDP 53").unwrap();
        assert!(rule["hits"].as_u64().unwrap() > 0, "{rule}");
        let counters = node.maps().counters().unwrap();
        let denied = counters.get(Direction::Egress, Reason::DenyPolicy);
        assert!(denied.packets > 0);
    });
}

/// One packet each way every 5 ms while policyd is killed, restarted and given other policies: none that
/// every state allows is lost, none that every state denies passes.
#[test]
fn no_packet_notices_restarts_and_changes() {
    on_a_node(|node| {
        let egress = |name: &str, cidr: &str| {
            format!(
                "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{namespace: shop, name: {name}}}\n\
                 spec: {{podSelector: {{}}, policyTypes: [Egress], egress: [{{to: [{{ipBlock: {{cidr: {cidr}}}}}]}}]}}\n---\n"
            )
        };
        // each state allows 10.7.0.1, by other rules and classes; none allows 10.7.0.9
        let states = [
            egress("narrow", "10.7.0.1/32"),
            egress("narrow", "10.7.0.1/32") + &egress("else", "192.0.2.0/24"),
            egress("wide", "10.7.0.0/29") + &egress("else", "10.7.0.1/32"),
            egress("wide", "10.7.0.0/30"),
        ];
        node.manifest("pods.yaml", &pod("shop/api", "app: api", "10.7.0.2"));
        node.manifest("policies.yaml", &states[0]);
        let api = node.endpoint("shop/api", "10.7.0.2");
        for address in ["10.7.0.1/24", "10.7.0.9/24"] {
            ip(&format!("addr add {address} dev {}", api.host_interface));
        }
        node.datapath.attach(api.ifindex, AttachMode::Auto).unwrap();
        let mut policyd = node.policyd();
        node.ready();
        assert_eq!(node.add(&[&api]), Response::Ok);
        let sandbox = Sandbox::of(&api);
        let ping = |address: &str| {
            let pid = sandbox.holder.id().to_string();
            Command::new("nsenter")
                .args(["-t", &pid, "-n", "ping", "-q", "-n", "-i", "0.005", "-W", "1", address])
                .stdout(Stdio::piped())
                .spawn()
                .expect("run ping (Debian: apt-get install iputils-ping)")
        };
        // neighbours are known before it counts
        sandbox.run("ping -q -c 1 -W 5 10.7.0.1");
        let (allowed, denied) = (ping("10.7.0.1"), ping("10.7.0.9"));
        let mut random = 0x9e37_79b9_7f4a_7c15_u64;
        for _ in 0..25 {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            node.manifest("policies.yaml", &states[(random % 4) as usize]);
            std::thread::sleep(std::time::Duration::from_millis(random % 150));
            if random.is_multiple_of(3) {
                policyd.signal(nix::sys::signal::Signal::SIGTERM);
                policyd.end();
            } else {
                policyd.kill();
            }
            policyd = node.policyd();
        }
        node.ready();
        let counts = |ping: Child| {
            // it prints its sum when interrupted
            let pid = nix::unistd::Pid::from_raw(ping.id() as i32);
            nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
            let output = ping.wait_with_output().unwrap();
            let text = String::from_utf8(output.stdout).unwrap();
            let sum = text.lines().find(|line| line.contains("transmitted")).unwrap_or_default();
            let number = |before: &str| -> u32 {
                let words: Vec<_> = sum.split([' ', ',']).filter(|word| !word.is_empty()).collect();
                let at = words.iter().position(|word| *word == before).expect(sum);
                words[at - 1].parse().or_else(|_| words[at - 2].parse()).unwrap()
            };
            (number("transmitted"), number("received"))
        };
        let (sent, received) = counts(allowed);
        assert!(sent > 50, "only {sent} packets in all the time");
        // the last one may be under way
        assert!(sent - received <= 1, "{received} of {sent} packets came back");
        let (sent, received) = counts(denied);
        assert!(sent > 50, "only {sent} packets in all the time");
        assert_eq!(received, 0, "of {sent} packets that no policy allows");
    });
}
