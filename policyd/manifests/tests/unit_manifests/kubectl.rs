//! What kubectl reads, podgate reads: files that kubectl's own reader was given, and what it made of them.
//!
//! Seen with k8s.io/cli-runtime 0.36.2 (sigs.k8s.io/yaml 1.6.0, go.yaml.in/yaml/v2 2.4.3): its builder of unstructured objects,
//! as `kubectl apply -f` uses it, then the API server's strict decoder of the typed ones.

use std::fs;
use std::path::Path;

use podgate_manifests::manifest::read_file;

use super::{errors, objects};

const REFUSED: &str = "refused";

/// What kubectl, or the API server after it, makes of each file.
const SEEN: [(&str, &str); 53] = [
    ("01-comment-after-marker.yaml", "Pod s/a {}"),
    ("02-crlf.yaml", "Pod s/a {}; Pod s/b {}"),
    ("03-byte-order-mark.yaml", "Pod s/a {}"),
    ("04-byte-order-mark-and-marker.yaml", "Pod s/a {}"),
    ("05-tab-after-colon.yaml", "Pod s/a {}"),
    ("06-tab-in-flow.yaml", "Pod s/a {}"),
    ("07-tab-as-indent.yaml", REFUSED),
    ("08-list.yaml", "Pod s/a {}; Pod s/b {}"),
    ("09-list-kind-last.yaml", "Pod s/a {}"),
    ("10-typed-list.yaml", "Pod s/a {}"),
    ("11-doubled-key.yaml", "Pod s/a {a=2}"),
    ("12-doubled-key.json", "Pod s/a {a=2}"),
    ("13-label-yes.yaml", REFUSED),
    ("14-label-on.yaml", REFUSED),
    ("15-label-y.yaml", REFUSED),
    ("16-label-number.yaml", REFUSED),
    ("17-label-fraction.yaml", REFUSED),
    ("18-label-octal.yaml", REFUSED),
    ("19-label-true.yaml", REFUSED),
    ("20-label-key-on.yaml", "Pod s/a {true=1}"),
    ("21-label-key-number.yaml", "Pod s/a {1=a,2.5=b}"),
    ("22-label-null.yaml", "Pod s/a {role=,tilde=,word=}"),
    ("23-label-quoted.yaml", "Pod s/a {a=yes,b=1,c=1}"),
    ("24-label-date.yaml", "Pod s/a {a=2024-01-02,b=12:30,c=1_0x,d=v1.0}"),
    ("25-anchor-and-merge.yaml", "Pod s/a {a=1,b=2}; Pod s/b {true=3,x=1}"),
    ("26-alias-of-another-document.yaml", REFUSED),
    ("27-json-objects.json", "Pod s/a {}; Pod s/b {x=a/b 😀}; Namespace /s"),
    ("28-json-in-yaml-file.yaml", "Pod s/a {}; Pod s/b {}"),
    ("29-yaml-in-json-file.json", "Pod s/a {}"),
    ("30-braces-that-are-yaml.json", "Pod s/a {}"),
    ("31-json-with-trailing-comma.json", "Pod s/a {}"),
    ("32-quoted-to-the-key-s-column.yaml", "Pod s/a {}"),
    ("33-quoted-left-of-the-key.yaml", "Pod s/a {}"),
    ("34-plain-over-lines.yaml", "Pod s/a {}"),
    ("35-end-marker.yaml", "Pod s/a {}; Pod s/b {}"),
    ("36-marker-in-block-scalar.yaml", "Pod s/a {}; Pod s/b {}"),
    ("37-directive.yaml", REFUSED),
    ("38-no-line-end.yaml", "Pod s/a {}"),
    ("39-unknown-anchor.yaml", REFUSED),
    ("40-null-key.yaml", REFUSED),
    ("41-complex-key.yaml", REFUSED),
    ("42-block-scalars.yaml", "Pod s/a {}"),
    ("43-nothing.yaml", ""),
    ("44-container-port-without-protocol.yaml", "Pod s/a {}"),
    ("45-string-tag.yaml", "Pod s/a {a=yes,b=1}"),
    ("46-indentless-list.yaml", "Pod s/a {}"),
    ("47-no-kind.yaml", REFUSED),
    ("48-no-version.yaml", REFUSED),
    ("49-sequence.yaml", REFUSED),
    ("50-second-document-without-marker.yaml", "Pod s/a {}"),
    ("51-hash-in-value.yaml", "Pod s/a {}"),
    ("52-colon-in-value.yaml", "Pod s/a {}"),
    ("53-block-scalar-at-the-end.yaml", "Pod s/a {}"),
];

/// What podgate makes of them where that is something else.
const OTHERWISE: [(&str, &str); 7] = [
    // kubectl takes the last of two silently; of a policy that is half, so this is as strict as the API server
    ("11-doubled-key.yaml", REFUSED),
    ("12-doubled-key.json", REFUSED),
    // text where text is wanted, whatever YAML 1.1 says of the word
    ("13-label-yes.yaml", "Pod s/a {a=yes}"),
    ("14-label-on.yaml", "Pod s/a {a=on}"),
    ("15-label-y.yaml", "Pod s/a {a=y}"),
    // no object, not even a broken one: passed over with a note
    ("49-sequence.yaml", ""),
    // kubectl reads no further than the first, silently
    ("50-second-document-without-marker.yaml", REFUSED),
];

#[test]
fn what_kubectl_reads_is_read_the_same() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/unit_manifests/kubectl");
    let mut wrong = Vec::new();
    for (file, seen) in SEEN {
        let manifest = read_file(&dir.join(file));
        let read = match manifest.errors.is_empty() {
            true => objects(&manifest).join("; "),
            false => REFUSED.to_owned(),
        };
        let otherwise = OTHERWISE.iter().find(|(name, _)| *name == file);
        let expected = otherwise.map_or(seen, |(_, read)| *read);
        if read != expected {
            wrong.push(format!("{file}: {read:?}, not {expected:?} {:?}", errors(&manifest)));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // none is forgotten
    let files = fs::read_dir(&dir).unwrap().filter(|entry| {
        let name = entry.as_ref().unwrap().file_name();
        !name.to_string_lossy().starts_with('.')
    });
    assert_eq!(files.count(), SEEN.len());
}
