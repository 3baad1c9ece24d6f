//! Kubernetes manifests: YAML or JSON text to objects, with errors that name file, document and field.
//!
//! An object is read whole or not at all. A NetworkPolicy with a field nobody knows is refused like the API
//! server's strict validation does: a misspelt `from` would otherwise read as "from everybody".

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::Object;
use super::document::{Document, documents};
pub use super::object::policy;
use super::unenforced::Unenforced;

/// The name of directories as a source, in [`podgate_policy::model::PolicyId`].
pub const DIR_SOURCE: &str = "dir";

/// A place in a manifest that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestError {
    /// The file.
    pub file: PathBuf,
    /// Which document of it, from 1; `None` if the file itself cannot be read.
    pub document: Option<usize>,
    /// A line of the file, from 1: of the mistake where known, else of the document's start.
    pub line: Option<usize>,
    /// What object it is, as far as known: "policy default/web".
    pub object: Option<String>,
    /// The field, as in `spec.ingress[0].ports[1].endPort`; empty for a mistake of syntax.
    pub field: String,
    /// What is wrong.
    pub cause: String,
}

impl fmt::Display for ManifestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "read {}", self.file.display())?;
        if let Some(document) = self.document {
            write!(f, ", document {document}")?;
        }
        if let Some(line) = self.line {
            write!(f, ", line {line}")?;
        }
        if let Some(object) = &self.object {
            write!(f, ", {object}")?;
        }
        if !self.field.is_empty() {
            write!(f, ", {}", self.field)?;
        }
        write!(f, ": {}", self.cause)
    }
}

impl std::error::Error for ManifestError {}

/// What a file holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Manifest {
    /// In the order of the file.
    pub objects: Vec<Object>,
    /// Every mistake, not only the first. With any, `objects` lacks something.
    pub errors: Vec<ManifestError>,
    /// Objects of kinds that are not enforced.
    pub unenforced: Unenforced,
}

/// Whether a directory's entry counts as a manifest, by its name.
pub fn is_manifest(path: &Path) -> bool {
    let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
    let known = path.extension().is_some_and(|end| end == "yaml" || end == "yml" || end == "json");
    known && !hidden
}

/// The manifests of a directory, not of its subdirectories, in lexical order.
pub fn list(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if !is_manifest(&path) {
            continue;
        }
        // metadata follows symbolic links: a ConfigMap volume is full of them
        match fs::metadata(&path) {
            Ok(meta) if !meta.is_file() => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            // one that cannot be looked at is there: it must not count as removed, and reading it says what is wrong
            Ok(_) | Err(_) => files.push(path),
        }
    }
    files.sort();
    Ok(files)
}

/// Reads a directory once, as `podgatectl --manifests` does. Objects given twice are mistakes.
pub fn read_dir(dir: &Path) -> io::Result<Manifest> {
    let mut all = Manifest::default();
    let mut seen = BTreeMap::new();
    for file in list(dir)? {
        let manifest = read_file(&file);
        all.errors.extend(manifest.errors);
        for (kind, count) in manifest.unenforced {
            *all.unenforced.entry(kind).or_default() += count;
        }
        for object in manifest.objects {
            match seen.entry(object.id()) {
                Entry::Vacant(vacant) => {
                    vacant.insert(file.clone());
                    all.objects.push(object);
                }
                Entry::Occupied(first) => {
                    all.errors.push(duplicate(&file, first.get(), &first.key().to_string()));
                }
            }
        }
    }
    Ok(all)
}

/// The mistake of giving one object in two places.
pub(crate) fn duplicate(file: &Path, first: &Path, object: &str) -> ManifestError {
    ManifestError {
        file: file.to_owned(),
        document: None,
        line: None,
        object: Some(object.to_owned()),
        field: String::new(),
        cause: format!("already given in {}, which counts; remove one", first.display()),
    }
}

/// Reads one file.
pub fn read_file(file: &Path) -> Manifest {
    match fs::read_to_string(file) {
        Ok(text) => read_text(file, &text),
        Err(error) => Manifest {
            errors: vec![ManifestError {
                file: file.to_owned(),
                document: None,
                line: None,
                object: None,
                field: String::new(),
                cause: error.to_string(),
            }],
            ..Manifest::default()
        },
    }
}

/// Reads the text of a file; its name says whether it is JSON, and stands in the errors.
pub fn read_text(file: &Path, text: &str) -> Manifest {
    let mut manifest = Manifest::default();
    let json = file.extension().is_some_and(|end| end == "json");
    let documents = if json { vec![(1, text)] } else { documents(text) };
    for (nth, (line, text)) in documents.into_iter().enumerate() {
        let mut document = Document { file, number: nth + 1, line, text, json, out: &mut manifest };
        match document.parse() {
            Ok(value) => document.read(value),
            Err((line, cause)) => document.complain(Some(line), None, "", cause),
        }
    }
    manifest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(name: &str, text: &str) -> Manifest {
        read_text(Path::new(name), text)
    }

    fn ids(manifest: &Manifest) -> Vec<String> {
        assert_eq!(manifest.errors, []);
        manifest.objects.iter().map(|object| object.id().to_string()).collect()
    }

    fn errors(text: &str) -> Vec<String> {
        read("f.yaml", text).errors.iter().map(ToString::to_string).collect()
    }

    const POLICY: &str = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n";

    #[test]
    fn documents_lists_and_foreign_kinds() {
        let text = "# a comment\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n---\n\
            apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\n--- # here\n\
            apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Pod\n  metadata: {name: a, namespace: shop}\n\
            - {apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: p}}\n---\n\
            apiVersion: v1\nkind: PodList\nitems:\n- metadata: {name: b, namespace: shop}\n---\n# nothing\n";
        let found = ids(&read("f.yaml", text));
        assert_eq!(found, ["namespace shop", "pod shop/a", "policy default/p", "pod shop/b"]);
    }

    #[test]
    fn json_is_read_by_its_name() {
        let text = r#"{"apiVersion":"networking.k8s.io/v1","kind":"NetworkPolicyList","items":[
            {"metadata":{"name":"p","namespace":"shop"},"spec":{"podSelector":{}}}]}"#;
        assert_eq!(ids(&read("f.json", text)), ["policy shop/p"]);
        let broken = read("f.json", "{\"apiVersion\": \"v1\",\n oops").errors;
        assert_eq!((broken[0].document, broken[0].line), (Some(1), Some(2)));
    }

    #[test]
    fn a_mistake_is_told_with_its_document_line_and_field() {
        let text = format!(
            "---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: shop}}\n---\n{POLICY}metadata: {{name: p, namespace: shop}}\n\
             spec:\n  podSelector: {{}}\n  ingress:\n  - ports:\n    - port: 80\n      endPort: high\n"
        );
        let told = errors(&text);
        assert_eq!(told.len(), 1, "{told:?}");
        assert!(
            told[0].starts_with(
                "read f.yaml, document 2, line 14, policy shop/p, spec.ingress[0].ports[0].endPort: "
            ),
            "{told:?}"
        );
        // the other document is there
        assert_eq!(read("f.yaml", &text).objects.len(), 1);
    }

    #[test]
    fn what_the_api_server_would_reject_is_told_by_its_field() {
        let told = errors(&format!(
            "{POLICY}metadata: {{name: p}}\nspec: {{podSelector: {{}}, ingress: [{{ports: [{{endPort: 90}}]}}]}}\n"
        ));
        assert!(
            told[0]
                .starts_with("read f.yaml, document 1, line 1, policy p, spec.ingress[0].ports[0]"),
            "{told:?}"
        );
    }

    #[test]
    fn a_misspelt_field_of_a_policy_is_refused() {
        let told = errors(&format!(
            "{POLICY}metadata: {{name: p}}\nspec:\n  podSelector: {{}}\n  ingress:\n  - form: [{{podSelector: {{}}}}]\n"
        ));
        assert_eq!(
            told,
            ["read f.yaml, document 1, line 1, policy p, spec.ingress[0].form: unknown field"]
        );
        // a pod of a newer cluster is none of our business
        let pod =
            "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: [], novelty: 1}\n";
        assert_eq!(ids(&read("f.yaml", pod)), ["pod default/a"]);
    }

    #[test]
    fn mistakes_of_syntax_have_lines_and_every_document_its_own() {
        let told = errors(
            "kind: [\n---\n7\n---\nmetadata: {}\n---\napiVersion: v1\nkind: Pod\nkind: Pod\n",
        );
        assert_eq!(told.len(), 4, "{told:?}");
        assert!(told[0].starts_with("read f.yaml, document 1, line "), "{told:?}");
        assert!(
            told[1].starts_with("read f.yaml, document 2, line 2: must be an object"),
            "{told:?}"
        );
        assert!(
            told[2].starts_with("read f.yaml, document 3, line 4, apiVersion: missing"),
            "{told:?}"
        );
        assert!(told[3].starts_with("read f.yaml, document 4, line 9: "), "{told:?}");
    }

    #[test]
    fn labels_that_look_like_something_else_are_told() {
        let told = errors("apiVersion: v1\nkind: Pod\nmetadata: {name: a, labels: {version: 1}}\n");
        assert!(told[0].contains("metadata.labels.version"), "{told:?}");
        let yes = "apiVersion: v1\nkind: Pod\nmetadata: {name: a, labels: {on: yes}}\n";
        assert_eq!(ids(&read("f.yaml", yes)), ["pod default/a"]);
    }

    #[test]
    fn a_directory_is_read_in_order_and_duplicates_are_told() {
        let dir = tempfile::tempdir().unwrap();
        let namespace = "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n";
        for file in ["b.yaml", "a.yml", ".hidden.yaml", "notes.txt"] {
            fs::write(dir.path().join(file), namespace).unwrap();
        }
        let all = read_dir(dir.path()).unwrap();
        assert_eq!(all.objects.len(), 1);
        assert_eq!(all.errors.len(), 1);
        assert!(all.errors[0].file.ends_with("b.yaml"));
        assert!(all.errors[0].to_string().contains("namespace shop: already given in"));
    }
}
