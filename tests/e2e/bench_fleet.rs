//! The simulated fleet of `portico bench` behind a real portico: registered by a file, asked through
//! it with mutual TLS, watched in its documents, and removed without a trace.

use std::time::Duration;

use http::StatusCode;
use portico::app::Tuning;
use portico::cli::bench::fleet::{Behaviour, Fault, Fleet, Latency, Size, Spec};
use portico::cli::bench::register::Place;
use portico::cli::bench::scenario::{Outcome, Plan, Scenario, State};
use portico::config::Config;
use portico::tls::certificates;

use crate::client::{Ask, Protocol};
use crate::pki::PKI;
use crate::rig::{LIMIT, Rig, Setup, eventually, within};

const SIZE: Size = Size { versions: 2, resources: 3 };
const WELL: Behaviour = Behaviour::well(Latency::NONE);

/// Servers with these faults that believe portico's certificate and no other.
fn spec(faults: &[Fault]) -> Spec {
    let aggregators = PKI.aggregators.certificate();
    Spec {
        servers: faults.iter().map(|fault| WELL.with(*fault)).collect(),
        size: SIZE,
        namespace: "bench".to_owned(),
        proxy_client_ca: Some(certificates("aggregators", aggregators.as_bytes()).unwrap()),
    }
}

fn place(rig: &Rig) -> Place {
    Place::Manifests(rig.path("manifests"))
}

fn files(rig: &Rig) -> usize {
    std::fs::read_dir(rig.path("manifests")).unwrap().count()
}

#[tokio::test]
async fn simulated_servers_are_reached_over_mutual_tls_until_they_are_removed() {
    let rig = Setup::new().start().await;
    let fleet = Fleet::start(&spec(&[Fault::Hang, Fault::None, Fault::None])).unwrap();
    let place = place(&rig);
    place.check().await.unwrap();
    place.add(&fleet, fleet.servers()).await.unwrap();

    let list = "/apis/g001.bench.portico.dev/v1/namespaces/default/simulatedwidgets01";
    rig.await_status(list, 200).await;
    let counts = fleet.servers()[1].requests();
    assert_eq!(counts.by_user["alice"], counts.by_path[list]);
    assert_eq!(counts.connections_without_certificate, 0);
    assert!(counts.connections_with_certificate > 0);

    let mut alice = rig.alice(Protocol::Http2).await;
    let hung = "/apis/g000.bench.portico.dev/v1/simulatedwidgets01";
    let ask = Ask::get(format!("{hung}?timeout=1s"));
    assert_ne!(within("an answer", alice.send(&ask)).await.status, 200);

    assert_eq!(place.clean_up().await.unwrap(), 1);
    rig.await_status(list, 404).await;
    assert_eq!(files(&rig), 0);
}

#[tokio::test]
async fn a_server_behaves_as_it_is_told_while_it_runs() {
    let rig = Setup::new().start().await;
    let fleet = Fleet::start(&spec(&[Fault::None])).unwrap();
    place(&rig).add(&fleet, fleet.servers()).await.unwrap();
    let server = &fleet.servers()[0];
    let list = "/apis/g000.bench.portico.dev/v2/simulatedwidgets03";
    rig.await_status(list, 200).await;
    server.behave(WELL.with(Fault::Status(StatusCode::IM_A_TEAPOT)));
    rig.await_status(list, 418).await;
    server.behave(WELL.with(Fault::Refuse));
    rig.await_status(list, 503).await;
    server.behave(WELL);
    rig.await_status(list, 200).await;

    let added = "/apis/g000.bench.portico.dev/v2/changes-1";
    rig.await_status(added, 404).await;
    assert_eq!(server.change().unwrap(), 1);
    rig.await_status(added, 200).await;
}

/// Plays a plan against portico as `portico bench` does.
async fn play(rig: &Rig, plan: Plan) -> Outcome {
    let config = rig.kube_config();
    let mut scenario = Scenario::start(plan, place(rig), config).await.unwrap();
    scenario.register().await.unwrap();
    let complete = scenario.complete().await.unwrap();
    if complete {
        scenario.play().await.unwrap();
    }
    let outcome = scenario.end().await;
    assert!(complete, "{outcome:?}");
    outcome
}

fn plan(faults: &[Fault]) -> Plan {
    Plan {
        fleet: spec(faults),
        fault_after: None,
        change_every: None,
        course: Duration::from_secs(2),
        complete_within: LIMIT / 2,
    }
}

#[tokio::test]
async fn a_scenario_says_when_the_document_is_complete_and_how_soon_a_server_comes_and_goes() {
    let asking = |_: &mut Config, tuning: &mut Tuning| *tuning = Tuning::default();
    let rig = Setup::new().edit(asking).start().await;
    let faults = [Fault::Hang, Fault::None, Fault::None, Fault::None, Fault::None];
    let outcome = within("the scenario", play(&rig, plan(&faults))).await;
    assert_eq!((outcome.servers, outcome.faulty), (5, 1));
    assert!(outcome.complete_well.is_some());
    assert!(outcome.complete.is_none(), "the hung server was complete");
    let visible = &outcome.visible;
    assert!(visible.added.is_some() && visible.removed.is_some());
    assert!(visible.added_after_answer.unwrap().ms <= visible.added.unwrap().ms);
    let current =
        |track: usize| outcome.tracks[track].spans.iter().any(|span| span.state == State::Current);
    assert!(!current(0) && !current(1));
    assert!((2..12).all(current), "{:?}", outcome.tracks);
    assert_eq!(outcome.looks.failed, 0, "{:?}", outcome.looks.last_failure);
    assert_eq!(outcome.not_removed, None);
    assert_eq!(files(&rig), 0);
    let gone = async || {
        let mut alice = rig.alice(Protocol::Http1).await;
        !alice.get("/apis").await.text().contains("bench.portico.dev")
    };
    eventually("the groups are gone", gone).await;
}

#[tokio::test]
async fn a_second_scenario_is_refused_while_the_first_one_is_registered() {
    let rig = Setup::new().start().await;
    let config = rig.kube_config();
    let mut first =
        Scenario::start(plan(&[Fault::None]), place(&rig), config.clone()).await.unwrap();
    first.register().await.unwrap();
    let second = Scenario::start(plan(&[Fault::None]), place(&rig), config).await;
    let error = second.unwrap_err().to_string();
    assert!(error.contains("another benchmark runs"), "{error}");
    // Given up before anything was seen, and removed all the same.
    let outcome = first.end().await;
    assert_eq!((outcome.not_removed, files(&rig)), (None, 0));
}
