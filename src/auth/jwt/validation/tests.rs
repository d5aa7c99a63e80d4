//! Faults of configurations, each with its field.

use super::super::OidcFlags;
use super::*;

const HEAD: &str = "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthenticationConfiguration\n";

/// One issuer that is in order, with more of it behind.
fn issuer(more: &str) -> String {
    format!(
        "{HEAD}jwt:\n- issuer: {{url: 'https://a', audiences: [me]}}\n  \
         claimMappings:\n    username: {{claim: sub, prefix: ''}}\n{more}"
    )
}

/// One issuer's settings and its mapping of the user name.
fn with(settings: &str, username: &str) -> String {
    format!("{HEAD}jwt:\n- issuer: {{{settings}}}\n  claimMappings: {{username: {{{username}}}}}\n")
}

const URL: &str = "url: 'https://a', audiences: [me]";
const SUB: &str = "claim: sub, prefix: ''";

#[track_caller]
fn check_faults(text: &str, expected: &[&str]) {
    let faults = read(text, &["https://kubernetes".to_owned()]).unwrap_err();
    assert_eq!(faults.len(), expected.len(), "{faults:#?}");
    for (fault, expected) in faults.iter().zip(expected) {
        assert!(fault.starts_with(expected), "{fault}\n{expected}");
    }
}

#[track_caller]
fn check_valid(text: &str) -> Read {
    read(text, &[]).unwrap()
}

#[test]
fn a_whole_configuration_is_read_in_every_version() {
    let text = r#"
jwt:
- issuer:
    url: https://example.com
    discoveryURL: https://discovery.example.com/.well-known/openid-configuration
    audiences: [my-app, my-other-app]
    audienceMatchPolicy: MatchAny
  claimValidationRules:
  - claim: hd
    requiredValue: example.com
  - expression: 'claims.hd == "example.com"'
    message: the hd claim must be set to example.com
  claimMappings:
    username: {expression: 'claims.username + ":external-user"'}
    groups: {expression: 'claims.roles.split(",")'}
    uid: {expression: claims.sub}
    extra:
    - {key: example.com/tenant, valueExpression: claims.tenant}
  userValidationRules:
  - expression: "!user.username.startsWith('system:')"
    message: username cannot use reserved system prefix
anonymous:
  enabled: true
  conditions: [{path: /livez}, {path: /readyz}]
"#;
    for version in ["v1", "v1beta1", "v1alpha1"] {
        let read =
            check_valid(&format!("{}{text}", HEAD.replace("/v1\n", &format!("/{version}\n"))));
        let [rules] = read.rules.as_slice() else { panic!("{read:?}") };
        assert_eq!(rules.audiences, ["my-app", "my-other-app"]);
        assert_eq!(rules.algorithms, Algorithm::ALL);
        assert_eq!(rules.location.issuer, "https://example.com");
        assert!(rules.location.discovery_url.as_ref().unwrap().contains("discovery.example"));
        assert_eq!(rules.mapping.claim_rules.len(), 2);
        let paths = ["/livez", "/readyz"].map(str::to_owned).to_vec();
        assert_eq!(read.anonymous, Some(AnonymousRule::OnPaths(paths)));
    }
    assert!(check_valid(HEAD).rules.is_empty());
    assert!(check_valid(&format!("{HEAD}jwt: null\n")).anonymous.is_none());
}

#[test]
fn what_is_not_of_this_kind_is_refused() {
    check_faults("", &[""]);
    check_faults("a: [", &[""]);
    check_faults("apiVersion: v1\nkind: Config\n", &["apiVersion: \"v1\"", "kind: \"Config\""]);
    check_faults(&format!("{HEAD}jwts: []\n"), &["unknown field"]);
    let text = issuer("").replace("prefix", "prefx");
    check_faults(&text, &["unknown field"]);
    check_faults(&format!("{HEAD}jwt: []\njwt: []\n"), &["duplicate"]);
}

#[test]
fn issuers_are_checked_with_all_faults_at_once() {
    check_faults(
        &format!("{HEAD}jwt:\n- {{}}\n"),
        &[
            "jwt[0].issuer.url: Required value",
            "jwt[0].issuer.audiences: Required value: at least one jwt[0].issuer.audiences is required",
            "jwt[0].claimMappings.username: Required value: claim or expression is required",
        ],
    );
    check_faults(
        &with("url: 'http://u:p@a/?q#f', audiences: ['', a, a]", "claim: sub"),
        &[
            "jwt[0].issuer.url: Invalid value: \"http://u:p@a/?q#f\": URL scheme must be https",
            "jwt[0].issuer.url: Invalid value: \"http://u:p@a/?q#f\": URL must not contain a username",
            "jwt[0].issuer.url: Invalid value: \"http://u:p@a/?q#f\": URL must not contain a query",
            "jwt[0].issuer.url: Invalid value: \"http://u:p@a/?q#f\": URL must not contain a fragment",
            "jwt[0].issuer.audiences[0]: Required value",
            "jwt[0].issuer.audiences[2]: Duplicate value: \"a\"",
            "jwt[0].issuer.audienceMatchPolicy: Invalid value: \"\": audienceMatchPolicy must be MatchAny for multiple",
            "jwt[0].claimMappings.username.prefix: Required value: prefix is required when claim is set",
        ],
    );
    check_faults(
        &with("url: 'https://kubernetes', audiences: [a]", SUB),
        &["jwt[0].issuer.url: Invalid value: \"https://kubernetes\": URL must not overlap"],
    );
    check_faults(
        &with(
            "url: 'https://a', discoveryURL: 'https://a/', audiences: [a], audienceMatchPolicy: MatchAll",
            SUB,
        ),
        &[
            "jwt[0].issuer.discoveryURL: Invalid value: \"https://a/\": discoveryURL must be different",
            "jwt[0].issuer.audienceMatchPolicy: Invalid value: \"MatchAll\": audienceMatchPolicy must be empty or",
        ],
    );
    check_faults(
        &with(&format!("{URL}, certificateAuthority: x, egressSelectorType: cluster"), SUB),
        &[
            "jwt[0].issuer.certificateAuthority: Invalid value: \"<omitted>\": ",
            "jwt[0].issuer.egressSelectorType: Forbidden",
        ],
    );
    check_faults(
        &with("url: ':', audiences: [a]", SUB),
        &["jwt[0].issuer.url: Invalid value: \":\""],
    );
}

#[test]
fn issuers_are_unique_and_not_too_many() {
    let one = "- issuer: {url: 'https://a', discoveryURL: 'https://d', audiences: [me]}\n  \
               claimMappings: {username: {claim: sub, prefix: ''}}\n";
    check_faults(
        &format!("{HEAD}jwt:\n{one}{one}"),
        &[
            "jwt[1].issuer.url: Duplicate value: \"https://a\"",
            "jwt[1].issuer.discoveryURL: Duplicate value: \"https://d\"",
        ],
    );
    check_faults(
        &format!("{HEAD}jwt:\n{}", one.repeat(65)),
        &["jwt: Too many: 65: must have at most 64 items"],
    );
}

#[test]
fn claim_rules_are_a_claim_or_an_expression() {
    check_faults(
        &issuer(
            "  claimValidationRules:\n  - {}\n  - {claim: a, expression: 'true'}\n  \
             - {claim: a, message: m}\n  - {claim: a}\n  - {expression: 'true', requiredValue: x}\n  \
             - {expression: 'true'}\n  - {expression: 'user.uid'}\n",
        ),
        &[
            "jwt[0].claimValidationRules[0]: Required value: claim or expression is required",
            "jwt[0].claimValidationRules[1]: Invalid value: \"a\": claim and expression can't both be set",
            "jwt[0].claimValidationRules[2].message: Invalid value: \"m\": may not be specified when claim",
            "jwt[0].claimValidationRules[3].claim: Duplicate value: \"a\"",
            "jwt[0].claimValidationRules[4].requiredValue: Invalid value: \"x\": may not be specified when expr",
            "jwt[0].claimValidationRules[5].expression: Duplicate value: \"true\"",
            "jwt[0].claimValidationRules[6].expression: Invalid value: \"user.uid\": compilation failed: undecl",
        ],
    );
    check_faults(
        &issuer(
            "  userValidationRules:\n  - {message: m}\n  - {expression: 'true'}\n  \
             - {expression: 'true'}\n  - {expression: 'claims.sub'}\n",
        ),
        &[
            "jwt[0].userValidationRules[0].expression: Required value",
            "jwt[0].userValidationRules[2].expression: Duplicate value: \"true\"",
            "jwt[0].userValidationRules[3].expression: Invalid value: \"claims.sub\": compilation failed",
        ],
    );
}

#[test]
fn rules_must_be_able_to_be_true() {
    let rules = |rules: &[&str]| {
        let lines: Vec<String> =
            rules.iter().map(|rule| format!("  - {{expression: \"{rule}\"}}\n")).collect();
        issuer(&format!("  claimValidationRules:\n{}", lines.concat()))
    };
    check_valid(&rules(&[
        "has(claims.a)",
        "claims.a && true",
        "!claims.a",
        "claims.a ? true : false",
        "claims.a.startsWith('x')",
        "[true][0]",
        "{'a': true}.a",
        "claims.?a.hasValue()",
        "'a' in claims.a",
        "sets.contains(claims.a, ['x'])",
        "claims.?a.orValue(true) == true",
        "dyn(claims.a) == 'x'",
        "['a'].all(x, x == 'a')",
    ]));
    // Each is refused by kube-apiserver, too.
    for rule in [
        "1",
        "'x'",
        "null",
        "[true]",
        "claims",
        "claims.a",
        "claims.a.b",
        "claims.a[0]",
        "claims.?a.orValue(true)",
        "claims.?a",
        "dyn(true)",
        "size(claims.a)",
        "claims.a + claims.b",
        "claims.a ? claims.b : true",
        "claims.a ? 'x' : 'y'",
    ] {
        let fault = format!(
            "jwt[0].claimValidationRules[0].expression: Invalid value: \"{rule}\": must evaluate to bool"
        );
        check_faults(&rules(&[rule]), &[&fault]);
    }
    check_faults(
        &issuer(
            "  userValidationRules:\n  - {expression: user.username}\n  \
             - {expression: 'user.nothing == 1'}\n",
        ),
        &[
            "jwt[0].userValidationRules[0].expression: Invalid value: \"user.username\": must evaluate to bool",
            "jwt[0].userValidationRules[1].expression: Invalid value: \"user.nothing == 1\": compilation \
             failed: undefined field 'nothing'",
        ],
    );
}

#[test]
fn mappings_are_a_claim_or_an_expression() {
    check_faults(
        &with(URL, "claim: sub, expression: claims.sub"),
        &[
            "jwt[0].claimMappings.username: Invalid value: \"\": claim and expression can't both be set",
        ],
    );
    check_faults(
        &with(URL, "expression: claims.sub, prefix: x"),
        &[
            "jwt[0].claimMappings.username.prefix: Invalid value: \"x\": may not be specified when expression",
        ],
    );
    check_faults(
        &issuer("    groups: {claim: groups}\n    uid: {claim: a, expression: b}\n"),
        &[
            "jwt[0].claimMappings.groups.prefix: Required value: prefix is required",
            "jwt[0].claimMappings.uid: Invalid value: \"\": claim and expression can't both be set",
        ],
    );
}

#[test]
fn extra_keys_are_lower_case_paths_below_domains_of_others() {
    let extra = |keys: &[&str]| {
        let lines: Vec<String> = keys
            .iter()
            .map(|key| format!("    - {{key: '{key}', valueExpression: claims.sub}}\n"))
            .collect();
        issuer(&format!("    extra:\n{}", lines.concat()))
    };
    check_valid(&extra(&["example.org/a", "example.org/b/c", "notk8s.io/a", "a/b"]));
    check_faults(
        &extra(&[
            "",
            "plain",
            "/x",
            "x/",
            "Example.org/A",
            "kubernetes.io/a",
            "a.k8s.io/b",
            "a/b",
            "a/b",
            "a/b c",
        ]),
        &[
            "jwt[0].claimMappings.extra[0].key: Required value",
            "jwt[0].claimMappings.extra[1].key: Invalid value: \"plain\": must be a domain-prefixed path",
            "jwt[0].claimMappings.extra[2].key: Invalid value: \"/x\": must be a domain-prefixed path",
            "jwt[0].claimMappings.extra[3].key: Invalid value: \"x/\": must be a domain-prefixed path",
            "jwt[0].claimMappings.extra[4].key: Invalid value: \"Example.org\": a lowercase RFC 1123",
            "jwt[0].claimMappings.extra[4].key: Invalid value: \"Example.org/A\": must be lowercase",
            "jwt[0].claimMappings.extra[5].key: Invalid value: \"kubernetes.io/a\": k8s.io, kubernetes.io",
            "jwt[0].claimMappings.extra[6].key: Invalid value: \"a.k8s.io/b\": k8s.io, kubernetes.io",
            "jwt[0].claimMappings.extra[8].key: Duplicate value: \"a/b\"",
            "jwt[0].claimMappings.extra[9].key: Invalid value: \"b c\": Invalid path (regex",
        ],
    );
    check_faults(
        &issuer("    extra: [{key: a/b}]\n"),
        &["jwt[0].claimMappings.extra[0].valueExpression: Required value"],
    );
}

#[test]
fn names_from_addresses_need_a_look_at_whether_they_are_verified() {
    let fault = "jwt[0].claimMappings.username.expression: Invalid value: \"claims.email\": \
                 claims.email_verified must be used";
    check_faults(&with(URL, "expression: claims.email"), &[fault]);
    check_valid(&with(URL, "expression: \"claims.email_verified ? claims.email : claims.sub\""));
    let rule =
        "  claimValidationRules: [{expression: 'claims.?email_verified.orValue(true) == true'}]\n";
    check_valid(&format!("{}{rule}", with(URL, "expression: claims.email")));
    check_valid(&with(URL, "claim: email, prefix: ''"));
}

#[test]
fn anonymous_callers_are_let_in_as_the_file_says() {
    let anonymous =
        |text: &str| check_valid(&format!("{HEAD}anonymous: {text}\n")).anonymous.unwrap();
    assert_eq!(anonymous("{enabled: false}"), AnonymousRule::Refused);
    assert_eq!(anonymous("{}"), AnonymousRule::Refused);
    assert_eq!(anonymous("{enabled: true}"), AnonymousRule::Accepted);
    check_faults(
        &format!("{HEAD}anonymous: {{conditions: [{{path: /a}}]}}\n"),
        &["anonymous.conditions: Invalid value: [\"/a\"]: enabled should be set to true when"],
    );
}

fn flags() -> OidcFlags {
    OidcFlags {
        issuer_url: "https://i".to_owned(),
        client_id: "me".to_owned(),
        username_claim: "sub".to_owned(),
        username_prefix: None,
        groups_claim: None,
        groups_prefix: String::new(),
        required_claims: Vec::new(),
        signing_algorithms: vec![Algorithm::Rs256],
        ca_file: None,
    }
}

#[test]
fn the_flags_prefix_is_the_issuer_unless_they_say_otherwise() {
    let prefix = |claim: &str, prefix: Option<&str>| {
        let flags = OidcFlags {
            username_claim: claim.to_owned(),
            username_prefix: prefix.map(str::to_owned),
            ..flags()
        };
        match of_flags(&flags, String::new(), &[]).unwrap().mapping.username {
            Source::Claim { prefix, .. } => prefix,
            Source::Expression(_) => panic!("an expression"),
        }
    };
    assert_eq!(prefix("sub", None), "https://i#");
    assert_eq!(prefix("email", None), "");
    assert_eq!(prefix("sub", Some("-")), "");
    assert_eq!(prefix("email", Some("x:")), "x:");
    let wrong = OidcFlags { issuer_url: "http://i".to_owned(), ..flags() };
    let faults = of_flags(&wrong, String::new(), &[]).unwrap_err();
    let expected = "--oidc-issuer-url: Invalid value: \"http://i\": URL scheme must be https";
    assert_eq!(faults, [expected]);
}
