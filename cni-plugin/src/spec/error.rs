//! The error a runtime reads: a number it acts on and two texts that its user sees.

use std::fmt;

use serde::Serialize;

use super::SpecVersion;

/// Numbers below 100 are the specification's (8 is libcni's), those from 100 on podgate's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// `cniVersion` is not supported, or too old for the verb.
    IncompatibleVersion = 1,
    /// Environment variables are missing or malformed.
    InvalidEnvironment = 4,
    /// stdin or netlink could not be read.
    Io = 5,
    /// stdin is no JSON of the expected shape.
    Decode = 6,
    /// A configuration key has a value that it cannot have, or the plugin is not chained.
    InvalidConfig = 7,
    /// CNI_NETNS is no network namespace, or the plugin's own.
    InvalidNetns = 8,
    /// policyd is not ready and the configuration says to wait for it: the runtime tries again.
    TryAgain = 11,
    /// STATUS: policyd does not answer.
    NotAvailable = 50,
    /// Programs and maps could not be opened or loaded.
    Load = 100,
    /// An interface of the pod cannot have a gate: no veth, or its host end is elsewhere.
    NotGateable = 101,
    /// The endpoint could not be written to the registry.
    Register = 102,
    /// The programs could not be attached.
    Attach = 103,
    /// DEL or GC: something is still there.
    Remove = 104,
    /// CHECK: the endpoint is not registered, or registered as something else.
    NotRegistered = 105,
    /// CHECK: a program is missing, replaced, or not first.
    NotAttached = 106,
}

/// What went wrong, as printed on stdout.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct CniError {
    /// The number that the runtime acts on.
    pub code: Code,
    /// "verb object", the thing that failed.
    pub msg: String,
    /// Why, and what to do next; may be empty.
    pub details: String,
}

impl fmt::Display for CniError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.details.as_str() {
            "" => write!(f, "{}", self.msg),
            details => write!(f, "{}: {details}", self.msg),
        }
    }
}

impl CniError {
    /// An error without a cause yet.
    pub fn new(code: Code, msg: impl Into<String>) -> Self {
        Self { code, msg: msg.into(), details: String::new() }
    }

    /// Adds the cause.
    #[must_use]
    pub fn because(mut self, cause: impl fmt::Display) -> Self {
        self.details = cause.to_string();
        self
    }

    /// Adds errors of the rollback `what`.
    #[must_use]
    pub fn and_then(mut self, what: &str, others: &[String]) -> Self {
        if !others.is_empty() {
            let separator = if self.details.is_empty() { "" } else { "; " };
            self.details = format!("{}{separator}{what}: {}", self.details, others.join("; "));
        }
        self
    }

    /// The line for stdout.
    pub fn to_json(&self, version: SpecVersion) -> String {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Printed<'a> {
            cni_version: &'a str,
            code: u32,
            msg: &'a str,
            #[serde(skip_serializing_if = "str::is_empty")]
            details: &'a str,
        }
        let printed = Printed {
            cni_version: version.text(),
            code: self.code as u32,
            msg: &self.msg,
            details: &self.details,
        };
        // plain strings and a number: serialising cannot fail, and a runtime must never read nothing
        serde_json::to_string(&printed).unwrap_or_else(|_| {
            format!(r#"{{"cniVersion":"{}","code":{}}}"#, version.text(), self.code as u32)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_code_message_and_details() {
        let error = CniError::new(Code::TryAgain, "enforce policy").because("policyd is silent");
        assert_eq!(
            error.to_json(SpecVersion::V0_4_0),
            r#"{"cniVersion":"0.4.0","code":11,"msg":"enforce policy","details":"policyd is silent"}"#
        );
        assert_eq!(error.to_string(), "enforce policy: policyd is silent");
        let bare = CniError::new(Code::Io, "read stdin");
        assert_eq!(
            bare.to_json(SpecVersion::LATEST),
            r#"{"cniVersion":"1.1.0","code":5,"msg":"read stdin"}"#
        );
        let both =
            error.and_then("undo", &["detach 3: busy".into(), "unregister 3: no map".into()]);
        assert_eq!(both.details, "policyd is silent; undo: detach 3: busy; unregister 3: no map");
    }
}
