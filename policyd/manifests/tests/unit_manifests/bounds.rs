//! How much a file may ask for.

use std::fmt::Write;
use std::fs::File;

use podgate_manifests::manifest::{Lost, read_file};

use super::{errors, objects, read};

/// A pod with an annotation for each level of a nest of aliases: each level holds ten of the one before, the innermost a
/// hundred words.
fn nest(levels: usize) -> String {
    let mut text = format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: a}}\nstatus:\n  l0: &l0 [{}]\n",
        ["word"; 100].join(",")
    );
    for level in 1..=levels {
        let inner = format!("*l{}", level - 1);
        let _ = writeln!(text, "  l{level}: &l{level} [{}]", [inner.as_str(); 10].join(","));
    }
    text
}

#[test]
fn aliases_that_repeat_too_much_are_refused_before_they_do() {
    // 100,000 words each way are 4 MB, a million 40: the copy that is kept and the one in its place
    let fine = read(&nest(3));
    assert_eq!((objects(&fine), errors(&fine)), (vec!["Pod default/a {}".to_owned()], vec![]));
    for levels in [5, 6, 9, 30] {
        let refused = read(&nest(levels));
        assert_eq!(refused.objects, []);
        let [error] = &errors(&refused)[..] else { panic!("{refused:?}") };
        assert!(error.starts_with("read f.yaml, document 1, line "), "{error}");
        assert!(error.contains("pod default/a") || error.contains("pod a"), "{error}");
        assert!(
            error.ends_with(
                "aliases repeat more than 64 MiB in this file; write out what they stand for"
            ),
            "{error}"
        );
        // it is no policy: nothing else is lost
        assert_eq!((refused.errors[0].lost, refused.incomplete), (Lost::Object, false));
    }
}

#[test]
fn the_limit_of_aliases_is_the_file_s_and_not_each_document_s() {
    let many = vec![nest(3); 40].join("---\n");
    let manifest = read(&many);
    assert!(!manifest.objects.is_empty() && manifest.objects.len() < 20);
    assert!(errors(&manifest)[0].contains("aliases repeat"), "{:?}", errors(&manifest)[0]);
}

#[test]
fn an_object_has_a_size_and_a_depth() {
    let big = format!("apiVersion: v1\nkind: Pod\nx: [{}]\n", ["{a: b}"; 100_000].join(","));
    let error = &errors(&read(&big))[0];
    assert!(error.ends_with("one object needs more than 64 MiB of memory; split it"), "{error}");
    let json = format!(
        r#"{{"apiVersion":"v1","kind":"Pod","x":[{}]}}"#,
        [r#"{"a":1}"#; 100_000].join(",")
    );
    let error = &errors(&read(&json))[0];
    assert!(error.ends_with("one object needs more than 64 MiB of memory; split it"), "{error}");

    let deep = |depth: usize| {
        let (open, close) = ("[".repeat(depth), "]".repeat(depth));
        format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: a}}\nx: {open}{close}\n")
    };
    assert_eq!(errors(&read(&deep(99))), Vec::<String>::new());
    for depth in [100, 1000, 100_000] {
        let error = &errors(&read(&deep(depth)))[0];
        assert!(error.ends_with("nested more than 100 levels deep"), "{error}");
    }
    let block: String = (0..200).map(|depth| format!("{}a:\n", " ".repeat(depth))).collect();
    let error = &errors(&read(&block))[0];
    assert!(error.ends_with("nested more than 100 levels deep"), "{error}");
}

#[test]
fn a_list_may_be_larger_than_an_object() {
    let pod = |nth: usize| {
        format!(r#"{{"apiVersion":"v1","kind":"Pod","metadata":{{"name":"p{nth}"}}}}"#)
    };
    let pods: Vec<_> = (0..60_000).map(pod).collect();
    for text in [
        format!(r#"{{"apiVersion":"v1","items":[{}],"kind":"List"}}"#, pods.join(",\n")),
        format!("apiVersion: v1\nitems:\n- {}\nkind: List\n", pods.join("\n- ")),
    ] {
        let manifest = read(&text);
        assert_eq!((manifest.objects.len(), errors(&manifest)), (60_000, vec![]));
    }
    // the same under another kind is another's affair
    let other = format!("apiVersion: v1\nitems:\n- {}\nkind: Other\n", pods[..10].join("\n- "));
    let manifest = read(&other);
    assert_eq!((manifest.objects.len(), errors(&manifest)), (0, vec![]));
}

#[test]
fn a_list_may_say_last_what_its_items_are() {
    for text in [
        "apiVersion: v1\nitems: [{metadata: {name: a}}]\nkind: PodList\n",
        "kind: PodList\nitems: [{metadata: {name: a}}]\napiVersion: v1\n",
        r#"{"apiVersion":"v1","items":[{"metadata":{"name":"a"}}],"kind":"PodList"}"#,
        "x: &x [{metadata: {name: a}}]\napiVersion: v1\nkind: PodList\nitems: *x\n",
    ] {
        let manifest = read(text);
        assert_eq!(objects(&manifest), ["Pod default/a {}"], "{text}: {:?}", errors(&manifest));
    }
}

#[test]
fn a_file_has_a_length_and_a_number_of_mistakes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("long.yaml");
    // sparse: takes no room
    File::create(&path).unwrap().set_len((512 << 20) + 1).unwrap();
    let manifest = read_file(&path);
    let error = &errors(&manifest)[0];
    assert!(error.ends_with("long.yaml: longer than 512 MiB; split the file"), "{error}");
    assert!(manifest.incomplete);

    let manifest = read(&"---\napiVersion: v1\nkind: Pod\n".repeat(1000));
    assert_eq!(manifest.errors.len(), 51);
    assert!(errors(&manifest)[50].ends_with("950 more mistakes"), "{}", errors(&manifest)[50]);
}
