//! Which parts of an object are kept when it is received.
//!
//! A pod of a real cluster is some 10 kB of JSON, of which policy needs a few hundred bytes. What is not
//! needed is skipped while it is parsed, so that a page of a list never stands in memory as a whole, and a
//! field that podgate does not look at cannot make an object unreadable.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, de};
use serde_json::{Map, Value};

/// Parts of a JSON value. What has another form than expected is kept as it is: whoever reads the value
/// says what is wrong with it.
#[derive(Debug)]
pub(super) enum Keep {
    /// Everything.
    All,
    /// These fields of an object.
    Fields(&'static [Field]),
    /// This of every item of a list.
    Each(&'static Keep),
}

/// What is kept of the objects of a kind.
pub(super) trait Shape: Clone + Send + 'static {
    const KEEP: Keep;
}

/// What is kept of an object.
#[derive(Clone, Debug)]
pub(super) struct Kept<S> {
    pub(super) value: Value,
    shape: PhantomData<S>,
}

impl<'de, S: Shape> Deserialize<'de> for Kept<S> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Seed(const { &S::KEEP }).deserialize(deserializer)?;
        Ok(Self { value, shape: PhantomData })
    }
}

type Field = (&'static str, Keep);
const NAME: Field = ("name", Keep::All);
const NAMESPACE: Field = ("namespace", Keep::All);
const UID: Field = ("uid", Keep::All);
const VERSION: Field = ("resourceVersion", Keep::All);
const LABELS: Field = ("labels", Keep::All);

/// Of pods.
#[derive(Clone, Debug)]
pub(super) struct PodShape;

impl Shape for PodShape {
    const KEEP: Keep = Keep::Fields(&[
        (
            "metadata",
            Keep::Fields(&[
                NAME,
                NAMESPACE,
                UID,
                VERSION,
                LABELS,
                ("creationTimestamp", Keep::All),
                ("deletionTimestamp", Keep::All),
                ("annotations", Keep::Fields(&[("kubernetes.io/config.mirror", Keep::All)])),
            ]),
        ),
        (
            "spec",
            Keep::Fields(&[
                ("nodeName", Keep::All),
                ("hostNetwork", Keep::All),
                ("containers", CONTAINERS),
                ("initContainers", CONTAINERS),
            ]),
        ),
        (
            "status",
            Keep::Fields(&[
                ("phase", Keep::All),
                ("podIP", Keep::All),
                ("podIPs", Keep::All),
                ("hostIP", Keep::All),
                ("hostIPs", Keep::All),
            ]),
        ),
    ]);
}

const CONTAINERS: Keep = Keep::Each(&Keep::Fields(&[
    ("name", Keep::All),
    ("ports", Keep::All),
    ("restartPolicy", Keep::All),
]));

/// Of namespaces.
#[derive(Clone, Debug)]
pub(super) struct NamespaceShape;

impl Shape for NamespaceShape {
    const KEEP: Keep = Keep::Fields(&[("metadata", Keep::Fields(&[NAME, UID, VERSION, LABELS]))]);
}

/// Of policies. The whole `spec`: a field of it that podgate does not know may change what the rest means.
#[derive(Clone, Debug)]
pub(super) struct PolicyShape;

impl Shape for PolicyShape {
    const KEEP: Keep = Keep::Fields(&[
        ("metadata", Keep::Fields(&[NAME, NAMESPACE, UID, VERSION])),
        ("spec", Keep::All),
    ]);
}

/// Of services. Not the selector: with an API server it is the slices that say what is behind a service.
#[derive(Clone, Debug)]
pub(super) struct ServiceShape;

impl Shape for ServiceShape {
    const KEEP: Keep = Keep::Fields(&[
        ("metadata", Keep::Fields(&[NAME, NAMESPACE, UID, VERSION, LABELS])),
        (
            "spec",
            Keep::Fields(&[
                ("type", Keep::All),
                ("clusterIP", Keep::All),
                ("clusterIPs", Keep::All),
                ("externalIPs", Keep::All),
                ("loadBalancerSourceRanges", Keep::All),
                ("ports", Keep::All),
                ("sessionAffinity", Keep::All),
                ("sessionAffinityConfig", Keep::All),
                ("internalTrafficPolicy", Keep::All),
                ("externalTrafficPolicy", Keep::All),
                ("trafficDistribution", Keep::All),
            ]),
        ),
        ("status", Keep::Fields(&[("loadBalancer", Keep::All)])),
    ]);
}

/// Of EndpointSlices.
#[derive(Clone, Debug)]
pub(super) struct SliceShape;

impl Shape for SliceShape {
    const KEEP: Keep = Keep::Fields(&[
        ("metadata", Keep::Fields(&[NAME, NAMESPACE, UID, VERSION, LABELS])),
        ("addressType", Keep::All),
        ("ports", Keep::All),
        (
            "endpoints",
            Keep::Each(&Keep::Fields(&[
                ("addresses", Keep::All),
                ("conditions", Keep::All),
                ("nodeName", Keep::All),
                ("hints", Keep::All),
            ])),
        ),
    ]);
}

struct Seed(&'static Keep);

impl<'de> DeserializeSeed<'de> for Seed {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        match self.0 {
            Keep::All => Value::deserialize(deserializer),
            _ => deserializer.deserialize_any(self),
        }
    }
}

impl<'de> Visitor<'de> for Seed {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut kept = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            let keep = match self.0 {
                Keep::Fields(fields) => fields.iter().find(|(name, _)| *name == key),
                _ => None,
            };
            match (keep, self.0) {
                (Some((_, keep)), _) => drop(kept.insert(key, map.next_value_seed(Seed(keep))?)),
                (None, Keep::Fields(_)) => drop(map.next_value::<IgnoredAny>()?),
                (None, _) => drop(kept.insert(key, map.next_value()?)),
            }
        }
        Ok(Value::Object(kept))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let keep = match self.0 {
            Keep::Each(keep) => keep,
            _ => &Keep::All,
        };
        let mut kept = Vec::new();
        while let Some(item) = items.next_element_seed(Seed(keep))? {
            kept.push(item);
        }
        Ok(Value::Array(kept))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Value, E> {
        Ok(text.into())
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<Value, E> {
        Ok(number.into())
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<Value, E> {
        Ok(number.into())
    }

    fn visit_f64<E: de::Error>(self, number: f64) -> Result<Value, E> {
        Ok(number.into())
    }

    fn visit_unit<E: de::Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_pod_is_stripped_to_what_policy_needs() {
        let pod = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": "web", "namespace": "shop", "uid": "u", "resourceVersion": "7",
                "labels": {"app": "web"},
                "annotations": {"kubernetes.io/config.mirror": "hash", "big": "x"},
                "managedFields": [{"manager": "kubelet"}],
            },
            "spec": {
                "nodeName": "n1",
                "volumes": [{"name": "v"}],
                "containers": [{"name": "c", "image": "i", "ports": [{"containerPort": 80}], "env": []}],
            },
            "status": {"phase": "Running", "podIPs": [{"ip": "10.0.0.1"}], "conditions": [{}]},
        });
        let kept: Kept<PodShape> = serde_json::from_str(&pod.to_string()).unwrap();
        assert_eq!(
            kept.value,
            json!({
                "metadata": {
                    "name": "web", "namespace": "shop", "uid": "u", "resourceVersion": "7",
                    "labels": {"app": "web"},
                    "annotations": {"kubernetes.io/config.mirror": "hash"},
                },
                "spec": {
                    "nodeName": "n1",
                    "containers": [{"name": "c", "ports": [{"containerPort": 80}]}],
                },
                "status": {"phase": "Running", "podIPs": [{"ip": "10.0.0.1"}]},
            })
        );
    }

    #[test]
    fn what_has_another_form_is_kept_for_whoever_complains() {
        let odd = json!({
            "metadata": {"name": 7, "labels": null},
            "spec": {"containers": {"name": "c"}, "hostNetwork": "yes"},
            "status": [1.5, -2, true],
        });
        let kept: Kept<PodShape> = serde_json::from_str(&odd.to_string()).unwrap();
        assert_eq!(kept.value, odd);
        for scalar in [json!("pod"), json!(3), json!(null)] {
            let kept: Kept<PodShape> = serde_json::from_str(&scalar.to_string()).unwrap();
            assert_eq!(kept.value, scalar);
        }
    }
}
