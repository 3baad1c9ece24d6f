//! The protocol's versions, and the answer to VERSION.

use super::{CniError, Code};

/// A version of the CNI specification that this plugin speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SpecVersion {
    /// 0.3.1
    V0_3_1,
    /// 0.4.0: CHECK.
    V0_4_0,
    /// 1.0.0
    V1_0_0,
    /// 1.1.0: GC and STATUS.
    V1_1_0,
}

impl SpecVersion {
    /// Oldest first.
    pub const ALL: [Self; 4] = [Self::V0_3_1, Self::V0_4_0, Self::V1_0_0, Self::V1_1_0];
    /// The version of an error's JSON when the configuration's own one is not known.
    pub const LATEST: Self = Self::V1_1_0;

    /// As in `cniVersion`.
    pub fn text(self) -> &'static str {
        match self {
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }

    /// The version of a configuration.
    pub fn parse(text: &str) -> Result<Self, CniError> {
        Self::ALL.into_iter().find(|v| v.text() == text).ok_or_else(|| {
            let known: Vec<_> = Self::ALL.iter().map(|v| v.text()).collect();
            CniError::new(Code::IncompatibleVersion, "use configuration: incompatible CNI version")
                .because(format!(
                    "cniVersion is {text:?}, this plugin supports {}",
                    known.join(", ")
                ))
        })
    }

    /// An error if the configuration's version is older than `since`, in which the verb was introduced.
    pub fn require(self, verb: &str, since: Self) -> Result<(), CniError> {
        if self >= since {
            return Ok(());
        }
        Err(CniError::new(
            Code::IncompatibleVersion,
            format!("{verb} is not part of CNI {}", self.text()),
        )
        .because(format!("it came with {}: raise cniVersion to use it", since.text())))
    }

    /// The answer to VERSION.
    pub fn answer(self) -> String {
        let supported: Vec<_> = Self::ALL.iter().map(|v| v.text()).collect();
        serde_json::json!({ "cniVersion": self.text(), "supportedVersions": supported }).to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_parse_and_order() {
        for version in SpecVersion::ALL {
            assert_eq!(SpecVersion::parse(version.text()), Ok(version));
        }
        for text in ["", "0.3.0", "0.2.0", "1.2.0", "1.0", "v1.0.0"] {
            let error = SpecVersion::parse(text).unwrap_err();
            assert_eq!(error.code, Code::IncompatibleVersion, "{text}");
            assert!(error.details.contains("0.3.1, 0.4.0, 1.0.0, 1.1.0"), "{error}");
        }
        assert!(SpecVersion::V0_3_1.require("CHECK", SpecVersion::V0_4_0).is_err());
        assert!(SpecVersion::V0_4_0.require("CHECK", SpecVersion::V0_4_0).is_ok());
        assert!(SpecVersion::V1_0_0.require("GC", SpecVersion::V1_1_0).is_err());
    }
}
