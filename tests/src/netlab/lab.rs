//! The node, its pods and their gates.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use podgate_bpf::abi::{BackendState, Direction, Reason, Startup, Stat};
use podgate_bpf::attach::AttachMode;
use podgate_bpf::loader::Sizes;
use podgate_bpf::maps::Registration;
use podgate_bpf::services::{Backend, Frontend, ServiceEntry};
use podgate_bpf::{Datapath, PinRoot};
use podgate_policy::tables::{Class, EndpointId};
use podgate_testkit::net::Net;
use podgate_testkit::sandbox;
use podgate_testkit::wait::eventually;
use policyd::sync::{MapChange, MapState, PolicyMaps};

use super::Policy;

/// A family of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// As trial names spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::V4 => "v4",
            Self::V6 => "v6",
        }
    }
}

/// A pod: a namespace with one interface, `eth0`.
#[derive(Debug)]
pub struct Pod {
    /// Its namespace.
    pub net: Net,
    /// The host end of its veth, in the node's namespace.
    pub host: String,
    /// Number of the host end.
    pub ifindex: u32,
    /// Its address.
    pub v4: Ipv4Addr,
    /// The same.
    pub v6: Ipv6Addr,
}

impl Pod {
    /// Its address of a family.
    pub fn address(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => self.v4.into(),
            Family::V6 => self.v6.into(),
        }
    }
}

/// What the maps should hold, and the way there.
#[derive(Debug)]
struct Writer {
    policy_maps: PolicyMaps,
    wanted: MapState,
    owners: std::collections::BTreeMap<EndpointId, u32>,
}

/// One node.
#[derive(Debug)]
pub struct Lab {
    /// The node's namespace.
    pub node: Net,
    /// Programs and maps.
    pub datapath: Arc<Datapath>,
    attach: AttachMode,
    root: PinRoot,
    writer: Mutex<Writer>,
    next_pod: AtomicU8,
    next_owner: AtomicU32,
}

impl Lab {
    /// A node whose gates are attached in this way.
    pub fn new(attach: AttachMode) -> Self {
        let root = PinRoot::new(sandbox::pin_dir());
        let sizes = Sizes { flows4: 4096, flows6: 4096, frags: 1024, ..Sizes::default() };
        let datapath = Datapath::open_or_load(&root, &sizes)
            .unwrap_or_else(|e| panic!("load the programs: {e}"));
        let datapath = Arc::new(datapath);
        let recovered =
            PolicyMaps::recover(datapath.clone()).unwrap_or_else(|e| panic!("read the maps: {e}"));
        let node = Net::new();
        node.ip("link add br0 type bridge forward_delay 0 mcast_snooping 0
             link set br0 up
             address add 10.0.0.1/24 dev br0
             address add fd00::1/64 dev br0 nodad");
        node.sysctl("ipv4/ip_forward", "1");
        node.sysctl("ipv6/conf/all/forwarding", "1");
        let writer = Writer {
            policy_maps: recovered.policy_maps,
            wanted: MapState::default(),
            owners: Default::default(),
        };
        Self {
            node,
            datapath,
            attach,
            root,
            writer: Mutex::new(writer),
            next_pod: AtomicU8::new(10),
            next_owner: AtomicU32::new(0x5eed),
        }
    }

    /// The node's own address, that of its bridge.
    pub fn address(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => Ipv4Addr::new(10, 0, 0, 1).into(),
            Family::V6 => Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1).into(),
        }
    }

    /// A pod on the node's bridge, without a gate.
    pub fn pod(&self) -> Pod {
        let number = self.next_pod.fetch_add(1, Ordering::Relaxed);
        let net = Net::new();
        let host = format!("v{number}");
        self.node.veth(&host, &net, "eth0");
        self.node.ip(&format!("link set {host} master br0"));
        let v4 = Ipv4Addr::new(10, 0, 0, number);
        // fd00::10 for 10.0.0.10, to be read by people
        let low = u16::from_str_radix(&number.to_string(), 16).unwrap_or_default();
        let v6 = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, low);
        net.ip(&format!(
            "address add {v4}/24 dev eth0
             address add {v6}/64 dev eth0 nodad
             route add default via 10.0.0.1
             route add default via fd00::1"
        ));
        // The bridge learns of the carrier when the kernel gets round to it; until then it drops everything.
        eventually("the bridge forwards", || {
            self.node.ask_ip(&format!("-d link show dev {host}")).contains("state forwarding")
        });
        let ifindex = self.node.ifindex(&host);
        Pod { net, host, ifindex, v4, v6 }
    }

    /// A pod with a gate and no policy map yet.
    pub fn registered(&self, startup: Startup) -> Pod {
        let pod = self.pod();
        self.register(&pod, startup);
        pod
    }

    /// A pod behind a gate with this policy in force.
    pub fn gated(&self, policy: &Policy) -> Pod {
        let pod = self.registered(Startup::Hold);
        self.set_policy(&pod, policy);
        pod
    }

    /// Stands a pod's gate, as the plugin does.
    pub fn register(&self, pod: &Pod, startup: Startup) {
        let owner = self.next_owner.fetch_add(1, Ordering::Relaxed);
        let registration = Registration {
            ifindex: pod.ifindex,
            owner,
            startup,
            anti_spoofing: true,
            addresses: vec![pod.v4.into(), pod.v6.into()],
            mac: pod.net.mac("eth0"),
            netns_cookie: pod.net.run(podgate_bpf::current_netns_cookie),
            container_id: format!("lab-{}", pod.host),
            interface: "eth0".into(),
            host_interface: pod.host.clone(),
            network: "lab".into(),
            pod: None,
            netns: String::new(),
        };
        let registered = self.datapath.maps.register(&registration);
        registered.unwrap_or_else(|e| panic!("register {}: {e}", pod.host));
        let attached = self.node.run(|| self.datapath.attach(pod.ifindex, self.attach));
        attached.unwrap_or_else(|e| panic!("attach {}: {e}", pod.host));
        self.change(|writer| {
            writer.owners.insert(EndpointId(pod.ifindex), owner);
        });
    }

    /// Puts a policy in force at a pod's gate, in place of the last one, as policyd does.
    pub fn set_policy(&self, pod: &Pod, policy: &Policy) {
        self.change_all(&[(pod, policy.clone())], &[]);
    }

    /// Puts freshly loaded programs in the place of those at the gates, as an upgrade does.
    pub fn replace_programs(&self) {
        let replaced = self.node.run(|| Datapath::replace_programs(&self.root, &Sizes::default()));
        replaced.map(drop).unwrap_or_else(|e| panic!("replace the programs: {e}"));
    }

    /// Puts an address into a class.
    pub fn set_class(&self, address: IpAddr, class: Class) {
        self.change_all(&[], &[(address, class)]);
    }

    /// Puts policies in force and addresses into classes, all in one change.
    pub fn change_all(&self, policies: &[(&Pod, Policy)], classes: &[(IpAddr, Class)]) {
        self.change(|writer| {
            for (pod, policy) in policies {
                let endpoint = EndpointId(pod.ifindex);
                let spelled = policy.spelled(writer.owners[&endpoint]);
                writer.wanted.tables.insert(endpoint, spelled);
            }
            writer.wanted.hosts.extend(classes.iter().copied());
        });
    }

    fn change(&self, change: impl FnOnce(&mut Writer)) {
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut writer);
        let Writer { policy_maps, wanted, owners } = &mut *writer;
        let change = MapChange::between(policy_maps.shadow(), wanted);
        let outcome = policy_maps.commit(&change, owners, &BTreeMap::new());
        assert!(outcome.is_complete(), "commit: {outcome:?}");
    }

    /// Makes a service number `id` with these endpoints, in place of what it was, in the order in which no packet
    /// meets half of it.
    pub fn serve(&self, id: u32, frontend: Frontend, endpoints: &[Backend]) {
        let maps = self.datapath.maps.services();
        let done = || -> podgate_bpf::Result<()> {
            let ready: Vec<_> = endpoints.iter().map(|&b| (id, b, BackendState::Ready)).collect();
            maps.set_backends(&ready)?;
            let slots: Vec<_> = (0..).zip(endpoints).map(|(n, &b)| (id, n, b)).collect();
            maps.set_slots(&slots)?;
            let count = slots.len() as u32;
            match count {
                0 => maps.remove_service(&frontend)?,
                _ => maps.set_service(&frontend, ServiceEntry { id, count, affinity: None })?,
            }
            for ((of, backend), _) in maps.backends()? {
                if of == id && !endpoints.contains(&backend) {
                    maps.remove_backend(id, backend)?;
                }
            }
            Ok(())
        };
        done().unwrap_or_else(|e| panic!("serve {frontend:?}: {e}"));
        self.datapath.maps.control().bump_epoch();
    }

    /// The address of a service, which no interface on the link has.
    pub fn service_address(family: Family) -> IpAddr {
        match family {
            Family::V4 => Ipv4Addr::new(10, 96, 0, 10).into(),
            Family::V6 => Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, 0xa).into(),
        }
    }

    /// Makes an address count as the node's own.
    pub fn own_node_address(&self, address: IpAddr) {
        let added = self.datapath.maps.add_node_addr(address);
        added.unwrap_or_else(|e| panic!("add node address {address}: {e}"));
    }

    /// Packets that met this reason so far.
    pub fn count(&self, direction: Direction, reason: Reason) -> u64 {
        self.counters().get(direction, reason).packets
    }

    /// How often this happened so far.
    pub fn stat(&self, stat: Stat) -> u64 {
        self.counters().stat(stat)
    }

    fn counters(&self) -> podgate_bpf::maps::Counters {
        self.datapath.maps.counters().unwrap_or_else(|e| panic!("read counters: {e}"))
    }

    /// Every counter that is not 0, for messages.
    pub fn counted(&self) -> Vec<(Direction, Reason, u64)> {
        let counters = self.counters();
        let both = Direction::ALL
            .iter()
            .flat_map(|direction| Reason::ALL.iter().map(move |reason| (*direction, *reason)));
        both.map(|(direction, reason)| (direction, reason, counters.get(direction, reason).packets))
            .filter(|(.., packets)| *packets > 0)
            .collect()
    }

    /// A second node's side of the world: a namespace behind a router that is a neighbour of the pods and
    /// hands on packets of up to `mtu` bytes only. The pods that should reach it get routes from [`Lab::route`].
    pub fn behind_router(&self, mtu: u32) -> (Pod, Net) {
        let router = self.pod();
        let far = Net::new();
        router.net.veth("far", &far, "eth0");
        router.net.ip(&format!(
            "address add 10.9.0.1/24 dev far
             address add fd09::1/64 dev far nodad
             link set far mtu {mtu}"
        ));
        router.net.sysctl("ipv4/ip_forward", "1");
        router.net.sysctl("ipv6/conf/all/forwarding", "1");
        far.ip("address add 10.9.0.9/24 dev eth0
             address add fd09::9/64 dev eth0 nodad
             route add default via 10.9.0.1
             route add default via fd09::1");
        (router, far)
    }

    /// The way of a pod to what is behind the router.
    pub fn route(&self, pod: &Pod, router: &Pod) {
        pod.net.ip(&format!(
            "route add 10.9.0.0/24 via {}
             route add fd09::/64 via {}",
            router.v4, router.v6
        ));
    }

    /// The address behind the router.
    pub fn far_address(family: Family) -> IpAddr {
        match family {
            Family::V4 => Ipv4Addr::new(10, 9, 0, 9).into(),
            Family::V6 => Ipv6Addr::new(0xfd09, 0, 0, 0, 0, 0, 0, 9).into(),
        }
    }

    /// How long a denied packet is given to prove that it does not arrive after all.
    pub const GRACE: Duration = Duration::from_millis(50);
}

impl Drop for Lab {
    fn drop(&mut self) {
        // links and filters hold the programs: the namespace takes those along, pins of links do not go with it
        let _ = Datapath::unload(&self.root);
    }
}
