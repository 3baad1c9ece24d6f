//! One item of `from` or `to`.

use serde_json::Value;

use super::{Action, FieldError, MAX_ITEMS};
use crate::convert::parse_cidr;
use crate::convert::value::{self, Fields, Unread, items, text};
use crate::model::{Block, NamespaceScope, Peer};
use crate::selector::Selector;

/// What an item says.
pub(super) enum Read {
    Peers(Vec<Peer>),
    /// `domainNames`.
    Names,
}

/// `field`: `from` or `to`.
pub(super) fn read(item: &Value, path: &str, field: &str, action: Action) -> Result<Read, Unread> {
    let known: &[&str] = match field {
        "from" => &["namespaces", "pods"],
        _ => &["namespaces", "pods", "networks", "nodes", "domainNames"],
    };
    let (kind, value) = Fields::of(item, path)?.exactly_one(known)?;
    let path = format!("{path}.{kind}");
    let peers = match kind {
        "namespaces" => {
            let namespaces = NamespaceScope::Matching(value::selector(value, &path)?);
            vec![Peer::Pods { namespaces, pods: Selector::everything() }]
        }
        "pods" => {
            let (namespaces, pods) = value::pods(value, &path)?;
            vec![Peer::Pods { namespaces: NamespaceScope::Matching(namespaces), pods }]
        }
        "networks" => networks(value, &path)?,
        "nodes" => vec![Peer::Nodes(value::selector(value, &path)?)],
        _ => return names(value, &path, action),
    };
    Ok(Read::Peers(peers))
}

fn networks(value: &Value, path: &str) -> Result<Vec<Peer>, FieldError> {
    let read = |(nth, item): (usize, &Value)| {
        let path = format!("{path}[{nth}]");
        let text = text(item, &path)?;
        let cidr = parse_cidr(text).ok_or_else(|| {
            FieldError::new(path, format!("must be a CIDR like 10.0.0.0/8, is {text:?}"))
        })?;
        Ok(Peer::Block(Block { cidr, except: Vec::new() }))
    };
    items(value, path, MAX_ITEMS)?.iter().enumerate().map(read).collect()
}

/// Names of domains, which may only be accepted: what they stand for is never known completely, so that a denial of them
/// would not hold.
fn names(value: &Value, path: &str, action: Action) -> Result<Read, Unread> {
    for (nth, item) in items(value, path, MAX_ITEMS)?.iter().enumerate() {
        let path = format!("{path}[{nth}]");
        if text(item, &path)?.is_empty() {
            return Err(FieldError::new(path, "must not be empty").into());
        }
    }
    match action {
        Action::Accept => Ok(Read::Names),
        Action::Deny | Action::Pass => {
            Err(Unread::unknown(path, "must be given in an Accept rule only"))
        }
    }
}
