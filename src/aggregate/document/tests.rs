//! Every form of a document, and what conditional requests and encodings get.

use std::io::Read as _;

use flate2::bufread::GzDecoder;
use http_body_util::BodyExt as _;
use tokio::runtime::Handle;

use super::*;
use crate::model::accept::Offer;
use crate::model::query::Query;

const JSON: &str = "{\"kind\":\"APIGroupList\",\"apiVersion\":\"v1\",\"groups\":[]}\n";
const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

/// A long document of three blocks.
fn long(aggregated: bool) -> Document {
    let names: Vec<String> = (0..20_000).map(|at| format!("\"group{at}\",")).collect();
    let names = names.concat();
    let texts = ["{\"kind\":\"List\",\"items\":[", &names, "\"\"]}\n"];
    let blocks = texts.map(|text| Arc::new(Block::new(text.as_bytes())));
    Document::of_blocks(&blocks, aggregated)
}

async fn respond(document: &Document, lines: &[(&'static str, &str)]) -> Response<Body> {
    let mut headers = HeaderMap::new();
    for (name, value) in lines {
        headers.append(*name, HeaderValue::from_str(value).unwrap());
    }
    let negotiated = Negotiated::new(&headers, &Query::parse(None), Offer::Discovery).unwrap();
    let background = Background::new(Handle::current());
    document.respond(&headers, negotiated, &background).await.unwrap()
}

async fn read(answer: Response<Body>) -> Vec<u8> {
    let told: usize = answer.headers()["content-length"].to_str().unwrap().parse().unwrap();
    let body = answer.into_body().collect().await.unwrap().to_bytes().to_vec();
    assert_eq!(body.len(), told);
    body
}

fn lines(answer: &Response<Body>, name: &str) -> Vec<String> {
    let values = answer.headers().get_all(name).iter();
    values.map(|value| value.to_str().unwrap().to_owned()).collect()
}

fn gunzip(bytes: &[u8]) -> Vec<u8> {
    let (mut decoder, mut out) = (GzDecoder::new(bytes), Vec::new());
    decoder.read_to_end(&mut out).unwrap();
    assert!(decoder.into_inner().is_empty(), "one member, nothing behind it");
    out
}

#[tokio::test]
async fn a_legacy_document_is_json_without_a_tag() {
    let answer = respond(&Document::of_json(JSON.into()), &[]).await;
    assert_eq!(lines(&answer, "content-type"), ["application/json"]);
    for name in ["etag", "vary", "cache-control", "content-encoding"] {
        assert_eq!(lines(&answer, name), [""; 0], "{name}");
    }
    assert_eq!(read(answer).await, JSON.as_bytes());
}

#[tokio::test]
async fn an_aggregated_document_has_a_tag_and_varies() {
    let answer = respond(&long(true), &[("accept", AGGREGATED)]).await;
    assert_eq!(lines(&answer, "content-type"), [AGGREGATED]);
    assert_eq!(lines(&answer, "vary"), ["Accept"]);
    assert_eq!(lines(&answer, "cache-control"), ["public"]);
    let etag = lines(&answer, "etag").remove(0);
    assert_eq!(etag.len(), 130);
    let hex = etag.trim_matches('"');
    assert!(hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'A'..=b'F')), "{etag}");
    assert!(read(answer).await.ends_with(b"\"\"]}\n"));
}

#[tokio::test]
async fn a_client_that_has_it_is_told_so() {
    let document = long(true);
    let etag = document.etag().unwrap().to_owned();
    let known = [
        etag.clone(),
        format!("W/{etag}"),
        format!("\"other\", {etag}"),
        format!("\"other\" ,W/{etag}"),
        "*".to_owned(),
    ];
    for tag in known {
        let answer = respond(&document, &[("accept", AGGREGATED), ("if-none-match", &tag)]).await;
        assert_eq!(answer.status(), 304, "{tag}");
        assert_eq!(lines(&answer, "etag"), [&*etag]);
        assert_eq!(lines(&answer, "vary"), ["Accept"]);
        assert_eq!(lines(&answer, "cache-control"), ["public"]);
        assert_eq!(answer.headers().len(), 3, "no type and no length");
        assert!(answer.body().is_end_stream());
    }
    for tag in ["\"other\"", etag.trim_matches('"'), "", "W/*"] {
        let answer = respond(&document, &[("accept", AGGREGATED), ("if-none-match", tag)]).await;
        assert_eq!(answer.status(), 200, "{tag}");
    }
    let legacy = respond(&long(false), &[("if-none-match", "*")]).await;
    assert_eq!(legacy.status(), 200, "legacy documents have no tag");
}

#[tokio::test]
async fn gzip_is_for_long_documents_and_who_accepts_it() {
    let document = long(true);
    let plain = read(respond(&document, &[("accept", AGGREGATED)]).await).await;
    for coding in ["gzip", "GZIP", "deflate, gzip", "br;q=1.0, gzip;q=0.8", "gzip ; q=0.001"] {
        let asked = [("accept", AGGREGATED), ("accept-encoding", coding)];
        let answer = respond(&document, &asked).await;
        assert_eq!(lines(&answer, "content-encoding"), ["gzip"], "{coding}");
        assert_eq!(lines(&answer, "vary"), ["Accept", "Accept-Encoding"]);
        assert_eq!(lines(&answer, "etag"), [document.etag().unwrap()]);
        assert_eq!(gunzip(&read(answer).await), plain);
    }
    for coding in ["gzip;q=0", "gzip;q=0.000", "identity", "*", "gzipped", "gzip;q=x"] {
        let answer = respond(&document, &[("accept-encoding", coding)]).await;
        assert_eq!(lines(&answer, "content-encoding"), [""; 0], "{coding}");
    }
    let short = respond(&Document::of_json(JSON.into()), &[("accept-encoding", "gzip")]).await;
    assert_eq!(lines(&short, "content-encoding"), [""; 0]);
    let legacy = respond(&long(false), &[("accept-encoding", "gzip")]).await;
    assert_eq!(lines(&legacy, "vary"), ["Accept-Encoding"]);
    assert_eq!(gunzip(&read(legacy).await), plain);
}

#[tokio::test]
async fn other_forms_are_made_once_and_say_the_same() {
    for document in [Document::of_json(JSON.into()), long(true)] {
        let plain: Value =
            serde_json::from_slice(&read(respond(&document, &[]).await).await).unwrap();
        let yaml = read(respond(&document, &[("accept", "application/yaml")]).await).await;
        let yaml: Value = serde_saphyr::from_str(std::str::from_utf8(&yaml).unwrap()).unwrap();
        assert_eq!(yaml, plain);
        let indented = read(respond(&document, &[("user-agent", "curl/8")]).await).await;
        let expected = serde_json::to_string_pretty(&plain).unwrap().lines().count();
        assert_eq!(std::str::from_utf8(&indented).unwrap().lines().count(), expected);
        assert_eq!(serde_json::from_slice::<Value>(&indented).unwrap(), plain);
    }
    let document = long(true);
    let asked = [("accept", "application/yaml"), ("accept-encoding", "gzip")];
    let zipped = read(respond(&document, &asked).await).await;
    let yaml = read(respond(&document, &[("accept", "application/yaml")]).await).await;
    assert_eq!(gunzip(&zipped), yaml);
    let others = document.others.get().unwrap();
    assert!(others.plain[2].get().unwrap() == &yaml && others.gzip[2].get().unwrap() == &zipped);
}

#[tokio::test]
async fn a_long_document_in_one_piece_is_compressed_too() {
    let piece: Vec<u8> = long(false).parts.concat();
    let document = Document::of_json(piece.clone().into());
    let zipped = read(respond(&document, &[("accept-encoding", "gzip")]).await).await;
    assert_eq!(gunzip(&zipped), piece);
}

#[test]
fn json_is_indented_as_go_indents_it() {
    let json = br#"{"a":[],"b":{},"c":[1,{"d":"x,{}\"\\"}],"e":null}
"#;
    let expected = "{\n  \"a\": [],\n  \"b\": {},\n  \"c\": [\n    1,\n    {\n      \
                    \"d\": \"x,{}\\\"\\\\\"\n    }\n  ],\n  \"e\": null\n}";
    assert_eq!(String::from_utf8(written::indented(json)).unwrap(), expected);
}
