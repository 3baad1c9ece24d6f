//! Which parts of an object are kept when it is received.
//!
//! A pod of a real cluster is some 10 kB of JSON, of which policy needs a few hundred bytes. What the kind's
//! [`Resource::FIELDS`] do not name is skipped while it is parsed, so that a page of a list is never in memory as a whole,
//! and a field that podgate does not read cannot make an object unreadable.

use std::fmt;
use std::marker::PhantomData;

use podgate_policy::object::{FieldMask, Resource};
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, de};
use serde_json::{Map, Value};

/// The kept fields of an object of kind `R`. A value of another form than the mask expects is kept as it is, so that the
/// conversion can name what is wrong with it.
#[derive(Clone, Debug)]
pub(super) struct Projected<R> {
    pub(super) value: Value,
    kind: PhantomData<R>,
}

impl<'de, R: Resource> Deserialize<'de> for Projected<R> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Projection(const { &R::FIELDS }).deserialize(deserializer)?;
        Ok(Self { value, kind: PhantomData })
    }
}

/// Deserializes the parts of a value that a mask names.
struct Projection(&'static FieldMask);

impl<'de> DeserializeSeed<'de> for Projection {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        match self.0 {
            FieldMask::All => Value::deserialize(deserializer),
            _ => deserializer.deserialize_any(self),
        }
    }
}

impl<'de> Visitor<'de> for Projection {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut kept = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            let mask = match self.0 {
                FieldMask::Fields(fields) => fields.iter().find(|(name, _)| *name == key),
                _ => None,
            };
            match (mask, self.0) {
                (Some((_, mask)), _) => {
                    drop(kept.insert(key, map.next_value_seed(Projection(mask))?))
                }
                (None, FieldMask::Fields(_)) => drop(map.next_value::<IgnoredAny>()?),
                (None, _) => drop(kept.insert(key, map.next_value()?)),
            }
        }
        Ok(Value::Object(kept))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mask = match self.0 {
            FieldMask::Each(mask) => mask,
            _ => &FieldMask::All,
        };
        let mut kept = Vec::new();
        while let Some(item) = items.next_element_seed(Projection(mask))? {
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
    use podgate_policy::model::Pod;
    use podgate_policy::object::{Kind, KindVisitor};
    use serde_json::json;

    use super::*;

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
        let projected: Projected<Pod> = serde_json::from_str(&pod.to_string()).unwrap();
        assert_eq!(
            projected.value,
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
    fn a_value_of_another_form_is_kept_for_the_error() {
        let odd = json!({
            "metadata": {"name": 7, "labels": null},
            "spec": {"containers": {"name": "c"}, "hostNetwork": "yes"},
            "status": [1.5, -2, true],
        });
        let projected: Projected<Pod> = serde_json::from_str(&odd.to_string()).unwrap();
        assert_eq!(projected.value, odd);
        for scalar in [json!("pod"), json!(3), json!(null)] {
            let projected: Projected<Pod> = serde_json::from_str(&scalar.to_string()).unwrap();
            assert_eq!(projected.value, scalar);
        }
    }

    #[test]
    fn every_kind_keeps_what_identifies_an_object() {
        struct Identity;

        impl KindVisitor for Identity {
            type Output = Value;

            fn visit<R: Resource>(self) -> Value {
                let metadata = json!({
                    "name": "a", "namespace": "b", "uid": "c", "resourceVersion": "7", "ownerReferences": [{}],
                });
                let object = json!({"metadata": metadata, "other": 1});
                serde_json::from_value::<Projected<R>>(object).unwrap().value
            }
        }

        for kind in Kind::ALL {
            let mut kept = json!({"name": "a", "uid": "c", "resourceVersion": "7"});
            if kind.id("kubernetes", None, "a").is_none() {
                kept["namespace"] = "b".into();
            }
            assert_eq!(kind.visit(Identity), json!({"metadata": kept}), "{kind:?}");
        }
    }
}
