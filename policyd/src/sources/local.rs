//! Policies set through the API: NetworkPolicies, ClusterNetworkPolicies and PodTrafficPolicies. They are stored in one file of the state directory, so that they survive a restart of
//! policyd, as the policies in the kernel do.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use podgate_manifests::{is_shallow, parse};
use podgate_policy::convert::{self, FieldError};
use podgate_policy::model::{
    ClusterPolicy, ClusterPolicyId, ObjectKey, PodTrafficPolicy, PolicyId, PolicyMode,
};
use podgate_policy::object::{Kind, Object, ObjectId, Resource};
use serde_json::Value;

use super::Update;

/// The name of the API as a source, in the ids of its policies.
pub const LOCAL_SOURCE: &str = "local";

/// The file's name in the state directory.
const FILE: &str = "local-policies.json";

/// Why a local policy was rejected.
#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    /// The body is no valid policy.
    #[error("read {key}: {field}")]
    Invalid {
        /// The policy that was to be set.
        key: LocalKey,
        /// The field that is wrong.
        field: FieldError,
    },
    /// The state file cannot be read.
    #[error(
        "read local policies {path}: {reason}; mend the file, or remove it to start without local policies"
    )]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The state file cannot be written; nothing has changed.
    #[error("write local policies {path}: {source}")]
    Unwritable {
        /// The file.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
}

/// Names a local policy. Prints as its id does: `policy namespace/name`, `clusternetworkpolicy name`, `podtrafficpolicy namespace/name`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LocalKey {
    /// A NetworkPolicy.
    Policy(ObjectKey),
    /// A ClusterNetworkPolicy, by its name.
    ClusterPolicy(Arc<str>),
    /// A PodTrafficPolicy.
    PodTrafficPolicy(ObjectKey),
}

impl LocalKey {
    /// The id of the policy, as of this source.
    pub fn id(&self) -> ObjectId {
        let source = LOCAL_SOURCE.into();
        match self.clone() {
            Self::Policy(key) => ObjectId::Policy(PolicyId { source, key }),
            Self::ClusterPolicy(name) => ObjectId::ClusterPolicy(ClusterPolicyId { name, source }),
            Self::PodTrafficPolicy(key) => ObjectId::PodTrafficPolicy(PolicyId { source, key }),
        }
    }

    fn kind(&self) -> Kind {
        match self {
            Self::Policy(_) => Kind::Policy,
            Self::ClusterPolicy(_) => Kind::ClusterPolicy,
            Self::PodTrafficPolicy(_) => Kind::PodTrafficPolicy,
        }
    }

    /// The namespace, if it has one, and the name.
    fn names(&self) -> (Option<&str>, &str) {
        match self {
            Self::Policy(key) | Self::PodTrafficPolicy(key) => (Some(&key.namespace), &key.name),
            Self::ClusterPolicy(name) => (None, name),
        }
    }

    fn of(object: &Object) -> Option<Self> {
        match object {
            Object::Policy(policy) => Some(Self::Policy(policy.id.key.clone())),
            Object::ClusterPolicy(policy) => Some(Self::ClusterPolicy(policy.id.name.clone())),
            Object::PodTrafficPolicy(policy) => Some(Self::PodTrafficPolicy(policy.id.key.clone())),
            _ => None,
        }
    }
}

impl fmt::Display for LocalKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.id().fmt(f)
    }
}

/// Whether there was a policy of this name before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Was {
    /// There was none.
    Absent,
    /// There was one, which was replaced or removed.
    Present,
}

/// The local policies, on disk and as a source.
pub struct LocalPolicies {
    path: PathBuf,
    inner: Mutex<Inner>,
}

struct Inner {
    /// The bodies as they were received, so that they can be returned unchanged.
    policies: BTreeMap<LocalKey, Value>,
    sink: Box<dyn FnMut(Update) + Send>,
}

impl LocalPolicies {
    /// Reads the state file and reports its policies to `sink`. A file that cannot be read is an error rather than "no
    /// policies": that would open the pods that they isolate.
    pub fn open(
        state_dir: &Path,
        mut sink: impl FnMut(Update) + Send + 'static,
    ) -> Result<Self, LocalError> {
        let path = state_dir.join(FILE);
        let unreadable = |reason: String| LocalError::Unreadable { path: path.clone(), reason };
        let values: Vec<Value> = match fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text).map_err(|e| unreadable(e.to_string()))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(unreadable(error.to_string())),
        };
        let mut policies = BTreeMap::new();
        let mut objects = Vec::new();
        for (nth, value) in values.into_iter().enumerate() {
            let object = parse::object(kind_of(&value), LOCAL_SOURCE, &value)
                .map_err(|field| unreadable(format!("item {nth}: {field}")))?;
            policies.extend(LocalKey::of(&object).map(|key| (key, value)));
            objects.push(object);
        }
        sink(Update::Replace(objects));
        Ok(Self { path, inner: Mutex::new(Inner { policies, sink: Box::new(sink) }) })
    }

    /// Sets a policy. `body` may leave out kind, name and namespace, but must not contradict `key`.
    pub fn set(&self, key: &LocalKey, body: Value) -> Result<Was, LocalError> {
        let invalid = |field| LocalError::Invalid { key: key.clone(), field };
        // it is nested one level deeper in the file, which must be readable at the next start
        if !is_shallow(&body) {
            return Err(invalid(FieldError::new("body", "is nested too deeply")));
        }
        let body = complete(key, body).map_err(invalid)?;
        self.put(&mut self.lock(), key, body)
    }

    /// Sets the annotation that says whether a policy is only audited. One that is not there is no error.
    pub fn set_mode(&self, key: &LocalKey, mode: PolicyMode) -> Result<Was, LocalError> {
        let mut inner = self.lock();
        match inner.policies.get(key).cloned() {
            Some(body) => self.put(&mut inner, key, with_mode(body, mode)),
            None => Ok(Was::Absent),
        }
    }

    fn put(&self, inner: &mut Inner, key: &LocalKey, body: Value) -> Result<Was, LocalError> {
        let policy = parse::object(key.kind(), LOCAL_SOURCE, &body)
            .map_err(|field| LocalError::Invalid { key: key.clone(), field })?;
        let mut policies = inner.policies.clone();
        let was = policies.insert(key.clone(), body);
        self.write(&policies)?;
        inner.policies = policies;
        (inner.sink)(Update::Change { set: vec![policy], gone: Vec::new() });
        Ok(was.map_or(Was::Absent, |_| Was::Present))
    }

    /// Removes a policy; one that is not there is no error.
    pub fn remove(&self, key: &LocalKey) -> Result<Was, LocalError> {
        let mut inner = self.lock();
        let mut policies = inner.policies.clone();
        if policies.remove(key).is_none() {
            return Ok(Was::Absent);
        }
        self.write(&policies)?;
        inner.policies = policies;
        (inner.sink)(Update::Change { set: Vec::new(), gone: vec![key.id()] });
        Ok(Was::Present)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        // the state is replaced in one step, so a panic elsewhere leaves nothing half done
        self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Replaces the file in one step: a crash leaves the old one or the new one.
    fn write(&self, policies: &BTreeMap<LocalKey, Value>) -> Result<(), LocalError> {
        let values: Vec<_> = policies.values().collect();
        replace(&self.path, &values)
            .map_err(|source| LocalError::Unwritable { path: self.path.clone(), source })
    }
}

fn replace(path: &Path, values: &[&Value]) -> io::Result<()> {
    let new = path.with_extension("json.new");
    let mut file =
        fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    serde_json::to_writer_pretty(&mut file, values)?;
    file.write_all(b"\n")?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    match path.parent() {
        Some(dir) => fs::File::open(dir)?.sync_all(),
        None => Ok(()),
    }
}

/// The kind of an item of the state file: each says it.
fn kind_of(value: &Value) -> Kind {
    match value.get("kind").and_then(Value::as_str) {
        Some(kind) if kind == ClusterPolicy::API.kind => Kind::ClusterPolicy,
        Some(kind) if kind == PodTrafficPolicy::API.kind => Kind::PodTrafficPolicy,
        _ => Kind::Policy,
    }
}

/// A policy that was read, with the annotation for this mode.
fn with_mode(mut body: Value, mode: PolicyMode) -> Value {
    if let Some(Value::Object(metadata)) = body.get_mut("metadata") {
        let annotations = metadata.entry("annotations").or_insert(Value::Null);
        let mut said = annotations.as_object().cloned().unwrap_or_default();
        match mode {
            PolicyMode::Audit => said.insert(convert::MODE.to_owned(), "audit".into()),
            PolicyMode::Enforce => said.remove(convert::MODE),
        };
        *annotations = Value::Object(said);
    }
    body
}

/// Fills in the fields that follow from the path of the request.
fn complete(key: &LocalKey, mut body: Value) -> Result<Value, FieldError> {
    let api = key.kind().api();
    let Value::Object(fields) = &mut body else {
        let cause = format!("must be a {} as a JSON object", api.kind);
        return Err(FieldError::new("body", cause));
    };
    let must_be =
        |field: &'static str, text: &str, fields: &mut serde_json::Map<_, _>, path: &str| {
            match fields.entry(field).or_insert_with(|| text.into()) {
                Value::String(found) if found == text => Ok(()),
                found => Err(FieldError::new(path, format!("must be {text:?}, is {found}"))),
            }
        };
    let given = fields.get("apiVersion").and_then(Value::as_str);
    if !given.is_some_and(|given| key.kind().versions().any(|version| version == given)) {
        must_be("apiVersion", api.version, fields, "apiVersion")?;
    }
    must_be("kind", api.kind, fields, "kind")?;
    let metadata =
        fields.entry("metadata").or_insert_with(|| Value::Object(serde_json::Map::new()));
    let Value::Object(metadata) = metadata else {
        return Err(FieldError::new("metadata", "must be an object"));
    };
    let (namespace, name) = key.names();
    if let Some(namespace) = namespace {
        must_be("namespace", namespace, metadata, "metadata.namespace")?;
    }
    must_be("name", name, metadata, "metadata.name")?;
    Ok(body)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn open(dir: &Path) -> Result<(LocalPolicies, std::sync::mpsc::Receiver<Update>), LocalError> {
        let (sender, updates) = std::sync::mpsc::channel();
        let local = LocalPolicies::open(dir, move |update| sender.send(update).unwrap())?;
        Ok((local, updates))
    }

    fn replaced(update: Update) -> usize {
        match update {
            Update::Replace(objects) => objects.len(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_was_set_is_there_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let key = LocalKey::Policy(ObjectKey::new("shop", "p"));
        {
            let (local, updates) = open(dir.path()).unwrap();
            assert_eq!(replaced(updates.recv().unwrap()), 0);
            assert_eq!(local.set(&key, json!({})).unwrap(), Was::Absent);
            assert_eq!(
                local.set(&key, json!({"spec": {"podSelector": {}}})).unwrap(),
                Was::Present
            );
            assert!(matches!(updates.try_iter().count(), 2));
        }
        let (local, updates) = open(dir.path()).unwrap();
        assert_eq!(replaced(updates.recv().unwrap()), 1);
        assert_eq!(local.remove(&key).unwrap(), Was::Present);
        assert_eq!(local.remove(&key).unwrap(), Was::Absent);
        let (_, updates) = open(dir.path()).unwrap();
        assert_eq!(replaced(updates.recv().unwrap()), 0);
    }

    #[test]
    fn what_is_no_policy_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (local, updates) = open(dir.path()).unwrap();
        updates.recv().unwrap();
        let key = LocalKey::Policy(ObjectKey::new("shop", "p"));
        for (body, field) in [
            (json!([]), "body"),
            (json!({"kind": "Pod"}), "kind"),
            (json!({"metadata": {"namespace": "other"}}), "metadata.namespace"),
            (json!({"spec": {"ingress": 7}}), "spec.ingress"),
        ] {
            match local.set(&key, body) {
                Err(LocalError::Invalid { field: found, .. }) => assert_eq!(found.path, field),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(updates.try_iter().count(), 0);
        assert!(!dir.path().join(FILE).exists());
    }

    #[test]
    fn cluster_policies_are_kept_beside_policies_of_the_same_name() {
        let dir = tempfile::tempdir().unwrap();
        let (local, updates) = open(dir.path()).unwrap();
        let (p, cluster) =
            (LocalKey::Policy(ObjectKey::new("s", "p")), LocalKey::ClusterPolicy("p".into()));
        let body = json!({"spec": {"tier": "Admin", "priority": 1, "subject": {"namespaces": {}}}});
        assert_eq!(local.set(&cluster, body.clone()).unwrap(), Was::Absent);
        assert_eq!(local.set(&p, json!({})).unwrap(), Was::Absent);
        let Update::Change { set, .. } = updates.try_iter().nth(1).unwrap() else { panic!() };
        assert_eq!(set[0].id(), cluster.id());
        let error = local.set(&cluster, json!({"spec": {"tier": "Admin"}})).unwrap_err();
        assert_eq!(error.to_string(), "read clusternetworkpolicy p: spec.priority: must be given");
        assert!(local.set(&p, body).is_err(), "that of another kind");

        let (local, updates) = open(dir.path()).unwrap();
        assert_eq!(replaced(updates.recv().unwrap()), 2);
        assert_eq!(local.remove(&cluster).unwrap(), Was::Present);
        let (_, updates) = open(dir.path()).unwrap();
        assert_eq!(replaced(updates.recv().unwrap()), 1);
    }

    #[test]
    fn a_mode_is_an_annotation_that_survives_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let key = LocalKey::Policy(ObjectKey::new("shop", "p"));
        let mode = |updates: &std::sync::mpsc::Receiver<Update>| {
            let objects = match updates.try_iter().last().unwrap() {
                Update::Replace(objects) | Update::Change { set: objects, .. } => objects,
                other => panic!("{other:?}"),
            };
            let [Object::Policy(policy)] = objects.as_slice() else { panic!("{objects:?}") };
            (policy.settings.mode, policy.settings.log.clone())
        };
        let log = || Some("shop".into());
        {
            let (local, updates) = open(dir.path()).unwrap();
            assert_eq!(local.set_mode(&key, PolicyMode::Audit).unwrap(), Was::Absent);
            local.set(&key, json!({})).unwrap();
            assert_eq!(local.set_mode(&key, PolicyMode::Audit).unwrap(), Was::Present);
            assert_eq!(mode(&updates), (PolicyMode::Audit, None));
            let annotations = json!({"podgate.io/log": "shop"});
            local.set(&key, json!({"metadata": {"annotations": annotations}})).unwrap();
            assert_eq!(mode(&updates), (PolicyMode::Enforce, log()));
            local.set_mode(&key, PolicyMode::Audit).unwrap();
        }
        let (local, updates) = open(dir.path()).unwrap();
        assert_eq!(mode(&updates), (PolicyMode::Audit, log()));
        local.set_mode(&key, PolicyMode::Enforce).unwrap();
        assert_eq!(mode(&updates), (PolicyMode::Enforce, log()));
    }

    #[test]
    fn what_the_file_could_not_hold_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (local, _updates) = open(dir.path()).unwrap();
        let nested = |depth| (0..depth).fold(json!(1), |inner, _| json!([inner]));
        let p = LocalKey::Policy(ObjectKey::new("s", "p"));
        let set = |depth| local.set(&p, json!({"status": nested(depth)}));
        assert_eq!(set(99).unwrap(), Was::Absent);
        assert!(open(dir.path()).is_ok());
        // as deep as the reader of bodies lets pass
        for depth in [100, 125] {
            assert!(matches!(set(depth), Err(LocalError::Invalid { .. })), "{depth}");
        }
    }

    #[test]
    fn a_broken_state_file_is_no_empty_one() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(FILE), "[{\"spec\":").unwrap();
        let error = open(dir.path()).err().unwrap().to_string();
        assert!(error.contains(FILE) && error.contains("mend the file"), "{error}");
    }
}
