//! Manifests as files: what kubectl reads of them, what a broken one costs, and within which bounds.

// helpers are tests too, which clippy cannot see
#![allow(clippy::unwrap_used, reason = "a test that panics is a test that fails")]

mod bounds;
mod broken;
mod kubectl;

use std::path::Path;

use podgate_manifests::manifest::{Manifest, read_text};
use podgate_policy::object::Object;

fn read(text: &str) -> Manifest {
    read_text(Path::new("f.yaml"), text)
}

/// `Pod s/a {app=web}`, an object each.
fn objects(manifest: &Manifest) -> Vec<String> {
    let one = |object: &Object| match object {
        Object::Pod(pod) => {
            let labels: Vec<_> =
                pod.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
            format!("Pod {} {{{}}}", pod.key, labels.join(","))
        }
        Object::Namespace(namespace) => format!("Namespace /{}", namespace.name),
        other => other.id().to_string(),
    };
    manifest.objects.iter().map(one).collect()
}

fn errors(manifest: &Manifest) -> Vec<String> {
    manifest.errors.iter().map(ToString::to_string).collect()
}
