//! What the cluster said last, kept across restarts in one file, for a start while the core API server
//! does not answer.
//!
//! Everything here blocks.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1::APIService;
use serde::{Deserialize, Serialize};

use super::servers::ClusterId;
use crate::runtime::kept_file;
use crate::runtime::snapshot::View;
use crate::store::Object;

/// The file within the data directory.
const FILE: &str = "cluster.json";
/// How the file is written; one of another format is left out.
const FORMAT: u64 = 2;

/// What a cluster said last.
#[derive(Clone, Debug, Default)]
pub(super) struct State {
    /// The objects as they were in the store.
    pub(super) objects: Vec<Object>,
    /// The data of the ConfigMap that says whom the cluster believes, if it was read.
    pub(super) trust: BTreeMap<String, String>,
}

/// The file's contents.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Contents {
    format: u64,
    /// Lest what another cluster said be taken for this one's.
    cluster: ClusterId,
    api_services: Vec<APIService>,
    services: Vec<Service>,
    endpoint_slices: Vec<EndpointSlice>,
    trust: BTreeMap<String, String>,
}

/// Read before the rest, which another format may have otherwise.
#[derive(Deserialize)]
struct Head {
    format: u64,
}

/// The file; one program at a time uses it.
#[derive(Clone, Debug)]
pub(super) struct Kept {
    directory: PathBuf,
    cluster: View<ClusterId>,
}

impl Kept {
    /// Makes the data directory if need be.
    pub(super) fn open(directory: &Path, cluster: View<ClusterId>) -> io::Result<Self> {
        kept_file::open_directory(directory)?;
        Ok(Self { directory: directory.to_owned(), cluster })
    }

    /// What was kept of this cluster; what cannot be read is reported.
    pub(super) fn load(&self) -> Option<State> {
        let path = self.directory.join(FILE);
        match self.read(&path) {
            Ok(state) => Some(state),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                tracing::warn!(file = %path.display(), %error, "kept cluster state not used");
                None
            }
        }
    }

    fn read(&self, path: &Path) -> io::Result<State> {
        let bytes = kept_file::read(path)?;
        let head: Head = serde_json::from_slice(&bytes)?;
        if head.format != FORMAT {
            return Err(kept_file::invalid(format!("of format {}, not {FORMAT}", head.format)));
        }
        let contents: Contents = serde_json::from_slice(&bytes)?;
        let (of, not_of) = (&contents.cluster, &*self.cluster.load());
        if of.server != not_of.server {
            let text = format!("that of {}, not of {}", of.server, not_of.server);
            return Err(kept_file::invalid(text));
        }
        if of != not_of {
            let text = format!("that of {} with other authorities", of.server);
            return Err(kept_file::invalid(text));
        }
        let mut objects = Vec::new();
        let put = |object| Object::ApiService(Box::new(object));
        objects.extend(contents.api_services.into_iter().map(put));
        let put = |object| Object::Service(Box::new(object));
        objects.extend(contents.services.into_iter().map(put));
        let put = |object| Object::EndpointSlice(Box::new(object));
        objects.extend(contents.endpoint_slices.into_iter().map(put));
        Ok(State { objects, trust: contents.trust })
    }

    /// Keeps this instead of what was kept before.
    pub(super) fn save(&self, state: State) -> io::Result<()> {
        let mut contents = Contents {
            format: FORMAT,
            cluster: (*self.cluster.load()).clone(),
            api_services: Vec::new(),
            services: Vec::new(),
            endpoint_slices: Vec::new(),
            trust: state.trust,
        };
        for object in state.objects {
            match object {
                Object::ApiService(object) => contents.api_services.push(*object),
                Object::Service(object) => contents.services.push(*object),
                Object::EndpointSlice(object) => contents.endpoint_slices.push(*object),
                // None is watched.
                Object::Endpoints(_) => {}
            }
        }
        let path = self.directory.join(FILE);
        let bytes = serde_json::to_vec(&contents)?;
        kept_file::replace(&path, &bytes)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::json;

    use super::*;
    use crate::runtime::snapshot::Publisher;

    fn cluster(server: &str, authorities: &str) -> View<ClusterId> {
        View::fixed(ClusterId::new(server.to_owned(), authorities.as_bytes()))
    }

    fn state() -> State {
        let api_service = json!({"metadata": {"name": "v1.g"}, "spec": {"group": "g",
            "groupPriorityMinimum": 1, "versionPriority": 1, "caBundle": "Yg=="}});
        let service = json!({"metadata": {"namespace": "n", "name": "s"}});
        let slice = json!({"metadata": {"namespace": "n", "name": "s-1"}, "addressType": "IPv4",
            "endpoints": [{"addresses": ["10.0.0.1"]}]});
        State {
            objects: vec![
                Object::ApiService(serde_json::from_value(api_service).unwrap()),
                Object::Service(serde_json::from_value(service).unwrap()),
                Object::EndpointSlice(serde_json::from_value(slice).unwrap()),
            ],
            trust: [("client-ca-file".to_owned(), "pem".to_owned())].into(),
        }
    }

    #[test]
    fn what_is_kept_comes_back_for_the_same_cluster_only() {
        let directory = tempfile::tempdir().unwrap();
        let data = directory.path().join("data");
        let open = |server, authorities| Kept::open(&data, cluster(server, authorities)).unwrap();
        let kept = open("https://one", "a");
        assert!(kept.load().is_none());
        kept.save(state()).unwrap();
        kept.save(state()).unwrap();
        let loaded = kept.load().unwrap();
        assert_eq!((loaded.objects, loaded.trust), (state().objects, state().trust));
        assert!(open("https://one", "a").load().is_some());
        assert!(open("https://two", "a").load().is_none());
        // In a pod every cluster may have the same URL.
        assert!(open("https://one", "b").load().is_none());
        let names = fs::read_dir(&data).unwrap();
        assert_eq!(names.count(), 1);
    }

    #[test]
    fn a_cluster_whose_authorities_are_replaced_is_known_by_the_new_ones() {
        let directory = tempfile::tempdir().unwrap();
        let (publisher, view) = Publisher::new((*cluster("s", "a").load()).clone());
        let kept = Kept::open(directory.path(), view).unwrap();
        publisher.publish((*cluster("s", "b").load()).clone());
        kept.save(state()).unwrap();
        assert!(Kept::open(directory.path(), cluster("s", "b")).unwrap().load().is_some());
    }

    #[test]
    fn a_file_that_is_not_ours_is_not_used() {
        let directory = tempfile::tempdir().unwrap();
        let kept = Kept::open(directory.path(), cluster("s", "a")).unwrap();
        for text in ["", "{", "{\"format\": 1}", "{\"format\": 2}", "[]"] {
            fs::write(directory.path().join(FILE), text).unwrap();
            assert!(kept.load().is_none(), "{text}");
        }
        fs::remove_file(directory.path().join(FILE)).unwrap();
        fs::create_dir(directory.path().join(FILE)).unwrap();
        assert!(kept.load().is_none());
        assert!(kept.save(state()).is_err());
    }
}
