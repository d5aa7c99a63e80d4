//! What one request costs in the rules that every request passes: reading it, finding its route;
//! and what a scrape costs.

use std::sync::Arc;

use divan::{Bencher, black_box};
use http::Method;
use portico::model::fault::ServicePort;
use portico::model::request_info::{RequestInfo, decode_path};
use portico::model::routing_table::{Entry, Remote, Route, RoutingTable};
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
            legacy_from_backend: false,
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
