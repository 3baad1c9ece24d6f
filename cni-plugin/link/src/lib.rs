//! Which host interface is the other end of a pod's interface, and what addresses it has: read over netlink, without BPF.
//!
//! Both programs that attach gates need the answer: the plugin for a pod that is being created, policyd for one that runs.
//! [`hostlink`] decides from what was read (pure), [`netns`] reads inside and outside of a pod's network namespace,
//! [`netlink`] sends one request and reads its responses.

pub mod hostlink;
pub mod netlink;
pub mod netns;
