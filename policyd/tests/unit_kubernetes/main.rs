//! The source `kubernetes` against a scripted API server, up to the index that the writer would hold.
//! Time is tokio's paused clock: it advances only when all tasks are idle, so waits cost nothing.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod server;
mod unenforced;
mod world;

mod lists;
mod optional;
mod refusals;
mod watches;
