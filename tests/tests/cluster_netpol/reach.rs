//! How a scenario is written down.

use anyhow::Result;
use podgate_tests::cluster::matrix::Matrix;
use podgate_tests::cluster::probe::Protocol;
use serde_json::{Value, json};

/// A scenario of the suite.
pub(crate) struct Scenario {
    /// Its place in the suite.
    pub(crate) number: u8,
    /// What the suite calls it.
    pub(crate) name: &'static str,
    /// What happens. It may need the pods' addresses.
    pub(crate) steps: fn(&Matrix) -> Result<Vec<Step>>,
}

impl Scenario {
    pub(crate) fn title(&self) -> String {
        format!("{:02} {}", self.number, self.name)
    }
}

/// Changes, and what is expected after them.
#[derive(Default)]
pub(crate) struct Step {
    /// Policies that are applied.
    pub(crate) policies: Vec<Value>,
    /// Labels that are set: kind, name, `key=value`.
    pub(crate) labels: Vec<(&'static str, &'static str, &'static str)>,
    /// Whether all policies are deleted.
    pub(crate) clean: bool,
    /// What the suite looks at.
    pub(crate) looks: Vec<Look>,
}

/// An expectation for one protocol and port.
pub(crate) struct Look {
    protocol: Protocol,
    port: u16,
    pub(crate) reach: Reach,
}

impl Look {
    pub(crate) fn is_of(&self, protocol: Protocol, port: u16) -> bool {
        (self.protocol, self.port) == (protocol, port)
    }
}

/// Who reaches whom: everybody everybody, but for what is said later. A pod always reaches itself.
#[derive(Clone, Default)]
pub(crate) struct Reach(Vec<(&'static str, &'static str, bool)>);

impl Reach {
    /// Nobody of these (`*`, `x/*` or `x/a`) reaches any of those.
    pub(crate) fn no(mut self, from: &'static str, to: &'static str) -> Self {
        self.0.push((from, to, false));
        self
    }

    /// Each of these reaches each of those.
    pub(crate) fn yes(mut self, from: &'static str, to: &'static str) -> Self {
        self.0.push((from, to, true));
        self
    }

    pub(crate) fn allows(&self, from: &str, to: &str) -> bool {
        let last = self.0.iter().rev().find(|(f, t, _)| is_one_of(from, f) && is_one_of(to, t));
        from == to || last.is_none_or(|(_, _, allowed)| *allowed)
    }
}

fn is_one_of(pod: &str, pattern: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(start) => pod.starts_with(start),
        None => pod == pattern,
    }
}

/// Everybody reaches everybody.
pub(crate) fn all() -> Reach {
    Reach::default()
}

pub(crate) fn tcp(port: u16, reach: Reach) -> Look {
    Look { protocol: Protocol::Tcp, port, reach }
}

pub(crate) fn udp(port: u16, reach: Reach) -> Look {
    Look { protocol: Protocol::Udp, port, reach }
}

/// One step with one policy.
pub(crate) fn step(policy: Value, looks: impl Into<Vec<Look>>) -> Step {
    Step { policies: vec![policy], looks: looks.into(), ..Step::default() }
}

/// A policy for pods of a namespace.
pub(crate) fn policy(namespace: &str, name: &str, spec: Value) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": { "namespace": namespace, "name": name },
        "spec": spec,
    })
}

/// A policy for a pod `a` (or those that the selector matches) with these ingress rules.
pub(crate) fn ingress(namespace: &str, name: &str, pods: Value, rules: Value) -> Value {
    policy(
        namespace,
        name,
        json!({ "podSelector": pods, "policyTypes": ["Ingress"], "ingress": rules }),
    )
}

/// The same with egress rules.
pub(crate) fn egress(namespace: &str, name: &str, pods: Value, rules: Value) -> Value {
    policy(
        namespace,
        name,
        json!({ "podSelector": pods, "policyTypes": ["Egress"], "egress": rules }),
    )
}

/// The pods named so.
pub(crate) fn pod(name: &str) -> Value {
    json!({ "matchLabels": { "pod": name } })
}

/// The namespace named so.
pub(crate) fn ns(name: &str) -> Value {
    json!({ "matchLabels": { "ns": name } })
}

/// A selector with one expression.
pub(crate) fn expression(key: &str, operator: &str, values: &[&str]) -> Value {
    json!({ "matchExpressions": [{ "key": key, "operator": operator, "values": values }] })
}
