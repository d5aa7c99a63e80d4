//! Who is calling: the identity that authentication found, as Kubernetes names it.

use std::collections::BTreeMap;

/// The group that every authenticated user is in.
pub const GROUP_AUTHENTICATED: &str = "system:authenticated";
/// The group of callers without credentials.
pub const GROUP_UNAUTHENTICATED: &str = "system:unauthenticated";
/// The group that may do everything.
pub const GROUP_MASTERS: &str = "system:masters";
/// The name of callers without credentials.
pub const USER_ANONYMOUS: &str = "system:anonymous";
/// The extra key that names the credential, as `X509SHA256=<hex>` for certificates.
pub const EXTRA_CREDENTIAL_ID: &str = "authentication.kubernetes.io/credential-id";

/// A caller's identity (`user.Info` upstream).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    /// The user name; never empty for an authenticated caller.
    pub name: String,
    /// The uid, empty when the authenticator knows none.
    pub uid: String,
    /// The groups in the order in which the authenticator gave them.
    pub groups: Vec<String>,
    /// Further facts, each key with its values in order.
    pub extra: BTreeMap<String, Vec<String>>,
}

impl User {
    /// The caller who brought no credentials.
    pub fn anonymous() -> Self {
        Self {
            name: USER_ANONYMOUS.to_owned(),
            groups: vec![GROUP_UNAUTHENTICATED.to_owned()],
            ..Self::default()
        }
    }

    /// True for the caller without credentials, also when a front proxy says so: Kubernetes'
    /// servers retire the connection on which such a request came (`measured-1.37.md` §3).
    pub fn is_anonymous(&self) -> bool {
        self.name == USER_ANONYMOUS
    }

    /// True when the user is in `group`.
    pub fn in_group(&self, group: &str) -> bool {
        self.groups.iter().any(|member| member == group)
    }

    /// Adds `system:authenticated` as upstream's group adder does: not to the anonymous user, and
    /// not when the user is in it or in `system:unauthenticated` already.
    #[must_use]
    pub fn authenticated(mut self) -> Self {
        let settled = self.is_anonymous()
            || self.in_group(GROUP_AUTHENTICATED)
            || self.in_group(GROUP_UNAUTHENTICATED);
        if !settled {
            self.groups.push(GROUP_AUTHENTICATED.to_owned());
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(name: &str, groups: &[&str], expected: &[&str]) {
        let user = User {
            name: name.to_owned(),
            groups: groups.iter().map(|&group| group.to_owned()).collect(),
            ..User::default()
        };
        assert_eq!(user.authenticated().groups, expected);
    }

    #[test]
    fn the_authenticated_group_is_added_once_and_never_to_anonymous() {
        check("alice", &["dev"], &["dev", GROUP_AUTHENTICATED]);
        check("alice", &[GROUP_AUTHENTICATED], &[GROUP_AUTHENTICATED]);
        check("alice", &[GROUP_UNAUTHENTICATED], &[GROUP_UNAUTHENTICATED]);
        check(USER_ANONYMOUS, &[], &[]);
    }
}
