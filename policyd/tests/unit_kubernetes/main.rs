//! The source `kubernetes` against a scripted API server, up to the index that the writer would hold.
//! Time is tokio's and stands still while anybody has something to do, so waits cost nothing.

mod server;
mod world;

mod lists;
mod refusals;
mod watches;
