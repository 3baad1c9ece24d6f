//! A world in real maps, and the real programs that judge its packets.

use std::fmt;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use libbpf_rs::{MapCore, MapFlags, MapHandle};
use podgate_bpf::abi::{
    BackendState, Counter, Direction, Expect, Flow, Mode, Reason, Startup, Stat, Verdict,
};
use podgate_bpf::events::Events;
use podgate_bpf::loader::Sizes;
use podgate_bpf::maps::{Counters, PolicyMap, Registration};
use podgate_bpf::pins::TO_POD;
use podgate_bpf::services::{Backend, ServiceEntry};
use podgate_bpf::testrun::Context;
use podgate_bpf::{Datapath, PinRoot};
use podgate_contract::handshake::EndpointRef;
use podgate_testkit::packet::{addr, udp};
use podgate_testkit::sandbox::{self, Veth};
use zerocopy::{FromBytes, IntoBytes};

use super::wire::Wire;
use super::world::{Entry, Ports, Service, World};
use super::{PEER, POD, UPLINK, Via};

/// TC_ACT_UNSPEC: the next program, or the stack.
pub const NEXT: i32 = -1;
/// TC_ACT_SHOT.
pub const DROP: i32 = 2;
/// TC_ACT_REDIRECT.
pub const REDIRECT: i32 = 7;

/// Gives the value, or ends the test with "what: why".
#[track_caller]
pub(super) fn must<T, E: fmt::Display>(what: &str, result: Result<T, E>) -> T {
    result.unwrap_or_else(|why| panic!("{what}: {why}"))
}

/// Loaded programs with maps of their own. Loading takes longer than all packets of a table, so those that a
/// table is done with serve the next one.
#[derive(Debug)]
struct Loaded {
    datapath: Datapath,
    root: PinRoot,
    carrier: Carrier,
    wire: Option<Wire>,
}

/// How a packet that the node received gets to the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Carrier {
    /// By a test run, where the kernel's takes an `ingress_ifindex`; over the wire elsewhere.
    TestRun,
    /// Over the wire.
    Wire,
}

static IDLE: Mutex<Vec<Loaded>> = Mutex::new(Vec::new());

impl Loaded {
    /// Maps as they are after loading; of whatever table they were before.
    fn new(carrier: Carrier) -> Self {
        let mut all_idle = IDLE.lock().unwrap_or_else(PoisonError::into_inner);
        let idle = all_idle.iter().position(|idle| idle.carrier == carrier);
        let idle = idle.map(|idle| all_idle.swap_remove(idle));
        drop(all_idle);
        let loaded = idle.unwrap_or_else(|| {
            let root = PinRoot::new(sandbox::pin_dir());
            let sizes =
                Sizes { flows4: 1024, flows6: 1024, frags: 256, affinity: 256, ..Sizes::default() };
            let datapath = must("load the programs", Datapath::open_or_load(&root, &sizes));
            let over_wire = carrier == Carrier::Wire || !takes_ingress_ifindex(&datapath);
            let wire = over_wire.then(|| Wire::new(&root.path(TO_POD)));
            Self { datapath, root, carrier, wire }
        });
        let control = loaded.datapath.maps.control();
        control.set_mode(Mode::Enforce);
        control.set_report_allowed(false);
        control.set_event_limit(u32::MAX);
        loaded
    }

    fn map(&self, name: &str) -> MapHandle {
        must("open a map", MapHandle::from_pinned_path(self.root.path(name)))
    }

    /// Empties every map; false if that cannot be.
    fn clear(&self) -> bool {
        let emptied = ["policies", "endpoints", "peers4", "peers6", "nets4", "nets6", "node_addrs"]
            .into_iter()
            .chain([
                "flows4",
                "flows6",
                "flow_slots4",
                "flow_slots6",
                "shares",
                "frags",
                "expected",
            ])
            .chain(["services4", "services6", "slots", "backends", "affinity"])
            .chain(["limits", "meters", "traffic", "scopes", "accounts"])
            .all(|name| {
                let map = self.map(name);
                let keys: Vec<_> = map.keys().collect();
                keys.iter().all(|key| map.delete(key).is_ok()) && map.keys().next().is_none()
            });
        let counters = self.map("counters");
        let zeroed = counters.keys().all(|slot| {
            let found = counters.lookup_percpu(&slot, MapFlags::ANY).ok().flatten();
            let zeros =
                found.map(|cpus| cpus.iter().map(|cpu| vec![0; cpu.len()]).collect::<Vec<_>>());
            zeros.is_some_and(|zeros| counters.update_percpu(&slot, &zeros, MapFlags::ANY).is_ok())
        });
        let usage = self.map("flow_use");
        let unused =
            usage.keys().all(|family| usage.update(&family, &[0; 8], MapFlags::ANY).is_ok());
        let drained = Events::new(&self.datapath.maps, |_| ())
            .and_then(|ring| ring.poll(Duration::ZERO))
            .is_ok();
        emptied && zeroed && unused && drained
    }
}

/// One pod's gate with maps of its own.
#[derive(Debug)]
pub struct Lab {
    /// The pod's interface.
    pub ifindex: u32,
    /// Not `None` before the end.
    loaded: Option<Loaded>,
    /// Whether another table may have the programs.
    reusable: bool,
    owner: u32,
    policy: Option<PolicyMap>,
    next_rule: u32,
}

/// What one packet met.
#[derive(Debug)]
pub struct Met {
    /// The TC action.
    pub action: i32,
    /// The frame as the program left it.
    pub packet: Vec<u8>,
    direction: Direction,
    /// Every counter that rose, and by how much.
    rose: Vec<(Direction, Reason, Counter)>,
}

impl Met {
    /// The one reason that was counted.
    pub fn reason(&self) -> Option<Reason> {
        match self.rose.as_slice() {
            [(direction, reason, _)] if *direction == self.direction => Some(*reason),
            _ => None,
        }
    }

    /// Whether verdict and counters are those of `expected` for one packet of `length` bytes.
    pub fn is(&self, expected: Reason, length: usize) -> Result<(), String> {
        self.is_counted(if expected.is_denial() { DROP } else { NEXT }, expected, length)
    }

    /// As [`Met::is`], where the action is not the reason's.
    pub(super) fn is_counted(
        &self,
        action: i32,
        expected: Reason,
        length: usize,
    ) -> Result<(), String> {
        let counter = Counter { packets: 1, bytes: length as u64 };
        let counted = vec![(self.direction, expected, counter)];
        if self.action == action && self.rose == counted {
            return Ok(());
        }
        Err(format!(
            "expected action {action} and {expected:?} counted once, met action {} and {:?}",
            self.action, self.rose
        ))
    }
}

impl Lab {
    /// Loads the programs and builds the world.
    pub fn new(world: &World) -> Self {
        Self::with(world, Carrier::TestRun)
    }

    pub(super) fn with(world: &World, carrier: Carrier) -> Self {
        // A device is only a number in a test run: all labs of a process share one.
        static VETH: OnceLock<Veth> = OnceLock::new();
        let loaded = Loaded::new(carrier);
        let ifindex = loaded.wire.as_ref().map_or_else(
            || VETH.get_or_init(|| must("make a veth", Veth::new())).ifindex,
            Wire::ifindex,
        );
        let mut lab = Self {
            ifindex,
            loaded: Some(loaded),
            reusable: true,
            owner: 0x5eed,
            policy: None,
            next_rule: 1,
        };
        let maps = &lab.datapath().maps;
        for (address, class) in &world.peers {
            must("set a peer", maps.set_peer(*address, *class));
        }
        for (net, class) in &world.nets {
            must("set a net", maps.set_net(*net, *class));
        }
        for address in &world.nodes {
            must("add a node address", maps.add_node_addr(*address));
        }
        for (id, service) in (1..).zip(&world.services) {
            lab.serve(id, service);
        }
        if world.registered {
            lab.register(world);
        }
        if let Some(entries) = &world.entries {
            lab.install(entries);
        }
        lab.bump();
        lab
    }

    fn loaded(&self) -> &Loaded {
        self.loaded.as_ref().unwrap_or_else(|| unreachable!("only drop() takes it"))
    }

    /// The programs and maps.
    pub fn datapath(&self) -> &Datapath {
        &self.loaded().datapath
    }

    /// Where the maps are pinned.
    pub fn root(&self) -> &PinRoot {
        &self.loaded().root
    }

    /// Leaves no trace in other tables: for one that changes what cannot be undone, the limiter of events.
    pub fn keep_to_itself(&mut self) {
        self.reusable = false;
    }

    fn register(&self, world: &World) {
        let registration = Registration {
            ifindex: self.ifindex,
            owner: self.owner,
            startup: world.startup,
            anti_spoofing: world.anti_spoofing,
            addresses: world.addresses.clone(),
            mac: world.mac,
            netns_cookie: 0,
            container_id: "table".into(),
            interface: "eth0".into(),
            host_interface: "host0".into(),
            network: "tables".into(),
            pod: None,
            netns: String::new(),
        };
        must("register the pod", self.datapath().maps.register(&registration));
    }

    /// Gives the pod another startup state.
    pub fn startup(&self, startup: Startup) {
        let endpoint = EndpointRef { ifindex: self.ifindex, owner: self.owner };
        let changed = self.datapath().maps.set_startup(endpoint, startup);
        assert!(must("change the startup state", changed), "the pod is not registered");
    }

    /// Another pod comes to this interface, isolated or not; what the first one left stays where it is, its
    /// policy map too unless `world` brings one.
    pub fn succeed(&mut self, world: &World) {
        self.owner += 1;
        // without it the registration does not know what there is to remove
        must("forget the share", self.loaded().map("shares").delete(self.ifindex.as_bytes()));
        self.register(world);
        if let Some(entries) = &world.entries {
            self.install(entries);
        }
    }

    fn install(&mut self, entries: &[Entry]) {
        let spelled: Vec<_> = entries.iter().flat_map(|entry| entry.spell(self.owner)).collect();
        let map = must("make a policy map", self.datapath().maps.new_policy_map(&spelled));
        must("install it", self.datapath().maps.install_policy_maps(&[(self.ifindex, &map)]));
        self.next_rule = entries.len() as u32 + 1;
        self.policy = Some(map);
    }

    /// Puts the entries of `world` in force in place of those that are.
    pub fn replace(&mut self, world: &World) {
        self.install(world.entries.as_deref().unwrap_or_default());
    }

    fn entry(&self, direction: Direction, class: u32, ports: Ports, verdict: Verdict) -> Entry {
        Entry { direction, class, ports, verdict, logged: false, rule: self.next_rule }
    }

    fn policy(&self) -> &PolicyMap {
        self.policy.as_ref().unwrap_or_else(|| panic!("this world has no policy map"))
    }

    /// Adds an entry that allows, in place.
    pub fn allow(&mut self, direction: Direction, class: u32, ports: Ports) {
        for (key, value) in self.entry(direction, class, ports, Verdict::Allow).spell(self.owner) {
            must("add an entry", self.policy().set(&key, &value));
        }
        self.next_rule += 1;
    }

    /// Removes an entry, in place.
    pub fn withdraw(&mut self, direction: Direction, class: u32, ports: Ports) {
        for (key, _) in self.entry(direction, class, ports, Verdict::Allow).spell(self.owner) {
            must("remove an entry", self.policy().remove(&key));
        }
    }

    /// How many new flows the entry of these ports decided.
    pub fn hits(&self, direction: Direction, class: u32, ports: Ports) -> u64 {
        let (key, _) = self.entry(direction, class, ports, Verdict::Allow).spell(self.owner)[0];
        let entries = must("read the policy map", self.policy().entries());
        entries.iter().find(|(found, _)| *found == key).map_or(0, |(_, value)| value.hits)
    }

    /// The owner number of the pod's registration.
    pub fn owner(&self) -> u32 {
        self.owner
    }

    /// Moves an address to another class.
    pub fn set_peer(&self, address: &str, class: u32) {
        must("set a peer", self.datapath().maps.set_peer(addr(address), class));
    }

    /// Makes service number `id` what it says, in place of what it was.
    pub fn serve(&self, id: u32, service: &Service) {
        let maps = self.datapath().maps.services();
        for ((of, backend), _) in must("read backends", maps.backends()) {
            if of == id && !service.ready.contains(&backend) {
                must("remove a backend", maps.remove_backend(id, backend));
            }
        }
        let state = |backends: &[Backend], state| -> Vec<_> {
            backends.iter().map(|&backend| (id, backend, state)).collect()
        };
        must("set backends", maps.set_backends(&state(&service.ready, BackendState::Ready)));
        must("set backends", maps.set_backends(&state(&service.serving, BackendState::Serving)));
        let slots: Vec<_> = (0..).zip(&service.ready).map(|(n, &ready)| (id, n, ready)).collect();
        must("set slots", maps.set_slots(&slots));
        let count = slots.len() as u32;
        let entry = ServiceEntry { id, count, affinity: service.affinity };
        if count == 0 {
            must("remove a service", maps.remove_service(&service.frontend));
        } else {
            must("set a service", maps.set_service(&service.frontend, entry));
        }
    }

    /// Has every flow judged again.
    pub fn bump(&self) {
        self.datapath().maps.control().bump_epoch();
    }

    /// What a denial does from now on.
    pub fn set_mode(&self, mode: Mode) {
        self.datapath().maps.control().set_mode(mode);
    }

    /// How often a note was made.
    pub fn stat(&self, stat: Stat) -> u64 {
        must("read counters", self.datapath().maps.counters()).stat(stat)
    }

    /// The remembered flows of both families, without their keys.
    pub fn flows(&self) -> Vec<Flow> {
        let v4 = must("read flows4", self.datapath().maps.flow_table().flows4())
            .into_iter()
            .map(|(_, flow)| flow);
        let v6 = must("read flows6", self.datapath().maps.flow_table().flows6())
            .into_iter()
            .map(|(_, flow)| flow);
        v4.chain(v6).collect()
    }

    /// Lets time pass for every flow, in the programs' coarse seconds (2^30 ns).
    pub fn age_flows(&self, seconds: u32) {
        for (key, flow) in must("read flows4", self.datapath().maps.flow_table().flows4()) {
            self.age("flows4", key.as_bytes(), flow, seconds);
        }
        for (key, flow) in must("read flows6", self.datapath().maps.flow_table().flows6()) {
            self.age("flows6", key.as_bytes(), flow, seconds);
        }
    }

    fn age(&self, map: &str, key: &[u8], flow: Flow, seconds: u32) {
        let map = self.loaded().map(map);
        let older = Flow { expires: flow.expires.wrapping_sub(seconds), ..flow };
        must("age a flow", map.update(key, older.as_bytes(), MapFlags::ANY));
    }

    /// Lets time pass for everything that pods expect, in the programs' coarse seconds.
    pub fn age_expected(&self, seconds: u32) {
        let map = self.loaded().map("expected");
        for key in map.keys().collect::<Vec<_>>() {
            let found = must("read expected", map.lookup(&key, MapFlags::ANY));
            let Some(value) = found else { continue };
            let mut value = must("read its value", Expect::read_from_bytes(&value));
            value.expires = value.expires.wrapping_sub(seconds);
            must("age it", map.update(&key, value.as_bytes(), MapFlags::ANY));
        }
    }

    /// Forgets every flow, as eviction from the full maps does.
    pub fn forget_flows(&self) {
        for name in ["flows4", "flows6"] {
            let map = self.loaded().map(name);
            for key in map.keys().collect::<Vec<_>>() {
                must("forget a flow", map.delete(&key));
            }
        }
    }

    /// A map, for tests that look past the typed access.
    pub fn map(&self, name: &str) -> MapHandle {
        self.loaded().map(name)
    }

    fn counters(&self) -> Counters {
        must("read counters", self.datapath().maps.counters())
    }

    /// Sends a frame through one of the programs, once. Only the program to the pod looks where a packet came from.
    pub fn send(&self, direction: Direction, frame: &[u8], via: Via) -> Met {
        let before = self.counters();
        let is_judged = || !self.risen_since(&before).is_empty();
        let (action, packet) = match (&self.loaded().wire, direction, via) {
            (Some(wire), Direction::Ingress, Via::Uplink | Via::Pod) => {
                match wire.send(frame, via, is_judged) {
                    Some(arrived) => (NEXT, arrived),
                    None => (DROP, frame.to_vec()),
                }
            }
            (None, Direction::Ingress, Via::Uplink) => self.test_run(direction, frame, UPLINK),
            (None, Direction::Ingress, Via::Pod) => self.test_run(direction, frame, self.ifindex),
            (_, Direction::Egress, _) | (_, _, Via::Nothing) => self.test_run(direction, frame, 0),
        };
        Met { action, packet, direction, rose: self.risen_since(&before) }
    }

    fn test_run(&self, direction: Direction, frame: &[u8], ingress_ifindex: u32) -> (i32, Vec<u8>) {
        let context = Context { ifindex: self.ifindex, ingress_ifindex };
        let run = self.datapath().test_run(direction, context, frame, 1);
        let outcome = must("run a program", run);
        (outcome.action, outcome.packet)
    }

    fn risen_since(&self, before: &Counters) -> Vec<(Direction, Reason, Counter)> {
        let after = self.counters();
        let mut rose = Vec::new();
        for &way in Direction::ALL {
            for &reason in Reason::ALL {
                let (old, new) = (before.get(way, reason), after.get(way, reason));
                if old != new {
                    let packets = new.packets - old.packets;
                    rose.push((way, reason, Counter { packets, bytes: new.bytes - old.bytes }));
                }
            }
        }
        rose
    }
}

/// Whether a test run can say where the node received the packet. Nothing is registered yet: the packet is dropped.
fn takes_ingress_ifindex(datapath: &Datapath) -> bool {
    const LOOPBACK: u32 = 1;
    static TAKES: OnceLock<bool> = OnceLock::new();
    *TAKES.get_or_init(|| {
        let context = Context { ifindex: LOOPBACK, ingress_ifindex: LOOPBACK };
        let frame = udp(1, 2).between(PEER, POD).frame();
        datapath.test_run(Direction::Ingress, context, &frame, 1).is_ok()
    })
}

impl Drop for Lab {
    fn drop(&mut self) {
        let Some(loaded) = self.loaded.take() else { return };
        if self.reusable && !std::thread::panicking() && loaded.clear() {
            IDLE.lock().unwrap_or_else(PoisonError::into_inner).push(loaded);
        } else {
            // The file system goes with the process; the maps' memory should not wait for that.
            let _ = Datapath::unload(&loaded.root);
        }
    }
}

impl fmt::Display for Lab {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let maps = &self.datapath().maps;
        writeln!(f, "  mode {:?}, epoch {}", maps.control().mode(), maps.control().epoch())?;
        writeln!(f, "  registration {:?}", maps.registration(self.ifindex))?;
        writeln!(f, "  peers {:?}", maps.peers())?;
        writeln!(f, "  nets {:?}", maps.nets())?;
        writeln!(f, "  services {:?}", maps.services().services())?;
        writeln!(f, "  slots {:?}", maps.services().slots())?;
        writeln!(f, "  node addresses {:?}", maps.node_addrs())?;
        for entry in self.policy.iter().filter_map(|map| map.entries().ok()).flatten() {
            writeln!(f, "  entry {entry:?}")?;
        }
        for flow in maps.flow_table().flows4().into_iter().flatten() {
            writeln!(f, "  flow {flow:?}")?;
        }
        for flow in maps.flow_table().flows6().into_iter().flatten() {
            writeln!(f, "  flow {flow:?}")?;
        }
        Ok(())
    }
}
