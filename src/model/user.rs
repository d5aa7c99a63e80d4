//! Who is calling: the identity that authentication found, as Kubernetes names it.

use std::collections::BTreeMap;

use super::selector::is_subdomain;

/// The group that every authenticated user is in.
pub const GROUP_AUTHENTICATED: &str = "system:authenticated";
/// The group of callers without credentials.
pub const GROUP_UNAUTHENTICATED: &str = "system:unauthenticated";
/// The group that may do everything.
pub const GROUP_MASTERS: &str = "system:masters";
/// The group of all nodes.
pub const GROUP_NODES: &str = "system:nodes";
/// The group of all service accounts; with `:<namespace>` behind it, of those of a namespace.
pub const GROUP_SERVICE_ACCOUNTS: &str = "system:serviceaccounts";
/// The name of callers without credentials.
pub const USER_ANONYMOUS: &str = "system:anonymous";
/// The extra key that names the credential, as `X509SHA256=<hex>` for certificates.
pub const EXTRA_CREDENTIAL_ID: &str = "authentication.kubernetes.io/credential-id";

/// The extra key that names the node of a service account's pod.
pub const EXTRA_NODE_NAME: &str = "authentication.kubernetes.io/node-name";

const SERVICE_ACCOUNT_PREFIX: &str = "system:serviceaccount:";
const NODE_PREFIX: &str = "system:node:";
/// Bytes of an RFC 1123 label.
const DNS_LABEL_LENGTH_MAX: usize = 63;

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

    /// Namespace and name of the service account that the user is
    /// (`serviceaccount.SplitUsername`).
    pub fn service_account(&self) -> Option<(&str, &str)> {
        let rest = self.name.strip_prefix(SERVICE_ACCOUNT_PREFIX)?;
        let (namespace, name) = rest.split_once(':')?;
        let is_label = is_subdomain(namespace)
            && namespace.len() <= DNS_LABEL_LENGTH_MAX
            && !namespace.contains('.');
        (is_label && is_subdomain(name)).then_some((namespace, name))
    }

    /// The name of the node that the user is.
    pub fn node(&self) -> Option<&str> {
        self.name.strip_prefix(NODE_PREFIX).filter(|name| is_subdomain(name))
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

    #[track_caller]
    fn check_kind(name: &str, service_account: Option<(&str, &str)>, node: Option<&str>) {
        let user = User { name: name.to_owned(), ..User::default() };
        assert_eq!(user.service_account(), service_account, "{name}");
        assert_eq!(user.node(), node, "{name}");
    }

    #[test]
    fn service_accounts_and_nodes_are_known_by_well_formed_names_only() {
        check_kind("system:serviceaccount:ns:robot.one", Some(("ns", "robot.one")), None);
        check_kind("system:serviceaccount:ns:", None, None);
        check_kind("system:serviceaccount:ns", None, None);
        check_kind("system:serviceaccount::robot", None, None);
        check_kind("system:serviceaccount:a.b:robot", None, None);
        check_kind("system:serviceaccount:ns:robot:more", None, None);
        check_kind("system:serviceaccount:NS:robot", None, None);
        check_kind("system:node:worker-1.example.com", None, Some("worker-1.example.com"));
        check_kind("system:node:", None, None);
        check_kind("system:node:Worker", None, None);
        check_kind("bob", None, None);
    }

    #[test]
    fn the_authenticated_group_is_added_once_and_never_to_anonymous() {
        check("alice", &["dev"], &["dev", GROUP_AUTHENTICATED]);
        check("alice", &[GROUP_AUTHENTICATED], &[GROUP_AUTHENTICATED]);
        check("alice", &[GROUP_UNAUTHENTICATED], &[GROUP_UNAUTHENTICATED]);
        check(USER_ANONYMOUS, &[], &[]);
    }
}
