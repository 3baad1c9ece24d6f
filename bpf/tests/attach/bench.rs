//! A veth with a gate to attach, real packets through it both ways, and programs of other people.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use std::{env, fs};

use libbpf_rs::{ObjectBuilder, Program, TC_EGRESS, TC_INGRESS, TcHook, TcHookBuilder, libbpf_sys};
use nix::sys::socket::{self, AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType};
use podgate_bpf::abi::Direction::{Egress, Ingress};
use podgate_bpf::abi::{POLICY_PREFIX_ANY, PolicyKey, PolicyValue, Reason, Startup, Verdict};
use podgate_bpf::attach::{AttachMode, Attached};
use podgate_bpf::loader::Sizes;
use podgate_bpf::maps::Registration;
use podgate_bpf::{Datapath, PinRoot};
use podgate_testkit::packet;
use podgate_testkit::sandbox::{Veth, ip, pin_dir};

/// The two ways of attaching.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Clsact,
    Tcx,
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        if self == Self::Tcx { "tcx" } else { "clsact" }
    }

    pub(crate) fn mode(self) -> AttachMode {
        if self == Self::Tcx { AttachMode::Tcx } else { AttachMode::Clsact }
    }

    pub(crate) fn attached(self) -> Attached {
        if self == Self::Tcx { Attached::Tcx } else { Attached::Clsact }
    }
}

const PORT: u16 = 5300;
/// Of the pod: each has a datapath of its own.
pub(crate) const OWNER: u32 = 7;

/// One test at a time sends: a flood fills the CPU's queue of received packets, from which others' then fall.
fn wires() -> MutexGuard<'static, ()> {
    static WIRES: Mutex<()> = Mutex::new(());
    WIRES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One pod's interface: the host end has `host`, the pod's end belongs to nobody, so that frames are its pod.
#[derive(Debug)]
pub(crate) struct Bench {
    pub(crate) datapath: Datapath,
    pub(crate) veth: Veth,
    root: PinRoot,
    host: Ipv4Addr,
    pod: Ipv4Addr,
    /// Receives what came through `from_pod`.
    server: UdpSocket,
}

impl Bench {
    /// A pod to and from which nothing is allowed.
    pub(crate) fn isolated() -> Self {
        Self::new(&[])
    }

    /// A pod that no policy selects.
    pub(crate) fn open() -> Self {
        Self::new(&[Ingress, Egress])
    }

    fn new(allowed: &[podgate_bpf::abi::Direction]) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let [.., high, low] = NEXT.fetch_add(1, Ordering::Relaxed).to_be_bytes();
        let net = 100 + high;
        let (host, pod) = (Ipv4Addr::new(10, net, low, 1), Ipv4Addr::new(10, net, low, 2));
        let veth = Veth::new().unwrap();
        // the addresses that packet::ethernet writes
        ip(&format!("link set {} address 02:00:00:00:00:01", veth.host)).unwrap();
        ip(&format!("addr add {host}/24 dev {}", veth.host)).unwrap();
        ip(&format!("neigh add {pod} lladdr 02:00:00:00:00:02 dev {}", veth.host)).unwrap();

        let root = PinRoot::new(pin_dir());
        let sizes = Sizes { flows4: 1024, flows6: 1024, frags: 256, ..Sizes::default() };
        let datapath = Datapath::open_or_load(&root, &sizes).unwrap();
        let owner = OWNER;
        datapath
            .maps
            .register(&Registration {
                ifindex: veth.ifindex,
                owner,
                startup: Startup::Hold,
                anti_spoofing: true,
                addresses: vec![pod.into()],
                mac: None,
                netns_cookie: 0,
                container_id: "bench".into(),
                interface: "eth0".into(),
                host_interface: veth.host.clone(),
                network: "bench".into(),
                pod: None,
                netns: String::new(),
            })
            .unwrap();
        let entries: Vec<_> = allowed
            .iter()
            .map(|&direction| {
                let key = PolicyKey {
                    prefixlen: POLICY_PREFIX_ANY,
                    owner,
                    class: 0,
                    direction: direction as u8,
                    protocol: 0,
                    port: [0; 2],
                };
                let verdict = Verdict::Allow as u8;
                (key, PolicyValue { rule: 1, verdict, flags: 0, pad: [0; 2], hits: 0 })
            })
            .collect();
        let policy = datapath.maps.new_policy_map(&entries).unwrap();
        datapath.maps.install_policy_maps(&[(veth.ifindex, &policy)]).unwrap();
        let server = UdpSocket::bind((host, PORT)).unwrap();
        server.set_nonblocking(true).unwrap();
        Self { datapath, veth, root, host, pod, server }
    }

    pub(crate) fn ifindex(&self) -> u32 {
        self.veth.ifindex
    }

    /// The pin of one direction's TCX link.
    pub(crate) fn link(&self, program: &str) -> std::path::PathBuf {
        self.root.dir().join("links").join(format!("{}-{program}", self.ifindex()))
    }

    /// The pins of TCX links.
    pub(crate) fn links(&self) -> Vec<String> {
        let links = fs::read_dir(self.root.dir().join("links")).unwrap();
        links.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    /// What `tc` says of the host end.
    pub(crate) fn qdiscs(&self) -> String {
        let output =
            Command::new("/usr/sbin/tc").args(["qdisc", "show", "dev", &self.veth.host]).output();
        String::from_utf8(output.unwrap().stdout).unwrap()
    }

    fn frame(&self) -> Vec<u8> {
        packet::udp(PORT, PORT).between(&self.pod.to_string(), &self.host.to_string()).frame()
    }

    /// Sends this many packets each way: how many arrive must be `passing`, each way.
    #[track_caller]
    pub(crate) fn expect_passing(&self, sent: usize, passing: usize) {
        let _alone = wires();
        let pod = Wire::open(&self.veth.pod);
        let (mut to_host, mut to_pod) = (0, 0);
        // each round waits for its packets, or for long enough to know that none comes
        for _ in 0..sent {
            pod.send(&self.frame());
            let _ = self.server.send_to(b"x", (self.pod, PORT));
            let patience = if passing == 0 { 40 } else { 10_000 };
            let until = Instant::now() + Duration::from_millis(patience);
            let (mut came, mut went) = (0, 0);
            while Instant::now() < until && (passing == 0 || came + went < 2) {
                came += self.received();
                went += pod.received_for(self.pod);
                std::thread::sleep(Duration::from_micros(200));
            }
            (to_host, to_pod) = (to_host + came, to_pod + went);
        }
        assert_eq!((to_host, to_pod), (passing, passing), "of {sent} from and to the pod");
    }

    fn received(&self) -> usize {
        let mut buffer = [0; 64];
        std::iter::from_fn(|| self.server.recv(&mut buffer).ok()).count()
    }

    /// Keeps both directions busy until asked what came through.
    pub(crate) fn flood(&self) -> Flood<'_> {
        let alone = wires();
        let stop = Arc::new(AtomicBool::new(false));
        let to_pod = Arc::new(AtomicU64::new(0));
        let (pod, frame, address) = (Wire::open(&self.veth.pod), self.frame(), self.pod);
        let (stopped, came) = (stop.clone(), to_pod.clone());
        let client = self.server.try_clone().unwrap();
        let sender = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                for _ in 0..16 {
                    pod.send(&frame);
                    let _ = client.send_to(b"x", (address, PORT));
                }
                came.fetch_add(pod.received_for(address) as u64, Ordering::Relaxed);
            }
        });
        let denied = |direction| {
            self.datapath.maps.counters().unwrap().get(direction, Reason::DenyPolicy).packets
        };
        let before = [denied(Egress), denied(Ingress)];
        // under way before anything is changed
        let until = Instant::now() + Duration::from_secs(10);
        while denied(Egress) < before[0] + 100 || denied(Ingress) < before[1] + 100 {
            assert!(Instant::now() < until, "the flood does not reach the gate");
            std::thread::sleep(Duration::from_millis(1));
        }
        Flood { bench: self, stop, to_pod, sender: Some(sender), _alone: alone }
    }
}

/// Packets on their way.
#[derive(Debug)]
pub(crate) struct Flood<'a> {
    bench: &'a Bench,
    stop: Arc<AtomicBool>,
    to_pod: Arc<AtomicU64>,
    sender: Option<JoinHandle<()>>,
    _alone: MutexGuard<'static, ()>,
}

impl Flood<'_> {
    /// Ends it; not one packet may have come through.
    #[track_caller]
    pub(crate) fn expect_none(mut self) {
        self.stop();
        let passed = (self.bench.received(), self.to_pod.load(Ordering::Relaxed));
        let counters = self.bench.datapath.maps.counters().unwrap();
        let met = [Egress, Ingress].map(|way| counters.get(way, Reason::DenyPolicy).packets);
        assert_eq!(passed, (0, 0), "passed from and to the pod; {met:?} were dropped");
    }

    fn stop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(sender) = self.sender.take() {
            sender.join().unwrap();
        }
    }
}

impl Drop for Flood<'_> {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// One end of a veth, frame by frame.
#[derive(Debug)]
struct Wire {
    socket: OwnedFd,
}

impl Wire {
    fn open(interface: &str) -> Self {
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let socket =
            socket::socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll)
                .unwrap();
        let address = nix::ifaddrs::getifaddrs()
            .unwrap()
            .filter(|found| found.interface_name == interface)
            .find_map(|found| found.address?.as_link_addr().copied())
            .unwrap();
        socket::bind(socket.as_raw_fd(), &address).unwrap();
        Self { socket }
    }

    fn send(&self, frame: &[u8]) {
        match socket::send(self.socket.as_raw_fd(), frame, MsgFlags::empty()) {
            Ok(_) => {}
            Err(nix::errno::Errno::ENOBUFS | nix::errno::Errno::EAGAIN) => {}
            Err(e) => panic!("send a frame: {e}"),
        }
    }

    /// How many IPv4 packets for this address have come since.
    fn received_for(&self, address: Ipv4Addr) -> usize {
        let mut buffer = [0; 256];
        let mut count = 0;
        loop {
            match socket::recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Ok(length) if length >= 34 => {
                    count +=
                        usize::from(buffer[12..14] == [8, 0] && buffer[30..34] == address.octets());
                }
                Ok(_) => {}
                Err(e) if std::io::Error::from(e).kind() == ErrorKind::WouldBlock => return count,
                Err(e) => panic!("receive a frame: {e}"),
            }
        }
    }
}

/// A program of somebody else's, at both hooks.
#[derive(Debug)]
pub(crate) enum Foreign {
    Clsact(Vec<TcHook>),
    Tcx(Vec<OwnedFd>, u32),
}

/// A program that only says "pass", "next" or "drop": of each two, as no hook has one program twice.
fn foreign(name: &'static str, first: bool) -> OwnedFd {
    static LOADED: Mutex<BTreeMap<(&str, bool), OwnedFd>> = Mutex::new(BTreeMap::new());
    let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
    loaded.entry((name, first)).or_insert_with(|| load_foreign(name)).try_clone().unwrap()
}

fn load_foreign(name: &str) -> OwnedFd {
    let folder = tempfile::tempdir().unwrap();
    let object = foreign_object(name, folder.path());
    let object = ObjectBuilder::default().open_file(&object).unwrap().load().unwrap();
    let program = object.progs().next().unwrap();
    program.as_fd().try_clone_to_owned().unwrap()
}

/// Compiles such a program, of the section "tc".
pub(crate) fn foreign_object(name: &str, folder: &Path) -> PathBuf {
    let action = match name {
        "pass" => 0,
        "next" => -1,
        "drop" => 2,
        other => panic!("no program {other:?}"),
    };
    let (source, object) = (folder.join("foreign.c"), folder.join("foreign.o"));
    let text = format!(
        "__attribute__((section(\"tc\"), used)) int foreign(void *skb) {{ return {action}; }}\n\
         char LICENSE[] __attribute__((section(\"license\"), used)) = \"GPL\";\n"
    );
    fs::write(&source, text).unwrap();
    let clang = env::var_os("CLANG").unwrap_or_else(|| "clang".into());
    let compiled = Command::new(&clang)
        .args(["-target", "bpf", "-O2", "-g", "-c"])
        .arg(&source)
        .arg("-o")
        .arg(&object)
        .output()
        .unwrap_or_else(|e| panic!("run {clang:?}: {e} (the build needs it too)"));
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
    object
}

impl Bench {
    /// Attaches a program of somebody else's ahead of everything.
    pub(crate) fn attach_first(&self, kind: Kind, name: &'static str) -> Foreign {
        self.attach_foreign(kind, name, true)
    }

    /// And behind everything.
    pub(crate) fn attach_last(&self, kind: Kind, name: &'static str) -> Foreign {
        self.attach_foreign(kind, name, false)
    }

    fn attach_foreign(&self, kind: Kind, name: &'static str, first: bool) -> Foreign {
        let program = foreign(name, first);
        match kind {
            Kind::Clsact => {
                // of one priority the newest is first
                static HANDLE: AtomicU32 = AtomicU32::new(1);
                let handle = HANDLE.fetch_add(1, Ordering::Relaxed);
                let hooks = [TC_INGRESS, TC_EGRESS].map(|hook| {
                    let mut tc = TcHookBuilder::new(program.as_fd())
                        .ifindex(self.ifindex() as i32)
                        .handle(handle)
                        .priority(if first { 1 } else { 9 })
                        .hook(hook);
                    tc.create().unwrap();
                    tc.attach().unwrap()
                });
                Foreign::Clsact(hooks.into())
            }
            Kind::Tcx => {
                let id = Program::id_from_fd(program.as_fd()).unwrap();
                let links = [libbpf_sys::BPF_TCX_INGRESS, libbpf_sys::BPF_TCX_EGRESS]
                    .map(|hook| tcx_link(&program, self.ifindex(), hook, first));
                Foreign::Tcx(links.into(), id)
            }
        }
    }
}

fn tcx_link(program: &OwnedFd, ifindex: u32, hook: u32, first: bool) -> OwnedFd {
    let opts = libbpf_sys::bpf_link_create_opts {
        sz: size_of::<libbpf_sys::bpf_link_create_opts>() as _,
        flags: if first { libbpf_sys::BPF_F_BEFORE } else { libbpf_sys::BPF_F_AFTER },
        ..Default::default()
    };
    // SAFETY: opts is a whole structure of the size that it names.
    let fd =
        unsafe { libbpf_sys::bpf_link_create(program.as_raw_fd(), ifindex as i32, hook, &opts) };
    assert!(fd >= 0, "attach a foreign TCX program: error {fd}");
    // SAFETY: the kernel has just given us this descriptor.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

impl Foreign {
    /// Whether it is still at both hooks.
    pub(crate) fn is_attached(&self, bench: &Bench) -> bool {
        match self {
            Self::Clsact(hooks) => hooks.clone().iter_mut().all(|hook| hook.query().is_ok()),
            Self::Tcx(links, id) => {
                let here = libbpf_rs::query::LinkInfoIter::default()
                    .filter(|link| {
                        matches!(&link.info, libbpf_rs::query::LinkTypeInfo::Tcx(tcx)
                            if tcx.ifindex == bench.ifindex())
                            && link.prog_id == *id
                    })
                    .count();
                here == links.len()
            }
        }
    }

    /// Takes it away again.
    pub(crate) fn remove(self, _bench: &Bench) {
        match self {
            Self::Clsact(hooks) => hooks.into_iter().for_each(|mut hook| hook.detach().unwrap()),
            // Detached by name: closing the last descriptor only asks the kernel to do so some time.
            Self::Tcx(links, _) => links.into_iter().for_each(|link| {
                // SAFETY: the descriptor is open until the end of this closure.
                let ret = unsafe { libbpf_sys::bpf_link_detach(link.as_raw_fd()) };
                assert_eq!(ret, 0, "detach a foreign TCX program");
            }),
        }
    }
}
