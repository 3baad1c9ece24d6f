//! Loading once, pins, and what is left when a loader dies half-way.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

#[path = "loader/metered.rs"]
mod metered;
#[path = "loader/services.rs"]
mod services;
#[path = "loader/steps.rs"]
mod steps;
#[path = "loader/trust.rs"]
mod trust;
#[path = "loader/verified.rs"]
mod verified;

use std::collections::BTreeSet;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::{env, fs};

use libbpf_rs::{MapCore, MapHandle, MapType, Program, libbpf_sys};
use podgate_bpf::abi::Direction::{Egress, Ingress};
use podgate_bpf::abi::{
    Direction, POLICY_PREFIX_ANY, PolicyKey, PolicyValue, Reason, Startup, Verdict,
};
use podgate_bpf::attach::AttachMode;
use podgate_bpf::loader::Sizes;
use podgate_bpf::maps::Registration;
use podgate_bpf::testrun::Context;
use podgate_bpf::{Datapath, Error, PinRoot};
use podgate_testkit::packet;
use podgate_testkit::sandbox::{self, Veth, pin_dir, trial};

/// Names the pin root to a child process of this binary, which then loads and says which programs it has.
const CHILD: &str = "PODGATE_LOADER_TEST_ROOT";

fn main() -> ExitCode {
    if let Some(root) = env::var_os(CHILD) {
        let datapath = Datapath::open_or_load(&PinRoot::new(root), &Sizes::default());
        println!("{:?}", datapath.map(|datapath| programs(&datapath)).map_err(|e| e.to_string()));
        return ExitCode::SUCCESS;
    }
    sandbox::run(|| {
        let tests: [(&str, fn()); 31] = [
            ("load: nothing is there before, everything after", loads),
            ("load: eight threads at once load once", threads_load_once),
            ("load: eight processes at once load once", processes_load_once),
            ("load: each missing pin is made good", each_missing_pin),
            ("load: each half-written directory is completed", half_written),
            ("load: a pinned map of another shape is refused by field", mismatch),
            (
                "load: a pinned map of another shape among whole pins is refused too",
                mismatch_when_whole,
            ),
            ("load: not on a BPF file system", not_on_bpffs),
            ("load: verified instructions are counted", verified::printed_and_kept),
            ("steps: each write of a class or a table is counted", steps::each_write_is_counted),
            ("trust: pins of another kind are named", trust::other_kinds),
            ("trust: another's map of the same sizes is named", trust::others_maps),
            ("trust: foreign pins are named and left alone", trust::foreign_names),
            ("trust: directories that others may write are refused", trust::writable_by_others),
            ("trust: so is one that others have made", trust::prepared_by_others),
            ("load: sizes are honoured, and kept", sizes),
            ("load: a flow table that pods cannot share is refused", too_small),
            ("load: a full map says so", full),
            ("maps: what is written is read", maps),
            ("services: what is written is read", services::services),
            ("services: batches, and a full map", services::services_in_batches),
            ("flows: one that lives is not overwritten", services::seeds),
            ("clock: user space tells the programs' time", services::clock),
            ("unload: nothing is left", unloads),
            ("replace: gates and flows stay", replaces),
            ("replace: where nothing was loaded", replaces_nothing),
            ("replace: what cannot be loaded leaves what is there", replaces_or_leaves),
            ("replace: an interface that is gone is in nobody's way", replaces_around_the_dead),
            ("limits: their programs are loaded when needed, once", metered::loaded_when_needed),
            ("limits: their programs are replaced too", metered::replaced),
            ("limits: forgotten with their pod", metered::forgotten_with_the_pod),
        ];
        tests.map(|(name, test)| trial(name, test)).into()
    })
}

fn root() -> PinRoot {
    PinRoot::new(pin_dir())
}

/// The kernel's numbers of the two programs.
fn programs(datapath: &Datapath) -> (u32, u32) {
    let (from, to) = datapath.programs();
    (Program::id_from_fd(from.as_fd()).unwrap(), Program::id_from_fd(to.as_fd()).unwrap())
}

fn small() -> Sizes {
    Sizes { flows4: 1024, flows6: 1024, frags: 256, ..Sizes::default() }
}

/// The pins of a root, without the folder of links.
fn pins(root: &PinRoot) -> BTreeSet<String> {
    let names = fs::read_dir(root.dir()).unwrap().map(|entry| entry.unwrap().file_name());
    names.map(|name| name.into_string().unwrap()).filter(|name| name != "links").collect()
}

fn loads() {
    let root = root();
    let missing = Datapath::open(&root).unwrap_err();
    assert!(matches!(missing, Error::NotLoaded { .. }), "{missing}");
    assert!(!root.root().exists(), "looking makes nothing");
    let first = Datapath::open_or_load(&root, &small()).unwrap();
    let again = Datapath::open_or_load(&root, &small()).unwrap();
    let opened = Datapath::open(&root).unwrap();
    assert_eq!(programs(&first), programs(&again));
    assert_eq!(programs(&first), programs(&opened));
    let mode = fs::metadata(root.dir()).unwrap();
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&mode.permissions()) & 0o777, 0o700);
    assert_eq!(pins(&root).len(), 32, "{:?}", pins(&root));
}

fn threads_load_once() {
    let root = root();
    let loaded: BTreeSet<_> = std::thread::scope(|scope| {
        let load = || programs(&Datapath::open_or_load(&root, &small()).unwrap());
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(load)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(loaded.len(), 1, "{loaded:?}");
}

fn processes_load_once() {
    let root = root();
    let start = |_| {
        Command::new(env::current_exe().unwrap())
            .env(CHILD, root.root())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap()
    };
    let children: Vec<_> = (0..8).map(start).collect();
    let told: BTreeSet<String> = children
        .into_iter()
        .map(|child| String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap())
        .collect();
    let loaded = programs(&Datapath::open(&root).unwrap());
    assert_eq!(told, BTreeSet::from([format!("Ok({loaded:?})\n")]));
}

fn complete(root: &PinRoot, names: &BTreeSet<String>, what: &str) {
    let datapath = Datapath::open_or_load(root, &small()).unwrap_or_else(|e| panic!("{what}: {e}"));
    assert_eq!(pins(root), *names, "{what}");
    let context = Context { ifindex: 1, ingress_ifindex: 0 };
    let frame = packet::udp(1, 2).between("10.0.0.9", "10.0.0.5").frame();
    let before = datapath.maps.counters().unwrap().get(Ingress, Reason::DenyNoEndpoint).packets;
    assert_eq!(datapath.test_run(Ingress, context, &frame, 1).unwrap().action, 2, "{what}");
    let after = datapath.maps.counters().unwrap().get(Ingress, Reason::DenyNoEndpoint).packets;
    assert_eq!(after, before + 1, "{what}: the programs write the pinned counters");
}

fn each_missing_pin() {
    let root = root();
    let datapath = Datapath::open_or_load(&root, &small()).unwrap();
    let kept = "192.0.2.1".parse().unwrap();
    datapath.maps.add_node_addr(kept).unwrap();
    let names = pins(&root);
    for name in &names {
        fs::remove_file(root.path(name)).unwrap();
        let missing = Datapath::open(&root).unwrap_err();
        assert!(missing.to_string().contains(name), "{missing}");
        complete(&root, &names, &format!("without {name}"));
        let survives = name != "node_addrs";
        let addresses = Datapath::open(&root).unwrap().maps.node_addrs().unwrap();
        assert_eq!(addresses.contains(&kept), survives, "without {name}");
        datapath.maps.add_node_addr(kept).unwrap();
        Datapath::open(&root).unwrap().maps.add_node_addr(kept).unwrap();
    }
}

fn half_written() {
    let root = root();
    drop(Datapath::open_or_load(&root, &small()).unwrap());
    let names = pins(&root);
    let order: Vec<_> = names.iter().collect();
    for there in 0..order.len() {
        // what comes first is there, then what comes last
        for missing in [&order[there..], &order[..order.len() - there]] {
            for name in missing {
                fs::remove_file(root.path(name)).unwrap();
            }
            complete(&root, &names, &format!("without {missing:?}"));
        }
    }
}

fn wrong_map(kind: MapType, key: u32, value: u32, max: u32) -> MapHandle {
    let opts = libbpf_sys::bpf_map_create_opts {
        sz: size_of::<libbpf_sys::bpf_map_create_opts>() as _,
        ..Default::default()
    };
    MapHandle::create(kind, Some("wrong"), key, value, max, &opts).unwrap()
}

/// Replaces a pin.
fn put(root: &PinRoot, name: &str, map: &mut MapHandle) {
    let path = root.path(name);
    fs::create_dir_all(root.dir()).unwrap();
    if path.exists() {
        fs::remove_file(&path).unwrap();
    }
    map.pin(&path).unwrap();
}

fn wrongs() -> [(&'static str, MapHandle, &'static str); 4] {
    [
        ("endpoints", wrong_map(MapType::Hash, 4, 8, 16), "value size"),
        ("peers4", wrong_map(MapType::Hash, 8, 4, 16), "key size"),
        ("frags", wrong_map(MapType::Array, 4, 4, 16), "type"),
        ("counters", wrong_map(MapType::Array, 4, 16, 72), "type"),
    ]
}

fn refused(loaded: Result<Datapath, Error>, name: &str, wanted: &str) {
    match loaded.map(drop) {
        Err(Error::Mismatch { path, field, .. }) => {
            assert_eq!((path.file_name().and_then(|n| n.to_str()), field), (Some(name), wanted));
        }
        other => panic!("{name} of another {wanted} is taken: {other:?}"),
    }
}

fn mismatch() {
    for (name, mut wrong, field) in wrongs() {
        let root = root();
        put(&root, name, &mut wrong);
        refused(Datapath::open_or_load(&root, &small()), name, field);
        assert_eq!(pins(&root), BTreeSet::from([name.to_owned()]), "nothing is added");
    }
}

fn mismatch_when_whole() {
    for (name, mut wrong, field) in wrongs() {
        let root = root();
        drop(Datapath::open_or_load(&root, &small()).unwrap());
        put(&root, name, &mut wrong);
        refused(Datapath::open(&root), name, field);
        refused(Datapath::open_or_load(&root, &small()), name, field);
    }
}

fn not_on_bpffs() {
    let folder = tempfile::tempdir().unwrap();
    for path in [folder.path().join("pins"), folder.path().to_owned()] {
        let root = PinRoot::new(&path);
        let told = Datapath::open_or_load(&root, &small()).unwrap_err();
        assert!(matches!(told, Error::Bpffs { .. }), "{told}");
        assert!(told.to_string().contains("mount -t bpf"), "says what to do: {told}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "leaves nothing");
    }
    let told = Datapath::open_or_load(&PinRoot::new("/proc/podgate"), &small()).unwrap_err();
    assert!(matches!(told, Error::Bpffs { .. }), "{told}");
}

fn max_entries(path: &Path) -> u32 {
    MapHandle::from_pinned_path(path).unwrap().max_entries()
}

fn sizes() {
    let root = root();
    let wanted = Sizes {
        endpoints: 11,
        flows4: 2048,
        flows6: 4096,
        peers: 1001,
        nets: 1002,
        frags: 512,
        node_addrs: 13,
        services: 14,
        backends: 15,
        affinity: 1024,
        events: 8192,
    };
    drop(Datapath::open_or_load(&root, &wanted).unwrap());
    let check = || {
        for (name, size) in [
            ("endpoints", 11),
            ("policies", 11),
            ("flows4", 2048),
            ("flows6", 4096),
            ("peers4", 1001),
            ("peers6", 1001),
            ("nets4", 1002),
            ("nets6", 1002),
            ("flow_slots4", 2048),
            ("flow_slots6", 4096),
            ("shares", 11),
            ("frags", 512),
            ("node_addrs", 13),
            ("services4", 14),
            ("services6", 14),
            ("slots", 15),
            ("backends", 15),
            ("affinity", 1024),
            ("events", 8192),
        ] {
            assert_eq!(max_entries(&root.path(name)), size, "{name}");
        }
    };
    check();
    // what is pinned keeps its size, also where a loader has to complete it
    fs::remove_file(root.path("to_pod")).unwrap();
    drop(Datapath::open_or_load(&root, &Sizes::default()).unwrap());
    check();
}

fn too_small() {
    for (sizes, name) in
        [(Sizes { flows4: 1023, ..small() }, "flows4"), (Sizes { flows6: 1, ..small() }, "flows6")]
    {
        let told =
            Datapath::open_or_load(&PinRoot::new(pin_dir()), &sizes).unwrap_err().to_string();
        assert!(told.starts_with(&format!("make map {name}: ")), "{told}");
        assert!(told.ends_with("too few, it needs 1024 at least"), "{told}");
    }
}

const OWNER: u32 = 77;

fn registration(ifindex: u32) -> Registration {
    Registration {
        ifindex,
        owner: OWNER,
        startup: Startup::Hold,
        anti_spoofing: true,
        addresses: vec!["10.0.0.5".parse().unwrap(), "fd00::5".parse().unwrap()],
        mac: None,
        netns_cookie: 9,
        container_id: "c".into(),
        interface: "eth0".into(),
        host_interface: "host0".into(),
        network: "n".into(),
        pod: None,
        netns: "/run/netns/x".into(),
    }
}

fn full() {
    let sizes = Sizes { endpoints: 2, peers: 2, nets: 2, node_addrs: 2, ..small() };
    let datapath = Datapath::open_or_load(&root(), &sizes).unwrap();
    let maps = &datapath.maps;
    let addr = |n: u8| std::net::IpAddr::from([10, 0, 0, n]);
    for n in 1..=2 {
        maps.register(&registration(n.into())).unwrap();
        maps.set_peer(addr(n), 1).unwrap();
        maps.set_net((addr(n), 32), 1).unwrap();
        maps.add_node_addr(addr(n)).unwrap();
    }
    for (name, result) in [
        ("endpoints", maps.register(&registration(3))),
        ("peers4", maps.set_peer(addr(3), 1)),
        ("nets4", maps.set_net((addr(3), 32), 1)),
        ("node_addrs", maps.add_node_addr(addr(3))),
    ] {
        match result {
            Err(Error::Full { map, max_entries: 2 }) => assert_eq!(map, name),
            other => panic!("{name}: {other:?}"),
        }
    }
    maps.register(&registration(2)).unwrap();
    maps.set_peer(addr(2), 5).unwrap();
    assert_eq!(maps.registrations().unwrap().len(), 2);
}

fn maps() {
    let datapath = Datapath::open_or_load(&root(), &small()).unwrap();
    let maps = &datapath.maps;
    let (v4, v6) = ("10.1.2.3".parse().unwrap(), "fd00::3".parse().unwrap());
    for address in [v4, v6] {
        maps.set_peer(address, 3).unwrap();
        maps.add_node_addr(address).unwrap();
    }
    let nets = [(("10.0.0.0".parse().unwrap(), 8), 1), (("fd00::".parse().unwrap(), 8), 2)];
    for (net, class) in nets {
        maps.set_net(net, class).unwrap();
    }
    assert_eq!(maps.peers().unwrap(), [(v4, 3), (v6, 3)].into());
    assert_eq!(maps.nets().unwrap(), nets.into());
    assert_eq!(maps.node_addrs().unwrap(), [v4, v6].into());
    for address in [v4, v6] {
        maps.remove_peer(address).unwrap();
        maps.remove_peer(address).unwrap();
        maps.remove_node_addr(address).unwrap();
    }
    maps.remove_net(nets[0].0).unwrap();
    maps.remove_net(nets[0].0).unwrap();
    assert_eq!(maps.peers().unwrap().len() + maps.node_addrs().unwrap().len(), 0);
    assert_eq!(maps.nets().unwrap(), [nets[1]].into());

    let before = maps.control().epoch();
    maps.register(&registration(5)).unwrap();
    assert_ne!(maps.control().epoch(), before, "registering has flows judged again");
    assert_eq!(maps.registration(5).unwrap(), Some(registration(5)));
    assert_eq!(maps.registration(6).unwrap(), None);

    let policies: Vec<_> =
        (1..=3).map(|n| maps.new_policy_map(&[everything(n)]).unwrap()).collect();
    let batch: Vec<_> = policies.iter().enumerate().map(|(n, map)| (n as u32 + 5, map)).collect();
    maps.install_policy_maps(&batch).unwrap();
    maps.install_policy_maps(&[]).unwrap();
    let mut installed = maps.installed_policy_maps().unwrap();
    installed.sort_unstable();
    assert_eq!(installed, [5, 6, 7]);
    let reopened = maps.policy_map(6).unwrap().unwrap();
    assert_eq!(reopened.entries().unwrap(), [everything(2)]);
    maps.unregister(5).unwrap();
    maps.unregister(5).unwrap();
    assert_eq!(maps.registration(5).unwrap(), None);
    assert!(maps.policy_map(5).unwrap().is_none());
    maps.remove_policy_maps(&[6, 7, 8]).unwrap();
    assert_eq!(maps.installed_policy_maps().unwrap(), [0; 0]);
}

/// An entry that allows everything to the pod.
fn everything(owner: u32) -> (PolicyKey, PolicyValue) {
    let key = PolicyKey {
        prefixlen: POLICY_PREFIX_ANY,
        owner,
        class: 0,
        direction: Ingress as u8,
        protocol: 0,
        port: [0; 2],
    };
    (key, PolicyValue { rule: 1, verdict: Verdict::Allow as u8, flags: 0, pad: [0; 2], hits: 0 })
}

fn unloads() {
    let root = root();
    drop(Datapath::open_or_load(&root, &small()).unwrap());
    Datapath::unload(&root).unwrap();
    assert!(!root.dir().exists());
    Datapath::unload(&root).unwrap();
    assert!(matches!(Datapath::open(&root), Err(Error::NotLoaded { .. })));
}

/// One packet of a flow, either way.
fn send(datapath: &Datapath, ifindex: u32, direction: Direction) -> (i32, u64) {
    let frame = match direction {
        Ingress => packet::udp(1, 2).between("10.0.0.9", "10.0.0.5").frame(),
        Egress => packet::udp(2, 1).between("10.0.0.5", "10.0.0.9").frame(),
    };
    let context = Context { ifindex, ingress_ifindex: 0 };
    let of_flow = |datapath: &Datapath| {
        datapath.maps.counters().unwrap().get(direction, Reason::AllowFlow).packets
    };
    let before = of_flow(datapath);
    let action = datapath.test_run(direction, context, &frame, 1).unwrap().action;
    (action, of_flow(datapath) - before)
}

fn replaces() {
    let root = root();
    let datapath = Datapath::open_or_load(&root, &small()).unwrap();
    let veths = [Veth::new().unwrap(), Veth::new().unwrap()];
    let kinds = AttachMode::of_this_kernel().iter().cycle();
    for (veth, &mode) in veths.iter().zip(kinds.clone()) {
        datapath.maps.register(&registration(veth.ifindex)).unwrap();
        let policy = datapath.maps.new_policy_map(&[everything(77)]).unwrap();
        datapath.maps.install_policy_maps(&[(veth.ifindex, &policy)]).unwrap();
        datapath.attach(veth.ifindex, mode).unwrap();
        assert_eq!(send(&datapath, veth.ifindex, Ingress), (-1, 0));
    }

    let new = Datapath::replace_programs(&root, &small()).unwrap();
    assert_ne!(programs(&datapath), programs(&new));
    for (veth, mode) in veths.iter().zip(kinds) {
        assert_eq!(new.verify(veth.ifindex).unwrap().to_string(), mode.to_string());
        let old = datapath.verify(veth.ifindex).unwrap_err();
        assert!(matches!(old, Error::Attach { .. }), "{old}");
        assert_eq!(send(&new, veth.ifindex, Egress), (-1, 1), "the flow is known");
        new.detach(veth.ifindex).unwrap();
        veth.delete().unwrap();
    }
}

fn replaces_nothing() {
    let root = root();
    let datapath = Datapath::replace_programs(&root, &small()).unwrap();
    assert_eq!(programs(&datapath), programs(&Datapath::open(&root).unwrap()));
}

fn replaces_or_leaves() {
    for (name, mut wrong, field) in wrongs() {
        let root = root();
        drop(Datapath::open_or_load(&root, &small()).unwrap());
        let before = pins(&root);
        put(&root, name, &mut wrong);
        refused(Datapath::replace_programs(&root, &small()), name, field);
        assert_eq!(pins(&root), before, "{name} of another {field}");
    }
}

fn replaces_around_the_dead() {
    let root = root();
    let datapath = Datapath::open_or_load(&root, &small()).unwrap();
    let veths: Vec<_> = (0..3).map(|_| Veth::new().unwrap()).collect();
    let mode = AttachMode::of_this_kernel().last().copied().unwrap();
    for veth in &veths {
        datapath.maps.register(&registration(veth.ifindex)).unwrap();
        datapath.attach(veth.ifindex, mode).unwrap();
    }
    // its registration and its links' pins are still there
    veths[1].delete().unwrap();
    let new = Datapath::replace_programs(&root, &small()).unwrap();
    for veth in [&veths[0], &veths[2]] {
        new.verify(veth.ifindex).unwrap();
        new.detach(veth.ifindex).unwrap();
        veth.delete().unwrap();
    }
}
