//! Checks of the source text that neither the compiler nor clippy makes: who may import whom, how large a file may grow,
//! how files begin and are called, what tests may not do, and that the documents name the parts that exist.
//!
//! Each rule (`tidy/rules.rs`) is a pure function from a file's path and text to findings (`path:line: what is wrong`),
//! with unit tests which show that it can fail. The tests here run the rules over this checkout.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

// Paths, because modules of a test beside it would be taken for tests of their own.
#[path = "tidy/rules.rs"]
mod rules;
#[path = "tidy/rust_text.rs"]
mod rust_text;

use rules::{
    Finding, dangling_paths, empty_name, forbidden_imports, ignored_tests, manifest_against_readme,
    missing_head, part_of, parts_not_in_the_map, parts_without_a_row, sleeps, stray_modules,
    too_long, unfinished_work,
};
use rust_text::test_only_files;

/// Who may import whom. A new edge is an edit of this table, so that a reviewer sees it; `src/lib.rs` explains the parts.
const IMPORTS: &[(&str, Imports)] = &[
    ("model", Imports::Nothing),
    ("runtime", Imports::Nothing),
    ("body", Imports::Nothing),
    ("tls", Imports::Parts(&["runtime"])),
    ("frontend", Imports::Parts(&["model", "runtime", "tls", "body"])),
    ("auth", Imports::Parts(&["model", "runtime", "tls", "upstream"])),
    ("upstream", Imports::Parts(&["model", "runtime", "tls", "body"])),
    ("store", Imports::Parts(&["model", "runtime"])),
    ("aggregate", Imports::Parts(&["model", "runtime", "upstream"])),
    ("control", Imports::Parts(&["model", "runtime", "tls", "store", "upstream"])),
    (
        "proxy",
        Imports::Parts(&[
            "model",
            "runtime",
            "body",
            "auth",
            "upstream",
            "aggregate",
            "store",
            "admin",
        ]),
    ),
    ("admin", Imports::Parts(&["model", "runtime", "tls", "upstream"])),
    ("demo", Imports::Parts(&["model", "runtime", "tls"])),
    // Every part's `Config`.
    ("config", Imports::Everything),
    ("app", Imports::Everything),
    ("cli", Imports::Everything),
    ("main", Imports::Everything),
    ("lib", Imports::Everything),
];

/// Open to every part that may import anything at all.
const OPEN_TO_ALL: &[&str] = &["model", "runtime", "body"];

enum Imports {
    /// Only itself.
    Nothing,
    /// Itself, these, and what is open to all.
    Parts(&'static [&'static str]),
    Everything,
}

/// What the rules about text look at, besides files without an extension that are scripts of ours.
const TEXT_EXTENSIONS: &[&str] = &["rs", "sh", "toml", "md", "yaml", "yml"];
const TEXT_NAMES: &[&str] = &["run", "Dockerfile"];
#[test]
fn parts_import_only_what_the_table_allows() {
    let sources = sources();
    let tests_only: BTreeSet<String> =
        sources.iter().flat_map(|file| test_only_files(&file.path, &file.text)).collect();
    let shipped = sources.iter().filter(|file| !tests_only.contains(&file.path));
    report(shipped.flat_map(|file| forbidden_imports(&file.path, &file.text)));
}

#[test]
fn source_files_say_what_they_are_for() {
    report(sources().iter().flat_map(|file| missing_head(&file.path, &file.text)));
}

#[test]
fn source_files_stay_short() {
    report(sources().iter().flat_map(|file| too_long(&file.path, &file.text)));
}

#[test]
fn files_and_folders_have_telling_names() {
    let paths: Vec<String> = files_below(&["src", "tests", "benches"], |_| true);
    report(paths.iter().flat_map(|path| empty_name(path)));
}

#[test]
fn folders_of_source_are_modules_of_their_own() {
    let paths: BTreeSet<String> = sources().into_iter().map(|file| file.path).collect();
    report(stray_modules(&paths));
}

#[test]
fn no_marks_of_unfinished_work() {
    let is_text = |path: &Path| {
        let extension = path.extension().and_then(|extension| extension.to_str());
        let name = path.file_name().and_then(|name| name.to_str());
        extension.is_some_and(|extension| TEXT_EXTENSIONS.contains(&extension))
            || name.is_some_and(|name| TEXT_NAMES.contains(&name))
    };
    let mut paths = files_below(&["src", "tests", "benches", "config", ".ci"], is_text);
    for path in ["Cargo.toml", "README.md", "Dockerfile"] {
        if root().join(path).exists() {
            paths.push(path.to_owned());
        }
    }
    report(read_all(paths).iter().flat_map(|file| unfinished_work(&file.path, &file.text)));
}

#[test]
fn no_test_is_ignored_or_waits_for_time_to_pass() {
    let tests = read_all(files_below(&["tests"], is_rust));
    report(tests.iter().flat_map(|file| {
        let mut findings = ignored_tests(&file.path, &file.text);
        findings.extend(sleeps(&file.path, &file.text));
        findings
    }));
    report(sources().iter().flat_map(|file| ignored_tests(&file.path, &file.text)));
}

#[test]
fn documents_and_manifest_name_the_parts_that_exist() {
    let parts: BTreeSet<String> =
        sources().iter().filter_map(|file| part_of(&file.path).map(str::to_owned)).collect();
    let exists = |path: &str| root().join(path).exists();
    let mut findings = parts_without_a_row(&parts);
    findings.extend(parts_not_in_the_map(&parts, "src/lib.rs", &read("src/lib.rs")));
    for path in ["src/lib.rs", "README.md"] {
        findings.extend(dangling_paths(path, &read(path), exists));
    }
    findings.extend(manifest_against_readme(&read("Cargo.toml"), &read("README.md"), exists));
    report(findings);
}

struct SourceFile {
    path: String,
    text: String,
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn is_rust(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "rs")
}

fn sources() -> Vec<SourceFile> {
    let sources = read_all(files_below(&["src"], is_rust));
    assert!(!sources.is_empty(), "no source below {}", root().join("src").display());
    sources
}

fn read(path: &str) -> String {
    let text = fs::read_to_string(root().join(path));
    text.map_err(|error| format!("{path}:1: {error}")).expect("the checkout's files can be read")
}

fn read_all(paths: Vec<String>) -> Vec<SourceFile> {
    paths.into_iter().map(|path| SourceFile { text: read(&path), path }).collect()
}

/// The files below these folders, relative to the checkout and with `/`, sorted. A folder that is not there has none.
fn files_below(folders: &[&str], wanted: impl Fn(&Path) -> bool) -> Vec<String> {
    let mut open: Vec<PathBuf> = folders.iter().map(|folder| root().join(folder)).collect();
    let mut found = Vec::new();
    while let Some(folder) = open.pop() {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for entry in entries {
            let entry = entry.expect("a folder's entry can be read");
            let path = entry.path();
            // The kind of the entry itself, so that a link is never followed.
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                open.push(path);
            } else if wanted(&path) {
                let relative = path.strip_prefix(root()).expect("it is below the checkout");
                found.push(relative.to_string_lossy().replace('\\', "/"));
            }
        }
    }
    found.sort();
    found
}

#[track_caller]
fn report(findings: impl IntoIterator<Item = Finding>) {
    let lines: Vec<String> = findings.into_iter().map(|finding| finding.to_string()).collect();
    assert!(lines.is_empty(), "{} untidy places:\n{}", lines.len(), lines.join("\n"));
}
