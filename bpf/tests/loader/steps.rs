//! What programs that read a class and a table compare.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use podgate_bpf::Datapath;

use crate::{everything, root, small};

/// A write that is not counted could be met half by a program that is held up between its two reads.
pub(crate) fn each_write_is_counted() {
    let root = root();
    let datapath = Datapath::open_or_load(&root, &small()).unwrap();
    let maps = &datapath.maps;
    let v4 = IpAddr::V4(Ipv4Addr::new(10, 1, 0, 1));
    let v6 = IpAddr::V6(Ipv6Addr::LOCALHOST);
    let table = maps.new_policy_map(&[everything(7)]).unwrap();
    let (key, value) = everything(8);
    let steps = maps.commit_steps().unwrap();
    // filling a map that no packet meets is no step
    assert_eq!(steps.counted(), 0);
    let writes: [&dyn Fn() -> podgate_bpf::Result<()>; 8] = [
        &|| maps.set_peer(v4, 5),
        &|| maps.remove_peer(v4),
        &|| maps.set_peer(v6, 5),
        &|| maps.set_net((v4, 16), 5),
        &|| maps.remove_net((v4, 16)),
        &|| maps.install_policy_maps(&[(1, &table)]),
        &|| table.set(&key, &value),
        &|| table.remove(&key),
    ];
    for (n, write) in (1..).zip(writes) {
        write().unwrap();
        assert_eq!(steps.counted(), n);
    }
    // another process's count goes on from there
    let again = Datapath::open_or_load(&root, &small()).unwrap();
    assert_eq!(again.maps.commit_steps().unwrap().counted(), 8);
}
