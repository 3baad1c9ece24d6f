//! Files of a directory, through the reader, the index and the engine.

use std::fs;
use std::path::{Path, PathBuf};

use podgate_manifests::manifest::{Lost, is_manifest, read_text, values};
use podgate_policy::compile::Engine;
use podgate_policy::index::Index;
use podgate_policy::object::Event;
use podgate_policy::services::ServiceTable;
use podgate_policy::tables::{Endpoint, EndpointId};
use podgate_tests::mutator::fuzz;

const WORDS: &[&str] = &[
    "---\n",
    "...\n",
    "&a ",
    "*a",
    "&b ",
    "*b",
    "<<: *a\n",
    "<<: [*a, *b]\n",
    "{",
    "}",
    "[",
    "]",
    ",",
    ": ",
    "- ",
    "? ",
    "#",
    "|\n",
    ">-\n",
    "\"",
    "'",
    "!!str ",
    "!!binary ",
    "!!int ",
    "!x ",
    "%YAML 1.2\n",
    "\u{feff}",
    "\t",
    "\r\n",
    "\u{85}",
    "null",
    "~",
    "on",
    "0x7f",
    "65536",
    "-1",
    "1e9",
    ".inf",
    "10.0.0.0/0",
    "::/0",
    "::ffff:10.0.0.1",
    "kind: List\nitems:\n",
    "kind: NetworkPolicy\n",
    "apiVersion: v1\n",
    "metadata: ",
    "namespace: ",
    "podSelector: {}",
    "matchLabels:\n",
    "ipBlock: {cidr: 10.0.0.0/8}",
    "{\"apiVersion\": \"v1\", \"kind\": \"Pod\"}",
    "[[[[[[[[[[[[[[[[",
    "{a: {a: {a: {a: {a: ",
    "- - - - - - - - ",
];

/// The manifests of the example worlds, and those that kubectl's reader was given.
fn inputs() -> Vec<Vec<u8>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut dirs = vec![root.join("policyd/manifests/tests/unit_manifests/kubectl")];
    for world in fs::read_dir(root.join("conf/worlds")).unwrap() {
        dirs.push(world.unwrap().path().join("manifests"));
    }
    let files = |dir: PathBuf| fs::read_dir(dir).unwrap().map(|file| file.unwrap().path());
    let mut files: Vec<_> =
        dirs.into_iter().flat_map(files).filter(|file| is_manifest(file)).collect();
    files.sort();
    assert!(files.len() > 50, "{files:?}");
    files.iter().map(|file| fs::read(file).unwrap()).collect()
}

fn read(text: &str) {
    let manifest = read_text(Path::new("f.yaml"), text);
    for error in &manifest.errors {
        assert!(error.to_string().starts_with("read f.yaml, document "), "{error}");
        assert!(!error.cause.is_empty());
    }
    let lost = manifest.errors.iter().map(|error| error.lost).max();
    assert_eq!(lost == Some(Lost::Any), manifest.incomplete);
    assert!(lost != Some(Lost::Policy) || !manifest.closed.is_empty());
    // a second reader of the same text must not fail where the first does not
    assert!(!manifest.errors.is_empty() || values(text).is_ok());

    let mut index = Index::new();
    for object in manifest.objects {
        assert!(!object.id().to_string().ends_with('/'));
        index.apply(Event::Set(object));
    }
    for policy in manifest.closed {
        index.apply(Event::from(policy));
    }
    let endpoints = index.pods().zip(1..).map(|(pod, number)| Endpoint {
        id: EndpointId(number),
        pod: Some(pod.key.clone()),
        uid: pod.uid.clone(),
        addresses: pod.addresses.clone(),
    });
    let endpoints: Vec<_> = endpoints.collect();
    let engine = Engine::of(&index, endpoints.iter().cloned());
    assert_eq!(engine.compiled().tables.len(), endpoints.len());
    ServiceTable::of(index.services(), "node");
}

#[test]
fn manifests_are_read_or_refused_through_the_engine() {
    fuzz(2000, WORDS, &inputs(), |input| {
        // what is no UTF-8 is refused before: see `read_file`
        read(&String::from_utf8_lossy(input));
    });
}
