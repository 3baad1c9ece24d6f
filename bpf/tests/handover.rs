//! Taking pods over from layouts of other bytes: what is carried over, what each state does with a packet, and what
//! becomes of a layout that cannot be read.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::{env, fs};

use libbpf_rs::{MapCore, MapFlags, MapHandle, ObjectBuilder};
use podgate_bpf::abi::Direction::{Egress, Ingress};
use podgate_bpf::abi::{
    Addr, Direction, FLOW_DNAT, FLOW_NO_SLOT, FLOW_REVNAT, Flow, FlowState, Mode,
    POLICY_PREFIX_ANY, PolicyKey, PolicyValue, Startup, Verdict,
};
use podgate_bpf::attach::AttachMode;
use podgate_bpf::clock::coarse_now;
use podgate_bpf::handover::{OtherLayout, Owners};
use podgate_bpf::loader::Sizes;
use podgate_bpf::maps::{PodRef, Registration};
use podgate_bpf::testrun::Context;
use podgate_bpf::{Datapath, PinRoot};
use podgate_contract::handshake::EndpointRef;
use podgate_testkit::packet;
use podgate_testkit::sandbox::{self, Veth, pin_dir, trial};

fn main() -> ExitCode {
    sandbox::run(|| {
        let tests: [(&str, fn()); 6] = [
            ("handover: layout 1 is read", || reads(&RELEASED)),
            ("handover: a layout of other places and lengths is read", || reads(&SHUFFLED)),
            ("handover: each state, by clsact", || states(AttachMode::Clsact)),
            ("handover: each state, by TCX", || states(AttachMode::Tcx)),
            ("handover: a layout that lacks a field is left alone", lacking),
            ("handover: what is taken away or forgotten is gone", taken_away),
        ];
        tests.map(|(name, test)| trial(name, test)).into()
    })
}

/// Another layout: where its fields are.
struct Other {
    version: u32,
    define: &'static str,
    endpoint: (usize, &'static [(&'static str, usize)]),
    key: (usize, &'static [(&'static str, usize)]),
    flow: (usize, &'static [(&'static str, usize)]),
    /// Size of pg_control, and where the mode is.
    control: (usize, usize),
}

/// Layout 1, as `tests/abi/v1.txt` has it.
const RELEASED: Other = Other {
    version: 1,
    define: "RELEASED",
    endpoint: (
        1152,
        &[
            ("owner", 0),
            ("startup", 4),
            ("anti_spoofing", 5),
            ("addr4_count", 6),
            ("addr4", 8),
            ("addr6_count", 7),
            ("addr6", 24),
            ("netns_cookie", 88),
            ("container_id", 96),
            ("interface", 352),
            ("host_interface", 368),
            ("network", 384),
            ("pod_namespace", 512),
            ("pod_name", 576),
            ("pod_uid", 832),
            ("netns", 896),
        ],
    ),
    key: (
        20,
        &[
            ("ifindex", 0),
            ("pod", 4),
            ("peer", 8),
            ("pod_port", 12),
            ("peer_port", 14),
            ("protocol", 16),
        ],
    ),
    flow: (
        40,
        &[
            ("expires", 4),
            ("owner", 8),
            ("direction", 16),
            ("state", 17),
            ("flags", 18),
            ("other", 20),
            ("other_port", 36),
            ("own_port", 38),
        ],
    ),
    control: (20, 4),
};

const SHUFFLED: Other = Other {
    version: 7,
    define: "SHUFFLED",
    endpoint: (
        1216,
        &[
            ("container_id", 0),
            ("unknown_to_others", 300),
            ("anti_spoofing", 304),
            ("startup", 305),
            ("addr6_count", 306),
            ("addr4_count", 307),
            ("addr6", 308),
            ("addr4", 404),
            ("netns", 428),
            ("interface", 684),
            ("host_interface", 700),
            ("network", 716),
            ("pod_namespace", 816),
            ("pod_name", 880),
            ("pod_uid", 1136),
            ("netns_cookie", 1200),
            ("owner", 1208),
        ],
    ),
    key: (
        20,
        &[
            ("peer_port", 0),
            ("pod_port", 2),
            ("peer", 4),
            ("pod", 8),
            ("ifindex", 12),
            ("protocol", 17),
        ],
    ),
    flow: (
        40,
        &[
            ("other", 0),
            ("own_port", 16),
            ("other_port", 18),
            ("owner", 20),
            ("expires", 24),
            ("flags", 28),
            ("state", 29),
            ("direction", 30),
            ("unknown_to_others", 36),
        ],
    ),
    control: (12, 8),
};

const LACKING: Other = Other { define: "LACKING", ..RELEASED };

fn record(layout: (usize, &[(&str, usize)]), fields: &[(&str, &[u8])]) -> Vec<u8> {
    let mut bytes = vec![0; layout.0];
    for (name, value) in fields {
        let Some((_, at)) = layout.1.iter().find(|(field, _)| field == name) else { continue };
        bytes[*at..*at + value.len()].copy_from_slice(value);
    }
    bytes
}

fn compile(define: &str) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let object = folder.path().join("layout.o");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/handover/layout.bpf.c");
    let include = format!("-I/usr/include/{}-linux-gnu", env::consts::ARCH);
    let clang = env::var_os("CLANG").unwrap_or_else(|| "clang".into());
    let output = Command::new(&clang)
        .args(["-target", "bpf", "-mcpu=v3", "-g", "-O2", "-Wall", "-Werror", &include])
        .arg(format!("-D{define}"))
        .arg("-c")
        .arg(source)
        .arg("-o")
        .arg(&object)
        .output()
        .unwrap_or_else(|e| panic!("run {clang:?}: {e} (the build needs it too)"));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    fs::read(object).unwrap()
}

/// What an earlier build has left: pins, one pod, its flows.
struct Left {
    root: PathBuf,
    pins: PinRoot,
}

impl Left {
    fn new(other: &Other) -> Self {
        let root = pin_dir();
        let pins = PinRoot::of_layout(&root, other.version);
        fs::create_dir_all(pins.dir().join("links")).unwrap();
        let bytes = compile(other.define);
        let mut object = ObjectBuilder::default().open_memory(&bytes).unwrap().load().unwrap();
        for mut map in object.maps_mut() {
            let name = map.name().to_string_lossy().into_owned();
            map.pin(pins.path(&name)).unwrap();
        }
        for mut program in object.progs_mut() {
            let name = program.name().to_string_lossy().into_owned();
            program.pin(pins.path(&name)).unwrap();
        }
        Self { root, pins }
    }

    fn set(&self, map: &str, key: &[u8], value: &[u8]) {
        let map = MapHandle::from_pinned_path(self.pins.path(map)).unwrap();
        map.update(key, value, MapFlags::ANY).unwrap();
    }

    /// A pod at an interface, with the gate of that build.
    fn register(&self, other: &Other, ifindex: u32) {
        let mut addr4 = [0; 8];
        addr4[..4].copy_from_slice(&[10, 0, 0, 5]);
        let mut addr6 = [0; 16];
        addr6[0] = 0xfd;
        addr6[15] = 5;
        let fields: &[(&str, &[u8])] = &[
            ("owner", &77_u32.to_ne_bytes()),
            ("startup", &[Startup::Open as u8]),
            ("anti_spoofing", &[1]),
            ("addr4_count", &[1]),
            ("addr6_count", &[1]),
            ("addr4", &addr4),
            ("addr6", &addr6),
            ("netns_cookie", &4242_u64.to_ne_bytes()),
            ("container_id", b"c1"),
            ("interface", b"eth0"),
            ("host_interface", b"host0"),
            ("network", b"pods"),
            ("pod_namespace", b"shop"),
            ("pod_name", b"web-0"),
            ("pod_uid", b"u1"),
            ("netns", b"/run/netns/x"),
            ("unknown_to_others", &[9; 4]),
        ];
        self.set("endpoints", &ifindex.to_ne_bytes(), &record(other.endpoint, fields));
        self.set("policies", &ifindex.to_ne_bytes(), &[1; 4]);
        let mut control = vec![0; other.control.0];
        control[other.control.1] = Mode::Audit as u8;
        self.set("control", &0_u32.to_ne_bytes(), &control);
    }

    /// A flow of the pod's port 4000 to 10.0.0.9.
    fn flow(&self, other: &Other, ifindex: u32, owner: u32, peer_port: u16, more: &Flow) {
        let key: &[(&str, &[u8])] = &[
            ("ifindex", &ifindex.to_ne_bytes()),
            ("pod", &[10, 0, 0, 5]),
            ("peer", &[10, 0, 0, 9]),
            ("pod_port", &4000_u16.to_be_bytes()),
            ("peer_port", &peer_port.to_be_bytes()),
            ("protocol", &[6]),
        ];
        let flow: &[(&str, &[u8])] = &[
            ("expires", &more.expires.to_ne_bytes()),
            ("owner", &owner.to_ne_bytes()),
            ("direction", &[more.direction]),
            ("state", &[more.state]),
            ("flags", &[more.flags]),
            ("other", &more.other.bytes),
            ("other_port", &more.other_port),
            ("own_port", &more.own_port),
            ("unknown_to_others", &[9; 4]),
        ];
        self.set("flows4", &record(other.key, key), &record(other.flow, flow));
    }

    fn layout(&self) -> OtherLayout {
        let mut found = OtherLayout::all(&PinRoot::new(&self.root)).unwrap();
        assert_eq!(found.len(), 1);
        found.remove(0)
    }

    fn datapath(&self) -> Datapath {
        let sizes = Sizes { flows4: 1024, flows6: 1024, frags: 256, ..Sizes::default() };
        Datapath::open_or_load(&PinRoot::new(&self.root), &sizes).unwrap()
    }
}

fn flow(direction: Direction, flags: u8) -> Flow {
    Flow {
        epoch: 0,
        expires: coarse_now() + 100,
        owner: 0,
        rule: 0,
        direction: direction as u8,
        state: FlowState::Established as u8,
        flags,
        other: Addr::from(packet::addr("10.96.0.1")),
        other_port: 80_u16.to_be_bytes(),
        own_port: 4001_u16.to_be_bytes(),
        ..zerocopy::FromZeros::new_zeroed()
    }
}

fn expected(ifindex: u32) -> Registration {
    Registration {
        ifindex,
        owner: 77,
        startup: Startup::Open,
        anti_spoofing: true,
        addresses: vec!["10.0.0.5".parse().unwrap(), "fd00::5".parse().unwrap()],
        mac: None,
        netns_cookie: 4242,
        container_id: "c1".into(),
        interface: "eth0".into(),
        host_interface: "host0".into(),
        network: "pods".into(),
        pod: Some(PodRef { namespace: "shop".into(), name: "web-0".into(), uid: "u1".into() }),
        netns: "/run/netns/x".into(),
    }
}

fn reads(other: &Other) {
    let left = Left::new(other);
    left.register(other, 5);
    left.flow(other, 5, 77, 1, &flow(Egress, 0));
    left.flow(other, 5, 77, 2, &flow(Ingress, 0));
    left.flow(other, 5, 77, 3, &flow(Egress, FLOW_REVNAT));
    left.flow(other, 5, 77, 4, &flow(Egress, FLOW_DNAT));
    // over, of an earlier pod, of another interface
    left.flow(other, 5, 77, 5, &Flow { expires: coarse_now() - 2, ..flow(Egress, 0) });
    left.flow(other, 5, 76, 6, &flow(Egress, 0));
    left.flow(other, 6, 77, 7, &flow(Egress, 0));
    let layout = left.layout();
    assert_eq!(layout.interfaces().unwrap(), [5]);
    assert_eq!(layout.registration(5).unwrap(), Some(expected(5)));
    assert_eq!(layout.registration(6).unwrap(), None);
    assert_eq!(layout.mode().unwrap(), Mode::Audit);
    layout.set_mode(Mode::Off).unwrap();
    assert_eq!(layout.mode().unwrap(), Mode::Off);

    let datapath = left.datapath();
    assert_eq!(datapath.maps.control().mode(), Mode::Off, "a node keeps its mode");
    let owners = Owners::from([(5, (77, 99))]);
    assert_eq!(datapath.copy_flows(&layout, &owners).unwrap(), 4);
    let mut copied = datapath.maps.flow_table().flows4().unwrap();
    copied.sort_by_key(|(key, _)| key.peer_port);
    let ports: Vec<_> = copied.iter().map(|(key, _)| u16::from_be_bytes(key.peer_port)).collect();
    assert_eq!(ports, [1, 2, 3, 4]);
    for ((key, found), (direction, flags)) in
        copied.iter().zip([(Egress, 0), (Ingress, 0), (Egress, FLOW_REVNAT), (Egress, FLOW_DNAT)])
    {
        assert_eq!((key.ifindex, key.pod, key.peer), (5, [10, 0, 0, 5], [10, 0, 0, 9]));
        assert_eq!((key.pod_port, key.protocol), (4000_u16.to_be_bytes(), 6));
        assert_eq!((found.owner, found.direction), (99, direction as u8));
        // its next packet gives it a slot
        assert_eq!(found.flags, flags | FLOW_NO_SLOT);
        assert_eq!(found.state, FlowState::Established as u8);
        assert_eq!(found.other, Addr::from(packet::addr("10.96.0.1")));
        let ports = (u16::from_be_bytes(found.other_port), u16::from_be_bytes(found.own_port));
        assert_eq!(ports, (80, 4001));
        assert_ne!(found.epoch, datapath.maps.control().epoch(), "it is judged at its next packet");
    }
    assert_eq!(datapath.copy_flows(&layout, &owners).unwrap(), 0, "what is known stays");
}

/// What a TCP packet of the pod to 10.0.0.9 meets, and one from there.
fn meets(
    datapath: &Datapath,
    ifindex: u32,
    direction: Direction,
    peer_port: u16,
    syn: bool,
) -> i32 {
    let (from, to) = match direction {
        Egress => ((4000, "10.0.0.5"), (peer_port, "10.0.0.9")),
        Ingress => ((peer_port, "10.0.0.9"), (4000, "10.0.0.5")),
    };
    let transport = packet::tcp(from.0, to.0);
    let transport = if syn { transport.syn() } else { transport.ack() };
    let frame = transport.between(from.1, to.1).frame();
    let context = Context { ifindex, ingress_ifindex: 1 };
    datapath.test_run(direction, context, &frame, 1).unwrap().action
}

const NEXT: i32 = -1;
const SHOT: i32 = 2;

/// The other build's gate at a new interface, by its own means.
fn attach_old(left: &Left, veth: &Veth, mode: AttachMode) {
    // the same handles and pins as in this one: see `attach.rs`
    for (program, hook) in [("from_pod", "ingress"), ("to_pod", "egress")] {
        match mode {
            AttachMode::Tcx => {
                use std::os::fd::{AsFd, AsRawFd};
                let program_fd =
                    libbpf_rs::Program::fd_from_pinned_path(left.pins.path(program)).unwrap();
                let opts = libbpf_rs::libbpf_sys::bpf_link_create_opts {
                    sz: size_of::<libbpf_rs::libbpf_sys::bpf_link_create_opts>() as _,
                    ..Default::default()
                };
                let at = match hook {
                    "ingress" => libbpf_rs::libbpf_sys::BPF_TCX_INGRESS,
                    _ => libbpf_rs::libbpf_sys::BPF_TCX_EGRESS,
                };
                let fd = program_fd.as_fd().as_raw_fd();
                // SAFETY: opts is a whole structure of the size it names; the kernel gives a descriptor or an error.
                let link = unsafe {
                    libbpf_rs::libbpf_sys::bpf_link_create(fd, veth.ifindex as i32, at, &opts)
                };
                assert!(link >= 0, "TCX: {link}");
                let pin = left.pins.dir().join("links").join(format!("{}-{program}", veth.ifindex));
                let pin = std::ffi::CString::new(pin.to_str().unwrap()).unwrap();
                // SAFETY: the path is a live NUL-terminated string, the descriptor is open.
                assert_eq!(unsafe { libbpf_rs::libbpf_sys::bpf_obj_pin(link, pin.as_ptr()) }, 0);
                // SAFETY: this descriptor is nobody else's.
                unsafe { nix::libc::close(link) };
            }
            _ => {
                let _ = sandbox::command("tc", &format!("qdisc add dev {} clsact", veth.host));
                let pinned = left.pins.path(program);
                let filter = format!(
                    "filter add dev {} {hook} protocol all prio 1 handle 0x7067 bpf da object-pinned {}",
                    veth.host,
                    pinned.display()
                );
                sandbox::command("tc", &filter).unwrap();
            }
        }
    }
}

fn states(mode: AttachMode) {
    let left = Left::new(&RELEASED);
    let veth = Veth::new().unwrap();
    let ifindex = veth.ifindex;
    left.register(&RELEASED, ifindex);
    // allowed by both, and by the other alone
    left.flow(&RELEASED, ifindex, 77, 1, &flow(Egress, 0));
    left.flow(&RELEASED, ifindex, 77, 2, &flow(Ingress, 0));
    attach_old(&left, &veth, mode);
    let (layout, datapath) = (left.layout(), left.datapath());
    datapath.maps.control().set_mode(Mode::Enforce);
    assert!(layout.is_attached(ifindex).unwrap());
    assert!(datapath.verify(ifindex).is_err());

    datapath.prepare_handover(&layout).unwrap();
    let here = Registration { owner: 99, startup: Startup::Previous, ..expected(ifindex) };
    datapath.maps.register(&here).unwrap();
    datapath.replace_gate(&layout, ifindex, mode).unwrap();
    datapath.verify(ifindex).unwrap();
    assert!(!layout.is_attached(ifindex).unwrap());
    // all egress is allowed by the new policy, and no ingress
    let everything = PolicyKey {
        prefixlen: POLICY_PREFIX_ANY,
        owner: 99,
        class: 0,
        direction: Egress as u8,
        protocol: 0,
        port: [0; 2],
    };
    let allow =
        PolicyValue { rule: 1, verdict: Verdict::Allow as u8, flags: 0, pad: [0; 2], hits: 0 };
    let policy = datapath.maps.new_policy_map(&[(everything, allow)]).unwrap();
    datapath.maps.install_policy_maps(&[(ifindex, &policy)]).unwrap();
    datapath.maps.control().bump_epoch();
    let endpoint = EndpointRef { ifindex, owner: 99 };
    let meets = |direction, port, syn| meets(&datapath, ifindex, direction, port, syn);
    let flows = || datapath.maps.flow_table().flows4().unwrap().len();

    // the others judge everything
    assert_eq!([meets(Egress, 1, false), meets(Ingress, 2, false)], [NEXT, NEXT]);
    assert_eq!([meets(Egress, 3, true), meets(Ingress, 3, true)], [SHOT, SHOT]);
    assert_eq!(flows(), 0);

    // but for what begins
    datapath.maps.set_startup(endpoint, Startup::Opening).unwrap();
    assert_eq!([meets(Egress, 1, false), meets(Ingress, 2, false)], [NEXT, NEXT]);
    assert_eq!([meets(Egress, 4, false), meets(Ingress, 4, false)], [SHOT, SHOT]);
    assert_eq!(flows(), 0);
    assert_eq!([meets(Egress, 3, true), meets(Ingress, 5, true)], [NEXT, SHOT]);
    assert_eq!([meets(Ingress, 3, false), flows() as i32], [NEXT, 1], "its answer");

    // the others are asked before a denial
    datapath.maps.set_startup(endpoint, Startup::Remainder).unwrap();
    assert_eq!([meets(Egress, 4, false), meets(Ingress, 2, false)], [NEXT, NEXT]);
    assert_eq!(meets(Ingress, 5, false), SHOT);

    let owners = Owners::from([(ifindex, (77, 99))]);
    assert_eq!(datapath.copy_flows(&layout, &owners).unwrap(), 2);
    datapath.maps.set_startup(endpoint, Startup::Hold).unwrap();
    // what policy allows goes on, both ways; what it does not is cut
    assert_eq!([meets(Ingress, 1, false), meets(Egress, 1, false)], [NEXT, NEXT]);
    assert_eq!([meets(Ingress, 2, false), meets(Ingress, 5, true)], [SHOT, SHOT]);

    // with nobody to ask, what would be asked is denied
    datapath.end_handover().unwrap();
    datapath.maps.set_startup(endpoint, Startup::Previous).unwrap();
    assert_eq!([meets(Egress, 9, true), meets(Ingress, 9, true)], [SHOT, SHOT]);
    datapath.detach(ifindex).unwrap();
    veth.delete().unwrap();
}

fn lacking() {
    let left = Left::new(&LACKING);
    let veth = Veth::new().unwrap();
    left.register(&LACKING, veth.ifindex);
    attach_old(&left, &veth, AttachMode::Clsact);
    let layout = left.layout();
    let told = layout.registration(veth.ifindex).unwrap_err().to_string();
    assert!(told.contains("its struct pg_flow has no field own_port"), "{told}");
    assert!(told.contains("stay in force") && told.contains("policyd uninstall"), "{told}");
    assert!(layout.interfaces().is_err() && layout.mode().is_err());
    // where its gates are is known all the same
    assert!(layout.is_attached(veth.ifindex).unwrap());
    assert_eq!(left.datapath().maps.control().mode(), Mode::Enforce);
    veth.delete().unwrap();
}

fn taken_away() {
    let left = Left::new(&SHUFFLED);
    for mode in [AttachMode::Clsact, AttachMode::Tcx] {
        let veth = Veth::new().unwrap();
        left.register(&SHUFFLED, veth.ifindex);
        attach_old(&left, &veth, mode);
        let layout = left.layout();
        let endpoint = |owner| EndpointRef { ifindex: veth.ifindex, owner };
        // another pod's
        layout.remove_endpoint(endpoint(78)).unwrap();
        assert!(layout.is_attached(veth.ifindex).unwrap());
        layout.remove_endpoint(endpoint(77)).unwrap();
        assert!(!layout.is_attached(veth.ifindex).unwrap());
        assert_eq!(layout.interfaces().unwrap(), [0; 0]);
        assert_eq!(fs::read_dir(left.pins.dir().join("links")).unwrap().count(), 0);
        layout.remove_endpoint(endpoint(77)).unwrap();
        veth.delete().unwrap();
    }
    left.layout().remove().unwrap();
    assert!(OtherLayout::all(&PinRoot::new(&left.root)).unwrap().is_empty());
}
