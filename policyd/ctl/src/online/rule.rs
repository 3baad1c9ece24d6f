//! `rule add|del|list|default`: what the operator of this node says of single pods.

use std::time::{SystemTime, UNIX_EPOCH};

use clap::{ArgGroup, Args, Subcommand, ValueEnum};
use hyper::Method;
use podgate_contract::api::{
    ChangeKind, DefaultMode, Defaults, Direction, LocalRule, NewRule, NodeRules, PodRules,
    RuleAction, RuleChange, RulesRemoved,
};
use podgate_policy::model::ObjectKey;
use podgate_policy::reach::Target;

use super::client::{Client, Server, decode};
use crate::output::json;
use crate::target::target;
use crate::{Failure, Format, Outcome, Printer};

/// What stands for every peer.
const ANY: &str = "any";

const ADD: &str = "\
A rule of the node's operator comes before every policy, also before ClusterNetworkPolicies of the Admin tier; the
first rule of a pod that matches decides. Own addresses, what the pod's own node sends and replies always pass.
Rules survive restarts, and wait for a pod that is not here yet. The same rule again renews --for and --comment.

Examples:
  podgatectl rule add shop/web allow --from 10.1.0.0/16 --port 443
  podgatectl rule add shop/web deny --from any --protocol icmp
  podgatectl rule add shop/web reject --to 169.254.169.254 --comment 'no metadata'
  podgatectl rule add shop/db allow --from shop/report --port 5432/TCP --for 2h
  podgatectl rule add shop/web allow --to any --port 8000-8999/UDP --before 3";

const DEFAULT: &str = "\
What becomes of traffic that no rule and no policy speaks of: `allow` (rules list what does not pass), `deny` or
`reject` (rules list what passes), or `unset` (for a pod the node's mode holds, for the node it passes). Where a
NetworkPolicy isolates a pod, it decides everything, and no default is asked. Without --ingress and --egress the modes
are shown.

Examples:
  podgatectl rule default node --ingress deny
  podgatectl rule default shop/web --ingress deny --egress allow
  podgatectl rule default shop/web";

/// `rule`.
#[derive(Debug, Subcommand)]
pub(crate) enum Rule {
    /// Add a rule to a pod
    #[command(after_help = ADD)]
    Add(Add),
    /// Remove rules of a pod
    #[command(
        visible_alias = "delete",
        after_help = "Examples:\n  podgatectl rule del shop/web 3\n  podgatectl rule del shop/web --all"
    )]
    Del(Del),
    /// List rules in the order of their evaluation, with the new flows that they decided on
    #[command(
        visible_alias = "ls",
        after_help = "\
New flows are those that a rule decided on since its entries were written, which a change of rules or of their peers may
do; packets of a flow that is known are not counted by rule. What is denied becomes no flow: each packet of it counts.

Examples:
  podgatectl rule list
  podgatectl rule list shop/web -o json"
    )]
    List {
        /// Only of this pod, as namespace/name
        #[arg(value_parser = target)]
        pod: Option<Target>,
    },
    /// Say what becomes of traffic that no rule and no policy speaks of
    #[command(after_help = DEFAULT)]
    Default(ByDefault),
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("peer").required(true))]
pub(crate) struct Add {
    /// The pod, as namespace/name
    #[arg(value_parser = target)]
    pod: Target,
    /// What becomes of the packets that the rule matches
    #[arg(value_enum)]
    action: Action,
    /// Of what reaches the pod from here: an address, a prefix, namespace/pod, or any
    #[arg(long, value_name = "PEER", group = "peer")]
    from: Option<String>,
    /// Of what the pod sends to here: an address, a prefix, namespace/pod, or any
    #[arg(long, value_name = "PEER", group = "peer")]
    to: Option<String>,
    /// Destination port or range, with its protocol unless that is TCP: 443, 53/UDP, 8000-8999/TCP
    #[arg(long, value_name = "PORT", conflicts_with = "protocol")]
    port: Option<String>,
    /// A protocol by name or number, all its packets: tcp, icmp, gre, 47; without and without --port everything
    #[arg(long, value_name = "PROTOCOL")]
    protocol: Option<String>,
    /// The rule is gone after this time: 30s, 15m, 2h, 7d
    #[arg(long = "for", value_name = "TIME", value_parser = seconds)]
    lifetime: Option<u64>,
    /// Why it is there
    #[arg(long, value_name = "TEXT")]
    comment: Option<String>,
    /// Evaluate it before the rule of this number, not last
    #[arg(long, value_name = "NUMBER")]
    before: Option<u32>,
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("which").required(true))]
pub(crate) struct Del {
    /// The pod, as namespace/name
    #[arg(value_parser = target)]
    pod: Target,
    /// Numbers of rules, as `rule list` shows them
    #[arg(value_name = "NUMBER", group = "which")]
    rules: Vec<u32>,
    /// All rules of the pod
    #[arg(long, group = "which")]
    all: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ByDefault {
    /// The pod, as namespace/name, or `node`: all its pods
    #[arg(value_name = "POD|node")]
    of: String,
    /// Of what reaches the pod
    #[arg(long, value_enum, value_name = "MODE")]
    ingress: Option<Mode>,
    /// Of what it sends
    #[arg(long, value_enum, value_name = "MODE")]
    egress: Option<Mode>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Action {
    /// They pass
    Allow,
    /// They are dropped
    Deny,
    /// They are dropped, and their sender is told
    Reject,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Mode {
    /// It passes
    Allow,
    /// It is dropped
    Deny,
    /// It is dropped, and its sender is told
    Reject,
    /// Nothing is said
    Unset,
}

impl From<Mode> for DefaultMode {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Allow => Self::Allow,
            Mode::Deny => Self::Deny,
            Mode::Reject => Self::Reject,
            Mode::Unset => Self::Unset,
        }
    }
}

/// Runs one of them.
pub(crate) fn rule(printer: &Printer, server: &Server, rule: Rule) -> Result<Outcome, Failure> {
    match rule {
        Rule::Add(add) => self::add(printer, server, add)?,
        Rule::Del(del) => self::del(printer, server, &del)?,
        Rule::List { pod } => list(printer, server, pod.as_ref())?,
        Rule::Default(default) => self::default(printer, server, &default)?,
    }
    Ok(Outcome::Expected)
}

fn add(printer: &Printer, server: &Server, add: Add) -> Result<(), Failure> {
    let pod = pod(&add.pod)?;
    let path = path(&pod, "rules");
    let answer = Client::new(server)?.ask(Method::PUT, &path, Some(json(&asked(add)?)?))?;
    if printer.format == Format::Json {
        return Ok(printer.print(&String::from_utf8_lossy(&answer))?);
    }
    let RuleChange { change, rule, here, problems } = decode(&path, &answer)?;
    let done = if change == ChangeKind::Created { "added" } else { "renewed" };
    let mut text = format!("{done} rule {} of {pod}: {}", rule.id, describe(&rule));
    if !here {
        text += &format!("\n{pod} has no gate on this node: the rule waits for it");
    }
    Ok(printer.print(&with_problems(text, &problems))?)
}

fn asked(add: Add) -> Result<NewRule, Failure> {
    let Add { pod: _, action, from, to, port, protocol, lifetime, comment, before } = add;
    let (direction, peer) = match (from, to) {
        (Some(from), _) => (Direction::Ingress, from),
        (None, to) => (Direction::Egress, to.unwrap_or_else(|| ANY.to_owned())),
    };
    let (ports, protocol) = match port {
        None => (None, protocol),
        Some(port) => match port.split_once('/') {
            None => (Some(port), Some("TCP".to_owned())),
            Some((ports, protocol)) => (Some(ports.to_owned()), Some(protocol.to_owned())),
        },
    };
    Ok(NewRule {
        direction,
        action: match action {
            Action::Allow => RuleAction::Allow,
            Action::Deny => RuleAction::Deny,
            Action::Reject => RuleAction::Reject,
        },
        peer: Some(peer).filter(|peer| !peer.eq_ignore_ascii_case(ANY)),
        protocol,
        ports,
        comment,
        lifetime,
        before,
    })
}

fn del(printer: &Printer, server: &Server, del: &Del) -> Result<(), Failure> {
    let pod = pod(&del.pod)?;
    let path = path(&pod, "rules");
    let paths: Vec<String> = match del.all {
        true => vec![path],
        false => del.rules.iter().map(|id| format!("{path}?id={id}")).collect(),
    };
    let client = Client::new(server)?;
    for path in paths {
        let answer = client.ask(Method::DELETE, &path, None)?;
        if printer.format == Format::Json {
            printer.print(&String::from_utf8_lossy(&answer))?;
            continue;
        }
        let RulesRemoved { removed, problems } = decode(&path, &answer)?;
        let numbers = removed.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let text = match removed.len() {
            0 => format!("{pod} has no rules"),
            1 => format!("removed rule {numbers} of {pod}"),
            _ => format!("removed rules {numbers} of {pod}"),
        };
        printer.print(&with_problems(text, &problems))?;
    }
    Ok(())
}

fn list(printer: &Printer, server: &Server, of: Option<&Target>) -> Result<(), Failure> {
    let path = match of {
        Some(of) => path(&pod(of)?, "rules"),
        None => "/v1/rules".to_owned(),
    };
    let client = Client::new(server)?;
    let answer = client.ask(Method::GET, &path, None)?;
    if printer.format == Format::Json {
        return Ok(printer.print(&String::from_utf8_lossy(&answer))?);
    }
    let NodeRules { pods, defaults: node } = match of {
        Some(_) => {
            let defaults = client.get("/v1/defaults")?;
            NodeRules { pods: vec![decode(&path, &answer)?], defaults }
        }
        None => decode(&path, &answer)?,
    };
    let header =
        ["POD", "RULE", "DIRECTION", "ACTION", "PEER", "PORTS", "ENDS IN", "NEW FLOWS", "COMMENT"];
    let mut table = printer.listing(&header);
    for pod in &pods {
        for rule in &pod.rules {
            table.add_row([
                format!("{}/{}", pod.namespace, pod.name),
                rule.id.to_string(),
                rule.spec.direction.to_string(),
                word(rule.spec.action).to_owned(),
                rule.spec.peer.clone().unwrap_or_else(|| ANY.to_owned()),
                ports(rule),
                rule.expires.map_or_else(|| "-".to_owned(), left),
                rule.new_flows.to_string(),
                rule.comment.clone().unwrap_or_default(),
            ]);
        }
    }
    let mut text = table.to_string();
    for pod in &pods {
        let name = format!("{}/{}", pod.namespace, pod.name);
        if said(pod.defaults) {
            text += &format!("\n{name}: by default {}", modes(pod.defaults));
        }
        if !pod.here && !pod.rules.is_empty() {
            text += &format!("\n{name} has no gate on this node: its rules wait for it");
        }
    }
    if said(node) {
        text += &format!("\nnode: by default {}", modes(node));
    }
    Ok(printer.print(&text)?)
}

fn default(printer: &Printer, server: &Server, default: &ByDefault) -> Result<(), Failure> {
    let ByDefault { of, ingress, egress } = default;
    let pod = match of.as_str() {
        "node" => None,
        of => {
            let named = target(of).map_err(|cause| Failure(format!("read {of}: {cause}")))?;
            Some(pod(&named)?)
        }
    };
    let wanted = Defaults { ingress: ingress.map(Into::into), egress: egress.map(Into::into) };
    let client = Client::new(server)?;
    let defaults: Defaults = match (wanted == Defaults::default(), &pod) {
        (true, None) => client.get("/v1/defaults")?,
        (true, Some(pod)) => client.get::<PodRules>(&path(pod, "rules"))?.defaults,
        (false, of) => {
            let path = match of {
                None => "/v1/defaults".to_owned(),
                Some(pod) => path(pod, "defaults"),
            };
            decode(&path, &client.ask(Method::PUT, &path, Some(json(&wanted)?))?)?
        }
    };
    if printer.format == Format::Json {
        return Ok(printer.print(&json(&defaults)?)?);
    }
    Ok(printer.print(&format!("{of}: by default {}", modes(defaults)))?)
}

fn pod(target: &Target) -> Result<ObjectKey, Failure> {
    match target {
        Target::Pod(pod) => Ok(pod.clone()),
        other => Err(Failure(format!("read {other}: rules are for a pod, write namespace/name"))),
    }
}

fn path(pod: &ObjectKey, what: &str) -> String {
    format!("/v1/endpoints/{}/{}/{what}", pod.namespace, pod.name)
}

/// `deny ingress from 10.0.0.0/8 on TCP 443, for 2 h`.
fn describe(rule: &LocalRule) -> String {
    let way = if rule.spec.direction == Direction::Ingress { "from" } else { "to" };
    let peer = rule.spec.peer.as_deref().unwrap_or(ANY);
    let ends = rule.expires.map(|at| format!(", for {}", left(at))).unwrap_or_default();
    let on = match ports(rule) {
        all if all == ANY => String::new(),
        ports => format!(" on {ports}"),
    };
    format!("{} {} {way} {peer}{on}{ends}", word(rule.spec.action), rule.spec.direction)
}

fn ports(rule: &LocalRule) -> String {
    match (&rule.spec.protocol, &rule.spec.ports) {
        (None, _) => ANY.to_owned(),
        (Some(protocol), None) => protocol.clone(),
        (Some(protocol), Some(ports)) => format!("{ports}/{protocol}"),
    }
}

fn word(action: RuleAction) -> &'static str {
    match action {
        RuleAction::Allow => "allow",
        RuleAction::Deny => "deny",
        RuleAction::Reject => "reject",
    }
}

fn said(defaults: Defaults) -> bool {
    let says = |mode: Option<DefaultMode>| mode.is_some_and(|mode| mode != DefaultMode::Unset);
    says(defaults.ingress) || says(defaults.egress)
}

fn modes(defaults: Defaults) -> String {
    let word = |mode: Option<DefaultMode>| match mode {
        Some(DefaultMode::Allow) => "allow",
        Some(DefaultMode::Deny) => "deny",
        Some(DefaultMode::Reject) => "reject",
        Some(DefaultMode::Unset) | None => "unset",
    };
    format!("ingress {}, egress {}", word(defaults.ingress), word(defaults.egress))
}

fn with_problems(mut text: String, problems: &[String]) -> String {
    for problem in problems {
        text += &format!("\nproblem: {problem}");
    }
    text
}

/// How long until a moment, given in seconds since 1970.
fn left(at: u64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    about(at.saturating_sub(now))
}

/// A time in the unit that people would use, rounded.
fn about(seconds: u64) -> String {
    let (unit, name) = match seconds {
        0..=90 => (1, "s"),
        91..=5_400 => (60, "min"),
        5_401..=129_600 => (3_600, "h"),
        _ => (24 * 3_600, "d"),
    };
    format!("{} {name}", (seconds + unit / 2) / unit)
}

/// A time as people write it, in seconds.
fn seconds(text: &str) -> Result<u64, String> {
    let wrong = || format!("must be a number and a unit as in 30s, 15m, 2h or 7d, is {text:?}");
    let unit = text.chars().last().ok_or_else(wrong)?;
    let number = &text[..text.len() - unit.len_utf8()];
    let factor = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 24 * 3600,
        _ => return Err(wrong()),
    };
    let number: u64 = number.parse().map_err(|_| wrong())?;
    number.checked_mul(factor).filter(|seconds| *seconds > 0).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(subcommand)]
        rule: Rule,
    }

    fn read(line: &str) -> Result<NewRule, String> {
        let parsed = Line::try_parse_from(["rule"].into_iter().chain(line.split(' ')));
        match parsed.map_err(|error| error.to_string())?.rule {
            Rule::Add(add) => asked(add).map_err(|failure| failure.0),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_lifetime_is_told_as_it_was_given_a_moment_ago() {
        for (seconds, text) in [
            (30, "30 s"),
            (90, "90 s"),
            (899, "15 min"),
            (7_201, "2 h"),
            (7_199, "2 h"),
            (604_801, "7 d"),
        ] {
            assert_eq!(about(seconds), text);
        }
    }

    #[test]
    fn a_rule_says_what_the_line_says() {
        let rule = read("add shop/web reject --from 10.0.0.0/8 --port 53/UDP --for 2h --before 3")
            .unwrap();
        assert_eq!((rule.direction, rule.action), (Direction::Ingress, RuleAction::Reject));
        assert_eq!(rule.peer.as_deref(), Some("10.0.0.0/8"));
        assert_eq!((rule.ports.as_deref(), rule.protocol.as_deref()), (Some("53"), Some("UDP")));
        assert_eq!((rule.lifetime, rule.before), (Some(7200), Some(3)));
        let rule = read("add shop/web allow --to any --port 8000-8999").unwrap();
        assert_eq!((rule.direction, rule.peer), (Direction::Egress, None));
        assert_eq!(
            (rule.ports.as_deref(), rule.protocol.as_deref()),
            (Some("8000-8999"), Some("TCP"))
        );
        let rule = read("add shop/web deny --to shop/db --protocol gre").unwrap();
        assert_eq!((rule.ports, rule.protocol.as_deref()), (None, Some("gre")));
    }

    #[test]
    fn a_line_that_says_too_little_or_too_much_is_refused() {
        for (line, says) in [
            ("add shop/web deny", "--from <PEER>|--to <PEER>"),
            ("add shop/web deny --from any --to any", "cannot be used with"),
            ("add shop/web maybe --from any", "possible values: allow, deny, reject"),
            ("add shop/web deny --from any --for 2", "a number and a unit"),
            ("add shop/web deny --from any --for 0s", "a number and a unit"),
            ("add shop/web deny --from any --port 80 --protocol tcp", "cannot be used with"),
            ("del shop/web", "NUMBER"),
            ("del shop/web 3 --all", "cannot be used with"),
        ] {
            let parsed = Line::try_parse_from(["rule"].into_iter().chain(line.split(' ')));
            let error = parsed.unwrap_err().to_string();
            assert!(error.contains(says), "{line}: {error}");
        }
        assert!(pod(&"10.0.0.1".parse().unwrap()).is_err());
    }

    #[test]
    fn times_have_units() {
        for (text, expected) in [("30s", 30), ("15m", 900), ("2h", 7200), ("7d", 604_800)] {
            assert_eq!(seconds(text), Ok(expected));
        }
        for text in ["", "s", "5", "-5s", "1.5h", "99999999999999999999d", "9\u{e9}"] {
            assert!(seconds(text).is_err(), "{text}");
        }
    }
}
