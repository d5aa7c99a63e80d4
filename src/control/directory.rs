//! What a directory of manifests holds, file by file, and which file an object comes from.
//!
//! Blocking, and without a watch: it is told what to read and says what the store shall change. Of
//! an object in several files, the file first by name is followed. What a file held stays while the
//! file, or the object in it, is faulty.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::fs::Metadata;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use foldhash::fast::FixedState;
use k8s_openapi::ByteString;

use super::ca_bundles::CaBundles;
use super::manifest_file::{Contents, Format, parse};
use crate::model::api_service::{set_defaults, validate};
use crate::store::{Change, Key, Kind, Object};

/// The namespace of an object that names none.
const DEFAULT_NAMESPACE: &str = "default";

/// The directory as it was read last.
#[derive(Debug)]
pub(super) struct Directory {
    path: PathBuf,
    files: BTreeMap<OsString, File>,
    /// The files that hold an object.
    holders: HashMap<Key, BTreeSet<OsString>, FixedState>,
    /// Kinds that are reported to be ignored.
    ignored: HashSet<String>,
    ca_bundles: CaBundles,
}

/// One file.
#[derive(Debug, Default)]
struct File {
    stamp: Option<Stamp>,
    objects: BTreeMap<Key, Written>,
}

/// An object as JSON, which takes a third of the memory: it is looked at again only when files
/// change. Its caBundle, the most of it, is shared.
#[derive(Debug)]
struct Written {
    json: Box<[u8]>,
    ca_bundle: Option<Arc<[u8]>>,
}

impl Written {
    fn of(mut object: Object, shared: &mut CaBundles) -> serde_json::Result<Self> {
        let ca_bundle = ca_bundle_of(&mut object).and_then(Option::take);
        let json = match &object {
            Object::ApiService(object) => serde_json::to_vec(object),
            Object::Service(object) => serde_json::to_vec(object),
            Object::EndpointSlice(object) => serde_json::to_vec(object),
            Object::Endpoints(object) => serde_json::to_vec(object),
        };
        let ca_bundle = ca_bundle.map(|pem| shared.share(&pem.0));
        Ok(Self { json: json?.into_boxed_slice(), ca_bundle })
    }

    fn read(&self, kind: Kind) -> serde_json::Result<Object> {
        let mut object = match kind {
            Kind::ApiService => Object::ApiService(serde_json::from_slice(&self.json)?),
            Kind::Service => Object::Service(serde_json::from_slice(&self.json)?),
            Kind::EndpointSlice => Object::EndpointSlice(serde_json::from_slice(&self.json)?),
            Kind::Endpoints => Object::Endpoints(serde_json::from_slice(&self.json)?),
        };
        if let Some(ca_bundle) = ca_bundle_of(&mut object) {
            *ca_bundle = self.ca_bundle.as_ref().map(|pem| ByteString(pem.to_vec()));
        }
        Ok(object)
    }
}

/// Where an APIService's caBundle stands.
fn ca_bundle_of(object: &mut Object) -> Option<&mut Option<ByteString>> {
    match object {
        Object::ApiService(object) => object.spec.as_mut().map(|spec| &mut spec.ca_bundle),
        Object::Service(_) | Object::EndpointSlice(_) | Object::Endpoints(_) => None,
    }
}

/// What tells a changed file without reading it.
#[derive(Debug, PartialEq, Eq)]
struct Stamp {
    modified: Option<SystemTime>,
    length: u64,
    inode: u64,
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        let modified = metadata.modified().ok();
        Self { modified, length: metadata.len(), inode: inode(metadata) }
    }
}

#[cfg(unix)]
fn inode(metadata: &Metadata) -> u64 {
    std::os::unix::fs::MetadataExt::ino(metadata)
}

#[cfg(not(unix))]
fn inode(_metadata: &Metadata) -> u64 {
    0
}

impl Directory {
    /// A directory that has not been read.
    pub(super) fn new(path: PathBuf) -> Self {
        Self {
            path,
            files: BTreeMap::new(),
            holders: HashMap::default(),
            ignored: HashSet::new(),
            ca_bundles: CaBundles::default(),
        }
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Looks at every file and reads those that have changed.
    pub(super) fn scan(&mut self) -> io::Result<Vec<Change>> {
        let mut names: BTreeSet<OsString> = self.files.keys().cloned().collect();
        for entry in std::fs::read_dir(&self.path)? {
            names.insert(entry?.file_name());
        }
        Ok(self.read(&names, true))
    }

    /// Reads the files of these names, whatever has become of them.
    pub(super) fn reload(&mut self, names: &BTreeSet<OsString>) -> Vec<Change> {
        self.read(names, false)
    }

    fn read(&mut self, names: &BTreeSet<OsString>, only_changed: bool) -> Vec<Change> {
        let mut touched = BTreeSet::new();
        for name in names {
            if let Some(format) = format_of(name) {
                self.read_file(name, format, only_changed, &mut touched);
            }
        }
        // Only now, so that an object that moves from one file to another is neither gone nor new.
        touched.into_iter().map(|key| self.change(key)).collect()
    }

    fn change(&self, key: Key) -> Change {
        let holder = self.holders.get(&key).and_then(BTreeSet::first);
        let written = holder.and_then(|name| self.files.get(name)?.objects.get(&key));
        match written.map(|written| written.read(key.kind)) {
            Some(Ok(object)) => Change::Put(object),
            // What was written here can be read here.
            Some(Err(_)) | None => Change::Delete(key),
        }
    }

    fn read_file(
        &mut self,
        name: &OsStr,
        format: Format,
        only_changed: bool,
        touched: &mut BTreeSet<Key>,
    ) {
        let path = self.path.join(name);
        let metadata = match std::fs::metadata(&path) {
            Ok(metadata) if metadata.is_file() => metadata,
            Ok(_) => return self.forget(name, touched),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return self.forget(name, touched);
            }
            Err(error) => return unreadable(&path, &error),
        };
        let stamp = Some(Stamp::of(&metadata));
        let file = self.files.entry(name.to_owned()).or_default();
        if only_changed && file.stamp == stamp {
            return;
        }
        // Also of a faulty file, which is then not reported again by every scan.
        file.stamp = stamp;
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) => return unreadable(&path, &error),
        };
        match parse(format, &text) {
            Ok(contents) => self.replace(name, contents, touched),
            Err(error) => tracing::error!(
                file = %path.display(),
                line = error.line,
                column = error.column,
                reason = %error.reason,
                "manifest is broken, what it held stays"
            ),
        }
    }

    fn forget(&mut self, name: &OsStr, touched: &mut BTreeSet<Key>) {
        if let Some(file) = self.files.remove(name) {
            for key in file.objects.into_keys() {
                self.release(name, &key);
                touched.insert(key);
            }
        }
    }

    fn release(&mut self, name: &OsStr, key: &Key) {
        if let Some(holders) = self.holders.get_mut(key) {
            holders.remove(name);
            if holders.is_empty() {
                self.holders.remove(key);
            }
        }
    }

    /// Puts what has been read in place of what the file held.
    fn replace(&mut self, name: &OsStr, contents: Contents, touched: &mut BTreeSet<Key>) {
        let path = self.path.join(name);
        for kind in contents.ignored {
            if !self.ignored.contains(&kind) {
                let file = path.display();
                tracing::info!(%file, kind, "manifests of this kind are ignored");
                self.ignored.insert(kind);
            }
        }
        let Some(file) = self.files.get_mut(name) else { return };
        let mut before = std::mem::take(&mut file.objects);
        let mut objects = BTreeMap::new();
        for mut object in contents.objects {
            let faults = complete(&mut object);
            let key = object.key();
            let object = if faults.is_empty() {
                Written::of(object, &mut self.ca_bundles).ok()
            } else {
                before.remove(&key)
            };
            if !faults.is_empty() {
                rejected(&path, &key, &faults);
            }
            match (objects.entry(key), object) {
                (Entry::Occupied(entry), _) => report_twice(&path, &path, entry.key()),
                (Entry::Vacant(entry), Some(object)) => {
                    entry.insert(object);
                }
                (Entry::Vacant(_), None) => {}
            }
        }
        before.retain(|key, _| !objects.contains_key(key));
        let keys: Vec<Key> = objects.keys().cloned().collect();
        file.objects = objects;
        for key in before.into_keys() {
            self.release(name, &key);
            touched.insert(key);
        }
        for key in keys {
            self.hold(name, &key);
            touched.insert(key);
        }
    }

    fn hold(&mut self, name: &OsStr, key: &Key) {
        let holders = self.holders.entry(key.clone()).or_default();
        if holders.insert(name.to_owned())
            && let (Some(first), Some(last)) = (holders.first(), holders.last())
            && first != last
        {
            let ignored = if first == name { last } else { name };
            report_twice(&self.path.join(first), &self.path.join(ignored), key);
        }
    }
}

/// By the name's ending; hidden files and others are not manifests.
fn format_of(name: &OsStr) -> Option<Format> {
    let path = Path::new(name);
    if name.to_string_lossy().starts_with('.') {
        return None;
    }
    match path.extension()?.to_str()? {
        "yaml" | "yml" => Some(Format::Yaml),
        "json" => Some(Format::Json),
        _ => None,
    }
}

/// Fills in defaults; what is wrong with the object then.
fn complete(object: &mut Object) -> Vec<String> {
    let is_namespaced = object.kind().is_namespaced();
    let metadata = object.metadata_mut();
    let namespace = metadata.namespace.take().filter(|namespace| !namespace.is_empty());
    if is_namespaced {
        metadata.namespace = Some(namespace.unwrap_or_else(|| DEFAULT_NAMESPACE.to_owned()));
    }
    let nameless = metadata.name.as_deref().unwrap_or_default().is_empty();
    if let Object::ApiService(object) = object {
        set_defaults(object);
        validate(object).iter().map(ToString::to_string).collect()
    } else if nameless {
        vec!["metadata.name: Required value".to_owned()]
    } else {
        Vec::new()
    }
}

fn unreadable(path: &Path, error: &io::Error) {
    tracing::error!(file = %path.display(), %error, "manifest cannot be read, what it held stays");
}

fn rejected(path: &Path, key: &Key, faults: &[String]) {
    tracing::error!(
        file = %path.display(),
        kind = key.kind.as_str(),
        namespace = %key.namespace,
        name = %key.name,
        reason = %faults.join(", "),
        "object is invalid, its last state stays"
    );
}

fn report_twice(followed: &Path, ignored: &Path, key: &Key) {
    tracing::error!(
        file = %ignored.display(),
        followed = %followed.display(),
        kind = key.kind.as_str(),
        namespace = %key.namespace,
        name = %key.name,
        "object is in the manifests twice, the first is followed"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fixture {
        dir: tempfile::TempDir,
        directory: Directory,
    }

    fn fixture(files: &[(&str, &str)]) -> Fixture {
        let dir = tempfile::tempdir().unwrap();
        let directory = Directory::new(dir.path().to_owned());
        let fixture = Fixture { dir, directory };
        for (name, text) in files {
            fixture.write(name, text);
        }
        fixture
    }

    impl Fixture {
        fn write(&self, name: &str, text: &str) {
            std::fs::write(self.dir.path().join(name), text).unwrap();
        }

        #[track_caller]
        fn check(&mut self, expected: &[&str]) {
            let changes = self.directory.scan().unwrap();
            assert_eq!(changes.iter().map(text).collect::<Vec<_>>(), expected);
        }
    }

    fn text(change: &Change) -> String {
        match change {
            Change::Delete(key) => format!("- {}", key.name),
            Change::Put(Object::Service(service)) => {
                let spec = service.spec.as_ref().unwrap();
                format!(
                    "{} {}",
                    service.metadata.name.as_ref().unwrap(),
                    spec.external_name.as_deref().unwrap_or_default()
                )
            }
            Change::Put(Object::ApiService(object)) => {
                let spec = object.spec.as_ref().unwrap();
                let port = spec.service.as_ref().and_then(|service| service.port);
                let name = object.metadata.name.as_ref().unwrap();
                format!("{name} {} {port:?}", spec.version_priority)
            }
            Change::Put(other) => format!("{other:?}"),
        }
    }

    fn service(name: &str, external: &str) -> String {
        format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\n\
             spec: {{externalName: {external}}}\n"
        )
    }

    fn api_service(group: &str, priority: i32) -> String {
        format!(
            "---\napiVersion: apiregistration.k8s.io/v1\nkind: APIService\n\
             metadata: {{name: v1.{group}, namespace: gone}}\n\
             spec: {{group: {group}, version: v1, groupPriorityMinimum: 1, \
             versionPriority: {priority}, service: {{namespace: n, name: s}}}}\n"
        )
    }

    #[test]
    fn only_changed_files_are_read() {
        let mut fixture = fixture(&[
            ("a.yaml", &service("a", "x")),
            ("b.json", ""),
            (".hidden.yaml", &service("h", "x")),
            ("notes.txt", "kind: ["),
        ]);
        std::fs::create_dir(fixture.dir.path().join("sub.yaml")).unwrap();
        fixture.check(&["a x"]);
        fixture.check(&[]);
        fixture.write("c.yaml", &service("c", "x"));
        fixture.check(&["c x"]);
        std::fs::remove_file(fixture.dir.path().join("a.yaml")).unwrap();
        fixture.check(&["- a"]);
        fixture.write("c.yaml", &service("c", "yy"));
        fixture.write("a.yaml", &service("a", "yy"));
        let changes = fixture.directory.reload(&[OsString::from("c.yaml")].into());
        assert_eq!(changes.iter().map(text).collect::<Vec<_>>(), ["c yy"]);
    }

    #[test]
    fn of_an_object_in_two_files_the_first_is_followed() {
        let mut fixture =
            fixture(&[("a.yaml", &service("s", "a")), ("b.yaml", &service("s", "b"))]);
        fixture.check(&["s a"]);
        fixture.write("b.yaml", &service("s", "bb"));
        fixture.check(&["s a"]);
        std::fs::remove_file(fixture.dir.path().join("a.yaml")).unwrap();
        fixture.check(&["s bb"]);
        // Both at once: an object that moves is neither gone nor new.
        std::fs::rename(fixture.dir.path().join("b.yaml"), fixture.dir.path().join("c.yaml"))
            .unwrap();
        fixture.check(&["s bb"]);
    }

    #[test]
    fn what_is_faulty_stays_as_it_was() {
        let both = api_service("g", 1) + &service("s", "a");
        let mut fixture = fixture(&[("a.yaml", &both), ("new.yaml", &api_service("h", 0))]);
        fixture.check(&["v1.g 1 Some(443)", "s a"]);
        fixture.write("a.yaml", &(api_service("g", 0) + &service("s", "bb")));
        fixture.check(&["v1.g 1 Some(443)", "s bb"]);
        fixture.write("a.yaml", "kind: [");
        fixture.check(&[]);
        fixture.write("a.yaml", &(api_service("g", 22) + &service("", "a")));
        fixture.check(&["v1.g 22 Some(443)", "- s"]);
    }
}
