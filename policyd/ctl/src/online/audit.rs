//! `audit`: what would have been denied, so that a policy can be judged before it is enforced.

use std::collections::{BTreeMap, BTreeSet};

use clap::Args;
use hyper::Method;
use podgate_contract::api::{
    Audit, AuditQuery, AuditedFlows, Direction, Enforcement, EnforcementState,
};
use podgate_policy::reach::Target;

use super::client::{Client, Server, decode};
use super::clock::{moment, now};
use crate::target::target;
use crate::{Failure, Format, Outcome, Printer};

/// Arguments of `audit`.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Only what this policy would have denied: namespace/name, or the name of a cluster policy
    #[arg(long, value_name = "NAME")]
    pub policy: Option<String>,
    /// Only at gates of pods of this namespace
    #[arg(short, long)]
    pub namespace: Option<String>,
    /// Only where this pod is one of the ends
    #[arg(long, value_name = "POD", value_parser = target)]
    pub pod: Option<Target>,
    /// Forget what was seen so far, so that it begins anew
    #[arg(long, conflicts_with_all = ["policy", "namespace", "pod"])]
    pub reset: bool,
}

pub(crate) fn audit(
    printer: &Printer,
    server: &Server,
    options: &Options,
) -> Result<Outcome, Failure> {
    let client = Client::new(server)?;
    let (method, query) = match options.reset {
        true => (Method::DELETE, AuditQuery::default()),
        false => (Method::GET, query(options)?),
    };
    let path = path(&query);
    let answer = client.ask(method, &path, None)?;
    if printer.format == Format::Json {
        printer.print(&String::from_utf8_lossy(&answer))?;
        return Ok(Outcome::Expected);
    }
    let audit = decode::<Audit>(&path, &answer)?;
    let state = client.get::<EnforcementState>("/v1/enforcement")?;
    printer.print(&describe(printer, &audit, &audited(&state, &query), now()))?;
    Ok(Outcome::Expected)
}

fn query(options: &Options) -> Result<AuditQuery, Failure> {
    let Options { policy, namespace, pod, reset: _ } = options;
    let pod = match pod {
        None => None,
        Some(Target::Pod(key)) => Some(key.to_string()),
        Some(other) => {
            return Err(Failure(format!("audit {other}: must be a pod, as namespace/name")));
        }
    };
    Ok(AuditQuery { policy: policy.clone(), namespace: namespace.clone(), pod })
}

/// Names of objects need no escapes; whatever else was given is escaped, and matches nothing.
pub(super) fn path(query: &AuditQuery) -> String {
    let AuditQuery { policy, namespace, pod } = query;
    let given = [("policy", policy), ("namespace", namespace), ("pod", pod)];
    let given = given.into_iter().filter_map(|(key, value)| Some((key, value.as_ref()?)));
    let pairs: Vec<String> =
        given.map(|(key, value)| format!("{key}={}", escaped(value))).collect();
    match pairs.is_empty() {
        true => "/v1/audit".to_owned(),
        false => format!("/v1/audit?{}", pairs.join("&")),
    }
}

fn escaped(value: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._/".contains(&byte);
    let escape = |byte: u8| match plain(byte) {
        true => char::from(byte).to_string(),
        false => format!("%{byte:02X}"),
    };
    value.bytes().map(escape).collect()
}

/// The audited policies that the query asks for.
fn audited(state: &EnforcementState, query: &AuditQuery) -> Audited {
    let policies = state.policies.iter().map(|policy| (Some(&policy.namespace), &policy.name));
    let cluster = state.cluster_policies.iter().map(|policy| (None, &policy.name));
    let mut names = BTreeSet::new();
    for (namespace, name) in policies.chain(cluster) {
        let shown = match namespace {
            Some(namespace) => format!("{namespace}/{name}"),
            None => name.clone(),
        };
        // a cluster policy may deny in any namespace
        let here = query.namespace.is_none()
            || namespace.is_none()
            || query.namespace.as_ref() == namespace;
        if here && query.policy.as_ref().is_none_or(|wanted| *wanted == shown) {
            names.insert(shown);
        }
    }
    Audited { names, is_narrowed: *query != AuditQuery::default() }
}

/// The audited policies that were asked for.
#[derive(Debug, Default)]
struct Audited {
    names: BTreeSet<String>,
    /// Whether only some were asked for.
    is_narrowed: bool,
}

/// What one policy would have denied.
#[derive(Debug, Default)]
struct Sum {
    pairs: usize,
    flows: u64,
}

fn describe(printer: &Printer, audit: &Audit, audited: &Audited, now: f64) -> String {
    let since = moment(audit.since, now);
    let mut lines = Vec::new();
    if audit.flows.is_empty() {
        lines.push(nothing(audit, audited, &since));
    } else {
        lines.push(table(printer, &audit.flows, now));
        lines.push(String::new());
        lines.extend(sums(audit, audited, &since));
    }
    if audit.unlisted > 0 {
        lines.push(format!(
            "not listed, as the list is full: {} of further pairs; podgatectl audit --reset empties it",
            count(audit.unlisted, "flow")
        ));
    }
    if audit.lost > 0 {
        lines.push(format!(
            "{} lost meanwhile: counts are lower bounds, and pairs may be missing",
            match audit.lost {
                1 => "1 event was".to_owned(),
                lost => format!("{lost} events were"),
            }
        ));
    }
    lines.join("\n")
}

fn nothing(audit: &Audit, audited: &Audited, since: &str) -> String {
    let names = || audited.names.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
    let of_those = if audited.is_narrowed { " of those asked for" } else { "" };
    match (audit.mode, audited.names.len()) {
        (Enforcement::Audit, 0) => format!(
            "no flow would have been denied since {since} by the policies in force; this node's mode is audit"
        ),
        (_, 0) => format!(
            "no policy{of_those} is audited: what is denied is dropped, see podgatectl observe --denied\n\
             to audit a policy: kubectl annotate networkpolicy -n NAMESPACE NAME podgate.io/mode=audit"
        ),
        (Enforcement::Audit, many) => format!(
            "no flow would have been denied since {since}, neither by the policies in force nor by the {}: {}",
            audited_policies(many),
            names(),
        ),
        (_, many) => format!(
            "no flow would have been denied since {since} by the {}: {}",
            audited_policies(many),
            names(),
        ),
    }
}

fn audited_policies(many: usize) -> String {
    match many {
        1 => "audited policy".to_owned(),
        many => format!("{many} audited policies"),
    }
}

/// A line for each policy.
fn sums(audit: &Audit, audited: &Audited, since: &str) -> Vec<String> {
    let mut of: BTreeMap<&str, Sum> =
        audited.names.iter().map(|name| (&**name, Sum::default())).collect();
    for row in &audit.flows {
        for policy in &row.policies {
            let sum = of.entry(policy).or_default();
            sum.pairs += 1;
            sum.flows += row.flows;
        }
    }
    let is_all = audit.lost == 0 && audit.unlisted == 0;
    let line = |(policy, Sum { pairs, flows }): (&str, Sum)| {
        let what = match pairs {
            0 => format!("nothing since {since}"),
            _ => format!("{}, {} since {since}", count(pairs as u64, "pair"), count(flows, "flow")),
        };
        let also = match (audited.names.contains(policy), audit.mode) {
            (true, _) if is_all && pairs > 0 => "; nothing else that was seen would change",
            (true, _) => "",
            (false, Enforcement::Audit) => " (it is in force; this node's mode is audit)",
            (false, _) => " (it is not audited any more)",
        };
        format!("{policy}: {what}{also}")
    };
    of.into_iter().map(line).collect()
}

fn table(printer: &Printer, flows: &[AuditedFlows], now: f64) -> String {
    let header = ["FROM", "TO", "PORT", "WOULD BE DENIED BY", "SINCE", "LAST", "FLOWS"];
    let mut table = printer.listing(&header);
    for row in flows {
        let peer = row.peer.clone().unwrap_or_else(|| row.peer_address.to_string());
        let (from, to) = match row.direction {
            Direction::Egress => (row.pod.clone(), peer),
            Direction::Ingress => (peer, row.pod.clone()),
        };
        let port = match row.port {
            0 => row.protocol.clone(),
            port => format!("{port}/{}", row.protocol),
        };
        let by = match (&row.rule, row.policies.as_slice()) {
            (Some(rule), _) => rule.clone(),
            (None, []) => row.reason.clone(),
            (None, policies) => format!("{}: no rule allows it", policies.join(", ")),
        };
        let (first, last) = (moment(row.first, now), moment(row.last, now));
        table.add_row([from, to, port, by, first, last, row.flows.to_string()]);
    }
    table.to_string()
}

fn count(many: u64, what: &str) -> String {
    match many {
        1 => format!("1 {what}"),
        many => format!("{many} {what}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::Colors;

    /// 2025-11-30 12:00:00
    const NOON: f64 = 1_764_504_000.0;

    fn printer() -> Printer {
        Printer::new(Format::Table, Colors::Never, true)
    }

    fn row(peer: Option<&str>, direction: Direction, port: u16, flows: u64) -> AuditedFlows {
        AuditedFlows {
            pod: "shop/db-0".into(),
            pod_labels: BTreeMap::new(),
            direction,
            peer: peer.map(str::to_owned),
            peer_labels: BTreeMap::new(),
            peer_address: "203.0.113.9".parse().unwrap(),
            protocol: if port == 0 { "ICMP".into() } else { "TCP".into() },
            port,
            reason: "policy".into(),
            rule: Some("shop/deny isolates for ingress".into()),
            policies: vec!["shop/deny".into()],
            allowable: true,
            first: NOON + 61.0,
            last: NOON + 3600.0,
            flows,
        }
    }

    fn audit(flows: Vec<AuditedFlows>) -> Audit {
        Audit { mode: Enforcement::Enforce, since: NOON, lost: 0, unlisted: 0, flows }
    }

    fn named(names: &[&str]) -> Audited {
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        Audited { names, is_narrowed: false }
    }

    fn shown(audit: &Audit, audited: &Audited) -> String {
        let text = describe(&printer(), audit, audited, NOON + 7200.0);
        text.lines().map(str::trim_end).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn who_to_whom_since_when_how_often_and_a_line_for_each_policy() {
        let mut of_node = row(None, Direction::Egress, 0, 1);
        of_node.rule = None;
        of_node.policies = vec!["shop/a".into(), "shop/b".into()];
        let rows = vec![row(Some("shop/cron"), Direction::Ingress, 5432, 16), of_node];
        insta::assert_snapshot!(shown(&audit(rows), &named(&["base", "shop/deny"])), @r"
        FROM       TO           PORT      WOULD BE DENIED BY                 SINCE     LAST      FLOWS
        shop/cron  shop/db-0    5432/TCP  shop/deny isolates for ingress     12:01:01  13:00:00  16
        shop/db-0  203.0.113.9  ICMP      shop/a, shop/b: no rule allows it  12:01:01  13:00:00  1

        base: nothing since 12:00:00
        shop/a: 1 pair, 1 flow since 12:00:00 (it is not audited any more)
        shop/b: 1 pair, 1 flow since 12:00:00 (it is not audited any more)
        shop/deny: 1 pair, 16 flows since 12:00:00; nothing else that was seen would change
        ");
    }

    #[test]
    fn what_was_lost_makes_counts_lower_bounds() {
        let mut audit = audit(vec![row(None, Direction::Ingress, 80, 1)]);
        (audit.lost, audit.unlisted) = (12, 1);
        insta::assert_snapshot!(shown(&audit, &named(&["shop/deny"])), @r"
        FROM         TO         PORT    WOULD BE DENIED BY              SINCE     LAST      FLOWS
        203.0.113.9  shop/db-0  80/TCP  shop/deny isolates for ingress  12:01:01  13:00:00  1

        shop/deny: 1 pair, 1 flow since 12:00:00
        not listed, as the list is full: 1 flow of further pairs; podgatectl audit --reset empties it
        12 events were lost meanwhile: counts are lower bounds, and pairs may be missing
        ");
    }

    #[test]
    fn nothing_seen_says_by_which_policies() {
        let none = audit(Vec::new());
        let in_audit = Audit { mode: Enforcement::Audit, ..none.clone() };
        let told = [
            shown(&none, &named(&["base", "shop/deny"])),
            shown(&none, &named(&["base"])),
            shown(&none, &named(&[])),
            shown(&none, &Audited { is_narrowed: true, ..Audited::default() }),
            shown(&in_audit, &named(&[])),
            shown(&in_audit, &named(&["base"])),
        ];
        insta::assert_snapshot!(told.join("\n"), @r"
        no flow would have been denied since 12:00:00 by the 2 audited policies: base, shop/deny
        no flow would have been denied since 12:00:00 by the audited policy: base
        no policy is audited: what is denied is dropped, see podgatectl observe --denied
        to audit a policy: kubectl annotate networkpolicy -n NAMESPACE NAME podgate.io/mode=audit
        no policy of those asked for is audited: what is denied is dropped, see podgatectl observe --denied
        to audit a policy: kubectl annotate networkpolicy -n NAMESPACE NAME podgate.io/mode=audit
        no flow would have been denied since 12:00:00 by the policies in force; this node's mode is audit
        no flow would have been denied since 12:00:00, neither by the policies in force nor by the audited policy: base
        ");
    }

    #[test]
    fn a_query_is_escaped() {
        let query = AuditQuery { policy: Some("shop/a b&c".into()), ..AuditQuery::default() };
        assert_eq!(path(&query), "/v1/audit?policy=shop/a%20b%26c");
        assert_eq!(path(&AuditQuery::default()), "/v1/audit");
    }
}
