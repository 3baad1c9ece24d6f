//! The `bandwidth` plugin in the same list: it needs the same hook as podgate's gate on kernels without TCX, and limits the
//! same pods.

use podgate_contract::plugin_conf::BANDWIDTH;

use super::Entry;

/// A warning about this list, if there is a conflict. `has_tcx`: whether the kernel has TCX, `None` if that is not known.
///
/// For a pod with an egress limit the plugin adds a qdisc of the kind `ingress` to the host veth. It occupies the place of
/// clsact, so the gate must use TCX. A kernel without TCX can have one of the two, whichever comes first in the list;
/// one with TCX can have both if podgate comes later, where [`super::Conflist::with`] puts it.
pub(super) fn conflict<'a>(
    file: &str,
    mut kinds: impl Iterator<Item = &'a str>,
    has_tcx: Option<bool>,
) -> Option<String> {
    let doubt = match has_tcx {
        Some(true) => return None,
        Some(false) => "this kernel has no TCX (Linux 6.6)",
        None => "this kernel may have no TCX (Linux 6.6; its BTF cannot be read)",
    };
    kinds.any(|kind| kind == BANDWIDTH).then(|| {
        format!(
            "{file} lists the {BANDWIDTH} plugin, and {doubt}: pods with an egress limit \
             (kubernetes.io/egress-bandwidth) fail to start, in whichever order the two are listed; pods without one \
             are not affected"
        )
    })
}

/// The entry for a list. Where the bandwidth plugin is in it, that limits the pods: the runtime tells each plugin that asks,
/// and two would limit each pod.
pub(super) fn entry_for<'a>(entry: &Entry, mut kinds: impl Iterator<Item = &'a str>) -> Entry {
    let asks = entry.bandwidth.filter(|_| kinds.all(|kind| kind != BANDWIDTH));
    Entry { bandwidth: asks, ..entry.clone() }
}

/// A warning about this list, if the bandwidth plugin keeps podgate from limiting its pods.
pub(super) fn limits_itself<'a>(
    file: &str,
    entry: &Entry,
    mut kinds: impl Iterator<Item = &'a str>,
) -> Option<String> {
    (entry.bandwidth == Some(true) && kinds.any(|kind| kind == BANDWIDTH)).then(|| {
        format!(
            "{file} lists the {BANDWIDTH} plugin, which limits pods by itself: podgate does not take limits of bandwidth \
             from the runtime there; remove the {BANDWIDTH} plugin to have podgate's"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_the_bandwidth_plugin_is_podgate_does_not_ask_for_limits() {
        let entry = Entry { bandwidth: Some(true), ..Entry::default() };
        let warned = |entry: &Entry, kinds: [&str; 2]| {
            let warning = limits_itself("10-a.conflist", entry, kinds.into_iter());
            (entry_for(entry, kinds.into_iter()).bandwidth, warning)
        };
        assert_eq!(warned(&entry, ["bridge", "portmap"]), (Some(true), None));
        let (asks, warning) = warned(&entry, ["bridge", "bandwidth"]);
        assert_eq!(asks, None);
        assert!(
            warning
                .unwrap()
                .starts_with("10-a.conflist lists the bandwidth plugin, which limits pods")
        );
        // who has turned it off knows
        let off = Entry { bandwidth: Some(false), ..Entry::default() };
        assert_eq!(warned(&off, ["bridge", "bandwidth"]).1, None);
    }

    #[test]
    fn bandwidth_is_named_where_the_kernel_has_no_tcx() {
        for kinds in [["bridge", "bandwidth", "podgate"], ["bridge", "podgate", "bandwidth"]] {
            let warned = |tcx| conflict("10-a.conflist", kinds.into_iter(), tcx);
            assert_eq!(warned(Some(true)), None);
            let text = warned(Some(false)).unwrap();
            assert!(text.starts_with("10-a.conflist lists the bandwidth plugin"), "{text}");
            assert!(text.contains("has no TCX (Linux 6.6)"), "{text}");
            assert!(warned(None).unwrap().contains("may have no TCX"));
        }
        assert_eq!(conflict("10-a.conflist", ["bridge", "podgate"].into_iter(), Some(false)), None);
    }
}
