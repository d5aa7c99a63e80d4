//! What one request costs in the rules that every request passes: reading it, finding its route.

use std::sync::Arc;

use divan::{Bencher, black_box};
use http::Method;
use portico::model::fault::ServicePort;
use portico::model::request_info::{RequestInfo, decode_path};
use portico::model::routing_table::{Entry, Remote, Route, RoutingTable};

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
