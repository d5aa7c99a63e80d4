//! Discovery documents on the wire: forms, conditional requests and encodings.

use std::io::Read as _;

use flate2::bufread::GzDecoder;

use crate::client::{Answer, Ask, BOTH, Client};
use crate::rig::{Rig, Setup, api_service};

const JSON: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
const YAML: &str = "application/yaml;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
const PROTOBUF: &str =
    "application/vnd.kubernetes.protobuf;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
const BETA: &str = "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList";

/// Groups that make the list longer than what is sent uncompressed.
const MANY: usize = 900;

async fn accept(client: &mut Client, target: &str, accept: &str) -> Answer {
    client.send(&Ask::get(target).header("accept", accept)).await
}

fn lines(answer: &Answer, name: &str) -> Vec<String> {
    let values = answer.headers.get_all(name).iter();
    values.map(|value| value.to_str().unwrap().to_owned()).collect()
}

async fn rig() -> Rig {
    Setup::new().service("one", &[]).start().await
}

/// The aggregated document once it tells of the version without endpoints, which it does a moment
/// after the start; from then on it stays as it is.
async fn settled(client: &mut Client) -> Answer {
    loop {
        let answer = accept(client, "/apis", JSON).await;
        if answer.body.windows(5).any(|part| part == b"Stale") {
            return answer;
        }
    }
}

#[tokio::test]
async fn an_aggregated_clause_anywhere_gets_the_aggregated_document() {
    let rig = rig().await;
    for protocol in BOTH {
        let mut client = rig.alice(protocol).await;
        let cases = [
            (JSON.to_owned(), JSON),
            (format!("application/json,{JSON};q=0.1"), JSON),
            (format!("{JSON};profile=nopeer,{JSON},application/json"), JSON),
            (format!("{JSON};some=thing;stream=watch;sv="), JSON),
            ("*/*;as=APIGroupDiscoveryList;v=v2;g=apidiscovery.k8s.io".to_owned(), JSON),
            (format!("{BETA},{YAML}"), YAML),
            (PROTOBUF.to_owned(), PROTOBUF),
            ("*/*".to_owned(), "application/json"),
            (format!("{BETA},application/json"), "application/json"),
            (format!("{JSON};sv=v1,application/yaml"), "application/yaml"),
            ("application/yaml".to_owned(), "application/yaml"),
            (
                "application/vnd.kubernetes.protobuf".to_owned(),
                "application/vnd.kubernetes.protobuf",
            ),
        ];
        for (wanted, got) in cases {
            let answer = accept(&mut client, "/apis", &wanted).await;
            assert_eq!((answer.status, answer.header("content-type")), (200, got), "{wanted}");
            let protobuf = answer.body.starts_with(b"k8s\0");
            assert_eq!(protobuf, got.contains("protobuf"), "{wanted}");
        }
        for refused in ["text/html", BETA, "application/json;as=Table;v=v1;g=meta.k8s.io"] {
            let answer = accept(&mut client, "/apis", refused).await;
            assert_eq!(answer.status, 406, "{refused}");
            assert_eq!(
                answer.json()["message"],
                "only the following media types are accepted: application/json, \
                 application/yaml, application/vnd.kubernetes.protobuf"
            );
        }
    }
}

#[tokio::test]
async fn the_path_with_a_slash_knows_the_list_only_and_only_the_first_accept_line_counts() {
    let rig = rig().await;
    for protocol in BOTH {
        let mut client = rig.alice(protocol).await;
        assert_eq!(accept(&mut client, "/apis/", JSON).await.status, 406);
        let both = format!("{JSON},application/json");
        let list = accept(&mut client, "/apis/", &both).await;
        assert_eq!(list.json()["kind"], "APIGroupList");
        let group = accept(&mut client, "/apis/one.example.com", &both).await;
        assert_eq!(group.json()["kind"], "APIGroup");
        let twice = Ask::get("/apis").header("accept", "application/json").header("accept", JSON);
        assert_eq!(client.send(&twice).await.json()["kind"], "APIGroupList");
    }
}

#[tokio::test]
async fn a_client_that_has_the_document_is_told_so_without_it() {
    let rig = rig().await;
    for protocol in BOTH {
        let mut client = rig.alice(protocol).await;
        let first = settled(&mut client).await;
        let etag = first.header("etag").to_owned();
        assert_eq!(etag.len(), 130, "{etag}");
        assert_eq!(lines(&first, "vary"), ["Accept"]);
        assert_eq!(lines(&first, "cache-control"), ["public"]);
        assert_eq!(first.header("content-length"), first.body.len().to_string());
        // The tag is the document's, whatever it is written in.
        assert_eq!(accept(&mut client, "/apis", YAML).await.header("etag"), etag);
        let again = Ask::get("/apis").header("accept", JSON).header("if-none-match", &etag);
        let answer = client.send(&again).await;
        assert_eq!((answer.status, answer.body.len()), (304, 0));
        assert_eq!(answer.header("etag"), etag);
        assert_eq!(lines(&answer, "vary"), ["Accept"]);
        assert_eq!(lines(&answer, "cache-control"), ["public"]);
        assert!(answer.headers.get("content-type").is_none());
        assert!(answer.headers.get("content-length").is_none());
        let other = Ask::get("/apis").header("accept", JSON).header("if-none-match", "\"x\"");
        assert_eq!(client.send(&other).await.body, first.body);
        let list = client.send(&Ask::get("/apis").header("if-none-match", "*")).await;
        assert_eq!(list.status, 200);
        assert_eq!(lines(&list, "cache-control"), ["no-cache, private"]);
        assert_eq!((lines(&list, "etag").len(), lines(&list, "vary").len()), (0, 0));
    }
}

#[tokio::test]
async fn a_head_has_the_length_and_no_body() {
    let rig = rig().await;
    for protocol in BOTH {
        let mut client = rig.alice(protocol).await;
        for (target, form) in
            [("/apis", JSON), ("/apis", "application/json"), ("/apis/one.example.com", "*/*")]
        {
            let whole = accept(&mut client, target, form).await;
            let head = client.send(&Ask::new("HEAD", target).header("accept", form)).await;
            assert_eq!((head.status, head.body.len()), (200, 0));
            assert_eq!(head.header("content-length"), whole.body.len().to_string());
            for name in ["content-type", "etag", "vary", "cache-control"] {
                assert_eq!(head.header(name), whole.header(name), "{name}");
            }
        }
    }
}

#[tokio::test]
async fn a_long_document_is_compressed_for_who_accepts_it_as_one_member() {
    let groups: String = (0..MANY).map(|at| api_service(&format!("group{at}"))).collect();
    let rig = Setup::new().manifest("many.yaml", &groups).start().await;
    for protocol in BOTH {
        let mut client = rig.alice(protocol).await;
        let mut plain = client.get("/apis").await;
        while plain.json()["groups"].as_array().unwrap().len() < MANY + 1 {
            plain = client.get("/apis").await;
        }
        assert!(plain.body.len() > 128 * 1024);
        assert!(plain.headers.get("content-encoding").is_none());
        let zipped = client.send(&Ask::get("/apis").header("accept-encoding", "gzip")).await;
        assert_eq!(lines(&zipped, "content-encoding"), ["gzip"]);
        assert_eq!(lines(&zipped, "vary"), ["Accept-Encoding"]);
        assert_eq!(zipped.header("content-length"), zipped.body.len().to_string());
        let (mut decoder, mut text) = (GzDecoder::new(&*zipped.body), Vec::new());
        decoder.read_to_end(&mut text).unwrap();
        assert!(decoder.into_inner().is_empty());
        assert_eq!(text, plain.body);
        let yaml = Ask::get("/apis")
            .header("accept", "application/yaml")
            .header("accept-encoding", "deflate, gzip;q=0.5");
        let yaml = client.send(&yaml).await;
        assert_eq!(lines(&yaml, "content-encoding"), ["gzip"]);
        let mut text = String::new();
        GzDecoder::new(&*yaml.body).read_to_string(&mut text).unwrap();
        assert!(text.starts_with("apiVersion: v1\ngroups:\n"), "{text:.100}");
        let refused = client.send(&Ask::get("/apis").header("accept-encoding", "gzip;q=0")).await;
        assert!(refused.headers.get("content-encoding").is_none());
        let own = Ask::get("/apis/apiregistration.k8s.io").header("accept-encoding", "gzip");
        assert!(client.send(&own).await.headers.get("content-encoding").is_none());
    }
}

#[tokio::test]
async fn the_resources_of_a_version_that_is_not_known_are_503_with_the_cause_and_no_retry() {
    let unannotated = api_service("two").replace("portico.dev/legacy-discovery: proxy", "");
    let rig = Setup::new().manifest("two.yaml", &unannotated).start().await;
    for protocol in BOTH {
        let mut client = rig.alice(protocol).await;
        let answer = client.get("/apis/two.example.com/v1").await;
        assert_eq!(answer.status, 503);
        assert_eq!(answer.cause(), "ServiceNotFound");
        assert!(answer.headers.get("retry-after").is_none());
        let listed = client.get("/apis/two.example.com").await.json();
        assert_eq!(listed["preferredVersion"]["version"], "v1");
        // What changes something is for its server.
        let post = client.send(&Ask::new("POST", "/apis/two.example.com/v1")).await;
        assert_eq!((post.status, post.cause()), (503, "ServiceNotFound".to_owned()));
    }
}

#[tokio::test]
async fn the_core_is_two_documents_while_it_is_registered() {
    let core = api_service("core")
        .replace("name: v1.core.example.com", "name: v1.")
        .replace("group: core.example.com", "group: \"\"");
    let rig = Setup::new().manifest("core.yaml", &core).start().await;
    for protocol in BOTH {
        let mut client = rig.alice(protocol).await;
        let versions = client.get("/api").await.json();
        assert_eq!(
            (&versions["kind"], &versions["versions"][0]),
            (&"APIVersions".into(), &"v1".into())
        );
        let address = &versions["serverAddressByClientCIDRs"][0]["serverAddress"];
        assert_eq!(*address, rig.address.to_string());
        assert!(versions.get("apiVersion").is_none());
        let aggregated = accept(&mut client, "/api", JSON).await;
        assert_eq!(aggregated.header("content-type"), JSON);
        assert_eq!(aggregated.json()["kind"], "APIGroupDiscoveryList");
        assert_eq!(accept(&mut client, "/api/", JSON).await.status, 406);
        assert_eq!(client.send(&Ask::new("POST", "/api")).await.status, 405);
        assert_eq!(client.send(&Ask::new("HEAD", "/api")).await.status, 200);
    }
}
