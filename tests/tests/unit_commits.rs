//! scripts/lint-commits.sh, in repositories of its own.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

const BODY: &str = "Because a queue without a bound took all memory.\n";

fn git(dir: &Path, args: &[&str]) -> String {
    let output = Command::new("git")
        .args(["-c", "user.name=t", "-c", "user.email=t@example.com", "-c", "commit.gpgsign=false"])
        .args(args)
        .current_dir(dir)
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .output()
        .expect("run git");
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn commit(dir: &Path, message: &str) {
    git(dir, &["commit", "-q", "--allow-empty", "--cleanup=verbatim", "-m", message]);
}

/// A repository with one commit that would not pass, and with these after it.
fn repository(messages: &[&str]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    git(dir.path(), &["init", "-q", "-b", "main"]);
    commit(dir.path(), "An old one.");
    for message in messages {
        commit(dir.path(), message);
    }
    dir
}

/// Whether the script passes, and what it says.
fn lint(dir: &Path, args: &[&str]) -> (bool, String) {
    lint_where(dir, args, false)
}

/// The same, in CI or not.
fn lint_where(dir: &Path, args: &[&str], ci: bool) -> (bool, String) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/lint-commits.sh");
    let mut bash = Command::new("bash");
    bash.arg(script).args(args).current_dir(dir).env_remove("CI");
    if ci {
        bash.env("CI", "true");
    }
    let output = bash.output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(said).unwrap())
}

#[test]
fn messages_that_keep_the_rules_pass() {
    let first = format!("policyd: bound the queue of events\n\n{BODY}");
    let trailer =
        format!("core, bpf/c: share `pg_l4`\n\n{BODY}\nSigned-off-by: t <t@example.com>\n");
    let longest = format!("docs: {}\n\n{BODY}", "x".repeat(66));
    let paths = format!(
        "install: write /etc/cni/net.d in one step\n\n{BODY}See proxy.rs, index.html, svc.cluster.local.\n"
    );
    let repository = repository(&[&first, &trailer, &longest, &paths]);
    let (passed, said) = lint(repository.path(), &["HEAD~4"]);
    assert!(passed, "{said}");
    assert!(said.contains("4 new commits"), "{said}");
}

#[test]
fn each_rule_is_checked() {
    let with = |subject: &str, body: &str| format!("{subject}\n\n{body}");
    for (message, complaint) in [
        (with("bound the queue", BODY), "not 'area:"),
        (with("policyd:bound the queue", BODY), "not 'area:"),
        (with(&format!("docs: {}", "x".repeat(67)), BODY), "has 73 characters"),
        (with("docs: say why.", BODY), "full stop"),
        ("docs: say why".to_owned(), "no body"),
        (with("docs: say why", "Signed-off-by: t <t@example.com>\n"), "no body"),
        (with("docs: say why", "Seen in /home/me/podgate.\n"), "a path of one machine:/home/me"),
        (with("docs: say why", "As in \"/root/x\".\n"), "a path of one machine"),
        (
            with("build: use another", "From https://registry.example.org/x.\n"),
            "registry.example.org",
        ),
        (with("build: use another", "From crates.example.internal.\n"), "example.internal"),
    ] {
        let good = with("docs: say why", BODY);
        let repository = repository(&[&message, &good]);
        let (passed, said) = lint(repository.path(), &["HEAD~2"]);
        assert!(!passed && said.contains(complaint), "{message:?}: {said}");
        assert_eq!(said.lines().count(), 1, "{message:?}: {said}");
    }
}

#[test]
fn a_clone_without_the_first_commit_checks_what_is_not_upstream() {
    let good = format!("docs: say why\n\n{BODY}");
    let upstream = repository(&["no area", &good]);
    let clone = tempfile::tempdir().unwrap();
    let url = format!("file://{}", upstream.path().display());
    git(clone.path(), &["clone", "-q", "--depth", "1", &url, "."]);
    // nothing is new: the last one alone
    let (passed, said) = lint(clone.path(), &[]);
    assert!(passed && said.contains("1 new commits"), "{said}");
    commit(clone.path(), "no area either");
    let (passed, said) = lint(clone.path(), &[]);
    assert!(!passed && said.contains("no area either"), "{said}");
    assert!(!said.contains("say why"), "that one is upstream: {said}");
}

#[test]
fn ci_complains_of_a_message_and_goes_on() {
    let repository = repository(&["squashed"]);
    let (passed, said) = lint_where(repository.path(), &["HEAD~1"], true);
    assert!(passed && said.contains("not 'area:") && said.contains("no body"), "{said}");
}

#[test]
fn without_a_repository_it_says_that_nothing_was_checked() {
    let dir = tempfile::tempdir().unwrap();
    let (passed, said) = lint(dir.path(), &[]);
    assert!(passed && said.contains("NOT checked"), "{said}");
}
