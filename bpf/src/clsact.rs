//! The filters of a gate on the clsact qdisc: made in front of all others, changed in place, told from others'.

use std::io;
use std::os::fd::BorrowedFd;

use libbpf_rs::{TcHook, TcHookBuilder};
use podgate_link::netlink::Netlink;

use crate::attach::{HOOKS, Hook, open_route};
use crate::filters::{self, Filter};
use crate::programs::Programs;
use crate::typed_map::errno;
use crate::{Error, Result, libbpf_log, sys};

/// The handles of podgate's filters: "pg" and the next number. Two, so that a new filter can be attached in front
/// before the old one is removed.
const FILTER_HANDLES: [u32; 2] = [0x7067, 0x7068];
/// The first priority there is.
const FILTER_PRIORITY: u32 = 1;

/// Attaches a filter at each hook, in front, and removes those of ours that stood there.
pub(crate) fn attach_clsact(route: &Netlink, ifindex: u32, programs: &Programs) -> Result<()> {
    libbpf_log::reroute();
    require_clsact(route, ifindex, "attach")?;
    for hook in &HOOKS {
        let fault = |e: libbpf_rs::Error| Error::Attach {
            verb: "attach",
            ifindex,
            reason: format!("clsact {}: {}", hook.program, refusal(route, ifindex, hook, &e)),
        };
        let old = our_filters(route, ifindex, hook).map_err(|e| Error::Attach {
            verb: "attach",
            ifindex,
            reason: format!("clsact {}: {e}", hook.program),
        })?;
        let free = FILTER_HANDLES.into_iter().find(|handle| !old.contains(handle));
        let handle = free.unwrap_or(FILTER_HANDLES[0]);
        let mut new = filter(programs.at(hook), ifindex, hook, handle);
        // Answers "exists" where the qdisc is there already, which libbpf-rs turns into Ok.
        new.create().map_err(fault)?;
        if free.is_none() {
            new.detach().map_err(fault)?;
        }
        // A new filter goes to the front of its priority; one that is replaced in place would stay where it is.
        match new.attach() {
            // Another process gates the same interface at this moment (a pod that is adopted while its ADD is
            // still under way): what it has attached must not be undone here.
            Err(e) if errno(&e).raw_os_error() == Some(nix::libc::EEXIST) => {
                if our_filters(route, ifindex, hook).is_ok_and(|found| found.contains(&handle)) {
                    continue;
                }
                return Err(fault(e));
            }
            attached => drop(attached.map_err(fault)?),
        }
        let old: Vec<_> = old.into_iter().filter(|old| *old != handle).collect();
        if !old.is_empty() {
            // A packet that had passed the new filter's position just before it was there, on a CPU that was
            // delayed, must still meet the old one: wait before that is removed.
            sys::wait_for_readers();
        }
        for handle in old {
            filter(programs.at(hook), ifindex, hook, handle).detach().map_err(fault)?;
        }
    }
    Ok(())
}

/// Whether a filter of ours is at the interface; also where no pin is left to open a [`Datapath`] by.
pub fn has_filters(ifindex: u32) -> Result<bool> {
    let route = &open_route(ifindex, "look at")?;
    for hook in &HOOKS {
        let found = our_filters(route, ifindex, hook).map_err(|e| Error::Attach {
            verb: "look at",
            ifindex,
            reason: e.to_string(),
        })?;
        if !found.is_empty() {
            return Ok(true);
        }
    }
    Ok(false)
}

pub(crate) fn filter(program: BorrowedFd<'_>, ifindex: u32, hook: &Hook, handle: u32) -> TcHook {
    TcHookBuilder::new(program)
        .ifindex(ifindex as i32)
        .handle(handle)
        .priority(FILTER_PRIORITY)
        .hook(hook.clsact)
}

/// Refuses an interface whose ingress hook another qdisc holds: filters for egress would land at ingress there.
pub(crate) fn require_clsact(route: &Netlink, ifindex: u32, verb: &'static str) -> Result<()> {
    let fault = |reason| Error::Attach { verb, ifindex, reason };
    match filters::ingress_qdisc(route, ifindex).map_err(|e| fault(e.to_string()))?.as_deref() {
        None | Some("clsact") => Ok(()),
        Some(kind) => Err(fault(format!(
            "clsact: there is a qdisc of kind {kind}, which has no egress hook (another plugin's, such as \
             bandwidth; TCX does not need one)"
        ))),
    }
}

/// Why a filter cannot be attached. Before kernel 6.6 a priority belongs to one protocol: another's filter there makes
/// the kernel answer EINVAL, which says nothing.
fn refusal(route: &Netlink, ifindex: u32, hook: &Hook, error: &libbpf_rs::Error) -> String {
    let error = errno(error);
    let held = || {
        let filters = filters::list(route, ifindex, hook.parent).unwrap_or_default();
        filters.iter().any(|filter| filter.priority == FILTER_PRIORITY && !is_ours(filter))
    };
    if error.raw_os_error() == Some(nix::libc::EINVAL) && held() {
        return format!(
            "{error}: another's filter for another protocol holds priority {FILTER_PRIORITY}, ahead of which no gate can \
             stand on this kernel (remove it, or move it to a later priority)"
        );
    }
    error.to_string()
}

pub(crate) fn is_ours(filter: &Filter) -> bool {
    filter.priority == FILTER_PRIORITY && FILTER_HANDLES.contains(&filter.handle)
}

/// The handles of our filters at a hook, in order. No such interface: none.
pub(crate) fn our_filters(route: &Netlink, ifindex: u32, hook: &Hook) -> io::Result<Vec<u32>> {
    match filters::list(route, ifindex, hook.parent) {
        Err(e) if e.raw_os_error() == Some(nix::libc::ENODEV) => Ok(Vec::new()),
        found => {
            Ok(found?.iter().filter(|filter| is_ours(filter)).map(|filter| filter.handle).collect())
        }
    }
}
