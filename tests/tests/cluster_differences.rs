//! The same random services through kube-proxy and podgate: the same pods dial every address of every service without
//! podgate, with podgate translating, and with `--services leave`. The endpoints met, what is refused, what is
//! silent, and the source that endpoints see are the same, but for what docs/services.md lists.
//!
//! `PODGATE_SEED` chooses the services; each run prints it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use fastrand::Rng;
use podgate_tests::cluster::dial::{self, Dial, Outcome, Outcomes};
use podgate_tests::cluster::podgate::NAMESPACE;
use podgate_tests::cluster::pods::{self, Workload};
use podgate_tests::cluster::probe::Server;
use podgate_tests::cluster::service_worlds::{self, Address, ENDPOINT_PORTS, Kind, Service, ZONES};
use podgate_tests::cluster::{CLUSTER_TIMEOUT, Cluster, Options, Primary, Proxy, network};

const SPACE: &str = "differences";
const SERVICES: usize = 24;
const SEED: u64 = 0x5eed_c0de;

/// Two processors carry one cluster at a time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// A client and one address that it dials.
struct Question<'a> {
    client: &'a Workload,
    address: &'a Address,
}

impl Question<'_> {
    fn own_address(&self) -> IpAddr {
        self.client.addresses[usize::from(self.address.to.is_ipv6())]
    }

    fn describe(&self, services: &[Service]) -> String {
        let Address { service, port, kind, to, .. } = self.address;
        let service = &services[*service].name;
        format!("{} -> {service} {port} by {kind:?} {to}", self.client.name)
    }

    /// What podgate's translation makes of what kube-proxy does: docs/services.md, "Differences from kube-proxy".
    fn translated(&self, outcome: &Outcome) -> Outcome {
        let Outcome::Answered { by, .. } = outcome else { return outcome.clone() };
        if !self.address.kind.is_translated() {
            return outcome.clone();
        }
        let is_client = by.starts_with(&format!("{}:", self.client.name));
        let seen_as = if is_client { self.address.to.ip() } else { self.own_address() };
        Outcome::Answered { by: by.clone(), seen_as }
    }
}

/// Who answered.
fn endpoints(outcomes: &Outcomes) -> BTreeSet<&str> {
    let mut all = BTreeSet::new();
    for outcome in outcomes {
        match outcome {
            Outcome::Answered { by, .. } => all.insert(by.as_str()),
            Outcome::Refused | Outcome::Silent => continue,
        };
    }
    all
}

struct Comparison<'a> {
    services: &'a [Service],
    questions: Vec<Question<'a>>,
}

impl Comparison<'_> {
    fn ask(&self, which: &[usize]) -> Result<Vec<Outcomes>> {
        let dial = |index: &usize| {
            let Question { client, address } = &self.questions[*index];
            let Address { to, protocol, .. } = **address;
            Dial { from: client.netns_path.clone(), to, protocol }
        };
        dial::run(&which.iter().map(dial).collect::<Vec<_>>())
    }

    /// What kube-proxy alone does: asked until two rounds agree, since the first may be ahead of its rules.
    fn settled(&self) -> Result<Vec<Outcomes>> {
        let started = Instant::now();
        let mut seen = self.ask(&self.all())?;
        loop {
            let again = self.ask(&self.all())?;
            let differ: Vec<_> =
                self.all().into_iter().filter(|index| seen[*index] != again[*index]).collect();
            if differ.is_empty() {
                return Ok(seen);
            }
            let show = |n: &usize| format!("{}: {:?}, {:?}", self.name(*n), seen[*n], again[*n]);
            let some: Vec<_> = differ.iter().take(8).map(show).collect();
            println!("kube-proxy has not settled after {:?}: {some:#?}", started.elapsed());
            ensure!(started.elapsed() < CLUSTER_TIMEOUT, "kube-proxy does not settle: {some:#?}");
            seen = again;
        }
    }

    fn all(&self) -> Vec<usize> {
        (0..self.questions.len()).collect()
    }

    fn name(&self, index: usize) -> String {
        self.questions[index].describe(self.services)
    }

    /// Asks what is not as it should be, until everything is.
    fn expect(
        &self,
        title: &str,
        wrong: impl Fn(usize, &[Outcomes]) -> Option<String>,
    ) -> Result<()> {
        let started = Instant::now();
        let mut seen = self.ask(&self.all())?;
        loop {
            let found: BTreeMap<usize, String> =
                self.all().into_iter().filter_map(|n| Some((n, wrong(n, &seen)?))).collect();
            if found.is_empty() {
                let (count, time) = (self.questions.len(), started.elapsed());
                println!("{title}: {count} questions in {time:?}");
                return Ok(());
            }
            if started.elapsed() > CLUSTER_TIMEOUT {
                let some: Vec<_> = found
                    .iter()
                    .take(20)
                    .map(|(index, why)| format!("{}: {why}", self.name(*index)))
                    .collect();
                bail!("{title}: {} of {}: {some:#?}", found.len(), self.questions.len());
            }
            let which: Vec<_> = found.into_keys().collect();
            println!("{title}: {} wrong after {:?}", which.len(), started.elapsed());
            for (index, outcomes) in which.iter().zip(self.ask(&which)?) {
                seen[*index] = outcomes;
            }
        }
    }

    /// The same question of the service without affinity.
    fn twin(&self, index: usize) -> Option<usize> {
        let Question { client, address } = &self.questions[index];
        let twin = self.services[address.service].twin?;
        self.questions.iter().position(|of| {
            let Address { service, port, kind, to, .. } = of.address;
            of.client.name == client.name
                && (*service, *port, *kind) == (twin, address.port, address.kind)
                && to.is_ipv4() == address.to.is_ipv4()
        })
    }

    /// The other addresses of the same service port and family, for the same client.
    fn siblings(&self, index: usize) -> impl Iterator<Item = usize> + '_ {
        let Question { client, address } = &self.questions[index];
        self.all().into_iter().filter(move |other| {
            let of = &self.questions[*other];
            let here = (address.service, address.port, address.to.is_ipv4());
            of.client.name == client.name
                && (of.address.service, of.address.port, of.address.to.is_ipv4()) == here
        })
    }

    /// What is wrong with what podgate does, given what kube-proxy alone does.
    fn compare(
        &self,
        index: usize,
        kube_proxy: &[Outcomes],
        seen: &[Outcomes],
        services: Services,
    ) -> Option<String> {
        let question = &self.questions[index];
        let here = &seen[index];
        let more_allowed =
            services == Services::Translated && self.services[question.address.service].hinted;
        let twin = self.twin(index);
        let alone = &kube_proxy[twin.unwrap_or(index)];
        let differs = || Some(format!("kube-proxy {alone:?}, podgate {here:?}"));
        if twin.is_none() || endpoints(alone).is_empty() {
            let expected: Outcomes = match services {
                Services::Translated => alone.iter().map(|of| question.translated(of)).collect(),
                Services::Left => alone.clone(),
            };
            // hints are not heeded: all that kube-proxy picks, and maybe more
            let right = if more_allowed { here.is_superset(&expected) } else { *here == expected };
            return if right { None } else { differs() };
        }
        // with affinity: one of those that there are without
        let kept = endpoints(here);
        if here.len() != 1 || kept.is_empty() {
            return differs();
        }
        if !more_allowed && !kept.is_subset(&endpoints(alone)) {
            return differs();
        }
        // and the same at every address that has the same memory and the same choice
        let memory = |index: usize| match (self.questions[index].address.kind, services) {
            (Kind::NodePort(worker), _) if worker != question.client.worker => Memory::OtherNode,
            (kind, Services::Translated) if kind.is_translated() => Memory::Gate,
            _ => Memory::OwnNode,
        };
        let choice = |index: usize| Some(endpoints(&kube_proxy[self.twin(index)?]));
        let elsewhere = self.siblings(index).find(|other| {
            memory(*other) == memory(index)
                && choice(*other) == choice(index)
                && endpoints(&seen[*other]) != kept
        });
        elsewhere.map(|other| format!("{here:?}, but {}: {:?}", self.name(other), seen[other]))
    }
}

/// Who translates service addresses, as far as the gate can.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Services {
    /// The gate.
    Translated,
    /// kube-proxy: `--services leave`.
    Left,
}

/// Whose memory of clients counts at an address.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Memory {
    Gate,
    /// kube-proxy's on the client's node.
    OwnNode,
    /// kube-proxy's on the other node.
    OtherNode,
}

fn same_as_kube_proxy(proxy: Proxy) -> Result<()> {
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let seed = match std::env::var("PODGATE_SEED") {
        Ok(text) => text.parse().with_context(|| format!("PODGATE_SEED={text}"))?,
        Err(_) => SEED,
    };
    println!("PODGATE_SEED={seed}");
    let cluster = Cluster::start(Options { proxy, primary: Primary::Ptp })?;
    for (worker, zone) in cluster.workers.iter().zip(ZONES) {
        let label = format!("topology.kubernetes.io/zone={zone}");
        cluster.kubectl(&["label", "node", &worker.name, &label])?;
        // a node says only so often a second that it refuses
        network::script(
            &worker.node,
            "echo 0 >/proc/sys/net/ipv4/icmp_ratelimit\necho 0 >/proc/sys/net/ipv6/icmp/ratelimit",
        )?;
    }
    cluster.make_namespaces(&[SPACE])?;
    let names = ["client", "e1", "e2", "e3", "e4"];
    let on = |name: &str| if matches!(name, "e3" | "e4") { 2 } else { 1 };
    cluster.apply(&names.map(|name| pods::manifest(SPACE, name, Some(on(name)))))?;
    let pods = cluster.workloads(&names.map(|name| (SPACE, name)))?;
    let servers = pods[1..].iter().map(|pod| {
        let name = pod.name.clone();
        Server::listen_as(&pod.netns_path, &ENDPOINT_PORTS, move |client, port| {
            dial::answer(&format!("{name}:{port}"), client)
        })
    });
    let _servers = servers.collect::<Result<Vec<_>>>()?;

    let services = service_worlds::services(&mut Rng::with_seed(seed), SERVICES, SPACE, &pods[1..]);
    let objects: Vec<_> = services.iter().flat_map(|service| service.objects.clone()).collect();
    cluster.apply(&objects)?;
    for service in &services {
        let Some(status) = &service.status else { continue };
        let patch = status.to_string();
        let what = ["patch", "service", "-n", SPACE, &service.name, "--subresource=status"];
        cluster.kubectl(&[&what[..], &["--type=merge", "-p", &patch]].concat())?;
    }
    // one that is no endpoint, and one that may pick itself
    let clients = &pods[..2];
    let addresses = services.iter().flat_map(|service| &service.addresses);
    let questions = addresses
        .flat_map(|address| clients.iter().map(move |client| Question { client, address }))
        .collect();
    let comparison = Comparison { services: &services, questions };

    let kube_proxy = comparison.settled().context("without podgate")?;
    let count = |of: fn(&Outcomes) -> bool| kube_proxy.iter().filter(|o| of(o)).count();
    let several = count(|outcomes| endpoints(outcomes).len() > 1);
    let refused = count(|outcomes| outcomes.contains(&Outcome::Refused));
    let silent = count(|outcomes| outcomes.contains(&Outcome::Silent));
    println!("kube-proxy: {several} with several endpoints, {refused} refused, {silent} silent");
    ensure!(several > 9 && refused > 1 && silent > 1, "the services are too much alike");

    cluster.install_podgate()?;
    comparison.expect("podgate translates", |index, seen| {
        comparison.compare(index, &kube_proxy, seen, Services::Translated)
    })?;

    let daemonset = "daemonset/podgate";
    let env = ["set", "env", "-n", NAMESPACE, daemonset, "-c", "policyd", "PODGATE_SERVICES=leave"];
    cluster.kubectl(&env)?;
    cluster.kubectl(&["rollout", "status", "-n", NAMESPACE, daemonset, "--timeout=120s"])?;
    cluster.await_podgate()?;
    comparison.expect("podgate leaves services to kube-proxy", |index, seen| {
        comparison.compare(index, &kube_proxy, seen, Services::Left)
    })?;
    cluster.finish()
}

#[test]
fn podgate_does_as_kube_proxy_with_iptables() -> Result<()> {
    same_as_kube_proxy(Proxy::Iptables)
}

#[test]
fn podgate_does_as_kube_proxy_with_nftables() -> Result<()> {
    same_as_kube_proxy(Proxy::Nftables)
}
