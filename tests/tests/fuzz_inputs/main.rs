//! What others write, at random: manifests, bodies of the API, lines of the plugin's socket, CNI's input.
//!
//! Whatever is read: no panic, no endless work, and what is not understood is an error that says where.

// helpers are tests too, which clippy cannot see
#![allow(clippy::unwrap_used, reason = "a test that panics is a test that fails")]

mod bodies;
mod cni;
mod lines;
mod manifests;

/// What JSON is made of.
const JSON: &[&str] = &[
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    "\"",
    "null",
    "true",
    "-1",
    "65536",
    "1e400",
    "4294967296",
    "\\u0000",
    "\\ud800",
    "\"\"",
    "{}",
    "[]",
    "\n",
    "\"metadata\":{}",
    "\"namespace\"",
    "\"kind\"",
    "[[[[[[[[[[[[[[[[",
    "]]]]]]]]]]]]]]]]",
];
