//! The query string as Kubernetes reads it: form encoding, first value wins, bare words are true.

use percent_encoding::percent_decode;

/// The decoded pairs of a query string, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// Decodes a raw query string; bytes that are not UTF-8 become replacement characters.
    pub fn parse(raw: Option<&str>) -> Self {
        let pairs = raw.unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
        let decoded = pairs.map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(key), decode(value))
        });
        Self(decoded.collect())
    }

    /// The first value of `key`.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    /// The first value of `key`, empty when there is none.
    pub fn text(&self, key: &str) -> &str {
        self.get(key).unwrap_or_default()
    }

    /// Every value of `key`, in order.
    pub fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    /// A boolean as upstream's conversion reads it: only `false` and `0` are false, and an empty
    /// value is true.
    pub fn flag(&self, key: &str) -> Option<bool> {
        self.get(key).map(|value| value != "false" && value != "0")
    }
}

/// The first value of `key` in a raw query string, without taking the others apart.
pub fn first(raw: Option<&str>, key: &str) -> Option<String> {
    let pairs = raw?.split('&').filter(|pair| !pair.is_empty());
    let found = pairs
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .find(|(name, _)| *name == key || (name.contains(['%', '+']) && decode(name) == key));
    found.map(|(_, value)| decode(value))
}

fn decode(text: &str) -> String {
    let spaced = text.replace('+', " ");
    percent_decode(spaced.as_bytes()).decode_utf8_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_value_is_found_without_the_others() {
        let raw = Some("timeoutSeconds=5&limit=1&%74imeout=3%73&timeout=4s");
        assert_eq!(first(raw, "timeout").as_deref(), Some("3s"));
        assert_eq!(first(raw, "limit").as_deref(), Some("1"));
        assert_eq!(first(raw, "time"), None);
        assert_eq!(first(None, "a"), None);
    }

    #[test]
    fn pairs_are_decoded_and_the_first_value_counts() {
        let query = Query::parse(Some("a=x%2Cy+z&a=2&watch&off=0&&%62=c%3Dd"));
        assert_eq!(query.get("a"), Some("x,y z"));
        assert_eq!(query.all("a").collect::<Vec<_>>(), ["x,y z", "2"]);
        assert_eq!(query.text("b"), "c=d");
        assert_eq!(
            (query.flag("watch"), query.flag("off"), query.flag("none")),
            (Some(true), Some(false), None)
        );
    }
}
