//! What a pod may use: bandwidth, packets and connections, each way; what is written into its packets; and whether its traffic
//! is accounted (docs/limits.md).
//!
//! ```text
//!  PodTrafficPolicy --convert--> the same, parsed --+
//!  annotations of pods ----------> AnnotatedLimits --+--effective--> Limits --of endpoints--> EndpointLimits
//!  annotations of namespaces -----------------------+
//! ```
//!
//! Every value keeps its origin, the field of the object that states it.

mod annotations;
mod answer;
pub mod bounds;
mod effective;
mod endpoints;
mod quantity;
mod values;

pub use annotations::{ACCOUNTING, AnnotatedLimits};
pub(crate) use annotations::{accounting, field as annotation, of_pod};
pub use effective::{Effective, MAX_RULES, Overridden, effective};
pub use endpoints::EndpointLimits;
pub use values::{
    DirectionLimits, EachWay, Limits, Mark, Marks, NamedValue, OnExceed, Origin, OriginObject,
    Rate, Stated, TrafficRule,
};

/// The annotations of pods that say something of limits.
pub const ANNOTATIONS: [&str; 18] = {
    let EachWay { ingress, egress } = annotations::OF;
    [
        ingress.kubernetes,
        ingress.bandwidth,
        ingress.burst,
        ingress.packet_rate,
        ingress.packet_burst,
        ingress.max_connections,
        ingress.unsupported[0],
        ingress.unsupported[1],
        egress.kubernetes,
        egress.bandwidth,
        egress.burst,
        egress.packet_rate,
        egress.packet_burst,
        egress.max_connections,
        egress.unsupported[0],
        egress.unsupported[1],
        annotations::DSCP,
        ACCOUNTING,
    ]
};
