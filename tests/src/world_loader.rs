//! An oracle's world in the kernel: compiled, committed by policyd's own [`policyd::sync`], asked packet by packet.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use podgate_bpf::abi::{Direction, Startup};
use podgate_bpf::loader::Sizes;
use podgate_bpf::maps::{PodRef, Registration};
use podgate_bpf::testrun::Context;
use podgate_bpf::{Datapath, PinRoot};
use podgate_policy::compile::{Engine, EngineDelta};
use podgate_policy::index::Index;
use podgate_policy::model::ObjectKey;
use podgate_policy::tables::EndpointId;
use podgate_testkit::sandbox::{self, Veth};
use policyd::sync::{self, PolicyMaps};

use crate::compiling;
use crate::kernel::{DROP, NEXT, REDIRECT};
use crate::oracle::World;

/// Interfaces of every world: pod number `n` of a world has the n-th.
const PODS: usize = 10;

/// Programs, maps and interfaces into which one world after the other is loaded.
#[derive(Debug)]
pub struct Loader {
    datapath: Arc<Datapath>,
    root: PinRoot,
    veths: Vec<Veth>,
    index: Index,
    engine: Engine,
    policy_maps: PolicyMaps,
    here: BTreeMap<usize, Here>,
    next_owner: u32,
}

/// Who is at an interface now.
#[derive(Debug, PartialEq, Eq)]
struct Here {
    pod: ObjectKey,
    addresses: Vec<IpAddr>,
    owner: u32,
}

impl Loader {
    /// Empty maps, and an interface for each pod that a world may have.
    pub fn new() -> Self {
        Self::of_sizes(&Sizes::default())
    }

    /// The same, with maps of these sizes.
    pub fn of_sizes(sizes: &Sizes) -> Self {
        let root = PinRoot::new(sandbox::pin_dir());
        let datapath = Datapath::open_or_load(&root, sizes)
            .unwrap_or_else(|e| panic!("load the programs: {e}"));
        let datapath = Arc::new(datapath);
        let recovered =
            PolicyMaps::recover(datapath.clone()).unwrap_or_else(|e| panic!("read the maps: {e}"));
        let veth = |_| Veth::new().unwrap_or_else(|e| panic!("make a veth: {e}"));
        Self {
            datapath,
            root,
            veths: (0..PODS).map(veth).collect(),
            index: Index::new(),
            engine: recovered.engine,
            policy_maps: recovered.policy_maps,
            here: BTreeMap::new(),
            next_owner: 1,
        }
    }

    /// The programs and maps.
    pub fn datapath(&self) -> &Datapath {
        &self.datapath
    }

    /// Where the maps are pinned.
    pub fn root(&self) -> &PinRoot {
        &self.root
    }

    /// The number of a pod's interface.
    pub fn interface(&self, pod: usize) -> u32 {
        self.veths[pod].ifindex
    }

    /// Makes a packet from `source` the node's own, if the node's own stack sends it.
    pub fn own_node_address(&self, source: IpAddr) {
        let added = self.datapath.maps.add_node_addr(source);
        added.unwrap_or_else(|e| panic!("add node address {source}: {e}"));
    }

    /// Changes the maps from whatever world was there to this one. A pod of the same name that keeps its
    /// addresses keeps its interface's registration; all others are registered anew. Returns the pods that
    /// were here before.
    pub fn load(&mut self, world: &World) -> Vec<usize> {
        let endpoints = compiling::endpoints(world).unwrap_or_else(|e| panic!("convert: {e}"));
        let mut stayed = Vec::new();
        let gone: Vec<usize> = self.here.keys().copied().collect();
        for pod in
            gone.into_iter().filter(|pod| world.interfaces.iter().all(|(here, _)| here != pod))
        {
            let removed = self.datapath.maps.unregister(self.veths[pod].ifindex);
            removed.unwrap_or_else(|e| panic!("unregister pod-{pod}: {e}"));
            self.policy_maps.forget(EndpointId(self.veths[pod].ifindex));
            self.here.remove(&pod);
        }
        for ((pod, addresses), endpoint) in world.interfaces.iter().zip(&endpoints) {
            let key = endpoint.pod.clone().unwrap_or_else(|| panic!("pod-{pod} has no name"));
            let same = |here: &&Here| here.pod == key && here.addresses == *addresses;
            if self.here.get(pod).filter(same).is_some() {
                stayed.push(*pod);
                continue;
            }
            let owner = self.next_owner;
            self.next_owner += 1;
            self.register(*pod, &key, addresses, owner);
            self.here.insert(*pod, Here { pod: key, addresses: addresses.clone(), owner });
        }

        self.index.take_changes();
        compiling::follow(&mut self.index, world).unwrap_or_else(|e| panic!("convert: {e}"));
        let at_links = world.interfaces.iter().zip(endpoints).map(|((pod, _), mut endpoint)| {
            endpoint.id = EndpointId(self.veths[*pod].ifindex);
            endpoint
        });
        self.engine.set_endpoints(at_links);
        let changes = self.index.take_changes();
        let mut touched: EngineDelta = self.engine.update(&self.index, changes);
        let owners: BTreeMap<EndpointId, u32> = self
            .here
            .iter()
            .map(|(pod, here)| (EndpointId(self.veths[*pod].ifindex), here.owner))
            .collect();
        // one that has been registered anew needs its table, whether or not it is the same
        let new = owners.iter().filter(|(id, owner)| !self.policy_maps.in_force(**id, **owner));
        new.for_each(|(id, _)| touched.table(*id));
        let change = sync::change(&self.engine, &touched, &owners);
        let outcome = self.policy_maps.commit(&change, &owners, &BTreeMap::new());
        assert!(outcome.is_complete(), "commit: {outcome:?}");
        stayed
    }

    fn register(&self, pod: usize, key: &ObjectKey, addresses: &[IpAddr], owner: u32) {
        let veth = &self.veths[pod];
        let registration = Registration {
            ifindex: veth.ifindex,
            owner,
            startup: Startup::Hold,
            anti_spoofing: true,
            addresses: addresses.to_vec(),
            mac: None,
            netns_cookie: 0,
            container_id: format!("pod-{pod}"),
            interface: "eth0".into(),
            host_interface: veth.host.clone(),
            network: "world".into(),
            pod: Some(PodRef {
                namespace: key.namespace.to_string(),
                name: key.name.to_string(),
                uid: String::new(),
            }),
            netns: String::new(),
        };
        let registered = self.datapath.maps.register(&registration);
        registered.unwrap_or_else(|e| panic!("register pod-{pod}: {e}"));
    }

    /// Whether a frame passes the gate of a pod; `received_on` as in [`Context::ingress_ifindex`].
    pub fn passes(&self, pod: usize, direction: Direction, frame: &[u8], received_on: u32) -> bool {
        match self.run(pod, direction, frame, received_on).0 {
            NEXT => true,
            // to its sender, who is told
            DROP | REDIRECT => false,
            other => panic!("neither next nor shot nor answered: {other}"),
        }
    }

    /// As [`Loader::passes`]: the program's action, and the frame as it left it.
    pub fn run(
        &self,
        pod: usize,
        direction: Direction,
        frame: &[u8],
        received_on: u32,
    ) -> (i32, Vec<u8>) {
        let context = Context { ifindex: self.veths[pod].ifindex, ingress_ifindex: received_on };
        let outcome = self.datapath.test_run(direction, context, frame, 1);
        let outcome = outcome.unwrap_or_else(|e| panic!("run a program: {e}"));
        (outcome.action, outcome.packet)
    }
}

impl Default for Loader {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        let _ = Datapath::unload(&self.root);
        for veth in &self.veths {
            let _ = veth.delete();
        }
    }
}
