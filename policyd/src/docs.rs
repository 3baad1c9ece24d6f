//! Documents that tests make from the code.

use std::path::Path;
use std::{env, fs};

/// Compares a document of the tree with what the code says; `PODGATE_WRITE_DOCS=1` writes it.
pub(crate) fn compare(document: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(document);
    if env::var_os("PODGATE_WRITE_DOCS").is_some() {
        fs::write(&path, text).unwrap();
    }
    let found = fs::read_to_string(&path).unwrap_or_default();
    let differs = found.lines().zip(text.lines()).find(|(found, text)| found != text);
    assert!(
        found == text,
        "{document} is stale, run this test with PODGATE_WRITE_DOCS=1; the first difference: {differs:#?}"
    );
}
