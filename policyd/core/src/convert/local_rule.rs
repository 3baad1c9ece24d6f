//! Local rules: from what the API and the state file say to what the engine evaluates.

use podgate_contract::api::{DefaultMode, Defaults, PodRules, RuleAction, RuleSpec};

use super::{FieldError, parse_cidr};
use crate::model::{
    Block, IpProtocol, LocalAction, LocalDefaults, LocalRule, LocalRules, ObjectKey, Peer, Peers,
    Port, Ports, Protocol,
};
use crate::reach::Target;

/// Reads a rule of this number. Returns it in the one spelling that equal rules share, too. Errors name the field.
pub fn local_rule(id: u32, said: RuleSpec) -> Result<(RuleSpec, LocalRule), FieldError> {
    let RuleSpec { direction, action, peer, protocol, ports } = said;
    let (peer, peers) = read_peer(peer.as_deref())?;
    let (protocol, ports, matched) = read_ports(protocol.as_deref(), ports.as_deref())?;
    let rule = LocalRule { id, direction, action: local_action(action), peers, ports: matched };
    Ok((RuleSpec { direction, action, peer, protocol, ports }, rule))
}

/// All that is said of a pod.
pub fn pod_rules(said: PodRules) -> Result<LocalRules, FieldError> {
    let PodRules { namespace, name, here: _, rules, defaults } = said;
    let rules = rules.into_iter().enumerate().map(|(at, rule)| {
        let read = local_rule(rule.id, rule.spec);
        let at =
            |field: FieldError| FieldError::new(format!("rules[{at}].{}", field.path), field.cause);
        read.map(|(_, rule)| rule).map_err(at)
    });
    Ok(LocalRules {
        pod: ObjectKey::new(namespace, name),
        rules: rules.collect::<Result<_, _>>()?,
        defaults: local_defaults(defaults),
    })
}

/// The default modes that something is said of.
pub fn local_defaults(said: Defaults) -> LocalDefaults {
    let action = |mode: Option<DefaultMode>| match mode {
        Some(DefaultMode::Allow) => Some(LocalAction::Allow),
        Some(DefaultMode::Deny) => Some(LocalAction::Deny),
        Some(DefaultMode::Reject) => Some(LocalAction::Reject),
        Some(DefaultMode::Unset) | None => None,
    };
    LocalDefaults { ingress: action(said.ingress), egress: action(said.egress) }
}

fn local_action(action: RuleAction) -> LocalAction {
    match action {
        RuleAction::Allow => LocalAction::Allow,
        RuleAction::Deny => LocalAction::Deny,
        RuleAction::Reject => LocalAction::Reject,
    }
}

fn read_peer(text: Option<&str>) -> Result<(Option<String>, Peers), FieldError> {
    let Some(text) = text else { return Ok((None, Peers::Any)) };
    let block = |cidr| Peers::of([Peer::Block(Block { cidr, except: Vec::new() })]);
    if let Some(cidr) = parse_cidr(text) {
        let text = match cidr.prefix_len() == cidr.max_prefix_len() {
            true => cidr.addr().to_string(),
            false => cidr.to_string(),
        };
        return Ok((Some(text), block(cidr)));
    }
    match text.parse() {
        Ok(Target::Address(address)) => Ok((Some(address.to_string()), block(address.into()))),
        Ok(Target::Pod(pod)) => Ok((Some(pod.to_string()), Peers::of([Peer::Pod(pod)]))),
        Ok(Target::Node(_) | Target::Service(_)) | Err(_) => Err(FieldError::new(
            "peer",
            format!(
                "must be an address, a prefix as in 10.0.0.0/8 or a pod as namespace/name, is {text:?}"
            ),
        )),
    }
}

type Read = (Option<String>, Option<String>, Ports);

/// The spelling of protocol and ports, and what they match.
fn read_ports(protocol: Option<&str>, ports: Option<&str>) -> Result<Read, FieldError> {
    let Some(protocol) = protocol else {
        return match ports {
            None => Ok((None, None, Ports::Any)),
            Some(_) => {
                Err(FieldError::new("protocol", "must be given with ports: TCP, UDP or SCTP"))
            }
        };
    };
    let known: IpProtocol = protocol
        .parse()
        .map_err(|error| FieldError::new("protocol", format!("{error}, is {protocol:?}")))?;
    let spelled = Some(known.to_string());
    let with_ports = known.with_ports();
    match (with_ports, ports) {
        (None, None) => Ok((spelled, None, Ports::Of(vec![Port::Of(known)]))),
        (None, Some(_)) => {
            Err(FieldError::new("ports", format!("must be left out: {known} has none")))
        }
        (Some(protocol), None) => Ok((spelled, None, Ports::Of(vec![Port::All(protocol)]))),
        (Some(protocol), Some(text)) => {
            let (text, port) = read_range(protocol, text)?;
            Ok((spelled, Some(text), Ports::Of(vec![port])))
        }
    }
}

fn read_range(protocol: Protocol, text: &str) -> Result<(String, Port), FieldError> {
    let wrong = || {
        let cause =
            format!("must be a port from 1 to 65535 or a range as in 8000-8999, is {text:?}");
        FieldError::new("ports", cause)
    };
    let number = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0).ok_or_else(wrong);
    let (first, last) = match text.split_once('-') {
        Some((first, last)) => (number(first)?, number(last)?),
        None => (number(text)?, number(text)?),
    };
    if first > last {
        return Err(FieldError::new("ports", format!("must be a range that grows, is {text:?}")));
    }
    let text = if first == last { first.to_string() } else { format!("{first}-{last}") };
    Ok((text, Port::Numbers(protocol, first..=last)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn read(more: Value) -> Result<(RuleSpec, LocalRule), FieldError> {
        let mut rule = json!({"direction": "ingress", "action": "deny"});
        rule.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        local_rule(7, serde_json::from_value(rule).unwrap())
    }

    #[test]
    fn equal_rules_are_spelled_alike() {
        for (said, spelled) in [
            (json!({"peer": "10.1.2.3/8"}), (Some("10.0.0.0/8"), None, None)),
            (json!({"peer": "10.0.0.1/32"}), (Some("10.0.0.1"), None, None)),
            (json!({"peer": "::ffff:10.0.0.1"}), (Some("10.0.0.1"), None, None)),
            (json!({"peer": "shop/web"}), (Some("shop/web"), None, None)),
            (json!({"protocol": "tcp"}), (None, Some("TCP"), None)),
            (json!({"protocol": "6", "ports": "80-80"}), (None, Some("TCP"), Some("80"))),
            (json!({"protocol": "47"}), (None, Some("GRE"), None)),
            (json!({"protocol": "253"}), (None, Some("253"), None)),
            (json!({"protocol": "Udp", "ports": "1-65535"}), (None, Some("UDP"), Some("1-65535"))),
        ] {
            let (spec, rule) = read(said).unwrap();
            let RuleSpec { peer, protocol, ports, .. } = &spec;
            assert_eq!((peer.as_deref(), protocol.as_deref(), ports.as_deref()), spelled);
            // what is written is read again as the same
            assert_eq!(local_rule(7, spec.clone()), Ok((spec, rule)));
        }
    }

    #[test]
    fn what_is_wrong_is_named_by_its_field() {
        for (said, field) in [
            (json!({"peer": "10.0.0.0/33"}), "peer"),
            (json!({"peer": ""}), "peer"),
            (json!({"peer": "node:worker"}), "peer"),
            (json!({"peer": "svc:shop/web"}), "peer"),
            (json!({"protocol": "IPX"}), "protocol"),
            (json!({"protocol": "255"}), "protocol"),
            (json!({"ports": "80"}), "protocol"),
            (json!({"protocol": "ICMP", "ports": "8"}), "ports"),
            (json!({"protocol": "TCP", "ports": "0"}), "ports"),
            (json!({"protocol": "TCP", "ports": "90-80"}), "ports"),
            (json!({"protocol": "TCP", "ports": "80-"}), "ports"),
            (json!({"protocol": "TCP", "ports": "70000"}), "ports"),
        ] {
            assert_eq!(
                read(said.clone()).err().map(|error| error.path).as_deref(),
                Some(field),
                "{said}"
            );
        }
    }
}
