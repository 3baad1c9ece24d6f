//! Container images, made on the spot: busybox, as pause and as workload, and what a test adds to that.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

/// Its name.
pub const NAME: &str = "podgate.local/busybox:1";

const BUSYBOX: &str = "/usr/bin/busybox";
const APPLETS: [&str; 12] =
    ["cat", "date", "echo", "grep", "ip", "nc", "ping", "printf", "seq", "sh", "sleep", "usleep"];

/// What is in an image beside busybox.
#[derive(Clone, Debug)]
pub struct Image<'a> {
    /// The reference that pods ask for.
    pub name: &'a str,
    /// What runs, if a pod says nothing else.
    pub command: &'a [&'a str],
    /// Executable files, by their paths without the first slash.
    pub programs: &'a [(&'a str, &'a [u8])],
}

impl Image<'_> {
    /// Busybox alone.
    pub const BUSYBOX: Image<'static> = Image {
        name: NAME,
        // a sandbox has no command of its own in CRI: pause is what the image says
        command: &["/bin/sleep", "1000000"],
        programs: &[],
    };
}

/// An image as an archive that `ctr images import` takes.
pub fn archive(image: &Image<'_>) -> Result<Vec<u8>> {
    let layer = layer(image.programs)?;
    let digest = hex(&Sha256::digest(&layer));
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let config = json!({
        "architecture": architecture,
        "os": "linux",
        "config": { "Cmd": image.command, "Env": ["PATH=/bin"] },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{digest}")] },
    });
    let manifest =
        json!([{ "Config": "config.json", "RepoTags": [image.name], "Layers": ["layer.tar"] }]);
    let mut archive = Builder::new(Vec::new());
    file(&mut archive, "layer.tar", 0o644, &layer)?;
    file(&mut archive, "config.json", 0o644, config.to_string().as_bytes())?;
    file(&mut archive, "manifest.json", 0o644, manifest.to_string().as_bytes())?;
    archive.into_inner().context("finish the image's archive")
}

fn layer(programs: &[(&str, &[u8])]) -> Result<Vec<u8>> {
    let busybox = fs::read(BUSYBOX)
        .with_context(|| format!("read {BUSYBOX} (Debian: apt-get install busybox-static)"))?;
    ensure!(
        is_static(&busybox),
        "{BUSYBOX} is not static (Debian: apt-get install busybox-static)"
    );
    let mut layer = Builder::new(Vec::new());
    for dir in ["bin", "dev", "etc", "proc", "sys", "tmp"] {
        let mut header = header(EntryType::Directory, 0o755, 0);
        layer.append_data(&mut header, format!("{dir}/"), &[][..]).context("add directory")?;
    }
    file(&mut layer, "bin/busybox", 0o755, &busybox)?;
    for applet in APPLETS {
        let mut header = header(EntryType::Symlink, 0o777, 0);
        layer
            .append_link(&mut header, format!("bin/{applet}"), Path::new("busybox"))
            .context("add applet")?;
    }
    for (path, content) in programs {
        file(&mut layer, path, 0o755, content)?;
    }
    layer.into_inner().context("finish the image's layer")
}

/// Whether a 64-bit ELF file names no interpreter: in the image there would be none.
fn is_static(elf: &[u8]) -> bool {
    const PT_INTERP: u16 = 3;
    let number = |at: usize| elf.get(at..at + 2).map_or(0, |b| u16::from_le_bytes([b[0], b[1]]));
    let (start, size, count) = (number(32), number(54), number(56));
    (0..count).all(|i| number(usize::from(start) + usize::from(i * size)) != PT_INTERP)
}

fn file(archive: &mut Builder<Vec<u8>>, name: &str, mode: u32, content: &[u8]) -> Result<()> {
    let mut header = header(EntryType::Regular, mode, content.len() as u64);
    archive.append_data(&mut header, name, content).with_context(|| format!("add {name}"))
}

fn header(kind: EntryType, mode: u32, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
