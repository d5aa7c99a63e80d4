//! Expressions as Kubernetes evaluates them, wrong ones, and hostile ones.

use serde_json::json;

use super::*;

fn evaluated(source: &str, claims: &serde_json::Value) -> Result<Value, String> {
    Expression::parse(source, "claims")?.evaluate(&Scope::new("claims", claims))
}

#[track_caller]
fn check(source: &str, claims: &serde_json::Value, expected: impl Into<Value>) {
    assert_eq!(evaluated(source, claims), Ok(expected.into()), "{}", beginning(source));
}

#[track_caller]
fn check_error(source: &str, claims: &serde_json::Value, expected: &str) {
    let error = evaluated(source, claims).unwrap_err();
    assert!(error.contains(expected), "{}: {error}", beginning(source));
}

#[track_caller]
fn check_refused(source: &str, expected: &str) {
    let error = Expression::parse(source, "claims").unwrap_err();
    assert!(error.contains(expected), "{}: {error}", beginning(source));
}

fn beginning(source: &str) -> &str {
    source.get(..80).unwrap_or(source)
}

#[test]
fn claims_are_read_as_kubernetes_reads_them() {
    let claims = json!({
        "sub": "jane",
        "roles": "admin,dev",
        "groups": ["a", "b"],
        "level": 3,
        "email_verified": true,
        "nested": {"example.com/org": {"in": "x"}, "list": [{"k": "v"}]},
        "kubernetes.io": {"namespace": "ns"},
        "gone": null,
    });
    check("claims.sub", &claims, "jane");
    check("'oidc:' + claims.sub", &claims, "oidc:jane");
    check("claims['sub'].upperAscii()", &claims, "JANE");
    check("claims.roles.split(',')[1]", &claims, "dev");
    check("claims.level", &claims, Value::Float(3.0));
    check("claims.level > 2", &claims, Value::Bool(true));
    check("claims.groups.filter(g, g != 'a')", &claims, vec!["b"]);
    check("claims.groups.map(g, 'x-' + g)", &claims, vec!["x-a", "x-b"]);
    check("claims.groups.exists(g, g == 'b') && 'a' in claims.groups", &claims, Value::Bool(true));
    check("claims.groups.exists_one(g, g.startsWith('a'))", &claims, Value::Bool(true));
    check("claims.nested.list[0].k", &claims, "v");
    check("claims.nested.list.map(e, e.k)", &claims, vec!["v"]);
    check("claims.kubernetes__dot__io.namespace", &claims, "ns");
    check("claims.nested.example__dot__com__slash__org.__in__", &claims, "x");
    check("claims.?kubernetes__dot__io.namespace.orValue('')", &claims, "ns");
    check("claims.sub.matches('^j[a-z]+$')", &claims, Value::Bool(true));
    check("size(claims.groups) == 2 ? 'two' : 'other'", &claims, "two");
    check("claims.gone == null", &claims, Value::Bool(true));
}

#[test]
fn missing_claims_are_asked_for_by_has_and_optionals() {
    let claims = json!({"sub": "jane", "nested": {"a": "b"}});
    check("has(claims.sub)", &claims, Value::Bool(true));
    check("has(claims.email)", &claims, Value::Bool(false));
    check("has(claims.nested.a) && !has(claims.nested.b)", &claims, Value::Bool(true));
    check("claims.?email.orValue('none')", &claims, "none");
    check("claims.?sub.orValue('none')", &claims, "jane");
    check("claims.?email_verified.orValue(true)", &claims, Value::Bool(true));
    check("claims.?nested.?a.orValue('none')", &claims, "b");
    check("claims.?nested.?x.orValue('none')", &claims, "none");
    check("claims.?x.?y.orValue('none')", &claims, "none");
    check("claims.?nested.a.orValue('none')", &claims, "b");
    check("claims[?'email'].hasValue()", &claims, Value::Bool(false));
    check("has(claims.email) ? claims.email : claims.sub", &claims, "jane");
    check_error("claims.email", &claims, "No such key: email");
}

#[test]
fn wrong_types_are_errors_and_never_true() {
    let claims = json!({"sub": "jane", "n": 1, "groups": ["admin"], "admin": "yes"});
    // The library by itself says false, which `!` would make true.
    for source in [
        "!claims.sub.is_admin",
        "!has(claims.sub.is_admin)",
        "!has(claims.groups.admin)",
        "claims.groups.admin",
        "claims.groups['admin']",
        "claims.sub[0] == 'j'",
        "claims.n + 'x' == '1x'",
        "claims.sub + claims.n == ''",
        "claims.n.startsWith('1')",
        "!claims.sub",
        "claims.sub && true",
        "claims.sub.all(c, true)",
        "claims.?sub.x.orValue(false)",
        "claims.n < 'a'",
        "1 / 0 == 1",
        "[1][5] == 1",
        "-9223372036854775808 - 1 == 0",
    ] {
        let result = evaluated(source, &claims);
        assert!(!matches!(result, Ok(Value::Bool(true))), "{source}: {result:?}");
    }
    check_error("!claims.sub.is_admin", &claims, "No such overload");
    let scope = Scope::new("claims", &claims);
    let parsed = |source| Expression::parse(source, "claims").unwrap();
    assert!(parsed("claims.sub").evaluate_bool(&scope).unwrap_err().contains("a boolean"));
    assert!(parsed("true").evaluate_text(&scope, "uid").unwrap_err().contains("return a string"));
    assert!(parsed("[1]").evaluate_texts(&scope).unwrap_err().contains("list of strings"));
    assert!(parsed("{'a': 'b'}").evaluate_texts(&scope).unwrap_err().contains("list of strings"));
    assert_eq!(parsed("null").evaluate_texts(&scope), Ok(vec![]));
    assert_eq!(parsed("['', 'a']").evaluate_texts(&scope), Ok(vec!["a".to_owned()]));
}

#[test]
fn what_does_not_compile_upstream_is_refused_at_load() {
    check_refused("", "compilation failed");
    check_refused("claims.", "compilation failed");
    check_refused("claims.sub ==", "compilation failed");
    check_refused("'unterminated", "compilation failed");
    check_refused("user.username == ''", "undeclared reference to 'user'");
    check_refused("claims.groups.all(g, h == '')", "undeclared reference to 'h'");
    check_refused("g == '' || claims.groups.all(g, g == '')", "undeclared reference to 'g'");
    check_refused("shell('rm')", "undeclared reference to 'shell'");
    check_refused("claims.sub.shout()", "undeclared reference to 'shout'");
    check_refused("@step(true)", "compilation failed");
    check_refused("google.protobuf.Duration{seconds: 1}", "messages cannot be made");
    check_refused("Claims{}", "messages cannot be made");
    assert!(Expression::parse("user.username != ''", "user").is_ok());
    assert!(Expression::parse("sets.contains(claims.groups, ['a'])", "claims").is_ok());
}

#[test]
fn hostile_expressions_cost_little_and_fail() {
    let claims = json!({
        "groups": (0..500).map(|n| n.to_string()).collect::<Vec<_>>(),
        "text": "x".repeat(10_000),
    });
    check_refused(&"a".repeat(LENGTH_MAX + 1), "at most 10240 are allowed");
    let open = LENGTH_MAX / 2 - 4;
    check_refused(&format!("{}1{}", "(".repeat(open), ")".repeat(open)), "compilation failed");
    check_refused(&format!("1{}", "+1".repeat(open)), "more than 64 levels");
    check_refused(&format!("claims{}", ".a".repeat(open)), "more than 64 levels");
    check_refused(&"[".repeat(LENGTH_MAX), "compilation failed");
    check_refused(&"!".repeat(LENGTH_MAX), "compilation failed");
    check_refused(&"-".repeat(LENGTH_MAX), "compilation failed");
    let long = "x".repeat(LENGTH_MAX - 2);
    check(&format!("'{long}'"), &claims, &*long);
    let nested =
        "claims.groups.all(a, claims.groups.all(b, claims.groups.all(c, a + b + c != '')))";
    check_error(nested, &claims, "takes too long");
    let hidden =
        "claims.groups.exists(a, claims.groups.exists(b, claims.groups.exists(c, c == '')))";
    check_error(hidden, &claims, "takes too long");
    let doubled = format!("['xxxxxxxxxx']{}[0]", ".map(x, x + x)".repeat(13));
    check(&format!("size({doubled})"), &claims, Value::Int(10 << 13));
    let doubled = format!("[claims.text]{}[0] == ''", ".map(x, x + x)".repeat(20));
    check_error(&doubled, &claims, "too large");
    let tree = format!("[1]{} == []", ".map(x, [x, x])".repeat(25));
    check_error(&tree, &claims, "the expression ");
    check_error("claims.text.replace('x', claims.text).size() > 0", &claims, "the expression ");
}

#[test]
fn the_fields_that_it_selects_are_known() {
    let selects = |source, field| Expression::parse(source, "claims").unwrap().selects(field);
    assert!(selects("claims.email", "email"));
    assert!(selects("'x' + claims.?email.orValue('')", "email"));
    assert!(selects("claims.groups.all(g, g == claims.email)", "email"));
    assert!(selects("has(claims.email_verified)", "email_verified"));
    assert!(!selects("claims.email_verified", "email"));
    assert!(!selects("claims.nested.email", "email"));
    assert!(!selects("claims['email']", "email"));
}
