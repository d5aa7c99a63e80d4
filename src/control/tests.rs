//! The loop's effect: what changes with which event, and what stays.

use prometheus::core::Collector as _;
use serde_json::{Value, json};

use super::*;
use crate::model::fault::Hop;
use crate::model::probing::Failure;
use crate::runtime::lifecycle::Readiness;
use crate::runtime::snapshot::View;
use crate::store::{Change, Key, Kind, Object};

struct Fixture {
    reconciler: Reconciler,
    view: View<RoutingTable<Upstream>>,
    store: Store,
    metrics: Arc<Metrics>,
}

fn fixture() -> Fixture {
    let (control, view) = control();
    let (store, metrics) = (control.store.clone(), Arc::clone(&control.metrics));
    Fixture { reconciler: Reconciler::new(control), view, store, metrics }
}

fn control() -> (Control, View<RoutingTable<Upstream>>) {
    let (publisher, view) = Publisher::new(RoutingTable::default());
    let metrics = Arc::new(Metrics::new().unwrap());
    let control = Control {
        reports: mpsc::channel(1).1,
        store: Store::new(),
        publisher,
        upstreams: Upstreams::new(crate::upstream::Config::default(), Arc::clone(&metrics)),
        metrics,
        routing: EndpointRouting::Endpoints,
    };
    (control, view)
}

impl Fixture {
    fn apply(&mut self, changes: Vec<Change>) {
        self.store.apply(changes);
        self.reconciler.sync(false);
    }

    fn route(&self, group: &str) -> Option<Arc<Route<Upstream>>> {
        let table = self.view.load();
        let group = table.group(group)?;
        Some(Arc::clone(&group.entries.first()?.route))
    }

    /// The fault with which requests to the group are answered.
    fn fault(&self, group: &str) -> Option<Hop> {
        match &*self.route(group).unwrap() {
            Route::Remote(remote) => remote.fault.as_ref().map(|fault| fault.hop),
            other => panic!("not remote: {other:?}"),
        }
    }

    /// Its backend says so.
    fn said(&mut self, name: &str, probed: Probed) {
        let backend = Arc::clone(&self.reconciler.done[name].upstream.as_ref().unwrap().backend);
        self.reconciler.have_probed(vec![Report { name: name.into(), backend, probed }]);
    }

    fn condition(&self, name: &str) -> String {
        let stored = self.store.get(&Key::api_service(name)).unwrap();
        let status = stored.object.as_api_service().unwrap().status.clone();
        let conditions = status.and_then(|status| status.conditions).unwrap_or_default();
        conditions.first().and_then(|first| first.reason.clone()).unwrap_or_default()
    }

    fn gauges(&self) -> usize {
        self.metrics.unavailable.collect()[0].get_metric().len()
    }
}

fn api_service(group: &str, service: &Value) -> Change {
    Change::Put(Object::ApiService(
        serde_json::from_value(json!({
            "apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService",
            "metadata": {"name": format!("v1.{group}")},
            "spec": {"group": group, "version": "v1", "groupPriorityMinimum": 10,
                     "versionPriority": 1, "service": service},
        }))
        .unwrap(),
    ))
}

fn remote(group: &str, service: &str) -> Change {
    api_service(group, &json!({"namespace": "n", "name": service, "port": 443}))
}

fn service(name: &str) -> Change {
    Change::Put(Object::Service(
        serde_json::from_value(json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "n", "name": name},
            "spec": {"ports": [{"port": 443}]},
        }))
        .unwrap(),
    ))
}

fn slice(name: &str, service: &str, ready: bool) -> Change {
    Change::Put(Object::EndpointSlice(
        serde_json::from_value(json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"namespace": "n", "name": name,
                         "labels": {"kubernetes.io/service-name": service}},
            "addressType": "IPv4", "ports": [{"port": 8443}],
            "endpoints": [{"addresses": ["127.0.0.1"], "conditions": {"ready": ready}}],
        }))
        .unwrap(),
    ))
}

fn endpoints(name: &str) -> Change {
    Change::Put(Object::Endpoints(
        serde_json::from_value(json!({
            "apiVersion": "v1", "kind": "Endpoints", "metadata": {"namespace": "n", "name": name},
            "subsets": [{"addresses": [{"ip": "127.0.0.1"}], "ports": [{"port": 8443}]}],
        }))
        .unwrap(),
    ))
}

#[test]
fn each_object_that_comes_or_goes_takes_effect_on_its_api_services() {
    let mut fixture = fixture();
    fixture.apply(vec![remote("g", "s")]);
    assert_eq!(fixture.fault("g"), Some(Hop::ServiceNotFound));
    assert_eq!(fixture.condition("v1.g"), "ServiceNotFound");
    fixture.apply(vec![service("s")]);
    assert_eq!(fixture.fault("g"), Some(Hop::EndpointsNotFound));
    fixture.apply(vec![slice("s-1", "s", false)]);
    assert_eq!(fixture.fault("g"), Some(Hop::NoEndpoints));
    assert_eq!(fixture.condition("v1.g"), "MissingEndpoints");
    fixture.apply(vec![slice("s-1", "s", true)]);
    // Requests go there at once; what is written waits for its word.
    assert_eq!(fixture.fault("g"), None);
    assert_eq!(fixture.condition("v1.g"), "MissingEndpoints");
    fixture.said("v1.g", Probed::Passed);
    assert_eq!((fixture.fault("g"), fixture.condition("v1.g").as_str()), (None, "Passed"));
    // A slice that is given to another service leaves the first without endpoints.
    fixture.apply(vec![slice("s-1", "t", true)]);
    assert_eq!(fixture.fault("g"), Some(Hop::EndpointsNotFound));
    fixture.apply(vec![endpoints("s")]);
    assert_eq!(fixture.fault("g"), None);
    // A Service with any EndpointSlice ignores its Endpoints object.
    fixture.apply(vec![slice("s-2", "s", false)]);
    assert_eq!(fixture.fault("g"), Some(Hop::NoEndpoints));
    fixture.apply(vec![Change::Delete(Key::api_service("v1.g"))]);
    assert!(fixture.route("g").is_none());
}

#[test]
fn an_api_service_that_turns_local_or_names_another_service_is_routed_anew() {
    let mut fixture = fixture();
    fixture.apply(vec![service("s"), slice("s-1", "s", true), remote("g", "t")]);
    assert_eq!(fixture.fault("g"), Some(Hop::ServiceNotFound));
    fixture.apply(vec![remote("g", "s")]);
    assert_eq!(fixture.fault("g"), None);
    fixture.apply(vec![service("t")]);
    assert_eq!(fixture.fault("g"), None);
    fixture.apply(vec![api_service("g", &Value::Null)]);
    assert!(matches!(&*fixture.route("g").unwrap(), Route::Local));
    assert_eq!(fixture.condition("v1.g"), "Local");
}

#[test]
fn what_a_backend_says_counts_as_long_as_it_is_the_same_and_has_endpoints() {
    let mut fixture = fixture();
    fixture.apply(vec![service("s"), slice("s-1", "s", true), remote("g", "s")]);
    assert_eq!(fixture.condition("v1.g"), "");
    fixture.said("v1.g", Probed::Failed(Failure::Status(403)));
    assert_eq!(fixture.fault("g"), Some(Hop::ProbeForbidden));
    assert_eq!(fixture.condition("v1.g"), "FailedDiscoveryCheck");
    // The same in other words publishes no table.
    let down = |detail: &'static str| {
        Probed::Failed(Failure::Fault(Fault::new(Hop::ConnectRefused, detail)))
    };
    fixture.said("v1.g", down("a"));
    let before = fixture.view.load();
    fixture.said("v1.g", down("b"));
    assert!(Arc::ptr_eq(&before, &fixture.view.load()));
    assert_eq!(fixture.fault("g"), Some(Hop::ConnectRefused));
    // Other endpoints at a time change nothing, none and then some do: that is another place.
    fixture.apply(vec![slice("s-2", "s", true)]);
    assert_eq!(fixture.fault("g"), Some(Hop::ConnectRefused));
    fixture.apply(vec![slice("s-1", "s", false), slice("s-2", "s", false)]);
    assert_eq!(fixture.fault("g"), Some(Hop::NoEndpoints));
    fixture.apply(vec![slice("s-1", "s", true)]);
    assert_eq!(fixture.fault("g"), None);
    // Another backend's word does not count.
    fixture.apply(vec![remote("h", "t")]);
    let backend = Arc::clone(&fixture.reconciler.done["v1.h"].upstream.as_ref().unwrap().backend);
    fixture.reconciler.have_probed(vec![Report {
        name: "v1.g".into(),
        backend,
        probed: down("c"),
    }]);
    assert_eq!(fixture.fault("g"), None);
}

#[test]
fn the_own_group_is_never_routed() {
    let mut fixture = fixture();
    fixture.apply(vec![api_service("apiregistration.k8s.io", &Value::Null)]);
    assert!(fixture.route("apiregistration.k8s.io").is_none());
    assert_eq!(fixture.view.load().groups().count(), 0);
}

#[test]
fn metrics_count_the_loss_of_availability_and_go_with_the_api_service() {
    let mut fixture = fixture();
    fixture.apply(vec![remote("g", "s")]);
    let lost = |fixture: &Fixture| {
        let reasons = ["ServiceNotFound", "MissingEndpoints"];
        let total = &fixture.metrics.unavailable_total;
        reasons.map(|reason| total.with_label_values(&["v1.g", reason]).get())
    };
    assert_eq!(lost(&fixture), [0, 0]);
    assert_eq!(fixture.metrics.unavailable.with_label_values(&["v1.g"]).get().to_string(), "1");
    fixture.apply(vec![service("s"), slice("s-1", "s", true)]);
    fixture.said("v1.g", Probed::Passed);
    assert_eq!(fixture.metrics.unavailable.with_label_values(&["v1.g"]).get().to_string(), "0");
    fixture.apply(vec![slice("s-1", "s", false)]);
    assert_eq!(lost(&fixture), [0, 1]);
    assert_eq!(fixture.gauges(), 1);
    fixture.apply(vec![Change::Delete(Key::api_service("v1.g"))]);
    assert_eq!(fixture.gauges(), 0);
}

#[test]
fn one_change_among_five_thousand_leaves_every_other_route_alone() {
    let mut fixture = fixture();
    let all: Vec<String> = (0..5_000).map(|number| format!("g{number}")).collect();
    let mut changes: Vec<Change> = all.iter().map(|group| remote(group, group)).collect();
    changes.extend(all.iter().map(|group| service(group)));
    fixture.apply(changes);
    let routes = |fixture: &Fixture| -> Vec<Arc<Route<Upstream>>> {
        all.iter().map(|group| fixture.route(group).unwrap()).collect()
    };
    let before = routes(&fixture);
    fixture.apply(vec![slice("a", "g7", true)]);
    let after = routes(&fixture);
    let moved: Vec<usize> =
        (0..all.len()).filter(|&at| !Arc::ptr_eq(&before[at], &after[at])).collect();
    assert_eq!(moved, [7]);
}

#[test]
fn statuses_and_endpoints_alone_publish_no_table() {
    let mut fixture = fixture();
    fixture.apply(vec![service("s"), slice("s-1", "s", true), remote("g", "s")]);
    let before = fixture.view.load();
    fixture.reconciler.sync(false);
    fixture.apply(vec![slice("s-2", "s", true)]);
    assert!(Arc::ptr_eq(&before, &fixture.view.load()));
}

#[test]
fn an_api_service_that_is_made_anew_has_its_condition_again() {
    let mut fixture = fixture();
    fixture.apply(vec![service("s"), slice("s-1", "s", true), remote("g", "s")]);
    fixture.said("v1.g", Probed::Passed);
    let before = fixture.view.load();
    fixture.apply(vec![Change::Delete(Key::api_service("v1.g")), remote("g", "s")]);
    assert_eq!(fixture.condition("v1.g"), "Passed");
    assert!(Arc::ptr_eq(&before, &fixture.view.load()));
}

#[test]
fn a_loop_that_is_too_late_for_the_history_reads_everything_again() {
    let mut fixture = fixture();
    fixture.apply(vec![service("s"), slice("s-1", "s", true), remote("g", "s"), remote("h", "s")]);
    fixture.apply(vec![endpoints("s")]);
    let kept = fixture.route("g").unwrap();
    for _ in 0..2 {
        fixture.store.apply((0..6_000).map(|number| service(&format!("x{number}"))).collect());
        let gone = (0..6_000).map(|number| Key::new(Kind::Service, "n", &format!("x{number}")));
        fixture.store.apply(gone.map(Change::Delete).collect());
    }
    fixture.apply(vec![Change::Delete(Key::api_service("v1.h"))]);
    assert!(fixture.route("h").is_none());
    assert!(Arc::ptr_eq(&kept, &fixture.route("g").unwrap()));
    fixture.store.apply(vec![
        Change::Delete(Key::new(Kind::Endpoints, "n", "s")),
        Change::Delete(Key::new(Kind::EndpointSlice, "n", "s-1")),
    ]);
    fixture.reconciler.revision = Some(0);
    fixture.reconciler.sync(false);
    assert_eq!(fixture.fault("g"), Some(Hop::EndpointsNotFound));
}

#[tokio::test]
async fn the_table_is_complete_once_the_first_load_is_in() {
    let (control, mut view) = control();
    let store = control.store.clone();
    let (loaded, first_load) = tokio::sync::oneshot::channel::<()>();
    let readiness = Readiness::default();
    let first_load = async {
        assert!(first_load.await.is_ok());
    };
    let running = control.run(first_load, vec![readiness.wait_for("manifests")]);
    let _task = crate::runtime::tasks::spawn_owned("control", running);
    store.apply(vec![remote("g", "s")]);
    while view.load().group("g").is_none() {
        assert!(view.changed().await);
    }
    assert!(!view.load().is_complete());
    assert_eq!(readiness.awaited(), ["manifests"]);
    loaded.send(()).unwrap();
    while !view.load().is_complete() {
        assert!(view.changed().await);
    }
}
