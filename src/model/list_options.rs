//! The options of lists and watches, with upstream's words for what does not fit together.

use super::field_error::{FieldError, invalid};
use super::query::Query;
use super::rejection::Rejection;
use super::selector::Selectors;

const NOT_OLDER_THAN: &str = "NotOlderThan";
/// A watch lasts a week at most, whatever it asks for.
pub(super) const TIMEOUT_SECONDS_MAX: u64 = 7 * 24 * 60 * 60;
const EXACT: &str = "Exact";

/// `ListOptions`, checked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListOptions {
    /// A stream of changes is wanted.
    pub watch: bool,
    /// `None` when absent or empty; zero means any version.
    pub resource_version: Option<u64>,
    /// Only exactly this version will do.
    pub exact: bool,
    /// Whether a watch begins with the objects that exist.
    pub send_initial_events: Option<bool>,
    /// The client understands bookmarks.
    pub allow_watch_bookmarks: bool,
    /// The most items in one answer; a server may answer with more, so nothing needs to obey.
    pub limit: Option<i64>,
    /// How long a watch may last.
    pub timeout_seconds: Option<u64>,
    /// Which objects.
    pub selectors: Selectors,
}

/// Where a watch begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WatchStart {
    /// With every object that exists, then the changes; the state must be as new as this.
    Everything {
        /// The revision that must have been reached.
        not_older_than: u64,
    },
    /// With the next change.
    Now,
    /// With the changes after this revision.
    After(u64),
}

impl ListOptions {
    /// Reads and checks the options of a list or a watch.
    ///
    /// No list is ever cut into pages here, so a `continue` token is of another server or of an
    /// earlier time: 410 makes every client list again from the start.
    pub fn parse(query: &Query) -> Result<Self, Rejection> {
        let watch = query.flag("watch").unwrap_or_default();
        let matching = query.text("resourceVersionMatch");
        let send_initial_events = query.flag("sendInitialEvents");
        let faults = if watch {
            watch_faults(query, matching, send_initial_events)
        } else {
            list_faults(query, matching, send_initial_events)
        };
        if !faults.is_empty() {
            return Err(invalid_options(faults));
        }
        let options = Self {
            watch,
            resource_version: resource_version(query.text("resourceVersion"), watch)?,
            exact: matching == EXACT,
            send_initial_events,
            allow_watch_bookmarks: query.flag("allowWatchBookmarks").unwrap_or_default(),
            limit: integer(query.text("limit"))?,
            timeout_seconds: integer(query.text("timeoutSeconds"))?
                .and_then(|seconds| u64::try_from(seconds).ok())
                .filter(|seconds| *seconds > 0)
                .map(|seconds| seconds.min(TIMEOUT_SECONDS_MAX)),
            selectors: Selectors::parse(query.text("labelSelector"), query.text("fieldSelector"))?,
        };
        if !query.text("continue").is_empty() {
            return Err(Rejection::Expired(
                "The provided continue parameter is too old to display a consistent list result. \
                 You can start a new list without the continue parameter."
                    .to_owned(),
            ));
        }
        Ok(options)
    }

    /// Where a watch with these options begins.
    pub fn watch_start(&self) -> WatchStart {
        let version = self.resource_version.unwrap_or_default();
        match (self.send_initial_events, version) {
            (Some(true), _) | (None, 0) => WatchStart::Everything { not_older_than: version },
            (Some(false), 0) => WatchStart::Now,
            (_, after) => WatchStart::After(after),
        }
    }

    /// Whether a bookmark says where the initial events end.
    pub fn initial_bookmark(&self) -> bool {
        self.allow_watch_bookmarks && matches!(self.watch_start(), WatchStart::Everything { .. })
    }
}

fn list_faults(query: &Query, matching: &str, initial: Option<bool>) -> Vec<FieldError> {
    let field = "resourceVersionMatch";
    let forbidden = |detail: &str| FieldError::forbidden(field, detail);
    let mut faults = Vec::new();
    if !matching.is_empty() {
        let version = query.text("resourceVersion");
        if version.is_empty() {
            faults.push(forbidden(
                "resourceVersionMatch is forbidden unless resourceVersion is provided",
            ));
        }
        if !query.text("continue").is_empty() {
            faults.push(forbidden("resourceVersionMatch is forbidden when continue is provided"));
        }
        if matching != EXACT && matching != NOT_OLDER_THAN {
            faults.push(FieldError::unsupported(field, matching, &[EXACT, NOT_OLDER_THAN, ""]));
        }
        if matching == EXACT && version == "0" {
            faults.push(forbidden(
                "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"",
            ));
        }
    }
    if initial.is_some() {
        faults.push(FieldError::forbidden(
            "sendInitialEvents",
            "sendInitialEvents is forbidden for list",
        ));
    }
    faults
}

fn watch_faults(query: &Query, matching: &str, initial: Option<bool>) -> Vec<FieldError> {
    let field = "resourceVersionMatch";
    let forbidden = |detail: &str| FieldError::forbidden(field, detail);
    let mut faults = Vec::new();
    if initial.is_some() && matching != NOT_OLDER_THAN {
        faults.push(forbidden(
            "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
        ));
    }
    if !matching.is_empty() {
        if initial.is_none() {
            faults.push(forbidden(
                "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
            ));
        }
        if matching != NOT_OLDER_THAN {
            faults.push(FieldError::unsupported(field, matching, &[NOT_OLDER_THAN]));
        }
        if !query.text("continue").is_empty() {
            faults.push(forbidden("resourceVersionMatch is forbidden when continue is provided"));
        }
    }
    faults
}

fn invalid_options(faults: Vec<FieldError>) -> Rejection {
    invalid("ListOptions", "meta.k8s.io", "", faults)
}

fn resource_version(text: &str, watch: bool) -> Result<Option<u64>, Rejection> {
    if text.is_empty() {
        return Ok(None);
    }
    let Ok(version) = text.parse() else {
        let detail = format!("strconv.ParseUint: parsing {text:?}: invalid syntax");
        let fault = FieldError::invalid("resourceVersion", &text.into(), &detail);
        if watch {
            return Err(invalid_options(vec![fault]));
        }
        return Err(Rejection::BadRequest(format!(
            "invalid resource version: {}: {}",
            fault.field, fault.text
        )));
    };
    Ok(Some(version))
}

fn integer(text: &str) -> Result<Option<i64>, Rejection> {
    if text.is_empty() {
        return Ok(None);
    }
    let Ok(number) = text.parse() else {
        return Err(Rejection::BadRequest(format!(
            "strconv.ParseInt: parsing {text:?}: invalid syntax"
        )));
    };
    Ok(Some(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(query: &str) -> Result<ListOptions, Rejection> {
        ListOptions::parse(&Query::parse(Some(query)))
    }

    #[track_caller]
    fn refused(query: &str, code: u16, expected: &str) {
        let rejection = parse(query).unwrap_err();
        assert_eq!((rejection.code().as_u16(), rejection.message().as_str()), (code, expected));
    }

    #[test]
    fn what_kubectl_asks_is_understood() {
        let list = parse("limit=500&labelSelector=a%3Db").unwrap();
        assert_eq!((list.limit, list.watch), (Some(500), false));
        assert!(!list.selectors.is_empty());
        let watch = parse("allowWatchBookmarks=true&resourceVersion=7&watch=1&timeoutSeconds=9");
        let watch = watch.unwrap();
        assert_eq!(watch.watch_start(), WatchStart::After(7));
        assert_eq!(watch.timeout_seconds, Some(9));
        assert!(!watch.initial_bookmark());
    }

    #[test]
    fn a_watch_begins_where_its_options_say() {
        let streamed = "watch=1&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=1";
        let everything = |not_older_than| WatchStart::Everything { not_older_than };
        let cases = [
            ("watch=1".to_owned(), everything(0), false),
            ("watch=1&resourceVersion=0&allowWatchBookmarks".to_owned(), everything(0), true),
            ("watch=1&resourceVersion=5".to_owned(), WatchStart::After(5), false),
            (format!("{streamed}&sendInitialEvents=true"), everything(0), true),
            (format!("{streamed}&sendInitialEvents=1&resourceVersion=5"), everything(5), true),
            (format!("{streamed}&sendInitialEvents=false"), WatchStart::Now, false),
            (
                format!("{streamed}&sendInitialEvents=false&resourceVersion=5"),
                WatchStart::After(5),
                false,
            ),
        ];
        for (query, start, bookmark) in cases {
            let options = parse(&query).unwrap();
            assert_eq!((options.watch_start(), options.initial_bookmark()), (start, bookmark));
        }
    }

    #[test]
    fn what_does_not_fit_together_is_refused_in_upstreams_words() {
        let cases = [
            (
                "resourceVersionMatch=Exact",
                "resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden unless \
                 resourceVersion is provided",
            ),
            (
                "resourceVersionMatch=x&resourceVersion=1",
                "resourceVersionMatch: Unsupported value: \"x\": supported values: \"Exact\", \
                 \"NotOlderThan\", \"\"",
            ),
            (
                "resourceVersionMatch=Exact&resourceVersion=0",
                "resourceVersionMatch: Forbidden: resourceVersionMatch \"exact\" is forbidden for \
                 resourceVersion \"0\"",
            ),
            (
                "resourceVersionMatch=Exact&resourceVersion=1&continue=x",
                "resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden when continue \
                 is provided",
            ),
            (
                "sendInitialEvents=true",
                "sendInitialEvents: Forbidden: sendInitialEvents is forbidden for list",
            ),
            (
                "watch=1&sendInitialEvents=true",
                "resourceVersionMatch: Forbidden: sendInitialEvents requires setting \
                 resourceVersionMatch to NotOlderThan",
            ),
            (
                "watch=1&resourceVersionMatch=NotOlderThan",
                "resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden for watch \
                 unless sendInitialEvents is provided",
            ),
            (
                "watch=1&resourceVersion=x",
                "resourceVersion: Invalid value: \"x\": strconv.ParseUint: parsing \"x\": invalid \
                 syntax",
            ),
        ];
        for (query, expected) in cases {
            refused(query, 422, &format!("ListOptions.meta.k8s.io \"\" is invalid: {expected}"));
        }
    }

    #[test]
    fn numbers_that_are_none_are_refused() {
        refused("limit=x", 400, "strconv.ParseInt: parsing \"x\": invalid syntax");
        refused(
            "resourceVersion=x",
            400,
            "invalid resource version: resourceVersion: Invalid value: \"x\": \
             strconv.ParseUint: parsing \"x\": invalid syntax",
        );
        let longest = parse(&format!("watch=1&timeoutSeconds={}", i64::MAX)).unwrap();
        assert_eq!(longest.timeout_seconds, Some(TIMEOUT_SECONDS_MAX));
        assert_eq!(parse("continue=abc").unwrap_err().code().as_u16(), 410);
    }
}
