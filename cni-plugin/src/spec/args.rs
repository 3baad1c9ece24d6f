//! `CNI_ARGS`: how the runtime names the pod.

use podgate_bpf::maps::PodRef;

use super::{CniError, Code};

/// The pod that `CNI_ARGS` names; `None` from a runtime that knows no pods (podman gives a name only).
///
/// Keys come in any order; unknown ones are ignored. A pair without `=` is refused: had it been the namespace, the pod
/// would silently be treated as a container without a pod.
pub fn pod(args: &str) -> Result<Option<PodRef>, CniError> {
    let (mut namespace, mut name, mut uid) = (None, None, None);
    for pair in args.split(';').map(str::trim).filter(|pair| !pair.is_empty()) {
        let Some((key, value)) = pair.split_once('=') else {
            return Err(invalid(format!("{pair:?} is no KEY=VALUE pair")));
        };
        let slot = match key.trim() {
            "K8S_POD_NAMESPACE" => &mut namespace,
            "K8S_POD_NAME" => &mut name,
            "K8S_POD_UID" => &mut uid,
            _ => continue,
        };
        *slot = Some(value.trim()).filter(|value| !value.is_empty());
    }
    let Some(namespace) = namespace else { return Ok(None) };
    let Some(name) = name else {
        return Err(invalid(format!("K8S_POD_NAMESPACE={namespace} comes without K8S_POD_NAME")));
    };
    Ok(Some(PodRef {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        uid: uid.unwrap_or_default().to_owned(),
    }))
}

fn invalid(cause: String) -> CniError {
    CniError::new(Code::InvalidEnvironment, "read CNI_ARGS").because(cause)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_pod_in_any_order() {
        let wanted = PodRef { namespace: "default".into(), name: "a".into(), uid: "u-1".into() };
        for args in [
            "K8S_POD_NAMESPACE=default;K8S_POD_NAME=a;K8S_POD_INFRA_CONTAINER_ID=c;K8S_POD_UID=u-1;IgnoreUnknown=1",
            "IgnoreUnknown=1;K8S_POD_UID=u-1;K8S_POD_NAME=a;X=a=b;K8S_POD_NAMESPACE=default;",
        ] {
            assert_eq!(pod(args), Ok(Some(wanted.clone())), "{args}");
        }
    }

    #[test]
    fn no_namespace_is_no_pod() {
        for args in ["", "IgnoreUnknown=1;K8S_POD_NAME=c1", "K8S_POD_NAMESPACE=;K8S_POD_NAME=x"] {
            assert_eq!(pod(args), Ok(None), "{args}");
        }
    }

    #[test]
    fn half_a_pod_is_refused() {
        for args in ["K8S_POD_NAMESPACE=default", "K8S_POD_NAMESPACE", "K8S_POD_NAMESPACE:a;X=1"] {
            assert_eq!(pod(args).unwrap_err().code, Code::InvalidEnvironment, "{args}");
        }
    }
}
