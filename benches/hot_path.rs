//! What one request costs in the rules that every request passes: reading it, finding its route;
//! what a scrape costs; and what discovery documents cost to make and to read.

use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use divan::{Bencher, black_box};
use http::{HeaderMap, HeaderValue, Method};
use portico::aggregate::Document;
use portico::aggregate::assembly::{Assembly, Entry as Told, Shown, Source};
use portico::model::accept::Offer;
use portico::model::discovery::aggregated::{
    Freshness, GroupVersionKind, Resource, Scope, Subresource,
};
use portico::model::discovery::policy::Policy;
use portico::model::fault::ServicePort;
use portico::model::negotiated::Negotiated;
use portico::model::query::Query;
use portico::model::request_info::{RequestInfo, decode_path};
use portico::model::routing_table::{Entry, Remote, Route, RoutingTable};
use portico::runtime::background::Background;
use portico::runtime::telemetry::{EndpointMetrics, Metrics, Phases, RouteMetrics};

fn main() {
    divan::main();
}

const PATH: &str = "/apis/group42.example.com/v1/namespaces/default/widgets/one";

#[divan::bench]
fn read_a_request() {
    let path = decode_path(black_box(PATH)).expect("a good path");
    black_box(RequestInfo::parse(&Method::GET, &path, None).expect("a request"));
}

fn table(groups: usize) -> RoutingTable<()> {
    (0..groups).map(entry).fold(RoutingTable::default(), RoutingTable::with).completed()
}

fn entry(group: usize) -> Entry<()> {
    let group: Arc<str> = format!("group{group}.example.com").into();
    Entry {
        version: "v1".into(),
        group_priority: 1,
        version_priority: 1,
        route: Arc::new(Route::Remote(Remote {
            name: format!("v1.{group}").into(),
            service: ServicePort { namespace: "n".into(), name: "s".into(), port: 443 },
            backend: (),
            fault: None,
            discovery: Policy::default(),
        })),
        group,
    }
}

/// The cost must not grow with the number of groups.
#[divan::bench(args = [50, 500, 5000])]
fn find_a_route(bencher: Bencher<'_, '_>, groups: usize) {
    let table = table(groups);
    let info = RequestInfo::parse(&Method::GET, PATH, None).expect("a request");
    bencher.bench_local(|| black_box(table.lookup(black_box(&info))));
}

/// A change copies one shard of the table.
#[divan::bench(args = [50, 500, 5000])]
fn change_one_api_service(bencher: Bencher<'_, '_>, groups: usize) {
    let table = table(groups);
    bencher.bench_local(|| table.clone().with(entry(42)));
}

/// `/metrics` with so many APIServices, 100 of them with traffic of seven verbs, each ending in three
/// codes, on two endpoints each.
#[divan::bench(args = [100, 5000])]
fn render_metrics(bencher: Bencher<'_, '_>, api_services: usize) {
    let metrics = Arc::new(Metrics::new().expect("metrics"));
    let names: Vec<Arc<str>> =
        (0..api_services).map(|at| format!("v1.group{at}.example.com").into()).collect();
    for name in &names {
        metrics.unavailable.with_label_values(&[name]).set(0.0);
    }
    let busy: Vec<_> = (0..100).zip(&names).map(|(at, name)| traffic(&metrics, at, name)).collect();
    bencher.bench_local(|| black_box(metrics.render().expect("a text")));
    drop(busy);
}

fn traffic(
    metrics: &Arc<Metrics>,
    at: usize,
    name: &Arc<str>,
) -> (RouteMetrics, [Arc<EndpointMetrics>; 2]) {
    let route =
        RouteMetrics::of_api_service(metrics, name, &format!("group{at}.example.com"), "v1");
    for verb in ["GET", "LIST", "WATCH", "CREATE", "UPDATE", "PATCH", "DELETE"] {
        for code in [200, 404, 503] {
            route.record(verb, code, (verb != "WATCH").then_some(0.01));
        }
    }
    let endpoints = [1, 2].map(|host| {
        let address = format!("10.0.{at}.{host}:6443");
        let endpoint = EndpointMetrics::of(metrics, &format!("default/service{at}"), &address);
        for code in [200, 404, 503] {
            endpoint.answered(code);
            let phases = Phases { queue: 0.01, first_byte: 0.01, ..Phases::default() };
            route.record_phases(&endpoint, &phases, false);
        }
        endpoint.failed("ConnectRefused");
        endpoint
    });
    (route, endpoints)
}

/// What kubectl accepts.
const ACCEPT: &str =
    "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json";

/// A list of resources as an extension API server has them; `salt` is part of a name.
fn resources(count: usize, salt: usize) -> Bytes {
    let texts = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect::<Vec<_>>();
    let all = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];
    let list: Vec<Resource> = (0..count)
        .map(|at| {
            let kind = GroupVersionKind {
                kind: format!("Kind{at}x{salt}"),
                ..GroupVersionKind::default()
            };
            Resource {
                resource: format!("kind{at}x{salt}s"),
                response_kind: Some(kind.clone()),
                scope: Scope::Namespaced,
                singular_resource: format!("kind{at}x{salt}"),
                verbs: Some(texts(&all)),
                short_names: texts(&["kd"]),
                categories: texts(&["all"]),
                subresources: vec![Subresource {
                    subresource: "status".to_owned(),
                    response_kind: Some(kind),
                    accepted_types: Vec::new(),
                    verbs: Some(texts(&["get", "patch", "update"])),
                }],
            }
        })
        .collect();
    serde_json::to_vec(&list).expect("JSON").into()
}

fn show(assembly: &mut Assembly, group: usize, versions: usize, resources: &Bytes) {
    let name: Arc<str> = format!("group{group}.example.com").into();
    for version in 1..=versions {
        let resources = resources.clone();
        let shown = Shown {
            group_priority: 1000,
            version_priority: 15,
            listed: true,
            entry: Some(Told { freshness: Freshness::Current, resources }),
            legacy: Some(format!("{{\"of\":\"{name}/{version}\"}}\n").into()),
            fault: None,
        };
        assembly.set(Source::Remote, &name, &format!("v{version}").into(), shown);
    }
}

/// 200 groups of 3 versions of 20 resources, or 5,000 of one version of 2 resources: 5 MB each.
fn assembly(groups: usize) -> (Assembly, usize, usize) {
    let (versions, count) = if groups > 200 { (1, 2) } else { (3, 20) };
    let mut assembly = Assembly::new();
    (0..groups).for_each(|group| show(&mut assembly, group, versions, &resources(count, group)));
    (assembly, versions, count)
}

/// The first publication.
#[divan::bench(args = [200, 5000], sample_count = 5)]
fn publish_everything(bencher: Bencher<'_, '_>, groups: usize) {
    bencher.with_inputs(|| assembly(groups).0).bench_local_values(|mut assembly| {
        drop(assembly.publish());
        assembly
    });
}

/// One group has other resources than before; the cost must not grow with the others.
#[divan::bench(args = [200, 5000])]
fn publish_one_change(bencher: Bencher<'_, '_>, groups: usize) {
    let (mut assembly, versions, count) = assembly(groups);
    drop(assembly.publish());
    let mut salt = 0;
    let next = || {
        salt += 1;
        resources(count, salt)
    };
    bencher.with_inputs(next).bench_local_refs(|resources| {
        show(&mut assembly, 42, versions, resources);
        assembly.publish()
    });
}

/// What a request for a document costs but for sending it.
fn read(bencher: Bencher<'_, '_>, document: &Document, lines: &[(&'static str, &str)]) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let background = Background::new(runtime.handle().clone());
    let mut headers = HeaderMap::new();
    for (name, value) in lines {
        headers.insert(*name, HeaderValue::from_str(value).expect("a header"));
    }
    let query = Query::parse(None);
    let mut context = Context::from_waker(Waker::noop());
    bencher.bench_local(|| {
        let negotiated = Negotiated::new(&headers, &query, Offer::Discovery).expect("a form");
        let answer = pin!(document.respond(&headers, negotiated, &background)).poll(&mut context);
        let answer = answer.map(Result::ok);
        let Poll::Ready(Some(mut answer)) = answer else { return None };
        while let Poll::Ready(Some(Ok(frame))) = answer.body_mut().poll_next(&mut context) {
            black_box(frame);
        }
        Some(answer)
    });
}

#[divan::bench]
fn read_plain(bencher: Bencher<'_, '_>) {
    let published = assembly(200).0.publish();
    read(bencher, published.aggregated(), &[("accept", ACCEPT)]);
}

#[divan::bench]
fn read_gzip(bencher: Bencher<'_, '_>) {
    let published = assembly(200).0.publish();
    let document = published.aggregated();
    read(bencher, document, &[("accept", ACCEPT), ("accept-encoding", "gzip")]);
}

#[divan::bench]
fn read_not_modified(bencher: Bencher<'_, '_>) {
    let published = assembly(200).0.publish();
    let document = published.aggregated();
    let etag = document.etag().expect("a tag");
    read(bencher, document, &[("accept", ACCEPT), ("if-none-match", etag)]);
}
