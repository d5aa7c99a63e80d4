//! What is shown, kept and awaited, with every time given.

use super::*;
use crate::runtime::lifecycle::Readiness;

#[test]
fn the_last_good_list_stays_as_stale_and_a_304_makes_it_current() {
    let mut world = World::new();
    world.register("v1", "one", stale(), 0);
    assert_eq!(world.shown(), ["v1 Stale "]);
    assert_eq!(world.legacy("v1"), Err(None));
    world.learn("a", 0);
    let legacy = world.legacy("v1").unwrap();
    assert!(legacy.contains("\"name\":\"a\""), "{legacy}");
    world.fail(70_000);
    assert_eq!(world.shown(), ["v1 Stale a"]);
    assert_eq!(world.legacy("v1").as_deref(), Ok(legacy.as_str()));
    world.not_modified(140_000);
    assert_eq!(world.shown(), ["v1 Current a"]);
    assert_eq!(world.legacy("v1").as_deref(), Ok(legacy.as_str()));
}

#[test]
fn what_is_held_is_current_until_its_time_and_stale_after_it() {
    let mut world = World::new();
    world.register("v1", "one", policy(WhileDown::Hold(Duration::from_secs(100))), 0);
    assert_eq!(world.shown(), ["v1 Stale "], "nothing to be held");
    world.learn("a", 10_000);
    world.fail(80_000);
    assert_eq!(world.shown(), ["v1 Current a"]);
    world.fail(90_000);
    world.known.release_held(world.at(109_999));
    assert_eq!(world.shown(), ["v1 Current a"]);
    let question = world.question(109_000);
    assert_eq!(world.pause(109_000), 1_000, "its end is awaited");
    world.known.release_held(world.at(110_000));
    assert_eq!(world.shown(), ["v1 Stale a"]);
    world.known.answered(&question, Ok(Answer::NotModified), world.at(110_001));
    assert_eq!(world.shown(), ["v1 Current a"]);
    world.known.release_held(world.at(1_000_000));
    assert_eq!(world.shown(), ["v1 Current a"], "one that answers is not held");
}

#[test]
fn what_is_omitted_comes_back_with_its_resources() {
    let mut world = World::new();
    world.register("v1", "one", policy(WhileDown::Omit), 0);
    assert!(world.shown().is_empty());
    world.learn("a", 0);
    assert_eq!(world.shown(), ["v1 Current a"]);
    world.fail(70_000);
    assert!(world.shown().is_empty());
    assert_eq!(world.legacy("v1"), Err(Some("Deadline")));
    assert!(world.known.publish().group(GROUP).is_none());
    world.fail(140_000);
    assert!(world.shown().is_empty());
    world.not_modified(210_000);
    assert_eq!(world.shown(), ["v1 Current a"]);
    assert!(world.legacy("v1").is_ok());
}

#[test]
fn a_changed_policy_counts_at_once_and_its_server_is_asked_at_once() {
    let mut world = World::new();
    world.register("v1", "one", stale(), 0);
    world.learn("a", 0);
    world.fail(70_000);
    for (while_down, expected) in [
        (WhileDown::Omit, &[][..]),
        (WhileDown::Hold(Duration::from_secs(3600)), &["v1 Current a"]),
        (WhileDown::Hold(Duration::from_secs(1)), &["v1 Stale a"]),
        (WhileDown::Stale, &["v1 Stale a"]),
    ] {
        world.register("v1", "one", policy(while_down), 70_000);
        assert_eq!(world.shown(), expected, "{while_down:?}");
        assert_eq!(world.pause(70_000), 0, "{while_down:?}");
    }
    world.register("v1", "one", policy(WhileDown::Omit), 71_500);
    let question = world.question(71_500);
    world.known.answered(&question, Ok(answer(&question, None, "b")), world.at(72_000));
    assert_eq!(world.shown(), ["v1 Current b"]);
}

#[test]
fn a_changed_availability_has_the_server_asked_at_once_and_names_the_hop() {
    let mut world = World::new();
    let gone = Some(Hop::NoEndpoints.into());
    world.register_with("v1", "one", stale(), gone, 0);
    world.fail(0);
    assert_eq!(world.legacy("v1"), Err(Some("NoEndpoints")), "the table's fault comes first");
    world.register("v1", "one", stale(), 10);
    assert_eq!(world.legacy("v1"), Err(Some("Deadline")));
    world.learn("a", 10);
    assert_eq!(world.shown(), ["v1 Current a"]);
}

fn kept(service: &str) -> Record {
    let Learnt { resources, legacy } = learnt(&wanted("v1"), "kept");
    let legacy = legacy.slice_ref(legacy.trim_ascii_end());
    Record::new(&spec(service), BEGIN_MS - 1_000, resources.unwrap(), Some(legacy))
}

#[test]
fn what_was_kept_is_shown_as_stale_for_the_same_server_only() {
    let records = ["v1", "v2", "v3"].map(|version| (format!("{version}.{GROUP}"), kept("one")));
    let mut world = World::with_kept(Some(records.into()));
    world.register("v1", "one", stale(), 0);
    world.register("v2", "other", stale(), 0);
    assert_eq!(world.shown(), ["v2 Stale ", "v1 Stale kept"]);
    let served = learnt(&wanted("v1"), "kept").legacy;
    assert_eq!(world.legacy("v1").unwrap().as_bytes(), served);
    assert!(world.known.take_to_keep().is_empty(), "more may still be registered");
    world.table = world.table.clone().completed();
    world.reconcile(1);
    let gone: Vec<_> = world.known.take_to_keep().into_iter().collect();
    assert_eq!(gone, [(format!("v3.{GROUP}").into(), None)]);
}

#[test]
fn what_is_learnt_is_kept_and_what_is_not_registered_any_more_is_not() {
    let mut world = World::with_kept(Some(Vec::new()));
    world.register("v1", "one", stale(), 0);
    world.learn("a", 0);
    let name: Arc<str> = format!("v1.{GROUP}").into();
    let kept = world.known.take_to_keep();
    let record = kept[&name].clone().unwrap();
    assert_eq!(record.fetched, BEGIN_MS);
    assert_eq!(Ok(&record.resources), learnt(&wanted("v1"), "a").resources.as_ref());
    world.not_modified(70_000);
    world.fail(140_000);
    assert!(world.known.take_to_keep().is_empty(), "nothing new");
    world.not_modified(700_000);
    let aged = world.known.take_to_keep();
    assert_eq!(aged[&name].clone().unwrap().fetched, BEGIN_MS + 700_000);
    world.unregister("v1", 700_001);
    assert_eq!(world.known.take_to_keep()[&name], None);
}

#[test]
fn readiness_awaits_each_server_until_it_answers_in_whatever_way_or_is_given_up() {
    let mut world = World::new();
    for (version, service) in [("v1", "one"), ("v2", "two"), ("v3", "three"), ("v4", "four")] {
        world.register(version, service, stale(), 0);
    }
    let readiness = Readiness::default();
    let questions = world.questions(0);
    let answer_to = |world: &mut World, service: &str, answer: Result<Answer, Fault>| {
        let asked = |question: &&Question| &*question.backend.spec().service.name == service;
        let question = questions.iter().find(asked).unwrap();
        world.known.answered(question, answer, world.at(1));
    };
    answer_to(&mut world, "one", Err(Hop::Deadline.into()));
    world.known.await_all(&readiness);
    let awaited = ["discovery/n/four:443", "discovery/n/three:443", "discovery/n/two:443"];
    assert_eq!(readiness.awaited(), awaited);
    answer_to(&mut world, "two", Err(Hop::ConnectRefused.into()));
    assert_eq!(readiness.awaited(), awaited[..2]);
    world.unregister("v3", 2);
    assert_eq!(readiness.awaited(), awaited[..1]);
    assert!(world.known.awaits());
    world.register("v4", "four", policy(WhileDown::Omit), 3);
    assert_eq!(readiness.awaited(), awaited[..1], "another annotation is no answer");
    assert_eq!(world.known.give_up_awaiting(), 1);
    assert!(readiness.named().is_empty() && !world.known.awaits());
}

#[track_caller]
fn check_counts(world: &World, expected: [usize; 4]) {
    let text = world.metrics.render().unwrap();
    for (word, count) in ["current", "held", "stale", "omitted"].iter().zip(expected) {
        let line = format!("portico_discovery_versions{{shown=\"{word}\"}} {count}");
        let absent = count == 0 && !text.contains(&format!("shown=\"{word}\""));
        assert!(absent || text.contains(&line), "{line} in {text}");
    }
}

#[test]
fn metrics_count_versions_by_how_they_are_shown() {
    let mut world = World::new();
    world.register("v1", "one", stale(), 0);
    world.register("v2", "one", policy(WhileDown::Omit), 0);
    world.register("v3", "one", policy(WhileDown::Hold(Duration::from_secs(3600))), 0);
    check_counts(&world, [0, 0, 2, 1]);
    world.learn("a", 0);
    check_counts(&world, [3, 0, 0, 0]);
    world.fail(70_000);
    check_counts(&world, [0, 1, 1, 1]);
    for version in ["v1", "v2", "v3"] {
        world.unregister(version, 70_001);
    }
    check_counts(&world, [0, 0, 0, 0]);
}
