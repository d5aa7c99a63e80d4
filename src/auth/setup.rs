//! Authentication and authorization put together, and what of it must not be together.

use super::authorize::Mode;
use super::jwt::AnonymousRule;
use super::{
    Anonymous, Auth, Authenticator, Authorizer, Config, Reviews, StartedTokens, Tokens, Trust,
};
use crate::runtime::snapshot::View;
use crate::runtime::telemetry::Metrics;

/// Why callers without credentials may not be let in where everybody may do everything; comes behind
/// what would let them in.
pub const OPEN_TO_EVERYBODY: &str =
    "together with the authorization mode AlwaysAllow would let everybody do everything";

/// Why they do not go together.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    /// Callers without credentials could do everything.
    #[error("--{setting} {OPEN_TO_EVERYBODY}")]
    OpenToEverybody {
        /// What lets them in.
        setting: &'static str,
    },
    /// The flag and the file both speak of callers without credentials.
    #[error(
        "--anonymous-auth: cannot be set when the authentication configuration file says who is \
         anonymous"
    )]
    SaidTwice,
    /// The system does not give what is needed.
    #[error("{0}")]
    System(String),
}

/// Who is anonymous, and on which paths when not on all.
type Admitted = (Anonymous, Option<Vec<String>>);

impl Auth {
    /// Believes whom `trust`, the file of tokens, signatures and reviewers say.
    pub fn new(
        config: &Config,
        (trust, tokens): (View<Trust>, View<Tokens>),
        (signed, reviews): (StartedTokens, Reviews),
        metrics: &Metrics,
    ) -> Result<Self, AuthError> {
        let StartedTokens { own_tokens, anonymous: rule } = signed;
        let always_allows = reviews.modes.iter().any(|mode| matches!(mode, Mode::AlwaysAllow));
        let (anonymous, anonymous_paths) = admitted(config.anonymous, rule, always_allows)?;
        let reads_tokens =
            config.token_file.is_some() || own_tokens.is_some() || reviews.tokens.is_some();
        warn_of_what_is_given(config, &trust.load(), reads_tokens);
        let authenticator = Authenticator::new(trust.clone(), tokens, anonymous, metrics)
            .map_err(AuthError::System)?
            .with_own_tokens(own_tokens)
            .with_reviews(reviews.tokens);
        let authorizer = Authorizer::new(reviews.modes, &config.always_allow_paths, metrics);
        Ok(Self { authenticator, authorizer, trust, anonymous_paths })
    }
}

fn warn_of_what_is_given(config: &Config, first: &Trust, reads_tokens: bool) {
    let names_nobody =
        first.client.is_none() && first.request_header.is_none() && !first.is_pending;
    if names_nobody && !reads_tokens {
        tracing::warn!(
            "no authentication method configured, callers reach the always-allow paths only"
        );
    }
    if config.client_ca_file.is_some()
        && config.client_ca_file == config.requestheader_client_ca_file
        && config.request_header.allowed_names.is_empty()
    {
        tracing::warn!(
            "one authority vouches for clients and front proxies, and no allowed names are set: \
             every client can be anybody"
        );
    }
}

/// What the flag and the file together say of callers without credentials.
fn admitted(
    flag: Anonymous,
    rule: Option<AnonymousRule>,
    always_allows: bool,
) -> Result<Admitted, AuthError> {
    let (admitted, setting) = match rule {
        None => ((flag, None), "anonymous-auth: true"),
        Some(_) if flag != Anonymous::default() => return Err(AuthError::SaidTwice),
        Some(rule) => {
            let admitted = match rule {
                AnonymousRule::Refused => (Anonymous::Refused, None),
                AnonymousRule::OnPaths(paths) => (Anonymous::OnPaths, Some(paths)),
                AnonymousRule::Accepted => (Anonymous::Accepted, None),
            };
            (admitted, "authentication-config: anonymous: enabled")
        }
    };
    if always_allows && admitted.0 == Anonymous::Accepted {
        return Err(AuthError::OpenToEverybody { setting });
    }
    Ok(admitted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(
        flag: Anonymous,
        rule: Option<AnonymousRule>,
        always_allows: bool,
        expected: Result<Admitted, &str>,
    ) {
        let got = admitted(flag, rule, always_allows).map_err(|error| error.to_string());
        assert_eq!(got, expected.map_err(str::to_owned));
    }

    #[test]
    fn one_of_flag_and_file_says_who_is_anonymous() {
        use Anonymous::{Accepted, AlwaysAllowPaths, OnPaths, Refused};
        for flag in [Accepted, AlwaysAllowPaths, Refused] {
            check(flag, None, false, Ok((flag, None)));
        }
        let paths = vec!["/livez".to_owned()];
        let rules = [
            (AnonymousRule::Refused, (Refused, None)),
            (AnonymousRule::OnPaths(paths.clone()), (OnPaths, Some(paths))),
            (AnonymousRule::Accepted, (Accepted, None)),
        ];
        let twice = "--anonymous-auth: cannot be set when the authentication configuration file \
                     says who is anonymous";
        for (rule, expected) in rules {
            check(AlwaysAllowPaths, Some(rule.clone()), false, Ok(expected));
            for flag in [Accepted, Refused] {
                check(flag, Some(rule.clone()), false, Err(twice));
            }
        }
    }

    #[test]
    fn nobody_without_credentials_may_do_everything() {
        use Anonymous::{Accepted, AlwaysAllowPaths, OnPaths, Refused};
        let open = |what: &str| {
            format!(
                "--{what} together with the authorization mode AlwaysAllow would let everybody do \
                 everything"
            )
        };
        check(Accepted, None, true, Err(&open("anonymous-auth: true")));
        let file = open("authentication-config: anonymous: enabled");
        check(AlwaysAllowPaths, Some(AnonymousRule::Accepted), true, Err(&file));
        check(AlwaysAllowPaths, None, true, Ok((AlwaysAllowPaths, None)));
        check(Refused, None, true, Ok((Refused, None)));
        let paths = AnonymousRule::OnPaths(Vec::new());
        check(AlwaysAllowPaths, Some(paths), true, Ok((OnPaths, Some(Vec::new()))));
    }
}
