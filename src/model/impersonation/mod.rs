//! Requests to act as somebody else: whom they want to be, what must be allowed for it, and whom
//! they become (`apiserver/pkg/endpoints/filters/impersonation`).
//!
//! There are several ways to be allowed. Each [`Mode`] that fits is an [`Attempt`]: a list of
//! questions for the authorizer. The first attempt of which all is allowed counts; when none is, the
//! caller hears why the first one failed.

use std::borrow::Cow;
use std::fmt::Write as _;

use http::{HeaderMap, HeaderValue};

use super::attributes::Attributes;
use super::field_error::FieldError;
use super::rejection::Rejection;
use super::request_info::decode_path;
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
    if let Some(error) = FieldError::domain_prefixed_path("extra.key", key) {
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

#[cfg(test)]
mod tests;
