//! Compiles the BPF programs into `OUT_DIR/podgate.bpf.o`, which the loader embeds.

#![allow(clippy::expect_used, reason = "a build script that cannot go on says so and ends")]

use std::env;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;

use libbpf_cargo::SkeletonBuilder;

/// As strict as the kernel's own programs; libbpf-cargo swallows warnings, so they are errors.
const FLAGS: &[&str] = &[
    "-mcpu=v3",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-Wshadow",
    "-Wimplicit-fallthrough",
    "-Wno-address-of-packed-member",
];

fn main() {
    println!("cargo::rerun-if-changed=c");
    println!("cargo::rerun-if-env-changed=CLANG");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let mut args: Vec<OsString> = FLAGS.iter().map(Into::into).collect();
    // Debian keeps asm/types.h under the architecture's name, which `-target bpf` does not know.
    let arch = env::var("CARGO_CFG_TARGET_ARCH").expect("cargo sets CARGO_CFG_TARGET_ARCH");
    args.push(format!("-I/usr/include/{arch}-linux-gnu").into());
    SkeletonBuilder::new()
        .source("c/podgate.bpf.c")
        .obj(out.join("podgate.bpf.o"))
        .clang(clang())
        .clang_args(args)
        .build()
        .unwrap_or_else(|error| panic!("compile c/podgate.bpf.c: {error:#}"));
}

/// `$CLANG`, or the first clang on the PATH; Debian may have only a versioned one.
fn clang() -> OsString {
    if let Some(clang) = env::var_os("CLANG") {
        return clang;
    }
    let versioned = (14..=25).rev().map(|version| format!("clang-{version}"));
    std::iter::once("clang".to_owned())
        .chain(versioned)
        .find(|name| Command::new(name).arg("--version").output().is_ok_and(|o| o.status.success()))
        .expect("compile BPF programs: no clang found (Debian: apt-get install clang)")
        .into()
}
