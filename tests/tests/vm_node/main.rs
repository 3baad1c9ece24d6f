//! podgate's programs as a node runs them, on kernels that `make test-vm` boots: the plugin called as a runtime calls it,
//! policyd under live connections, adoption of running pods, SCTP between real sockets.
//!
//! A guest has no container runtime, so the test calls the chain itself ([`pod`]). On the machine where podgate is developed
//! the runtime tier says the same with containerd, which is why this target belongs to no tier of `make test`.

mod adoption;
mod live;
mod plugin;
mod pod;
mod sctp;

use std::time::Duration;

/// How long what policy refuses is given to happen after all.
const REFUSED: Duration = Duration::from_millis(1500);
