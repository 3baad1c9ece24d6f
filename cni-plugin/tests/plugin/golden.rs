//! What the plugin answers, word for word: one file per case in `tests/golden`, in all four versions of
//! the protocol written as `VERSION_OF_THE_PROTOCOL`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::ExitCode;

use serde::Deserialize;

const VERSIONS: [&str; 4] = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"];

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Case {
    env: BTreeMap<String, String>,
    stdin: serde_json::Value,
    exit: u8,
    stdout: serde_json::Value,
    #[serde(default)]
    stderr_contains: Vec<String>,
    /// In which versions; all if missing.
    #[serde(default)]
    versions: Option<Vec<String>>,
}

#[test]
fn answers_are_as_written() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut cases = 0;
    for file in fs::read_dir(dir).expect("read cases") {
        let path = file.expect("read cases").path();
        let text = fs::read_to_string(&path).expect("read case");
        let all = serde_json::from_str::<Case>(&text).unwrap_or_else(|e| panic!("{path:?}: {e}"));
        let versions = all.versions.unwrap_or_else(|| VERSIONS.map(str::to_owned).into());
        for version in versions {
            let case: Case =
                serde_json::from_str(&text.replace("VERSION_OF_THE_PROTOCOL", &version))
                    .expect("same shape");
            check(&format!("{} in {version}", path.display()), &case);
            cases += 1;
        }
    }
    assert!(cases >= 30, "only {cases} cases were found");
}

fn check(name: &str, case: &Case) {
    // a string is no configuration: it is what stdin holds
    let stdin = match &case.stdin {
        serde_json::Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let env = |key: &str| case.env.get(key).cloned();
    let code = podgate_cni::run(env, &mut stdin.as_bytes(), &mut stdout, &mut stderr);
    assert_eq!(format!("{code:?}"), format!("{:?}", ExitCode::from(case.exit)), "{name}");
    let (stdout, stderr) =
        (String::from_utf8(stdout).expect("text"), String::from_utf8(stderr).expect("text"));
    if case.stdout.is_null() {
        assert_eq!(stdout, "", "{name}");
    } else {
        let printed: serde_json::Value =
            serde_json::from_str(&stdout).unwrap_or_else(|e| panic!("{name}: {e}: {stdout}"));
        assert_eq!(printed, case.stdout, "{name}");
    }
    for part in &case.stderr_contains {
        assert!(stderr.contains(part), "{name}: no {part:?}: {stderr}");
    }
}
