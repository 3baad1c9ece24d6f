//! The count of verified instructions, where the kernel keeps it and where it only prints it.

use podgate_bpf::Datapath;

use crate::{root, small};

pub(crate) fn printed_and_kept() {
    let root = root();
    let datapath = Datapath::open_or_load(&root, &small()).unwrap();
    let printed = Datapath::count_verified(&root, &small()).unwrap();
    datapath.load_metered().unwrap();
    let sizes = datapath.program_sizes().unwrap();
    assert_eq!(sizes.len(), 4);
    for (name, kept) in sizes.into_iter().map(|(name, size)| (name, size.verified)) {
        // 0: a kernel before 5.16, which prints it all the same
        assert!(printed[name] > 10_000, "{printed:?}");
        assert!(kept == 0 || kept == printed[name], "{name}: {kept} kept, {printed:?}");
    }
}
