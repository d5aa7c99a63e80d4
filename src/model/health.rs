//! The text of the health pages (`apiserver/pkg/server/healthz`): a line a check, or `ok`.
//!
//! Who asks for a page learns which checks fail; why they do is told on the check's own path only,
//! which is not open to everybody.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt::Write as _;

use super::query::Query;

/// The health pages; each has a path for every check of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probe {
    /// `/livez`: the process works.
    Livez,
    /// `/readyz`: the process takes requests.
    Readyz,
    /// `/healthz`: as `/livez`, under the name it had before.
    Healthz,
}

/// One check and its outcome.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// Its name, which is also the end of its path.
    pub name: Cow<'static, str>,
    /// Why it fails; `None` when it does not.
    pub fault: Option<&'static str>,
}

/// A page's outcome and text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// 200 when true, else 500.
    pub passed: bool,
    /// The body.
    pub text: String,
}

impl Probe {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Healthz, Self::Livez, Self::Readyz];

    /// The page's name, which is its path without the slash.
    pub fn name(self) -> &'static str {
        match self {
            Self::Livez => "livez",
            Self::Readyz => "readyz",
            Self::Healthz => "healthz",
        }
    }

    /// The page that a path belongs to, and which check it names, if it names one.
    pub fn of_path(path: &str) -> Option<(Self, Option<&str>)> {
        let path = path.strip_prefix('/')?;
        Self::ALL.into_iter().find_map(|probe| {
            let rest = path.strip_prefix(probe.name())?;
            if rest.is_empty() {
                Some((probe, None))
            } else {
                Some((probe, Some(rest.strip_prefix('/')?)))
            }
        })
    }

    /// The page: every check that is not in `?exclude`, line by line with `?verbose` or when one
    /// fails.
    pub fn report(self, checks: &[Check], query: &Query) -> Report {
        let excluded: BTreeSet<&str> = query.all("exclude").collect();
        let is_excluded = |check: &Check| excluded.contains(&*check.name);
        let mut text = String::new();
        for check in checks {
            let name = &check.name;
            let line = match check.fault {
                _ if is_excluded(check) => format!("[+]{name} excluded: ok\n"),
                Some(_) => format!("[-]{name} failed: reason withheld\n"),
                None => format!("[+]{name} ok\n"),
            };
            text.push_str(&line);
        }
        let unknown: Vec<String> = excluded
            .iter()
            .filter(|&&name| !checks.iter().any(|check| check.name == name))
            .map(|name| format!("{name:?}"))
            .collect();
        if !unknown.is_empty() {
            text.push_str("warn: some health checks cannot be excluded: no matches for ");
            text.push_str(&unknown.join(","));
            text.push('\n');
        }
        let passed = checks.iter().all(|check| check.fault.is_none() || is_excluded(check));
        if passed && query.get("verbose").is_none() {
            return Report { passed, text: "ok".to_owned() };
        }
        text.push_str(self.name());
        text.push_str(if passed { " check passed\n" } else { " check failed\n" });
        Report { passed, text }
    }
}

impl Check {
    /// The check's own page, which says why it fails.
    pub fn report(&self) -> Report {
        let text = match self.fault {
            Some(fault) => format!("internal server error: {fault}\n"),
            None => "ok".to_owned(),
        };
        Report { passed: self.fault.is_none(), text }
    }
}

/// What fails and why, for the log: `name: why`, joined by commas; empty when nothing fails.
pub fn failures(checks: &[Check]) -> String {
    let mut text = String::new();
    for (name, fault) in checks.iter().filter_map(|check| Some((&check.name, check.fault?))) {
        let comma = if text.is_empty() { "" } else { ", " };
        // Writing to a string cannot fail.
        write!(text, "{comma}{name}: {fault}").ok();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checks(broken: &[&str]) -> Vec<Check> {
        ["ping", "log", "poststarthook/manifests", "shutdown"]
            .map(|name| Check {
                name: name.into(),
                fault: broken.contains(&name).then_some("not finished"),
            })
            .to_vec()
    }

    #[track_caller]
    fn check(broken: &[&str], query: &str, passed: bool, expected: &[&str]) {
        let report = Probe::Readyz.report(&checks(broken), &Query::parse(Some(query)));
        assert_eq!(report.text, expected.concat(), "{query}");
        assert_eq!(report.passed, passed, "{query}");
    }

    const MANIFESTS: &str = "poststarthook/manifests";
    const OK: [&str; 4] =
        ["[+]ping ok\n", "[+]log ok\n", "[+]poststarthook/manifests ok\n", "[+]shutdown ok\n"];

    #[test]
    fn a_page_is_ok_or_a_line_a_check() {
        check(&[], "", true, &["ok"]);
        check(&[], "verbose=false", true, &[&OK.concat(), "readyz check passed\n"]);
        let failed = "[-]poststarthook/manifests failed: reason withheld\n";
        let lines = [OK[0], OK[1], failed, OK[3], "readyz check failed\n"];
        check(&[MANIFESTS], "", false, &lines);
    }

    #[test]
    fn excluded_checks_do_not_count_and_unknown_ones_are_named_once_in_order() {
        let excluded = "[+]poststarthook/manifests excluded: ok\n";
        check(&[MANIFESTS], "exclude=poststarthook/manifests", true, &["ok"]);
        let lines = [OK[0], OK[1], excluded, OK[3], "readyz check passed\n"];
        check(&[MANIFESTS], "verbose&exclude=poststarthook/manifests", true, &lines);
        let warning =
            "warn: some health checks cannot be excluded: no matches for \"a\",\"b\\\"c\"\n";
        let lines = [&OK.concat(), warning, "readyz check passed\n"];
        check(&[], "verbose&exclude=b%22c&exclude=a&exclude=a", true, &lines);
        let one = "[-]shutdown failed: reason withheld\n";
        let lines = [OK[0], OK[1], excluded, one, "readyz check failed\n"];
        check(&[MANIFESTS, "shutdown"], "exclude=poststarthook/manifests", false, &lines);
    }

    #[test]
    fn only_a_checks_own_page_and_the_log_say_why_it_fails() {
        let all = checks(&[MANIFESTS, "shutdown"]);
        assert_eq!(all[0].report(), Report { passed: true, text: "ok".to_owned() });
        let text = "internal server error: not finished\n".to_owned();
        assert_eq!(all[2].report(), Report { passed: false, text });
        assert_eq!(failures(&all), "poststarthook/manifests: not finished, shutdown: not finished");
        assert_eq!(failures(&checks(&[])), "");
    }

    #[test]
    fn a_path_names_a_page_and_maybe_a_check() {
        assert_eq!(Probe::of_path("/readyz"), Some((Probe::Readyz, None)));
        assert_eq!(Probe::of_path("/livez/ping"), Some((Probe::Livez, Some("ping"))));
        assert_eq!(
            Probe::of_path("/healthz/poststarthook/x"),
            Some((Probe::Healthz, Some("poststarthook/x")))
        );
        assert_eq!(Probe::of_path("/healthz/"), Some((Probe::Healthz, Some(""))));
        assert_eq!(Probe::of_path("/readyzz"), None);
        assert_eq!(Probe::of_path("readyz"), None);
    }
}
