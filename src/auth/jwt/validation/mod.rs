//! Checks a configuration as upstream does (`pkg/apis/apiserver/validation`), and prepares its
//! expressions. All faults are reported together, each with its field.

mod flags;

use std::collections::HashSet;

use reqwest::Url;
use serde_json::Value;

use super::Algorithm;
use super::configuration::{
    AuthenticationConfiguration, ClaimMappings, ClaimValidationRule, ExtraMapping, IssuerSettings,
    JwtAuthenticator, PrefixedClaimOrExpression, UserValidationRule,
};
use super::expression::Expression;
use super::location::Location;
use super::mapping::{CLAIMS, ClaimRule, Mapping, Rule, Source, USER};
use crate::model::field_error::FieldError;
use crate::tls::certificates;

pub(super) use flags::of_flags;

/// Issuers in a file.
const ISSUERS_MAX: usize = 64;

const MATCH_ANY: &str = "MatchAny";
const BOTH: &str = "claim and expression can't both be set";
/// What a user has in expressions.
const USER_FIELDS: [&str; 4] = ["username", "uid", "groups", "extra"];
const RESERVED: [&str; 2] = ["kubernetes.io", "k8s.io"];

/// Where anonymous callers are let in; none for everywhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::auth) enum AnonymousRule {
    /// Nowhere.
    Refused,
    /// Everywhere.
    Accepted,
    /// On these paths only, exactly.
    OnPaths(Vec<String>),
}

/// What a file means.
#[derive(Debug)]
pub(super) struct Read {
    pub(super) rules: Vec<Rules>,
    pub(super) anonymous: Option<AnonymousRule>,
}

/// What counts for the tokens of an issuer.
#[derive(Debug)]
pub(super) struct Rules {
    pub(super) location: Location,
    pub(super) audiences: Vec<String>,
    pub(super) algorithms: Vec<Algorithm>,
    pub(super) mapping: Mapping,
}

/// Reads a file's text. `disallowed` are issuers that others verify.
pub(super) fn read(text: &str, disallowed: &[String]) -> Result<Read, Vec<String>> {
    let file = AuthenticationConfiguration::parse(text)?;
    let jwt = file.jwt.unwrap_or_default();
    if jwt.len() > ISSUERS_MAX {
        return Err(vec![FieldError::too_many("jwt", jwt.len(), ISSUERS_MAX).to_string()]);
    }
    let mut check = Check { disallowed, faults: Vec::new() };
    let (mut urls, mut discovery_urls) = (HashSet::new(), HashSet::new());
    let mut rules = Vec::with_capacity(jwt.len());
    for (at, authenticator) in jwt.iter().enumerate() {
        let path = format!("jwt[{at}]");
        rules.push(check.authenticator(&path, authenticator, &Algorithm::ALL));
        let IssuerSettings { url, discovery_url, .. } = &authenticator.issuer;
        if !urls.insert(url) {
            check.faults.push(FieldError::duplicate(&format!("{path}.issuer.url"), url));
        }
        if let Some(url) = discovery_url.as_ref().filter(|url| !url.is_empty())
            && !discovery_urls.insert(url)
        {
            let field = format!("{path}.issuer.discoveryURL");
            check.faults.push(FieldError::duplicate(&field, url));
        }
    }
    let anonymous = file.anonymous.map(|anonymous| {
        let conditions = anonymous.conditions.unwrap_or_default();
        let paths: Vec<String> = conditions.into_iter().map(|condition| condition.path).collect();
        match (anonymous.enabled, paths) {
            (true, paths) if paths.is_empty() => AnonymousRule::Accepted,
            (true, paths) => AnonymousRule::OnPaths(paths),
            (false, paths) => {
                if !paths.is_empty() {
                    let detail = "enabled should be set to true when conditions are defined";
                    let paths = Value::from(paths);
                    check.invalid("anonymous.conditions", &paths, detail);
                }
                AnonymousRule::Refused
            }
        }
    });
    match rules.into_iter().collect::<Option<Vec<_>>>() {
        Some(rules) if check.faults.is_empty() => Ok(Read { rules, anonymous }),
        _ => Err(check.faults.iter().map(ToString::to_string).collect()),
    }
}

/// Collects faults.
struct Check<'a> {
    disallowed: &'a [String],
    faults: Vec<FieldError>,
}

impl Check<'_> {
    fn invalid(&mut self, field: &str, value: &Value, detail: &str) {
        self.faults.push(FieldError::invalid(field, value, detail));
    }

    fn required(&mut self, field: &str, detail: &str) {
        self.faults.push(FieldError::required(field, detail));
    }

    /// The rules; `None` only where a fault was found.
    fn authenticator(
        &mut self,
        path: &str,
        authenticator: &JwtAuthenticator,
        algorithms: &[Algorithm],
    ) -> Option<Rules> {
        let issuer = &authenticator.issuer;
        self.issuer(&format!("{path}.issuer"), issuer);
        let rules = authenticator.claim_validation_rules.as_deref().unwrap_or_default();
        let claim_rules = self.claim_rules(&format!("{path}.claimValidationRules"), rules);
        let mapped = self.mappings(&format!("{path}.claimMappings"), &authenticator.claim_mappings);
        let rules = authenticator.user_validation_rules.as_deref().unwrap_or_default();
        let user_rules = self.user_rules(&format!("{path}.userValidationRules"), rules);
        let mapping = Mapping { claim_rules, user_rules, ..mapped? };
        self.email(&format!("{path}.claimMappings.username.expression"), &mapping);
        Some(Rules {
            location: Location {
                issuer: issuer.url.clone(),
                discovery_url: issuer.discovery_url.clone().filter(|url| !url.is_empty()),
                certificate_authority: issuer.certificate_authority.clone(),
            },
            audiences: issuer.audiences.clone().unwrap_or_default(),
            algorithms: algorithms.to_vec(),
            mapping,
        })
    }

    fn issuer(&mut self, path: &str, issuer: &IssuerSettings) {
        let field = format!("{path}.url");
        if issuer.url.is_empty() {
            self.required(&field, "");
        } else {
            if self.disallowed.contains(&issuer.url) {
                let disallowed = self.disallowed.join(" ");
                let detail =
                    format!("URL must not overlap with disallowed issuers: [{disallowed}]");
                self.invalid(&field, &issuer.url.as_str().into(), &detail);
            }
            self.url(&field, &issuer.url);
        }
        if let Some(url) = issuer.discovery_url.as_deref().filter(|url| !url.is_empty()) {
            let field = format!("{path}.discoveryURL");
            let plain = |url: &str| url.trim_end_matches('/').to_owned();
            if !issuer.url.is_empty() && plain(&issuer.url) == plain(url) {
                self.invalid(&field, &url.into(), "discoveryURL must be different from URL");
            }
            self.url(&field, url);
        }
        self.audiences(path, issuer);
        if !issuer.certificate_authority.is_empty()
            && let Err(error) =
                certificates("certificateAuthority", issuer.certificate_authority.as_bytes())
        {
            let field = format!("{path}.certificateAuthority");
            self.invalid(&field, &"<omitted>".into(), &error.to_string());
        }
        if !issuer.egress_selector_type.is_empty() {
            let field = format!("{path}.egressSelectorType");
            self.faults.push(FieldError::forbidden(&field, "portico has no egress selectors"));
        }
    }

    fn url(&mut self, field: &str, text: &str) {
        let value = Value::from(text);
        let url = match Url::parse(text) {
            Ok(url) => url,
            Err(error) => return self.invalid(field, &value, &error.to_string()),
        };
        for (is_wrong, detail) in [
            (url.scheme() != "https", "URL scheme must be https"),
            (
                !url.username().is_empty() || url.password().is_some(),
                "URL must not contain a username or password",
            ),
            (url.query().is_some(), "URL must not contain a query"),
            (url.fragment().is_some(), "URL must not contain a fragment"),
        ] {
            if is_wrong {
                self.invalid(field, &value, detail);
            }
        }
    }

    fn audiences(&mut self, path: &str, issuer: &IssuerSettings) {
        let field = format!("{path}.audiences");
        let audiences = issuer.audiences.as_deref().unwrap_or_default();
        if audiences.is_empty() {
            return self.required(&field, &format!("at least one {field} is required"));
        }
        let mut seen = HashSet::new();
        for (at, audience) in audiences.iter().enumerate() {
            let field = format!("{field}[{at}]");
            if audience.is_empty() {
                self.required(&field, "");
            }
            if !seen.insert(audience) {
                self.faults.push(FieldError::duplicate(&field, audience));
            }
        }
        let policy = &*issuer.audience_match_policy;
        let detail = match (audiences.len(), policy) {
            (_, MATCH_ANY) | (1, "") => return,
            (1, _) => "audienceMatchPolicy must be empty or MatchAny for single audience",
            _ => "audienceMatchPolicy must be MatchAny for multiple audiences",
        };
        self.invalid(&format!("{path}.audienceMatchPolicy"), &policy.into(), detail);
    }

    /// The expression; `None` with a fault.
    fn expression(
        &mut self,
        field: &str,
        source: &str,
        variable: &'static str,
    ) -> Option<Expression> {
        Expression::parse(source, variable)
            .map_err(|error| self.invalid(field, &source.into(), &error))
            .ok()
    }

    /// An expression that must be true.
    fn rule(
        &mut self,
        field: &str,
        (source, variable): (&str, &'static str),
        message: &str,
    ) -> Option<Rule> {
        let expression = self.expression(field, source, variable)?;
        let is_field = |name: &&String| USER_FIELDS.contains(&name.as_str());
        if let Some(unknown) = expression.fields.iter().find(|name| !is_field(name))
            && variable == USER
        {
            let detail = format!("compilation failed: undefined field '{unknown}'");
            self.invalid(field, &source.into(), &detail);
        } else if expression.is_never_bool {
            self.invalid(field, &source.into(), "must evaluate to bool");
        }
        Some(Rule { expression, message: message.to_owned() })
    }

    fn claim_rules(&mut self, path: &str, rules: &[ClaimValidationRule]) -> Vec<ClaimRule> {
        let (mut claims, mut expressions) = (HashSet::new(), HashSet::new());
        let mut checked = Vec::with_capacity(rules.len());
        for (at, rule) in rules.iter().enumerate() {
            let path = format!("{path}[{at}]");
            match (rule.claim.is_empty(), rule.expression.is_empty()) {
                (false, false) => self.invalid(&path, &rule.claim.as_str().into(), BOTH),
                (true, true) => self.required(&path, "claim or expression is required"),
                (false, true) => {
                    if !rule.message.is_empty() {
                        let detail = "may not be specified when claim is set";
                        let message = rule.message.as_str().into();
                        self.invalid(&format!("{path}.message"), &message, detail);
                    }
                    if !claims.insert(&rule.claim) {
                        let field = format!("{path}.claim");
                        self.faults.push(FieldError::duplicate(&field, &rule.claim));
                    }
                    let (claim, value) = (rule.claim.clone(), rule.required_value.clone());
                    checked.push(ClaimRule::Required { claim, value });
                }
                (true, false) => {
                    if !rule.required_value.is_empty() {
                        let detail = "may not be specified when expression is set";
                        let value = rule.required_value.as_str().into();
                        self.invalid(&format!("{path}.requiredValue"), &value, detail);
                    }
                    let field = format!("{path}.expression");
                    if !expressions.insert(&rule.expression) {
                        self.faults.push(FieldError::duplicate(&field, &rule.expression));
                        continue;
                    }
                    let rule = self.rule(&field, (&rule.expression, CLAIMS), &rule.message);
                    checked.extend(rule.map(ClaimRule::Expression));
                }
            }
        }
        checked
    }

    fn user_rules(&mut self, path: &str, rules: &[UserValidationRule]) -> Vec<Rule> {
        let mut expressions = HashSet::new();
        let mut checked = Vec::with_capacity(rules.len());
        for (at, rule) in rules.iter().enumerate() {
            let field = format!("{path}[{at}].expression");
            if rule.expression.is_empty() {
                self.required(&field, "");
            } else if !expressions.insert(&rule.expression) {
                self.faults.push(FieldError::duplicate(&field, &rule.expression));
            } else {
                checked.extend(self.rule(&field, (&rule.expression, USER), &rule.message));
            }
        }
        checked
    }

    fn mappings(&mut self, path: &str, mappings: &ClaimMappings) -> Option<Mapping> {
        let username_path = format!("{path}.username");
        let username = self.source(&username_path, &mappings.username);
        if mappings.username.claim.is_empty() && mappings.username.expression.is_empty() {
            self.required(&username_path, "claim or expression is required");
        }
        let groups = self.source(&format!("{path}.groups"), &mappings.groups);
        let uid_path = format!("{path}.uid");
        let uid = match (&*mappings.uid.claim, &*mappings.uid.expression) {
            ("", "") => None,
            (claim, "") => Some(Source::Claim { name: claim.to_owned(), prefix: String::new() }),
            ("", source) => self
                .expression(&format!("{uid_path}.expression"), source, CLAIMS)
                .map(Source::Expression),
            _ => {
                self.invalid(&uid_path, &"".into(), BOTH);
                None
            }
        };
        let extra = mappings.extra.as_deref().unwrap_or_default();
        let extra = self.extra(&format!("{path}.extra"), extra);
        let (claim_rules, user_rules) = (Vec::new(), Vec::new());
        Some(Mapping { username: username?, groups, uid, extra, claim_rules, user_rules })
    }

    fn source(&mut self, path: &str, mapping: &PrefixedClaimOrExpression) -> Option<Source> {
        match (&*mapping.claim, &*mapping.expression) {
            ("", "") => None,
            (claim, "") => {
                let Some(prefix) = mapping.prefix.clone() else {
                    let detail = "prefix is required when claim is set. It can be set to an empty \
                                  string to disable prefixing";
                    self.required(&format!("{path}.prefix"), detail);
                    return None;
                };
                Some(Source::Claim { name: claim.to_owned(), prefix })
            }
            ("", source) => {
                if let Some(prefix) = &mapping.prefix {
                    let detail = "may not be specified when expression is set";
                    self.invalid(&format!("{path}.prefix"), &prefix.as_str().into(), detail);
                }
                let field = format!("{path}.expression");
                self.expression(&field, source, CLAIMS).map(Source::Expression)
            }
            _ => {
                self.invalid(path, &"".into(), BOTH);
                None
            }
        }
    }

    fn extra(&mut self, path: &str, mappings: &[ExtraMapping]) -> Vec<(String, Expression)> {
        let mut keys = HashSet::new();
        let mut checked = Vec::with_capacity(mappings.len());
        for (at, mapping) in mappings.iter().enumerate() {
            let path = format!("{path}[{at}]");
            let field = format!("{path}.key");
            self.extra_key(&field, &mapping.key);
            if !keys.insert(&mapping.key) {
                self.faults.push(FieldError::duplicate(&field, &mapping.key));
                continue;
            }
            let field = format!("{path}.valueExpression");
            if mapping.value_expression.is_empty() {
                self.required(&field, "");
            } else if let Some(expression) =
                self.expression(&field, &mapping.value_expression, CLAIMS)
            {
                checked.push((mapping.key.clone(), expression));
            }
        }
        checked
    }

    /// A lower-case path below a domain that is not Kubernetes' own.
    fn extra_key(&mut self, field: &str, key: &str) {
        if key.is_empty() {
            return self.required(field, "");
        }
        let value = Value::from(key);
        self.faults.extend(FieldError::domain_prefixed_path(field, key));
        if key.chars().any(char::is_uppercase) {
            self.invalid(field, &value, "must be lowercase");
        }
        let (domain, _) = key.split_once('/').unwrap_or_default();
        let is_below = |own: &str| {
            domain.strip_suffix(own).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
        };
        if RESERVED.into_iter().any(is_below) {
            let detail =
                "k8s.io, kubernetes.io and their subdomains are reserved for Kubernetes use";
            self.invalid(field, &value, detail);
        }
    }

    /// Who takes names from addresses must look at whether they are verified.
    fn email(&mut self, field: &str, mapping: &Mapping) {
        let Source::Expression(username) = &mapping.username else { return };
        let rules = mapping.claim_rules.iter().filter_map(|rule| match rule {
            ClaimRule::Expression(rule) => Some(&rule.expression),
            ClaimRule::Required { .. } => None,
        });
        let mut looked =
            rules.chain(mapping.extra.iter().map(|(_, expression)| expression)).chain([username]);
        if username.selects("email") && !looked.any(|one| one.selects("email_verified")) {
            let detail = "claims.email_verified must be used in claimMappings.username.expression or \
                          claimMappings.extra[*].valueExpression or \
                          claimValidationRules[*].expression when claims.email is used in \
                          claimMappings.username.expression";
            self.invalid(field, &username.source.as_str().into(), detail);
        }
    }
}

#[cfg(test)]
mod tests;
