//! PodTrafficPolicies (docs/limits.md). What cannot be read is an error of whoever can mend it at once, a manifest or a request;
//! of an object that an API server holds, the value or the rule that it is part of has no effect, which is reported, and the rest
//! holds. Only without a selector there is nothing that could hold.

mod rule;
mod values;

use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;
use serde_json::Value;

use super::value::{self, Fields, Unread, mistyped};
use super::{FieldError, key};
use crate::limits::{
    DirectionLimits, EachWay, Limits, Marks, Origin, OriginObject, Stated, TrafficRule, bounds,
};
use crate::model::{Direction, PodTrafficPolicy, PolicyId};
use crate::object::KUBERNETES_SOURCE;

/// The `order` of a policy that has none.
pub const DEFAULT_ORDER: u32 = 1000;

/// The largest `order`, which comes last.
pub const MAX_ORDER: u64 = 1_000_000;

/// The most rules of a policy, peers of a rule and ports of a rule.
pub const MAX_ITEMS: usize = 64;

/// The longest name of a rule, in bytes.
pub const MAX_NAME: usize = 63;

/// `podgate.io/v1alpha1` PodTrafficPolicy.
#[derive(Clone, Debug, Deserialize)]
pub struct ApiPodTrafficPolicy {
    /// Its name and namespace.
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// Required: an object with a `podSelector`.
    pub spec: Option<Value>,
}

/// Reads a policy that the source of this name gave.
pub fn pod_traffic_policy(
    source: impl Into<Arc<str>>,
    object: &ApiPodTrafficPolicy,
) -> Result<PodTrafficPolicy, FieldError> {
    let id = PolicyId { source: source.into(), key: key(&object.metadata)? };
    let spec = object.spec.as_ref().ok_or_else(|| FieldError::new("spec", "must be given"))?;
    let spec = Fields::of(spec, "spec").map_err(Unread::into_field)?;
    let path = "spec.podSelector";
    let selector = match spec.get("podSelector") {
        Some(selector) => value::selector(selector, path).map_err(Unread::into_field)?,
        None => return Err(FieldError::new(path, "must be given")),
    };
    let mut reader = Reader { id: &id, problems: Vec::new() };
    reader.attempt(known(&spec, &SPEC), NO_EFFECT)?;
    let order =
        spec.get("order").map(|order| values::number(order, "spec.order", &(0..=MAX_ORDER)));
    let order = reader.attempt(order.transpose(), "it is 1000")?.flatten();
    let order = order.map_or(DEFAULT_ORDER, |order| order as u32);
    let limits = Box::new(reader.limits(&spec)?);
    let problems = reader.problems;
    Ok(PodTrafficPolicy { id, order, selector, limits, problems })
}

/// The fields of a spec.
const SPEC: [&str; 10] = [
    "order",
    "podSelector",
    "bandwidth",
    "packets",
    "connections",
    "dscp",
    "priority",
    "mark",
    "accounting",
    "rules",
];

const NO_EFFECT: &str = "it has no effect";

/// That no field is unknown.
fn known(fields: &Fields<'_>, known: &[&str]) -> Result<(), FieldError> {
    fields.no_other_than(known).map_err(Unread::into_field)
}

/// Reads a policy value by value.
struct Reader<'a> {
    id: &'a PolicyId,
    problems: Vec<String>,
}

impl Reader<'_> {
    /// A value that was read. One that could not be is nothing, and a problem, if nobody waits for an answer who could mend it.
    fn attempt<T>(
        &mut self,
        read: Result<T, FieldError>,
        instead: &str,
    ) -> Result<Option<T>, FieldError> {
        match read {
            Ok(value) => Ok(Some(value)),
            Err(error) if &*self.id.source == KUBERNETES_SOURCE => {
                self.problems.push(format!("{error}; {instead}"));
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn limits(&mut self, spec: &Fields<'_>) -> Result<Limits, FieldError> {
        let bandwidth = self.each_way(spec, "bandwidth", values::bandwidth)?;
        let packets = self.each_way(spec, "packets", values::packets)?;
        let connections = self.each_way(spec, "connections", |value, path| {
            values::connections(value, path).map(|read| (read, path.to_owned()))
        })?;
        let EachWay { ingress, egress } = connections;
        let each_way = EachWay {
            ingress: self.direction(bandwidth.ingress, packets.ingress, ingress),
            egress: self.direction(bandwidth.egress, packets.egress, egress),
        };
        let marks = Marks {
            dscp: self.value(spec, "dscp", values::dscp)?,
            priority: self.value(spec, "priority", values::priority)?,
            mark: self.value(spec, "mark", values::mark)?,
        };
        let accounting = self.value(spec, "accounting", values::boolean)?;
        Ok(Limits { each_way, marks, accounting, rules: self.rules(spec)? })
    }

    fn direction(
        &self,
        bandwidth: Option<Stated<crate::limits::Rate>>,
        packets: Option<Stated<crate::limits::Rate>>,
        connections: Option<Stated<(values::Connections, String)>>,
    ) -> DirectionLimits {
        let limits = DirectionLimits { bandwidth, packets, ..DirectionLimits::default() };
        let Some((connections, path)) = connections.map(|of| of.value) else { return limits };
        let at = |field: &str| self.origin(&format!("{path}.{field}"));
        let values::Connections { max, new, on_exceed } = connections;
        DirectionLimits {
            new_connections: new.map(|value| Stated { value, origin: at("newPerSecond") }),
            open_connections: max.map(|value| Stated { value, origin: at("max") }),
            on_exceed: on_exceed.map(|value| Stated { value, origin: at("onExceed") }),
            ..limits
        }
    }

    /// A field that has a value for each direction.
    fn each_way<T>(
        &mut self,
        spec: &Fields<'_>,
        name: &str,
        read: impl Fn(&Value, &str) -> Result<T, FieldError>,
    ) -> Result<EachWay<Option<Stated<T>>>, FieldError> {
        let mut read_ways = EachWay { ingress: None, egress: None };
        let Some(value) = spec.get(name) else { return Ok(read_ways) };
        let path = format!("spec.{name}");
        let fields = Fields::of(value, &path).map_err(Unread::into_field);
        let Some(fields) = self.attempt(fields, NO_EFFECT)? else { return Ok(read_ways) };
        self.attempt(known(&fields, &["ingress", "egress"]), NO_EFFECT)?;
        for direction in [Direction::Ingress, Direction::Egress] {
            let Some(value) = fields.get(&direction.to_string()) else { continue };
            let path = format!("{path}.{direction}");
            let value = self.attempt(read(value, &path), NO_EFFECT)?;
            let value = value.map(|value| Stated { value, origin: self.origin(&path) });
            *read_ways.of_mut(direction) = value;
        }
        Ok(read_ways)
    }

    fn value<T>(
        &mut self,
        spec: &Fields<'_>,
        name: &str,
        read: impl Fn(&Value, &str) -> Result<T, FieldError>,
    ) -> Result<Option<Stated<T>>, FieldError> {
        let Some(value) = spec.get(name) else { return Ok(None) };
        let path = format!("spec.{name}");
        let value = self.attempt(read(value, &path), NO_EFFECT)?;
        Ok(value.map(|value| Stated { value, origin: self.origin(&path) }))
    }

    fn rules(&mut self, spec: &Fields<'_>) -> Result<Vec<Arc<TrafficRule>>, FieldError> {
        let path = "spec.rules";
        let given = match spec.get("rules") {
            None => return Ok(Vec::new()),
            Some(Value::Array(given)) if given.len() <= MAX_ITEMS => Ok(given),
            Some(Value::Array(given)) => {
                let cause = format!("must have at most {MAX_ITEMS} items, has {}", given.len());
                Err(FieldError::new(path, cause))
            }
            Some(other) => Err(FieldError::new(path, mistyped(other, "a list"))),
        };
        let mut rules: Vec<Arc<TrafficRule>> = Vec::new();
        for (nth, item) in self.attempt(given, NO_EFFECT)?.into_iter().flatten().enumerate() {
            let path = format!("{path}[{nth}]");
            let mut read = rule::read(item, &path, self.id);
            if let Ok(rule) = &read
                && rules.iter().any(|before| before.name == rule.name)
            {
                let cause = format!("must be unique, is {:?} again", rule.name);
                read = Err(FieldError::new(format!("{path}.name"), cause));
            }
            let rule = self.attempt(read, "the rule matches nothing")?;
            rules.extend(rule.map(Arc::new));
        }
        Ok(rules)
    }

    fn origin(&self, path: &str) -> Origin {
        origin(self.id, path)
    }
}

fn origin(id: &PolicyId, path: &str) -> Origin {
    Origin { object: OriginObject::PodTrafficPolicy(id.clone()), field: path.into() }
}

#[cfg(test)]
mod tests;
