//! Standing the gate at an interface: TCX links or clsact filters, always first in order.
//!
//! `from_pod` sits at TC ingress of the host veth, `to_pod` at TC egress. Our programs answer "next", so
//! whatever stands behind them still runs; whatever stood ahead could let packets past us, so being first is
//! part of being attached, and [`Gate::verify`] says so.

use std::fmt;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::str::FromStr;

use libbpf_rs::{TC_EGRESS, TC_INGRESS, TcAttachPoint, TcHook, TcHookBuilder};

use crate::filters::Filter;
use crate::loader::reroute_libbpf_log;
use crate::netlink::Netlink;
use crate::pins::{FROM_POD, TO_POD};
use crate::typed::errno;
use crate::{Error, Gate, Result, filters, sys};

/// How to attach (`attach` of the network configuration).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AttachMode {
    /// See [`Gate::attach`].
    #[default]
    Auto,
    /// TCX links; kernel 6.6.
    Tcx,
    /// Filters on the clsact qdisc.
    Clsact,
}

impl FromStr for AttachMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "tcx" => Ok(Self::Tcx),
            "clsact" => Ok(Self::Clsact),
            other => Err(format!("unknown attach mode {other:?}: auto, tcx or clsact")),
        }
    }
}

impl fmt::Display for AttachMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
        })
    }
}

/// How a gate is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attached {
    /// By TCX links.
    Tcx,
    /// By clsact filters.
    Clsact,
}

impl fmt::Display for Attached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
        })
    }
}

/// The numbers of our filters, so that nobody else's is taken for ours: "pg" and the next. There are two so that
/// a new filter can stand in front before the old one goes.
const FILTER_HANDLES: [u32; 2] = [0x7067, 0x7068];
/// The first priority there is.
const FILTER_PRIORITY: u32 = 1;

/// One of the two hooks of an interface.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hook {
    pub(crate) program: &'static str,
    pub(crate) tcx: u32,
    clsact: TcAttachPoint,
    /// Parent of its filters (TC_H_CLSACT and TC_H_MIN_INGRESS or TC_H_MIN_EGRESS of pkt_sched.h).
    parent: u32,
}

pub(crate) const HOOKS: [Hook; 2] = [
    Hook { program: FROM_POD, tcx: sys::TCX_INGRESS, clsact: TC_INGRESS, parent: 0xffff_fff2 },
    Hook { program: TO_POD, tcx: sys::TCX_EGRESS, clsact: TC_EGRESS, parent: 0xffff_fff3 },
];

impl Gate {
    pub(crate) fn program(&self, hook: &Hook) -> BorrowedFd<'_> {
        if hook.program == FROM_POD { self.from_pod.as_fd() } else { self.to_pod.as_fd() }
    }

    /// Attaches both programs, first in order; an interface that has its gate keeps it. If one cannot be
    /// attached, neither stays.
    ///
    /// `Auto` is clsact where it can be first, else TCX: somebody's TCX programs run before any filter, a plain
    /// ingress qdisc (the bandwidth plugin's) leaves no room for clsact, and another's filter may hold the
    /// first priority. Where both would do, clsact attaches a hundred times quicker: two TCX links wait for two RCU
    /// grace periods with the RTNL lock held, for every pod in turn (27 ms against 0.2 where it was tried).
    pub fn attach(&self, ifindex: u32, mode: AttachMode) -> Result<Attached> {
        let route = open_route(ifindex, "attach")?;
        if let Ok(attached) = self.verify_over(&route, ifindex) {
            let wanted = match mode {
                AttachMode::Auto => attached,
                AttachMode::Tcx => Attached::Tcx,
                AttachMode::Clsact => Attached::Clsact,
            };
            if attached == wanted {
                return Ok(attached);
            }
        }
        match mode {
            AttachMode::Tcx => self.attach_as(&route, ifindex, Attached::Tcx),
            AttachMode::Clsact => self.attach_as(&route, ifindex, Attached::Clsact),
            AttachMode::Auto if has_foreign_tcx(self, ifindex)? => {
                self.attach_as(&route, ifindex, Attached::Tcx)
            }
            AttachMode::Auto => {
                self.attach_as(&route, ifindex, Attached::Clsact).or_else(|clsact| {
                    self.attach_as(&route, ifindex, Attached::Tcx).map_err(|tcx| Error::Attach {
                        verb: "attach",
                        ifindex,
                        reason: format!("{clsact}; {tcx}"),
                    })
                })
            }
        }
    }

    fn attach_as(&self, route: &Netlink, ifindex: u32, kind: Attached) -> Result<Attached> {
        let stood = self.is_at_over(route, ifindex);
        let done = match kind {
            Attached::Tcx => self.attach_tcx(route, ifindex, stood),
            Attached::Clsact => self.attach_clsact(route, ifindex),
        };
        if let Err(error) = done {
            // What stood before stays, as it is: half a gate is better than none.
            if !stood && let Err(also) = self.detach(ifindex) {
                tracing::warn!(ifindex, error = %also, "cannot undo a half-attached gate");
            }
            return Err(error);
        }
        // The kind that was there before, if it was the other, goes last: a gate is never missing.
        match kind {
            Attached::Tcx => self.detach_clsact(route, ifindex)?,
            Attached::Clsact => self.detach_tcx(ifindex)?,
        }
        Ok(kind)
    }

    /// Whether anything of ours is at the interface, in whatever state.
    pub fn is_at(&self, ifindex: u32) -> bool {
        open_route(ifindex, "look at").is_ok_and(|route| self.is_at_over(&route, ifindex))
    }

    fn is_at_over(&self, route: &Netlink, ifindex: u32) -> bool {
        HOOKS.iter().any(|hook| {
            sys::open_pin(&self.root.link(ifindex, hook.program)).is_ok()
                || our_filters(route, ifindex, hook).is_ok_and(|handles| !handles.is_empty())
        })
    }

    fn attach_tcx(&self, route: &Netlink, ifindex: u32, stood: bool) -> Result<()> {
        // A link cannot be moved to the front: it is cut and made anew. Filters stand in meanwhile.
        if stood && let Err(error) = self.attach_clsact(route, ifindex) {
            tracing::warn!(ifindex, %error, "gate is open while its links are renewed");
        }
        HOOKS.iter().try_for_each(|hook| self.attach_tcx_hook(ifindex, hook))
    }

    fn attach_tcx_hook(&self, ifindex: u32, hook: &Hook) -> Result<()> {
        let fault = |e: io::Error| {
            let reason = match e.raw_os_error() {
                Some(nix::libc::EINVAL) => {
                    format!("TCX {}: this kernel has none (6.6 or later does)", hook.program)
                }
                _ => format!("TCX {}: {e}", hook.program),
            };
            Error::Attach { verb: "attach", ifindex, reason }
        };
        let pin = self.root.link(ifindex, hook.program);
        // A link that is dead, or no longer first, makes room: a second one of the same program is EEXIST.
        if let Ok(link) = sys::open_pin(&pin) {
            let _ = sys::link_detach(link.as_fd());
            fs::remove_file(&pin).map_err(fault)?;
        }
        let link = sys::tcx_attach_first(self.program(hook), ifindex, hook.tcx).map_err(fault)?;
        sys::pin(link.as_fd(), &pin).map_err(fault)
    }

    fn attach_clsact(&self, route: &Netlink, ifindex: u32) -> Result<()> {
        reroute_libbpf_log();
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
            let mut new = self.filter(ifindex, hook, handle);
            // Answers "exists" where the qdisc is there already, which libbpf-rs turns into Ok.
            new.create().map_err(fault)?;
            if free.is_none() {
                new.detach().map_err(fault)?;
            }
            // A new filter goes to the front of its priority; one replaced in place would stay behind others.
            match new.attach() {
                // Another process gates the same interface at this moment (a pod that is adopted while its ADD is
                // still under way): what it has attached must not be undone here.
                Err(e) if errno(&e).raw_os_error() == Some(nix::libc::EEXIST) => {
                    if our_filters(route, ifindex, hook).is_ok_and(|found| found.contains(&handle))
                    {
                        continue;
                    }
                    return Err(fault(e));
                }
                attached => drop(attached.map_err(fault)?),
            }
            let old: Vec<_> = old.into_iter().filter(|old| *old != handle).collect();
            if !old.is_empty() {
                // A packet that has passed the new filter's place just before it was there, and whose CPU was held
                // up, must have met the old one before that goes: else it meets neither.
                sys::wait_for_readers();
            }
            for handle in old {
                self.filter(ifindex, hook, handle).detach().map_err(fault)?;
            }
        }
        Ok(())
    }

    fn filter(&self, ifindex: u32, hook: &Hook, handle: u32) -> TcHook {
        filter(self.program(hook), ifindex, hook, handle)
    }

    /// Removes whatever of ours is at the interface, of either kind. Nothing there, or no such interface,
    /// is fine.
    pub fn detach(&self, ifindex: u32) -> Result<()> {
        let tcx = self.detach_tcx(ifindex);
        self.detach_clsact(&open_route(ifindex, "detach")?, ifindex)?;
        tcx
    }

    fn detach_tcx(&self, ifindex: u32) -> Result<()> {
        for hook in &HOOKS {
            let pin = self.root.link(ifindex, hook.program);
            let link = match sys::open_pin(&pin) {
                Ok(link) => link,
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => return Err(Error::io("open pin", pin.display().to_string(), e)),
            };
            // The pin outlives the device; detaching a dead link is an error without meaning.
            let _ = sys::link_detach(link.as_fd());
            fs::remove_file(&pin)
                .map_err(|e| Error::io("remove pin", pin.display().to_string(), e))?;
        }
        Ok(())
    }

    fn detach_clsact(&self, route: &Netlink, ifindex: u32) -> Result<()> {
        reroute_libbpf_log();
        for hook in &HOOKS {
            let fault = |reason: String| Error::Attach {
                verb: "detach",
                ifindex,
                reason: format!("clsact {}: {reason}", hook.program),
            };
            // The qdisc itself stays: others may have filters on it.
            for handle in our_filters(route, ifindex, hook).map_err(|e| fault(e.to_string()))? {
                let mut filter = self.filter(ifindex, hook, handle);
                filter.detach().map_err(|e| fault(errno(&e).to_string()))?;
            }
        }
        Ok(())
    }

    /// The interfaces that pinned TCX links were made for, gone ones too.
    pub fn linked(&self) -> Result<Vec<u32>> {
        let dir = self.root.dir().join("links");
        let fault = |e| Error::io("read", dir.display().to_string(), e);
        let mut found = Vec::new();
        for entry in fs::read_dir(&dir).map_err(fault)? {
            let name = entry.map_err(fault)?.file_name();
            let number =
                name.to_str().and_then(|name| name.split_once('-')).map(|(n, _)| n.parse::<u32>());
            found.extend(number.and_then(Result::ok));
        }
        Ok(found)
    }

    /// How the gate of an interface is attached, or what is wrong with it: a program that is missing, not ours
    /// or not the first of its hook.
    pub fn verify(&self, ifindex: u32) -> Result<Attached> {
        self.verify_over(&open_route(ifindex, "verify")?, ifindex)
    }

    fn verify_over(&self, route: &Netlink, ifindex: u32) -> Result<Attached> {
        let fault = |reason: String| Error::Attach { verb: "verify", ifindex, reason };
        let io_fault = |e: io::Error| fault(e.to_string());
        let mut kinds = Vec::with_capacity(2);
        for hook in &HOOKS {
            let name = hook.program;
            let ours = sys::program_id(self.program(hook)).map_err(io_fault)?;
            let tcx = match sys::tcx_programs(ifindex, hook.tcx) {
                Err(e) if e.raw_os_error() == Some(nix::libc::ENODEV) => {
                    return Err(fault("no such interface".into()));
                }
                programs => programs.map_err(io_fault)?,
            };
            if let Some(&first) = tcx.first() {
                if first == ours {
                    kinds.push(Attached::Tcx);
                    continue;
                }
                let place = if tcx.contains(&ours) { "behind" } else { "missing, and there is" };
                return Err(fault(format!("{name} is {place} TCX program {first}")));
            }
            let filters = filters::list(route, ifindex, hook.parent).map_err(io_fault)?;
            let Some(first) = filters.first() else {
                return Err(fault(format!("{name} is not attached")));
            };
            require_clsact(route, ifindex, "verify")?;
            if !is_ours(first) {
                return Err(fault(format!(
                    "{name} is not the first filter: that is priority {} handle {:#x}",
                    first.priority, first.handle
                )));
            }
            if self.filter_program(ifindex, hook, first.handle)? != ours {
                return Err(fault(format!("{name} is not this build's program")));
            }
            kinds.push(Attached::Clsact);
        }
        if kinds[0] == kinds[1] {
            Ok(kinds[0])
        } else {
            Err(fault("its two hooks differ in kind".into()))
        }
    }

    fn filter_program(&self, ifindex: u32, hook: &Hook, handle: u32) -> Result<u32> {
        self.filter(ifindex, hook, handle).query().map_err(|e| Error::Attach {
            verb: "verify",
            ifindex,
            reason: errno(&e).to_string(),
        })
    }

    /// Puts this build's programs into a gate that stands: links are updated, filters replaced, in place.
    pub(crate) fn renew(&self, ifindex: u32) -> Result<()> {
        let route = &open_route(ifindex, "renew")?;
        for hook in &HOOKS {
            let fault = |reason: String| Error::Attach {
                verb: "renew",
                ifindex,
                reason: format!("{}: {reason}", hook.program),
            };
            if let Ok(link) = sys::open_pin(&self.root.link(ifindex, hook.program)) {
                sys::link_update(link.as_fd(), self.program(hook))
                    .map_err(|e| fault(e.to_string()))?;
            }
            for handle in our_filters(route, ifindex, hook).map_err(|e| fault(e.to_string()))? {
                let mut filter = self.filter(ifindex, hook, handle);
                filter.replace(true).attach().map_err(|e| fault(errno(&e).to_string()))?;
            }
        }
        Ok(())
    }
}

/// Whether a filter of ours is at the interface; also where no pin is left to open a [`Gate`] by.
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

pub(crate) fn open_route(ifindex: u32, verb: &'static str) -> Result<Netlink> {
    filters::open().map_err(|e| Error::Attach { verb, ifindex, reason: e.to_string() })
}

/// Refuses an interface whose ingress hook another qdisc holds: filters for egress would land at ingress there.
fn require_clsact(route: &Netlink, ifindex: u32, verb: &'static str) -> Result<()> {
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

fn is_ours(filter: &Filter) -> bool {
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

/// Whether somebody else's TCX program is at the interface.
fn has_foreign_tcx(gate: &Gate, ifindex: u32) -> Result<bool> {
    let fault = |e: io::Error| Error::Attach { verb: "attach", ifindex, reason: e.to_string() };
    for hook in &HOOKS {
        let ours = sys::program_id(gate.program(hook)).map_err(fault)?;
        if sys::tcx_programs(ifindex, hook.tcx).map_err(fault)?.iter().any(|&id| id != ours) {
            return Ok(true);
        }
    }
    Ok(false)
}

impl Gate {
    /// The program descriptors, for BPF_PROG_TEST_RUN: (from_pod, to_pod).
    pub fn programs(&self) -> (&OwnedFd, &OwnedFd) {
        (&self.from_pod, &self.to_pod)
    }
}
