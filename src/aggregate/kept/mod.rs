//! What servers answered last, kept across restarts: one file per APIService.
//!
//! What cannot be read is reported and left out, since all of it can be asked for again. Everything
//! here blocks.

use std::fs::{self, DirEntry};
use std::io;
use std::path::{Path, PathBuf};

use aws_lc_rs::digest::{Context, SHA256};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::model::discovery::aggregated::Resource;
use crate::model::discovery::legacy::ApiResource;
use crate::model::fault::ServicePort;
use crate::runtime::kept_file;
use crate::upstream::BackendSpec;

/// Where the files are within the data directory.
const DIRECTORY: &str = "discovery";

/// How the files are written; those of another format are left out.
const FORMAT: u64 = 1;

/// The longest name of an APIService, in bytes: file systems take 255, the ending included.
const NAME_BYTES_MAX: usize = 250;

const ENDING: &str = ".json";

/// The last good answer for one APIService.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Record {
    identity: Identity,
    /// When it was fetched, in Unix milliseconds.
    pub(super) fetched: u64,
    /// The resources, a JSON array of those of the aggregated document.
    pub(super) resources: Bytes,
    /// The `APIResourceList` as JSON, if it was fetched too.
    pub(super) legacy: Option<Bytes>,
}

impl Record {
    /// What that backend answered; both documents without white space around them.
    pub(super) fn new(
        spec: &BackendSpec,
        fetched: u64,
        resources: Bytes,
        legacy: Option<Bytes>,
    ) -> Self {
        Self { identity: Identity::of(spec), fetched, resources, legacy }
    }

    /// Whether it was answered by that backend: the same service, trusted for the same reason.
    pub(super) fn is_of(&self, spec: &BackendSpec) -> bool {
        self.identity == Identity::of(spec)
    }
}

/// Who answered.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Identity {
    service: ServicePort,
    /// SHA-256 of what the server was trusted by, in base64.
    trust: String,
}

impl Identity {
    fn of(spec: &BackendSpec) -> Self {
        let mut digest = Context::new(&SHA256);
        digest.update(&[u8::from(spec.insecure_skip_tls_verify)]);
        digest.update(&spec.ca_bundle);
        Self { service: spec.service.clone(), trust: STANDARD.encode(digest.finish()) }
    }
}

/// A file's contents.
#[derive(Serialize, Deserialize)]
struct Contents<'a> {
    format: u64,
    /// The APIService, lest a copied file be taken for another's.
    name: String,
    namespace: String,
    service: String,
    port: u16,
    trust: String,
    fetched: u64,
    #[serde(borrow)]
    resources: &'a RawValue,
    #[serde(borrow)]
    legacy: Option<&'a RawValue>,
}

/// Read before the rest, which another format may have otherwise.
#[derive(Deserialize)]
struct Head {
    format: u64,
}

/// The part of an `APIResourceList` without which it is none.
#[derive(Deserialize)]
struct Legacy {
    resources: Vec<ApiResource>,
}

/// The directory with the answers; one program at a time uses it.
#[derive(Debug)]
pub(super) struct Kept {
    directory: PathBuf,
}

impl Kept {
    /// Makes the directory below the data directory if need be, and removes what a crash left.
    pub(super) fn open(data_directory: &Path) -> io::Result<Self> {
        let directory = data_directory.join(DIRECTORY);
        kept_file::open_directory(&directory)?;
        Ok(Self { directory })
    }

    /// Everything that can be read, by the APIServices' names.
    ///
    /// A file that cannot is reported and stays until its APIService is answered anew or removed.
    pub(super) fn load(&self) -> Vec<(String, Record)> {
        let mut names = match self.names() {
            Ok(names) => names,
            Err(error) => {
                tracing::warn!(
                    directory = %self.directory.display(), %error,
                    "kept discovery cannot be listed"
                );
                return Vec::new();
            }
        };
        names.sort_unstable();
        let mut records = Vec::with_capacity(names.len());
        for name in names {
            let path = self.directory.join(format!("{name}{ENDING}"));
            match read(&path, &name) {
                Ok(record) => records.push((name, record)),
                Err(error) => {
                    tracing::warn!(file = %path.display(), %error, "kept discovery not used");
                }
            }
        }
        records
    }

    /// Keeps what the APIService's server answered, instead of what was kept of it.
    pub(super) fn put(&self, name: &str, record: &Record) -> io::Result<()> {
        let path = self.path(name)?;
        let contents = encode(name, record).map_err(|error| kept_file::at(&path, &error))?;
        kept_file::replace(&path, &contents)
    }

    /// Forgets what was kept of the APIService, if anything.
    pub(super) fn remove(&self, name: &str) -> io::Result<()> {
        let path = self.path(name)?;
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(kept_file::at(&path, &error))
            }
            _ => Ok(()),
        }
    }

    fn names(&self) -> io::Result<Vec<String>> {
        let name = |entry: io::Result<DirEntry>| {
            let file_name = entry?.file_name();
            let name = file_name.to_str().and_then(|name| name.strip_suffix(ENDING));
            Ok(name.filter(|name| is_name(name)).map(str::to_owned))
        };
        fs::read_dir(&self.directory)?.map(name).filter_map(io::Result::transpose).collect()
    }

    /// The file of an APIService, never outside the directory.
    fn path(&self, name: &str) -> io::Result<PathBuf> {
        if !is_name(name) {
            let problem = format!("{name:?} cannot be the name of a file for kept discovery");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, problem));
        }
        Ok(self.directory.join(format!("{name}{ENDING}")))
    }
}

/// True for what can be the name both of an APIService and of a file.
fn is_name(name: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    name.len() <= NAME_BYTES_MAX
        && name.bytes().next().is_some_and(is_plain)
        && name.bytes().all(|byte| is_plain(byte) || byte == b'.')
}

fn encode(name: &str, record: &Record) -> io::Result<Vec<u8>> {
    let service = &record.identity.service;
    let contents = Contents {
        format: FORMAT,
        name: name.to_owned(),
        namespace: service.namespace.to_string(),
        service: service.name.to_string(),
        port: service.port,
        trust: record.identity.trust.clone(),
        fetched: record.fetched,
        resources: serde_json::from_slice(&record.resources)?,
        legacy: record.legacy.as_deref().map(serde_json::from_slice).transpose()?,
    };
    Ok(serde_json::to_vec(&contents)?)
}

fn read(path: &Path, name: &str) -> io::Result<Record> {
    decode(&Bytes::from(kept_file::read(path)?), name)
}

fn decode(bytes: &Bytes, name: &str) -> io::Result<Record> {
    let head: Head = serde_json::from_slice(bytes)?;
    if head.format != FORMAT {
        return Err(kept_file::invalid(format!("of format {}, not {FORMAT}", head.format)));
    }
    let contents: Contents<'_> = serde_json::from_slice(bytes)?;
    if contents.name != name {
        return Err(kept_file::invalid(format!("that of {:?}", contents.name)));
    }
    // What is shown to clients is made of these, so they must be what they should be.
    drop(serde_json::from_str::<Vec<Resource>>(contents.resources.get())?);
    if let Some(legacy) = contents.legacy {
        drop(serde_json::from_str::<Legacy>(legacy.get())?.resources);
    }
    let part = |part: &RawValue| bytes.slice_ref(part.get().as_bytes());
    Ok(Record {
        identity: Identity {
            service: ServicePort {
                namespace: contents.namespace.into(),
                name: contents.service.into(),
                port: contents.port,
            },
            trust: contents.trust,
        },
        fetched: contents.fetched,
        resources: part(contents.resources),
        legacy: contents.legacy.map(part),
    })
}

#[cfg(test)]
mod tests;
