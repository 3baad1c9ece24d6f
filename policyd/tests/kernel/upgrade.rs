//! An upgrade to another layout of the maps, under traffic: what is forbidden never gets through, what is allowed loses
//! no packet, new connections and old ones, directly and through a service, wherever policyd is killed.
//!
//! The other layout is the same programs and maps where an earlier build has its own: `bpf/tests/handover.rs` has one
//! of other bytes.

use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use podgate_bpf::abi::{Mode, Startup};
use podgate_bpf::attach::AttachMode;
use podgate_bpf::handover::OtherLayout;
use podgate_bpf::{Datapath, PinRoot};
use podgate_testkit::wait::eventually;

use crate::node::{Node, ip, on_another_layout, pod, policy};
use crate::uninstall::{Pod, Traffic, said, uninstall};
use crate::writing::{Writing, objects};

const WEB: &str = "10.0.0.2";
const API: &str = "10.0.0.3";
const STRANGER: &str = "10.0.0.4";
const SERVICE: &str = "10.96.0.1";
/// Of datagrams that policy allows, and of those that it does not.
const ASKED: u16 = 53;
const FORBIDDEN: u16 = 5353;
/// Where the service's endpoint listens: not where it is reached directly, since a pod may happen to use one port of its own for
/// both.
const BEHIND: (u16, u16) = (8080, 5300);

/// `web` may ask `api`, directly and through the service. Neither may do anything else;
/// `stranger` has no policy.
fn world() -> String {
    let service = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{namespace: shop, name: api}}\n\
         spec: {{clusterIP: {SERVICE}, ports: [{{name: t, port: 80}}, {{name: u, port: {ASKED}, protocol: UDP}}]}}\n---\n\
         apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\n\
         metadata: {{namespace: shop, name: api-x, labels: {{kubernetes.io/service-name: api}}}}\n\
         ports: [{{name: t, port: {}}}, {{name: u, port: {}, protocol: UDP}}]\n\
         endpoints: [{{addresses: [{API}], conditions: {{}}}}]\n---\n",
        BEHIND.0, BEHIND.1
    );
    let isolated = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n\
        metadata: {namespace: shop, name: api-out}\n\
        spec:\n  podSelector: {matchLabels: {app: api}}\n  policyTypes: [Egress]\n---\n\
        apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {namespace: shop, name: web}\n\
        spec:\n  podSelector: {matchLabels: {app: web}}\n  policyTypes: [Ingress, Egress]\n  egress:\n  \
        - to: [{podSelector: {matchLabels: {app: api}}}]\n---\n";
    let from_web =
        policy("shop/api-from-web", "app: api", "app: web", 80).replace("ports: [{port: 80}]", "");
    [
        pod("shop/web", "app: web", WEB),
        pod("shop/api", "app: api", API),
        pod("shop/stranger", "app: stranger", STRANGER),
        from_web,
        isolated.to_owned(),
        service,
    ]
    .concat()
}

struct Shop {
    web: Pod,
    api: Pod,
    stranger: Pod,
}

impl Shop {
    fn all(&self) -> [&Pod; 3] {
        [&self.web, &self.api, &self.stranger]
    }

    fn sent_again(&self) -> u64 {
        self.web.sent_again() + self.api.sent_again()
    }
}

/// Under the policies of the other layout, whose policyd has ended.
fn shop(node: &Node, mode: AttachMode) -> Shop {
    ip("link add br0 type bridge");
    ip("link set br0 up");
    ip("addr add 10.0.0.254/24 dev br0");
    for (setting, value) in
        [("ip_forward", "1"), ("conf/all/send_redirects", "0"), ("conf/br0/send_redirects", "0")]
    {
        std::fs::write(format!("/proc/sys/net/ipv4/{setting}"), value).unwrap();
    }
    let shop = Shop {
        web: Pod::new(node, "shop/web", WEB, mode),
        api: Pod::new(node, "shop/api", API, mode),
        stranger: Pod::new(node, "shop/stranger", STRANGER, mode),
    };
    shop.web.run(|| ip("route add default via 10.0.0.254"));
    Writing::on(node).replace(objects(&world()));
    node.manifest("world.yaml", &world());
    shop.api.serve_at(80);
    shop.api.serve_at(BEHIND.0);
    shop
}

/// Counts what arrives at a port, for as long as the test runs.
fn arrivals(at: &Pod, port: u16) -> Arc<AtomicU64> {
    let socket = at.run(move || UdpSocket::bind(("0.0.0.0", port)).unwrap());
    let count = Arc::new(AtomicU64::new(0));
    let counted = count.clone();
    thread::spawn(move || {
        let mut byte = [0; 8];
        while socket.recv_from(&mut byte).is_ok() {
            counted.fetch_add(1, Ordering::Relaxed);
        }
    });
    count
}

/// Sends a datagram each two milliseconds, from a new port now and then.
fn prober(from: &Pod, to: &'static str, stop: &Arc<AtomicBool>) -> Arc<AtomicU64> {
    let sent = Arc::new(AtomicU64::new(0));
    let (stop, count) = (stop.clone(), sent.clone());
    from.start(move || {
        // a thread is in the namespace of the one that starts it
        thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                let socket = UdpSocket::bind(("0.0.0.0", 0)).unwrap();
                for _ in 0..20 {
                    // the neighbour may not be resolved yet
                    let _ = socket.send_to(b"x", (to, FORBIDDEN));
                    count.fetch_add(1, Ordering::Relaxed);
                    thread::sleep(Duration::from_millis(2));
                }
            }
        });
    });
    sent
}

/// Asks and is answered, on one flow and on one new flow after the other; every answer comes.
fn asker(from: &Pod, to: &'static str, stop: &Arc<AtomicBool>) -> thread::JoinHandle<u64> {
    let (tell, told) = std::sync::mpsc::channel();
    let stop = stop.clone();
    from.start(move || {
        let work = thread::spawn(move || {
            let socket = || {
                let socket = UdpSocket::bind(("0.0.0.0", 0)).unwrap();
                socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
                socket
            };
            let old = socket();
            let mut asked = 0;
            while !stop.load(Ordering::Relaxed) {
                let new = socket();
                for socket in [&old, &new, &new] {
                    let mut answer = [0; 8];
                    socket.send_to(b"question", (to, ASKED)).unwrap();
                    socket
                        .recv_from(&mut answer)
                        .unwrap_or_else(|e| panic!("question {asked} to {to}: {e}"));
                    asked += 1;
                }
                thread::sleep(Duration::from_millis(2));
            }
            asked
        });
        tell.send(work).unwrap();
    });
    told.recv().unwrap()
}

fn answers(at: &Pod, port: u16) {
    let socket = at.run(move || UdpSocket::bind(("0.0.0.0", port)).unwrap());
    thread::spawn(move || {
        let mut question = [0; 8];
        while let Ok((_, from)) = socket.recv_from(&mut question) {
            let _ = socket.send_to(&question, from);
        }
    });
}

/// The pins of this build.
fn here(node: &Node) -> PinRoot {
    PinRoot::new(node.root.root())
}

fn taken_over(node: &Node, shop: &Shop) -> bool {
    let Ok(datapath) = Datapath::open(&here(node)) else { return false };
    let registrations = datapath.maps.registrations().unwrap();
    registrations.len() == shop.all().len()
        && registrations.iter().all(|each| each.startup == Startup::Hold)
        && !node.root.dir().exists()
}

/// All that must hold while `upgrade` is done.
fn under_traffic(mode: AttachMode, upgrade: impl FnOnce(&Node, &Shop) + Send) {
    on_another_layout(move |node| {
        let shop = shop(node, mode);
        answers(&shop.api, ASKED);
        answers(&shop.api, BEHIND.1);
        let limit = Duration::from_millis(300);
        assert!(!shop.stranger.connects(API, limit), "the policy is not in force");
        assert!(!shop.api.connects(WEB, limit), "the policy is not in force");
        let again = shop.sent_again();
        let direct = Traffic::start(&shop.web, API);
        let service = Traffic::start(&shop.web, SERVICE);
        let stop = Arc::new(AtomicBool::new(false));
        let askers = [API, SERVICE].map(|to| asker(&shop.web, to, &stop));
        let arrived = [arrivals(&shop.api, FORBIDDEN), arrivals(&shop.web, FORBIDDEN)];
        let probes = [
            prober(&shop.stranger, API, &stop),
            prober(&shop.stranger, WEB, &stop),
            prober(&shop.api, WEB, &stop),
            prober(&shop.web, STRANGER, &stop),
        ];
        direct.goes_on();
        service.goes_on();

        upgrade(node, &shop);

        let datapath = Datapath::open(&here(node)).unwrap();
        for each in shop.all() {
            datapath.verify(each.registration.ifindex).unwrap();
        }
        direct.end();
        service.end();
        let probed: Vec<_> = probes.iter().map(|sent| sent.load(Ordering::Relaxed)).collect();
        stop.store(true, Ordering::Relaxed);
        for asker in askers {
            let asked = asker.join().expect("a question was not answered");
            assert!(asked > 100, "only {asked} questions");
        }
        assert!(probed.iter().all(|sent| *sent > 100), "{probed:?}");
        let arrived = arrived.map(|count| count.load(Ordering::Relaxed));
        assert_eq!(arrived, [0, 0], "of {probed:?} forbidden datagrams");
        assert_eq!(shop.sent_again(), again, "segments were lost");
        assert!(!shop.stranger.connects(API, limit) && !shop.api.connects(WEB, limit));
    });
}

fn upgrades(mode: AttachMode) {
    under_traffic(mode, |node, shop| {
        let _policyd = node.policyd();
        eventually("all are taken over", || taken_over(node, shop).then_some(()));
        // for a moment with policyd still there
        thread::sleep(Duration::from_millis(500));
    });
}

#[test]
fn an_upgrade_to_another_layout_loses_nothing_and_opens_nothing_with_clsact() {
    upgrades(AttachMode::Clsact);
}

#[test]
fn an_upgrade_to_another_layout_loses_nothing_and_opens_nothing_with_tcx() {
    upgrades(AttachMode::Tcx);
}

#[test]
fn an_upgrade_that_is_killed_anywhere_goes_on_at_the_next_start() {
    for &mode in AttachMode::of_this_kernel() {
        under_traffic(mode, |node, shop| {
            let begun = || {
                let registrations = Datapath::open(&here(node)).ok()?.maps.registrations().ok()?;
                (!registrations.is_empty()).then_some(registrations)
            };
            for millis in [0, 5, 15, 25, 40, 60] {
                let policyd = node.policyd();
                eventually("it has begun", begun);
                thread::sleep(Duration::from_millis(millis));
                policyd.kill();
                thread::sleep(Duration::from_millis(50));
            }
            let _policyd = node.policyd();
            eventually("all are taken over", || taken_over(node, shop).then_some(()));
        });
    }
}

#[test]
fn a_pod_of_unknown_policy_keeps_the_one_it_had() {
    on_another_layout(|node| {
        let shop = shop(node, AttachMode::Clsact);
        let limit = Duration::from_millis(300);
        node.manifest("world.yaml", &world().replace(&pod("shop/api", "app: api", API), ""));
        let policyd = node.policyd();
        let state = |name: &str| {
            let all = node.get("/v1/endpoints");
            let found = all.as_array().unwrap().iter().find(|each| each["name"] == name);
            found.map(|each| each["state"].as_str().unwrap().to_owned())
        };
        eventually("the others are taken over", || {
            (state("web")? == "enforced" && state("stranger")? == "enforced").then_some(())
        });
        assert_eq!(state("api").as_deref(), Some("degraded"));
        assert!(!shop.stranger.connects(API, limit) && !shop.api.connects(WEB, limit));
        policyd.kill();
        assert!(!shop.stranger.connects(API, limit) && !shop.api.connects(WEB, limit));
        let _policyd = node.policyd();
        node.manifest("world.yaml", &world());
        eventually("it is taken over too", || taken_over(node, &shop).then_some(()));
        assert!(!shop.stranger.connects(API, limit) && !shop.api.connects(WEB, limit));
        assert!(shop.web.connects(API, limit));
    });
}

/// Such pods are not adopted as if they had no gate: an isolated one would be open meanwhile.
#[test]
fn pods_of_a_layout_that_cannot_be_read_keep_their_gates() {
    for &mode in AttachMode::of_this_kernel() {
        on_another_layout(move |node| {
            let shop = shop(node, mode);
            std::fs::remove_file(node.root.path("flows6")).unwrap();
            let policyd = node.policyd();
            eventually("policyd has looked", || {
                let unenforced = node.get("/v1/status")["unenforced"].to_string();
                Datapath::open(&here(node)).ok()?;
                unenforced.starts_with('[').then_some(())
            });
            // longer than adoption waits for a plugin that may be at work
            thread::sleep(Duration::from_secs(5));
            let datapath = Datapath::open(&here(node)).unwrap();
            assert_eq!(datapath.maps.registrations().unwrap(), []);
            for each in shop.all() {
                node.datapath.verify(each.registration.ifindex).unwrap();
            }
            let limit = Duration::from_millis(300);
            assert!(!shop.stranger.connects(API, limit) && !shop.api.connects(WEB, limit));
            assert!(shop.web.connects(API, Duration::from_secs(5)));
            let log = policyd.kill().join("\n");
            assert!(log.contains("cannot take pods over") && log.contains("flows6"), "{log}");
        });
    }
}

/// After giving up in the middle: denials pass in both layouts before the first gate goes.
#[test]
fn uninstall_loses_no_packet_of_pods_that_are_behind_another_layouts_gates() {
    for &mode in AttachMode::of_this_kernel() {
        on_another_layout(move |node| {
            let shop = shop(node, mode);
            for dir in ["conf", "bin", "cache"] {
                std::fs::create_dir(node.path(dir)).unwrap();
            }
            let limit = Duration::from_millis(300);
            assert!(!shop.stranger.connects(API, limit), "the policy is not in force");
            let again = shop.sent_again();
            let traffic = Traffic::start(&shop.web, API);
            traffic.goes_on();
            let done = uninstall(node, "0").output().unwrap();
            assert!(done.status.success(), "{}", said(&done));
            traffic.end();
            assert_eq!(shop.sent_again(), again, "segments were lost");
            assert!(shop.stranger.connects(API, limit), "something still denies");
            assert!(!node.root.root().exists(), "pins are left");
        });
    }
}

#[test]
fn the_mode_and_the_registrations_come_along() {
    on_another_layout(|node| {
        let shop = shop(node, AttachMode::Clsact);
        node.maps().control().set_mode(Mode::Audit);
        let mut before: Vec<_> = node.registered().into_iter().map(|(_, each)| each).collect();
        let _policyd = node.policyd();
        eventually("all are taken over", || taken_over(node, &shop).then_some(()));
        let datapath = Datapath::open(&here(node)).unwrap();
        assert_eq!(datapath.maps.control().mode(), Mode::Audit);
        let mut after = datapath.maps.registrations().unwrap();
        after.sort_by_key(|each| each.ifindex);
        before.sort_by_key(|each| each.ifindex);
        assert_eq!(after.len(), before.len());
        for (after, before) in after.iter_mut().zip(&before) {
            assert_ne!(after.owner, before.owner, "its own number");
            after.owner = before.owner;
            assert_eq!(after, before);
        }
        assert!(OtherLayout::all(&here(node)).unwrap().is_empty());
    });
}
