//! What a reviewer's reply is worth: an answer, a failure that may pass, or one that will not.

use http::StatusCode;
use serde::Deserialize;

use crate::model::error_text::shortened;
use crate::model::fault::{Fault, Hop, ServicePort};

/// Characters of a reviewer's own words that are kept of a failure.
const TEXT_CHARACTERS_MAX: usize = 256;

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What happened, for the caller too: without addresses.
    pub text: String,
    /// True when asking again may help.
    pub may_pass: bool,
    /// True when the reviewer could not be reached or could not work, so that what it said before is
    /// the best there is; never for what who asks a lot can bring about, which would let its own
    /// answers outlive their time.
    pub is_outage: bool,
}

impl Failure {
    /// A reply that cannot be understood.
    pub fn of_answer(text: String) -> Self {
        Self { text, may_pass: false, is_outage: false }
    }

    /// A reviewer that did not answer in time.
    pub fn of_time() -> Self {
        Self { text: "context deadline exceeded".to_owned(), may_pass: false, is_outage: true }
    }

    /// A request that got no reply. Upstream asks again after a connection was lost, and not after one
    /// was not made.
    pub fn of_fault(fault: &Fault, reviewer: &ServicePort) -> Self {
        let may_pass = fault.hop == Hop::BackendReset;
        // Portico's own limits, and an answer that cannot be read.
        let is_outage = !matches!(fault.hop, Hop::Overloaded | Hop::ProtocolError);
        Self { text: fault.hop.sentence(reviewer), may_pass, is_outage }
    }

    /// The failure that a reply with this code is; `None` for those that carry an answer.
    pub fn of_code(code: StatusCode, body: &[u8]) -> Option<Self> {
        if code.is_success() {
            return None;
        }
        let status: Status = serde_json::from_slice(body).unwrap_or_default();
        let details = status.details.unwrap_or_default();
        let (again, limited) = (details.retry_after_seconds > 0, StatusCode::TOO_MANY_REQUESTS);
        let passing = [StatusCode::INTERNAL_SERVER_ERROR, StatusCode::GATEWAY_TIMEOUT, limited];
        let text = if status.message.is_empty() {
            format!("the reviewer answered {}", code.as_u16())
        } else {
            shortened(status.message, TEXT_CHARACTERS_MAX)
        };
        let is_outage = code.is_server_error();
        Some(Self { text, may_pass: again || passing.contains(&code), is_outage })
    }
}

/// What of a `metav1.Status` counts here.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Status {
    message: String,
    details: Option<Details>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Details {
    retry_after_seconds: i64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(code: u16, body: &str, expected: Option<(&str, bool, bool)>) {
        let got = Failure::of_code(StatusCode::from_u16(code).unwrap(), body.as_bytes());
        let got = got.as_ref().map(|it| (it.text.as_str(), it.may_pass, it.is_outage));
        assert_eq!(got, expected, "{code} {body}");
    }

    #[test]
    fn replies_are_worth_asking_again_as_upstream_has_it() {
        check(200, "", None);
        check(201, "{}", None);
        check(500, "oops", Some(("the reviewer answered 500", true, true)));
        check(504, "{}", Some(("the reviewer answered 504", true, true)));
        check(503, "", Some(("the reviewer answered 503", false, true)));
        check(429, "{\"message\":\"later\"}", Some(("later", true, false)));
        let details = "{\"message\":\"wait\",\"details\":{\"retryAfterSeconds\":1}}";
        check(503, details, Some(("wait", true, true)));
        check(403, "{\"message\":\"no\",\"details\":null}", Some(("no", false, false)));
        check(302, "", Some(("the reviewer answered 302", false, false)));
    }

    #[test]
    fn a_reviewer_is_out_of_reach_for_no_reason_that_callers_can_bring_about() {
        let reviewer = ServicePort::of_server("the reviewer", 443);
        let there = Hop::ALL
            .into_iter()
            .filter(|&hop| !Failure::of_fault(&Fault::from(hop), &reviewer).is_outage);
        assert_eq!(there.collect::<Vec<_>>(), [Hop::ProtocolError, Hop::Overloaded]);
    }

    #[test]
    fn only_a_lost_connection_is_tried_again() {
        let reviewer = ServicePort::of_server("the reviewer", 443);
        let failure = |hop| Failure::of_fault(&Fault::new(hop, "10.0.0.1:443"), &reviewer);
        assert!(failure(Hop::BackendReset).may_pass);
        let refused = failure(Hop::ConnectRefused);
        assert!(!refused.may_pass && refused.is_outage);
        assert_eq!(refused.text, "connecting to the reviewer: connection refused");
    }
}
