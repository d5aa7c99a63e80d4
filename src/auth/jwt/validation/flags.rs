//! The `--oidc-*` flags as the issuer of a configuration that would say the same
//! (`kubeapiserver/options/authentication.go`).

use std::collections::BTreeMap;

use super::super::OidcFlags;
use super::super::configuration::{
    ClaimMappings, ClaimValidationRule, IssuerSettings, JwtAuthenticator, PrefixedClaimOrExpression,
};
use super::{Check, Rules};
use crate::model::field_error::FieldError;

/// The one issuer of the flags; `authority` is PEM text.
pub(in crate::auth::jwt) fn of_flags(
    flags: &OidcFlags,
    authority: String,
    disallowed: &[String],
) -> Result<Rules, Vec<String>> {
    let default_prefix = || match &*flags.username_claim {
        "email" => String::new(),
        _ => format!("{}#", flags.issuer_url),
    };
    let username_prefix = match flags.username_prefix.as_deref() {
        None | Some("") => default_prefix(),
        Some("-") => String::new(),
        Some(prefix) => prefix.to_owned(),
    };
    let required: BTreeMap<&String, &String> =
        flags.required_claims.iter().map(|(claim, value)| (claim, value)).collect();
    let rule = |(claim, value): (&&String, &&String)| ClaimValidationRule {
        claim: (*claim).clone(),
        required_value: (*value).clone(),
        ..ClaimValidationRule::default()
    };
    let authenticator = JwtAuthenticator {
        issuer: IssuerSettings {
            url: flags.issuer_url.clone(),
            certificate_authority: authority,
            audiences: Some(vec![flags.client_id.clone()]),
            ..IssuerSettings::default()
        },
        claim_validation_rules: Some(required.iter().map(rule).collect()),
        claim_mappings: ClaimMappings {
            username: PrefixedClaimOrExpression {
                claim: flags.username_claim.clone(),
                prefix: Some(username_prefix),
                expression: String::new(),
            },
            groups: PrefixedClaimOrExpression {
                claim: flags.groups_claim.clone().unwrap_or_default(),
                prefix: Some(flags.groups_prefix.clone()),
                expression: String::new(),
            },
            ..ClaimMappings::default()
        },
        user_validation_rules: None,
    };
    let mut check = Check { disallowed, faults: Vec::new() };
    let rules = check.authenticator("oidc", &authenticator, &flags.signing_algorithms);
    rules
        .filter(|_| check.faults.is_empty())
        .ok_or_else(|| check.faults.iter().map(flag_fault).collect())
}

/// A fault with the flag in the place of the field that was made of it.
fn flag_fault(fault: &FieldError) -> String {
    let flags = [
        ("oidc.issuer.url", "--oidc-issuer-url"),
        ("oidc.issuer.audiences", "--oidc-client-id"),
        ("oidc.issuer.certificateAuthority", "--oidc-ca-file"),
        ("oidc.claimMappings.username", "--oidc-username-claim"),
        ("oidc.claimValidationRules", "--oidc-required-claim"),
    ];
    let flag = flags.into_iter().find(|(field, _)| fault.field.starts_with(field));
    format!("{}: {}", flag.map_or(&*fault.field, |(_, flag)| flag), fault.text)
}
