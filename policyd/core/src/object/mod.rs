//! The kinds of objects that podgate reads, and the events by which sources report them.
//!
//! A kind is a type with an implementation of [`Resource`], named once in `kinds!` below. From that follow [`Object`],
//! [`Kind`] and [`ObjectId`], and everything that is alike for all kinds: reading manifests, listing and watching,
//! merging sources. What the objects of a kind mean is in [`crate::index`].

mod cluster_policy;
mod fields;
mod namespace;
mod node;
mod pod;
mod pod_traffic_policy;
mod policy;
mod resource;
mod service;
mod slice;

use std::cmp::Ordering;
use std::fmt;

use crate::model::{
    ClusterPolicy, EndpointSlice, Namespace, Node, Pod, PodTrafficPolicy, Policy, Service,
};

pub use fields::{Field, FieldMask};
pub use resource::{ApiType, Content, KindVisitor, Names, Resource, Served};

/// The source of what an API server sent: that server has applied its schema and defaults already, and nobody who could
/// correct the object is waiting for an answer.
pub const KUBERNETES_SOURCE: &str = "kubernetes";

/// One event of a source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// An object is new or changed.
    Set(Object),
    /// An object is gone.
    Gone(ObjectId),
}

/// Declares the kinds. The order is the one in which a status lists them.
macro_rules! kinds {
    ($($kind:ident),* $(,)?) => {
        /// An object of a source, converted.
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub enum Object {
            $(#[doc = concat!("A [`", stringify!($kind), "`].")] $kind($kind),)*
        }

        /// A kind of object.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Kind {
            $(#[doc = concat!("[`", stringify!($kind), "`].")] $kind,)*
        }

        /// What identifies an object.
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum ObjectId {
            $(#[doc = concat!("Of a [`", stringify!($kind), "`].")] $kind(<$kind as Resource>::Key),)*
        }

        impl Kind {
            /// Every kind. A source that lists kind by kind is synced once it has listed all of them.
            pub const ALL: &[Self] = &[$(Self::$kind),*];

            /// Whether every API server has it.
            pub fn served(self) -> Served {
                match self { $(Self::$kind => $kind::SERVED,)* }
            }

            /// What it is called in messages and metrics.
            pub fn names(self) -> Names {
                match self { $(Self::$kind => $kind::NAMES,)* }
            }

            /// Every version in which it is read; the first is that of [`Kind::api`].
            pub fn versions(self) -> impl Iterator<Item = &'static str> {
                let (first, others) = match self {
                    $(Self::$kind => ($kind::API.version, $kind::OTHER_VERSIONS),)*
                };
                std::iter::once(first).chain(others.iter().copied())
            }

            /// What it is called in the API.
            pub fn api(self) -> ApiType {
                match self { $(Self::$kind => $kind::API,)* }
            }

            /// The id of the object with this metadata; `None` if its namespace is needed and missing.
            pub fn id(self, source: &str, namespace: Option<&str>, name: &str) -> Option<ObjectId> {
                match self {
                    $(Self::$kind => $kind::key_of(source, namespace, name).map(ObjectId::$kind),)*
                }
            }

            /// Calls a generic function with the type of the kind.
            pub fn visit<V: KindVisitor>(self, visitor: V) -> V::Output {
                match self { $(Self::$kind => visitor.visit::<$kind>(),)* }
            }
        }

        impl Object {
            /// Its identity.
            pub fn id(&self) -> ObjectId {
                match self { $(Self::$kind(object) => ObjectId::$kind(object.key().clone()),)* }
            }

            /// Its kind.
            pub fn kind(&self) -> Kind {
                match self { $(Self::$kind(_) => Kind::$kind,)* }
            }

            /// Compares as the ids do.
            pub fn cmp_id(&self, other: &Self) -> Ordering {
                match (self, other) {
                    $((Self::$kind(a), Self::$kind(b)) => a.key().cmp(b.key()),)*
                    _ => self.kind().cmp(&other.kind()),
                }
            }
        }

        impl ObjectId {
            /// The kind of the object.
            pub fn kind(&self) -> Kind {
                match self { $(Self::$kind(_) => Kind::$kind,)* }
            }
        }

        impl fmt::Display for ObjectId {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{} ", self.kind().names().singular)?;
                match self { $(Self::$kind(key) => key.fmt(f),)* }
            }
        }

        $(impl From<$kind> for Object {
            fn from(object: $kind) -> Self {
                Self::$kind(object)
            }
        })*
    };
}

kinds!(Pod, Namespace, Policy, Service, EndpointSlice, Node, ClusterPolicy, PodTrafficPolicy);

impl<T: Into<Object>> From<T> for Event {
    fn from(object: T) -> Self {
        Self::Set(object.into())
    }
}

impl Kind {
    /// The kind of this `apiVersion` and `kind`.
    pub fn of_type(version: &str, kind: &str) -> Option<Self> {
        let is = |of: &&Self| of.api().kind == kind && of.versions().any(|of| of == version);
        Self::ALL.iter().find(is).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_found_by_its_type_and_has_ids_of_its_own() {
        for kind in Kind::ALL.iter().copied() {
            let api = kind.api();
            assert_eq!(kind.versions().next(), Some(api.version));
            for version in kind.versions() {
                assert_eq!(Kind::of_type(version, api.kind), Some(kind));
            }
            let id = kind.id("dir", Some("shop"), "a").unwrap();
            assert_eq!(id.kind(), kind);
            let shown = id.to_string();
            let names = kind.names();
            assert!(
                shown == format!("{} shop/a", names.singular)
                    || shown == format!("{} a", names.singular),
                "{shown}"
            );
            assert!(api.path().ends_with(&format!("/{}/{}", api.version, api.resource)));
        }
        assert_eq!(Kind::of_type("v1", "NetworkPolicy"), None, "of another group");
        assert_eq!(Kind::Pod.api().path(), "/api/v1/pods");
        assert_eq!(Kind::Policy.api().path(), "/apis/networking.k8s.io/v1/networkpolicies");
        assert_eq!(Kind::Pod.id("dir", None, "a"), None, "a pod has a namespace");
    }

    #[test]
    fn cmp_id_is_the_order_of_the_ids() {
        let namespace = |name: &str| Namespace::new(name, crate::model::Labels::new());
        let policy = |source: &str| Policy {
            id: Policy::key_of(source, Some("shop"), "p").unwrap(),
            selector: crate::selector::Selector::everything(),
            ingress: None,
            egress: None,
            settings: crate::model::PolicySettings::default(),
        };
        let objects: [Object; 4] = [
            namespace("a").into(),
            namespace("b").into(),
            policy("dir").into(),
            policy("local").into(),
        ];
        for a in &objects {
            for b in &objects {
                assert_eq!(a.cmp_id(b), a.id().cmp(&b.id()), "{a:?} {b:?}");
            }
        }
    }
}
