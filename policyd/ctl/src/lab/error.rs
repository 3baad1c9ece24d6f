//! What can go wrong while a lab is built, run or taken down.

use std::io;

/// The lab's results.
pub(crate) type Result<T, E = Error> = std::result::Result<T, E>;

/// "verb object: cause", naming the pod, path, plugin or interface.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The machine or the installation lacks something; `hint` says what to do.
    #[error("{what}: {hint}")]
    Missing {
        /// What is not there.
        what: String,
        /// What to do next.
        hint: String,
    },
    /// A system call failed.
    #[error("{verb} {object}: {source}")]
    Io {
        /// What was tried.
        verb: &'static str,
        /// On what.
        object: String,
        /// Why not.
        source: io::Error,
    },
    /// A netlink request failed.
    #[error("{verb} {object}: {source}")]
    Netlink {
        /// What was tried.
        verb: &'static str,
        /// On what.
        object: String,
        /// Why not.
        source: Box<rtnetlink::Error>,
    },
    /// A plugin of the chain failed, in its own words.
    #[error("{verb} pod {pod}: plugin {plugin}: {message}")]
    Plugin {
        /// ADD or DEL.
        verb: &'static str,
        /// The pod.
        pod: String,
        /// Which plugin of the chain.
        plugin: String,
        /// Its error, one line.
        message: String,
    },
    /// policyd did not come up, or went away.
    #[error("run policyd: {reason}\n{log}")]
    Daemon {
        /// Why.
        reason: String,
        /// The end of its log.
        log: String,
    },
    /// The cluster cannot be built with real namespaces.
    #[error("lay out the cluster: {0}")]
    Layout(String),
}

impl Error {
    /// A failed system call.
    pub(crate) fn io(
        verb: &'static str,
        object: impl Into<String>,
        source: impl Into<io::Error>,
    ) -> Self {
        Self::Io { verb, object: object.into(), source: source.into() }
    }

    /// A failed netlink request.
    pub(crate) fn netlink(
        verb: &'static str,
        object: impl Into<String>,
        source: rtnetlink::Error,
    ) -> Self {
        Self::Netlink { verb, object: object.into(), source: Box::new(source) }
    }
}
