//! What libcni remembers of each attachment. CRI-O and podman take the chain of a pod's DEL from there, not from the
//! present conflist: as long as one of them names podgate, its binary is needed.

use std::fs;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use super::conflist::Conflist;

/// A cached result, as far as it matters here.
#[derive(Deserialize)]
struct Cached {
    /// The configuration, as Go writes bytes.
    config: String,
}

/// How many attachments' remembered chains have podgate in them. What cannot be read as one is none: the
/// directory is libcni's, who ignores it too.
pub(super) fn count(cache: &Path) -> usize {
    let files = fs::read_dir(cache.join("results")).into_iter().flatten().flatten();
    files.filter(|file| names_us(&file.path()).unwrap_or(false)).count()
}

fn names_us(path: &Path) -> Option<bool> {
    let cached: Cached = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
    let text = String::from_utf8(STANDARD.decode(cached.config).ok()?).ok()?;
    Some(Conflist::parse(&text).ok()?.gates())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_chains_with_podgate_count() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(count(dir.path()), 0);
        let results = dir.path().join("results");
        fs::create_dir(&results).unwrap();
        let write = |name: &str, plugins: &str| {
            let list = format!(r#"{{"name":"pods","plugins":[{plugins}]}}"#);
            let cached =
                serde_json::json!({ "kind": "cniCacheV1", "config": STANDARD.encode(list) });
            fs::write(results.join(name), cached.to_string()).unwrap();
        };
        write("pods-a-eth0", r#"{"type":"bridge"},{"type":"podgate"}"#);
        write("pods-b-eth0", r#"{"type":"bridge"}"#);
        // from before there was a cached configuration, and not from libcni at all
        fs::write(results.join("old"), r#"{"cniVersion":"0.3.1","ips":[]}"#).unwrap();
        fs::write(results.join("junk"), "podgate").unwrap();
        assert_eq!(count(dir.path()), 1);
    }
}
