//! The two pairs of programs: which of them a gate runs, and where they come from.
//!
//! Every pod's gate runs the plain pair but that of a metered pod (`c/abi_limits.h`). The metered pair is loaded when the
//! first pod needs it, so that a kernel that refuses it can do everything else, and pinned beside the plain one.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::abi::{Direction, LimitsKey, LimitsRecord};
use crate::pins::{FROM_POD, FROM_POD_METERED, TO_POD, TO_POD_METERED};
use crate::sys::ProgramSize;
use crate::trust::Kind;
use crate::{Datapath, Error, PinRoot, Result, loader, sys, trust};

/// A pair of programs that can be a gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pair {
    /// Of pods without limits.
    Plain,
    /// Of pods with limits, marks or accounting.
    Metered,
}

impl Pair {
    /// Both.
    pub(crate) const ALL: [Self; 2] = [Self::Plain, Self::Metered];

    /// The names of the programs, which are those of their pins: at TC ingress, at TC egress.
    pub(crate) fn names(self) -> [&'static str; 2] {
        match self {
            Self::Plain => [FROM_POD, TO_POD],
            Self::Metered => [FROM_POD_METERED, TO_POD_METERED],
        }
    }

    /// Whether both are pinned.
    pub(crate) fn is_pinned(self, root: &PinRoot) -> bool {
        self.names().iter().all(|name| root.path(name).exists())
    }
}

/// A pair that is loaded.
#[derive(Debug)]
pub(crate) struct Programs {
    pair: Pair,
    from_pod: OwnedFd,
    to_pod: OwnedFd,
}

impl Programs {
    pub(crate) fn open(root: &PinRoot, pair: Pair) -> Result<Self> {
        let open = |name: &str| trust::open(&root.path(name), Kind::Program);
        let [from_pod, to_pod] = pair.names();
        Ok(Self { pair, from_pod: open(from_pod)?, to_pod: open(to_pod)? })
    }

    /// The one that judges packets of a direction, as the pod sees it.
    pub(crate) fn judging(&self, direction: Direction) -> BorrowedFd<'_> {
        match direction {
            Direction::Egress => self.from_pod.as_fd(),
            Direction::Ingress => self.to_pod.as_fd(),
        }
    }

    pub(crate) fn name(&self, direction: Direction) -> &'static str {
        let [from_pod, to_pod] = self.pair.names();
        match direction {
            Direction::Egress => from_pod,
            Direction::Ingress => to_pod,
        }
    }

    /// Both descriptors: at TC ingress, at TC egress.
    pub(crate) fn both(&self) -> (&OwnedFd, &OwnedFd) {
        (&self.from_pod, &self.to_pod)
    }

    fn sizes(&self) -> Result<[(&'static str, ProgramSize); 2]> {
        let size = |direction| {
            let name = self.name(direction);
            sys::program_size(self.judging(direction))
                .map(|size| (name, size))
                .map_err(|e| Error::io("examine program", name, e))
        };
        Ok([size(Direction::Egress)?, size(Direction::Ingress)?])
    }
}

impl Datapath {
    /// The metered pair, if any process has loaded it.
    pub(crate) fn metered_if_loaded(&self) -> Result<Option<&Programs>> {
        if let Some(opened) = self.metered.get() {
            return Ok(Some(opened));
        }
        if !Pair::Metered.is_pinned(&self.root) {
            return Ok(None);
        }
        let opened = Programs::open(&self.root, Pair::Metered)?;
        Ok(Some(self.metered.get_or_init(|| opened)))
    }

    /// Loads and pins the programs for metered pods, unless that is done. [`Error::Metered`] on a kernel that refuses them:
    /// pods without limits are as they were.
    pub fn load_metered(&self) -> Result<()> {
        if self.metered_if_loaded()?.is_some() {
            return Ok(());
        }
        let lock = self.root.lock()?;
        if self.metered_if_loaded()?.is_none() {
            loader::load_metered(&self.root, &lock)?;
        }
        self.metered_if_loaded().map(drop)
    }

    /// The limits in force of the pod of an interface. If there are any, its gate has to run the metered pair.
    pub fn limits_of(&self, ifindex: u32) -> Result<Option<LimitsRecord>> {
        let Some(registration) = self.maps.registration(ifindex)? else { return Ok(None) };
        self.maps.limits().get(LimitsKey::of_pod(registration.owner))
    }

    /// The pair that the gate of an interface has to run, which must be loaded.
    pub(crate) fn programs_for(&self, verb: &'static str, ifindex: u32) -> Result<&Programs> {
        if self.limits_of(ifindex)?.is_none() {
            return Ok(&self.plain);
        }
        self.metered_if_loaded()?.ok_or_else(|| Error::Attach {
            verb,
            ifindex,
            reason: "its pod has limits, and the programs for such pods are not loaded".into(),
        })
    }

    /// Has the gate of an interface run the metered pair, or the plain one, from the next packet on. No packet meets no gate
    /// meanwhile, and flows stay. Nothing of ours at the interface is no error.
    ///
    /// The metered pair does nothing more for a pod without limits. So it comes before the limits, and goes after them: at a
    /// pod with limits the plain pair is then a fault, which [`Datapath::verify`] tells, at any moment.
    pub fn set_metered(&self, ifindex: u32, metered: bool) -> Result<()> {
        if !metered {
            return self.change_programs(ifindex, &self.plain);
        }
        self.load_metered()?;
        let programs = self.metered_if_loaded()?;
        programs.map_or(Ok(()), |programs| self.change_programs(ifindex, programs))
    }

    /// What the kernel says of the sizes of the loaded programs, by name; of the metered pair too, if it is loaded.
    pub fn program_sizes(&self) -> Result<Vec<(&'static str, ProgramSize)>> {
        let mut sizes = self.plain.sizes()?.to_vec();
        if let Some(metered) = self.metered_if_loaded()? {
            sizes.extend(metered.sizes()?);
        }
        Ok(sizes)
    }
}
