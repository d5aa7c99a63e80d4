//! Answers are kept for as long as they are good, and questions are asked once.

use std::sync::atomic::AtomicUsize;
use std::sync::mpsc::sync_channel;

use futures_util::FutureExt as _;
use tokio::runtime;
use tokio::sync::Notify;

use super::*;
use crate::runtime::telemetry::Metrics;

const KEY: Key = [7; 32];
const LONG: Duration = Duration::from_secs(3600);

fn reviews(outage_ttl: Duration) -> KeptReviews<&'static str> {
    let limits = Limits { answers_max: 2, refusals_max: 2, outage_ttl };
    KeptReviews::new(limits, Metrics::new().unwrap().reviews.token_cache)
}

fn found(answer: &'static str, ttl: Duration) -> Found<&'static str> {
    Found { answer, ttl: Some(ttl), is_refusal: false }
}

/// With an answer that is past its time.
fn with_an_old_answer() -> KeptReviews<&'static str> {
    let reviews = reviews(LONG);
    reviews.0.keep(KEY, Ok(found("old", Duration::ZERO))).unwrap();
    reviews
}

fn known(reviews: &KeptReviews<&'static str>, key: &Key, now: Instant) -> String {
    match reviews.0.look(key, now) {
        Look::Known(answer) => answer.to_owned(),
        Look::Old(answer) => format!("old {answer}"),
        Look::Ask(None) => "ask".to_owned(),
        Look::Ask(Some(answer)) => format!("ask, or {answer}"),
    }
}

#[test]
fn an_answer_has_its_time_and_then_that_of_an_outage() {
    let reviews = reviews(Duration::from_secs(60));
    let begun = Instant::now();
    let at = |seconds| begun + Duration::from_secs(seconds);
    assert_eq!(known(&reviews, &KEY, at(0)), "ask");
    reviews.0.keep(KEY, Ok(found("yes", Duration::from_secs(10)))).unwrap();
    assert_eq!(known(&reviews, &KEY, at(9)), "yes");
    assert_eq!(known(&reviews, &KEY, at(11)), "ask, or yes");
    reviews.0.outage.fails(at(11));
    // Asking is of no use just after a failure.
    assert_eq!(known(&reviews, &KEY, at(11)), "old yes");
    assert_eq!(known(&reviews, &KEY, at(13)), "ask, or yes");
    assert_eq!(known(&reviews, &KEY, at(71)), "ask");
}

#[test]
fn refusals_push_out_no_others_and_the_last_answer_alone_counts() {
    let reviews = reviews(LONG);
    let keep = |key: u8, is_refusal| {
        let found = Found { answer: "x", ttl: Some(LONG), is_refusal };
        reviews.0.keep([key; 32], Ok(found)).unwrap();
    };
    keep(1, false);
    for key in 10..100 {
        keep(key, true);
    }
    reviews.0.refusals.run_pending_tasks();
    assert_eq!(reviews.0.refusals.entry_count(), 2);
    assert_eq!(known(&reviews, &[1; 32], Instant::now()), "x");
    keep(1, true);
    assert!(reviews.0.answers.get(&[1; 32]).is_none());
    keep(1, false);
    assert!(reviews.0.refusals.get(&[1; 32]).is_none());
    // What is not to be kept takes away what was.
    let found = Found { answer: "y", ttl: None, is_refusal: false };
    reviews.0.keep([1; 32], Ok(found)).unwrap();
    assert_eq!(known(&reviews, &[1; 32], Instant::now()), "ask");
}

/// A thread with a runtime of its own.
fn on_a_thread<T: Send + 'static>(
    work: impl Future<Output = T> + Send + 'static,
) -> thread::JoinHandle<T> {
    let runtime = runtime::Builder::new_current_thread().enable_all().build().unwrap();
    thread::spawn(move || runtime.block_on(work))
}

#[test]
fn a_thread_asks_for_itself_when_the_one_that_asks_is_stuck() {
    let reviews = Arc::new(reviews(Duration::ZERO));
    let (started, has_started) = sync_channel(1);
    let (release, released) = sync_channel::<()>(1);
    let stuck = {
        let reviews = Arc::clone(&reviews);
        on_a_thread(async move {
            let begin = |_: Failing| async { Ok(found("late", LONG)) }.boxed();
            assert!(reviews.ask(KEY, None, begin).now_or_never().is_none());
            started.send(()).unwrap();
            // Nothing runs on this thread now.
            assert!(released.recv().is_err());
        })
    };
    has_started.recv().unwrap();
    let other = {
        let reviews = Arc::clone(&reviews);
        on_a_thread(async move {
            let begin = |_: Failing| async { Ok(found("own", LONG)) }.boxed();
            reviews.ask(KEY, None, begin).await.unwrap()
        })
    };
    assert_eq!(other.join().unwrap(), "own");
    drop(release);
    stuck.join().unwrap();
    assert!(reviews.0.flights().is_empty());
}

#[test]
fn a_question_ends_with_its_thread_and_is_asked_anew() {
    let reviews = Arc::new(reviews(Duration::ZERO));
    let ending = {
        let reviews = Arc::clone(&reviews);
        on_a_thread(async move {
            let begin = |_: Failing| std::future::pending().boxed();
            assert!(reviews.ask(KEY, None, begin).now_or_never().is_none());
        })
    };
    ending.join().unwrap();
    assert!(reviews.0.flights().is_empty());
    let begin = |_: Failing| async { Ok(found("again", LONG)) }.boxed();
    let runtime = runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let answer = runtime.block_on(reviews.ask(KEY, None, begin));
    assert_eq!(answer.unwrap(), "again");
}

fn broken() -> Result<Found<&'static str>, Failure> {
    panic!("broken")
}

#[tokio::test]
async fn a_question_that_panics_is_an_error_and_leaves_nothing_behind() {
    let reviews = reviews(Duration::ZERO);
    let begin = |_: Failing| async { broken() }.boxed();
    let answer = reviews.ask(KEY, None, begin).await;
    assert!(matches!(answer, Err(NoAnswer::Failed(text)) if text == "the review was given up"));
    assert!(reviews.0.flights().is_empty());
    assert_eq!(reviews.0.metrics.in_flight.get(), 0);
}

#[tokio::test]
async fn who_has_an_old_answer_takes_it_after_the_first_failure_and_the_asking_goes_on() {
    let (start, reviews) = (Instant::now(), with_an_old_answer());
    let (asked, release) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
    let begin = |failing: Failing| {
        let (asked, release) = (Arc::clone(&asked), Arc::clone(&release));
        async move {
            asked.fetch_add(1, Ordering::SeqCst);
            failing();
            release.notified().await;
            Ok(found("new", LONG))
        }
        .boxed()
    };
    assert_eq!(reviews.ask(KEY, None, begin).await.unwrap(), "old");
    // As if the failure had been a while ago.
    reviews.0.outage.ends(start);
    assert_eq!(reviews.ask(KEY, None, begin).await.unwrap(), "old");
    assert_eq!(reviews.0.metrics.outages.get(), 2);
    let mut state = reviews.0.flights()[&KEY][0].state.clone();
    release.notify_one();
    let ended = state.wait_for(|state| matches!(state, State::Ended(Ok("new")))).await;
    assert!(ended.is_ok());
    assert_eq!(asked.load(Ordering::SeqCst), 1);
    assert_eq!(known(&reviews, &KEY, Instant::now()), "new");
}

#[tokio::test]
async fn an_old_answer_does_not_count_against_a_reviewer_that_is_there() {
    let reviews = with_an_old_answer();
    let begin = |_: Failing| async { Err(Failure::of_answer("nonsense".to_owned())) }.boxed();
    let answer = reviews.ask(KEY, None, begin).await;
    assert!(matches!(answer, Err(NoAnswer::Failed(text)) if text == "nonsense"));
}

#[tokio::test]
async fn who_does_not_wait_for_the_reviewer_gets_no_old_answer() {
    let reviews = with_an_old_answer();
    let begin = |_: Failing| std::future::pending().boxed();
    let answer = reviews.ask(KEY, Some(Instant::now()), begin).await;
    assert!(matches!(answer, Err(NoAnswer::Deadline)));
}

#[test]
fn a_reviewer_that_answers_others_is_waited_for() {
    let begun = Instant::now();
    let outage = Outage::new(begun);
    let at = |millis| begun + Duration::from_millis(millis);
    let patience_of = |since| outage.patience_ends(at(since)) - begun;
    assert_eq!(patience_of(500), Duration::from_millis(1500));
    outage.ends(at(300));
    assert_eq!(patience_of(500), Duration::from_millis(1500));
    outage.ends(at(1400));
    assert_eq!(patience_of(500), Duration::from_millis(2400));
    outage.fails(at(1900));
    assert_eq!(patience_of(500), Duration::from_millis(2400));
}

#[test]
fn a_question_that_takes_long_while_others_are_answered_is_no_outage() {
    let begun = Instant::now();
    let reviews = reviews(LONG);
    let at = |millis| begun + Duration::from_millis(millis);
    let cases = [
        // Nobody was answered since it began.
        (None, 10_000, false),
        (Some(0), 10_000, false),
        // The reviewer answered somebody just now.
        (Some(9_500), 10_000, true),
        // It did, and is gone since.
        (Some(8_000), 10_000, false),
        // What fails at once was not asked too much.
        (Some(1), 2, false),
    ];
    for (answered, failed, is_slow) in cases {
        let outage = Outage::new(begun);
        if let Some(answered) = answered {
            outage.ends(at(answered));
        }
        assert_eq!(outage.is_slow(begun, at(failed)), is_slow, "{answered:?} {failed}");
    }
    // An answer to another question came within the time that this one took.
    reviews.0.outage.ends(at(11_000));
    let long_ago = begun.checked_sub(Duration::from_secs(10)).unwrap();
    assert!(!reviews.0.judged(Failure::of_time(), long_ago).is_outage);
    assert!(reviews.0.judged(Failure::of_time(), Instant::now()).is_outage);
}
