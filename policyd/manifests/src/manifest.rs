//! Kubernetes manifests: YAML or JSON text to objects, with errors that name file, document and field.
//!
//! An object is read whole or not at all. A NetworkPolicy with an unknown field is rejected like the API
//! server's strict validation does: a misspelt `from` would otherwise read as "from everybody".

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::document::{Document, documents};
use crate::text::{self, Fault, Items, Limits, Parsed, Stream};

pub use crate::contents::{DIR_SOURCE, Lost, Manifest, ManifestError};

/// The longest file that is read, bytes. It is in memory meanwhile.
const MAX_FILE: u64 = 512 << 20;

/// Whether a directory's entry counts as a manifest, by its name.
pub fn is_manifest(path: &Path) -> bool {
    let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
    let known = path.extension().is_some_and(|end| end == "yaml" || end == "yml" || end == "json");
    known && !hidden
}

/// The manifests of a directory, not of its subdirectories, in lexical order, and how each looks now.
pub fn list(dir: &Path) -> io::Result<Vec<(PathBuf, io::Result<fs::Metadata>)>> {
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
            // one that cannot be looked at is there: it must not count as removed
            looks => files.push((path, looks)),
        }
    }
    files.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(files)
}

/// Reads a directory once, as `podgatectl --manifests` does. Objects given twice are mistakes.
pub fn read_dir(dir: &Path) -> io::Result<Manifest> {
    let mut all = Manifest::default();
    let mut seen = BTreeMap::new();
    for (file, _) in list(dir)? {
        let manifest = read_file(&file);
        all.errors.extend(manifest.errors);
        all.closed.extend(manifest.closed);
        all.incomplete |= manifest.incomplete;
        all.skipped.extend(manifest.skipped);
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
pub fn duplicate(file: &Path, first: &Path, object: &str) -> ManifestError {
    ManifestError {
        object: Some(object.to_owned()),
        ..ManifestError::of_file(
            file,
            Lost::Object,
            format!("already given in {}, which counts; remove one", first.display()),
        )
    }
}

/// Reads one file.
pub fn read_file(file: &Path) -> Manifest {
    match content(file) {
        Ok(text) => read_text(file, &text),
        Err(error) => Manifest::unreadable(file, error.to_string()),
    }
}

fn content(file: &Path) -> io::Result<String> {
    let file = fs::File::open(file)?;
    let length = file.metadata()?.len();
    let mut text = String::new();
    if length <= MAX_FILE {
        text.reserve_exact(usize::try_from(length).unwrap_or_default());
        file.take(MAX_FILE + 1).read_to_string(&mut text)?;
    }
    if length.max(text.len() as u64) > MAX_FILE {
        let limit = MAX_FILE >> 20;
        return Err(io::Error::other(format!("longer than {limit} MiB; split the file")));
    }
    Ok(text)
}

/// Reads the text of a file, JSON or YAML, as kubectl does: by its content, not by its name. The name is for errors.
pub fn read_text(file: &Path, text: &str) -> Manifest {
    let mut out = Manifest::default();
    let mut limits = Limits::default();
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut number = 0;
    let yaml = match text.trim_start().starts_with('{') {
        true => json(file, text, &mut number, &mut limits, &mut out),
        false => Some((1, text)),
    };
    if let Some((first, text)) = yaml {
        for (line, text) in documents(text) {
            number += 1;
            let line = first + line - 1;
            Document { file, number, line, out: &mut out }.yaml(text, &mut limits);
        }
    }
    out.finish(file)
}

/// The documents of a text as plain data; the error names the line.
pub fn values(text: &str) -> Result<Vec<Value>, String> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut limits = Limits::default();
    let mut values = Vec::new();
    let mut yaml = Some((1, text));
    if text.trim_start().starts_with('{') {
        let mut stream = Stream::new(text);
        loop {
            yaml = stream.rest().filter(|(_, rest)| values.is_empty() || rest.starts_with("---"));
            let Some((line, rest)) = stream.rest().filter(|(_, rest)| !rest.starts_with("---"))
            else {
                break;
            };
            match whole(|items| stream.read(&mut limits, items)) {
                Ok(value) => values.push(value),
                // braces are YAML too
                Err(_) if values.is_empty() => {
                    yaml = Some((line, rest));
                    break;
                }
                Err(fault) => {
                    return Err(format!("line {}: {}", line + fault.line - 1, fault.cause));
                }
            }
        }
    }
    for (line, text) in yaml
        .map(|(first, text)| documents(text).map(move |(line, text)| (first + line - 1, text)))
        .into_iter()
        .flatten()
    {
        let value = whole(|items| text::yaml(text, &mut limits, items));
        values.push(
            value.map_err(|fault| format!("line {}: {}", line + fault.line - 1, fault.cause))?,
        );
    }
    Ok(values)
}

/// A document with its items in their place.
fn whole(parse: impl FnOnce(Items<'_>) -> Parsed) -> Result<Value, Fault> {
    let mut items = Vec::new();
    let Parsed { mut value, fault, listed, .. } = parse(&mut |_, item| items.push(item.value));
    if let (true, Value::Object(fields)) = (listed, &mut value) {
        fields.insert("items".to_owned(), Value::Array(items));
    }
    fault.map_or(Ok(value), Err)
}

/// Reads JSON objects one after another. Returns what is YAML, and the line it begins on.
fn json<'t>(
    file: &Path,
    text: &'t str,
    number: &mut usize,
    limits: &mut Limits,
    out: &mut Manifest,
) -> Option<(usize, &'t str)> {
    let mut stream = Stream::new(text);
    while let Some((line, rest)) = stream.rest() {
        if rest.starts_with("---") {
            return Some((line, rest));
        }
        *number += 1;
        let mut document = Document { file, number: *number, line, out };
        let Some(parsed) = document.json(&mut stream, limits) else { continue };
        // braces are YAML too: there are comments, or keys without quotes
        let is_json = file.extension().is_some_and(|end| end == "json");
        if *number == 1 && !limits.is_met() && (!is_json || is_yaml(rest)) {
            *number = 0;
            return Some((line, rest));
        }
        document.broken(parsed);
        return None;
    }
    None
}

/// Whether the first document of a text can be read as YAML.
fn is_yaml(text: &str) -> bool {
    let first = documents(text).next();
    first.is_some_and(|(_, text)| {
        whole(|items| text::yaml(text, &mut Limits::default(), items)).is_ok()
    })
}

#[cfg(test)]
mod tests {
    use podgate_policy::object::Object;

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
                .starts_with("read f.yaml, document 1, line 4, policy p, spec.ingress[0].ports[0]"),
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
            ["read f.yaml, document 1, line 7, policy p, spec.ingress[0].form: unknown field"]
        );
        // a pod of a newer cluster may have any fields
        let pod =
            "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: [], novelty: 1}\n";
        assert_eq!(ids(&read("f.yaml", pod)), ["pod default/a"]);
    }

    #[test]
    fn mistakes_of_syntax_have_lines_and_every_document_its_own() {
        let told = errors(
            "kind: [\n---\n7\n---\nmetadata: {}\n---\napiVersion: v1\nkind: Pod\nkind: Pod\n",
        );
        assert_eq!(told.len(), 3, "{told:?}");
        assert!(told[0].starts_with("read f.yaml, document 1, line "), "{told:?}");
        assert!(
            told[1].starts_with("read f.yaml, document 3, line 4, apiVersion: missing"),
            "{told:?}"
        );
        assert!(told[2].starts_with("read f.yaml, document 4, line 9, pod: "), "{told:?}");
    }

    #[test]
    fn labels_that_look_like_something_else_are_told() {
        for label in ["version: 1", "a: 1.0", "a: true", "a: 0x1"] {
            let told = errors(&format!(
                "apiVersion: v1\nkind: Pod\nmetadata: {{name: a, labels: {{{label}}}}}\n"
            ));
            assert!(told[0].contains(", metadata.labels."), "{told:?}");
            assert!(told[0].ends_with("write it in quotes"), "{told:?}");
        }
        let quoted = "apiVersion: v1\nkind: Pod\nmetadata: {name: y, labels: {a: '1', b: yes}}\n";
        assert_eq!(ids(&read("f.yaml", quoted)), ["pod default/y"]);
        let boolean = "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {hostNetwork: yes, hostPID: on}\n";
        let Object::Pod(pod) = read("f.yaml", boolean).objects.remove(0) else { panic!() };
        assert!(pod.host_network);
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
