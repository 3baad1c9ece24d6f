//! The words of a verdict, for every route; `podgate-policy` uses the same types.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Whether packets pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// They pass.
    Allow,
    /// It depends on the endpoint of the service that is selected: some are allowed, some are denied. Never said of a
    /// single packet.
    Mixed,
    /// They are dropped.
    Deny,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Allow => "allow",
            Self::Mixed => "mixed",
            Self::Deny => "deny",
        })
    }
}

/// Seen from the pod: `Ingress` is traffic to it, `Egress` traffic from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// To the pod (the `to_pod` program).
    Ingress,
    /// From the pod (the `from_pod` program).
    Egress,
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_and_text_are_the_same_word() {
        for verdict in [Verdict::Allow, Verdict::Mixed, Verdict::Deny] {
            assert_eq!(serde_json::to_string(&verdict).unwrap(), format!("\"{verdict}\""));
        }
        for direction in [Direction::Ingress, Direction::Egress] {
            assert_eq!(serde_json::to_string(&direction).unwrap(), format!("\"{direction}\""));
        }
    }
}
