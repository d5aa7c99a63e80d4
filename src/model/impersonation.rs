//! Requests to act as somebody else: whom they want to be, what must be allowed for it, and whom
//! they become (`apiserver/pkg/endpoints/filters/impersonation`).
//!
//! There are several ways to be allowed. Each [`Mode`] that fits is an [`Attempt`]: a list of
//! questions for the authorizer. The first attempt of which all is allowed counts; when none is, the
//! caller hears why the first one failed.

use std::borrow::Cow;
use std::fmt::Write as _;

use http::{HeaderMap, HeaderValue};
use serde_json::json;

use super::api_service::NOT_A_SUBDOMAIN;
use super::attributes::Attributes;
use super::field_error::FieldError;
use super::rejection::Rejection;
use super::request_info::decode_path;
use super::selector::is_subdomain;
use super::user::{
    EXTRA_NODE_NAME, GROUP_MASTERS, GROUP_NODES, GROUP_SERVICE_ACCOUNTS, GROUP_UNAUTHENTICATED,
    User,
};

/// How the names of all these headers begin.
const STEM: &str = "impersonate";
const USER: &str = "impersonate-user";
const GROUP: &str = "impersonate-group";
const UID: &str = "impersonate-uid";
const EXTRA_PREFIX: &str = "impersonate-extra-";

const AUTHENTICATION_GROUP: &str = "authentication.k8s.io";
/// The extra key in place of all others when a service account asks to be its own node.
const EXTRA_NODE_KEYS: &str = "authentication.kubernetes.io/associated-node-keys";
/// Groups or extra values from which on all of them are asked for at once first.
const MANY: usize = 4;
/// What may stand after the first `/` of an extra key, beside letters and digits.
const PATH_MARKS: &[u8] = b"/-._~%!$&'()*+,;=:";
const NOT_A_PATH: &str =
    "Invalid path (regex used for validation is '[A-Za-z0-9/\\-._~%!$&'()*+,;=:]+')";

/// Whom a request's headers ask to be, as they stand; `None` for nobody else. An empty name alone is
/// nobody, as upstream has it.
pub fn wanted(headers: &HeaderMap) -> Result<Option<User>, Rejection> {
    if !headers.keys().any(|name| name.as_str().starts_with(STEM)) {
        return Ok(None);
    }
    let mut wanted = User::default();
    let (mut named, mut identified, mut others) = (false, false, false);
    for (name, value) in headers {
        match name.as_str() {
            USER => once(&mut named, &mut wanted.name, name.as_str(), value)?,
            UID => once(&mut identified, &mut wanted.uid, name.as_str(), value)?,
            GROUP => {
                others = true;
                wanted.groups.push(text(name.as_str(), value)?);
            }
            name => {
                let Some(key) = name.strip_prefix(EXTRA_PREFIX) else {
                    check_spelling(name)?;
                    continue;
                };
                others = true;
                // A malformed key is kept as it is.
                let key = decode_path(key).map_or_else(|_| key.to_owned(), Cow::into_owned);
                wanted.extra.entry(key).or_default().push(text(name, value)?);
            }
        }
    }
    if !wanted.name.is_empty() {
        return Ok(Some(wanted));
    }
    if others || !wanted.uid.is_empty() {
        let wanted = in_go_syntax(&wanted);
        let text = format!("requested {wanted} without impersonating a user name");
        return Err(Rejection::BadRequest(text));
    }
    Ok(None)
}

/// Takes a value that may be given once: of two, servers may honour different ones.
fn once(
    seen: &mut bool,
    field: &mut String,
    name: &str,
    value: &HeaderValue,
) -> Result<(), Rejection> {
    if *seen {
        return Err(Rejection::BadRequest(format!("more than one {name} header")));
    }
    *seen = true;
    *field = text(name, value)?;
    Ok(())
}

fn text(name: &str, value: &HeaderValue) -> Result<String, Rejection> {
    match std::str::from_utf8(value.as_bytes()) {
        Ok(text) => Ok(text.to_owned()),
        Err(_) => Err(Rejection::BadRequest(format!("the {name} header is not UTF-8"))),
    }
}

/// Refuses names that a lax server would take for one of ours: whoever sent one meant to have fewer
/// rights than the request would have without it.
fn check_spelling(name: &str) -> Result<(), Rejection> {
    if !name.contains('_') {
        return Ok(());
    }
    let folded = name.replace('_', "-");
    if matches!(&*folded, USER | GROUP | UID) || folded.starts_with(EXTRA_PREFIX) {
        let text = format!("the {name} header is not supported: {STEM}-* is spelt with hyphens");
        return Err(Rejection::BadRequest(text));
    }
    Ok(())
}

/// As Go's `%#v` writes it, which is what upstream answers.
fn in_go_syntax(user: &User) -> String {
    let list = |values: &[String]| match values {
        [] => "[]string(nil)".to_owned(),
        values => {
            let quoted: Vec<String> = values.iter().map(|value| format!("{value:?}")).collect();
            format!("[]string{{{}}}", quoted.join(", "))
        }
    };
    let mut extra = String::from("map[string][]string");
    if user.extra.is_empty() {
        extra.push_str("(nil)");
    } else {
        let entries: Vec<String> =
            user.extra.iter().map(|(key, values)| format!("{key:?}:{}", list(values))).collect();
        // Writing to a string cannot fail.
        let _ = write!(extra, "{{{}}}", entries.join(", "));
    }
    let groups = list(&user.groups);
    format!(
        "&user.DefaultInfo{{Name:{:?}, UID:{:?}, Groups:{groups}, Extra:{extra}}}",
        user.name, user.uid
    )
}

/// A way to be allowed to act as somebody else; those before `Legacy` are constrained ones: the
/// request itself must be allowed, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// A service account acts as the node on which its pod runs.
    AssociatedNode,
    /// Somebody acts as a node.
    ArbitraryNode,
    /// Somebody acts as a service account.
    ServiceAccount,
    /// Somebody acts as any other user.
    UserInfo,
    /// The verb `impersonate`, which is for all requests alike.
    Legacy,
}

/// One way to be allowed, and what comes of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt<'a> {
    /// The way.
    pub mode: Mode,
    /// Who asks, as the authorizer shall see it.
    pub requestor: Cow<'a, User>,
    /// What must be allowed, in this order.
    pub steps: Vec<Step<'a>>,
    /// Whom the request becomes.
    pub user: User,
}

/// One thing that must be allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step<'a> {
    /// This.
    One(Attributes<'a>),
    /// The first, which covers all of the others; else each of these.
    AllOrEach(Attributes<'a>, Vec<Attributes<'a>>),
    /// What nobody may do in this mode, and why.
    Never(Attributes<'a>, String),
}

impl Mode {
    /// In the order in which they are tried.
    pub const ALL: [Self; 5] = [
        Self::AssociatedNode,
        Self::ArbitraryNode,
        Self::ServiceAccount,
        Self::UserInfo,
        Self::Legacy,
    ];

    /// As it stands in verbs, with the verb `impersonate` before it; empty for `Legacy`.
    pub fn name(self) -> &'static str {
        match self {
            Self::AssociatedNode => "associated-node",
            Self::ArbitraryNode => "arbitrary-node",
            Self::ServiceAccount => "serviceaccount",
            Self::UserInfo => "user-info",
            Self::Legacy => "",
        }
    }

    /// What this mode asks for when `requestor` sends `request` and wants to be `wanted`; `None`
    /// when the mode is not for such users.
    pub fn attempt<'a>(
        self,
        wanted: &'a User,
        requestor: &'a User,
        request: &Attributes<'a>,
    ) -> Option<Attempt<'a>> {
        self.fits(wanted, requestor).then(|| Attempt {
            mode: self,
            requestor: self.requestor(requestor),
            steps: self.steps(wanted, request),
            user: self.user(wanted),
        })
    }

    fn fits(self, wanted: &User, requestor: &User) -> bool {
        let name_only =
            wanted.uid.is_empty() && wanted.groups.is_empty() && wanted.extra.is_empty();
        match self {
            Self::AssociatedNode => {
                let own_node = match requestor.extra.get(EXTRA_NODE_NAME).map(Vec::as_slice) {
                    Some([node]) => Some(node.as_str()),
                    _ => None,
                };
                name_only
                    && wanted.node().is_some()
                    && requestor.service_account().is_some()
                    && wanted.node() == own_node
            }
            Self::ArbitraryNode => name_only && wanted.node().is_some(),
            Self::ServiceAccount => name_only && wanted.service_account().is_some(),
            Self::UserInfo => wanted.node().is_none() && wanted.service_account().is_none(),
            Self::Legacy => true,
        }
    }

    /// A service account is judged for its own node alike, whichever node that is.
    fn requestor(self, requestor: &User) -> Cow<'_, User> {
        if self != Self::AssociatedNode {
            return Cow::Borrowed(requestor);
        }
        let keys = requestor.extra.keys().cloned().collect();
        let extra = [(EXTRA_NODE_KEYS.to_owned(), keys)].into();
        Cow::Owned(User { extra, ..requestor.clone() })
    }

    fn steps<'a>(self, wanted: &'a User, request: &Attributes<'a>) -> Vec<Step<'a>> {
        let mut steps = Vec::new();
        if self != Self::Legacy {
            let verb = format!("impersonate-on:{}:{}", self.name(), request.verb).into();
            steps.push(Step::One(Attributes { verb, ..request.clone() }));
        }
        steps.push(Step::One(self.name_asked(wanted)));
        if !wanted.uid.is_empty() {
            let uid = self.asks(AUTHENTICATION_GROUP, "uids", &wanted.uid);
            steps.push(Step::One(uid));
        }
        self.add_groups(&mut steps, wanted);
        self.add_extra(&mut steps, wanted);
        steps
    }

    fn name_asked(self, wanted: &User) -> Attributes<'_> {
        let group = self.group();
        match (wanted.node(), wanted.service_account()) {
            (Some(_), _) if self == Self::AssociatedNode => self.asks(group, "nodes", "*"),
            (Some(node), _) if self != Self::Legacy => self.asks(group, "nodes", node),
            (_, Some((namespace, name))) => {
                Attributes { namespace, ..self.asks(group, "serviceaccounts", name) }
            }
            _ => self.asks(group, "users", &wanted.name),
        }
    }

    fn add_groups<'a>(self, steps: &mut Vec<Step<'a>>, wanted: &'a User) {
        let asks = |name| self.asks(self.group(), "groups", name);
        let groups = &wanted.groups;
        if self != Self::Legacy {
            let never = |name, group: &str| {
                let reason = format!("impersonating the {group} group is not allowed");
                Step::Never(asks(name), reason)
            };
            if groups.iter().any(String::is_empty) {
                return steps.push(never("", "empty string"));
            }
            if wanted.in_group(GROUP_MASTERS) {
                return steps.push(never(GROUP_MASTERS, GROUP_MASTERS));
            }
        }
        let each: Vec<Attributes<'a>> = groups.iter().map(|group| asks(group)).collect();
        self.add(steps, each, asks("*"), groups.len() >= MANY);
    }

    fn add_extra<'a>(self, steps: &mut Vec<Step<'a>>, wanted: &'a User) {
        let asks = |subresource, name| Attributes {
            subresource,
            ..self.asks(AUTHENTICATION_GROUP, "userextras", name)
        };
        if self != Self::Legacy
            && let Some(reason) = wanted.extra.iter().find_map(|(key, values)| fault(key, values))
        {
            return steps.push(Step::Never(asks("", ""), reason));
        }
        let pairs =
            wanted.extra.iter().flat_map(|(key, values)| values.iter().map(move |v| (key, v)));
        let each: Vec<Attributes<'a>> = pairs.map(|(key, value)| asks(key, value)).collect();
        let many = each.len() >= MANY;
        self.add(steps, each, asks("*", "*"), many);
    }

    fn add<'a>(
        self,
        steps: &mut Vec<Step<'a>>,
        each: Vec<Attributes<'a>>,
        all: Attributes<'a>,
        many: bool,
    ) {
        if many && self != Self::Legacy {
            steps.push(Step::AllOrEach(all, each));
        } else {
            steps.extend(each.into_iter().map(Step::One));
        }
    }

    /// The API group of users, groups and their like.
    fn group(self) -> &'static str {
        if self == Self::Legacy { "" } else { AUTHENTICATION_GROUP }
    }

    fn asks<'a>(self, group: &'a str, resource: &'a str, name: &'a str) -> Attributes<'a> {
        let verb = match self {
            Self::Legacy => Cow::Borrowed("impersonate"),
            _ => Cow::Owned(format!("impersonate:{}", self.name())),
        };
        let version = "v1";
        Attributes { verb, is_resource: true, group, version, resource, name, ..Default::default() }
    }

    /// Whom the request becomes: of the caller itself nothing is left.
    fn user(self, wanted: &User) -> User {
        let mut user = wanted.clone();
        if self != Self::Legacy && wanted.node().is_some() {
            user.groups = vec![GROUP_NODES.to_owned()];
        } else if let Some((namespace, _)) = wanted.service_account()
            && wanted.groups.is_empty()
        {
            let of_namespace = format!("{GROUP_SERVICE_ACCOUNTS}:{namespace}");
            user.groups = vec![GROUP_SERVICE_ACCOUNTS.to_owned(), of_namespace];
        }
        if user.is_anonymous() && !user.in_group(GROUP_UNAUTHENTICATED) {
            user.groups.push(GROUP_UNAUTHENTICATED.to_owned());
        }
        user.authenticated()
    }
}

/// Why an extra key with these values is refused in constrained modes.
fn fault(key: &str, values: &[String]) -> Option<String> {
    if key.is_empty() {
        return Some("impersonating the empty string key in extra is not allowed".to_owned());
    }
    if let Some((part, detail)) = key_fault(key) {
        let error = FieldError::invalid("extra.key", &json!(part), detail);
        return Some(format!("impersonating an invalid key in extra is not allowed: {error}"));
    }
    if key.chars().any(char::is_uppercase) {
        let text = format!("impersonating a non-lowercase key in extra is not allowed: {key:?}");
        return Some(text);
    }
    values
        .iter()
        .any(String::is_empty)
        .then(|| "impersonating the empty string value in extra is not allowed".to_owned())
}

/// What is wrong with a key that should be a domain and a path (`IsDomainPrefixedPath`).
fn key_fault(key: &str) -> Option<(&str, &'static str)> {
    let parts = key.split_once('/').filter(|(host, path)| !host.is_empty() && !path.is_empty());
    let Some((host, path)) = parts else {
        return Some((key, "must be a domain-prefixed path (such as \"acme.io/foo\")"));
    };
    if !is_subdomain(host) {
        return Some((host, NOT_A_SUBDOMAIN));
    }
    let fits = |byte: &u8| byte.is_ascii_alphanumeric() || PATH_MARKS.contains(byte);
    (!path.as_bytes().iter().all(fits)).then_some((path, NOT_A_PATH))
}

#[cfg(test)]
mod tests {
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
        let attempts =
            Mode::ALL.iter().filter_map(|mode| mode.attempt(&wanted, requestor, &request));
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
            &[
                (Mode::ArbitraryNode, &[GROUP_NODES, AUTHENTICATED]),
                (Mode::Legacy, &[AUTHENTICATED]),
            ],
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
        check_never(
            ("impersonate-extra-%41.io%2fk", "v"),
            "Invalid value: \"A.io\": a lowercase RFC",
        );
        check_never(("impersonate-extra-a.io%2f%20", "v"), "Invalid value: \" \": Invalid path");
        check_never(("impersonate-extra-a.io%2f%4b", "v"), "a non-lowercase key in extra");
        check_never(("impersonate-extra-a.io%2fk", ""), "the empty string value in extra");
    }
}
