//! Why the kernel refuses the programs: its errno in words, and the end of what its verifier wrote.

use std::collections::BTreeMap;
use std::io;
use std::mem;
use std::sync::{Mutex, PoisonError};

use nix::libc;

use crate::Error;
use crate::features::release;

/// How much of the verifier's text an error carries; the whole of it may be megabytes.
const LAST_LINES: usize = 4;

/// What libbpf has said since the last [`refusal`], the end of it: it hands the verifier's text over in a message
/// between two marks, and not with the error.
static LOG: Mutex<String> = Mutex::new(String::new());

/// Keeps a message of libbpf, if the verifier's text is in it.
pub(crate) fn keep(message: &str) {
    const BEGIN: &str = "BEGIN PROG LOAD LOG";
    let Some((_, text)) = message.split_once(BEGIN) else { return };
    let text = text.split_once("-- END PROG LOAD LOG").map_or(text, |(text, _)| text);
    let lines: Vec<&str> = text
        .lines()
        .map(str::trim)
        // its statistics, and the mark's own rest
        .filter(|line| !line.is_empty() && *line != "--" && !line.starts_with("processed "))
        .collect();
    let last = lines.len().saturating_sub(LAST_LINES);
    *LOG.lock().unwrap_or_else(PoisonError::into_inner) = lines[last..].join(" | ");
}

/// Instructions that the verifier has walked, by program: from the statistics that libbpf hands over where a program's log
/// level asks for them.
static WALKED: Mutex<BTreeMap<String, u32>> = Mutex::new(BTreeMap::new());

/// Keeps the statistics in a message of libbpf: "prog 'NAME': ... processed COUNT insns ...".
pub(crate) fn keep_statistics(message: &str) {
    let name = message.split_once("prog '").and_then(|(_, rest)| rest.split_once('\''));
    let count = message.rsplit_once("processed ").and_then(|(_, rest)| rest.split_once(" insns"));
    if let (Some((name, _)), Some((count, _))) = (name, count)
        && let Ok(count) = count.parse()
    {
        let mut walked = WALKED.lock().unwrap_or_else(PoisonError::into_inner);
        walked.insert(name.to_owned(), count);
    }
}

/// What was kept since the last call.
pub(crate) fn take_statistics() -> BTreeMap<String, u32> {
    mem::take(&mut *WALKED.lock().unwrap_or_else(PoisonError::into_inner))
}

/// The error of loading: kernel, cause, the verifier's last lines, and what to do.
pub(crate) fn refusal(cause: &io::Error) -> Error {
    let log = mem::take(&mut *LOG.lock().unwrap_or_else(PoisonError::into_inner));
    Error::Load { errno: cause.raw_os_error(), reason: explain(cause, &log, &release()) }
}

fn explain(cause: &io::Error, log: &str, kernel: &str) -> String {
    let (what, advice) = match cause.raw_os_error() {
        Some(libc::EPERM) => (
            "the process lacks the right to load programs",
            "run as root, or with CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON",
        ),
        Some(libc::EACCES) if log.is_empty() => (
            "loading BPF programs is forbidden",
            "a security module or kernel lockdown may be in the way; see the kernel's log",
        ),
        Some(libc::EACCES | libc::EINVAL | libc::EOPNOTSUPP | libc::E2BIG | libc::ENOSPC) => (
            "the kernel does not take the programs",
            "podgate needs Linux 5.10 or later with CONFIG_DEBUG_INFO_BTF; if this is one, please report this text",
        ),
        Some(libc::ENOMEM) => {
            ("the kernel has no memory for them", "free some, or choose smaller maps")
        }
        _ => ("the kernel refuses them", "`policyd check` tries each part by itself"),
    };
    let mut text = format!("kernel {kernel}: {what}: {cause}");
    if !log.is_empty() {
        text = format!("{text}; its verifier says: {log}");
    }
    format!("{text} ({advice})")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_the_verifiers_text_is_kept() {
        keep("libbpf: prog 'to_pod': BPF program load failed: Permission denied");
        keep(
            "libbpf: prog 'to_pod': -- BEGIN PROG LOAD LOG --\n0: R1=ctx()\n1: (b7) r0 = 0\n2: x\n3: y\n\
             R2 type=mem expected=fp, pkt, map_key\nprocessed 5245 insns (limit 1000000)\n-- END PROG LOAD LOG --",
        );
        let text = refusal(&io::Error::from_raw_os_error(libc::EACCES)).to_string();
        assert!(text.contains("does not take the programs: Permission denied"), "{text}");
        assert!(
            text.contains("says: 1: (b7) r0 = 0 | 2: x | 3: y | R2 type=mem expected"),
            "{text}"
        );
        assert!(text.contains("Linux 5.10 or later") && !text.contains("5245"), "{text}");
        // once only: it is not of the next failure
        let text = refusal(&io::Error::from_raw_os_error(libc::EACCES)).to_string();
        assert!(text.contains("is forbidden") && !text.contains("says"), "{text}");
    }

    #[test]
    fn the_count_of_a_program_is_read_from_its_statistics() {
        keep_statistics("libbpf: map 'flows4': created successfully, fd=7");
        keep_statistics(
            "libbpf: prog 'to_pod': -- BEGIN PROG LOAD LOG --\nfunc#0 @0\nprocessed 70113 insns (limit 1000000) \
             max_states_per_insn 4\n-- END PROG LOAD LOG --",
        );
        assert_eq!(take_statistics(), BTreeMap::from([("to_pod".to_owned(), 70113)]));
        assert!(take_statistics().is_empty());
    }

    #[test]
    fn a_lack_of_rights_is_told_from_an_old_kernel() {
        for (errno, said) in [
            (libc::EPERM, "lacks the right to load programs"),
            (libc::EINVAL, "5.10 or later with CONFIG_DEBUG_INFO_BTF"),
            (libc::ENOMEM, "no memory"),
            (libc::EIO, "policyd check"),
        ] {
            let text = explain(&io::Error::from_raw_os_error(errno), "", "4.19.0");
            assert!(text.starts_with("kernel 4.19.0: ") && text.contains(said), "{text}");
        }
    }
}
