//! All pods against all pods: every pair, both protocols, two ports, by the pod's address and through its service, both
//! families, at once.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::core::v1::{Namespace, Pod, Service};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::api::{Api, ListParams};
use podgate_testkit::wait::until;

use super::pods::{self, PORTS, Workload};
use super::probe::{self, Probe, Protocol, Server};
use super::{CLUSTER_TIMEOUT, Cluster};
use crate::oracle::{self, L4};

/// Longest that a change may take to be in force on a busy machine.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(20);

/// How a pod is addressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    /// By its own address.
    Pod,
    /// Through a service in front of it alone.
    Service,
}

/// One try of the matrix.
#[derive(Clone, Copy, Debug)]
pub struct Case<'a> {
    /// The client.
    pub from: &'a Workload,
    /// The server.
    pub to: &'a Workload,
    /// The client's address in the family of this try.
    pub source: IpAddr,
    /// The server's own address in this family.
    pub destination: IpAddr,
    /// The destination address: the server's own or its service's.
    pub asked: IpAddr,
    /// What is sent.
    pub protocol: Protocol,
    /// To which port.
    pub port: u16,
    /// How the server is addressed.
    pub way: Way,
}

impl fmt::Display for Case<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { protocol, port, asked, .. } = self;
        let (from, to) = (self.from.id(), self.to.id());
        write!(f, "{from} -> {to} {} {port} at {asked}", protocol.name())
    }
}

/// Pods that serve, each with a service of its own.
#[derive(Debug)]
pub struct Matrix {
    /// The pods.
    pub pods: Vec<Workload>,
    services: Vec<[IpAddr; 2]>,
    ways: Vec<Way>,
    _servers: Vec<Server>,
}

impl Matrix {
    /// A pod of each of these names in each of these namespaces, on the workers in turn. It waits until everybody
    /// reaches everybody, so that what is out of reach later is so by policy.
    pub fn start(cluster: &Cluster, namespaces: &[&str], names: &[&str]) -> Result<Self> {
        Self::with_ways(cluster, namespaces, names, &[Way::Pod, Way::Service])
    }

    /// [`Self::start`] that tries only some ways.
    pub fn with_ways(
        cluster: &Cluster,
        namespaces: &[&str],
        names: &[&str],
        ways: &[Way],
    ) -> Result<Self> {
        cluster.make_namespaces(namespaces)?;
        let wanted: Vec<_> =
            namespaces.iter().flat_map(|ns| names.iter().map(move |name| (*ns, *name))).collect();
        let mut objects = Vec::new();
        for (number, (namespace, name)) in wanted.iter().enumerate() {
            let worker = number % cluster.workers.len();
            objects.push(pods::manifest(namespace, name, Some(worker + 1)));
            objects.push(pods::service(namespace, name));
        }
        cluster.apply(&objects)?;
        let pods = cluster.workloads(&wanted)?;
        let services = pods.iter().map(|pod| cluster.service(&pod.namespace, &pod.name));
        let services = services.collect::<Result<Vec<_>>>()?;
        let servers = pods.iter().map(|pod| Server::listen(&pod.netns_path, &pod.id(), &PORTS));
        let servers = servers.collect::<Result<Vec<_>>>()?;
        let matrix = Self { pods, services, ways: ways.to_vec(), _servers: servers };
        matrix.expect("before any policy", |_| true)?;
        Ok(matrix)
    }

    /// The pod of this name, as `NAMESPACE/NAME`.
    pub fn pod(&self, id: &str) -> Result<&Workload> {
        self.pods.iter().find(|pod| pod.id() == id).with_context(|| format!("find pod {id}"))
    }

    /// Everything that is tried.
    pub fn cases(&self) -> Vec<Case<'_>> {
        let mut cases = Vec::new();
        for from in &self.pods {
            for (to, service) in self.pods.iter().zip(&self.services) {
                for family in [0, 1] {
                    for way in self.ways.iter().copied() {
                        for protocol in [Protocol::Tcp, Protocol::Udp] {
                            for port in PORTS {
                                let destination = to.addresses[family];
                                let asked = match way {
                                    Way::Pod => destination,
                                    Way::Service => service[family],
                                };
                                let source = from.addresses[family];
                                cases.push(Case {
                                    from,
                                    to,
                                    source,
                                    destination,
                                    asked,
                                    protocol,
                                    port,
                                    way,
                                });
                            }
                        }
                    }
                }
            }
        }
        cases
    }

    /// Tries everything until it is as expected; how long that took. Fails with what differed in the last round.
    pub fn expect(&self, title: &str, allowed: impl Fn(&Case<'_>) -> bool) -> Result<Duration> {
        self.expect_verdicts(title, &self.cases().iter().map(allowed).collect::<Vec<_>>())
    }

    /// [`Self::expect`], with the verdict of each of [`Self::cases`].
    pub fn expect_verdicts(&self, title: &str, verdicts: &[bool]) -> Result<Duration> {
        let started = Instant::now();
        loop {
            let wrong = self.differences(verdicts)?;
            if wrong.is_empty() {
                return Ok(started.elapsed());
            }
            if started.elapsed() > SETTLE_TIMEOUT {
                let total = wrong.len();
                let first = wrong.into_iter().take(24).collect::<Vec<_>>().join("\n  ");
                bail!("{title}: {total} of {} are wrong:\n  {first}", self.cases().len());
            }
        }
    }

    /// Tries everything until it is as the oracle says of this world.
    pub fn expect_oracle(&self, title: &str, world: &oracle::World) -> Result<Duration> {
        let cases = self.cases();
        let verdicts = cases.iter().map(|case| Self::oracle(world, case));
        let verdicts = verdicts.collect::<Result<Vec<_>>>()?;
        self.expect_verdicts(title, &verdicts)
    }

    /// Tries everything once; what is not as expected.
    pub fn differences(&self, verdicts: &[bool]) -> Result<Vec<String>> {
        let cases = self.cases();
        let probes: Vec<_> = cases
            .iter()
            .zip(verdicts)
            .map(|(case, allowed)| Probe {
                from: case.from.netns_path.clone(),
                to: (case.asked, case.port).into(),
                protocol: case.protocol,
                allowed: *allowed,
            })
            .collect();
        let answers = probe::run(&probes)?;
        let mut wrong = Vec::new();
        for ((case, answer), allowed) in cases.iter().zip(answers).zip(verdicts) {
            match (answer, *allowed) {
                (None, false) => {}
                (Some(name), true) if name == case.to.id() => {}
                (Some(name), true) => wrong.push(format!("{case}: {name} answered")),
                (Some(_), false) => wrong.push(format!("{case}: answered, though it is denied")),
                (None, true) => wrong.push(format!("{case}: no answer, though it is allowed")),
            }
        }
        Ok(wrong)
    }

    /// What the oracle says of a case in a world that [`Cluster::world`] has seen.
    pub fn oracle(world: &oracle::World, case: &Case<'_>) -> Result<bool> {
        let pod = |of: &Workload| {
            let mut pods = world.pods.iter();
            pods.find(|pod| {
                pod.metadata.namespace.as_ref() == Some(&of.namespace)
                    && pod.metadata.name.as_ref() == Some(&of.name)
            })
            .with_context(|| format!("find pod {} in the world", of.id()))
        };
        let from = (pod(case.from)?, case.source);
        let to = (pod(case.to)?, case.destination);
        Ok(oracle::connects(world, from, to, L4::Port(case.protocol.name(), case.port)))
    }
}

impl Cluster {
    /// The objects that verdicts depend on, as the API server has them now.
    pub fn world(&self) -> Result<oracle::World> {
        self.admin().call(async |client| {
            let all = ListParams::default();
            Ok(oracle::World {
                namespaces: Api::<Namespace>::all(client.clone()).list(&all).await?.items,
                pods: Api::<Pod>::all(client.clone()).list(&all).await?.items,
                policies: Api::<NetworkPolicy>::all(client).list(&all).await?.items,
                ..oracle::World::default()
            })
        })
    }

    /// The addresses of a service, IPv4 first.
    pub fn service(&self, namespace: &str, name: &str) -> Result<[IpAddr; 2]> {
        let service = self.admin().call(async |client| {
            Ok(Api::<Service>::namespaced(client, namespace).get(name).await?)
        })?;
        let addresses = service.spec.and_then(|spec| spec.cluster_ips).unwrap_or_default();
        let mut addresses: Vec<IpAddr> =
            addresses.iter().map(|ip| ip.parse()).collect::<Result<_, _>>()?;
        addresses.sort();
        let [v4, v6] = addresses[..] else {
            bail!("look at service {namespace}/{name}: not one address of each family");
        };
        Ok([v4, v6])
    }

    /// Waits until every node's policyd knows exactly the policies that the API server has: what is tried before might
    /// succeed by what was in force before. (A change inside of a policy does not show here.)
    pub fn await_policies(&self) -> Result<()> {
        let world = self.world()?;
        let wanted: BTreeSet<_> = world
            .policies
            .into_iter()
            .map(|p| {
                (p.metadata.namespace.unwrap_or_default(), p.metadata.name.unwrap_or_default())
            })
            .collect();
        let mut last = String::new();
        let known = until(CLUSTER_TIMEOUT, || {
            self.workers.iter().all(|worker| match worker.policies() {
                Ok(known) => {
                    last = format!("{} knows {known:?}", worker.name);
                    known == wanted
                }
                Err(error) => {
                    last = format!("{error:#}");
                    false
                }
            })
        });
        ensure!(known, "wait for the policies {wanted:?}: {last}");
        Ok(())
    }
}

impl super::worker::Worker {
    /// The policies that this node's policyd knows.
    fn policies(&self) -> Result<BTreeSet<(String, String)>> {
        let answer = self.policyd("/v1/policies")?;
        let list = answer.as_array().context("read policies: no list")?;
        let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
        Ok(list.iter().map(|policy| (text(&policy["namespace"]), text(&policy["name"]))).collect())
    }
}
