//! The environment of a call: the verb and the attachment that it is for.

use std::path::PathBuf;

use super::{CniError, Code};

/// An attachment: one interface name of one container, the key of a runtime's records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// CNI_CONTAINERID.
    pub container_id: String,
    /// CNI_IFNAME.
    pub ifname: String,
    /// CNI_ARGS as given: DEL must not fail because of it, so only ADD parses it.
    pub args: String,
}

/// The verb with what it requires.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Attach the gates. With CNI_NETNS.
    Add(Attachment, PathBuf),
    /// Verify the gates. With CNI_NETNS.
    Check(Attachment, PathBuf),
    /// Remove the gates. Without CNI_NETNS, which the second DEL of every pod lacks and which is not needed.
    Del(Attachment),
    /// Remove the gates of attachments that are not in the list of valid ones.
    Gc,
    /// Report whether ADD would work.
    Status,
    /// Report the supported versions.
    Version,
}

/// Why there is no command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EnvError {
    /// CNI_COMMAND is not set: run by hand.
    NoCommand,
    /// Missing or malformed variables.
    Invalid(CniError),
}

impl Command {
    /// Reads the environment; all that is missing is reported together.
    pub fn from_env(env: &impl Fn(&str) -> Option<String>) -> Result<Self, EnvError> {
        let get = |name: &str| env(name).filter(|value| !value.is_empty());
        let Some(verb) = get("CNI_COMMAND") else { return Err(EnvError::NoCommand) };
        let required: &[&str] = match verb.as_str() {
            "ADD" | "CHECK" => &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"],
            "DEL" => &["CNI_CONTAINERID", "CNI_IFNAME"],
            // CNI_PATH is not needed: this plugin calls no other one
            "GC" | "STATUS" | "VERSION" => &[],
            other => return Err(invalid(format!("CNI_COMMAND is {other:?}, which is no verb"))),
        };
        let missing: Vec<_> = required.iter().copied().filter(|name| get(name).is_none()).collect();
        if !missing.is_empty() {
            return Err(invalid(format!("{} missing", missing.join(", "))));
        }
        let value = |name: &str| get(name).unwrap_or_default();
        let attachment = || {
            let attachment = Attachment {
                container_id: value("CNI_CONTAINERID"),
                ifname: value("CNI_IFNAME"),
                args: value("CNI_ARGS"),
            };
            if !is_identifier(&attachment.container_id) {
                return Err(invalid(format!(
                    "CNI_CONTAINERID is {:?}: letters, digits, '.', '_' and '-', the first a letter or digit",
                    attachment.container_id
                )));
            }
            if !is_interface_name(&attachment.ifname) {
                return Err(invalid(format!(
                    "CNI_IFNAME is {:?}, no name that an interface can have",
                    attachment.ifname
                )));
            }
            Ok(attachment)
        };
        let netns = || PathBuf::from(value("CNI_NETNS"));
        Ok(match verb.as_str() {
            "ADD" => Self::Add(attachment()?, netns()),
            "CHECK" => Self::Check(attachment()?, netns()),
            "DEL" => Self::Del(attachment()?),
            "GC" => Self::Gc,
            "STATUS" => Self::Status,
            _ => Self::Version,
        })
    }

    /// Whether it only removes. Such a verb accepts any input: if it failed, the runtime would not call the plugins
    /// before this one.
    pub fn only_removes(&self) -> bool {
        matches!(self, Self::Del(_) | Self::Gc)
    }

    /// As in CNI_COMMAND.
    pub fn verb(&self) -> &'static str {
        match self {
            Self::Add(..) => "ADD",
            Self::Check(..) => "CHECK",
            Self::Del(_) => "DEL",
            Self::Gc => "GC",
            Self::Status => "STATUS",
            Self::Version => "VERSION",
        }
    }
}

fn invalid(cause: String) -> EnvError {
    EnvError::Invalid(CniError::new(Code::InvalidEnvironment, "read environment").because(cause))
}

/// What the specification allows as container id and network name.
pub fn is_identifier(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))
}

/// What Linux allows as interface name.
fn is_interface_name(text: &str) -> bool {
    (1..=15).contains(&text.len())
        && text != "."
        && text != ".."
        && !text.contains(|c: char| c == '/' || c == ':' || c.is_whitespace())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(vars: &[(&str, &str)]) -> Result<Command, EnvError> {
        Command::from_env(&|name| {
            vars.iter().find(|(key, _)| *key == name).map(|(_, value)| value.to_string())
        })
    }

    fn cause(vars: &[(&str, &str)]) -> String {
        match command(vars) {
            Err(EnvError::Invalid(error)) => {
                assert_eq!(error.code, Code::InvalidEnvironment);
                error.details
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn all_missing_variables_are_named_together() {
        assert_eq!(
            cause(&[("CNI_COMMAND", "ADD")]),
            "CNI_CONTAINERID, CNI_NETNS, CNI_IFNAME missing"
        );
        assert_eq!(
            cause(&[("CNI_COMMAND", "CHECK"), ("CNI_IFNAME", "eth0")]),
            "CNI_CONTAINERID, CNI_NETNS missing"
        );
        assert_eq!(
            cause(&[("CNI_COMMAND", "DEL"), ("CNI_NETNS", "")]),
            "CNI_CONTAINERID, CNI_IFNAME missing"
        );
        assert_eq!(cause(&[("CNI_COMMAND", "add")]), "CNI_COMMAND is \"add\", which is no verb");
        assert_eq!(command(&[]), Err(EnvError::NoCommand));
        assert_eq!(command(&[("CNI_COMMAND", "")]), Err(EnvError::NoCommand));
    }

    #[test]
    fn del_needs_no_namespace_and_the_rest_nothing() {
        let del = [("CNI_COMMAND", "DEL"), ("CNI_CONTAINERID", "c"), ("CNI_IFNAME", "eth0")];
        assert!(matches!(command(&del), Ok(Command::Del(_))));
        for verb in ["GC", "STATUS", "VERSION"] {
            assert_eq!(command(&[("CNI_COMMAND", verb)]).map(|c| c.verb()), Ok(verb));
        }
    }

    #[test]
    fn malformed_names_are_refused() {
        let with = |id: &str, ifname: &str| {
            cause(&[("CNI_COMMAND", "DEL"), ("CNI_CONTAINERID", id), ("CNI_IFNAME", ifname)])
        };
        for id in ["../x", "-a", "a b", "a/b", "ä"] {
            assert!(with(id, "eth0").starts_with("CNI_CONTAINERID"), "{id}");
        }
        for name in ["a/b", "..", "a b", "sixteen-letters!", "eth0:1"] {
            assert!(with("c", name).starts_with("CNI_IFNAME"), "{name}");
        }
    }
}
