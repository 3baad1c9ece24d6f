//! The contract between podgate's BPF programs and user space, and everything that touches the kernel's
//! BPF side: byte layouts, pins, typed maps, loading, attaching, events. The only crate with `unsafe`.
//!
//! ```text
//!   plugin  -- Gate::open_or_load, Maps::register, Gate::attach -->  pins under <bpfRoot>/v2
//!   policyd -- Gate::open_or_load, Maps::{policies, peers, nets, ..}, Control::bump_epoch, Events -->  the same pins
//! ```
//!
//! [`handshake`] is the one line that plugin and daemon exchange about a registration.

pub mod abi;
pub mod attach;
pub mod clock;
mod control;
pub mod error;
pub mod events;
pub mod features;
mod filters;
pub mod flow_table;
pub mod gating;
pub mod handover;
pub mod handshake;
pub mod hostlink;
pub mod loader;
pub mod maps;
pub mod mending;
pub mod netlink;
pub mod netns;
pub mod pins;
mod record;
mod registration;
pub mod seeding;
pub mod services;
mod sys;
pub mod testrun;
pub mod timelimit;
pub mod trust;
mod typed;
mod verifier;

pub use error::{Error, Result};
pub use loader::Gate;
pub use pins::PinRoot;
pub use sys::ProgramSize;

use std::os::fd::AsFd;

/// The kernel's number of the calling thread's network namespace, never used twice; 0 where it has none (before 5.14).
pub fn current_netns_cookie() -> u64 {
    std::os::unix::net::UnixDatagram::unbound()
        .and_then(|socket| sys::netns_cookie(socket.as_fd()))
        .unwrap_or(0)
}
