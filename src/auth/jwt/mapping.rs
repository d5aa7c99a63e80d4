//! From the claims of a token to a user (`claimMappings`), and the rules that both must meet.

use serde_json::{Value, json};

use super::compact::Claims;
use super::expression::{Expression, Scope};
use crate::model::user::{EXTRA_CREDENTIAL_ID, User};

/// The variable of expressions over claims.
pub(super) const CLAIMS: &str = "claims";
/// The variable of expressions over the user.
pub(super) const USER: &str = "user";

const EMAIL: &str = "email";
const EMAIL_VERIFIED: &str = "email_verified";
/// The claims that say where others are to be asked for (OIDC Core §5.6.2).
const CLAIM_NAMES: &str = "_claim_names";

/// Where a value is from.
#[derive(Debug)]
pub(super) enum Source {
    /// A claim, with what is put in front of its value.
    Claim { name: String, prefix: String },
    /// What an expression makes of the claims.
    Expression(Expression),
}

/// One of `claimValidationRules`.
#[derive(Debug)]
pub(super) enum ClaimRule {
    Required { claim: String, value: String },
    Expression(Rule),
}

/// An expression that must be true.
#[derive(Debug)]
pub(super) struct Rule {
    pub(super) expression: Expression,
    pub(super) message: String,
}

/// How claims become a user.
#[derive(Debug)]
pub(super) struct Mapping {
    pub(super) username: Source,
    pub(super) groups: Option<Source>,
    pub(super) uid: Option<Source>,
    pub(super) extra: Vec<(String, Expression)>,
    pub(super) claim_rules: Vec<ClaimRule>,
    pub(super) user_rules: Vec<Rule>,
}

impl Mapping {
    /// The user whom verified claims name; an error says which rule they do not meet.
    pub(super) fn user(&self, claims: Claims) -> Result<User, String> {
        let claims = Value::Object(claims);
        let scope = self.uses_expressions().then(|| Scope::new(CLAIMS, &claims));
        let known = Known { claims: &claims, scope: scope.as_ref() };
        let mut user = User {
            name: self.username(&known)?,
            groups: self.groups(&known)?,
            uid: self.uid(&known)?,
            ..User::default()
        };
        self.extra(&known, &mut user)?;
        self.check_claims(&known)?;
        self.check_user(&user)?;
        Ok(user)
    }

    fn uses_expressions(&self) -> bool {
        let sources = [Some(&self.username), self.groups.as_ref(), self.uid.as_ref()];
        sources.into_iter().flatten().any(|source| matches!(source, Source::Expression(_)))
            || !self.extra.is_empty()
            || self.claim_rules.iter().any(|rule| matches!(rule, ClaimRule::Expression(_)))
    }

    fn username(&self, known: &Known<'_>) -> Result<String, String> {
        match &self.username {
            Source::Expression(expression) => {
                let name = expression.evaluate_text(known.scope()?, "username");
                let name = name.map_err(|error| {
                    format!("error evaluating username claim expression: {error}")
                })?;
                if name.is_empty() {
                    return Err("empty username via CEL expression is not allowed".to_owned());
                }
                Ok(name)
            }
            Source::Claim { name, prefix } => {
                let value = known
                    .text(name)
                    .map_err(|error| format!("parse username claims {name:?}: {error}"))?;
                if name == EMAIL {
                    known.check_email()?;
                }
                let user = format!("{prefix}{value}");
                if user.is_empty() {
                    return Err(format!("claim {name:?} is empty, a user must have a name"));
                }
                Ok(user)
            }
        }
    }

    fn groups(&self, known: &Known<'_>) -> Result<Vec<String>, String> {
        match &self.groups {
            None => Ok(Vec::new()),
            Some(Source::Claim { name, prefix }) => {
                let groups = known
                    .texts(name)
                    .map_err(|error| format!("parse groups claim {name:?}: {error}"))?;
                Ok(groups.into_iter().map(|group| format!("{prefix}{group}")).collect())
            }
            Some(Source::Expression(expression)) => expression
                .evaluate_texts(known.scope()?)
                .map_err(|error| format!("error evaluating group claim expression: {error}")),
        }
    }

    fn uid(&self, known: &Known<'_>) -> Result<String, String> {
        match &self.uid {
            None => Ok(String::new()),
            Some(Source::Claim { name, .. }) => {
                known.text(name).map_err(|error| format!("parse uid claim {name:?}: {error}"))
            }
            Some(Source::Expression(expression)) => expression
                .evaluate_text(known.scope()?, "uid")
                .map_err(|error| format!("error evaluating uid claim expression: {error}")),
        }
    }

    fn extra(&self, known: &Known<'_>, user: &mut User) -> Result<(), String> {
        if let Some(Value::String(id)) = known.claims.get("jti")
            && !id.is_empty()
        {
            user.extra.insert(EXTRA_CREDENTIAL_ID.to_owned(), vec![format!("JTI={id}")]);
        }
        for (key, expression) in &self.extra {
            let values = expression
                .evaluate_texts(known.scope()?)
                .map_err(|error| format!("error evaluating extra claim expression: {error}"))?;
            if !values.is_empty() {
                user.extra.insert(key.clone(), values);
            }
        }
        Ok(())
    }

    fn check_claims(&self, known: &Known<'_>) -> Result<(), String> {
        for rule in &self.claim_rules {
            match rule {
                ClaimRule::Required { claim, value } => {
                    if known.claims.get(claim).is_none() {
                        return Err(format!("required claim {claim} not present in ID token"));
                    }
                    let got = known
                        .text(claim)
                        .map_err(|error| format!("parse claim {claim}: {error}"))?;
                    if got != *value {
                        return Err(format!(
                            "required claim {claim} value does not match. Got = {got}, want = {value}"
                        ));
                    }
                }
                ClaimRule::Expression(rule) => rule.check(known.scope()?).map_err(|error| {
                    format!("error evaluating claim validation expression: {error}")
                })?,
            }
        }
        Ok(())
    }

    fn check_user(&self, user: &User) -> Result<(), String> {
        if self.user_rules.is_empty() {
            return Ok(());
        }
        let value = json!({
            "username": user.name,
            "uid": user.uid,
            "groups": user.groups,
            "extra": user.extra,
        });
        let scope = Scope::new(USER, &value);
        self.user_rules
            .iter()
            .try_for_each(|rule| rule.check(&scope))
            .map_err(|error| format!("error evaluating user info validation rule: {error}"))
    }
}

impl Rule {
    fn check(&self, scope: &Scope<'_>) -> Result<(), String> {
        if self.expression.evaluate_bool(scope)? {
            return Ok(());
        }
        Err(format!("validation expression '{}' failed: {}", self.expression.source, self.message))
    }
}

/// The claims, and the same for expressions.
struct Known<'a> {
    claims: &'a Value,
    scope: Option<&'a Scope<'a>>,
}

impl<'a> Known<'a> {
    fn scope(&self) -> Result<&'a Scope<'a>, String> {
        self.scope.ok_or_else(|| "no claims to evaluate an expression over".to_owned())
    }

    fn text(&self, name: &str) -> Result<String, String> {
        match self.claims.get(name) {
            None => Err("claim not present".to_owned()),
            Some(Value::String(text)) => Ok(text.clone()),
            // As Go decodes it: null leaves the empty text as it is.
            Some(Value::Null) => Ok(String::new()),
            Some(_) => Err("the claim is not a string".to_owned()),
        }
    }

    /// A text alone is a list of one.
    fn texts(&self, name: &str) -> Result<Vec<String>, String> {
        let mismatch = || "the claim is neither a string nor a list of strings".to_owned();
        match self.claims.get(name) {
            None => match self.claims.get(CLAIM_NAMES).and_then(|names| names.get(name)) {
                // To go on without would leave groups out of which rules may speak.
                Some(_) => Err("distributed claims are not supported".to_owned()),
                None => Ok(Vec::new()),
            },
            Some(Value::Null) => Ok(Vec::new()),
            Some(Value::String(one)) => Ok(vec![one.clone()]),
            Some(Value::Array(all)) => {
                all.iter().map(|one| one.as_str().map(str::to_owned).ok_or_else(mismatch)).collect()
            }
            Some(_) => Err(mismatch()),
        }
    }

    /// An address that the issuer says it has not verified could be anybody's.
    fn check_email(&self) -> Result<(), String> {
        match self.claims.get(EMAIL_VERIFIED) {
            None | Some(Value::Bool(true)) => Ok(()),
            Some(Value::Bool(false) | Value::Null) => Err("email not verified".to_owned()),
            Some(_) => Err("parse 'email_verified' claim: it is not a boolean".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(name: &str, prefix: &str) -> Source {
        Source::Claim { name: name.to_owned(), prefix: prefix.to_owned() }
    }

    fn expression(source: &str, variable: &'static str) -> Expression {
        Expression::parse(source, variable).unwrap()
    }

    fn mapping(username: Source) -> Mapping {
        Mapping {
            username,
            groups: None,
            uid: None,
            extra: Vec::new(),
            claim_rules: Vec::new(),
            user_rules: Vec::new(),
        }
    }

    fn user(mapping: &Mapping, claims: Value) -> Result<User, String> {
        let Value::Object(claims) = claims else { panic!("no claims: {claims}") };
        mapping.user(claims)
    }

    #[track_caller]
    fn check_refused(mapping: &Mapping, claims: Value, expected: &str) {
        let error = user(mapping, claims).unwrap_err();
        assert!(error.contains(expected), "{error}");
    }

    #[test]
    fn claims_become_a_user_with_prefixes() {
        let mapping = Mapping {
            groups: Some(claim("groups", "oidc:")),
            uid: Some(claim("uid", "")),
            ..mapping(claim("sub", "https://issuer#"))
        };
        let claims = json!({"sub": "jane", "groups": ["a", "b"], "uid": "u", "jti": "1"});
        let jane = user(&mapping, claims).unwrap();
        assert_eq!((&*jane.name, &*jane.uid), ("https://issuer#jane", "u"));
        assert_eq!(jane.groups, ["oidc:a", "oidc:b"]);
        assert_eq!(jane.extra[EXTRA_CREDENTIAL_ID], ["JTI=1"]);
        let one = user(&mapping, json!({"sub": "j", "groups": "a", "uid": "u"})).unwrap();
        assert_eq!(one.groups, ["oidc:a"]);
        assert!(user(&mapping, json!({"sub": "j", "uid": "u"})).unwrap().groups.is_empty());
        check_refused(&mapping, json!({"sub": 1, "uid": "u"}), "parse username claims \"sub\"");
        check_refused(&mapping, json!({"uid": "u"}), "claim not present");
        check_refused(&mapping, json!({"sub": "j"}), "parse uid claim \"uid\"");
        check_refused(
            &mapping,
            json!({"sub": "j", "uid": "u", "groups": [1]}),
            "parse groups claim",
        );
        check_refused(
            &mapping,
            json!({"sub": "j", "uid": "u", "groups": {}}),
            "parse groups claim",
        );
        let elsewhere = json!({"sub": "j", "uid": "u", "_claim_names": {"groups": "src1"}});
        check_refused(&mapping, elsewhere, "distributed claims");
    }

    #[test]
    fn an_unverified_email_is_no_name() {
        let mapping = mapping(claim("email", ""));
        let verified = |verified: Value| json!({"email": "j@x", "email_verified": verified});
        assert_eq!(user(&mapping, verified(true.into())).unwrap().name, "j@x");
        assert_eq!(user(&mapping, json!({"email": "j@x"})).unwrap().name, "j@x");
        check_refused(&mapping, verified(false.into()), "email not verified");
        check_refused(&mapping, verified("true".into()), "not a boolean");
        check_refused(&mapping, json!({"email": ""}), "must have a name");
    }

    #[test]
    fn expressions_make_every_part_of_a_user() {
        let mapping = Mapping {
            groups: Some(Source::Expression(expression(
                "claims.roles.split(',').map(r, 'x:' + r)",
                CLAIMS,
            ))),
            uid: Some(Source::Expression(expression("claims.?uid.orValue('none')", CLAIMS))),
            extra: vec![
                ("example.org/tenant".to_owned(), expression("claims.tenant", CLAIMS)),
                ("example.org/empty".to_owned(), expression("''", CLAIMS)),
            ],
            ..mapping(Source::Expression(expression("'u:' + claims.sub", CLAIMS)))
        };
        let made =
            user(&mapping, json!({"sub": "j", "roles": "a,b", "tenant": ["t", ""]})).unwrap();
        assert_eq!((&*made.name, &*made.uid), ("u:j", "none"));
        assert_eq!(made.groups, ["x:a", "x:b"]);
        assert_eq!(made.extra["example.org/tenant"], ["t"]);
        assert_eq!(made.extra.len(), 1);
        check_refused(
            &mapping,
            json!({"sub": "j", "roles": "a", "tenant": 1}),
            "must return a string or a list of strings",
        );
        check_refused(&mapping, json!({"sub": 1, "roles": "a", "tenant": "t"}), "username");
        check_refused(&mapping, json!({"roles": "a"}), "No such key: sub");
    }

    #[test]
    fn rules_must_be_met() {
        let rule = |source: &str, variable, message: &str| Rule {
            expression: expression(source, variable),
            message: message.to_owned(),
        };
        let required =
            ClaimRule::Required { claim: "hd".to_owned(), value: "example.org".to_owned() };
        let mapping = Mapping {
            groups: Some(claim("groups", "")),
            claim_rules: vec![
                required,
                ClaimRule::Expression(rule(
                    "claims.exp - claims.nbf <= 86400.0",
                    CLAIMS,
                    "too long",
                )),
            ],
            user_rules: vec![rule(
                "!user.username.startsWith('system:') && user.groups.all(g, g != 'root')",
                USER,
                "reserved",
            )],
            ..mapping(claim("sub", ""))
        };
        let claims = |hd: Value, exp: i64, sub: &str, group: &str| json!({"hd": hd, "exp": exp, "nbf": 0, "sub": sub, "groups": [group]});
        let own = || Value::from("example.org");
        assert!(user(&mapping, claims(own(), 86400, "j", "dev")).is_ok());
        check_refused(&mapping, claims("other".into(), 1, "j", "dev"), "value does not match");
        check_refused(&mapping, claims(1.into(), 1, "j", "dev"), "parse claim hd");
        check_refused(&mapping, json!({"sub": "j"}), "required claim hd not present");
        check_refused(&mapping, claims(own(), 86401, "j", "dev"), "failed: too long");
        check_refused(&mapping, claims(own(), 1, "system:admin", "dev"), "failed: reserved");
        check_refused(&mapping, claims(own(), 1, "j", "root"), "failed: reserved");
    }
}
