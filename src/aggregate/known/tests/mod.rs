//! Who is asked when, with every time given: no task, no socket, no clock.

mod showing;

use http::HeaderValue;
use serde_json::{Value, json};

use super::*;
use crate::model::discovery::policy::{Policy, WhileDown};
use crate::model::fault::{Hop, ServicePort};
use crate::model::routing_table::{Remote, Route};
use crate::upstream::{self, BackendSpec, Upstreams};

/// When tests begin, in Unix milliseconds.
const BEGIN_MS: u64 = 1_800_000_000_000;
const GROUP: &str = "g.example.com";

/// What is known, with the table that it follows.
struct World {
    known: Known,
    upstreams: Upstreams,
    table: Table,
    metrics: Arc<Metrics>,
    begin: Instant,
}

impl World {
    fn new() -> Self {
        Self::with_kept(None)
    }

    fn with_kept(kept: Option<Vec<(String, Record)>>) -> Self {
        let metrics = Arc::new(Metrics::new().unwrap());
        let known = Known::new(Schedule::default(), Assembly::new(), Arc::clone(&metrics), kept);
        let upstreams = Upstreams::new(upstream::Config::default(), Arc::clone(&metrics));
        Self { known, upstreams, table: Table::default(), metrics, begin: Instant::now() }
    }

    fn at(&self, ms: u64) -> Now {
        Now { instant: self.begin + Duration::from_millis(ms), unix_ms: BEGIN_MS + ms }
    }

    /// Registers a version of [`GROUP`] at a service, or changes how.
    fn register(&mut self, version: &str, service: &str, policy: Policy, ms: u64) {
        self.register_with(version, service, policy, None, ms);
    }

    fn register_with(
        &mut self,
        version: &str,
        service: &str,
        discovery: Policy,
        fault: Option<Fault>,
        ms: u64,
    ) {
        let name: Arc<str> = format!("{version}.{GROUP}").into();
        let spec = spec(service);
        let service = spec.service.clone();
        let backend = self.upstreams.upstream(&name, GROUP, version, spec);
        let entry = Entry {
            group: GROUP.into(),
            version: version.into(),
            group_priority: 1000,
            version_priority: 10,
            route: Arc::new(Route::Remote(Remote { name, service, backend, fault, discovery })),
        };
        self.table = self.table.clone().with(entry);
        self.reconcile(ms);
    }

    fn unregister(&mut self, version: &str, ms: u64) {
        self.table = self.table.clone().without(GROUP, version);
        self.reconcile(ms);
    }

    fn reconcile(&mut self, ms: u64) {
        self.known.reconcile(&Arc::new(self.table.clone()), self.at(ms));
    }

    fn questions(&mut self, ms: u64) -> Vec<Question> {
        self.known.questions(self.at(ms))
    }

    /// The only question of that moment.
    #[track_caller]
    fn question(&mut self, ms: u64) -> Question {
        let mut questions = self.questions(ms);
        assert_eq!(questions.len(), 1, "{questions:?}");
        questions.remove(0)
    }

    #[track_caller]
    fn check_nobody_asked_until(&mut self, ms: u64) {
        let questions = self.questions(ms);
        assert!(questions.is_empty(), "{questions:?}");
    }

    /// Asks what is due and has each version answered with one resource of that name.
    #[track_caller]
    fn learn(&mut self, resource: &str, ms: u64) {
        let question = self.question(ms);
        let answer = answer(&question, Some("\"tag\""), resource);
        self.known.answered(&question, Ok(answer), self.at(ms));
    }

    #[track_caller]
    fn fail(&mut self, ms: u64) {
        let question = self.question(ms);
        self.known.answered(&question, Err(Hop::Deadline.into()), self.at(ms));
    }

    fn not_modified(&mut self, ms: u64) {
        let question = self.question(ms);
        assert!(question.etag.is_some());
        self.known.answered(&question, Ok(Answer::NotModified), self.at(ms));
    }

    /// The pause from then until the next question, in milliseconds.
    fn pause(&self, ms: u64) -> u128 {
        let now = self.at(ms);
        (self.known.next(now).unwrap() - now.instant).as_millis()
    }

    /// Each version of the aggregated document with its freshness and resources.
    fn shown(&mut self) -> Vec<String> {
        let document: Value =
            serde_json::from_slice(&self.known.publish().aggregated().json()).unwrap();
        let groups = document["items"].as_array().unwrap().iter();
        let ours = groups.filter(|group| group["metadata"]["name"] == GROUP);
        let versions = ours.flat_map(|group| group["versions"].as_array().unwrap());
        let line = |version: &Value| {
            let resources = version["resources"].as_array();
            let names = resources.into_iter().flatten().map(|one| one["resource"].as_str());
            let names: Vec<&str> = names.map(Option::unwrap).collect();
            let text = |name: &str| version[name].as_str().unwrap().to_owned();
            format!("{} {} {}", text("version"), text("freshness"), names.join(","))
        };
        versions.map(line).collect()
    }

    fn legacy(&mut self, version: &str) -> Result<String, Option<&'static str>> {
        match self.known.publish().resources(GROUP, version) {
            Ok(document) => Ok(String::from_utf8(document.json()).unwrap()),
            Err(fault) => Err(fault.map(|fault| fault.hop.word())),
        }
    }

    fn backend(&self, version: &str) -> Arc<Backend> {
        let wanted = wanted(version);
        Arc::clone(&self.known.asked[&self.known.places[&wanted]].backend)
    }

    fn doubt(&mut self, version: &str, why: Doubt, ms: u64) {
        self.backend(version).doubt(why);
        self.known.doubted(self.at(ms));
    }
}

fn spec(service: &str) -> BackendSpec {
    BackendSpec {
        service: ServicePort { namespace: "n".into(), name: service.into(), port: 443 },
        ca_bundle: Arc::default(),
        insecure_skip_tls_verify: true,
    }
}

fn wanted(version: &str) -> GroupVersion {
    GroupVersion { group: GROUP.into(), version: version.into() }
}

fn policy(while_down: WhileDown) -> Policy {
    Policy { while_down, ..Policy::default() }
}

fn stale() -> Policy {
    Policy::default()
}

fn learnt(wanted: &GroupVersion, resource: &str) -> Learnt {
    let resources = json!([{ "resource": resource, "scope": "Cluster",
        "responseKind": { "group": "", "version": "", "kind": "Thing" },
        "singularResource": "", "verbs": ["get"] }]);
    let resources = Bytes::from(resources.to_string());
    let legacy = crate::aggregate::fetch::legacy_of_resources(wanted, &resources).unwrap();
    Learnt { resources: Ok(resources), legacy }
}

fn answer(question: &Question, etag: Option<&'static str>, resource: &str) -> Answer {
    let versions = question.versions.iter().map(|wanted| Ok(learnt(wanted, resource)));
    Answer::Versions {
        etag: etag.map(HeaderValue::from_static),
        from_legacy: false,
        versions: versions.collect(),
    }
}

fn names(question: &Question) -> Vec<&str> {
    question.versions.iter().map(|wanted| &*wanted.version).collect()
}

#[test]
fn a_server_is_asked_once_for_all_its_versions_and_not_while_its_answer_is_awaited() {
    let mut world = World::new();
    world.register("v1", "one", stale(), 0);
    world.register("v2", "one", stale(), 0);
    world.register("v3", "two", stale(), 0);
    let questions = world.questions(0);
    assert_eq!(questions.iter().map(names).collect::<Vec<_>>().concat().len(), 3);
    assert_eq!(questions.len(), 2);
    world.check_nobody_asked_until(3_600_000);
    for question in &questions {
        world.known.answered(question, Ok(answer(question, None, "a")), world.at(3_600_000));
    }
    assert_eq!(world.shown(), ["v3 Current a", "v2 Current a", "v1 Current a"]);
    world.check_nobody_asked_until(3_600_000 + 53_999);
    assert_eq!(world.questions(3_600_000 + 66_001).len(), 2);
}

#[test]
fn a_version_that_comes_while_its_server_is_asked_has_it_asked_again_and_shares_no_answer() {
    let mut world = World::new();
    world.register("v1", "one", stale(), 0);
    world.learn("a", 0);
    let first = world.question(70_000);
    assert!(first.etag.is_some());
    world.register("v2", "one", stale(), 70_050);
    world.check_nobody_asked_until(70_060);
    world.known.answered(&first, Ok(Answer::NotModified), world.at(70_060));
    world.register("v2", "one", policy(WhileDown::Hold(Duration::from_secs(3600))), 70_060);
    assert_eq!(world.shown(), ["v2 Stale ", "v1 Current a"], "304 tells nothing of what is new");
    let second = world.question(70_060);
    assert_eq!((names(&second), second.etag.is_some()), (vec!["v1", "v2"], false));
    world.known.answered(&second, Ok(answer(&second, None, "b")), world.at(70_070));
    assert_eq!(world.shown(), ["v2 Current b", "v1 Current b"]);
}

#[test]
fn pauses_grow_with_failures_within_a_tenth_and_end_with_an_answer() {
    let mut world = World::new();
    world.register("v1", "one", stale(), 0);
    let mut ms = 0;
    for expected in [500, 1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 60_000, 60_000] {
        world.fail(ms);
        let pause = world.pause(ms);
        assert!((expected * 9 / 10 - 1..=expected * 11 / 10).contains(&pause), "{pause}");
        ms += 70_000;
    }
    world.learn("a", ms);
    assert!((53_999..=66_000).contains(&world.pause(ms)));
    world.fail(ms + 70_000);
    assert!((449..=550).contains(&world.pause(ms + 70_000)));
}

#[test]
fn unknown_resources_have_a_server_asked_soon_but_not_more_often_than_callers_may() {
    let mut world = World::new();
    world.register("v1", "one", stale(), 0);
    world.learn("a", 0);
    world.doubt("v1", Doubt::UnknownResource, 1_000);
    world.doubt("v1", Doubt::UnknownResource, 2_000);
    world.check_nobody_asked_until(4_999);
    world.learn("b", 5_000);
    world.doubt("v1", Doubt::UnknownResource, 40_000);
    let question = world.question(40_000);
    world.doubt("v1", Doubt::UnknownResource, 40_500);
    world.known.answered(&question, Ok(answer(&question, None, "c")), world.at(41_000));
    world.check_nobody_asked_until(44_999);
    world.fail(45_000);
    world.doubt("v1", Doubt::UnknownResource, 45_001);
    world.check_nobody_asked_until(45_449);
    assert!(world.pause(45_000) >= 449, "a server that fails is asked when it is due");
}

#[test]
fn a_server_that_moved_is_asked_at_once_and_its_old_answer_does_not_count() {
    let mut world = World::new();
    world.register("v1", "one", stale(), 0);
    let old = world.question(0);
    world.doubt("v1", Doubt::Moved, 200);
    let new = world.question(200);
    world.known.answered(&old, Ok(answer(&old, None, "old")), world.at(201));
    assert_eq!(world.shown(), ["v1 Stale "]);
    world.known.answered(&new, Ok(answer(&new, None, "new")), world.at(202));
    world.known.answered(&old, Ok(answer(&old, None, "old")), world.at(203));
    assert_eq!(world.shown(), ["v1 Current new"]);
    world.fail(70_000);
    world.doubt("v1", Doubt::Moved, 70_001);
    world.learn("back", 70_001);
    assert_eq!(world.shown(), ["v1 Current back"]);
}

#[test]
fn a_young_question_is_not_given_up_but_asked_again() {
    let mut world = World::new();
    world.register("v1", "one", stale(), 0);
    let young = world.question(0);
    world.doubt("v1", Doubt::Moved, 99);
    world.check_nobody_asked_until(99);
    world.known.answered(&young, Ok(answer(&young, None, "a")), world.at(110));
    assert_eq!(world.shown(), ["v1 Current a"]);
    world.learn("b", 110);
    assert_eq!(world.shown(), ["v1 Current b"]);
    world.check_nobody_asked_until(54_000);
}

#[test]
fn a_young_question_that_is_not_answered_went_to_the_old_place_and_is_given_up() {
    let mut world = World::new();
    world.register("v1", "one", stale(), 0);
    let young = world.question(0);
    world.doubt("v1", Doubt::Moved, 10);
    world.check_nobody_asked_until(99);
    let new = world.question(100);
    world.known.answered(&young, Ok(answer(&young, None, "old")), world.at(101));
    assert_eq!(world.shown(), ["v1 Stale "]);
    world.known.answered(&new, Ok(answer(&new, None, "new")), world.at(102));
    assert_eq!(world.shown(), ["v1 Current new"]);
    world.check_nobody_asked_until(54_000);
}

#[test]
fn the_tag_goes_with_a_new_version_a_failed_one_and_an_answer_without() {
    let mut world = World::new();
    world.register("v1", "one", stale(), 0);
    world.learn("a", 0);
    world.register("v2", "one", stale(), 1_000);
    let question = world.question(1_000);
    assert_eq!(question.etag, None, "a new version is not in the document that is known");
    let failed = Answer::Versions {
        etag: Some(HeaderValue::from_static("\"1\"")),
        from_legacy: false,
        versions: vec![Ok(learnt(&wanted("v1"), "a")), Err(Hop::InvalidDiscovery.into())],
    };
    world.known.answered(&question, Ok(failed), world.at(1_000));
    assert_eq!(world.shown(), ["v2 Stale ", "v1 Current a"]);
    assert_eq!(world.legacy("v2"), Err(Some("InvalidDiscovery")));
    assert!((449..=550).contains(&world.pause(1_000)));
    let question = world.question(2_000);
    assert_eq!(question.etag, None, "a failed version is not in it either");
    world.known.answered(&question, Ok(answer(&question, Some("\"2\""), "a")), world.at(2_000));
    let question = world.question(70_000);
    assert_eq!(question.etag, Some(HeaderValue::from_static("\"2\"")));
    world.known.answered(&question, Ok(answer(&question, None, "a")), world.at(70_000));
    assert_eq!(world.question(140_000).etag, None);
}

#[test]
fn a_version_that_moves_to_another_server_keeps_what_is_known_until_that_has_answered() {
    let mut world = World::new();
    world.register("v1", "one", stale(), 0);
    world.learn("a", 0);
    let old = world.backend("v1");
    world.register("v1", "two", stale(), 1_000);
    assert_eq!(world.shown(), ["v1 Current a"]);
    assert!(!world.known.asks(BackendKey::of(&old)));
    let question = world.question(1_000);
    assert!(!Arc::ptr_eq(&question.backend, &old));
    assert_eq!(question.etag, None);
    world.known.answered(&question, Err(Hop::ConnectRefused.into()), world.at(1_001));
    assert_eq!(world.shown(), ["v1 Stale a"]);
    world.learn("b", 2_000);
    assert_eq!(world.shown(), ["v1 Current b"]);
}

#[test]
fn a_server_is_forgotten_with_its_last_version() {
    let mut world = World::new();
    world.register("v1", "one", policy(WhileDown::Hold(Duration::from_secs(3600))), 0);
    world.register("v2", "one", stale(), 0);
    world.learn("a", 0);
    world.fail(70_000);
    let key = BackendKey::of(&world.backend("v1"));
    world.unregister("v2", 70_001);
    assert_eq!(world.shown(), ["v1 Current a"]);
    assert!(world.known.asks(key));
    let late = world.question(71_000);
    world.unregister("v1", 71_001);
    assert!(world.shown().is_empty());
    assert!(!world.known.asks(key));
    assert_eq!(world.known.next(world.at(71_001)), None);
    world.known.answered(&late, Ok(answer(&late, None, "b")), world.at(71_002));
    assert!(world.shown().is_empty());
    assert_eq!(world.known.next(world.at(71_002)), None);
}

#[test]
fn versions_own_documents_are_asked_for_besides_and_not_where_they_were_the_source() {
    let mut world = World::new();
    world.register("v1", "one", stale(), 0);
    world.register("v2", "one", Policy { legacy_from_backend: true, ..stale() }, 0);
    let question = world.question(0);
    let own = world.known.answered(&question, Ok(answer(&question, None, "a")), world.at(0));
    assert_eq!(own, [wanted("v1")]);
    let text = Bytes::from_static(b"{\"resources\":[\"own\"]}");
    let mine = Learnt { legacy: text.clone(), ..learnt(&wanted("v1"), "a") };
    world.known.own_documents(question.key, vec![(wanted("v1"), Ok(mine))], world.at(1));
    assert_eq!(world.legacy("v1").unwrap().as_bytes(), text);
    let question = world.question(70_000);
    let own = world.known.answered(&question, Ok(answer(&question, None, "a")), world.at(70_000));
    assert!(own.is_empty(), "nothing has changed: {own:?}");
    assert_eq!(world.legacy("v1").unwrap().as_bytes(), text);
    let question = world.question(140_000);
    let own = world.known.answered(&question, Ok(answer(&question, None, "b")), world.at(140_000));
    assert_eq!(own, [wanted("v1")], "it has");

    world.register("v3", "two", stale(), 140_000);
    let question = world.question(140_000);
    let learnt = vec![Ok(learnt(&wanted("v3"), "c"))];
    let answer = Answer::Versions { etag: None, from_legacy: true, versions: learnt };
    let own = world.known.answered(&question, Ok(answer), world.at(140_000));
    assert!(own.is_empty(), "they are what was answered: {own:?}");
}
