//! The definition of PodTrafficPolicy for API servers, made from what its reader takes.

use std::fmt::Write as _;
use std::ops::RangeInclusive;

use podgate_policy::convert::pod_traffic_policy::{DEFAULT_ORDER, MAX_ITEMS, MAX_NAME, MAX_ORDER};
use podgate_policy::limits::bounds::{
    COUNT, DSCP, DSCP_NAMES, MARK_BITS, OPEN_CONNECTIONS, PRIORITY,
};
use podgate_policy::model::PodTrafficPolicy;
use podgate_policy::object::Resource;
use serde_json::{Value, json};

use crate::docs::compare;

/// The name of the group in which the kind is.
const GROUP: &str = "podgate.io";

fn described(mut schema: Value, description: &str) -> Value {
    schema["description"] = description.into();
    schema
}

fn object(required: &[&str], properties: Value) -> Value {
    let mut schema = json!({"type": "object", "properties": properties});
    if !required.is_empty() {
        schema["required"] = json!(required);
    }
    schema
}

fn checked(mut schema: Value, checks: &[(&str, &str)]) -> Value {
    let checks = checks.iter().map(|(rule, message)| json!({"rule": rule, "message": message}));
    schema["x-kubernetes-validations"] = checks.collect();
    schema
}

fn list(items: Value) -> Value {
    json!({"type": "array", "maxItems": MAX_ITEMS, "x-kubernetes-list-type": "atomic", "items": items})
}

fn number(range: &RangeInclusive<u64>) -> Value {
    json!({"type": "integer", "format": "int64", "minimum": range.start(), "maximum": range.end()})
}

/// Either direction, seen from the pod.
fn each_way(of: impl Fn() -> Value, what: &str) -> Value {
    let ways = json!({
        "ingress": described(of(), &format!("{what} that the pod receives.")),
        "egress": described(of(), &format!("{what} that the pod sends.")),
    });
    described(
        object(&[], ways),
        &format!("{what}, by direction. Directions are seen from the pod."),
    )
}

/// What the API has for `resource.Quantity`.
fn quantity() -> Value {
    json!({
        "x-kubernetes-int-or-string": true,
        "anyOf": [{"type": "integer"}, {"type": "string"}],
        "pattern": r"^(\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))(([KMGTPE]i)|[numkMGTPE]|([eE](\+|-)?[0-9]+))?$",
    })
}

/// A quantity in a range. Not in lists: the cost of the check counts for each item that there might be.
fn quantity_within(least: &str, most: &str) -> Value {
    let (least_number, most_number) = match (least, most) {
        ("1k", "1P") => ("1000", "1000000000000000"),
        _ => ("1000", most),
    };
    let rule = format!(
        "type(self) == int ? self >= {least_number} && self <= {most_number} : isQuantity(self) && \
         quantity(self).compareTo(quantity('{least}')) >= 0 && quantity(self).compareTo(quantity('{most}')) <= 0"
    );
    checked(quantity(), &[(&rule, &format!("must be a quantity from {least} to {most}"))])
}

fn bandwidth(rate: Value, burst: Value) -> Value {
    object(
        &["rate"],
        json!({
            "rate": described(rate, "Bits a second, as in 10M; from 1k to 1P."),
            "burst": described(burst, "Bits that may pass at once after a pause. Default: 50 ms of the rate, and 128 KiB at least."),
        }),
    )
}

fn packets() -> Value {
    object(
        &["rate"],
        json!({
            "rate": described(number(&COUNT), "Packets a second."),
            "burst": described(number(&COUNT), "Packets that may pass at once after a pause. Default: 50 ms of the rate, and 64 at least."),
        }),
    )
}

fn connections() -> Value {
    let schema = object(
        &[],
        json!({
            "max": described(number(&OPEN_CONNECTIONS), "Connections that may be open at a time."),
            "newPerSecond": described(number(&COUNT), "Connections that may begin, a second."),
            "burst": described(number(&COUNT), "Connections that may begin at once after a pause. Default: those of a second."),
            "onExceed": {
                "type": "string", "enum": ["Drop", "Reject"],
                "description": "What becomes of a connection above a limit: its packets are dropped (the default), or also answered.",
            },
        }),
    );
    let check = (
        "!has(self.burst) || has(self.newPerSecond)",
        "burst must not be given without newPerSecond",
    );
    checked(schema, &[check])
}

fn marks() -> Value {
    let names: Vec<&str> = DSCP_NAMES.iter().map(|(name, _)| *name).collect();
    json!({
        "dscp": {
            "description": "The code point of what the pod sends: a number from 0 to 63, or a name like EF, AF11 or CS1.",
            "x-kubernetes-int-or-string": true,
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "minimum": DSCP.start(), "maximum": DSCP.end(),
            "pattern": format!("^({})$", names.join("|")),
        },
        "priority": described(number(&PRIORITY), "The kernel's priority of what the pod sends (skb->priority)."),
        "mark": checked(json!({
            "type": "string", "maxLength": 21, "pattern": "^(0x[0-9a-fA-F]{1,8}|[0-9]{1,10})/(0x[0-9a-fA-F]{1,8}|[0-9]{1,10})$",
            "description": format!(
                "The kernel's mark of what the pod sends (skb->mark), as value/mask like 0x10/0x30. The mask is within {MARK_BITS:#x}: \
                 the other bits belong to kube-proxy, Cilium and Calico."
            ),
        }), &[(MASK_IS_OURS, &format!("the mask must be within {MARK_BITS:#x}"))]),
    })
}

/// CEL, of a mark: its mask is within [`MARK_BITS`]. CEL has no operators on bits: decimal masks and values are left to the
/// reader.
const MASK_IS_OURS: &str =
    "!self.contains('/0x') || self.matches('/0x0*([0-9a-fA-F]{1,2}|[0-3]0[0-9a-fA-F]{2})$')";
const _: () = assert!(MARK_BITS == 0x30ff, "the pattern of MASK_IS_OURS is that of these bits");

fn selector(description: &str) -> Value {
    let text = json!({"type": "string"});
    let expression = object(
        &["key", "operator"],
        json!({
            "key": text,
            "operator": {"type": "string", "enum": ["In", "NotIn", "Exists", "DoesNotExist"]},
            "values": {"type": "array", "items": text, "x-kubernetes-list-type": "atomic"},
        }),
    );
    json!({
        "type": "object", "description": description, "x-kubernetes-map-type": "atomic",
        "properties": {
            "matchLabels": {"type": "object", "additionalProperties": text},
            "matchExpressions": {"type": "array", "items": expression, "x-kubernetes-list-type": "atomic"},
        },
    })
}

fn peer() -> Value {
    let cidr = json!({"type": "string", "format": "cidr", "maxLength": 49});
    let block = object(&["cidr"], json!({"cidr": cidr, "except": list(cidr.clone())}));
    let schema = object(
        &[],
        json!({
            "podSelector": selector("Pods of the namespaces that are selected, or of the policy's own."),
            "namespaceSelector": selector("Namespaces, by their labels."),
            "ipBlock": described(block, "Addresses, those of pods included."),
        }),
    );
    checked(
        schema,
        &[
            (
                "has(self.podSelector) || has(self.namespaceSelector) || has(self.ipBlock)",
                "must specify a peer",
            ),
            (
                "!has(self.ipBlock) || !has(self.podSelector) && !has(self.namespaceSelector)",
                "ipBlock must not be combined with a selector",
            ),
        ],
    )
}

/// As the API server checks those of containers: a letter at least, and no two hyphens in a row.
const PORT_NAME: &str = "^([a-z0-9]-?)*[a-z](-?[a-z0-9])*$";

fn port() -> Value {
    let schema = object(
        &[],
        json!({
            "protocol": {"type": "string", "enum": ["TCP", "UDP", "SCTP"], "description": "Default: TCP."},
            "port": {
                "description": "A number, or the name of a container's port. Left out: all ports.",
                "x-kubernetes-int-or-string": true,
                "anyOf": [{"type": "integer"}, {"type": "string"}],
                "minimum": 1, "maximum": 65535, "maxLength": 15, "pattern": PORT_NAME,
            },
            "endPort": described(number(&(1..=65535)), "The last of a range that begins with port."),
        }),
    );
    let check = (
        "!has(self.endPort) || has(self.port) && type(self.port) == int && self.endPort >= self.port",
        "endPort must not be less than port, which must be a number",
    );
    checked(schema, &[check])
}

fn rule() -> Value {
    let mut properties = json!({
        "name": {"type": "string", "minLength": 1, "maxLength": MAX_NAME, "description": "Unique in the policy. Answers and metrics have it."},
        "direction": {
            "type": "string", "enum": ["Ingress", "Egress"],
            "description": "The direction of a connection's first packet, seen from the pod. Answers are of their connection.",
        },
        "peers": described(list(peer()), "The other end of the connection. Left out or empty: everybody."),
        "ports": described(list(port()), "Destination ports, as in a NetworkPolicy. Left out or empty: every protocol and port."),
        "bandwidth": each_way(|| bandwidth(quantity(), quantity()), "Bytes on the wire of all these connections of a pod"),
    });
    add(&mut properties, marks());
    object(&["name", "direction"], properties)
}

fn add(properties: &mut Value, more: Value) {
    let (Value::Object(properties), Value::Object(more)) = (properties, more) else {
        panic!("no objects")
    };
    properties.extend(more);
}

fn spec() -> Value {
    let within = |most: &str| quantity_within("1k", most);
    let burst = (u64::from(u32::MAX) * 8).to_string();
    let mut properties = json!({
        "order": {
            "type": "integer", "format": "int32", "minimum": 0, "maximum": MAX_ORDER, "default": DEFAULT_ORDER,
            "description": "Of each single value the policy with the lowest order that states it holds; of equal ones the first by name.",
        },
        "podSelector": selector("The pods of the namespace that the policy is about. Empty: all of them."),
        "bandwidth": each_way(|| bandwidth(within("1P"), within(&burst)), "Bytes on the wire"),
        "packets": each_way(packets, "Packets on the wire"),
        "connections": each_way(connections, "Connections whose first packet is one"),
        "accounting": {"type": "boolean", "description": "Whether packets, bytes and flows of the pods are counted by where the other end is."},
        "rules": {
            "type": "array", "maxItems": MAX_ITEMS, "items": rule(),
            "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"],
            "description": "What holds for some connections of each pod, besides what holds for the pod. The first rule that matches a connection holds for it.",
        },
    });
    add(&mut properties, marks());
    described(
        object(&["podSelector"], properties),
        "What the selected pods may use, and what is written into what they send.",
    )
}

fn status() -> Value {
    let text = |most: u32| json!({"type": "string", "maxLength": most});
    let condition = object(
        &["type", "status", "lastTransitionTime", "reason", "message"],
        json!({
            "type": text(316), "status": {"type": "string", "enum": ["True", "False", "Unknown"]},
            "observedGeneration": {"type": "integer", "format": "int64", "minimum": 0},
            "lastTransitionTime": {"type": "string", "format": "date-time"},
            "reason": text(1024), "message": text(32768),
        }),
    );
    let properties = json!({
        "conditions": {
            "type": "array", "items": condition,
            "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"],
            "description": "Accepted: whether podgate understands all of the policy.",
        },
        "observedGeneration": {"type": "integer", "format": "int64", "description": "The generation that the status is about."},
    });
    described(object(&[], properties), "What podgate makes of the policy.")
}

fn crd_spec() -> Value {
    let api = PodTrafficPolicy::API;
    let schema = object(
        &["spec"],
        json!({
            "apiVersion": {"type": "string"}, "kind": {"type": "string"}, "metadata": {"type": "object"},
            "spec": spec(), "status": status(),
        }),
    );
    let schema =
        described(schema, "What pods may use: bandwidth, packets, connections; marks; accounting.");
    let column =
        |name: &str, kind: &str, path: &str| json!({"name": name, "type": kind, "jsonPath": path});
    let (group, version) = api.version.split_once('/').unwrap();
    assert_eq!(group, GROUP);
    json!({
        "group": GROUP,
        "names": {
            "kind": api.kind, "listKind": format!("{}List", api.kind), "plural": api.resource,
            "singular": PodTrafficPolicy::NAMES.singular, "shortNames": ["ptpol"], "categories": ["podgate"],
        },
        "scope": "Namespaced",
        "versions": [{
            "name": version, "served": true, "storage": true, "subresources": {"status": {}},
            "schema": {"openAPIV3Schema": schema},
            "additionalPrinterColumns": [
                column("Order", "integer", ".spec.order"),
                column("Accepted", "string", ".status.conditions[?(@.type==\"Accepted\")].status"),
                column("Age", "date", ".metadata.creationTimestamp"),
            ],
        }],
    })
}

/// A value as block YAML, its lines indented by so many spaces.
fn yaml(value: &Value, indent: usize, out: &mut String) {
    let pad = " ".repeat(indent);
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            for (name, value) in fields {
                write!(out, "{pad}{}:", scalar(&name.as_str().into())).unwrap();
                nested(value, indent + 2, out);
            }
        }
        Value::Array(items) if !items.is_empty() => {
            for item in items {
                let mut text = String::new();
                yaml(item, indent + 2, &mut text);
                writeln!(out, "{pad}- {}", text.trim()).unwrap();
            }
        }
        other => writeln!(out, "{pad}{}", scalar(other)).unwrap(),
    }
}

fn nested(value: &Value, indent: usize, out: &mut String) {
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            out.push('\n');
            yaml(value, indent, out);
        }
        Value::Array(items) if !items.is_empty() => {
            out.push('\n');
            yaml(value, indent - 2, out);
        }
        other => writeln!(out, " {}", scalar(other)).unwrap(),
    }
}

/// Text is in quotes, as in JSON, unless it is one word.
fn scalar(value: &Value) -> String {
    let is_word = |text: &&str| {
        text.starts_with(|of: char| of.is_ascii_alphabetic())
            && text.bytes().all(|of| of.is_ascii_alphanumeric() || b"-./".contains(&of))
            && !["true", "false", "null", "yes", "no", "on", "off", "y", "n"]
                .contains(&text.to_lowercase().as_str())
    };
    match value.as_str().filter(is_word) {
        Some(word) => word.to_owned(),
        None => value.to_string(),
    }
}

const MADE: &str = "# Made by `PODGATE_WRITE_DOCS=1 scripts/cargo.sh test --workspace --lib docs_`; see policyd/src/crd.rs.\n";

#[test]
fn docs_crd_is_made_from_what_the_reader_takes() {
    let mut spec = String::new();
    yaml(&json!({"spec": crd_spec()}), 0, &mut spec);
    let name = format!("{}.{GROUP}", PodTrafficPolicy::API.resource);
    let head = format!(
        "apiVersion: apiextensions.k8s.io/v1\nkind: CustomResourceDefinition\nmetadata:\n  name: {name}\n"
    );
    compare("deploy/kustomize/base/crd.yaml", &format!("{MADE}{head}{spec}"));
    compare("deploy/helm/podgate/files/crd-spec.yaml", &format!("{MADE}{spec}"));
    let read = podgate_manifests::manifest::values(&format!("{head}{spec}")).unwrap();
    assert_eq!(read[0]["spec"], crd_spec(), "the text is what it was made of");
}

/// What the schema has, the reader takes, and the other way round.
#[test]
fn the_schema_has_every_field_that_the_reader_takes() {
    let text = |bandwidth: &str| json!({"rate": bandwidth, "burst": bandwidth});
    let ways = |value: Value| json!({"ingress": value, "egress": value});
    let marks = json!({"dscp": "EF", "priority": 1, "mark": "1/1"});
    let mut rule = json!({
        "name": "a", "direction": "Egress", "bandwidth": ways(text("1M")),
        "peers": [
            {"podSelector": {"matchLabels": {"a": "b"}}, "namespaceSelector": {"matchExpressions": [
                {"key": "a", "operator": "In", "values": ["b"]}]}},
            {"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}},
        ],
        "ports": [{"protocol": "TCP", "port": 1, "endPort": 2}],
    });
    add(&mut rule, marks.clone());
    let mut whole = json!({
        "order": 1, "podSelector": {}, "bandwidth": ways(text("1M")), "packets": ways(json!({"rate": 1, "burst": 1})),
        "connections": ways(json!({"max": 1, "newPerSecond": 1, "burst": 1, "onExceed": "Drop"})),
        "accounting": true, "rules": [rule],
    });
    add(&mut whole, marks);
    let object = json!({"metadata": {"namespace": "shop", "name": "all"}, "spec": whole});
    let object = serde_json::from_value(object).unwrap();
    let read = podgate_policy::convert::pod_traffic_policy::pod_traffic_policy("dir", &object);
    assert_eq!(read.unwrap().problems, [""; 0]);
    let (mut of_schema, mut of_object) = (Vec::new(), Vec::new());
    schema_paths(&spec(), "", &mut of_schema);
    object_paths(&whole, "", &mut of_object);
    // how a selector is written is not this kind's own
    let of_selector = |path: &String| path.contains("Selector.");
    of_schema.retain(|path| !of_selector(path));
    of_object.retain(|path| !of_selector(path));
    of_object.sort();
    of_object.dedup();
    of_schema.sort();
    assert_eq!(of_schema, of_object);
}

fn schema_paths(schema: &Value, path: &str, out: &mut Vec<String>) {
    if let Some(items) = schema.get("items") {
        return schema_paths(items, path, out);
    }
    for (name, field) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
        out.push(format!("{path}.{name}"));
        schema_paths(field, &format!("{path}.{name}"), out);
    }
}

fn object_paths(value: &Value, path: &str, out: &mut Vec<String>) {
    for item in value.as_array().into_iter().flatten() {
        object_paths(item, path, out);
    }
    for (name, field) in value.as_object().into_iter().flatten() {
        out.push(format!("{path}.{name}"));
        object_paths(field, &format!("{path}.{name}"), out);
    }
}
