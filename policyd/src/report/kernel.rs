//! Reports what the kernel lacks, once at the start: a new kernel needs a reboot, and so a new policyd.

use podgate_bpf::features::Kernel;

use super::notice::{About, Dedupe, Notice, Severity};

/// Which features this kernel lacks, and what follows.
pub(super) fn lacks(kernel: &Kernel) -> Option<Notice> {
    let each = kernel.missing.iter();
    let each = each.map(|f| format!("{} (Linux {}): {}", f.name(), f.since(), f.without()));
    let lacks = each.collect::<Vec<_>>().join("; ");
    (!lacks.is_empty()).then(|| Notice {
        about: About::Node,
        severity: Severity::Normal,
        reason: "KernelLacksFeatures",
        note: format!("policy is enforced; kernel {} lacks {lacks}", kernel.release),
        dedupe: Dedupe::Node(0),
    })
}

#[cfg(test)]
mod tests {
    use podgate_bpf::features::Feature;

    use super::*;

    #[test]
    fn what_is_missing_is_named_with_what_follows() {
        let kernel = |missing| Kernel { release: "6.1.0-1".into(), missing };
        assert_eq!(lacks(&kernel(vec![])), None);
        let note = lacks(&kernel(vec![Feature::Tcx, Feature::NestedBatches])).unwrap().note;
        assert!(
            note.starts_with("policy is enforced; kernel 6.1.0-1 lacks tcx (Linux 6.6): gates are"),
            "{note}"
        );
        assert!(note.contains("; nested-batches (Linux 5.19): pods that start"), "{note}");
        let all = lacks(&kernel(Feature::ALL.to_vec())).unwrap().note;
        assert!(all.len() < 1000, "the API server takes 1024 bytes: {}", all.len());
    }
}
