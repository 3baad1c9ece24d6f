//! The node and its pods: namespaces, links, gates.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use podgate_bpf::abi::Startup;
use podgate_bpf::attach::AttachMode;
use podgate_bpf::loader::Sizes;
use podgate_bpf::maps::{PodRef, Registration};
use podgate_bpf::{Datapath, PinRoot};
use podgate_testkit::net::Net;
use podgate_testkit::sandbox;

/// Last bytes of the pods' addresses, which are of pods number 10 and on.
pub(crate) const NUMBERS: std::ops::Range<u8> = 10..18;

/// A namespace with one gated interface.
pub(crate) struct Pod {
    pub(crate) name: String,
    pub(crate) number: u8,
    pub(crate) net: Arc<Net>,
    pub(crate) ifindex: u32,
    pub(crate) owner: u32,
}

/// The addresses of pod number so-and-so; the node is number 1.
pub(crate) fn v4(number: u8) -> IpAddr {
    Ipv4Addr::new(10, 0, 0, number).into()
}

/// The same, with the number's digits: fd00::10 is pod 10's.
pub(crate) fn v6(number: u8) -> IpAddr {
    let digits = u16::from_str_radix(&number.to_string(), 16).unwrap();
    Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, digits).into()
}

fn mac(number: u8) -> String {
    format!("02:00:00:00:00:{number:02x}")
}

/// Everybody's link address, for good: nobody waits for a neighbour, and none is lost while one is looked for.
fn neighbours(net: &Net, device: &str, except: u8) {
    let lines = NUMBERS.chain([1]).filter(|number| *number != except).map(|number| {
        let mac = mac(number);
        format!(
            "neigh replace {} lladdr {mac} dev {device} nud permanent\n\
             neigh replace {} lladdr {mac} dev {device} nud permanent\n",
            v4(number),
            v6(number)
        )
    });
    net.ip(&lines.collect::<String>());
}

/// The node's namespace, programs and maps.
pub(crate) struct Node {
    pub(crate) net: Net,
    pub(crate) datapath: Arc<Datapath>,
    pub(crate) root: PinRoot,
    next_owner: AtomicU32,
}

impl Node {
    pub(crate) fn new() -> Self {
        let root = PinRoot::new(sandbox::pin_dir());
        let datapath = Arc::new(Datapath::open_or_load(&root, &Sizes::default()).unwrap());
        let net = Net::new();
        net.ip(&format!(
            "link add br0 type bridge forward_delay 0 mcast_snooping 0
             link set br0 address {} up
             address add 10.0.0.1/24 dev br0
             address add fd00::1/64 dev br0 nodad",
            mac(1)
        ));
        net.sysctl("ipv4/ip_forward", "1");
        net.sysctl("ipv4/conf/all/send_redirects", "0");
        net.sysctl("ipv4/conf/br0/send_redirects", "0");
        net.sysctl("ipv6/conf/all/forwarding", "1");
        neighbours(&net, "br0", 1);
        Self { net, datapath, root, next_owner: AtomicU32::new(0x7001) }
    }

    /// A pod with its gate, in hold, as the plugin leaves it before it asks policyd.
    pub(crate) fn pod(&self, name: &str, number: u8) -> Pod {
        let net = Net::new();
        let host = format!("v{number}");
        self.net.veth(&host, &net, "eth0");
        net.ip(&format!(
            "link set eth0 address {} up
             address add {}/24 dev eth0
             address add {}/64 dev eth0 nodad
             route add default via 10.0.0.1
             route add default via fd00::1",
            mac(number),
            v4(number),
            v6(number)
        ));
        neighbours(&net, "eth0", number);
        let ifindex = self.net.ifindex(&host);
        let owner = self.next_owner.fetch_add(1, Ordering::Relaxed);
        let registration = Registration {
            mac: None,
            ifindex,
            owner,
            startup: Startup::Hold,
            anti_spoofing: true,
            addresses: vec![v4(number), v6(number)],
            netns_cookie: net.run(podgate_bpf::current_netns_cookie),
            container_id: format!("{name}-{owner}"),
            interface: "eth0".into(),
            host_interface: host.clone(),
            network: "flood".into(),
            pod: Some(PodRef { namespace: "shop".into(), name: name.into(), uid: String::new() }),
            netns: String::new(),
        };
        self.datapath.maps.register(&registration).unwrap();
        self.net.run(|| self.datapath.attach(ifindex, AttachMode::Auto)).unwrap();
        // only now does the bridge have it: no packet comes by before the gate
        self.net.ip(&format!("link set {host} master br0"));
        podgate_testkit::wait::eventually("the bridge forwards", || {
            self.net.ask_ip(&format!("-d link show dev {host}")).contains("state forwarding")
        });
        Pod { name: name.into(), number, net: Arc::new(net), ifindex, owner }
    }

    /// As the plugin's DEL and the runtime after it.
    pub(crate) fn delete(&self, pod: Pod) {
        self.net.run(|| {
            let _ = self.datapath.detach(pod.ifindex);
        });
        let _ = self.datapath.maps.unregister(pod.ifindex);
        self.net.ip(&format!("link del v{}", pod.number));
    }

    /// Takes a pod's gate away, as a clumsy administrator does.
    pub(crate) fn remove_gate(&self, pod: &Pod) {
        self.net.run(|| self.datapath.detach(pod.ifindex)).unwrap();
    }

    /// Whether it stands.
    pub(crate) fn has_gate(&self, pod: &Pod) -> bool {
        self.net.run(|| self.datapath.verify(pod.ifindex)).is_ok()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = Datapath::unload(&self.root);
    }
}
