//! Every metric that policyd has: `docs/metrics.md` is made from this table, and all that is encoded goes through it.

use std::fmt;

use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;

/// What every metric's name begins with.
pub(crate) const PREFIX: &str = "podgate";

/// One metric: a name, and what its samples mean.
#[derive(Debug)]
pub(crate) struct Family {
    /// Without [`PREFIX`], unit and `_total`.
    pub(crate) name: &'static str,
    pub(crate) help: &'static str,
    pub(crate) kind: MetricType,
    pub(crate) unit: Option<Unit>,
    /// Names of its labels, in the order in which samples give their values, each with the values that it may have.
    pub(crate) labels: &'static [(&'static str, &'static str)],
    /// At which event a sample gets another value.
    #[cfg_attr(not(test), expect(dead_code, reason = "for the document that a test makes"))]
    pub(crate) changes: &'static str,
}

impl Family {
    /// Samples with the values of all labels, in the family's order.
    pub(crate) fn samples<const N: usize, V: EncodeMetric>(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        samples: impl IntoIterator<Item = ([String; N], V)>,
    ) -> fmt::Result {
        let mut family =
            encoder.encode_descriptor(self.name, self.help, self.unit.as_ref(), self.kind)?;
        for (values, sample) in samples {
            let labels: Vec<_> = self.labels.iter().map(|label| label.0).zip(values).collect();
            sample.encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }

    /// Counters, by the value of the only label.
    pub(crate) fn counters<'a>(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        values: impl IntoIterator<Item = (&'a str, u64)>,
    ) -> fmt::Result {
        let sample = |(label, value): (&str, u64)| ([label.to_owned()], ConstCounter::new(value));
        self.samples(encoder, values.into_iter().map(sample))
    }

    /// Gauges, by the value of the only label.
    pub(crate) fn gauges<'a>(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        values: impl IntoIterator<Item = (&'a str, u64)>,
    ) -> fmt::Result {
        let sample = |(label, value): (&str, u64)| ([label.to_owned()], gauge(value));
        self.samples(encoder, values.into_iter().map(sample))
    }

    /// The one counter of a family without labels.
    pub(crate) fn counter(&self, encoder: &mut DescriptorEncoder<'_>, value: u64) -> fmt::Result {
        self.one(encoder, ConstCounter::new(value))
    }

    /// The one gauge of a family without labels.
    pub(crate) fn gauge(&self, encoder: &mut DescriptorEncoder<'_>, value: u64) -> fmt::Result {
        self.one(encoder, gauge(value))
    }

    fn one(&self, encoder: &mut DescriptorEncoder<'_>, sample: impl EncodeMetric) -> fmt::Result {
        sample.encode(encoder.encode_descriptor(
            self.name,
            self.help,
            self.unit.as_ref(),
            self.kind,
        )?)
    }
}

/// A number of things, as far as the format's signed numbers go.
pub(crate) fn gauge(value: u64) -> ConstGauge<i64> {
    ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX))
}

/// A static for each family, and `ALL` of them.
macro_rules! families {
    ($($id:ident: $kind:ident $name:literal $(in $unit:ident)? $(by $($label:literal = $values:literal),+)?;
        $help:literal; $changes:literal;)*) => {
        $(pub(crate) static $id: Family = Family {
            name: $name,
            help: $help,
            kind: MetricType::$kind,
            unit: families!(@unit $($unit)?),
            labels: &[$($(($label, $values)),+)?],
            changes: $changes,
        };)*

        /// Every family, in the order of the document.
        #[cfg(test)]
        pub(crate) static ALL: &[&Family] = &[$(&$id),*];
    };
    (@unit) => { None };
    (@unit $unit:ident) => { Some(Unit::$unit) };
}

families! {
    BUILD: Info "build" by "version" = "as of `policyd --version`";
        "Which policyd this is";
        "another policyd starts";
    READY: Gauge "ready";
        "Whether the sources' policies are in force, for every pod that ran before too unless it is known why not";
        "all sources have been read and their policies are in force (1), or that no longer holds (0); the same as `/readyz`";
    CANNOT_ENFORCE: Gauge "cannot_enforce" by "reason" = "what keeps it from that";
        "Whether policyd cannot enforce any policy on this node, by what keeps it from that; see `podgatectl status`";
        "policyd's start fails so (1), or a later try succeeds (0); meanwhile only this, `ready`, `new_pods_gated` and `build` are served";
    PACKETS: Counter "packets" by "direction" = "`ingress`, `egress`, seen from the pod", "verdict" = "`allow`, `deny`",
        "reason" = "why, as `podgatectl observe` names it";
        "Packets by verdict";
        "a gate's programs have judged a packet; counted in the kernel, over restarts of policyd too";
    PACKET_BYTES: Counter "packet" in Bytes by "direction" = "as above", "verdict" = "as above", "reason" = "as above";
        "Bytes of packets by verdict";
        "as above, by the packet's length";
    AUDITED_FLOWS: Counter "audited_flows" by "namespace" = "of the audited policy; empty for a ClusterNetworkPolicy",
        "policy" = "its name";
        "Flows that an audited policy would have denied; lost events are not counted";
        "such a flow begins, or goes on after the policy became audited; a policy has a sample for as long as it is audited";
    LIMITED_PACKETS: Counter "limited_packets" by "namespace" = "of the pod; empty for a container that is no pod",
        "pod" = "its name", "interface" = "the host end of its veth", "direction" = "`ingress`, `egress`, seen from the pod",
        "outcome" = "`passed`, `delayed`, `marked` (ECN), or the limit that refused it: `bandwidth`, `packet-rate`, `connection-rate`, `connection-limit`";
        "Packets on the wire of pods with limits; those that were delayed or marked passed too";
        "policy allows a packet of a pod with limits; a pod has samples for as long as it has limits";
    OPEN_CONNECTIONS: Gauge "open_connections" by "namespace" = "as above", "pod" = "as above", "interface" = "as above",
        "direction" = "of the connection's first packet, seen from the pod";
        "Open connections of pods with limits";
        "a connection of such a pod begins, ends or is forgotten";
    POD_NETWORK_BYTES: Counter "pod_network" in Bytes by
        "k8s_namespace_name" = "of an accounted pod; empty for a container that is no pod, and for `other`",
        "k8s_pod_name" = "its name; `other`: the sum of the pods that have no samples of their own (`--accounted-pods`)",
        "network_io_direction" = "`receive`, `transmit`, seen from the pod",
        "scope" = "where the peer is: `same-node`, `same-zone`, `other-zone`, `cluster` (a pod whose node or zone is not known), \
                   `node`, `external`";
        "Bytes that accounted pods exchanged, on the wire";
        "a gate lets a packet of an accounted pod pass; counted in the kernel, over restarts of policyd too. Which pods have \
         samples depends on their bytes: `other` may become less";
    POD_NETWORK_PACKETS: Counter "pod_network_packets" by "k8s_namespace_name" = "as above", "k8s_pod_name" = "as above",
        "network_io_direction" = "as above", "scope" = "as above";
        "Packets that accounted pods exchanged, on the wire";
        "as above";
    POD_NETWORK_FLOWS: Counter "pod_network_flows" by "k8s_namespace_name" = "as above", "k8s_pod_name" = "as above",
        "network_io_direction" = "of the flow's first packet, as above", "scope" = "as above";
        "Flows of accounted pods that policy allowed";
        "such a flow begins";
    DATAPATH_NOTES: Counter "datapath_notes" by "note" = "the event";
        "Events in the datapath that are no verdicts";
        "it happens: a flow revalidated after a change, a map without room, a verdict event that was lost";
    FLOW_TABLE_FLOWS: Gauge "flow_table_flows" by "family" = "`ipv4`, `ipv6`";
        "Slots of the flow table that pods have taken";
        "a pod opens more flows at once than before, or its gate goes; a flow that ends leaves its slot to the pod's next";
    FLOW_TABLE_SIZE: Gauge "flow_table_size" by "family" = "`ipv4`, `ipv6`";
        "Slots of the flow table";
        "never, while the maps live";
    POD_FLOWS: Gauge "pod_flows" by "namespace" = "the pod's; empty for a container that is no pod", "pod" = "its name",
        "interface" = "its host veth";
        "Slots of the flow tables that a pod has taken";
        "as `podgate_flow_table_flows`";
    POD_FLOWS_EVICTED: Counter "pod_flows_evicted" by "namespace" = "as above", "pod" = "as above", "interface" = "as above";
        "Live flows of a pod that had to make room for others of the same pod";
        "a pod whose share is used up opens another flow";
    POD_EVENTS_HELD: Counter "pod_events_held" by "namespace" = "as above", "pod" = "as above", "interface" = "as above";
        "Verdict events of a pod that the rate limit held back";
        "a pod causes more verdict events in a second than its part and the common rest allow";
    ENDPOINTS: Gauge "endpoints" by "state" = "`enforced`, `pending`, `degraded`";
        "Gated interfaces, by whether their policy is in force";
        "a pod comes or goes, or a commit succeeds or fails for it";
    LOCAL_PODS_UNENFORCED: Gauge "local_pods_unenforced";
        "Pods of this node that have no gate";
        "such a pod appears, is adopted or goes";
    NEW_PODS_GATED: Gauge "new_pods_gated";
        "Whether the node's CNI configuration gives new pods a gate; missing where no `policyd install` says";
        "`policyd install` writes its entry or finds that it cannot be in force";
    OBJECTS: Gauge "objects" by "kind" = "`pod`, `namespace`, `policy`, `cluster_policy`, `pod_traffic_policy`";
        "Objects known from all sources";
        "an object comes or goes";
    POLICY_PROBLEMS: Gauge "policy_problems" by "problem" = "`not_understood`, `equal_priority`";
        "What of policies is not in force as written: rules that failed closed, annotations, an order that only names decide";
        "such a policy comes, changes or goes";
    OBJECTS_UNENFORCED: Gauge "objects_unenforced" by "kind" = "the kind's name";
        "Policies of kinds that podgate knows of and does not enforce";
        "such an object comes or goes";
    SERVICES: Gauge "services" by "kind" = "`service`, `frontend`, `backend`, `degraded`";
        "Services that are translated: they, their addresses and ports, the endpoints behind those, and what could not be written";
        "a Service or EndpointSlice changes, or a commit writes one or fails";
    MAP_ENTRIES: Gauge "map_entries" by "map" = "`peers`, `nets`, `policies`";
        "Entries that policyd wrote";
        "a commit";
    CLASSES_STOPPED: Gauge "classes_stopped";
        "Whether the classes of addresses could not all be written";
        "a commit finds a class map full (1), or a later one writes all (0)";
    COMMITS: Counter "commits";
        "Changes put in force";
        "a commit ends";
    COMMITS_INCOMPLETE: Counter "commits_incomplete";
        "Commits that left something undone";
        "a commit ends so; what it left is tried again";
    COMMIT_DURATION: Histogram "commit_duration" in Seconds;
        "From a change to its being in force, compilation included";
        "a commit ends";
    GATES_REATTACHED: Counter "gates_reattached";
        "Gates that another program removed or was attached ahead of, attached again";
        "policyd's check puts one back";
    KERNEL_FEATURE: Gauge "kernel_feature" by "feature" = "as `policyd check` names it";
        "Whether this kernel has what podgate can do without, see `policyd check`";
        "never; probed when policyd starts";
    SOURCE_SYNCED: Gauge "source_synced" by "source" = "the source's name";
        "Whether a source has been read completely";
        "a source has been read completely for the first time";
    SOURCE_PROBLEMS: Gauge "source_problems" by "source" = "the source's name";
        "Things a source could not read";
        "a file or object breaks or is mended";
    SOURCE_CONNECTED: Gauge "source_connected" by "source" = "the source's name", "kind" = "what is watched, in the plural";
        "Whether the API server answers for this kind of object";
        "a list or watch succeeds or fails";
    SOURCE_SILENCE: Gauge "source_silence" in Seconds by "source" = "as above", "kind" = "as above";
        "Since the API server last said anything about this kind of object";
        "always; back to 0 with each event, bookmark or list";
    SOURCE_LISTS: Counter "source_lists" by "source" = "as above", "kind" = "as above";
        "Lists that were begun: one at the start, then whenever a watch could not go on where it was";
        "a list begins";
    SOURCE_ERRORS: Counter "source_errors" by "source" = "as above", "kind" = "as above";
        "Lists and watches that failed";
        "one fails; it is tried again";
    SOURCE_REFUSED: Gauge "source_refused" by "source" = "as above", "kind" = "as above";
        "Objects that cannot be read";
        "an object that cannot be read comes, is mended or goes";
    REPORTS: Counter "reports" by "result" = "`sent`, `refused`, `dropped`";
        "Kubernetes Events, by what became of them";
        "an Event is sent, refused by the API server, or found the queue full";
    CONNECTIONS_REFUSED: Counter "connections_refused";
        "Connections to the metrics port that were refused: too many at once, in total or from one address";
        "such a connection comes";
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use super::{ALL, Family, PREFIX};

    /// The name of its samples.
    fn exposed(family: &Family) -> String {
        let unit = family.unit.as_ref().map(|unit| format!("_{}", unit.as_str()));
        let suffix = match family.kind.as_str() {
            "counter" => "_total",
            "info" => "_info",
            _ => "",
        };
        format!("{PREFIX}_{}{}{suffix}", family.name, unit.unwrap_or_default())
    }

    fn document() -> String {
        let mut text = String::from(
            "# Metrics\n\n\
             What `/metrics` of policyd answers, in the OpenMetrics text format, read from the kernel and the writer at each\n\
             scrape. This page is made from `policyd/src/metrics/families.rs` by `PODGATE_WRITE_DOCS=1 scripts/cargo.sh test\n\
             --workspace --lib docs_metrics`, and that test fails if it is stale.\n\n\
             No name, label or meaning here changes without a line in CHANGELOG.md. A histogram has\n\
             samples `_bucket`, `_sum` and `_count`.\n\n\
             | metric | type | labels | meaning | changes when |\n|---|---|---|---|---|\n",
        );
        for family in ALL {
            let labels = family.labels.iter().map(|(name, values)| format!("`{name}`: {values}"));
            let labels = labels.collect::<Vec<_>>().join("; ");
            let (name, kind) = (exposed(family), family.kind.as_str());
            let (help, changes) = (family.help, family.changes);
            writeln!(text, "| `{name}` | {kind} | {labels} | {help} | {changes} |").unwrap();
        }
        text
    }

    #[test]
    fn docs_metrics_is_made_from_the_families() {
        crate::docs::compare("docs/metrics.md", &document());
    }

    #[test]
    fn names_are_unique_and_labels_are_not_empty() {
        let mut names: Vec<_> = ALL.iter().map(|family| exposed(family)).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), ALL.len());
        for family in ALL {
            assert!(!family.help.is_empty() && !family.changes.is_empty(), "{}", family.name);
            assert!(
                family.labels.iter().all(|(name, values)| !name.is_empty() && !values.is_empty())
            );
        }
    }

    /// Samples are encoded through a [`Family`] only: what the code exposes is what the document lists.
    #[test]
    fn nothing_else_describes_a_metric() {
        let src = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let mut left = vec![src];
        let mut files = 0;
        while let Some(path) = left.pop() {
            if path.is_dir() {
                left.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            } else if !path.ends_with("metrics/families.rs") {
                files += 1;
                let text = std::fs::read_to_string(&path).unwrap();
                assert!(
                    !text.contains("encode_descriptor("),
                    "{} describes a metric",
                    path.display()
                );
            }
        }
        assert!(files > 50, "{files} files were read");
    }
}
