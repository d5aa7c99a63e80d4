//! The rules: pure functions from a file's path and text to what is wrong there. Paths are relative to the checkout.

use std::collections::BTreeSet;
use std::fmt;

use crate::rust_text::{Token, tokenize, trailing_tests_line, without_tests};
use crate::{IMPORTS, Imports, OPEN_TO_ALL};

/// Lines of a source file without the unit tests at its end, and with them.
const LINES_MAX: usize = 500;
const LINES_WITH_TESTS_MAX: usize = 800;

/// Names that say nothing about what a file or folder holds.
const EMPTY_NAMES: &[&str] =
    &["util", "utils", "common", "helper", "helpers", "manager", "managers", "misc"];

/// Marks of unfinished work; pieced together, so that this file does not hold them.
const MARKS: &[&str] = &[concat!("TO", "DO"), concat!("FIX", "ME"), concat!("X", "XX")];
/// One fault, shown as `path:line: what`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    path: String,
    line: usize,
    what: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}: {}", self.path, self.line, self.what)
    }
}

fn finding(path: &str, line: usize, what: impl Into<String>) -> Finding {
    Finding { path: path.to_owned(), line, what: what.into() }
}

/// The part that a file under `src/` belongs to: its folder's name or, directly in `src/`, its own.
pub(crate) fn part_of(path: &str) -> Option<&str> {
    let below = path.strip_prefix("src/")?;
    match below.split_once('/') {
        Some((folder, _)) => Some(folder),
        None => below.strip_suffix(".rs"),
    }
}

fn row_of(part: &str) -> Option<&'static Imports> {
    IMPORTS.iter().find(|(name, _)| *name == part).map(|(_, imports)| imports)
}

fn may_import(part: &str, imports: &Imports, wanted: &str) -> bool {
    match imports {
        Imports::Everything => true,
        Imports::Nothing => wanted == part,
        Imports::Parts(parts) => {
            wanted == part || parts.contains(&wanted) || OPEN_TO_ALL.contains(&wanted)
        }
    }
}

/// Paths that begin at the crate's root and lead to a part which the table does not allow, outside of unit tests.
pub(crate) fn forbidden_imports(path: &str, text: &str) -> Vec<Finding> {
    let Some(part) = part_of(path) else { return Vec::new() };
    let Some(imports) = row_of(part) else {
        return vec![finding(path, 1, format!("part `{part}` has no row in tests/tidy.rs' table"))];
    };
    let tokens = without_tests(&tokenize(text));
    let mut findings: Vec<Finding> = crate_paths(&tokens)
        .into_iter()
        .filter(|(_, wanted)| !may_import(part, imports, wanted))
        .map(|(line, wanted)| {
            let what = format!("`{part}` may not import `{wanted}` (see IMPORTS in tests/tidy.rs)");
            finding(path, line, what)
        })
        .collect();
    if !matches!(imports, Imports::Everything) {
        findings.extend(escapes_by_super(path, &tokens));
    }
    findings
}

/// The first name of every path that begins with `crate::`, with its line; `*` for the whole crate.
fn crate_paths(tokens: &[Token]) -> Vec<(usize, String)> {
    let text = |at: usize| tokens.get(at).map_or("", |token| token.text.as_str());
    let mut found = Vec::new();
    for (at, token) in tokens.iter().enumerate() {
        if token.text != "crate" {
            continue;
        }
        match (text(at + 1), text(at + 2)) {
            ("as", _) => found.push((token.line, "*".to_owned())),
            ("::", "{") => found.extend(heads_of_group(tokens, at + 3)),
            ("::", name) => found.push((token.line, name.to_owned())),
            // `pub(crate)` and the like.
            _ => {}
        }
    }
    found
}

/// The first name of every member of a `{a::x, b::{c, d}}` whose opening brace is just before `start`.
fn heads_of_group(tokens: &[Token], start: usize) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut depth = 0_usize;
    let mut at_head = true;
    for token in tokens.iter().skip(start) {
        match token.text.as_str() {
            "{" => depth += 1,
            "}" if depth == 0 => break,
            "}" => depth -= 1,
            "," if depth == 0 => at_head = true,
            name if at_head => {
                found.push((token.line, name.to_owned()));
                at_head = false;
            }
            _ => {}
        }
    }
    found
}

/// `super::super::…` that reaches the crate's root: such an edge is to be written with `crate::`, where it is checked.
fn escapes_by_super(path: &str, tokens: &[Token]) -> Vec<Finding> {
    let folders = path.matches('/').count();
    let depth = if path.ends_with("/mod.rs") { folders - 1 } else { folders };
    let mut findings = Vec::new();
    let mut chain = 0_usize;
    for pair in tokens.windows(2) {
        let [token, next] = pair else { continue };
        match token.text.as_str() {
            "super" if next.text == "::" => {
                chain += 1;
                if chain == depth {
                    let what = "`super::` leaves the part: write `crate::`, which is checked";
                    findings.push(finding(path, token.line, what));
                }
            }
            "::" => {}
            _ => chain = 0,
        }
    }
    findings
}

pub(crate) fn missing_head(path: &str, text: &str) -> Vec<Finding> {
    if text.starts_with("//!") {
        return Vec::new();
    }
    vec![finding(path, 1, "does not begin with `//!`: what is this file for, and why so?")]
}

pub(crate) fn too_long(path: &str, text: &str) -> Vec<Finding> {
    let all = text.lines().count();
    let without = trailing_tests_line(&tokenize(text)).map_or(all, |line| line - 1);
    let mut findings = Vec::new();
    if without > LINES_MAX {
        let what =
            format!("{without} lines without unit tests, over {LINES_MAX}: split it by rule");
        findings.push(finding(path, LINES_MAX + 1, what));
    }
    if all > LINES_WITH_TESTS_MAX {
        let what = format!("{all} lines with unit tests, over {LINES_WITH_TESTS_MAX}");
        findings.push(finding(path, LINES_WITH_TESTS_MAX + 1, what));
    }
    findings
}

pub(crate) fn empty_name(path: &str) -> Vec<Finding> {
    let is_empty = |name: &str| {
        let stem = name.split_once('.').map_or(name, |(stem, _)| stem);
        EMPTY_NAMES.contains(&stem)
    };
    path.split('/')
        .filter(|name| is_empty(name))
        .map(|name| finding(path, 1, format!("`{name}` does not say what is in it")))
        .collect()
}

/// Folders without a `mod.rs`, and `part.rs` beside `part/`.
pub(crate) fn stray_modules(paths: &BTreeSet<String>) -> Vec<Finding> {
    let mut folders = BTreeSet::new();
    for path in paths {
        let mut rest = path.as_str();
        while let Some((folder, _)) = rest.rsplit_once('/') {
            folders.insert(folder);
            rest = folder;
        }
    }
    folders.remove("src");
    let mut findings = Vec::new();
    for folder in folders {
        let module = format!("{folder}/mod.rs");
        if !paths.contains(&module) {
            findings.push(finding(&module, 1, "a folder of source needs a mod.rs"));
        }
        let beside = format!("{folder}.rs");
        if paths.contains(&beside) {
            findings.push(finding(&beside, 1, format!("belongs into {module}")));
        }
    }
    findings
}

pub(crate) fn unfinished_work(path: &str, text: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (line, content) in numbered(text) {
        let mut words = content.split(|letter: char| !letter.is_alphanumeric() && letter != '_');
        if let Some(mark) = words.find(|word| MARKS.contains(word)) {
            findings.push(finding(
                path,
                line,
                format!("`{mark}`: finish it, or file it elsewhere"),
            ));
        }
    }
    findings
}

pub(crate) fn ignored_tests(path: &str, text: &str) -> Vec<Finding> {
    let tokens = tokenize(text);
    let is_ignore = |window: &[Token]| {
        let texts: Vec<&str> = window.iter().map(|token| token.text.as_str()).collect();
        matches!(texts.as_slice(), ["#", "[", "ignore"])
    };
    let mut findings = Vec::new();
    for window in tokens.windows(3).filter(|window| is_ignore(window)) {
        let line = window.first().map_or(1, |token| token.line);
        findings.push(finding(path, line, "an ignored test tests nothing"));
    }
    findings
}

/// A test waits for what it awaits (a line, a state, a closed socket), never for time to pass.
pub(crate) fn sleeps(path: &str, text: &str) -> Vec<Finding> {
    let tokens = tokenize(text);
    let sleeping = tokens.iter().filter(|token| token.text == "sleep");
    sleeping
        .map(|token| finding(path, token.line, "`sleep` in a test: wait for the event itself"))
        .collect()
}

pub(crate) fn parts_without_a_row(parts: &BTreeSet<String>) -> Vec<Finding> {
    let missing = parts.iter().filter(|part| row_of(part).is_none());
    missing
        .map(|part| finding("tests/tidy.rs", 1, format!("IMPORTS has no row for `{part}`")))
        .collect()
}

/// Parts that the head of the crate's root does not mention.
pub(crate) fn parts_not_in_the_map(
    parts: &BTreeSet<String>,
    path: &str,
    text: &str,
) -> Vec<Finding> {
    let head: Vec<&str> = text.lines().take_while(|line| line.starts_with("//!")).collect();
    let words: BTreeSet<&str> = head
        .iter()
        .flat_map(|line| line.split(|letter: char| !letter.is_alphanumeric() && letter != '_'))
        .collect();
    let in_root = ["lib", "main"];
    let missing = parts
        .iter()
        .filter(|part| !in_root.contains(&part.as_str()) && !words.contains(part.as_str()));
    missing
        .map(|part| finding(path, 1, format!("the map does not mention part `{part}`")))
        .collect()
}

/// Paths `src/…` that a document names and that do not exist.
pub(crate) fn dangling_paths(
    path: &str,
    text: &str,
    exists: impl Fn(&str) -> bool,
) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (line, content) in numbered(text) {
        for (at, _) in content.match_indices("src/") {
            let (before, from) = content.split_at(at);
            let is_inside_a_path =
                |letter: char| letter.is_alphanumeric() || "/._-".contains(letter);
            if before.ends_with(is_inside_a_path) {
                continue;
            }
            let end = |letter: char| !(letter.is_ascii_alphanumeric() || "/._-".contains(letter));
            let named = from.split(end).next().unwrap_or_default().trim_end_matches('.');
            if !exists(named) {
                findings.push(finding(path, line, format!("`{named}` does not exist")));
            }
        }
    }
    findings
}

/// The manifest's files exist, and the README is about the package and the program that the manifest names.
pub(crate) fn manifest_against_readme(
    manifest: &str,
    readme: &str,
    exists: impl Fn(&str) -> bool,
) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (line, content) in numbered(manifest) {
        let Some((key, value)) = content.split_once('=') else { continue };
        let value = value.trim().trim_matches('"');
        match key.trim() {
            "readme" | "path" if !exists(value) => {
                findings.push(finding("Cargo.toml", line, format!("`{value}` does not exist")));
            }
            "name" if !readme.contains(value) => {
                let what = format!("never mentions `{value}`, which Cargo.toml:{line} names");
                findings.push(finding("README.md", 1, what));
            }
            _ => {}
        }
    }
    findings
}

fn numbered(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines().enumerate().map(|(index, line)| (index + 1, line))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rust_text::test_only_files;

    fn shown(findings: &[Finding]) -> Vec<String> {
        findings.iter().map(ToString::to_string).collect()
    }

    #[track_caller]
    fn check_imports(path: &str, text: &str, lines: &[usize]) {
        let found = forbidden_imports(path, text);
        let found_lines: Vec<usize> = found.iter().map(|finding| finding.line).collect();
        assert_eq!(found_lines, lines, "{:?}", shown(&found));
    }

    #[test]
    fn an_edge_outside_the_table_is_found() {
        check_imports("src/tls/mod.rs", "//! x\nuse crate::proxy::Handler;\n", &[2]);
        check_imports("src/model/user.rs", "use crate::runtime::View;", &[1]);
        check_imports("src/store/rest/get.rs", "fn f() -> crate::upstream::Pool {}", &[1]);
        check_imports("src/admin.rs", "pub use crate::proxy;", &[1]);
        let found = forbidden_imports("src/tls/mod.rs", "\nuse crate::proxy;");
        let expected =
            "src/tls/mod.rs:2: `tls` may not import `proxy` (see IMPORTS in tests/tidy.rs)";
        assert_eq!(shown(&found), [expected]);
    }

    #[test]
    fn an_edge_of_the_table_is_not() {
        check_imports(
            "src/tls/mod.rs",
            "use crate::{model::User, runtime, body::Body, tls::x};",
            &[],
        );
        check_imports("src/model/user.rs", "use crate::model::rejection; use super::accept;", &[]);
        check_imports("src/app.rs", "use crate::{proxy, control, store};", &[]);
        check_imports("src/main.rs", "use portico::cli;", &[]);
    }

    #[test]
    fn every_member_of_a_group_counts() {
        let text =
            "use crate::{\n  model::{User, proxy},\n  proxy::{self, outcome::{A, B}},\n  auth,\n};";
        check_imports("src/tls/mod.rs", text, &[3, 4]);
    }

    #[test]
    fn the_whole_crate_is_no_import() {
        check_imports("src/tls/mod.rs", "use crate::*;\nuse crate as all;", &[1, 2]);
        check_imports("src/tls/mod.rs", "pub(crate) fn f() {}\npub(in crate::tls) fn g() {}", &[]);
    }

    #[test]
    fn super_may_not_leave_the_part() {
        check_imports("src/tls/mod.rs", "use super::proxy;", &[1]);
        check_imports("src/tls/pki.rs", "use super::Pair;\nuse super::super::proxy;", &[2]);
        check_imports("src/admin.rs", "use super::proxy;", &[1]);
        check_imports("src/store/rest/get.rs", "use super::super::Object;", &[]);
        check_imports("src/store/rest/mod.rs", "use super::Object;", &[]);
    }

    #[test]
    fn comments_strings_and_unit_tests_import_nothing() {
        check_imports(
            "src/tls/mod.rs",
            "//! [`crate::proxy`]\n/* crate::proxy /* */ crate::x */",
            &[],
        );
        check_imports(
            "src/tls/mod.rs",
            r##"const A: &str = "crate::proxy \" crate::proxy"; const B: &str = r#"" crate::proxy"#;"##,
            &[],
        );
        let text = "#[cfg(test)]\n#[allow(x)]\nmod tests { use crate::proxy; fn f() { {} } }\n";
        check_imports("src/tls/mod.rs", text, &[]);
        let text = "#[cfg(test)]\nmod tests { use super::*; }\nuse crate::proxy;";
        check_imports("src/tls/mod.rs", text, &[3]);
        let text = "#[cfg(test)]\npub(crate) use crate::{proxy::A};\nuse crate::proxy;";
        check_imports("src/tls/mod.rs", text, &[3]);
        let text = "#[cfg(test)]\nuse crate::{proxy::A, auth::{B}};\nuse crate::auth;";
        check_imports("src/tls/mod.rs", text, &[3]);
        check_imports("src/tls/mod.rs", "#[cfg(not(test))]\nuse crate::proxy;", &[2]);
    }

    #[test]
    fn quotes_do_not_hide_what_follows() {
        let text =
            "fn f<'a>(x: &'a str) -> char { '\"' }\nconst Q: char = '\\'';\nuse crate::proxy;";
        check_imports("src/tls/mod.rs", text, &[3]);
        check_imports("src/tls/mod.rs", "const B: &[u8] = b\"\\\\\";\nuse crate::proxy;", &[2]);
        check_imports("src/tls/mod.rs", "let r#type = r\"\\\";\nuse crate::proxy;", &[2]);
        check_imports("src/tls/mod.rs", "let s = \"a\nb\";\nuse crate::proxy;", &[3]);
    }

    #[test]
    fn a_part_without_a_row_is_found() {
        check_imports("src/novelty/mod.rs", "", &[1]);
        let parts = BTreeSet::from(["novelty".to_owned(), "proxy".to_owned()]);
        assert_eq!(parts_without_a_row(&parts).len(), 1);
    }

    #[test]
    fn modules_for_tests_in_files_of_their_own_are_known() {
        let text = "mod a;\n#[cfg(test)]\nmod golden;";
        let expected = ["src/proxy/golden.rs", "src/proxy/golden/mod.rs"];
        assert_eq!(test_only_files("src/proxy/mod.rs", text), expected);
        let files = test_only_files("src/proxy/forward.rs", text);
        assert_eq!(files.first().map(String::as_str), Some("src/proxy/forward/golden.rs"));
        assert_eq!(test_only_files("src/proxy/mod.rs", "#[cfg(test)]\nmod tests {}").len(), 0);
    }

    #[test]
    fn a_file_without_a_head_is_found() {
        assert_eq!(missing_head("src/a.rs", "use x;\n//! late").len(), 1);
        assert_eq!(missing_head("src/a.rs", "//! What and why.\n").len(), 0);
    }

    #[test]
    fn a_long_file_is_found_and_its_unit_tests_count_apart() {
        let code = "fn f() {}\n";
        let tests =
            |lines: usize| format!("#[cfg(test)]\nmod tests {{\n{}}}\n", code.repeat(lines));
        assert_eq!(too_long("src/a.rs", &code.repeat(LINES_MAX)).len(), 0);
        assert_eq!(too_long("src/a.rs", &code.repeat(LINES_MAX + 1)).len(), 1);
        assert_eq!(too_long("src/a.rs", &(code.repeat(LINES_MAX) + &tests(297))).len(), 0);
        assert_eq!(too_long("src/a.rs", &(code.repeat(LINES_MAX) + &tests(298))).len(), 1);
        assert_eq!(too_long("src/a.rs", &(code.repeat(LINES_MAX + 1) + &tests(1))).len(), 1);
        // Only those at the end: what follows unit tests is code.
        assert_eq!(too_long("src/a.rs", &(tests(1) + &code.repeat(LINES_MAX))).len(), 1);
    }

    #[test]
    fn an_empty_name_is_found() {
        assert_eq!(empty_name("src/proxy/utils.rs").len(), 1);
        assert_eq!(empty_name("tests/common/mod.rs").len(), 1);
        assert_eq!(empty_name("src/proxy/forward.rs").len(), 0);
    }

    #[test]
    fn a_stray_module_is_found() {
        let paths = |paths: &[&str]| paths.iter().map(|path| (*path).to_owned()).collect();
        assert_eq!(stray_modules(&paths(&["src/lib.rs", "src/a/mod.rs", "src/a/b.rs"])).len(), 0);
        assert_eq!(stray_modules(&paths(&["src/a.rs", "src/a/b.rs"])).len(), 2);
        assert_eq!(stray_modules(&paths(&["src/a/mod.rs", "src/a/b/c.rs"])).len(), 1);
    }

    #[test]
    fn a_mark_is_found_as_a_word() {
        let [first, ..] = MARKS else { return };
        let found = unfinished_work("src/a.rs", &format!("fn f() {{\n    // {first}: later\n"));
        assert_eq!(found.first().map(|finding| finding.line), Some(2));
        assert_eq!(unfinished_work("src/a.rs", &format!("MAS{first}N {first}S mktemp XXXXXX")), []);
    }

    #[test]
    fn an_ignored_test_and_a_sleep_are_found() {
        assert_eq!(
            ignored_tests("tests/a.rs", "#[test]\n#[ignore = \"slow\"]\nfn f() {}").len(),
            1
        );
        assert_eq!(ignored_tests("tests/a.rs", "// #[ignore]\nlet ignore = 1;").len(), 0);
        assert_eq!(sleeps("tests/a.rs", "use std::thread::sleep;").len(), 1);
        assert_eq!(sleeps("tests/a.rs", "tokio::time::sleep(x).await; time::timeout(x)").len(), 1);
        assert_eq!(sleeps("tests/a.rs", "fn asleep() {} // sleep\n").len(), 0);
    }

    #[test]
    fn a_part_that_the_map_forgets_is_found() {
        let parts = BTreeSet::from(["lib".to_owned(), "proxy".to_owned(), "tls".to_owned()]);
        assert_eq!(parts_not_in_the_map(&parts, "src/lib.rs", "//! `proxy/`, tls\n").len(), 0);
        assert_eq!(parts_not_in_the_map(&parts, "src/lib.rs", "//! proxy\n\nmod tls;").len(), 1);
    }

    #[test]
    fn a_path_that_does_not_exist_is_found() {
        let exists = |path: &str| path == "src/lib.rs";
        let text = "See src/lib.rs. And\n`src/gone/mod.rs`, rs/src/x.rs";
        let found = dangling_paths("README.md", text, exists);
        assert_eq!(shown(&found), ["README.md:2: `src/gone/mod.rs` does not exist"]);
    }

    #[test]
    fn a_manifest_that_disagrees_is_found() {
        let manifest = "name = \"kube-portico\"\nreadme = \"README.md\"\npath = \"src/gone.rs\"\n";
        let exists = |path: &str| path == "README.md";
        assert_eq!(manifest_against_readme(manifest, "# kube-portico", exists).len(), 1);
        assert_eq!(manifest_against_readme(manifest, "# other", exists).len(), 2);
    }
}
