//! Content negotiation: what a client's Accept header asks for and what it therefore gets.
//!
//! Upstream's rules (`endpoints/handlers/negotiation`): clauses count by q and then by order, a
//! clause that asks for an unknown form is skipped, and q=0 is only a very low rank. Discovery has
//! a rule of its own: an aggregated clause anywhere wins over every plain one.

use std::cmp::Reverse;

use http::HeaderValue;
use serde_json::Value;

use super::query::Query;
use super::rejection::Rejection;

/// What 406 names as served where objects are.
pub const SERVED: &str = "application/json, application/yaml";
/// What 406 names as served where discovery documents are.
pub const SERVED_DISCOVERY: &str =
    "application/json, application/yaml, application/vnd.kubernetes.protobuf";
/// The content type of the aggregated discovery document in JSON.
pub const DISCOVERY_JSON: &str =
    "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
const DISCOVERY_YAML: &str = "application/yaml;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
const DISCOVERY_PROTOBUF: &str =
    "application/vnd.kubernetes.protobuf;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

/// How an answer is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Media {
    /// `application/json`
    Json,
    /// `application/yaml`
    Yaml,
    /// `application/vnd.kubernetes.protobuf`, for discovery documents only.
    Protobuf,
}

/// What an answer shows of the object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// The object or list itself.
    Object,
    /// A `meta.k8s.io/v1` Table.
    Table,
    /// `PartialObjectMetadata`, for lists `PartialObjectMetadataList`.
    Partial,
    /// The aggregated discovery document, v2.
    Discovery,
}

/// What a path can answer with; plain JSON is always there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offer {
    /// Objects in JSON and YAML, also as Table and metadata only.
    Objects,
    /// The same as a stream of events, for which YAML has no framing.
    Events,
    /// Discovery: plain documents and the aggregated one.
    Discovery,
    /// Discovery documents from before aggregation.
    LegacyDiscovery,
    /// Plain documents.
    Plain,
}

impl Offer {
    fn is_discovery(self) -> bool {
        matches!(self, Self::Discovery | Self::LegacyDiscovery)
    }
}

/// What was chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// The encoding.
    pub media: Media,
    /// The form.
    pub form: Form,
    /// The clause carries `pretty=1`.
    pub pretty: bool,
}

/// Chooses by the Accept header; `None` means 406 (see [`not_acceptable`]).
pub fn negotiate(accept: Option<&str>, offer: Offer) -> Option<Accepted> {
    let header = accept.map(str::trim).filter(|header| !header.is_empty()).unwrap_or("*/*");
    let mut clauses: Vec<Clause<'_>> = header.split(',').filter_map(Clause::parse).collect();
    sort(&mut clauses);
    let mut chosen = clauses.iter().filter_map(|clause| clause.accepted(offer));
    let first = chosen.next()?;
    let aggregated = (first.form != Form::Discovery)
        .then(|| chosen.find(|accepted| accepted.form == Form::Discovery))
        .flatten();
    Some(aggregated.unwrap_or(first))
}

/// Up to so many clauses Go's `sort.Slice` sorts by insertion, which decides what comes of an order that
/// contradicts itself.
const INSERTION_MAX: usize = 12;

/// Sorts as goautoneg: a greater quality comes first, and so does what is concrete, whatever its
/// quality; equals keep the client's order.
fn sort(clauses: &mut [Clause<'_>]) {
    if clauses.len() > INSERTION_MAX {
        clauses.sort_by_key(|clause| (Reverse(clause.quality), clause.wildcard()));
        return;
    }
    for end in 1..clauses.len() {
        for at in (1..=end).rev() {
            match (clauses.get(at), clauses.get(at - 1)) {
                (Some(later), Some(earlier)) if later.precedes(earlier) => {
                    clauses.swap(at, at - 1);
                }
                _ => break,
            }
        }
    }
}

/// Whether a Content-Type is that of the aggregated document, v2 in JSON; parameters may come in any
/// order, and others beside them (`ContentTypeIsGVK` in client-go).
pub fn is_aggregated(content_type: Option<&HeaderValue>) -> bool {
    let text = content_type.and_then(|value| value.to_str().ok());
    let clause = text.and_then(Clause::parse);
    clause.is_some_and(|clause| {
        clause.media_type == "application/json"
            && clause.accepted(Offer::Discovery).is_some_and(|found| found.form == Form::Discovery)
    })
}

/// 406 with what is served here.
pub fn not_acceptable(offer: Offer) -> Rejection {
    Rejection::NotAcceptable(if offer.is_discovery() { SERVED_DISCOVERY } else { SERVED })
}

/// Whether JSON is indented: `?pretty=` decides, else the clause or a person's tool asking.
pub fn wants_pretty(query: &Query, accepted: Accepted, user_agent: Option<&str>) -> bool {
    // An empty one counts as none; what is true is Go's to say (`strconv.ParseBool`).
    if let Some(value) = query.get("pretty").filter(|value| !value.is_empty()) {
        return matches!(value, "1" | "t" | "T" | "true" | "True" | "TRUE");
    }
    let agent = user_agent.unwrap_or_default();
    accepted.pretty || ["curl", "Wget", "Mozilla/5.0"].iter().any(|name| agent.starts_with(name))
}

impl Accepted {
    /// JSON and nothing special, as for errors.
    pub const JSON: Self = Self { media: Media::Json, form: Form::Object, pretty: false };

    /// The Content-Type of the answer.
    pub fn content_type(self) -> &'static str {
        match (self.media, self.form) {
            (Media::Json, Form::Discovery) => DISCOVERY_JSON,
            (Media::Yaml, Form::Discovery) => DISCOVERY_YAML,
            (Media::Protobuf, Form::Discovery) => DISCOVERY_PROTOBUF,
            (Media::Json, _) => "application/json",
            (Media::Yaml, _) => "application/yaml",
            (Media::Protobuf, _) => "application/vnd.kubernetes.protobuf",
        }
    }

    /// Writes `value`: compact JSON ends with a newline, indented JSON does not.
    pub fn encode(self, value: &Value, pretty: bool) -> Result<Vec<u8>, Rejection> {
        let written = match (self.media, pretty) {
            (Media::Yaml, _) => serde_saphyr::to_string(value).map_err(internal)?.into_bytes(),
            // Discovery documents only, which are written from their JSON.
            (Media::Protobuf, _) => return Err(internal("objects are not written in protobuf")),
            (Media::Json, true) => serde_json::to_vec_pretty(value).map_err(internal)?,
            (Media::Json, false) => {
                let mut bytes = serde_json::to_vec(value).map_err(internal)?;
                bytes.push(b'\n');
                bytes
            }
        };
        Ok(written)
    }
}

fn internal(error: impl std::fmt::Display) -> Rejection {
    Rejection::Internal(format!("writing an answer: {error}"))
}

/// One clause of an Accept header.
#[derive(Debug)]
struct Clause<'a> {
    media_type: &'a str,
    /// q in thousandths.
    quality: u16,
    kind: Option<&'a str>,
    group: Option<&'a str>,
    version: Option<&'a str>,
    pretty: bool,
    /// Asks for what is nowhere served: a stream of another kind, or an older server's answers.
    impossible: bool,
}

impl<'a> Clause<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let mut parts = text.split(';').map(str::trim);
        let media_type = parts.next().filter(|name| name.contains('/') || *name == "*")?;
        let mut clause = Self {
            media_type,
            quality: 1000,
            kind: None,
            group: None,
            version: None,
            pretty: false,
            impossible: false,
        };
        for (key, value) in parts.filter_map(|part| part.split_once('=')) {
            let value = value.trim();
            match key.trim() {
                "q" => clause.quality = thousandths(value),
                "as" => clause.kind = Some(value),
                "g" => clause.group = Some(value),
                "v" => clause.version = Some(value),
                "pretty" => clause.pretty = value == "1",
                "stream" => clause.impossible |= !matches!(value, "" | "watch"),
                "sv" => clause.impossible |= !value.is_empty(),
                _ => {}
            }
        }
        Some(clause)
    }

    fn wildcard(&self) -> bool {
        self.media_type.contains('*')
    }

    /// goautoneg's order, which is none: a concrete type with a low quality and a wildcard with a high
    /// one precede each other.
    fn precedes(&self, other: &Self) -> bool {
        let parts = |clause: &Self| {
            let (of, sub) = clause.media_type.split_once('/').unwrap_or(("*", "*"));
            (of == "*", sub == "*")
        };
        let ((any, any_sub), (other_any, other_any_sub)) = (parts(self), parts(other));
        self.quality > other.quality || (!any && other_any) || (!any_sub && other_any_sub)
    }

    fn accepted(&self, offer: Offer) -> Option<Accepted> {
        let media = match self.media_type {
            "*" | "*/*" | "application/*" | "application/json" => Media::Json,
            "application/yaml" if offer != Offer::Events => Media::Yaml,
            "application/vnd.kubernetes.protobuf" if offer.is_discovery() => Media::Protobuf,
            _ => return None,
        };
        if self.impossible {
            return None;
        }
        let objects = matches!(offer, Offer::Objects | Offer::Events);
        let form = match (self.group, self.version, self.kind) {
            (None, None, None) => Form::Object,
            (Some("meta.k8s.io"), Some("v1"), Some("Table")) if objects => Form::Table,
            (
                Some("meta.k8s.io"),
                Some("v1"),
                Some("PartialObjectMetadata" | "PartialObjectMetadataList"),
            ) if objects => Form::Partial,
            (Some("apidiscovery.k8s.io"), Some("v2"), Some("APIGroupDiscoveryList"))
                if offer == Offer::Discovery =>
            {
                Form::Discovery
            }
            _ => return None,
        };
        Some(Accepted { media, form, pretty: self.pretty })
    }
}

/// A quality in thousandths; what cannot be read counts as zero.
fn thousandths(value: &str) -> u16 {
    let (whole, fraction) = value.split_once('.').unwrap_or((value, ""));
    let digits: String = fraction.chars().chain("000".chars()).take(3).collect();
    match (whole, digits.parse::<u16>()) {
        ("1", Ok(0)) => 1000,
        ("0", Ok(part)) => part,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io";

    #[track_caller]
    fn check(accept: &str, offer: Offer, expected: Option<(Media, Form)>) {
        let got = negotiate(Some(accept), offer).map(|accepted| (accepted.media, accepted.form));
        assert_eq!(got, expected, "{accept}");
    }

    #[test]
    fn objects_are_negotiated_by_quality_then_order() {
        let json = Some((Media::Json, Form::Object));
        let yaml = Some((Media::Yaml, Form::Object));
        let cases = [
            ("", json),
            ("*/*", json),
            ("application/*", json),
            ("application/json;charset=utf-8", json),
            ("application/yaml", yaml),
            ("application/json;q=0.5,application/yaml;q=0.9", yaml),
            ("application/json;q=0.9, application/yaml", yaml),
            ("application/json;q=0.50,application/yaml;q=0.5", json),
            ("*/*,application/yaml", yaml),
            ("*/*;q=0.9,application/yaml;q=0.1", yaml),
            ("application/yaml;q=0.1,*/*;q=0.9", json),
            ("application/json;q=0", json),
            ("application/json;q=x,application/yaml;q=0.001", yaml),
            ("text/html", None),
            ("application/vnd.kubernetes.protobuf", None),
            ("application/vnd.kubernetes.protobuf,application/json", json),
            ("application/json;as=Table;v=v9;g=meta.k8s.io", None),
            ("application/json;as=Unknown;v=v1;g=meta.k8s.io,application/yaml", yaml),
            ("application/json;g=meta.k8s.io", None),
            (DISCOVERY_JSON, None),
        ];
        for (accept, expected) in cases {
            check(accept, Offer::Objects, expected);
        }
        assert_eq!(negotiate(None, Offer::Objects), Some(Accepted::JSON));
    }

    #[test]
    fn forms_are_chosen_only_where_they_are_offered() {
        let table = Some((Media::Json, Form::Table));
        let partial = Some((Media::Json, Form::Partial));
        let kubectl =
            format!("{TABLE},application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json");
        check(&kubectl, Offer::Objects, table);
        check(&kubectl, Offer::Events, table);
        check(&kubectl, Offer::Plain, Some((Media::Json, Form::Object)));
        check(TABLE, Offer::Discovery, None);
        check(
            "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1",
            Offer::Objects,
            partial,
        );
        check(
            "application/vnd.kubernetes.protobuf;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,\
             application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1",
            Offer::Objects,
            partial,
        );
        check(
            "application/yaml;as=Table;v=v1;g=meta.k8s.io",
            Offer::Objects,
            Some((Media::Yaml, Form::Table)),
        );
        check("application/yaml", Offer::Events, None);
    }

    #[test]
    fn an_aggregated_clause_anywhere_wins() {
        let aggregated = Some((Media::Json, Form::Discovery));
        check(DISCOVERY_JSON, Offer::Discovery, aggregated);
        check(&format!("application/json,{DISCOVERY_JSON};q=0.1"), Offer::Discovery, aggregated);
        check(
            "*/*;as=APIGroupDiscoveryList;v=v2;g=apidiscovery.k8s.io;profile=nopeer",
            Offer::Discovery,
            aggregated,
        );
        check(
            "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList",
            Offer::Discovery,
            None,
        );
        check("application/json", Offer::Discovery, Some((Media::Json, Form::Object)));
    }

    /// `TestAggregationEnabled` and the table of `discovery-openapi.md` §2.1.
    #[test]
    fn discovery_documents_come_in_protobuf_too_and_impossible_clauses_do_not_count() {
        let plain = |media| Some((media, Form::Object));
        let protobuf = "application/vnd.kubernetes.protobuf";
        let aggregated = DISCOVERY_PROTOBUF;
        check(protobuf, Offer::Discovery, plain(Media::Protobuf));
        check(protobuf, Offer::LegacyDiscovery, plain(Media::Protobuf));
        check(protobuf, Offer::Plain, None);
        check(aggregated, Offer::Discovery, Some((Media::Protobuf, Form::Discovery)));
        check(aggregated, Offer::LegacyDiscovery, None);
        check("", Offer::Discovery, plain(Media::Json));
        check("application/json;foo=bar", Offer::Discovery, plain(Media::Json));
        let with = |parameter: &str| format!("{DISCOVERY_JSON};{parameter}");
        let json = Some((Media::Json, Form::Discovery));
        for parameter in ["profile=nopeer", "profile=foo", "foo=bar", "sv=", "stream=watch"] {
            check(&with(parameter), Offer::Discovery, json);
        }
        for parameter in ["sv=v1", "stream=other"] {
            check(&with(parameter), Offer::Discovery, None);
            let other = format!("{},application/yaml", with(parameter));
            check(&other, Offer::Discovery, plain(Media::Yaml));
        }
        for part in ["g=apidiscovery.k8s.io;v=v2", "v=v2;as=APIGroupDiscoveryList"] {
            check(&format!("application/json;{part}"), Offer::Discovery, None);
        }
        let text = |offer| not_acceptable(offer).message();
        assert!(
            text(Offer::LegacyDiscovery).ends_with("yaml, application/vnd.kubernetes.protobuf")
        );
        assert!(text(Offer::Objects).ends_with(": application/json, application/yaml"));
    }

    #[test]
    fn people_and_those_who_ask_get_indented_json() {
        let pretty = |query: &str, agent: &str, accept: &str| {
            let accepted = negotiate(Some(accept), Offer::Plain).unwrap();
            wants_pretty(&Query::parse(Some(query)), accepted, Some(agent))
        };
        assert!(pretty("pretty=1", "kubectl/v1", "*/*"));
        assert!(pretty("", "curl/8", "*/*"));
        assert!(pretty("", "kubectl/v1", "application/json;pretty=1"));
        assert!(pretty("pretty=True", "kubectl/v1", "*/*"));
        assert!(pretty("pretty=", "curl/8", "*/*"));
        assert!(!pretty("pretty=false", "curl/8", "*/*"));
        assert!(!pretty("", "kubectl/v1", "*/*"));
    }

    #[test]
    fn values_are_written_as_upstream_writes_them() {
        let value = json!({"a": 1});
        let yaml = Accepted { media: Media::Yaml, ..Accepted::JSON };
        assert_eq!(Accepted::JSON.encode(&value, false).unwrap(), b"{\"a\":1}\n");
        assert_eq!(Accepted::JSON.encode(&value, true).unwrap(), b"{\n  \"a\": 1\n}");
        assert_eq!(yaml.encode(&value, true).unwrap(), b"a: 1\n");
    }
}
