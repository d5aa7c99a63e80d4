//! Who may act as whom, in upstream's order and words.

use super::*;
use crate::model::request_info::RequestInfo;
use http::Method;

type Lines<'a> = &'a [(&'static str, &'a str)];

fn read(lines: Lines<'_>) -> Result<Option<User>, Rejection> {
    let mut headers = HeaderMap::new();
    for (name, value) in lines {
        headers.append(*name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
    }
    wanted(&headers)
}

fn user(lines: Lines<'_>) -> User {
    read(lines).unwrap().unwrap()
}

#[track_caller]
fn check_refused(lines: Lines<'_>, expected: &str) {
    let rejection = read(lines).unwrap_err();
    assert_eq!(rejection.code(), 400);
    assert_eq!(rejection.message(), expected);
}

#[test]
fn headers_name_a_user_with_uid_groups_and_extra_keys() {
    let got = user(&[
        ("impersonate-user", "jürgen"),
        ("impersonate-uid", "u-1"),
        ("impersonate-group", "b,c"),
        ("impersonate-group", "a"),
        ("impersonate-extra-example.com%2fscope", "one"),
        ("impersonate-extra-example.com%2fscope", "two"),
        ("impersonate-extra-my_key", "three"),
        ("impersonate-extra-bad%2f%zz", "four"),
        ("impersonate-anything", "else"),
    ]);
    assert_eq!((&*got.name, &*got.uid), ("jürgen", "u-1"));
    assert_eq!(got.groups, ["b,c", "a"]);
    assert_eq!(got.extra["example.com/scope"], ["one", "two"]);
    assert_eq!(got.extra["my_key"], ["three"]);
    assert_eq!(got.extra["bad%2f%zz"], ["four"]);
    assert_eq!(got.extra.len(), 3);
}

#[test]
fn nobody_is_wanted_without_a_name_or_anything_that_needs_one() {
    assert_eq!(read(&[("x-other", "1"), ("if-match", "x")]), Ok(None));
    assert_eq!(read(&[("impersonate-user", ""), ("impersonate-uid", "")]), Ok(None));
    assert_eq!(read(&[("impersonate-nothing", "x"), ("impersonate_nothing", "x")]), Ok(None));
}

#[test]
fn what_needs_a_name_is_refused_without_one_in_upstreams_words() {
    check_refused(
        &[("impersonate-group", "a \"b\""), ("impersonate-group", "")],
        "requested &user.DefaultInfo{Name:\"\", UID:\"\", Groups:[]string{\"a \\\"b\\\"\", \"\"}, \
         Extra:map[string][]string(nil)} without impersonating a user name",
    );
    check_refused(
        &[("impersonate-user", ""), ("impersonate-uid", "u"), ("impersonate-extra-k", "v")],
        "requested &user.DefaultInfo{Name:\"\", UID:\"u\", Groups:[]string(nil), \
         Extra:map[string][]string{\"k\":[]string{\"v\"}}} without impersonating a user name",
    );
}

#[test]
fn what_servers_may_understand_differently_is_refused() {
    let two = [("impersonate-user", "a"), ("impersonate-user", "b")];
    check_refused(&two, "more than one impersonate-user header");
    let two = [("impersonate-user", "a"), ("impersonate-uid", ""), ("impersonate-uid", "b")];
    check_refused(&two, "more than one impersonate-uid header");
    let spelt = "is not supported: impersonate-* is spelt with hyphens";
    for name in ["impersonate_user", "impersonate_group", "impersonate-extra_scopes"] {
        let expected = format!("the {name} header {spelt}");
        check_refused(&[("impersonate-user", "a"), (name, "b")], &expected);
    }
    let mut headers = HeaderMap::new();
    headers.insert(USER, HeaderValue::from_bytes(b"a\xff").unwrap());
    assert_eq!(wanted(&headers).unwrap_err().code(), 400);
}

/// The modes that fit, with the groups that come of them.
#[track_caller]
fn check_modes(requestor: &User, lines: Lines<'_>, expected: &[(Mode, &[&str])]) {
    let wanted = user(lines);
    let request = Attributes::default();
    let attempts = Mode::ALL.iter().filter_map(|mode| mode.attempt(&wanted, requestor, &request));
    let got: Vec<_> = attempts.map(|attempt| (attempt.mode, attempt.user.groups)).collect();
    let expected: Vec<_> = expected
        .iter()
        .map(|(mode, groups)| (*mode, groups.iter().map(|&g| g.to_owned()).collect::<Vec<_>>()))
        .collect();
    assert_eq!(got, expected, "{lines:?}");
}

const AUTHENTICATED: &str = "system:authenticated";

fn others<'a>(groups: &'a [&'a str]) -> [(Mode, &'a [&'a str]); 2] {
    [(Mode::UserInfo, groups), (Mode::Legacy, groups)]
}

#[test]
fn groups_are_those_of_the_headers_or_those_that_every_such_user_has() {
    let alice = User { name: "alice".to_owned(), ..User::default() };
    let check = |lines: Lines<'_>, expected: &[(Mode, &[&str])]| {
        check_modes(&alice, lines, expected);
    };
    check(&[(USER, "bob")], &others(&[AUTHENTICATED]));
    check(&[(USER, "bob"), (GROUP, "b"), (GROUP, "a")], &others(&["b", "a", AUTHENTICATED]));
    check(&[(USER, "bob"), (GROUP, AUTHENTICATED)], &others(&[AUTHENTICATED]));
    check(&[(USER, "bob"), (GROUP, GROUP_UNAUTHENTICATED)], &others(&[GROUP_UNAUTHENTICATED]));
    check(&[(USER, "system:anonymous")], &others(&[GROUP_UNAUTHENTICATED]));
    check(&[(USER, "system:anonymous"), (GROUP, "a")], &others(&["a", GROUP_UNAUTHENTICATED]));
    let robot = "system:serviceaccount:ns:robot";
    let fixed: &[&str] = &[GROUP_SERVICE_ACCOUNTS, "system:serviceaccounts:ns", AUTHENTICATED];
    check(&[(USER, robot)], &[(Mode::ServiceAccount, fixed), (Mode::Legacy, fixed)]);
    check(&[(USER, robot), (UID, "1")], &[(Mode::Legacy, fixed)]);
    check(&[(USER, robot), (GROUP, "a")], &[(Mode::Legacy, &["a", AUTHENTICATED])]);
    let node = "system:node:n1";
    check(
        &[(USER, node)],
        &[(Mode::ArbitraryNode, &[GROUP_NODES, AUTHENTICATED]), (Mode::Legacy, &[AUTHENTICATED])],
    );
    check(&[(USER, node), (GROUP, "a")], &[(Mode::Legacy, &["a", AUTHENTICATED])]);
    check(&[(USER, "system:node:N1")], &others(&[AUTHENTICATED]));
}

#[test]
fn a_service_account_is_asked_about_its_own_node_without_naming_it() {
    let extra = [
        (EXTRA_NODE_NAME.to_owned(), vec!["n1".to_owned()]),
        ("b".to_owned(), vec!["x".to_owned()]),
    ];
    let mut robot = User {
        name: "system:serviceaccount:ns:robot".to_owned(),
        extra: extra.into(),
        ..User::default()
    };
    let node = user(&[(USER, "system:node:n1")]);
    let request = Attributes::default();
    let attempt = Mode::AssociatedNode.attempt(&node, &robot, &request).unwrap();
    assert_eq!(attempt.requestor.extra[EXTRA_NODE_KEYS], [EXTRA_NODE_NAME, "b"]);
    assert_eq!(attempt.requestor.extra.len(), 1);
    assert_eq!(
        questions(&attempt),
        ["impersonate-on:associated-node: /", "impersonate:associated-node nodes/* @authn"]
    );
    assert_eq!(attempt.user.name, "system:node:n1");
    let other = user(&[(USER, "system:node:n2")]);
    assert!(Mode::AssociatedNode.attempt(&other, &robot, &request).is_none());
    robot.name = "alice".to_owned();
    assert!(Mode::AssociatedNode.attempt(&node, &robot, &request).is_none());
}

/// `verb [namespace/]resource[/subresource]/name @group`.
fn question(asked: &Attributes<'_>) -> String {
    let Attributes { verb, namespace, resource, subresource, name, .. } = asked;
    let mut text = format!("{verb} ");
    for part in [namespace, resource, subresource].into_iter().filter(|part| !part.is_empty()) {
        text.push_str(part);
        text.push('/');
    }
    text.push_str(name);
    if text.ends_with(' ') {
        text.push('/');
    }
    match asked.group {
        "" => text,
        AUTHENTICATION_GROUP => text + " @authn",
        group => text + " @" + group,
    }
}

fn questions(attempt: &Attempt<'_>) -> Vec<String> {
    let texts = attempt.steps.iter().map(|step| match step {
        Step::One(asked) => question(asked),
        Step::AllOrEach(all, each) => format!("{} or {} more", question(all), each.len()),
        Step::Never(asked, reason) => format!("{}: {reason}", question(asked)),
    });
    texts.collect()
}

#[track_caller]
fn check_questions(mode: Mode, lines: Lines<'_>, expected: &[&str]) {
    let (wanted, alice) = (user(lines), User::default());
    let path = "/apis/g/v1/namespaces/n/things/a";
    let info = RequestInfo::parse(&Method::PUT, path, None).unwrap();
    let attempt = mode.attempt(&wanted, &alice, &Attributes::from(&info)).unwrap();
    assert_eq!(questions(&attempt), expected);
}

#[test]
fn each_part_of_the_wanted_user_is_asked_for_in_upstreams_order() {
    let lines: Lines<'_> = &[
        ("impersonate-extra-b.io%2fz", "2"),
        ("impersonate-extra-a.io%2fk", "1"),
        (GROUP, "y"),
        (GROUP, "x"),
        (UID, "u"),
        (USER, "bob"),
    ];
    check_questions(
        Mode::UserInfo,
        lines,
        &[
            "impersonate-on:user-info:update n/things/a @g",
            "impersonate:user-info users/bob @authn",
            "impersonate:user-info uids/u @authn",
            "impersonate:user-info groups/y @authn",
            "impersonate:user-info groups/x @authn",
            "impersonate:user-info userextras/a.io/k/1 @authn",
            "impersonate:user-info userextras/b.io/z/2 @authn",
        ],
    );
    check_questions(
        Mode::Legacy,
        lines,
        &[
            "impersonate users/bob",
            "impersonate uids/u @authn",
            "impersonate groups/y",
            "impersonate groups/x",
            "impersonate userextras/a.io/k/1 @authn",
            "impersonate userextras/b.io/z/2 @authn",
        ],
    );
    check_questions(
        Mode::ServiceAccount,
        &[(USER, "system:serviceaccount:ns:robot")],
        &[
            "impersonate-on:serviceaccount:update n/things/a @g",
            "impersonate:serviceaccount ns/serviceaccounts/robot @authn",
        ],
    );
    check_questions(
        Mode::Legacy,
        &[(USER, "system:serviceaccount:ns:robot")],
        &["impersonate ns/serviceaccounts/robot"],
    );
    check_questions(
        Mode::ArbitraryNode,
        &[(USER, "system:node:n1")],
        &[
            "impersonate-on:arbitrary-node:update n/things/a @g",
            "impersonate:arbitrary-node nodes/n1 @authn",
        ],
    );
    check_questions(
        Mode::Legacy,
        &[(USER, "system:node:n1")],
        &["impersonate users/system:node:n1"],
    );
}

#[test]
fn many_groups_or_extra_values_are_asked_for_at_once_first() {
    let groups = [(USER, "bob"), (GROUP, "a"), (GROUP, "b"), (GROUP, "c"), (GROUP, "d")];
    let questions = &[
        "impersonate-on:user-info:update n/things/a @g",
        "impersonate:user-info users/bob @authn",
        "impersonate:user-info groups/* @authn or 4 more",
    ];
    check_questions(Mode::UserInfo, &groups, questions);
    let key = "impersonate-extra-a.io%2fk";
    let extra = [(USER, "bob"), (key, "1"), (key, "2"), (key, "3"), (key, "4")];
    let questions = &[
        "impersonate-on:user-info:update n/things/a @g",
        "impersonate:user-info users/bob @authn",
        "impersonate:user-info userextras/*/* @authn or 4 more",
    ];
    check_questions(Mode::UserInfo, &extra, questions);
}

/// The last step of the constrained mode; legacy has one question more than the name's.
#[track_caller]
fn check_never(line: (&'static str, &str), expected: &str) {
    let (wanted, alice) = (user(&[(USER, "bob"), line]), User::default());
    let request = Attributes::default();
    let attempt = Mode::UserInfo.attempt(&wanted, &alice, &request).unwrap();
    let Some(Step::Never(_, reason)) = attempt.steps.last() else { panic!("{line:?}") };
    assert!(reason.starts_with("impersonating ") && reason.contains(expected), "{reason}");
    let legacy = Mode::Legacy.attempt(&wanted, &alice, &request).unwrap();
    assert!(matches!(legacy.steps.as_slice(), [Step::One(_), Step::One(_)]));
}

#[test]
fn some_groups_and_extra_keys_are_for_the_legacy_mode_only() {
    check_never((GROUP, ""), "the empty string group is not allowed");
    check_never((GROUP, GROUP_MASTERS), "the system:masters group is not allowed");
    check_never(("impersonate-extra-", "v"), "the empty string key in extra");
    check_never(
        ("impersonate-extra-scopes", "v"),
        "an invalid key in extra is not allowed: extra.key: Invalid value: \"scopes\": \
         must be a domain-prefixed path (such as \"acme.io/foo\")",
    );
    check_never(("impersonate-extra-%41.io%2fk", "v"), "Invalid value: \"A.io\": a lowercase RFC");
    check_never(("impersonate-extra-a.io%2f%20", "v"), "Invalid value: \" \": Invalid path");
    check_never(("impersonate-extra-a.io%2f%4b", "v"), "a non-lowercase key in extra");
    check_never(("impersonate-extra-a.io%2fk", ""), "the empty string value in extra");
}
