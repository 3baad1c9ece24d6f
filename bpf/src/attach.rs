//! Attaching the gate to an interface: TCX links or clsact filters, always first in order.
//!
//! `from_pod` is attached at TC ingress of the host veth, `to_pod` at TC egress. To allow, the programs answer
//! "next", so that those after them still run; a program before them could let packets past, so being first is part
//! of being attached, and [`Datapath::verify`] checks it.

use std::fmt;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::str::FromStr;

use libbpf_rs::{TC_EGRESS, TC_INGRESS, TcAttachPoint, TcHook};
use podgate_link::netlink::Netlink;

use crate::abi::{Direction, LimitsFlag};
use crate::clsact::{attach_clsact, filter, is_ours, our_filters, require_clsact};
use crate::features::Feature;
use crate::libbpf_log;
use crate::pins::{FROM_POD, TO_POD};
use crate::programs::Programs;
use crate::typed_map::errno;
use crate::{Datapath, Error, Result, filters, shaping, sys};

/// How to attach (`attach` of the network configuration).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AttachMode {
    /// See [`Datapath::attach`].
    #[default]
    Auto,
    /// TCX links; kernel 6.6.
    Tcx,
    /// Filters on the clsact qdisc.
    Clsact,
}

impl AttachMode {
    /// What can be asked for by name on the running kernel.
    pub fn of_this_kernel() -> &'static [Self] {
        if Feature::Tcx.is_present() { &[Self::Clsact, Self::Tcx] } else { &[Self::Clsact] }
    }
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

/// One of the two hooks of an interface.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hook {
    /// Names the hook and its TCX link's pin: the program of the plain pair that stands there.
    pub(crate) program: &'static str,
    pub(crate) direction: Direction,
    pub(crate) tcx: u32,
    pub(crate) clsact: TcAttachPoint,
    /// Parent of its filters (TC_H_CLSACT and TC_H_MIN_INGRESS or TC_H_MIN_EGRESS of pkt_sched.h).
    pub(crate) parent: u32,
}

pub(crate) const HOOKS: [Hook; 2] = [
    Hook {
        program: FROM_POD,
        direction: Direction::Egress,
        tcx: sys::TCX_INGRESS,
        clsact: TC_INGRESS,
        parent: 0xffff_fff2,
    },
    Hook {
        program: TO_POD,
        direction: Direction::Ingress,
        tcx: sys::TCX_EGRESS,
        clsact: TC_EGRESS,
        parent: 0xffff_fff3,
    },
];

impl Programs {
    pub(crate) fn at(&self, hook: &Hook) -> BorrowedFd<'_> {
        self.judging(hook.direction)
    }
}

impl Datapath {
    /// Attaches both programs, first in order. An interface that has its gate keeps it. If one program cannot be
    /// attached, neither stays.
    ///
    /// `Auto` is clsact where it can be first, else TCX: TCX programs of others run before any filter, a plain
    /// ingress qdisc (the bandwidth plugin's) leaves no room for clsact, and a filter of another program may hold the
    /// first priority. Where both work, clsact attaches a hundred times quicker: two TCX links wait for two RCU grace
    /// periods with the RTNL lock held, for every pod in turn (measured 27 ms against 0.2).
    ///
    /// A pod with limits gets the metered pair, which is loaded if it has to be: [`Error::Metered`] where the kernel does not
    /// take it. A gate that runs the other pair, or another build's, changes over in place.
    pub fn attach(&self, ifindex: u32, mode: AttachMode) -> Result<Attached> {
        let route = open_route(ifindex, "attach")?;
        if self.limits_of(ifindex)?.is_some() {
            self.load_metered()?;
        }
        let programs = self.programs_for("attach", ifindex)?;
        let standing = self.verify_over(&route, ifindex).or_else(|_| {
            self.change_programs_over(&route, ifindex, programs)?;
            self.verify_over(&route, ifindex)
        });
        if let Ok(attached) = standing {
            let wanted = match mode {
                AttachMode::Auto => attached,
                AttachMode::Tcx => Attached::Tcx,
                AttachMode::Clsact => Attached::Clsact,
            };
            if attached == wanted {
                return Ok(attached);
            }
        }
        let attach_as = |kind| self.attach_as(&route, ifindex, programs, kind);
        match mode {
            AttachMode::Tcx => attach_as(Attached::Tcx),
            AttachMode::Clsact => attach_as(Attached::Clsact),
            AttachMode::Auto if self.has_foreign_tcx(ifindex)? => attach_as(Attached::Tcx),
            AttachMode::Auto => attach_as(Attached::Clsact).or_else(|clsact| {
                attach_as(Attached::Tcx).map_err(|tcx| Error::Attach {
                    verb: "attach",
                    ifindex,
                    reason: format!("{clsact}; {tcx}"),
                })
            }),
        }
    }

    fn attach_as(
        &self,
        route: &Netlink,
        ifindex: u32,
        programs: &Programs,
        kind: Attached,
    ) -> Result<Attached> {
        let stood = self.is_at_over(route, ifindex);
        let done = match kind {
            Attached::Tcx => self.attach_tcx(route, ifindex, programs, stood),
            Attached::Clsact => attach_clsact(route, ifindex, programs),
        };
        if let Err(error) = done {
            // What stood before stays, as it is: half a gate is better than none.
            if !stood && let Err(also) = self.detach(ifindex) {
                tracing::warn!(ifindex, error = %also, "cannot undo a half-attached gate");
            }
            return Err(error);
        }
        // An earlier gate of the other kind is removed last, so that there is a gate at each moment.
        match kind {
            Attached::Tcx => self.detach_clsact(route, ifindex)?,
            Attached::Clsact => self.detach_tcx(ifindex)?,
        }
        Ok(kind)
    }

    /// Whether anything of ours is at the interface, in whatever state.
    pub fn is_attached(&self, ifindex: u32) -> bool {
        open_route(ifindex, "look at").is_ok_and(|route| self.is_at_over(&route, ifindex))
    }

    fn is_at_over(&self, route: &Netlink, ifindex: u32) -> bool {
        HOOKS.iter().any(|hook| {
            sys::open_pin(&self.root.link(ifindex, hook.program)).is_ok()
                || our_filters(route, ifindex, hook).is_ok_and(|handles| !handles.is_empty())
        })
    }

    fn attach_tcx(
        &self,
        route: &Netlink,
        ifindex: u32,
        programs: &Programs,
        stood: bool,
    ) -> Result<()> {
        // A link cannot be moved to the front: it is removed and made again. Filters are the gate meanwhile.
        if stood && let Err(error) = attach_clsact(route, ifindex, programs) {
            tracing::warn!(ifindex, %error, "gate is open while its links are renewed");
        }
        HOOKS.iter().try_for_each(|hook| self.attach_tcx_hook(ifindex, programs, hook))
    }

    fn attach_tcx_hook(&self, ifindex: u32, programs: &Programs, hook: &Hook) -> Result<()> {
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
        let link = sys::tcx_attach_first(programs.at(hook), ifindex, hook.tcx).map_err(fault)?;
        sys::pin(link.as_fd(), &pin).map_err(fault)
    }

    /// A filter to be asked about or removed, for which its program does not matter.
    fn filter(&self, ifindex: u32, hook: &Hook, handle: u32) -> TcHook {
        filter(self.plain.at(hook), ifindex, hook, handle)
    }

    /// Removes whatever of ours is at the interface, of either kind, and the qdisc if limits needed one. Nothing there, or no
    /// such interface, is fine.
    pub fn detach(&self, ifindex: u32) -> Result<()> {
        if self.limits_of(ifindex)?.is_some_and(|found| found.flags & LimitsFlag::Shape as u8 != 0)
        {
            shaping::remove_fq(ifindex)?;
        }
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
        libbpf_log::reroute();
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

    /// Interface numbers of all pinned TCX links, also of interfaces that are gone.
    pub fn linked_interfaces(&self) -> Result<Vec<u32>> {
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

    /// How the gate of an interface is attached, or what is wrong with it: a program that is missing, not ours, not the
    /// first of its hook, or at a pod with limits not one for such pods.
    pub fn verify(&self, ifindex: u32) -> Result<Attached> {
        self.verify_over(&open_route(ifindex, "verify")?, ifindex)
    }

    fn verify_over(&self, route: &Netlink, ifindex: u32) -> Result<Attached> {
        let fault = |reason: String| Error::Attach { verb: "verify", ifindex, reason };
        let io_fault = |e: io::Error| fault(e.to_string());
        let programs = self.programs_for("verify", ifindex)?;
        // see set_metered: it may be ahead of the limits, or behind them
        let also = self.metered_if_loaded()?;
        let mut kinds = Vec::with_capacity(2);
        for hook in &HOOKS {
            let name = programs.name(hook.direction);
            let id = |programs: &Programs| sys::program_id(programs.at(hook)).map_err(io_fault);
            let ours = [Some(id(programs)?), also.map(id).transpose()?];
            let is_ours_id = |id: &u32| ours.contains(&Some(*id));
            let tcx = match sys::tcx_programs(ifindex, hook.tcx) {
                Err(e) if e.raw_os_error() == Some(nix::libc::ENODEV) => {
                    return Err(fault("no such interface".into()));
                }
                programs => programs.map_err(io_fault)?,
            };
            if let Some(&first) = tcx.first() {
                if is_ours_id(&first) {
                    kinds.push(Attached::Tcx);
                    continue;
                }
                let behind = tcx.iter().any(is_ours_id);
                let place = if behind { "behind" } else { "missing, and there is" };
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
            let standing = self.filter_program(ifindex, hook, first.handle)?;
            if standing == id(&self.plain)? && programs.name(hook.direction) != hook.program {
                return Err(fault(format!("{name} is missing: {} is there", hook.program)));
            }
            if !is_ours_id(&standing) {
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

    /// Replaces the programs of an attached gate by this build's, of the pair that its pod needs.
    pub(crate) fn renew(&self, ifindex: u32) -> Result<()> {
        self.change_programs(ifindex, self.programs_for("renew", ifindex)?)
    }

    pub(crate) fn change_programs(&self, ifindex: u32, programs: &Programs) -> Result<()> {
        self.change_programs_over(&open_route(ifindex, "renew")?, ifindex, programs)
    }

    /// Links are updated, filters replaced, in place.
    fn change_programs_over(
        &self,
        route: &Netlink,
        ifindex: u32,
        programs: &Programs,
    ) -> Result<()> {
        for hook in &HOOKS {
            let fault = |reason: String| Error::Attach {
                verb: "renew",
                ifindex,
                reason: format!("{}: {reason}", hook.program),
            };
            if let Ok(link) = sys::open_pin(&self.root.link(ifindex, hook.program)) {
                sys::link_update(link.as_fd(), programs.at(hook))
                    .map_err(|e| fault(e.to_string()))?;
            }
            for handle in our_filters(route, ifindex, hook).map_err(|e| fault(e.to_string()))? {
                let mut standing = filter(programs.at(hook), ifindex, hook, handle);
                standing.replace(true).attach().map_err(|e| fault(errno(&e).to_string()))?;
            }
        }
        Ok(())
    }

    /// Whether the gate of an interface runs the metered pair, at both hooks.
    pub fn is_metered(&self, ifindex: u32) -> Result<bool> {
        let fault =
            |e: io::Error| Error::Attach { verb: "look at", ifindex, reason: e.to_string() };
        let Some(metered) = self.metered_if_loaded()? else { return Ok(false) };
        let route = open_route(ifindex, "look at")?;
        for hook in &HOOKS {
            let wanted = sys::program_id(metered.at(hook)).map_err(fault)?;
            let runs = match sys::tcx_programs(ifindex, hook.tcx) {
                Err(e) if e.raw_os_error() == Some(nix::libc::ENODEV) => false,
                programs => programs.map_err(fault)?.contains(&wanted),
            };
            let mut filters = our_filters(&route, ifindex, hook).map_err(fault)?.into_iter();
            let filter = |handle| self.filter_program(ifindex, hook, handle).ok() == Some(wanted);
            if !runs && !filters.any(filter) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether a TCX program that is not podgate's is at the interface.
    fn has_foreign_tcx(&self, ifindex: u32) -> Result<bool> {
        let fault = |e: io::Error| Error::Attach { verb: "attach", ifindex, reason: e.to_string() };
        let pairs = [Some(&self.plain), self.metered_if_loaded()?];
        for hook in &HOOKS {
            let ids = pairs.iter().flatten().map(|programs| sys::program_id(programs.at(hook)));
            let ours: Vec<_> = ids.collect::<io::Result<_>>().map_err(fault)?;
            let standing = sys::tcx_programs(ifindex, hook.tcx).map_err(fault)?;
            if standing.iter().any(|id| !ours.contains(id)) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

pub(crate) fn open_route(ifindex: u32, verb: &'static str) -> Result<Netlink> {
    filters::open().map_err(|e| Error::Attach { verb, ifindex, reason: e.to_string() })
}

impl Datapath {
    /// The descriptors of the plain pair, for BPF_PROG_TEST_RUN: (from_pod, to_pod).
    pub fn programs(&self) -> (&OwnedFd, &OwnedFd) {
        self.plain.both()
    }
}
