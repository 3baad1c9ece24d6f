//! The source `kubernetes` against a scripted API server, up to the index that the writer would hold.
//! Time is tokio's and stands still while anybody has something to do, so waits cost nothing.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod server;
mod unenforced;
mod world;

mod lists;
mod refusals;
mod watches;
