//! What annotations say of a policy, or of all NetworkPolicies of a namespace.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::FieldError;
use crate::model::{PolicyMode, PolicySettings};
use crate::object::KUBERNETES_SOURCE;

/// The annotation for whether a policy is in force: `enforce`, which is the default, or `audit`.
pub const MODE: &str = "podgate.io/mode";

/// The annotation with the label by which what a policy decides is reported.
pub const LOG: &str = "podgate.io/log";

/// The annotation for what becomes of what a policy denies: `drop`, which is the default, or `reject`.
pub const DENY: &str = "podgate.io/deny";

/// The longest label, in bytes. It is repeated in the report of each flow.
const MAX_LABEL: usize = 63;

/// Reads the annotations of an object that the source of this name gave. What cannot be read is an error; of an object that an
/// API server accepted it is a problem, and the policy is enforced and not reported: a slip in an annotation must not
/// take a policy out of force.
pub(super) fn settings(source: &str, metadata: &ObjectMeta) -> Result<PolicySettings, FieldError> {
    let annotation = |name: &str| metadata.annotations.as_ref()?.get(name).map(String::as_str);
    let mut settings = PolicySettings::default();
    let problems = &mut settings.problems;
    let mut fail = |name: &str, cause: String, instead: &str| {
        let field = format!("metadata.annotations[{name}]");
        if source != KUBERNETES_SOURCE {
            return Err(FieldError::new(field, cause));
        }
        problems.push(format!("{field}: {cause}; {instead}"));
        Ok(())
    };
    match annotation(MODE) {
        None | Some("enforce") => {}
        Some("audit") => settings.mode = PolicyMode::Audit,
        Some(other) => {
            fail(MODE, format!("must be enforce or audit, is {other:?}"), "it is enforced")?;
        }
    }
    match annotation(LOG) {
        None => {}
        Some(label) if is_label(label) => settings.log = Some(label.into()),
        Some(label) => {
            let cause = format!(
                "must be 1 to {MAX_LABEL} printable ASCII characters without spaces, is {label:?}"
            );
            fail(LOG, cause, "nothing is reported")?;
        }
    }
    match annotation(DENY) {
        None | Some("drop") => {}
        Some("reject") => settings.reject = true,
        Some(other) => {
            fail(DENY, format!("must be drop or reject, is {other:?}"), "it is dropped")?;
        }
    }
    Ok(settings)
}

fn is_label(label: &str) -> bool {
    (1..=MAX_LABEL).contains(&label.len()) && label.bytes().all(|byte| byte.is_ascii_graphic())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(source: &str, annotations: &[(&str, &str)]) -> Result<PolicySettings, FieldError> {
        let annotations = annotations.iter().map(|(name, value)| ((*name).into(), (*value).into()));
        let metadata =
            ObjectMeta { annotations: Some(annotations.collect()), ..ObjectMeta::default() };
        settings(source, &metadata)
    }

    #[test]
    fn mode_and_label_are_read() {
        let settings = read("dir", &[(MODE, "audit"), (LOG, "team-a"), ("other", "x")]).unwrap();
        assert_eq!((settings.mode, settings.log.as_deref()), (PolicyMode::Audit, Some("team-a")));
        assert!(read("dir", &[(DENY, "reject")]).unwrap().reject && !settings.reject);
        assert_eq!(read("dir", &[(DENY, "drop")]).unwrap(), PolicySettings::default());
        assert_eq!(read("dir", &[(MODE, "enforce")]).unwrap(), PolicySettings::default());
        assert_eq!(settings.problems, [""; 0]);
    }

    #[test]
    fn what_cannot_be_read_is_an_error_of_a_manifest_and_a_problem_of_an_api_server() {
        let long = "x".repeat(MAX_LABEL + 1);
        for (name, value, cause, instead) in [
            (MODE, "Audit", "must be enforce or audit, is \"Audit\"", "it is enforced"),
            (MODE, "", "must be enforce or audit, is \"\"", "it is enforced"),
            (DENY, "Reject", "must be drop or reject, is \"Reject\"", "it is dropped"),
            (LOG, "", "must be 1 to 63 ", "nothing is reported"),
            (LOG, "a b", "must be 1 to 63 ", "nothing is reported"),
            (LOG, long.as_str(), "must be 1 to 63 ", "nothing is reported"),
        ] {
            for source in ["dir", "local"] {
                let error = read(source, &[(name, value)]).unwrap_err();
                assert_eq!(error.path, format!("metadata.annotations[{name}]"));
                assert!(error.cause.starts_with(cause), "{error}");
            }
            let settings = read(KUBERNETES_SOURCE, &[(name, value)]).unwrap();
            assert_eq!((settings.mode, settings.log), (PolicyMode::Enforce, None));
            assert!(!settings.reject);
            let [problem] = settings.problems.as_slice() else { panic!("{:?}", settings.problems) };
            let start = format!("metadata.annotations[{name}]: {cause}");
            assert!(problem.starts_with(&start) && problem.ends_with(instead), "{problem}");
        }
    }
}
