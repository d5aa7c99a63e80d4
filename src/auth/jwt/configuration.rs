//! kube-apiserver's `AuthenticationConfiguration` (`apiserver.config.k8s.io`) as it is written.

use serde::Deserialize;

use crate::runtime::configuration_file;

const API_VERSIONS: [&str; 3] = [
    "apiserver.config.k8s.io/v1",
    "apiserver.config.k8s.io/v1beta1",
    "apiserver.config.k8s.io/v1alpha1",
];
const KIND: &str = "AuthenticationConfiguration";

/// The whole file.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct AuthenticationConfiguration {
    api_version: String,
    kind: String,
    #[serde(default)]
    pub(super) jwt: Option<Vec<JwtAuthenticator>>,
    pub(super) anonymous: Option<AnonymousAuth>,
}

/// Who is anonymous.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct AnonymousAuth {
    #[serde(default)]
    pub(super) enabled: bool,
    #[serde(default)]
    pub(super) conditions: Option<Vec<AnonymousCondition>>,
}

#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct AnonymousCondition {
    #[serde(default)]
    pub(super) path: String,
}

/// One issuer with its rules.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct JwtAuthenticator {
    #[serde(default)]
    pub(super) issuer: IssuerSettings,
    #[serde(default)]
    pub(super) claim_validation_rules: Option<Vec<ClaimValidationRule>>,
    #[serde(default)]
    pub(super) claim_mappings: ClaimMappings,
    #[serde(default)]
    pub(super) user_validation_rules: Option<Vec<UserValidationRule>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct IssuerSettings {
    pub(super) url: String,
    #[serde(rename = "discoveryURL")]
    pub(super) discovery_url: Option<String>,
    pub(super) certificate_authority: String,
    pub(super) audiences: Option<Vec<String>>,
    pub(super) audience_match_policy: String,
    pub(super) egress_selector_type: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct ClaimValidationRule {
    pub(super) claim: String,
    pub(super) required_value: String,
    pub(super) expression: String,
    pub(super) message: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct ClaimMappings {
    pub(super) username: PrefixedClaimOrExpression,
    pub(super) groups: PrefixedClaimOrExpression,
    pub(super) uid: ClaimOrExpression,
    pub(super) extra: Option<Vec<ExtraMapping>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct PrefixedClaimOrExpression {
    pub(super) claim: String,
    pub(super) prefix: Option<String>,
    pub(super) expression: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct ClaimOrExpression {
    pub(super) claim: String,
    pub(super) expression: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct ExtraMapping {
    pub(super) key: String,
    pub(super) value_expression: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct UserValidationRule {
    pub(super) expression: String,
    pub(super) message: String,
}

impl AuthenticationConfiguration {
    /// Reads YAML or JSON, strictly.
    pub(super) fn parse(text: &str) -> Result<Self, Vec<String>> {
        let file: Self = configuration_file::parse(text)?;
        let found = (&*file.api_version, &*file.kind);
        let faults = configuration_file::faults_of_type(found, (&API_VERSIONS, KIND));
        if faults.is_empty() { Ok(file) } else { Err(faults) }
    }
}
