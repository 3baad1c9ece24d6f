//! What this kernel lacks that podgate can do without, and what follows from the lack.
//!
//! Each feature is probed; the kernel's version says nothing, as distributions backport.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use libbpf_rs::btf::{Btf, types};
use libbpf_rs::{MapHandle, MapType, libbpf_sys};

use crate::libbpf_log;
use crate::typed_map::errno;
use crate::{current_netns_cookie, sys};

/// Something that newer kernels have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Feature {
    /// TCX links at a device.
    Tcx,
    /// Updates of many entries of a hash of maps in one call.
    NestedBatches,
    /// A number of a network namespace that is never used again.
    NetnsCookie,
}

impl Feature {
    /// Every one, in the order in which people read them.
    pub const ALL: [Self; 3] = [Self::Tcx, Self::NestedBatches, Self::NetnsCookie];

    /// Its name in status, metrics and Events.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcx => "tcx",
            Self::NestedBatches => "nested-batches",
            Self::NetnsCookie => "netns-cookie",
        }
    }

    /// The first release of Linux that has it.
    pub fn since(self) -> &'static str {
        match self {
            Self::Tcx => "6.6",
            Self::NestedBatches => "5.19",
            Self::NetnsCookie => "5.14",
        }
    }

    /// What is different without it.
    pub fn without(self) -> &'static str {
        match self {
            Self::Tcx => {
                "gates are clsact filters; an interface whose ingress hook another qdisc holds (the bandwidth \
                 plugin's, before or after podgate in the chain) cannot be gated, and ADD fails by name"
            }
            Self::NestedBatches => {
                "pods that start together get their tables one after another, a few milliseconds each"
            }
            Self::NetnsCookie => {
                "a network namespace is told from a later one of the same path by its interfaces only"
            }
        }
    }

    /// Whether the running kernel has it. What cannot be probed, for lack of rights, counts as missing.
    pub fn is_present(self) -> bool {
        match self {
            Self::Tcx => sys::has_tcx(),
            Self::NestedBatches => has_nested_batches().unwrap_or(false),
            Self::NetnsCookie => current_netns_cookie() != 0,
        }
    }
}

/// Whether the running kernel knows TCX, by its BTF: for a process that may not make system calls of BPF. `None` if the
/// BTF cannot be read.
pub fn btf_has_tcx() -> Option<bool> {
    libbpf_log::reroute();
    let btf = Btf::from_vmlinux().ok()?;
    let attach_types = btf.type_by_name::<types::Enum<'_>>("bpf_attach_type")?;
    Some(attach_types.iter().any(|member| {
        member.name.is_some_and(|name| name.as_encoded_bytes() == b"BPF_TCX_INGRESS")
    }))
}

/// The running kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// As `uname -r` says it.
    pub release: String,
    /// What it lacks, of [`Feature::ALL`].
    pub missing: Vec<Feature>,
}

impl Kernel {
    /// Asks the running kernel. Needs the rights that loading programs needs.
    pub fn probe() -> Self {
        let missing = Feature::ALL.into_iter().filter(|feature| !feature.is_present()).collect();
        Self { release: release(), missing }
    }
}

/// The kernel's release, as `uname -r` says it.
pub fn release() -> String {
    nix::sys::utsname::uname()
        .map(|name| name.release().to_string_lossy().into_owned())
        .unwrap_or_else(|_| "of unknown release".into())
}

/// Asks by a batch of no entries, which a hash of maps takes or knows no such call.
fn has_nested_batches() -> io::Result<bool> {
    const WORD: u32 = size_of::<u32>() as u32;
    let options = |inner: u32| libbpf_sys::bpf_map_create_opts {
        sz: size_of::<libbpf_sys::bpf_map_create_opts>() as _,
        inner_map_fd: inner,
        ..Default::default()
    };
    let create = |kind, options| {
        MapHandle::create(kind, Some("pg_probe"), WORD, WORD, 1, &options).map_err(|e| errno(&e))
    };
    let inner = create(MapType::Array, options(0))?;
    let outer = create(MapType::HashOfMaps, options(inner.as_fd().as_raw_fd() as u32))?;
    match sys::update_nothing(outer.as_fd()) {
        Ok(()) => Ok(true),
        Err(e) if e.raw_os_error() == Some(sys::ENOTSUPP) => Ok(false),
        Err(e) => Err(e),
    }
}
