//! From the pod of a registration to the key that the sources know it by.

use podgate_bpf::maps::{PodRef, Registration};
use podgate_policy::model::ObjectKey;

/// The key of a pod that the runtime named.
pub(crate) fn pod_key(pod: &PodRef) -> ObjectKey {
    ObjectKey::new(pod.namespace.as_str(), pod.name.as_str())
}

/// The key of the pod that an interface is registered for; `None` for a container that is no pod.
pub(crate) fn registered_pod(registration: &Registration) -> Option<ObjectKey> {
    registration.pod.as_ref().map(pod_key)
}
