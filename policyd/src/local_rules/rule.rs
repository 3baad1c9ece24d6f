//! One local rule: from what the API or the state file says to what the engine evaluates.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use podgate_contract::api::{NewRule, RuleSpec};
use podgate_policy::convert::{FieldError, local_rule};
use podgate_policy::model::{LocalRule, ObjectKey};

/// Bytes of a comment.
const MAX_COMMENT: usize = 256;

/// Ten years: more is a mistake of unit.
const MAX_LIFETIME: u64 = 10 * 366 * 24 * 3600;

/// A rule that was read.
#[derive(Clone, Debug)]
pub(super) struct Rule {
    /// As the engine evaluates it.
    pub(super) rule: LocalRule,
    /// In the one spelling that equal rules share.
    pub(super) spec: RuleSpec,
    pub(super) comment: Option<String>,
    /// Seconds since 1970.
    pub(super) expires: Option<u64>,
}

impl Rule {
    /// Reads the parts of a rule. Errors name the field.
    pub(super) fn read(
        id: u32,
        said: RuleSpec,
        comment: Option<String>,
        expires: Option<u64>,
    ) -> Result<Self, FieldError> {
        let (spec, rule) = local_rule(id, said)?;
        let comment = comment.filter(|comment| !comment.is_empty());
        if let Some(comment) = &comment {
            if comment.len() > MAX_COMMENT {
                let cause = format!("must be at most {MAX_COMMENT} bytes, has {}", comment.len());
                return Err(FieldError::new("comment", cause));
            }
            if comment.chars().any(char::is_control) {
                return Err(FieldError::new(
                    "comment",
                    "must be one line, without control characters",
                ));
            }
        }
        Ok(Self { rule, spec, comment, expires })
    }

    /// Reads a rule that is new at this moment.
    pub(super) fn new(id: u32, new: NewRule, now: SystemTime) -> Result<Self, FieldError> {
        let NewRule { direction, action, peer, protocol, ports, comment, lifetime, before: _ } =
            new;
        let expires = match lifetime {
            None => None,
            Some(0) => return Err(FieldError::new("lifetime", "must be at least 1 second")),
            Some(seconds) if seconds > MAX_LIFETIME => {
                let cause = format!("must be at most {MAX_LIFETIME} seconds, is {seconds}");
                return Err(FieldError::new("lifetime", cause));
            }
            Some(seconds) => Some(ceil(now + Duration::from_secs(seconds))),
        };
        Self::read(id, RuleSpec { direction, action, peer, protocol, ports }, comment, expires)
    }

    /// Its number.
    pub(super) fn id(&self) -> u32 {
        self.rule.id
    }

    /// Whether its lifetime is over.
    pub(super) fn is_over(&self, now: SystemTime) -> bool {
        self.expires.is_some_and(|expires| UNIX_EPOCH + Duration::from_secs(expires) <= now)
    }
}

/// Seconds since 1970, rounded up: a rule never ends early.
fn ceil(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    since.as_secs() + u64::from(since.subsec_nanos() > 0)
}

/// A pod's name as a rule may have it. What no pod is called is refused, since it would wait for ever.
pub(super) fn read_pod(pod: &ObjectKey) -> Result<(), FieldError> {
    let is_name = |text: &str| {
        let inside = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
        !text.is_empty() && text.len() <= 253 && text.chars().all(inside)
    };
    for (field, text) in [("namespace", &pod.namespace), ("pod", &pod.name)] {
        if !is_name(text) {
            let cause = format!(
                "must be the name of one, of letters, digits, '-', '_' and '.', is {text:?}"
            );
            return Err(FieldError::new(field, cause));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn read(more: Value) -> Result<Rule, FieldError> {
        let mut rule = json!({"direction": "ingress", "action": "deny"});
        rule.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        Rule::new(
            7,
            serde_json::from_value(rule).unwrap(),
            UNIX_EPOCH + Duration::from_millis(1500),
        )
    }

    #[test]
    fn what_is_wrong_is_named_by_its_field() {
        for (said, field) in [
            (json!({"peer": "10.0.0.0/33"}), "peer"),
            (json!({"lifetime": 0}), "lifetime"),
            (json!({"lifetime": u64::MAX}), "lifetime"),
            (json!({"comment": "x".repeat(257)}), "comment"),
            (json!({"comment": "two\nlines"}), "comment"),
        ] {
            assert_eq!(
                read(said.clone()).err().map(|error| error.path).as_deref(),
                Some(field),
                "{said}"
            );
        }
        for pod in ["shop/", "/web", "shop/we b", "sh\u{f6}p/web"] {
            let (namespace, name) = pod.split_once('/').unwrap();
            assert!(read_pod(&ObjectKey::new(namespace, name)).is_err(), "{pod}");
        }
        assert!(read_pod(&ObjectKey::new("shop", "web-0.a_b")).is_ok());
    }

    #[test]
    fn a_lifetime_ends_when_it_is_over_and_not_before() {
        let rule = read(json!({"lifetime": 2})).unwrap();
        assert_eq!(rule.expires, Some(4));
        let at = |millis| rule.is_over(UNIX_EPOCH + Duration::from_millis(millis));
        assert!(!at(3500) && !at(3999) && at(4000));
        assert!(!read(json!({})).unwrap().is_over(SystemTime::now()));
    }
}
