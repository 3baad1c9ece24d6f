//! Which traffic rule a new flow of a metered pod is of (`c/traffic.h`).

use std::os::fd::{AsFd, AsRawFd};

use libbpf_rs::{MapCore, MapFlags};
use zerocopy::IntoBytes;

use crate::Result;
use crate::limits::LimitMaps;
use crate::maps::PolicyMap;
use crate::typed_map::{write_error, wrote};

impl LimitMaps {
    /// Puts a table of traffic rules in force at an interface, atomically in place of the earlier one. Its keys are those of
    /// policy tables; the rule of a value is the number of the traffic rule. Holds for flows that are remembered or
    /// revalidated from then on.
    pub fn install_traffic(&self, ifindex: u32, table: &PolicyMap) -> Result<()> {
        let fd = table.handle()?.as_fd().as_raw_fd();
        let traffic = self.traffic.handle()?;
        traffic
            .update(ifindex.as_bytes(), fd.as_bytes(), MapFlags::ANY)
            .map(|()| wrote("traffic", "set", ifindex.as_bytes()))
            .map_err(|e| write_error("traffic", traffic.max_entries(), &e))
    }

    /// Takes an interface's table out of force; none is fine.
    pub fn remove_traffic(&self, ifindex: u32) -> Result<()> {
        self.remove_from(&self.traffic, ifindex.as_bytes())
    }
}
