//! The objects as the loop needs them: for each APIService its service's facts, and for each
//! changed object the `APIServices` it concerns.
//!
//! Plain data: events in, names of affected `APIServices` and decisions about them out.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use foldhash::fast::FixedState;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1::{APIService, APIServiceSpec};

use super::ca_bundles::CaBundles;
use crate::model::api_service::service_of;
use crate::model::availability::{Facts, Verdict, decide};
use crate::model::discovery::policy::Policy;
use crate::model::endpoints::{EndpointRouting, service_name_of, slices_of};
use crate::model::fault::ServicePort;
use crate::model::history::EventType;
use crate::model::routing_table::OWN_GROUP;
use crate::store::{Event, Key, Kind, Object, Stored};
use crate::upstream::BackendSpec;

/// Names of `APIServices`, in order.
pub(super) type Names = BTreeSet<Arc<str>>;

/// The objects the loop has seen.
#[derive(Debug, Default)]
pub(super) struct Index {
    api_services: HashMap<Arc<str>, Arc<Stored>, FixedState>,
    /// By the key of the Service, whether it exists or is only named.
    services: HashMap<Key, ServiceFacts, FixedState>,
    /// The Service under which an EndpointSlice is filed: its label may change.
    slice_services: HashMap<Key, Key, FixedState>,
    ca_bundles: CaBundles,
}

/// All that belongs to one service.
#[derive(Debug, Default)]
struct ServiceFacts {
    service: Option<Arc<Stored>>,
    slices: BTreeMap<Key, Arc<Stored>>,
    /// The legacy Endpoints object, converted; counts only while there is no EndpointSlice.
    endpoints: Option<Vec<EndpointSlice>>,
    api_services: Names,
}

impl ServiceFacts {
    fn is_empty(&self) -> bool {
        self.service.is_none()
            && self.slices.is_empty()
            && self.endpoints.is_none()
            && self.api_services.is_empty()
    }

    fn service(&self) -> Option<&Service> {
        match &self.service.as_ref()?.object {
            Object::Service(service) => Some(service),
            Object::ApiService(_) | Object::EndpointSlice(_) | Object::Endpoints(_) => None,
        }
    }

    fn slices(&self) -> Vec<&EndpointSlice> {
        if self.slices.is_empty() {
            return self.endpoints.iter().flatten().collect();
        }
        self.slices.values().filter_map(|stored| as_slice(&stored.object)).collect()
    }
}

fn as_slice(object: &Object) -> Option<&EndpointSlice> {
    match object {
        Object::EndpointSlice(slice) => Some(slice),
        Object::ApiService(_) | Object::Service(_) | Object::Endpoints(_) => None,
    }
}

/// What is to be true about one APIService.
#[derive(Debug)]
pub(super) struct Decision {
    /// Its place in the table.
    pub(super) outline: Outline,
    /// Whether it is available, and where its requests go.
    pub(super) verdict: Verdict,
}

/// What of a decision the routing table shows.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Outline {
    pub(super) group: Arc<str>,
    pub(super) version: Arc<str>,
    pub(super) group_priority: i32,
    pub(super) version_priority: i32,
    /// What its annotations say about discovery.
    pub(super) discovery: Policy,
    /// None for a local APIService.
    pub(super) backend: Option<BackendSpec>,
}

impl Index {
    /// Takes in what happened; the `APIServices` that it concerns.
    pub(super) fn apply(&mut self, events: &[Event]) -> Names {
        let mut affected = Names::new();
        for event in events {
            let gone = event.kind == EventType::Deleted;
            self.update(&event.object, gone, &mut affected);
        }
        affected
    }

    /// Takes in the whole state, when the events between are lost.
    pub(super) fn reset(&mut self, objects: &[Arc<Stored>]) -> Names {
        let present: HashSet<&Key> = objects.iter().map(|stored| &stored.key).collect();
        let mut gone = self.objects();
        gone.retain(|stored| !present.contains(&stored.key));
        let mut affected = Names::new();
        for stored in gone {
            self.update(&stored, true, &mut affected);
        }
        // An Endpoints object is not kept as it came; one that is gone is found by its absence.
        for (key, facts) in &mut self.services {
            let endpoints = Key { kind: Kind::Endpoints, ..key.clone() };
            if facts.endpoints.is_some() && !present.contains(&endpoints) {
                facts.endpoints = None;
                affected.extend(facts.api_services.iter().cloned());
            }
        }
        for stored in objects {
            self.update(stored, false, &mut affected);
        }
        affected
    }

    fn objects(&self) -> Vec<Arc<Stored>> {
        let of_service = |facts: &ServiceFacts| -> Vec<Arc<Stored>> {
            facts.service.iter().chain(facts.slices.values()).cloned().collect()
        };
        let services = self.services.values().flat_map(of_service);
        self.api_services.values().cloned().chain(services).collect()
    }

    fn update(&mut self, stored: &Arc<Stored>, gone: bool, affected: &mut Names) {
        let key = &stored.key;
        match &stored.object {
            Object::ApiService(_) if gone => self.remove_api_service(&key.name, affected),
            Object::ApiService(object) => self.put_api_service(stored, object, affected),
            Object::Service(_) => {
                let service = (!gone).then(|| Arc::clone(stored));
                self.edit(key, affected, |facts| facts.service = service);
            }
            Object::EndpointSlice(slice) => self.update_slice(stored, slice, gone, affected),
            Object::Endpoints(object) => {
                let service = Key { kind: Kind::Service, ..key.clone() };
                let slices = (!gone).then(|| slices_of(object)).filter(|all| !all.is_empty());
                self.edit(&service, affected, |facts| facts.endpoints = slices);
            }
        }
    }

    fn update_slice(
        &mut self,
        stored: &Arc<Stored>,
        slice: &EndpointSlice,
        gone: bool,
        affected: &mut Names,
    ) {
        let key = &stored.key;
        let service = service_name_of(slice).filter(|_| !gone);
        let service = service.map(|name| Key::new(Kind::Service, &key.namespace, name));
        let before = match &service {
            Some(service) => self.slice_services.insert(key.clone(), service.clone()),
            None => self.slice_services.remove(key),
        };
        if let Some(before) = before.filter(|before| Some(before) != service.as_ref()) {
            self.edit(&before, affected, |facts| {
                facts.slices.remove(key);
            });
        }
        if let Some(service) = service {
            self.edit(&service, affected, |facts| {
                facts.slices.insert(key.clone(), Arc::clone(stored));
            });
        }
    }

    /// Changes the facts of one service, which concerns every APIService that names it.
    fn edit(&mut self, service: &Key, affected: &mut Names, edit: impl FnOnce(&mut ServiceFacts)) {
        let facts = self.services.entry(service.clone()).or_default();
        edit(facts);
        affected.extend(facts.api_services.iter().cloned());
        if facts.is_empty() {
            self.services.remove(service);
        }
    }

    fn put_api_service(&mut self, stored: &Arc<Stored>, object: &APIService, affected: &mut Names) {
        let name = &stored.key.name;
        let before = self.api_services.get(name).cloned();
        let before = before.as_ref().and_then(|before| before.object.as_api_service());
        // A change of the status, which is the loop's own doing, concerns nobody.
        let same = |before: &APIService| {
            before.spec == object.spec
                && before.metadata.uid == object.metadata.uid
                && before.metadata.annotations == object.metadata.annotations
        };
        if before.is_some_and(same) {
            self.api_services.insert(Arc::clone(name), Arc::clone(stored));
            return;
        }
        if spec_of(object).group.as_deref() == Some(OWN_GROUP) {
            tracing::warn!(
                apiservice = %name,
                "api service ignored: portico serves its group itself"
            );
            return;
        }
        for fault in Policy::read(annotations_of(object)).1 {
            tracing::warn!(apiservice = %name, detail = %fault, "annotation does not count");
        }
        self.remove_api_service(name, affected);
        self.api_services.insert(Arc::clone(name), Arc::clone(stored));
        if let Some(service) = service_of(spec_of(object)) {
            let facts = self.services.entry(service_key(&service)).or_default();
            facts.api_services.insert(Arc::clone(name));
        }
        affected.insert(Arc::clone(name));
    }

    fn remove_api_service(&mut self, name: &Arc<str>, affected: &mut Names) {
        let Some(before) = self.api_services.remove(name) else { return };
        affected.insert(Arc::clone(name));
        let spec = before.object.as_api_service().map(spec_of);
        if let Some(service) = spec.and_then(service_of) {
            let mut unconcerned = Names::new();
            self.edit(&service_key(&service), &mut unconcerned, |facts| {
                facts.api_services.remove(name);
            });
        }
    }

    /// Decides about one APIService; none when it is gone.
    pub(super) fn decide(&mut self, name: &str, routing: EndpointRouting) -> Option<Decision> {
        let ca_bundles = &mut self.ca_bundles;
        let object = self.api_services.get(name)?.object.as_api_service()?;
        let spec = spec_of(object);
        let service_ref = service_of(spec);
        let facts =
            service_ref.as_ref().and_then(|service| self.services.get(&service_key(service)));
        let slices = facts.map(ServiceFacts::slices).unwrap_or_default();
        let verdict = decide(&Facts {
            service_ref: service_ref.as_ref(),
            service: facts.and_then(ServiceFacts::service),
            slices: &slices,
            routing,
        });
        let outline = Outline {
            group: spec.group.as_deref().unwrap_or_default().into(),
            version: spec.version.as_deref().unwrap_or_default().into(),
            group_priority: spec.group_priority_minimum,
            version_priority: spec.version_priority,
            discovery: Policy::read(annotations_of(object)).0,
            backend: service_ref.map(|service| BackendSpec {
                service,
                ca_bundle: ca_bundles.share(spec.ca_bundle.as_ref().map_or(&[], |pem| &pem.0)),
                insecure_skip_tls_verify: spec.insecure_skip_tls_verify.unwrap_or_default(),
            }),
        };
        Some(Decision { outline, verdict })
    }
}

static NO_SPEC: APIServiceSpec = APIServiceSpec {
    ca_bundle: None,
    group: None,
    group_priority_minimum: 0,
    insecure_skip_tls_verify: None,
    service: None,
    version: None,
    version_priority: 0,
};

fn spec_of(object: &APIService) -> &APIServiceSpec {
    object.spec.as_ref().unwrap_or(&NO_SPEC)
}

fn annotations_of(object: &APIService) -> &BTreeMap<String, String> {
    static NONE: BTreeMap<String, String> = BTreeMap::new();
    object.metadata.annotations.as_ref().unwrap_or(&NONE)
}

fn service_key(service: &ServicePort) -> Key {
    Key {
        kind: Kind::Service,
        namespace: Arc::clone(&service.namespace),
        name: Arc::clone(&service.name),
    }
}
