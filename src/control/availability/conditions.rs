//! What the leader writes: the condition `Available` of each APIService, when portico's verdict
//! changes. Who writes something else afterwards is not fought.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1::{
    APIService, APIServiceCondition,
};
use kube::api::{Api, Patch, PatchParams};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};

use crate::control::watch::{Servers, explain};
use crate::model::availability::{AVAILABLE, Reported};
use crate::runtime::snapshot::View;
use crate::store::{Kind, Store, Stored};

/// Conditions that are being written at a time.
const WRITES_MAX: usize = 8;
/// How long writing one may take.
const WRITE_LIMIT: Duration = Duration::from_secs(10);
/// After some could not be written.
const RETRY_INTERVAL: Duration = Duration::from_secs(10);

/// What was written last about one APIService: of which object, and what.
type Written = HashMap<Arc<str>, (Option<String>, APIServiceCondition)>;

/// Writes conditions while this replica leads.
#[derive(Debug)]
pub(super) struct Conditions {
    /// The APIServices at each server.
    apis: Vec<Api<APIService>>,
    store: Store,
    reported: View<Reported>,
    leading: watch::Receiver<bool>,
}

/// A condition to be written.
#[derive(Clone, Debug)]
struct Due {
    name: Arc<str>,
    uid: Option<String>,
    condition: APIServiceCondition,
    /// False when the cluster says the same already.
    is_needed: bool,
}

impl Conditions {
    pub(super) fn new(
        servers: &Servers,
        store: Store,
        reported: View<Reported>,
        leading: watch::Receiver<bool>,
    ) -> Self {
        Self { apis: servers.each(Api::all), store, reported, leading }
    }

    /// Writes for ever.
    pub(super) async fn run(mut self) {
        while self.leading.wait_for(|leads| *leads).await.is_ok() {
            if self.lead().await.is_none() {
                return;
            }
        }
    }

    /// Writes until leadership was lost, be it to be had again. Then nothing counts as written:
    /// whoever led meanwhile may have written otherwise. None when nothing will change any more.
    async fn lead(&mut self) -> Option<()> {
        let mut revisions = self.store.subscribe();
        let mut written = Written::new();
        let mut said = None;
        loop {
            revisions.mark_unchanged();
            let (stored, _) = self.store.list(Kind::ApiService);
            let due = due(&stored, &self.reported.load(), &mut written);
            let failed = self.write(due, &mut written).await;
            if failed.is_some() && failed != said {
                tracing::warn!(error = failed, "availability cannot be written");
            }
            let again = Instant::now() + RETRY_INTERVAL;
            let is_failed = failed.is_some();
            said = failed;
            tokio::select! {
                // Lest a change of the objects hide one of leadership.
                biased;
                changed = self.leading.changed() => return changed.ok(),
                changed = revisions.changed() => changed.ok()?,
                () = sleep_until(again), if is_failed => self.apis.rotate_left(1),
            }
        }
    }

    /// Writes what is due; the last error, if any.
    async fn write(&self, due: Vec<Due>, written: &mut Written) -> Option<String> {
        let mut failed = None;
        let mut writing = stream::iter(due)
            .map(|due| async {
                let done = if due.is_needed { self.write_one(&due).await } else { Ok(()) };
                (due, done)
            })
            .buffer_unordered(WRITES_MAX);
        while let Some((due, done)) = writing.next().await {
            match done {
                Ok(()) => drop(written.insert(due.name, (due.uid, due.condition))),
                Err(error) => failed = Some(error),
            }
            if !*self.leading.borrow() {
                break;
            }
        }
        failed
    }

    async fn write_one(&self, due: &Due) -> Result<(), String> {
        let Some(api) = self.apis.first() else { return Ok(()) };
        let patch = Patch::Strategic(patch(&due.condition));
        let params = PatchParams::default();
        match timeout(WRITE_LIMIT, api.patch_status(&due.name, &params, &patch)).await {
            Ok(Ok(_)) => Ok(()),
            // Gone in the meantime.
            Ok(Err(kube::Error::Api(status))) if status.code == 404 => Ok(()),
            Ok(Err(error)) => Err(explain(&error)),
            Err(_) => Err("no answer in time".to_owned()),
        }
    }
}

/// Merged by type on the server, so that other conditions stay.
fn patch(condition: &APIServiceCondition) -> Value {
    json!({ "status": { "conditions": [condition] } })
}

/// What portico says of the APIServices and has not written yet; those that are gone are forgotten.
fn due(stored: &[Arc<Stored>], reported: &Reported, written: &mut Written) -> Vec<Due> {
    let due: Vec<Due> = stored.iter().filter_map(|stored| one(stored, reported, written)).collect();
    written.retain(|name, _| stored.binary_search_by(|stored| stored.key.name.cmp(name)).is_ok());
    due
}

fn one(stored: &Stored, reported: &Reported, written: &Written) -> Option<Due> {
    let object = stored.object.as_api_service()?;
    let conditions = object.status.as_ref()?.conditions.as_ref()?;
    let mut condition = conditions.iter().find(|it| it.type_ == AVAILABLE)?.clone();
    let (name, uid) = (Arc::clone(&stored.key.name), object.metadata.uid.clone());
    let last = written.get(&name);
    if last.is_some_and(|(of, last)| *of == uid && says_the_same(last, &condition)) {
        return None;
    }
    let said = reported.get(&name);
    let is_needed = !said.is_some_and(|said| says_the_same(said, &condition));
    if let Some(said) = said.filter(|said| said.status == condition.status) {
        condition.last_transition_time.clone_from(&said.last_transition_time);
    }
    Some(Due { name, uid, condition, is_needed })
}

fn says_the_same(one: &APIServiceCondition, other: &APIServiceCondition) -> bool {
    (&one.status, &one.reason, &one.message) == (&other.status, &other.reason, &other.message)
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::*;
    use crate::control::watch::scripted;
    use crate::model::availability::{Condition, Status};
    use crate::runtime::tasks;
    use crate::store::{Change, Key, Object};

    fn store(conditions: &[(&str, Condition)]) -> Store {
        let store = Store::new();
        for (name, _) in conditions {
            let spec = json!({"groupPriorityMinimum": 1, "versionPriority": 1,
                              "service": {"namespace": "n", "name": "s"}});
            let object = json!({"metadata": {"name": name}, "spec": spec});
            let object = serde_json::from_value(object).unwrap();
            store.apply(vec![Change::Put(Object::ApiService(object))]);
        }
        set(&store, conditions);
        store
    }

    fn set(store: &Store, conditions: &[(&str, Condition)]) {
        let conditions: Vec<_> = conditions
            .iter()
            .map(|(name, condition)| ((*name).into(), condition.clone()))
            .collect();
        store.set_statuses(&conditions);
    }

    fn failed() -> Condition {
        Condition::failed("MissingEndpoints", "none".to_owned())
    }

    fn said(condition: &Condition) -> APIServiceCondition {
        APIServiceCondition {
            type_: AVAILABLE.to_owned(),
            status: condition.status.as_str().to_owned(),
            reason: Some(condition.reason.to_owned()),
            message: Some(condition.message.clone()),
            last_transition_time: Some(Time(Timestamp::UNIX_EPOCH)),
        }
    }

    /// What is due, with whether it is to be sent; it counts as written afterwards.
    fn round(store: &Store, reported: &Reported, written: &mut Written) -> Vec<(String, bool)> {
        let due = due(&store.list(Kind::ApiService).0, reported, written);
        for due in &due {
            written.insert(Arc::clone(&due.name), (due.uid.clone(), due.condition.clone()));
        }
        due.iter().map(|due| (due.name.to_string(), due.is_needed)).collect()
    }

    #[test]
    fn a_verdict_is_written_once_and_only_where_the_cluster_says_otherwise() {
        let store = store(&[("a", Condition::passed()), ("b", failed())]);
        let mut written = Written::new();
        let mut reported = Reported::new();
        reported.insert("a".into(), said(&Condition::passed()));
        reported.insert("b".into(), said(&Condition::passed()));
        let expected = [("a".to_owned(), false), ("b".to_owned(), true)];
        assert_eq!(round(&store, &reported, &mut written), expected);
        assert!(round(&store, &reported, &mut written).is_empty());
        set(&store, &[("a", failed())]);
        assert_eq!(round(&store, &reported, &mut written), [("a".to_owned(), true)]);
        // What somebody else writes afterwards stays.
        reported.insert("b".into(), said(&Condition::passed()));
        assert!(round(&store, &reported, &mut written).is_empty());
    }

    #[test]
    fn an_object_that_was_made_anew_is_written_anew() {
        let store = store(&[("a", failed())]);
        let mut written = Written::new();
        assert_eq!(round(&store, &Reported::new(), &mut written).len(), 1);
        let object = store.get(&Key::api_service("a")).unwrap().object.clone();
        store.apply(vec![Change::Delete(Key::api_service("a")), Change::Put(object)]);
        set(&store, &[("a", failed())]);
        assert_eq!(round(&store, &Reported::new(), &mut written).len(), 1);
        store.apply(vec![Change::Delete(Key::api_service("a"))]);
        assert!(round(&store, &Reported::new(), &mut written).is_empty());
        assert!(written.is_empty());
    }

    #[test]
    fn the_time_of_the_transition_is_the_clusters_while_the_status_is() {
        let store = store(&[("a", failed())]);
        let other = Condition { reason: "Other", ..failed() };
        let reported = [("a".into(), said(&other))].into();
        let due = due(&store.list(Kind::ApiService).0, &reported, &mut Written::new());
        let time = due[0].condition.last_transition_time.clone().unwrap();
        assert_eq!(time.0, Timestamp::UNIX_EPOCH);
        assert_eq!(due[0].condition.status, Status::False.as_str());
        let condition = &patch(&due[0].condition)["status"]["conditions"][0];
        assert_eq!(condition["type"], "Available");
        assert_eq!(condition["reason"], "MissingEndpoints");
    }

    #[tokio::test]
    async fn everything_is_written_again_after_leadership_was_lost_however_shortly() {
        let store = store(&[("a", failed())]);
        let (told, mut patches) = watch::channel(0);
        let servers = scripted::servers(vec![scripted::client(move |_, _| {
            told.send_modify(|count| *count += 1);
            Some((200, json!({"metadata": {"name": "a"}})))
        })]);
        let (leading, leads) = watch::channel(true);
        let reported = View::fixed(Reported::new());
        let conditions = Conditions::new(&servers, store.clone(), reported, leads);
        let _task = tasks::spawn_owned("conditions", conditions.run());
        for round in 0..20 {
            let written = patches.wait_for(|count| *count > round);
            timeout(Duration::from_secs(10), written).await.expect("written again").unwrap();
            // All at once, as the task sees it.
            leading.send_replace(false);
            leading.send_replace(true);
            set(&store, &[("a", Condition::passed())]);
            set(&store, &[("a", failed())]);
        }
    }
}
