//! How values are written: Go's booleans and durations, counts, lists of parts with their levels.
//!
//! Each function is a value parser of clap's: what it says is shown behind the flag's or key's name.

use std::str::FromStr;
use std::time::Duration;

use http::Uri;
use http::uri::{PathAndQuery, Scheme};

use crate::auth::AuthorizationMode;
use crate::model::duration::{self, Signed};
use crate::model::review::ReviewVersion;

/// The greatest chance of a GOAWAY (`generic_run_options.go`): more would cost clients more than
/// it spreads them.
const GOAWAY_CHANCE_MAX: f64 = 0.02;

/// The longest that answers of reviewers are kept.
const TTL_MAX: Duration = Duration::from_secs(365 * 24 * 3600);

/// The greatest log level.
pub const LOG_LEVEL_MAX: u8 = 10;

/// The parts whose log level can be set apart, which are portico's modules.
pub const PARTS: [&str; 16] = [
    "admin",
    "aggregate",
    "app",
    "auth",
    "body",
    "cli",
    "config",
    "control",
    "demo",
    "frontend",
    "model",
    "proxy",
    "runtime",
    "store",
    "tls",
    "upstream",
];

/// A part's own log level (`--vmodule`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartLevel {
    /// One of [`PARTS`].
    pub part: &'static str,
    /// As `-v` counts.
    pub level: u8,
}

/// Go's `strconv.ParseBool`.
pub fn boolean(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Ok(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Ok(false),
        _ => Err("expected true or false".to_owned()),
    }
}

/// A duration that is longer than nothing.
pub fn timeout(text: &str) -> Result<Duration, String> {
    let duration = span(text)?;
    if duration.is_zero() { Err("must be greater than 0".to_owned()) } else { Ok(duration) }
}

/// How long something is kept; 0 for not at all.
pub(super) fn ttl(text: &str) -> Result<Duration, String> {
    match span(text)? {
        ttl if ttl > TTL_MAX => Err(format!("must not exceed {}h", TTL_MAX.as_secs() / 3600)),
        ttl => Ok(ttl),
    }
}

/// The version of reviews.
pub(super) fn review_version(text: &str) -> Result<ReviewVersion, String> {
    match text {
        "v1" => Ok(ReviewVersion::V1),
        "v1beta1" => Ok(ReviewVersion::V1Beta1),
        _ => Err(format!("\"{text}\" is not supported; supported: v1, v1beta1")),
    }
}

/// One of the modes in which requests are authorized.
pub(super) fn authorization_mode(text: &str) -> Result<AuthorizationMode, String> {
    match text {
        "AlwaysAllow" => Ok(AuthorizationMode::AlwaysAllow),
        "AlwaysDeny" => Ok(AuthorizationMode::AlwaysDeny),
        "Webhook" => Ok(AuthorizationMode::Webhook),
        _ => {
            let modes = "AlwaysAllow, AlwaysDeny, Webhook";
            Err(format!("\"{text}\" is not supported; supported: {modes}"))
        }
    }
}

/// A duration as Go writes it, without a sign.
pub(super) fn span(text: &str) -> Result<Duration, String> {
    match duration::parse(text) {
        Ok(Signed::Positive(duration)) => Ok(duration),
        Ok(Signed::Negative(_)) => Err("must not be negative".to_owned()),
        Err(_) => Err(format!("invalid duration \"{text}\", expected for instance 60s or 1m30s")),
    }
}

/// Whole seconds.
pub(super) fn seconds(text: &str) -> Result<Duration, String> {
    number::<u32>(text).map(|seconds| Duration::from_secs(seconds.into()))
}

/// A whole number that is not negative.
pub(super) fn number<N: FromStr>(text: &str) -> Result<N, String> {
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err("expected a whole number".to_owned());
    }
    if text.starts_with('-') {
        return Err("must not be negative".to_owned());
    }
    digits.parse().ok().ok_or_else(|| "the number is too large".to_owned())
}

/// A whole number from 1.
pub(super) fn at_least_one(text: &str) -> Result<usize, String> {
    match number(text)? {
        0 => Err("must be at least 1".to_owned()),
        number => Ok(number),
    }
}

/// A server that speaks HTTPS, without a path.
pub(super) fn server(text: &str) -> Result<Uri, String> {
    let url: Uri = text.parse().map_err(|error| format!("no URL: {error}"))?;
    let is_plain = url.scheme() == Some(&Scheme::HTTPS)
        && url.host().is_some_and(|host| !host.is_empty())
        && url.authority().is_some_and(|authority| !authority.as_str().contains('@'))
        && matches!(url.path_and_query().map(PathAndQuery::as_str), None | Some("/"));
    if !is_plain {
        return Err("expected a server's URL such as https://10.0.0.2:6443".to_owned());
    }
    Ok(url)
}

/// A log level.
pub(super) fn level(text: &str) -> Result<u8, String> {
    match number(text)? {
        level @ 0..=LOG_LEVEL_MAX => Ok(level),
        _ => Err(format!("must be from 0 to {LOG_LEVEL_MAX}")),
    }
}

/// The chance of a GOAWAY.
pub(super) fn goaway_chance(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(chance) if (0.0..=GOAWAY_CHANCE_MAX).contains(&chance) => Ok(chance),
        Ok(_) => Err(format!("must be from 0 to {GOAWAY_CHANCE_MAX}")),
        Err(_) => Err("expected a number such as 0.001".to_owned()),
    }
}

/// `part=level`; nothing for the empty text, by which a flag's list is emptied.
pub(super) fn part_level(text: &str) -> Result<Option<PartLevel>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    let (name, number) = text
        .split_once('=')
        .ok_or_else(|| format!("expected part=level such as proxy=4, got \"{text}\""))?;
    let part = *PARTS
        .iter()
        .find(|part| **part == name.trim())
        .ok_or_else(|| format!("unknown part \"{name}\"; parts: {}", PARTS.join(", ")))?;
    Ok(Some(PartLevel { part, level: level(number.trim())? }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn booleans_and_durations_are_gos() {
        assert_eq!(boolean("T"), Ok(true));
        assert!(boolean("yes").is_err() && boolean("").is_err());
        assert_eq!(span("1m30s"), Ok(Duration::from_secs(90)));
        assert_eq!(span("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(span("1.5h"), Ok(Duration::from_secs(5400)));
        assert!(span("60").is_err() && span("").is_err());
        assert!(span("1e400h").is_err() && span("s").is_err());
        assert_eq!(timeout("-1s"), Err("must not be negative".to_owned()));
        assert_eq!(timeout("0s"), Err("must be greater than 0".to_owned()));
        assert_eq!(ttl("0s"), Ok(Duration::ZERO));
        assert_eq!(ttl("8761h"), Err("must not exceed 8760h".to_owned()));
    }

    #[track_caller]
    fn check_number(text: &str, expected: Result<u32, &str>) {
        assert_eq!(number::<u32>(text), expected.map_err(str::to_owned), "{text:?}");
    }

    #[test]
    fn numbers_are_whole_and_not_negative() {
        check_number("0", Ok(0));
        check_number("+7", Ok(7));
        check_number("4294967295", Ok(u32::MAX));
        check_number("4294967296", Err("the number is too large"));
        check_number("-1", Err("must not be negative"));
        for text in ["", "-", "1.5", "1e3", "0x10", "many", "1 "] {
            check_number(text, Err("expected a whole number"));
        }
        assert_eq!(at_least_one("0"), Err("must be at least 1".to_owned()));
        assert_eq!(at_least_one("1"), Ok(1));
        assert_eq!(seconds("1800"), Ok(Duration::from_secs(1800)));
        assert!(seconds("30m").is_err());
        assert_eq!(level("10"), Ok(10));
        assert_eq!(level("11"), Err("must be from 0 to 10".to_owned()));
    }

    #[test]
    fn a_server_is_a_url_with_a_host_and_nothing_else() {
        assert_eq!(server("https://10.0.0.2:6443").unwrap().host(), Some("10.0.0.2"));
        assert!(server("https://[::1]/").is_ok());
        for text in ["10.0.0.2:6443", "http://h", "https://h/path", "https://h?q", "https://a@h"] {
            assert!(server(text).unwrap_err().contains("such as https://10.0.0.2:6443"), "{text}");
        }
        assert!(server("https://").unwrap_err().contains("no URL"));
    }

    #[test]
    fn the_goaway_chance_ends_at_one_in_fifty() {
        assert_eq!(goaway_chance("0"), Ok(0.0));
        assert_eq!(goaway_chance("0.02"), Ok(0.02));
        for text in ["0.021", "-0.001", "NaN", "inf"] {
            assert_eq!(goaway_chance(text), Err("must be from 0 to 0.02".to_owned()), "{text}");
        }
        assert!(goaway_chance("1%").is_err());
    }

    #[test]
    fn levels_are_set_for_parts_that_exist() {
        assert_eq!(part_level("proxy=4"), Ok(Some(PartLevel { part: "proxy", level: 4 })));
        assert_eq!(part_level(""), Ok(None));
        assert!(part_level("proxy").unwrap_err().contains("part=level"));
        assert!(part_level("poxy=4").unwrap_err().contains("unknown part \"poxy\"; parts: admin"));
        assert!(part_level("proxy=11").unwrap_err().contains("from 0 to 10"));
    }

    #[test]
    fn the_parts_are_the_librarys_modules() {
        let map = include_str!("../lib.rs");
        let modules: Vec<&str> = map
            .lines()
            .filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';'))
            .collect();
        assert_eq!(PARTS.as_slice(), modules);
    }
}
