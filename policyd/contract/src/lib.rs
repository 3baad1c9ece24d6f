//! What podgate's processes agree on: no BPF, no policy, and no I/O but [`client`]'s exchange of one line.
//!
//! ```text
//!   podgate (plugin)  -- handshake, cni.sock -->  policyd  <-- api, api.sock --  podgatectl
//!          ^ plugin_conf: an entry of the node's conflist, written by `policyd install`
//! ```

pub mod api;
pub mod bandwidth;
pub mod client;
pub mod handshake;
pub mod plugin_conf;
