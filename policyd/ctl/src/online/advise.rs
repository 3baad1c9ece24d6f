//! `advise`: the smallest NetworkPolicies that allow what would have been denied.

use std::collections::BTreeMap;
use std::fmt::Write;

use clap::Args;
use podgate_contract::api::{Audit, AuditQuery, AuditedFlows};
use podgate_policy::advise::{Advice, Group, ProposedPolicy, ProposedRule, Seen, SeenPeer, advise};
use podgate_policy::model::{Labels, Protocol};
use podgate_policy::tables::Transport;
use serde_json::{Value, json};

use super::audit::path;
use super::client::{Client, Server};
use super::clock::{moment, now};
use crate::output;
use crate::{Failure, Format, Outcome, Printer};

/// Arguments of `advise`.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Only policies for pods of this namespace
    #[arg(short, long)]
    pub namespace: Option<String>,
    /// Only from what this policy would have denied: namespace/name, or the name of a cluster policy
    #[arg(long, value_name = "NAME")]
    pub policy: Option<String>,
}

pub(crate) fn propose(
    printer: &Printer,
    server: &Server,
    options: &Options,
) -> Result<Outcome, Failure> {
    let Options { namespace, policy } = options;
    let query = AuditQuery { policy: policy.clone(), namespace: namespace.clone(), pod: None };
    let audit = Client::new(server)?.get::<Audit>(&path(&query))?;
    let seen: Vec<Seen> = audit.flows.iter().filter_map(seen).collect();
    let advice = advise(&seen);
    let text = match printer.format {
        Format::Json => output::json(&list(&advice))?,
        Format::Table => manifest(&audit, &advice, now()),
    };
    printer.print(&text)?;
    Ok(Outcome::Expected)
}

/// What was seen, of what a NetworkPolicy can allow.
fn seen(flows: &AuditedFlows) -> Option<Seen> {
    if !flows.allowable {
        return None;
    }
    let group = |pod: &str, of: &BTreeMap<String, String>| {
        let (namespace, _) = pod.split_once('/')?;
        let labels: Labels =
            of.iter().map(|(key, value)| (key.as_str().into(), value.as_str().into())).collect();
        Some(Group::of(namespace, &labels))
    };
    let peer = match &flows.peer {
        Some(pod) => SeenPeer::Pod(group(pod, &flows.peer_labels)?),
        None => SeenPeer::Address(flows.peer_address),
    };
    let transport = match Protocol::from_name(&flows.protocol) {
        Some(protocol) => Transport::Port(protocol, flows.port),
        None => Transport::Other,
    };
    Some(Seen {
        pod: group(&flows.pod, &flows.pod_labels)?,
        direction: flows.direction,
        peer,
        transport,
        flows: flows.flows,
        first: flows.first,
        last: flows.last,
    })
}

/// For programs, and for `kubectl apply -f -`.
fn list(advice: &Advice) -> Value {
    let items: Vec<Value> = advice.policies.iter().map(ProposedPolicy::object).collect();
    json!({"apiVersion": "v1", "kind": "List", "items": items})
}

/// For people, and for `kubectl apply -f -` as well.
fn manifest(audit: &Audit, advice: &Advice, now: f64) -> String {
    let since = moment(audit.since, now);
    let mut text = match advice.policies.len() {
        0 => format!(
            "# Nothing to propose: no audit has let a flow pass that a NetworkPolicy could allow, since {since}.\n"
        ),
        _ => format!(
            "# These policies allow what would have been denied on this node since {since}, and no more that labels tell apart.\n"
        ),
    };
    let beyond: Vec<&AuditedFlows> = audit.flows.iter().filter(|flows| !flows.allowable).collect();
    if !beyond.is_empty() {
        let mut by: Vec<&str> =
            beyond.iter().map(|flows| flows.rule.as_deref().unwrap_or(&flows.reason)).collect();
        by.sort_unstable();
        by.dedup();
        text += &format!(
            "# Left out, as no NetworkPolicy can allow what is denied by: {}.\n",
            by.join("; ")
        );
    }
    for namespace in &advice.unlabelled {
        text += &format!(
            "# Left out: pods of namespace {namespace} without labels of their own; no policy can select those alone.\n"
        );
    }
    if audit.lost > 0 || audit.unlisted > 0 {
        text += &format!(
            "# Not complete: {} events were lost and {} flows had no room meanwhile.\n",
            audit.lost, audit.unlisted
        );
    }
    for policy in &advice.policies {
        text += "---\n";
        write_policy(&mut text, policy, now);
    }
    text
}

/// Writing to a String cannot fail.
fn write_policy(text: &mut String, policy: &ProposedPolicy, now: f64) {
    let object = policy.object();
    for field in ["apiVersion", "kind", "metadata"] {
        write_field(text, 0, field, &object[field]);
    }
    text.push_str("spec:\n");
    for field in ["podSelector", "policyTypes"] {
        write_field(text, 1, field, &object["spec"][field]);
    }
    for (list, rules) in [("ingress", &policy.ingress), ("egress", &policy.egress)] {
        let Some(rules) = rules else { continue };
        let _ = writeln!(text, "  {list}:");
        let objects = object["spec"][list].as_array().map(Vec::as_slice).unwrap_or_default();
        for (rule, object) in rules.iter().zip(objects) {
            comment(text, rule, now);
            write_item(text, 1, object);
        }
    }
}

fn comment(text: &mut String, rule: &ProposedRule, now: f64) {
    let (first, last) = (moment(rule.first, now), moment(rule.last, now));
    let flows = if rule.flows == 1 { "1 flow".to_owned() } else { format!("{} flows", rule.flows) };
    let _ = writeln!(text, "  # {flows}, from {first} to {last}");
    if rule.ports.is_none() {
        text.push_str(
            "  # all ports, because a protocol without ports was seen, which only this allows\n",
        );
    }
    for group in rule.pods.iter().filter(|group| group.labels.iter().len() == 0) {
        let _ = writeln!(
            text,
            "  # every pod of {}, because one without labels of its own was seen",
            group.namespace
        );
    }
}

/// `key: value`, the value in further lines where it has fields or items.
fn write_field(text: &mut String, depth: usize, key: &str, value: &Value) {
    let indent = "  ".repeat(depth);
    let _ = write!(text, "{indent}{}:", scalar(&Value::from(key)));
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            text.push('\n');
            for (key, value) in fields {
                write_field(text, depth + 1, key, value);
            }
        }
        Value::Array(items) if !items.is_empty() => {
            text.push('\n');
            for item in items {
                write_item(text, depth, item);
            }
        }
        value => {
            let _ = writeln!(text, " {}", scalar(value));
        }
    }
}

/// `- value`, its further lines below the first.
fn write_item(text: &mut String, depth: usize, value: &Value) {
    let mut inner = String::new();
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            for (key, value) in fields {
                write_field(&mut inner, depth + 1, key, value);
            }
        }
        value => {
            let _ = writeln!(inner, "{}{}", "  ".repeat(depth + 1), scalar(value));
        }
    }
    // the dash stands where the first line's last two blanks are
    inner.replace_range(2 * depth..2 * depth + 1, "-");
    text.push_str(&inner);
}

/// A plain word as it is; everything else as JSON, which is YAML.
fn scalar(value: &Value) -> String {
    let special = ["true", "false", "yes", "no", "on", "off", "y", "n", "null"];
    match value.as_str() {
        Some(word)
            if word.starts_with(|first: char| first.is_ascii_alphabetic())
                && word.chars().all(|c| c.is_ascii_alphanumeric() || "./_-".contains(c))
                && !special.contains(&word.to_lowercase().as_str()) =>
        {
            word.to_owned()
        }
        _ => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use podgate_contract::api::{Direction, Enforcement};
    use podgate_manifests::manifest::values;

    use super::*;

    const NOON: f64 = 1_764_504_000.0;

    fn row(pod: &str, peer: Option<&str>, direction: Direction, port: u16) -> AuditedFlows {
        let labels = |name: &str| match name.split_once('/') {
            Some((_, "bare")) | None => BTreeMap::new(),
            Some((_, app)) => BTreeMap::from([
                ("app".to_owned(), app.to_owned()),
                ("on".to_owned(), "yes".to_owned()),
                ("pod-template-hash".to_owned(), "5d4".to_owned()),
            ]),
        };
        AuditedFlows {
            pod: pod.into(),
            pod_labels: labels(pod),
            direction,
            peer: peer.map(str::to_owned),
            peer_labels: peer.map(labels).unwrap_or_default(),
            peer_address: "203.0.113.9".parse().unwrap(),
            protocol: if port == 0 { "ICMP".into() } else { "TCP".into() },
            port,
            reason: "policy".into(),
            rule: Some("base".into()),
            policies: vec!["shop/deny".into()],
            allowable: true,
            first: NOON + 61.0,
            last: NOON + 3600.0,
            flows: 5,
        }
    }

    fn shown(flows: Vec<AuditedFlows>) -> (String, Advice) {
        let advice = advise(&flows.iter().filter_map(seen).collect::<Vec<_>>());
        let audit = Audit { mode: Enforcement::Enforce, since: NOON, lost: 0, unlisted: 0, flows };
        (manifest(&audit, &advice, NOON + 7200.0), advice)
    }

    #[test]
    fn the_manifest_says_what_the_objects_do_and_how_often_it_was_seen() {
        let (ingress, egress) = (Direction::Ingress, Direction::Egress);
        let beyond = AuditedFlows {
            allowable: false,
            rule: Some("Admin policy base (priority 1) egress[0]".into()),
            ..row("shop/db", None, egress, 1)
        };
        let (text, advice) = shown(vec![
            row("shop/web", Some("shop/api"), ingress, 80),
            row("shop/web", Some("ops/probe"), ingress, 80),
            row("shop/web", Some("ops/bare"), ingress, 0),
            row("shop/web", None, egress, 443),
            row("shop/bare", None, egress, 443),
            beyond,
        ]);
        let objects: Vec<Value> = advice.policies.iter().map(ProposedPolicy::object).collect();
        let read: Vec<Value> =
            values(&text).unwrap().into_iter().filter(|value| !value.is_null()).collect();
        assert_eq!(read, objects);
        assert_eq!(list(&advice)["items"], Value::from(objects));
        insta::assert_snapshot!(text, @r#"
        # These policies allow what would have been denied on this node since 12:00:00, and no more that labels tell apart.
        # Left out, as no NetworkPolicy can allow what is denied by: Admin policy base (priority 1) egress[0].
        # Left out: pods of namespace shop without labels of their own; no policy can select those alone.
        ---
        apiVersion: networking.k8s.io/v1
        kind: NetworkPolicy
        metadata:
          name: allow-seen-web
          namespace: shop
        spec:
          podSelector:
            matchLabels:
              app: web
              "on": "yes"
          policyTypes:
          - Ingress
          - Egress
          ingress:
          # 5 flows, from 12:01:01 to 13:00:00
          # all ports, because a protocol without ports was seen, which only this allows
          # every pod of ops, because one without labels of its own was seen
          - from:
            - namespaceSelector:
                matchLabels:
                  kubernetes.io/metadata.name: ops
              podSelector: {}
          # 10 flows, from 12:01:01 to 13:00:00
          - from:
            - namespaceSelector:
                matchLabels:
                  kubernetes.io/metadata.name: ops
              podSelector:
                matchLabels:
                  app: probe
                  "on": "yes"
            - podSelector:
                matchLabels:
                  app: api
                  "on": "yes"
            ports:
            - port: 80
              protocol: TCP
          egress:
          # 5 flows, from 12:01:01 to 13:00:00
          - ports:
            - port: 443
              protocol: TCP
            to:
            - ipBlock:
                cidr: "203.0.113.9/32"
        "#);
    }

    #[test]
    fn nothing_seen_proposes_nothing() {
        let (text, advice) = shown(Vec::new());
        assert_eq!(advice, Advice::default());
        assert_eq!(
            text,
            "# Nothing to propose: no audit has let a flow pass that a NetworkPolicy could allow, since 12:00:00.\n"
        );
    }
}
