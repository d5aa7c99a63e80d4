//! The documents in `docs/` list what the code lists. `UPDATE_DOCS=1 cargo test --test docs` writes
//! them.

use std::fs;
use std::path::Path;

use portico::cli::{pages, reference};

/// Compares a document with what the code says, or writes it.
#[track_caller]
fn check(path: &str, expected: &str) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&file, expected).expect("the checkout can be written");
    }
    let found = fs::read_to_string(&file).unwrap_or_default();
    let differs = found.lines().zip(expected.lines()).position(|(found, new)| found != new);
    let line = differs.unwrap_or(found.lines().count().min(expected.lines().count())) + 1;
    assert!(
        found == expected,
        "{path}:{line} is not what the code says: run `UPDATE_DOCS=1 cargo test --test docs` and \
         commit the file"
    );
}

#[test]
fn flags_are_documented_as_they_are() {
    check("docs/flags.md", &reference::flags_page());
}

#[test]
fn metrics_are_documented_as_they_are() {
    check("docs/metrics.md", &pages::metrics_page().expect("a page"));
}

#[test]
fn failures_are_documented_as_they_are() {
    check("docs/failures.md", &pages::failures_page().expect("a page"));
}
