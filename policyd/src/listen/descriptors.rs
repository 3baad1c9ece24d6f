//! The limit of open descriptors.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::{API_CONNECTIONS, CNI_CONNECTIONS, METRICS_FROM_NODE, METRICS_FROM_OTHERS};

/// Descriptors that policyd needs beside those of the listeners' connections: maps and programs, links, sockets of netlink
/// and of the API server, files and network namespaces that are read.
const OWN_DESCRIPTORS: usize = 256;

/// Raises the soft limit of open descriptors to the hard one. The soft one is 1,024 on most systems, for programs that
/// call select(2); this one does not.
pub fn raise() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(soft, hard)| {
        if soft < hard {
            setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
        }
        Ok(hard)
    });
    let wanted = OWN_DESCRIPTORS
        + METRICS_FROM_NODE
        + METRICS_FROM_OTHERS
        + API_CONNECTIONS
        + CNI_CONNECTIONS;
    match raised {
        Ok(limit) if usize::try_from(limit).is_ok_and(|limit| limit < wanted) => tracing::warn!(
            limit,
            wanted,
            "few descriptors are allowed: under a flood of connections new pods may wait; raise LimitNOFILE"
        ),
        Ok(limit) => tracing::debug!(limit, "descriptors"),
        Err(error) => tracing::warn!(%error, "cannot raise the limit of open descriptors"),
    }
}
