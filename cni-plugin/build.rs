//! Links a static `podgate` at a fixed address.

use std::env;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let features = env::var("CARGO_CFG_TARGET_FEATURE").unwrap_or_default();
    if features.split(',').any(|feature| feature == "crt-static") {
        // A process for each ADD: one that need not relocate itself costs a seventh less CPU. rustc asks for `-static-pie`
        // before these; the last word counts.
        println!("cargo::rustc-link-arg-bins=-static");
        println!("cargo::rustc-link-arg-bins=-no-pie");
    }
}
