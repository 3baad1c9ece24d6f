//! The documents say what the tree has: each line of docs/semantics.md has a test, and every document, heading and
//! line that a file refers to exists.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Component, Path, PathBuf};

use regex::Regex;

const SEMANTICS: &str = "docs/semantics.md";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Every text file of the tree, by its path from the root.
fn files() -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut left = vec![root()];
    while let Some(dir) = left.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            let kind = entry.file_type().unwrap();
            if kind.is_dir() && name != "target" && name != ".git" {
                left.push(entry.path());
            } else if kind.is_file()
                && let Ok(text) = fs::read_to_string(entry.path())
            {
                found.insert(entry.path().strip_prefix(root()).unwrap().to_owned(), text);
            }
        }
    }
    assert!(found.len() > 300, "this is not the whole tree: {} files", found.len());
    found
}

fn regex(pattern: &str) -> Regex {
    Regex::new(pattern).unwrap()
}

/// The numbers of the specification's lines, `4.9`.
fn lines() -> BTreeSet<String> {
    let text = fs::read_to_string(root().join(SEMANTICS)).unwrap();
    let line = regex(r"(?m)^- \*\*(\d+\.\d+)\*\* ");
    let mut lines = BTreeSet::new();
    for found in line.captures_iter(&text) {
        assert!(lines.insert(found[1].to_owned()), "{} stands twice in {SEMANTICS}", &found[1]);
    }
    assert!(lines.len() > 100, "{SEMANTICS} is not read as it is written: {lines:?}");
    lines
}

#[test]
fn each_line_of_the_semantics_has_a_test_and_no_test_another_number() {
    let function = regex(r"\bfn s(\d+)_(?:(\d+)_)?\w+\s*[(<]");
    let lines = lines();
    let mut tested = BTreeSet::new();
    let mut unknown = Vec::new();
    for (path, text) in
        files().iter().filter(|(path, _)| path.extension().is_some_and(|e| e == "rs"))
    {
        for found in function.captures_iter(text) {
            let number = format!("{}.{}", &found[1], found.get(2).map_or("", |line| line.as_str()));
            if lines.contains(&number) {
                tested.insert(number);
            } else {
                unknown.push(format!("{}: {}", path.display(), &found[0]));
            }
        }
    }
    let untested: Vec<_> = lines.difference(&tested).collect();
    assert!(untested.is_empty(), "no test is named after these lines of {SEMANTICS}: {untested:?}");
    assert!(unknown.is_empty(), "these tests name no line of {SEMANTICS}:\n{}", unknown.join("\n"));
}

#[test]
fn references_to_the_semantics_name_a_section_or_a_line() {
    let lines = lines();
    let sections: BTreeSet<&str> =
        lines.iter().map(|line| line.split_once('.').unwrap().0).collect();
    let reference = regex(r"docs/semantics\.md (\d+(?:\.\d+)?(?:(?:, | and | to )\d+(?:\.\d+)?)*)");
    let number = regex(r"\d+(?:\.\d+)?");
    let mut checked = 0;
    for (path, text) in files() {
        for found in reference.captures_iter(&text) {
            for number in number.find_iter(&found[1]).map(|number| number.as_str()) {
                checked += 1;
                let known = lines.contains(number) || sections.contains(number) || number == "14";
                assert!(known, "{}: no {number} in {SEMANTICS}", path.display());
            }
        }
    }
    assert!(checked > 20, "only {checked} references were found");
}

/// GitHub's name for a heading.
fn anchor(heading: &str) -> String {
    let kept = heading.to_lowercase().replace(' ', "-");
    kept.chars().filter(|c| c.is_alphanumeric() || matches!(c, '-' | '_')).collect()
}

fn anchors(text: &str) -> BTreeSet<String> {
    let heading = regex(r"(?m)^#+ (.+)$");
    heading.captures_iter(text).map(|found| anchor(found[1].trim())).collect()
}

/// `docs/../README.md` as `README.md`; `None` if it leaves the tree.
fn normal(path: &Path) -> Option<PathBuf> {
    let mut normal = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir if !normal.pop() => return None,
            Component::Normal(name) => normal.push(name),
            _ => {}
        }
    }
    Some(normal)
}

#[test]
fn every_document_and_heading_that_is_named_exists() {
    let files = files();
    let document = regex(r"(?P<before>\S*?)(?P<path>[\w./-]*\w\.md)\b(?:#(?P<anchor>[\w-]+))?");
    let within = regex(r"\]\(#([\w-]+)\)");
    let mut broken = Vec::new();
    for (path, text) in &files {
        for found in document.captures_iter(text) {
            let named = Path::new(&found["path"]);
            // addresses of the web, and what a script makes
            let before = &found["before"];
            if before.contains("://") || before.ends_with('$') || named.starts_with("target") {
                continue;
            }
            // as a link of its own directory, or as a path from the root
            let beside = path.parent().and_then(|dir| normal(&dir.join(named)));
            let target =
                [beside, normal(named)].into_iter().flatten().find(|p| files.contains_key(p));
            let right = target.is_some_and(|target| {
                let wanted = found.name("anchor").map(|anchor| anchor.as_str());
                wanted.is_none_or(|wanted| anchors(&files[&target]).contains(wanted))
            });
            if !right {
                broken.push(format!("{}: {}", path.display(), &found[0]));
            }
        }
        if path.extension().is_some_and(|extension| extension == "md") {
            let anchors = anchors(text);
            let links = within.captures_iter(text).filter(|found| !anchors.contains(&found[1]));
            broken.extend(links.map(|found| format!("{}: #{}", path.display(), &found[1])));
        }
    }
    assert!(broken.is_empty(), "these do not exist:\n{}", broken.join("\n"));
}

#[test]
fn headings_have_the_anchors_that_github_gives_them() {
    for (heading, expected) in [
        ("What does the packet meet now?", "what-does-the-packet-meet-now"),
        ("7. Protocols beside TCP, UDP and SCTP", "7-protocols-beside-tcp-udp-and-sctp"),
        ("The maps", "the-maps"),
    ] {
        assert_eq!(anchor(heading), expected);
    }
}
