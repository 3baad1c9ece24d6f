//! What lies under `bpfRoot` and is not podgate's, and who may write there.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use libbpf_rs::{MapType, Program, libbpf_sys};
use podgate_bpf::trust::foreign;
use podgate_bpf::{Datapath, Error, PinRoot};

use super::{pin_dir, pins, put, root, small, wrong_map};

/// All ways to the programs, policyd's and the plugin's.
fn every_way(root: &PinRoot) -> [(&'static str, Result<Datapath, Error>); 5] {
    [
        ("open", Datapath::open(root)),
        ("open as needed", Datapath::open_as_needed(root)),
        ("open or load", Datapath::open_or_load(root, &small())),
        ("open as needed or load", Datapath::open_as_needed_or_load(root, &small())),
        ("open current", Datapath::open_current(root, &small())),
    ]
}

fn refused(root: &PinRoot, told: &[&str]) {
    for (way, opened) in every_way(root) {
        let error = match opened {
            // the plugin looks at a map when it needs it
            Ok(datapath) if way.contains("as needed") => match datapath.maps.peers() {
                Ok(_) => continue,
                Err(error) => error,
            },
            Ok(_) => panic!("{way}: taken"),
            Err(error) => error,
        };
        let error = error.to_string();
        for part in told {
            assert!(error.contains(part), "{way}: {error}");
        }
    }
}

fn loaded() -> PinRoot {
    let root = root();
    drop(Datapath::open_or_load(&root, &small()).unwrap());
    root
}

pub(super) fn other_kinds() {
    let spare = loaded();
    let program = || Program::fd_from_pinned_path(spare.path("from_pod")).unwrap();
    let pin = |fd: i32, path: &Path| {
        let path = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
        // SAFETY: the path is a live NUL-terminated string, the descriptor is open.
        assert_eq!(unsafe { libbpf_sys::bpf_obj_pin(fd, path.as_ptr()) }, 0);
    };
    type Put<'a> = Box<dyn Fn(&PinRoot) + 'a>;
    let cases: [(&str, &str, &str, Put<'_>); 4] = [
        (
            "peers4",
            "a program",
            "a map",
            Box::new(|root| {
                use std::os::fd::AsRawFd;
                pin(program().as_raw_fd(), &root.path("peers4"));
            }),
        ),
        (
            "from_pod",
            "a map",
            "a program",
            Box::new(|root| {
                put(root, "from_pod", &mut wrong_map(MapType::Hash, 4, 4, 4));
            }),
        ),
        (
            "peers4",
            "a directory",
            "a map",
            Box::new(|root| {
                fs::create_dir(root.path("peers4")).unwrap();
            }),
        ),
        (
            "peers4",
            "a symbolic link",
            "a map",
            Box::new(|root| {
                symlink(spare.path("peers4"), root.path("peers4")).unwrap();
            }),
        ),
    ];
    for (name, found, wanted, put) in &cases {
        let root = loaded();
        fs::remove_file(root.path(name)).unwrap();
        put(&root);
        let path = root.path(name).display().to_string();
        refused(&root, &[&path, &format!("it is {found}"), &format!("has {wanted}"), "Remove it"]);
    }
}

/// Of the same sizes, as another's may happen to be.
pub(super) fn others_maps() {
    let root = loaded();
    put(&root, "peers4", &mut wrong_map(MapType::Hash, 4, 4, 1 << 20));
    let told = Datapath::open_current(&root, &small()).unwrap_err();
    assert!(matches!(told, Error::Foreign { .. }), "{told}");
    assert!(told.to_string().contains("a map with the name \"wrong\""), "{told}");

    let root = loaded();
    let opts = libbpf_sys::bpf_map_create_opts {
        sz: size_of::<libbpf_sys::bpf_map_create_opts>() as _,
        ..Default::default()
    };
    let made = libbpf_rs::MapHandle::create(MapType::Hash, Some("peers4"), 4, 4, 64, &opts);
    put(&root, "peers4", &mut made.unwrap());
    match Datapath::open_current(&root, &small()).map(drop) {
        Err(Error::Mismatch { path, field: "flags", found: 0, wanted: 1 }) => {
            assert_eq!(path, root.path("peers4"));
        }
        other => panic!("taken: {other:?}"),
    }
}

pub(super) fn foreign_names() {
    let root = loaded();
    assert_eq!(foreign(&root).unwrap(), [] as [PathBuf; 0]);
    // another layout is none, nor are links of interfaces
    fs::create_dir(root.root().join("v9")).unwrap();
    let strange =
        [root.root().join("theirs"), root.dir().join("links/eth0"), root.dir().join("somebody")];
    for path in &strange {
        fs::create_dir(path).unwrap();
    }
    let mut expected = strange.to_vec();
    expected.sort();
    assert_eq!(foreign(&root).unwrap(), expected);
    // named, not in the way
    drop(Datapath::open_current(&root, &small()).unwrap());
    assert!(strange.iter().all(|path| path.exists()));
}

pub(super) fn writable_by_others() {
    let parent = pin_dir();
    let root = PinRoot::new(parent.join("podgate"));
    fs::create_dir(&parent).unwrap();
    fs::set_permissions(&parent, Permissions::from_mode(0o755)).unwrap();
    drop(Datapath::open_or_load(&root, &small()).unwrap());
    let dir = root.dir();
    let links = dir.join("links");
    for path in [root.root(), &dir, &links] {
        for (mode, owner) in [(0o777, 0), (0o720, 0), (0o702, 0), (0o1777, 0), (0o700, 1000)] {
            fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
            chown(path, Some(owner), Some(0)).unwrap();
            let owned = format!("owner {owner}, mode {mode:04o}");
            refused(&root, &[&path.display().to_string(), "others than root", &owned, "chmod 700"]);
        }
        fs::set_permissions(path, Permissions::from_mode(0o700)).unwrap();
        chown(path, Some(0), Some(0)).unwrap();
        for (way, opened) in every_way(&root) {
            opened.map(drop).unwrap_or_else(|e| panic!("{way}: {e}"));
        }
    }
    // what is in a directory with the sticky bit is safe, as in a BPF file system's root
    for (mode, fine) in [(0o1777, true), (0o777, false), (0o755, true)] {
        fs::set_permissions(&parent, Permissions::from_mode(mode)).unwrap();
        if fine {
            drop(Datapath::open(&root).unwrap());
        } else {
            refused(&root, &[&parent.display().to_string(), "others than root"]);
        }
    }
}

/// Somebody has been there before the first load.
pub(super) fn prepared_by_others() {
    let bpf_root = pin_dir();
    let root = PinRoot::new(&bpf_root);
    fs::create_dir(&bpf_root).unwrap();
    chown(&bpf_root, Some(1000), Some(1000)).unwrap();
    let told = Datapath::open_or_load(&root, &small()).unwrap_err();
    assert!(told.to_string().contains("owner 1000"), "{told}");
    assert_eq!(fs::read_dir(&bpf_root).unwrap().count(), 0, "nothing is made");
    chown(&bpf_root, Some(0), Some(0)).unwrap();
    fs::set_permissions(&bpf_root, Permissions::from_mode(0o755)).unwrap();
    drop(Datapath::open_or_load(&root, &small()).unwrap());
    assert_eq!(pins(&root).len(), 32);
}
