//! A cluster from manifests, compiled whole: every pod that has a network of its own is an endpoint.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use podgate_manifests::unenforced::describe;
use podgate_manifests::{manifest, synthesize::synthesize};
use podgate_policy::compile::Engine;
use podgate_policy::index::{Index, NodeRef};
use podgate_policy::model::{ObjectKey, Pod};
use podgate_policy::object::{Event, Object};
use podgate_policy::reach::{self, Answer, Question, Reach, Target, Topology, Unanswerable};
use podgate_policy::services::{NodeContext, ServiceTable};
use podgate_policy::tables::{Endpoint, EndpointId};

use crate::lab::plan::{NODE, Plan};
use crate::probes::Probe;
use crate::rules;

/// What the manifests say, where the pods are, and what their gates allow.
#[derive(Debug)]
pub(crate) struct Cluster {
    /// The directory of the manifests.
    pub dir: PathBuf,
    /// Everything that the manifests say.
    pub index: Index,
    /// Addresses of pods and nodes.
    pub plan: Plan,
    /// Pods with a network of their own, by namespace and name.
    pub pods: Vec<LocalPod>,
    /// Where its services lead.
    pub services: ServiceTable,
    engine: Engine,
}

/// A pod with a network of its own.
#[derive(Clone, Debug)]
pub(crate) struct LocalPod {
    /// The pod.
    pub pod: Arc<Pod>,
    /// Its endpoint, with its addresses.
    pub endpoint: Endpoint,
}

impl Cluster {
    /// Reads the manifests of a directory, and local rules. `probes` only say which addresses are in use, and which nodes
    /// there are.
    pub(crate) fn load(
        dir: &Path,
        local_rules: Option<&Path>,
        probes: &[Probe],
    ) -> Result<Self, String> {
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
            index.apply(Event::Set(object.clone()));
        }
        for problem in index.problems() {
            anstream::eprintln!("read manifests {shown}: {problem}");
        }
        if index.pods().len() == 0 {
            return Err(format!(
                "read manifests {shown}: no pods in its *.yaml, *.yml and *.json files (subdirectories are not read)"
            ));
        }
        if let Some(file) = local_rules {
            rules::read(&mut index, file)?;
        }
        Ok(Self::new(dir.to_path_buf(), read.objects, index, probes))
    }

    fn new(dir: PathBuf, objects: Vec<Object>, mut index: Index, probes: &[Probe]) -> Self {
        let (mut mentioned, mut nodes) = (BTreeSet::new(), BTreeSet::new());
        for target in probes.iter().flat_map(|probe| [&probe.src, &probe.dst]) {
            match target {
                Target::Address(address) if index.owner_of(*address).is_none() => {
                    mentioned.insert(*address);
                }
                Target::Node(name) => {
                    nodes.insert(name.clone());
                }
                Target::Address(_) | Target::Pod(_) | Target::Service(_) => {}
            }
        }
        let plan = Plan::new(&index, &mentioned, &nodes);
        for object in services(objects, &plan) {
            index.apply(Event::Set(object));
        }
        let pods = index
            .pods()
            .filter_map(|pod| Some((pod, plan.pods.get(&pod.key)?)))
            .zip(1..)
            .map(|((pod, addresses), number)| LocalPod {
                pod: pod.clone(),
                endpoint: Endpoint {
                    id: EndpointId(number),
                    pod: Some(pod.key.clone()),
                    uid: pod.uid.clone(),
                    addresses: addresses.clone(),
                },
            })
            .collect::<Vec<_>>();
        let engine = Engine::of(&index, pods.iter().map(|pod| pod.endpoint.clone()));
        let mut services = ServiceTable::of(index.services(), NODE);
        let gateways = plan.subnets.iter().map(|subnet| subnet.gateway);
        let own = plan.here.iter().chain(&plan.uplinks).copied().chain(gateways);
        let own = Arc::new(own.collect::<BTreeSet<_>>());
        let nodes = Arc::new(own.union(&index.host_addresses()).copied().collect());
        services.set_node_context(NodeContext { translation_off: false, own, nodes });
        Self { dir, index, plan, pods, services, engine }
    }

    /// Answers a question.
    pub(crate) fn answer(&self, question: &Question) -> Result<Answer, Unanswerable> {
        let Self { index, services, engine, .. } = self;
        Reach { index, services, engine, topology: self }.answer(question)
    }

    /// The place of a pod in [`Cluster::pods`].
    pub(crate) fn position(&self, pod: &ObjectKey) -> Option<usize> {
        self.pods.binary_search_by(|of| of.pod.key.cmp(pod)).ok()
    }

    /// The first line of the README beside the manifests or above them, else the directory's name.
    pub(crate) fn title(&self) -> String {
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
    pub(crate) fn absent(&self) -> Vec<(ObjectKey, String)> {
        let pods = self.index.pods().filter(|pod| !self.plan.pods.contains_key(&pod.key));
        pods.filter_map(|pod| Some((pod.key.clone(), reach::absence(&self.index, pod)?))).collect()
    }
}

impl Topology for Cluster {
    fn node_at(&self, address: IpAddr) -> Option<NodeRef> {
        self.index.node_at(address)
    }

    fn addresses_of_node(&self, node: &NodeRef) -> Vec<IpAddr> {
        match &node.0 {
            Some(name) => self.plan.nodes.get(name).cloned().unwrap_or_default(),
            // a pod that is not scheduled is on the node that all pods live on here
            None => self.plan.uplinks.clone(),
        }
    }

    /// A pod that is not scheduled anywhere counts as on whichever node is asked about.
    fn is_own_node(&self, pod: &ObjectKey, node: &NodeRef, _: IpAddr) -> bool {
        let of = self.index.pod(pod).and_then(|pod| pod.node.as_ref());
        match (of, &node.0) {
            (Some(of), Some(node)) => of == node,
            (None, _) | (_, None) => true,
        }
    }
}

/// The services of some objects and their slices, those included that a control plane would add. All pods live on one
/// node.
fn services(mut objects: Vec<Object>, plan: &Plan) -> Vec<Object> {
    synthesize(&mut objects, &plan.pods);
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
