//! Manifests that were read wrongly once: `podgatectl check` says what their probes expect.

use std::fs;
use std::path::Path;
use std::process::Command;

#[test]
fn cases_that_were_read_wrongly() {
    let cases = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases");
    let mut seen = 0;
    for case in fs::read_dir(cases).unwrap() {
        let case = case.unwrap().path();
        let output = Command::new(env!("CARGO_BIN_EXE_podgatectl"))
            .args(["check", "--manifests"])
            .arg(case.join("m"))
            .arg("--probes")
            .arg(case.join("probes.json"))
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}: {}{}",
            case.display(),
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        seen += 1;
    }
    assert_eq!(seen, 5);
}
