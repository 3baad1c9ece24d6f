//! Limits in the annotations of pods: those of Kubernetes, and Calico's, which say more; and whether a pod, or every pod of a
//! namespace, is accounted.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::bounds::{self, BANDWIDTH, BANDWIDTH_BURST, COUNT, OPEN_CONNECTIONS};
use super::values::{DirectionLimits, EachWay, Limits, Marks, Origin, OriginObject, Stated};
use crate::model::ObjectKey;

/// The annotation of pods and namespaces for whether their traffic is accounted: `true` or `false`.
pub const ACCOUNTING: &str = "podgate.io/accounting";

/// Calico's annotation for the code point of what a pod sends.
pub(super) const DSCP: &str = "qos.projectcalico.org/dscp";

/// The annotations that are about one direction.
#[derive(Debug)]
pub(super) struct DirectionNames {
    /// Of Kubernetes: bits a second.
    pub(super) kubernetes: &'static str,
    /// Calico's: bits a second.
    pub(super) bandwidth: &'static str,
    /// Calico's: bits.
    pub(super) burst: &'static str,
    /// Calico's: packets a second.
    pub(super) packet_rate: &'static str,
    /// Calico's: packets.
    pub(super) packet_burst: &'static str,
    /// Calico's: connections that are open at a time.
    pub(super) max_connections: &'static str,
    /// Calico's second bucket. It has no effect here, which is told.
    pub(super) unsupported: [&'static str; 2],
}

/// Those of both directions.
pub(super) const OF: EachWay<DirectionNames> = EachWay {
    ingress: DirectionNames {
        kubernetes: "kubernetes.io/ingress-bandwidth",
        bandwidth: "qos.projectcalico.org/ingressBandwidth",
        burst: "qos.projectcalico.org/ingressBurst",
        packet_rate: "qos.projectcalico.org/ingressPacketRate",
        packet_burst: "qos.projectcalico.org/ingressPacketBurst",
        max_connections: "qos.projectcalico.org/ingressMaxConnections",
        unsupported: [
            "qos.projectcalico.org/ingressPeakrate",
            "qos.projectcalico.org/ingressMinburst",
        ],
    },
    egress: DirectionNames {
        kubernetes: "kubernetes.io/egress-bandwidth",
        bandwidth: "qos.projectcalico.org/egressBandwidth",
        burst: "qos.projectcalico.org/egressBurst",
        packet_rate: "qos.projectcalico.org/egressPacketRate",
        packet_burst: "qos.projectcalico.org/egressPacketBurst",
        max_connections: "qos.projectcalico.org/egressMaxConnections",
        unsupported: [
            "qos.projectcalico.org/egressPeakrate",
            "qos.projectcalico.org/egressMinburst",
        ],
    },
};

/// What the annotations of a pod say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AnnotatedLimits {
    /// Calico's, and whether the pod is accounted.
    pub calico: Limits,
    /// Those of Kubernetes. They come after Calico's.
    pub kubernetes: Limits,
    /// What could not be read or is not supported and has no effect, each with its annotation and the cause, as a sentence for
    /// people.
    pub problems: Vec<String>,
}

/// Reads the annotations of a pod. `None` if none of them is about limits. What cannot be read is a problem and has no effect; the
/// rest holds.
pub(crate) fn of_pod(
    pod: &ObjectKey,
    annotations: &BTreeMap<String, String>,
) -> Option<Arc<AnnotatedLimits>> {
    let mut read = Reader { pod, annotations, problems: Vec::new() };
    let (ingress, egress) = (read.direction(&OF.ingress), read.direction(&OF.egress));
    let dscp = read.value(DSCP, bounds::dscp);
    let accounting = read.value(ACCOUNTING, boolean);
    let kubernetes = |bandwidth| DirectionLimits { bandwidth, ..DirectionLimits::default() };
    let limits = AnnotatedLimits {
        calico: Limits {
            each_way: EachWay { ingress: ingress.calico, egress: egress.calico },
            marks: Marks { dscp, ..Marks::default() },
            accounting,
            rules: Vec::new(),
        },
        kubernetes: Limits {
            each_way: EachWay {
                ingress: kubernetes(ingress.kubernetes),
                egress: kubernetes(egress.kubernetes),
            },
            ..Limits::default()
        },
        problems: read.problems,
    };
    (limits != AnnotatedLimits::default()).then(|| Arc::new(limits))
}

/// Whether the pods of a namespace are accounted, by its annotations. An error is the cause.
pub(crate) fn accounting(annotations: &BTreeMap<String, String>) -> Result<Option<bool>, String> {
    annotations.get(ACCOUNTING).map(|text| boolean(text)).transpose()
}

fn boolean(text: &str) -> Result<bool, String> {
    text.parse().map_err(|_| format!("must be true or false, is {text:?}"))
}

struct Reader<'a> {
    pod: &'a ObjectKey,
    annotations: &'a BTreeMap<String, String>,
    problems: Vec<String>,
}

/// What is said of one direction, by either family of annotations.
struct Direction {
    calico: DirectionLimits,
    kubernetes: Option<Stated<super::Rate>>,
}

impl Reader<'_> {
    fn direction(&mut self, names: &DirectionNames) -> Direction {
        let bits = |text: &str| bounds::bits(text, &BANDWIDTH);
        let own = self.value(names.bandwidth, bits);
        let kubernetes = self.value(names.kubernetes, bits);
        let burst = self.value(names.burst, |text| bounds::bits(text, &BANDWIDTH_BURST));
        if burst.is_some() && own.is_none() && kubernetes.is_none() {
            self.fail(names.burst, "has no effect without a bandwidth");
        }
        let burst = burst.map(|burst| burst.value);
        // as Calico reads it: its burst is that of whichever bandwidth holds
        let kubernetes_burst = burst.filter(|_| own.is_none());
        let count = |text: &str| bounds::count(text, &COUNT);
        let packets = self.value(names.packet_rate, count);
        let packet_burst = self.value(names.packet_burst, count);
        if packet_burst.is_some() && packets.is_none() {
            self.fail(names.packet_burst, "has no effect without a packet rate");
        }
        let packet_burst = packet_burst.map(|burst| burst.value);
        let open_connections = self.value(names.max_connections, |text| {
            // the largest that Calico takes is no limit to speak of
            bounds::count(text, &(1..=u64::from(u32::MAX)))
                .map(|most| most.min(*OPEN_CONNECTIONS.end()) as u32)
        });
        for name in names.unsupported {
            if self.annotations.contains_key(name) {
                self.fail(name, "is not supported and has no effect");
            }
        }
        Direction {
            calico: DirectionLimits {
                bandwidth: own.map(|own| own.map(|rate| bounds::bandwidth(rate, burst))),
                packets: packets.map(|own| own.map(|rate| bounds::packets(rate, packet_burst))),
                new_connections: None,
                open_connections,
                on_exceed: None,
            },
            kubernetes: kubernetes
                .map(|own| own.map(|rate| bounds::bandwidth(rate, kubernetes_burst))),
        }
    }

    /// The value of an annotation, if there is one that can be read.
    fn value<T>(
        &mut self,
        name: &str,
        read: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<Stated<T>> {
        match read(self.annotations.get(name)?) {
            Ok(value) => {
                let origin = Origin {
                    object: OriginObject::Pod(self.pod.clone()),
                    field: field(name).into(),
                };
                Some(Stated { value, origin })
            }
            Err(cause) => {
                self.fail(name, &format!("{cause}; it has no effect"));
                None
            }
        }
    }

    fn fail(&mut self, name: &str, cause: &str) {
        self.problems.push(format!("{}: {cause}", field(name)));
    }
}

/// An annotation as a field.
pub(crate) fn field(name: &str) -> String {
    format!("metadata.annotations[{name}]")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::Rate;

    fn read(annotations: &[(&str, &str)]) -> AnnotatedLimits {
        let annotations = annotations.iter().map(|(name, value)| ((*name).into(), (*value).into()));
        let read = of_pod(&ObjectKey::new("shop", "web"), &annotations.collect());
        read.map(Arc::unwrap_or_clone).unwrap_or_default()
    }

    /// Every value as `ingress bandwidth: 10M bit/s, ...`, Calico's first.
    fn shown(limits: &AnnotatedLimits) -> Vec<String> {
        let all = [("calico", &limits.calico), ("kubernetes", &limits.kubernetes)];
        let all = all.into_iter().flat_map(|(of, limits)| {
            limits.values().into_iter().map(move |(direction, value, origin)| {
                assert_eq!(origin.object.to_string(), "pod shop/web");
                let direction = direction.map(|of| format!("{of} ")).unwrap_or_default();
                format!("{of} {direction}{}: {value}", value.name())
            })
        });
        all.collect()
    }

    #[test]
    fn every_annotation_is_read_with_its_range() {
        // name, what it is shown as, the least and the most that is read, and what is not
        let burst = "calico ingress bandwidth: 1M bit/s, burst ";
        type Row<'a> =
            (&'a str, Option<(&'a str, &'a str)>, &'a [(&'a str, &'a str)], &'a [&'a str]);
        let bits: &[&str] = &["999", "1001T", "2P", "-1M", "10 M", "10mbit", "", "none"];
        let rows: &[Row] = &[
            (
                "kubernetes.io/ingress-bandwidth",
                None,
                &[
                    ("1k", "kubernetes ingress bandwidth: 1k bit/s, burst 1048576 bit"),
                    ("10M", "kubernetes ingress bandwidth: 10M bit/s, burst 1048576 bit"),
                    ("1P", "kubernetes ingress bandwidth: 1000T bit/s, burst 50T bit"),
                ],
                bits,
            ),
            (
                "kubernetes.io/egress-bandwidth",
                None,
                &[("1G", "kubernetes egress bandwidth: 1G bit/s, burst 50M bit")],
                bits,
            ),
            (
                "qos.projectcalico.org/ingressBandwidth",
                None,
                &[("10M", "calico ingress bandwidth: 10M bit/s, burst 1048576 bit")],
                bits,
            ),
            (
                "qos.projectcalico.org/egressBandwidth",
                None,
                &[("10M", "calico egress bandwidth: 10M bit/s, burst 1048576 bit")],
                bits,
            ),
            (
                "qos.projectcalico.org/ingressBurst",
                Some(("qos.projectcalico.org/ingressBandwidth", "1M")),
                &[("1k", "1k bit"), ("34359738360", "34359738360 bit")],
                &["999", "34359738361", "4Gi0"],
            ),
            (
                "qos.projectcalico.org/egressPacketRate",
                None,
                &[
                    ("1", "calico egress packets: 1/s, burst 64"),
                    ("10k", "calico egress packets: 10k/s, burst 500"),
                    ("1G", "calico egress packets: 1G/s, burst 50M"),
                ],
                &["0", "1000000001", "many"],
            ),
            (
                "qos.projectcalico.org/ingressPacketBurst",
                Some(("qos.projectcalico.org/ingressPacketRate", "10")),
                &[("5", "calico ingress packets: 10/s, burst 5")],
                &["0", "-1"],
            ),
            (
                "qos.projectcalico.org/ingressMaxConnections",
                None,
                &[
                    ("1", "calico ingress open connections: 1"),
                    ("4294967295", "calico ingress open connections: 4294967294"),
                ],
                &["0", "4294967296", "1.1G0"],
            ),
            (
                "qos.projectcalico.org/egressMaxConnections",
                None,
                &[("1k", "calico egress open connections: 1000")],
                &["0"],
            ),
            (
                "qos.projectcalico.org/dscp",
                None,
                &[("EF", "calico DSCP: 46"), ("0", "calico DSCP: 0"), ("63", "calico DSCP: 63")],
                &["64", "best", ""],
            ),
            (
                "podgate.io/accounting",
                None,
                &[("true", "calico accounting: on"), ("false", "calico accounting: off")],
                &["True", "yes", "1", ""],
            ),
        ];
        for (name, beside, valid, invalid) in rows {
            let with =
                |value| read(&beside.iter().copied().chain([(*name, value)]).collect::<Vec<_>>());
            for (value, expected) in *valid {
                let limits = with(value);
                let expected = match name.ends_with("Burst") && !name.ends_with("PacketBurst") {
                    true => format!("{burst}{expected}"),
                    false => (*expected).to_owned(),
                };
                assert_eq!((shown(&limits), limits.problems), (vec![expected], vec![]), "{name}");
            }
            for value in *invalid {
                let limits = with(value);
                let without = read(&beside.iter().copied().collect::<Vec<_>>());
                assert_eq!(shown(&limits), shown(&without), "{name}={value}");
                let [problem] = limits.problems.as_slice() else {
                    panic!("{name}={value}: {limits:?}")
                };
                assert!(
                    problem.starts_with(&format!("metadata.annotations[{name}]: must be "))
                        && problem.ends_with("; it has no effect"),
                    "{problem}"
                );
            }
        }
    }

    #[test]
    fn every_name_that_is_kept_is_read() {
        for name in super::super::ANNOTATIONS {
            let limits = read(&[(name, "?")]);
            assert!(!limits.problems.is_empty(), "{name}");
        }
    }

    #[test]
    fn a_burst_belongs_to_the_bandwidth_that_holds() {
        let (own, kubernetes) =
            ("qos.projectcalico.org/ingressBandwidth", "kubernetes.io/ingress-bandwidth");
        let burst = ("qos.projectcalico.org/ingressBurst", "2M");
        let both = read(&[(own, "10M"), (kubernetes, "20M"), burst]);
        assert_eq!(
            shown(&both),
            [
                "calico ingress bandwidth: 10M bit/s, burst 2M bit",
                "kubernetes ingress bandwidth: 20M bit/s, burst 1048576 bit",
            ]
        );
        let one = read(&[(own, "none"), (kubernetes, "20M"), burst]);
        assert_eq!(shown(&one), ["kubernetes ingress bandwidth: 20M bit/s, burst 2M bit"]);
        assert_eq!(one.problems.len(), 1);
        for (name, cause) in [
            ("qos.projectcalico.org/egressBurst", "has no effect without a bandwidth"),
            ("qos.projectcalico.org/egressPacketBurst", "has no effect without a packet rate"),
        ] {
            let alone = read(&[(name, "2k"), (own, "10M")]);
            assert_eq!(alone.problems, [format!("metadata.annotations[{name}]: {cause}")]);
            assert_eq!(shown(&alone).len(), 1);
        }
    }

    #[test]
    fn peak_rates_are_reported_and_the_rest_holds() {
        let limits = read(&[
            ("qos.projectcalico.org/ingressPeakrate", "20M"),
            ("qos.projectcalico.org/ingressMinburst", "1500"),
            ("qos.projectcalico.org/ingressBandwidth", "8M"),
        ]);
        let bandwidth = limits.calico.each_way.ingress.bandwidth.as_ref().unwrap();
        assert_eq!(bandwidth.value, Rate { per_second: 1_000_000, burst: 131_072 });
        assert_eq!(
            &*bandwidth.origin.field,
            "metadata.annotations[qos.projectcalico.org/ingressBandwidth]"
        );
        assert_eq!(
            limits.problems,
            [
                "metadata.annotations[qos.projectcalico.org/ingressPeakrate]: is not supported and has no effect",
                "metadata.annotations[qos.projectcalico.org/ingressMinburst]: is not supported and has no effect",
            ]
        );
    }

    #[test]
    fn a_pod_without_such_annotations_has_none() {
        let other = BTreeMap::from([("kubernetes.io/other".to_owned(), "10M".to_owned())]);
        assert_eq!(of_pod(&ObjectKey::new("shop", "web"), &other), None);
    }
}
