//! Which headers tell who is calling: never passed on from a client, in whatever spelling.
//!
//! Lax servers fold `_` to `-`, so names are compared folded. Most names are told apart from these by
//! their first byte.

use super::FrontProxies;

/// Names that always count, beside the configured ones.
const DEFAULT_PREFIXES: [&str; 2] = ["x-remote-", "impersonate-"];
const DEFAULT_NAMES: [&str; 2] = ["authorization", "proxy-authorization"];

/// The set of identity headers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdentityHeaders {
    names: Vec<String>,
    prefixes: Vec<String>,
    first_bytes: Vec<bool>,
}

impl IdentityHeaders {
    /// The default names and all those of the configurations, in any case.
    pub fn new(configs: &[&FrontProxies]) -> Self {
        let configured = configs.iter().flat_map(|config| {
            let names = config.username_headers.iter().chain(&config.uid_headers);
            names.chain(&config.group_headers).map(|name| fold(name))
        });
        let names: Vec<String> =
            DEFAULT_NAMES.iter().map(|&name| name.to_owned()).chain(configured).collect();
        let prefixes: Vec<String> = DEFAULT_PREFIXES
            .iter()
            .map(|&prefix| prefix.to_owned())
            .chain(
                configs.iter().flat_map(|config| &config.extra_prefixes).map(|prefix| fold(prefix)),
            )
            .filter(|prefix| !prefix.is_empty())
            .collect();
        let mut first_bytes = vec![false; 256];
        for name in names.iter().chain(&prefixes) {
            let first = name.bytes().next().map(usize::from);
            if let Some(slot) = first.and_then(|first| first_bytes.get_mut(first)) {
                *slot = true;
            }
        }
        // A folded name may begin with either of the two.
        if first_bytes.get(usize::from(b'-')) == Some(&true)
            && let Some(slot) = first_bytes.get_mut(usize::from(b'_'))
        {
            *slot = true;
        }
        Self { names, prefixes, first_bytes }
    }

    /// True when the header of that (lower-case) name carries identity.
    pub fn contains(&self, name: &str) -> bool {
        let Some(&first) = name.as_bytes().first() else { return false };
        if self.first_bytes.get(usize::from(first)) != Some(&true) {
            return false;
        }
        let name = name.as_bytes();
        self.names.iter().any(|known| known.len() == name.len() && begins(name, known.as_bytes()))
            || self.prefixes.iter().any(|prefix| begins(name, prefix.as_bytes()))
    }
}

/// True when `name`, with `_` read as `-`, begins with the folded `prefix`.
fn begins(name: &[u8], prefix: &[u8]) -> bool {
    name.len() >= prefix.len()
        && name.iter().zip(prefix).all(|(&byte, &wanted)| {
            byte == wanted || (byte == b'_' && wanted == b'-') || byte.eq_ignore_ascii_case(&wanted)
        })
}

fn fold(name: &str) -> String {
    name.to_ascii_lowercase().replace('_', "-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identity_is_recognized_in_every_spelling() {
        let config = FrontProxies {
            username_headers: vec!["X-Who".to_owned()],
            extra_prefixes: vec!["X_More-".to_owned()],
            ..FrontProxies::of_flags()
        };
        let headers = IdentityHeaders::new(&[&config]);
        for name in [
            "x-remote-user",
            "x_remote_user",
            "x-remote_user",
            "x-remote-group",
            "x-remote-uid",
            "x-remote-extra-scopes",
            "x_remote_extra_",
            "x-who",
            "x_who",
            "x-more-a",
            "x_more_a",
            "impersonate-user",
            "impersonate_anything",
            "authorization",
            "proxy_authorization",
        ] {
            assert!(headers.contains(name), "{name}");
        }
        for name in ["x-forwarded-for", "x-remot", "accept", "x-whom", "authorizations", "x-remote"]
        {
            assert!(!headers.contains(name), "{name}");
        }
    }
}
