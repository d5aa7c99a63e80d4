//! What becomes of what watches tell, without watches.

use std::path::Path;

use serde_json::json;

use super::*;
use crate::control::watch::scripted;
use crate::control::watch::servers::ClusterId;

const CLIENT_CA: &str = "client-ca-file";

fn follower(keeping: (Option<Kept>, Vec<Object>, View<ClusterTrust>)) -> Follower {
    let (reports, _) = Publisher::new(Reported::new());
    Follower::new(scripted::servers(Vec::new()), Store::new(), reports, keeping)
}

fn alone() -> Follower {
    follower((None, Vec::new(), View::fixed(ClusterTrust::default())))
}

fn sight(scope: Scope) -> Sight {
    Sight { kind: Kind::Service, scope }
}

fn service(name: &str) -> Object {
    let object = json!({"metadata": {"namespace": "n", "name": name}});
    Object::Service(serde_json::from_value(object).unwrap())
}

/// The watch tells this.
fn tell(follower: &mut Follower, sight: &Sight, step: Result<Option<Step>, Trouble>) {
    let number = follower.watches.get(sight).unwrap().number;
    follower.take(Told { sight: sight.clone(), number, step });
    follower.flush();
}

#[tokio::test]
async fn the_trouble_of_a_watch_goes_with_it() {
    let mut follower = alone();
    let (all, some) = (sight(Scope::Cluster), sight(Scope::Namespace("n".into())));
    follower.begin(all.clone());
    follower.begin(some.clone());
    let trouble = Trouble { text: "500: no".to_owned(), is_forbidden: false };
    tell(&mut follower, &some, Err(trouble));
    assert_eq!(follower.troubles.len(), 1);
    tell(&mut follower, &all, Ok(Some(Step::Begin)));
    tell(&mut follower, &all, Ok(Some(Step::Complete)));
    assert!(follower.watches.keys().eq([&all]));
    assert!(follower.troubles.is_empty());
}

#[tokio::test]
async fn lists_that_break_off_do_not_pile_up() {
    let mut follower = alone();
    let all = sight(Scope::Cluster);
    follower.begin(all.clone());
    for _ in 0..10 {
        tell(&mut follower, &all, Ok(Some(Step::Begin)));
        for name in ["a", "b", "c"] {
            tell(&mut follower, &all, Ok(Some(Step::Listed(service(name)))));
        }
        assert_eq!((follower.first.len(), follower.changes.len()), (3, 0));
    }
    let gone = service("b").key();
    tell(&mut follower, &all, Ok(Some(Step::Gone(gone))));
    tell(&mut follower, &all, Ok(Some(Step::Begin)));
    tell(&mut follower, &all, Ok(Some(Step::Listed(service("a")))));
    assert!(follower.store.list(None).0.is_empty());
    tell(&mut follower, &all, Ok(Some(Step::Complete)));
    let (stored, _) = follower.store.list(None);
    assert!(stored.iter().map(|stored| &*stored.key.name).eq(["a"]));
    assert!(follower.first.is_empty());
}

/// What is in the file after the cluster said otherwise whom it believes, with the objects unseen.
async fn kept_unseen(directory: &Path, in_force: bool) -> State {
    let cluster = View::fixed(ClusterId::new("s".to_owned(), &[]));
    let kept = Kept::open(directory, cluster).unwrap();
    let data = |pem: &str| [(CLIENT_CA.to_owned(), pem.to_owned())].into();
    kept.save(State { objects: vec![service("kept")], trust: data("withdrawn") }).unwrap();
    let state = kept.load().unwrap();
    let (publisher, trust) = Publisher::new(ClusterTrust::default());
    let mut follower = follower((Some(kept.clone()), state.objects, trust));
    let all = sight(Scope::Cluster);
    follower.begin(all.clone());
    tell(&mut follower, &all, Ok(Some(Step::Listed(service("unseen")))));
    if in_force {
        follower.use_kept();
    }
    publisher.publish(ClusterTrust { known: true, data: data("now"), ..ClusterTrust::default() });
    assert!(follower.keeping.due.is_none());
    follower.keep_soon();
    assert!(follower.keeping.due.is_some());
    follower.save();
    follower.keeping.saving.take().unwrap().await.unwrap();
    kept.load().unwrap()
}

#[tokio::test]
async fn whom_the_cluster_believes_is_kept_though_its_objects_are_not_seen() {
    let directory = tempfile::tempdir().unwrap();
    for in_force in [false, true] {
        let state = kept_unseen(directory.path(), in_force).await;
        assert_eq!(state.trust[CLIENT_CA], "now");
        let names: Vec<_> = state.objects.iter().map(|object| object.key().name).collect();
        assert_eq!(names, ["kept".into()]);
    }
}
