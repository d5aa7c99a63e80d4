//! The flags of tokens that are verified here: issuers' and service accounts'.

#![expect(clippy::doc_markdown, reason = "help texts are read in a terminal, without backticks")]

use std::path::PathBuf;

use clap::{ArgAction, Args, ValueHint};

use super::Fault;
use crate::auth::{Algorithm, JwtConfig, OidcFlags, ServiceAccountConfig, ServiceAccountLookup};

const AUTHENTICATION: &str = "Authentication flags";

/// The flags of tokens that are verified here.
#[derive(Args, Clone, Debug)]
pub struct TokenFlags {
    /// File with an apiserver.config.k8s.io AuthenticationConfiguration: issuers of JSON Web Tokens,
    /// with the rules by which their claims become a user, and where anonymous callers are let in.
    /// Followed as it changes. Not together with --oidc-* flags.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, help_heading = AUTHENTICATION)]
    pub authentication_config: Option<PathBuf>,
    /// The https URL of an OpenID Connect issuer, whose ID tokens are then verified.
    #[arg(long, value_name = "URL", help_heading = AUTHENTICATION)]
    pub oidc_issuer_url: Option<String>,
    /// The client ID, which a token must have among its audiences. Needed with --oidc-issuer-url.
    #[arg(long, value_name = "ID", help_heading = AUTHENTICATION)]
    pub oidc_client_id: Option<String>,
    /// The claim that is the user name. Others than sub may not be unique for ever.
    #[arg(long, default_value = "sub", value_name = "CLAIM", help_heading = AUTHENTICATION)]
    pub oidc_username_claim: String,
    /// Put in front of user names. Not given, the issuer's URL and # is, except for the claim email;
    /// - for nothing.
    #[arg(long, value_name = "PREFIX", allow_hyphen_values = true, help_heading = AUTHENTICATION)]
    pub oidc_username_prefix: Option<String>,
    /// The claim with the user's groups, a string or a list of them.
    #[arg(long, value_name = "CLAIM", help_heading = AUTHENTICATION)]
    pub oidc_groups_claim: Option<String>,
    /// Put in front of each group.
    #[arg(long, value_name = "PREFIX", help_heading = AUTHENTICATION)]
    pub oidc_groups_prefix: Option<String>,
    /// A claim that a token must have, with its value. Given several times for several claims.
    #[arg(long, action = ArgAction::Append, value_parser = required_claim, value_name = "CLAIM=VALUE", help_heading = AUTHENTICATION)]
    pub oidc_required_claim: Vec<RequiredClaim>,
    /// How tokens may be signed: RS256, RS384, RS512, ES256, ES384, ES512, PS256, PS384, PS512.
    #[arg(long, value_delimiter = ',', action = ArgAction::Append, default_value = "RS256", value_parser = algorithm, value_name = "ALGORITHMS", help_heading = AUTHENTICATION)]
    pub oidc_signing_algs: Vec<Algorithm>,
    /// Authorities of the issuer's certificate; the system's when not given. The file is read again when
    /// it changes.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, help_heading = AUTHENTICATION)]
    pub oidc_ca_file: Option<PathBuf>,

    /// PEM file with RSA or ECDSA keys (public, private or certificates) that verify service
    /// accounts' tokens. A file may hold several; given several times for several files. They are read
    /// again when they change. In front mode with --service-account-lookup=local only.
    #[arg(long, action = ArgAction::Append, value_name = "FILE", value_hint = ValueHint::FilePath, help_heading = AUTHENTICATION)]
    pub service_account_key_file: Vec<PathBuf>,
    /// Who issues service accounts' tokens. Given several times, all are accepted.
    #[arg(long, action = ArgAction::Append, value_name = "ISSUER", help_heading = AUTHENTICATION)]
    pub service_account_issuer: Vec<String>,
    /// Who finds out, in front mode, whether a service account's token counts: review has
    /// kube-apiserver asked by a TokenReview; local has it verified here, by the keys of the files or
    /// else those that the cluster publishes, which costs no request but misses accounts, pods and
    /// secrets that have been deleted: their tokens count until they expire, and those from secrets for
    /// ever. As with kube-apiserver, true is review, false is local. Without a cluster tokens are
    /// verified by the files.
    #[arg(long, default_value = "review", num_args = 0..=1, default_missing_value = "review", require_equals = true, value_parser = lookup, value_name = "review|local", help_heading = AUTHENTICATION)]
    pub service_account_lookup: ServiceAccountLookup,
}

/// A claim with the value it must have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequiredClaim {
    claim: String,
    value: String,
}

impl TokenFlags {
    /// What the flags of issuers mean.
    pub(super) fn jwt(&self, faults: &mut Vec<Fault>) -> JwtConfig {
        let mut fault = |setting, other, text: &str| {
            faults.push(Fault { setting, other: Some(other), text: text.to_owned() });
        };
        if let (Some(first), Some(_)) = (self.first_oidc_flag(), &self.authentication_config) {
            fault(
                "authentication-config",
                first,
                "authentication-config file and oidc-* flags are mutually exclusive",
            );
        }
        let oidc = match (&self.oidc_issuer_url, &self.oidc_client_id) {
            (Some(issuer_url), Some(client_id)) => Some(OidcFlags {
                issuer_url: issuer_url.clone(),
                client_id: client_id.clone(),
                username_claim: self.oidc_username_claim.clone(),
                username_prefix: self.oidc_username_prefix.clone(),
                groups_claim: self.oidc_groups_claim.clone(),
                groups_prefix: self.oidc_groups_prefix.clone().unwrap_or_default(),
                required_claims: self.required_claims(),
                signing_algorithms: self.oidc_signing_algs.clone(),
                ca_file: self.oidc_ca_file.clone(),
            }),
            (Some(_), None) => {
                fault("oidc-issuer-url", "oidc-client-id", "needs oidc-client-id beside it");
                None
            }
            (None, client_id) => {
                if let Some(first) = self.first_oidc_flag() {
                    let setting = if client_id.is_some() { "oidc-client-id" } else { first };
                    fault(setting, "oidc-issuer-url", "needs oidc-issuer-url beside it");
                }
                None
            }
        };
        JwtConfig { file: self.authentication_config.clone(), oidc, ..JwtConfig::default() }
    }

    fn required_claims(&self) -> Vec<(String, String)> {
        let pair = |required: &RequiredClaim| (required.claim.clone(), required.value.clone());
        self.oidc_required_claim.iter().map(pair).collect()
    }

    /// The first of the flags that is not as it is by default.
    fn first_oidc_flag(&self) -> Option<&'static str> {
        [
            ("oidc-issuer-url", self.oidc_issuer_url.is_some()),
            ("oidc-client-id", self.oidc_client_id.is_some()),
            ("oidc-username-claim", self.oidc_username_claim != "sub"),
            ("oidc-username-prefix", self.oidc_username_prefix.is_some()),
            ("oidc-groups-claim", self.oidc_groups_claim.is_some()),
            ("oidc-groups-prefix", self.oidc_groups_prefix.is_some()),
            ("oidc-required-claim", !self.oidc_required_claim.is_empty()),
            ("oidc-signing-algs", self.oidc_signing_algs != [Algorithm::Rs256]),
            ("oidc-ca-file", self.oidc_ca_file.is_some()),
        ]
        .into_iter()
        .find_map(|(flag, is_set)| is_set.then_some(flag))
    }

    /// What the flags of service accounts mean.
    pub(super) fn service_accounts(
        &self,
        (in_front, api_audiences): (bool, Vec<String>),
        faults: &mut Vec<Fault>,
    ) -> ServiceAccountConfig {
        let (keys, lookup) = ("service-account-key-file", "service-account-lookup");
        let issuer = "service-account-issuer";
        let mut fault = |setting, other, text: &str| {
            faults.push(Fault { setting, other: Some(other), text: text.to_owned() });
        };
        let has_keys = !self.service_account_key_file.is_empty();
        let has_issuer = !self.service_account_issuer.is_empty();
        match self.service_account_lookup {
            ServiceAccountLookup::Local if !in_front && !has_keys => {
                fault(lookup, keys, "local needs service-account-key-file or kubeconfig beside it");
            }
            ServiceAccountLookup::Local if !has_issuer => {
                fault(lookup, issuer, "local needs service-account-issuer beside it");
            }
            _ if has_keys && !has_issuer => {
                fault(keys, issuer, "needs service-account-issuer beside it");
            }
            _ => {}
        }
        ServiceAccountConfig {
            key_files: self.service_account_key_file.clone(),
            issuers: self.service_account_issuer.clone(),
            api_audiences,
            lookup: self.service_account_lookup,
        }
    }
}

fn required_claim(text: &str) -> Result<RequiredClaim, String> {
    let pair = text.split_once('=').filter(|(claim, _)| !claim.trim().is_empty());
    let (claim, value) = pair.ok_or("expected claim=value such as hd=example.org")?;
    Ok(RequiredClaim { claim: claim.trim().to_owned(), value: value.trim().to_owned() })
}

fn algorithm(text: &str) -> Result<Algorithm, String> {
    Algorithm::of_name(text.trim()).ok_or_else(|| {
        let names: Vec<&str> = Algorithm::ALL.iter().map(|one| one.name()).collect();
        format!("unsupported signing alg: \"{text}\"; supported: {}", names.join(", "))
    })
}

fn lookup(text: &str) -> Result<ServiceAccountLookup, String> {
    match text {
        "review" => Ok(ServiceAccountLookup::Review),
        "local" => Ok(ServiceAccountLookup::Local),
        _ => match super::values::boolean(text) {
            Ok(true) => Ok(ServiceAccountLookup::Review),
            Ok(false) => Ok(ServiceAccountLookup::Local),
            Err(_) => Err("expected review or local".to_owned()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        flags: TokenFlags,
    }

    fn parse(line: &[&str]) -> Result<TokenFlags, String> {
        let line = [&["portico"], line].concat();
        let parsed = <Line as clap::Parser>::try_parse_from(line);
        parsed.map(|line| line.flags).map_err(|error| error.to_string())
    }

    #[track_caller]
    fn check_fault(line: &[&str], expected: &str) {
        assert_eq!(faults(line, false), [expected]);
    }

    fn faults(line: &[&str], in_front: bool) -> Vec<String> {
        let (flags, mut faults) = (parse(line).unwrap(), Vec::new());
        flags.jwt(&mut faults);
        flags.service_accounts((in_front, Vec::new()), &mut faults);
        faults.iter().map(ToString::to_string).collect()
    }

    const ISSUER: [&str; 2] = ["--oidc-issuer-url=https://i", "--oidc-client-id=me"];

    #[test]
    fn issuer_flags_reach_their_place() {
        let line = [
            &ISSUER[..],
            &[
                "--oidc-username-prefix=-",
                "--oidc-groups-claim=groups",
                "--oidc-required-claim=a=b=c",
                "--oidc-required-claim= d = e ",
                "--oidc-signing-algs=RS256,ES512",
            ],
        ];
        let mut faults = Vec::new();
        let oidc = parse(&line.concat()).unwrap().jwt(&mut faults).oidc.unwrap();
        assert!(faults.is_empty());
        assert_eq!(
            (&*oidc.issuer_url, &*oidc.client_id, &*oidc.username_claim),
            ("https://i", "me", "sub")
        );
        assert_eq!(oidc.username_prefix.as_deref(), Some("-"));
        assert_eq!(oidc.signing_algorithms, [Algorithm::Rs256, Algorithm::Es512]);
        let claims = [("a", "b=c"), ("d", "e")].map(|(a, b)| (a.to_owned(), b.to_owned()));
        assert_eq!(oidc.required_claims, claims);
        assert!(parse(&["--oidc-signing-algs=HS256"]).unwrap_err().contains("unsupported signing"));
        assert!(parse(&["--oidc-required-claim=x"]).unwrap_err().contains("claim=value"));
    }

    #[test]
    fn flags_that_need_or_exclude_each_other_are_refused() {
        check_fault(&ISSUER[..1], "--oidc-issuer-url: needs oidc-client-id beside it");
        check_fault(&ISSUER[1..], "--oidc-client-id: needs oidc-issuer-url beside it");
        check_fault(
            &["--oidc-groups-claim=g"],
            "--oidc-groups-claim: needs oidc-issuer-url beside it",
        );
        check_fault(
            &["--authentication-config=x", ISSUER[0], ISSUER[1]],
            "--authentication-config: authentication-config file and oidc-* flags are mutually exclusive",
        );
        check_fault(
            &["--service-account-key-file=x"],
            "--service-account-key-file: needs service-account-issuer beside it",
        );
    }

    #[test]
    fn service_accounts_flags_go_together() {
        let (local, issuer, key) = (
            "--service-account-lookup=local",
            "--service-account-issuer=https://i",
            "--service-account-key-file=x",
        );
        check_fault(
            &[local, issuer],
            "--service-account-lookup: local needs service-account-key-file or kubeconfig beside it",
        );
        check_fault(
            &[local, key],
            "--service-account-lookup: local needs service-account-issuer beside it",
        );
        assert!(faults(&[key, issuer], false).is_empty());
        assert!(faults(&[local, issuer], true).is_empty());
        assert!(faults(&[local, issuer, key], true).is_empty());
        assert!(faults(&[issuer, key], true).is_empty());
    }

    #[test]
    fn lookup_is_said_in_words_or_as_kube_apiserver_says_it() {
        let lookup = |line: &[&str]| parse(line).unwrap().service_account_lookup;
        assert_eq!(lookup(&[]), ServiceAccountLookup::Review);
        assert_eq!(lookup(&["--service-account-lookup"]), ServiceAccountLookup::Review);
        for (value, expected) in [
            ("review", ServiceAccountLookup::Review),
            ("true", ServiceAccountLookup::Review),
            ("local", ServiceAccountLookup::Local),
            ("false", ServiceAccountLookup::Local),
        ] {
            assert_eq!(lookup(&[&format!("--service-account-lookup={value}")]), expected);
        }
        assert!(
            parse(&["--service-account-lookup=never"]).unwrap_err().contains("review or local")
        );
    }
}
