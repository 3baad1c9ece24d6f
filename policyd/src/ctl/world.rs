//! A world from manifests, compiled whole: every pod that has a network of its own is an endpoint.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use podgate_policy::compile::{Endpoint, EndpointId};
use podgate_policy::engine::Engine;
use podgate_policy::index::{Change, Index};
use podgate_policy::model::{ObjectKey, Pod, PodLife};
use podgate_policy::services::{ServiceTable, View};

use super::end::End;
use super::probes::Probe;
use crate::lab::plan::{self, NODE, Plan};
use crate::sources::unenforced::describe;
use crate::sources::{Object, complete, manifest};

/// A world: what the manifests say, where its pods are, and what their gates allow.
#[derive(Debug)]
pub struct World {
    /// Where it came from.
    pub dir: PathBuf,
    /// Everything the manifests say.
    pub index: Index,
    /// Addresses of pods and node.
    pub plan: Plan,
    /// Pods with a network of their own, by namespace and name.
    pub seats: Vec<Seat>,
    /// What its services lead to.
    pub services: ServiceTable,
    pub(super) engine: Engine,
}

/// A pod with a network of its own.
#[derive(Clone, Debug)]
pub struct Seat {
    /// The pod.
    pub pod: Arc<Pod>,
    /// It as an endpoint, with its addresses.
    pub endpoint: Endpoint,
}

/// Where a packet starts or ends, once the world is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Party {
    /// A pod of the world, by its place in [`World::seats`], with those of its addresses that are meant.
    Pod(usize, Vec<IpAddr>),
    /// A node: its name if it has one, and its addresses as far as hostNetwork pods tell.
    Node(Option<Arc<str>>, Vec<IpAddr>),
    /// An address that is nobody's.
    Stranger(IpAddr),
}

impl World {
    /// Reads the manifests of a directory. `probes` only tell which addresses are spoken for.
    pub fn load(dir: &Path, probes: &[Probe]) -> Result<Self, String> {
        let shown = dir.display();
        let read = manifest::read_dir(dir).map_err(|e| format!("read manifests {shown}: {e}"))?;
        if !read.errors.is_empty() {
            let lines = read.errors.iter().map(|error| format!("\n  {error}")).collect::<String>();
            return Err(format!("read manifests {shown}: {} mistakes{lines}", read.errors.len()));
        }
        for (kind, count) in &read.unenforced {
            let objects = describe(kind.name(), *count);
            anstream::eprintln!(
                "read manifests {shown}: left out {objects}: podgate does not enforce that kind"
            );
        }
        let mut index = Index::new();
        for object in &read.objects {
            index.apply(Change::from(object.clone()));
        }
        if index.pods().len() == 0 {
            return Err(format!(
                "read manifests {shown}: no pods in its *.yaml, *.yml and *.json files (subdirectories are not read)"
            ));
        }
        Ok(Self::new(dir.to_path_buf(), read.objects, index, probes))
    }

    fn new(dir: PathBuf, objects: Vec<Object>, mut index: Index, probes: &[Probe]) -> Self {
        let (mut mentioned, mut nodes) = (BTreeSet::new(), BTreeSet::new());
        for end in probes.iter().flat_map(|probe| [&probe.src, &probe.dst]) {
            match end {
                End::Address(address) if index.owner_of(*address).is_none() => {
                    mentioned.insert(*address);
                }
                End::Node(name) => {
                    nodes.insert(name.as_str().into());
                }
                End::Address(_) | End::Pod(_) | End::Service(_) => {}
            }
        }
        let plan = Plan::new(&index, &mentioned, &nodes);
        for object in services(objects, &plan) {
            index.apply(Change::from(object));
        }
        let seats = index
            .pods()
            .filter_map(|pod| Some((pod, plan.pods.get(&pod.key)?)))
            .zip(1..)
            .map(|((pod, addresses), number)| Seat {
                pod: pod.clone(),
                endpoint: Endpoint {
                    id: EndpointId(number),
                    pod: Some(pod.key.clone()),
                    uid: pod.uid.clone(),
                    addresses: addresses.clone(),
                },
            })
            .collect::<Vec<_>>();
        let engine = Engine::of(&index, seats.iter().map(|seat| seat.endpoint.clone()));
        let mut services = ServiceTable::of(index.services(), NODE);
        let gateways = plan.subnets.iter().map(|subnet| subnet.gateway);
        let own = plan.here.iter().chain(&plan.uplinks).copied().chain(gateways);
        let own = Arc::new(own.collect::<BTreeSet<_>>());
        let nodes = Arc::new(own.union(&index.host_addresses()).copied().collect());
        services.set_view(View { leaves_all: false, own, nodes });
        Self { dir, index, plan, seats, services, engine }
    }

    /// The first line of the README beside the manifests or above them, else the directory's name.
    pub fn title(&self) -> String {
        let absolute = self.dir.canonicalize().unwrap_or_else(|_| self.dir.clone());
        let above = absolute.parent().unwrap_or(&absolute);
        for readme in [absolute.join("README.md"), above.join("README.md")] {
            let text = fs::read_to_string(readme).unwrap_or_default();
            if let Some(line) = text.lines().find(|line| line.starts_with("# ")) {
                return line.trim_start_matches("# ").trim().to_owned();
            }
        }
        let name = if absolute.ends_with("manifests") { above } else { &absolute };
        name.file_name().unwrap_or(absolute.as_os_str()).to_string_lossy().into_owned()
    }

    /// Pods that have no network of their own, and why.
    pub fn absent(&self) -> Vec<(ObjectKey, String)> {
        let keys = self.index.pods().map(|pod| &pod.key);
        keys.filter(|key| !self.plan.pods.contains_key(key))
            .filter_map(|key| Some((key.clone(), plan::absence(&self.index, key)?)))
            .collect()
    }

    /// Who is meant by an end; the error says why nobody can be.
    pub fn party(&self, end: &End) -> Result<Party, String> {
        match end {
            End::Pod(key) => self.pod(key),
            End::Address(address) => Ok(self.at(*address)),
            End::Node(name) => Ok(self.node(Some(name.as_str().into()))),
            End::Service(key) => Err(format!("svc:{key} is a service: it sends nothing itself")),
        }
    }

    fn pod(&self, key: &ObjectKey) -> Result<Party, String> {
        let Some(pod) = self.index.pod(key) else {
            return Err(format!("no pod {key} in {}", self.dir.display()));
        };
        if pod.host_network {
            return Ok(Party::Node(pod.node.clone(), pod.addresses.clone()));
        }
        match self.seats.iter().position(|seat| seat.pod.key == *key) {
            Some(seat) => Ok(Party::Pod(seat, self.seats[seat].endpoint.addresses.clone())),
            None => {
                let why =
                    plan::absence(&self.index, key).unwrap_or_else(|| "has no address".into());
                Err(format!("pod {key} {why}: it can neither send nor receive"))
            }
        }
    }

    pub(super) fn at(&self, address: IpAddr) -> Party {
        let has = |seat: &Seat| seat.endpoint.addresses.contains(&address);
        if let Some(seat) = self.seats.iter().position(has) {
            return Party::Pod(seat, vec![address]);
        }
        let host = self.host_network_pods().find(|pod| pod.addresses.contains(&address));
        match host {
            Some(pod) => Party::Node(pod.node.clone(), vec![address]),
            None => Party::Stranger(address),
        }
    }

    fn node(&self, name: Option<Arc<str>>) -> Party {
        let on = self.host_network_pods().filter(|pod| pod.node == name);
        let addresses = on.flat_map(|pod| pod.addresses.iter().copied()).collect::<BTreeSet<_>>();
        Party::Node(name, addresses.into_iter().collect())
    }

    fn host_network_pods(&self) -> impl Iterator<Item = &Arc<Pod>> {
        self.index.pods().filter(|pod| pod.host_network && pod.life != PodLife::Finished)
    }

    /// Whether a node is the one that a pod runs on. A pod that is not scheduled anywhere runs on
    /// whichever node is asked about.
    pub fn is_own_node(&self, seat: usize, node: Option<&str>) -> bool {
        match (self.seats[seat].pod.node.as_deref(), node) {
            (Some(own), Some(asked)) => own == asked,
            (None, _) | (_, None) => true,
        }
    }
}

/// The services of some objects and their slices, those included that a control plane would add. All pods of a world live on
/// one node.
fn services(mut objects: Vec<Object>, plan: &Plan) -> Vec<Object> {
    complete(&mut objects, &plan.pods);
    let here = plan.pods.values().flatten().collect::<BTreeSet<_>>();
    for object in &mut objects {
        let Object::EndpointSlice(slice) = object else { continue };
        for endpoint in slice.endpoints.iter_mut().filter(|of| here.contains(&of.address)) {
            endpoint.node = Some(NODE.into());
        }
    }
    objects.retain(|object| matches!(object, Object::Service(_) | Object::EndpointSlice(_)));
    objects
}
