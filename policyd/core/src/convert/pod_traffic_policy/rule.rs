//! One item of `rules`. Something in it that cannot be read fails the rule as a whole: without it, it would match other
//! connections.

use k8s_openapi::api::networking::v1 as api;
use serde::Deserialize;
use serde_json::Value;

use super::values::{self, object};
use super::{MAX_ITEMS, MAX_NAME, known, origin};
use crate::convert::FieldError;
use crate::convert::policy;
use crate::convert::value::{self, Unread, mistyped, text};
use crate::limits::{EachWay, Marks, Rate, Stated, TrafficRule};
use crate::model::{Direction, PolicyId};

pub(super) fn read(item: &Value, path: &str, policy: &PolicyId) -> Result<TrafficRule, FieldError> {
    let fields = object(item, path)?;
    known(
        &fields,
        &["name", "direction", "peers", "ports", "bandwidth", "dscp", "priority", "mark"],
    )?;
    let given = |name: &str| {
        let path = format!("{path}.{name}");
        fields.get(name).map(|value| (value, path))
    };
    let required = |name: &str| {
        given(name).ok_or_else(|| FieldError::new(format!("{path}.{name}"), "must be given"))
    };
    let (name, name_path) = required("name")?;
    let name = text(name, &name_path)?;
    if name.is_empty() || name.len() > MAX_NAME {
        let cause = format!("must have 1 to {MAX_NAME} bytes, has {}", name.len());
        return Err(FieldError::new(name_path, cause));
    }
    let (direction, direction_path) = required("direction")?;
    let direction = match text(direction, &direction_path)? {
        "Ingress" => Direction::Ingress,
        "Egress" => Direction::Egress,
        other => {
            let cause = format!("must be Ingress or Egress, is {other:?}");
            return Err(FieldError::new(direction_path, cause));
        }
    };
    let peers = given("peers").map(|(peers, path)| list(peers, &path, peer)).transpose()?;
    let ports = given("ports").map(|(ports, path)| list(ports, &path, port)).transpose()?;
    let rule = policy::read_rule(&policy.key, ("peers", peers.as_deref()), ports.as_deref());
    let rule = rule.map_err(|error| error.under(path))?;
    let bandwidth = match given("bandwidth") {
        Some((bandwidth, path)) => each_way(bandwidth, &path, policy)?,
        None => EachWay::default(),
    };
    Ok(TrafficRule {
        name: name.into(),
        origin: origin(policy, path),
        direction,
        peers: rule.peers,
        ports: rule.ports,
        bandwidth,
        marks: Marks {
            dscp: stated(given("dscp"), policy, values::dscp)?,
            priority: stated(given("priority"), policy, values::priority)?,
            mark: stated(given("mark"), policy, values::mark)?,
        },
    })
}

fn stated<T>(
    given: Option<(&Value, String)>,
    policy: &PolicyId,
    read: impl Fn(&Value, &str) -> Result<T, FieldError>,
) -> Result<Option<Stated<T>>, FieldError> {
    let Some((value, path)) = given else { return Ok(None) };
    Ok(Some(Stated { value: read(value, &path)?, origin: origin(policy, &path) }))
}

fn each_way(
    value: &Value,
    path: &str,
    policy: &PolicyId,
) -> Result<EachWay<Option<Stated<Rate>>>, FieldError> {
    let fields = object(value, path)?;
    known(&fields, &["ingress", "egress"])?;
    let of = |name: &str| {
        let given = fields.get(name).map(|value| (value, format!("{path}.{name}")));
        stated(given, policy, values::bandwidth)
    };
    Ok(EachWay { ingress: of("ingress")?, egress: of("egress")? })
}

fn list<T>(
    value: &Value,
    path: &str,
    read: impl Fn(&Value, &str) -> Result<T, FieldError>,
) -> Result<Vec<T>, FieldError> {
    let Value::Array(items) = value else {
        return Err(FieldError::new(path, mistyped(value, "a list")));
    };
    if items.len() > MAX_ITEMS {
        let cause = format!("must have at most {MAX_ITEMS} items, has {}", items.len());
        return Err(FieldError::new(path, cause));
    }
    items.iter().enumerate().map(|(nth, item)| read(item, &format!("{path}[{nth}]"))).collect()
}

/// A peer without a field that is not known: it might narrow what the peer matches.
fn peer(value: &Value, path: &str) -> Result<api::NetworkPolicyPeer, FieldError> {
    let fields = object(value, path)?;
    known(&fields, &["podSelector", "namespaceSelector", "ipBlock"])?;
    for name in ["podSelector", "namespaceSelector"] {
        if let Some(selector) = fields.get(name) {
            value::selector(selector, &format!("{path}.{name}")).map_err(Unread::into_field)?;
        }
    }
    if let Some(block) = fields.get("ipBlock") {
        known(&object(block, &format!("{path}.ipBlock"))?, &["cidr", "except"])?;
    }
    typed(value, path)
}

fn port(value: &Value, path: &str) -> Result<api::NetworkPolicyPort, FieldError> {
    known(&object(value, path)?, &["protocol", "port", "endPort"])?;
    typed(value, path)
}

fn typed<T: for<'de> Deserialize<'de>>(value: &Value, path: &str) -> Result<T, FieldError> {
    T::deserialize(value).map_err(|error| FieldError::new(path, error.to_string()))
}
