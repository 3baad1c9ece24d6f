//! Policies that were given to the API. They live in one file of the state directory, so that they
//! survive a restart of policyd, as the policies in the kernel do.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use podgate_policy::convert::FieldError;
use podgate_policy::model::{ObjectKey, PolicyId};
use serde_json::Value;

use super::{Object, ObjectId, Update, manifest, text};

/// The name of the API as a source, in [`PolicyId`].
pub const LOCAL_SOURCE: &str = "local";

/// The file's name in the state directory.
const FILE: &str = "local-policies.json";

/// Why a local policy was not taken.
#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    /// The body is no policy.
    #[error("read policy {key}: {field}")]
    Invalid {
        /// Which was to be set.
        key: ObjectKey,
        /// What is wrong with which field.
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
        /// Why not.
        source: io::Error,
    },
}

/// Whether there was one of this name before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Was {
    /// There was not.
    Absent,
    /// There was, and this replaced or removed it.
    Present,
}

/// The local policies, on disk and as a source.
pub struct LocalPolicies {
    path: PathBuf,
    inner: Mutex<Inner>,
}

struct Inner {
    /// As they came, so that they can be given back unchanged.
    policies: BTreeMap<ObjectKey, Value>,
    sink: Box<dyn FnMut(Update) + Send>,
}

impl LocalPolicies {
    /// Reads the state file and gives what it holds to `sink`. A file that cannot be read is an error
    /// rather than "no policies": that would open the pods they isolate.
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
            let policy = manifest::policy(LOCAL_SOURCE, &value)
                .map_err(|field| unreadable(format!("item {nth}: {field}")))?;
            policies.insert(policy.id.key.clone(), value);
            objects.push(Object::Policy(policy));
        }
        sink(Update::Replace(objects));
        Ok(Self { path, inner: Mutex::new(Inner { policies, sink: Box::new(sink) }) })
    }

    /// Sets a policy. `body` may leave out kind, name and namespace, but must not contradict `key`.
    pub fn set(&self, key: &ObjectKey, body: Value) -> Result<Was, LocalError> {
        let invalid = |field| LocalError::Invalid { key: key.clone(), field };
        // the file nests it one level deeper, and must be readable at the next start
        if !text::is_shallow(&body) {
            return Err(invalid(FieldError::new("body", "is nested too deeply")));
        }
        let body = complete(key, body).map_err(invalid)?;
        let policy = manifest::policy(LOCAL_SOURCE, &body).map_err(invalid)?;
        let mut inner = self.lock();
        let mut policies = inner.policies.clone();
        let was = policies.insert(key.clone(), body);
        self.write(&policies)?;
        inner.policies = policies;
        (inner.sink)(Update::Change { set: vec![Object::Policy(policy)], gone: Vec::new() });
        Ok(was.map_or(Was::Absent, |_| Was::Present))
    }

    /// Removes a policy; one that is not there is no error.
    pub fn remove(&self, key: &ObjectKey) -> Result<Was, LocalError> {
        let mut inner = self.lock();
        let mut policies = inner.policies.clone();
        if policies.remove(key).is_none() {
            return Ok(Was::Absent);
        }
        self.write(&policies)?;
        inner.policies = policies;
        let id = PolicyId { source: LOCAL_SOURCE.into(), key: key.clone() };
        (inner.sink)(Update::Change { set: Vec::new(), gone: vec![ObjectId::Policy(id)] });
        Ok(Was::Present)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        // the state is replaced in one step, so a panic elsewhere leaves nothing half done
        self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Replaces the file in one step: a crash leaves the old one or the new one.
    fn write(&self, policies: &BTreeMap<ObjectKey, Value>) -> Result<(), LocalError> {
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

/// Fills in what the address of the request already says.
fn complete(key: &ObjectKey, mut body: Value) -> Result<Value, FieldError> {
    let Value::Object(fields) = &mut body else {
        return Err(FieldError::new("body", "must be a NetworkPolicy as a JSON object"));
    };
    let must_be =
        |field: &'static str, text: &str, fields: &mut serde_json::Map<_, _>, path: &str| {
            match fields.entry(field).or_insert_with(|| text.into()) {
                Value::String(found) if found == text => Ok(()),
                found => Err(FieldError::new(path, format!("must be {text:?}, is {found}"))),
            }
        };
    must_be("apiVersion", "networking.k8s.io/v1", fields, "apiVersion")?;
    must_be("kind", "NetworkPolicy", fields, "kind")?;
    let metadata =
        fields.entry("metadata").or_insert_with(|| Value::Object(serde_json::Map::new()));
    let Value::Object(metadata) = metadata else {
        return Err(FieldError::new("metadata", "must be an object"));
    };
    must_be("namespace", &key.namespace, metadata, "metadata.namespace")?;
    must_be("name", &key.name, metadata, "metadata.name")?;
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
        let key = ObjectKey::new("shop", "p");
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
        let key = ObjectKey::new("shop", "p");
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
    fn what_the_file_could_not_hold_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (local, _updates) = open(dir.path()).unwrap();
        let nested = |depth| (0..depth).fold(json!(1), |inner, _| json!([inner]));
        let set = |depth| local.set(&ObjectKey::new("s", "p"), json!({"status": nested(depth)}));
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
