//! The contract between podgate's BPF programs and user space, and everything that touches the kernel's
//! BPF side: byte layouts, pins, typed maps, loading, attaching, events. The only crate with `unsafe`.
//!
//! ```text
//!   plugin  -- Datapath::open_or_load, Maps::register, Datapath::attach -->  pins under <bpfRoot>/v2
//!   policyd -- Datapath::open_or_load, Maps::{policies, peers, nets, ..}, Control::bump_epoch, Events -->  the same pins
//! ```

pub mod abi;
mod accounts;
pub mod attach;
pub mod clock;
pub mod clsact;
mod control;
pub mod endpoint;
pub mod error;
pub mod events;
pub mod features;
mod filters;
pub mod flow_table;
pub mod flow_table_repair;
pub mod handover;
mod libbpf_log;
pub mod limits;
pub mod loader;
pub mod maps;
pub mod open_count;
pub mod pins;
mod policy_map;
mod programs;
mod record;
mod registration;
pub mod seeding;
pub mod services;
pub mod shaping;
mod sys;
pub mod testrun;
pub mod timelimit;
mod traffic;
pub mod trust;
mod typed_map;
mod verifier;

pub use error::{Error, Obstacle, Result};
pub use loader::Datapath;
pub use pins::PinRoot;
pub use sys::ProgramSize;

use std::os::fd::AsFd;

/// The kernel's number of the calling thread's network namespace, never used twice; 0 where it has none (before 5.14).
pub fn current_netns_cookie() -> u64 {
    std::os::unix::net::UnixDatagram::unbound()
        .and_then(|socket| sys::netns_cookie(socket.as_fd()))
        .unwrap_or(0)
}
