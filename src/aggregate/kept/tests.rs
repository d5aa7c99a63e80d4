//! What is kept survives restarts and crashes, and nothing else is taken for it.

use std::fs::OpenOptions;
use std::os::unix::fs::PermissionsExt as _;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;
use crate::runtime::kept_file::FILE_BYTES_MAX;

const NAME: &str = "v1.example.com";
const RESOURCES: &str = r#"[{"resource":"things","responseKind":{"group":"","version":"","kind":"Thing"},"scope":"Cluster","singularResource":"","verbs":null}]"#;
const LEGACY: &str = r#"{"kind":"APIResourceList","apiVersion":"v1","groupVersion":"example.com/v1","resources":[{"name":"things","singularName":"","namespaced":false,"kind":"Thing","verbs":["get"],"storageVersionHash":"abc="}]}"#;

fn spec() -> BackendSpec {
    BackendSpec {
        service: ServicePort { namespace: "apps".into(), name: "things".into(), port: 443 },
        ca_bundle: b"-----BEGIN CERTIFICATE-----".as_slice().into(),
        insecure_skip_tls_verify: false,
    }
}

fn record(fetched: u64, legacy: Option<&'static str>) -> Record {
    let legacy = legacy.map(|legacy| Bytes::from_static(legacy.as_bytes()));
    Record::new(&spec(), fetched, Bytes::from_static(RESOURCES.as_bytes()), legacy)
}

fn file_names(data: &TempDir) -> Vec<String> {
    let entries = fs::read_dir(data.path().join(DIRECTORY)).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// The directory with one record, and that record's file.
fn with_one() -> (TempDir, Kept, PathBuf) {
    let data = tempfile::tempdir().unwrap();
    let kept = Kept::open(data.path()).unwrap();
    kept.put(NAME, &record(7, Some(LEGACY))).unwrap();
    let path = data.path().join(DIRECTORY).join(format!("{NAME}.json"));
    (data, kept, path)
}

#[test]
fn records_are_the_same_after_a_restart() {
    let data = tempfile::tempdir().unwrap();
    let kept = Kept::open(&data.path().join("not/yet/there")).unwrap();
    assert_eq!(kept.load(), []);
    let (first, second) = (record(1, None), record(u64::MAX, Some(LEGACY)));
    kept.put("v1.b.example.com", &record(0, None)).unwrap();
    kept.put("v1.b.example.com", &second).unwrap();
    kept.put("v1.a", &first).unwrap();
    kept.put("v1.", &first).unwrap();
    kept.put("v1.gone", &first).unwrap();
    kept.remove("v1.gone").unwrap();
    kept.remove("v1.never-there").unwrap();
    let kept = Kept::open(&data.path().join("not/yet/there")).unwrap();
    let expected = [("v1.", &first), ("v1.a", &first), ("v1.b.example.com", &second)];
    assert_eq!(kept.load(), expected.map(|(name, record)| (name.to_owned(), record.clone())));
}

#[test]
fn a_record_is_of_its_service_and_trust_only() {
    let record = record(7, None);
    assert!(record.is_of(&spec()));
    let others: [fn(&mut BackendSpec); 5] = [
        |spec| spec.service.namespace = "other".into(),
        |spec| spec.service.name = "other".into(),
        |spec| spec.service.port = 8443,
        |spec| spec.ca_bundle = b"-----BEGIN CERTIFICATE-----\n".as_slice().into(),
        |spec| spec.insecure_skip_tls_verify = true,
    ];
    for change in others {
        let mut other = spec();
        change(&mut other);
        assert!(!record.is_of(&other), "{other:?}");
    }
}

#[test]
fn only_the_owner_can_read_what_is_kept() {
    let (data, _, path) = with_one();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&path), 0o600);
    assert_eq!(mode(&data.path().join(DIRECTORY)), 0o700);
}

#[test]
fn what_a_crash_left_is_removed_and_other_files_stay() {
    let (data, _, path) = with_one();
    let directory = data.path().join(DIRECTORY);
    fs::write(directory.join(".4711-0.partial"), "{").unwrap();
    fs::write(directory.join("README"), "mine").unwrap();
    fs::write(directory.join("UPPER.json"), "{}").unwrap();
    let kept = Kept::open(data.path()).unwrap();
    assert_eq!(file_names(&data), ["README", "UPPER.json", "v1.example.com.json"]);
    assert_eq!(kept.load(), [(NAME.to_owned(), record(7, Some(LEGACY)))]);
    assert!(path.exists());
}

#[track_caller]
fn check_refused(change: impl FnOnce(&mut Value), expected: &str) {
    let (_data, kept, path) = with_one();
    let mut contents: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut contents);
    fs::write(&path, contents.to_string()).unwrap();
    let error = read(&path, NAME).unwrap_err().to_string();
    assert!(error.starts_with(expected), "{error}");
    // The others are not affected.
    kept.put("v1.other", &record(1, None)).unwrap();
    assert_eq!(kept.load(), [("v1.other".to_owned(), record(1, None))]);
    // It is replaced once there is an answer.
    kept.put(NAME, &record(8, None)).unwrap();
    assert_eq!(kept.load()[0], (NAME.to_owned(), record(8, None)));
}

#[test]
fn files_that_are_broken_are_left_out() {
    check_refused(|file| file["format"] = 2.into(), "of format 2, not 1");
    check_refused(|file| *file = json!({ "format": 7, "new": 1 }), "of format 7, not 1");
    check_refused(|file| *file = json!({}), "missing field `format`");
    check_refused(|file| *file = json!({ "format": 1 }), "missing field `name`");
    check_refused(|file| file["name"] = "v1.b".into(), "that of \"v1.b\"");
    check_refused(|file| file["resources"] = "x".into(), "invalid type: string \"x\"");
    check_refused(|file| file["resources"][0]["scope"] = "x".into(), "unknown variant `x`");
    check_refused(|file| file["legacy"] = json!({}), "missing field `resources`");
    check_refused(|file| file["legacy"]["resources"][0]["verbs"] = 1.into(), "invalid type: int");
    check_refused(|file| file["fetched"] = json!(-1), "invalid value: integer `-1`");
}

#[test]
fn files_that_are_cut_short_too_large_or_no_files_are_left_out() {
    let (_data, kept, path) = with_one();
    let whole = fs::read(&path).unwrap();
    for length in 0..whole.len() {
        fs::write(&path, &whole[..length]).unwrap();
        assert_eq!(kept.load(), [], "{length} bytes");
    }
    fs::write(&path, &whole).unwrap();
    assert_eq!(kept.load().len(), 1);
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(u64::try_from(FILE_BYTES_MAX).unwrap() + 1).unwrap();
    let text = read(&path, NAME).unwrap_err().to_string();
    assert_eq!(text, "larger than 67108864 bytes");
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    assert_eq!(read(&path, NAME).unwrap_err().to_string(), "not a regular file");
    assert_eq!(kept.load(), []);
}

#[test]
fn names_cannot_lead_out_of_the_directory() {
    let (data, kept, _) = with_one();
    let longest = "x".repeat(NAME_BYTES_MAX);
    let names = ["", ".", "..", "../x", "a/b", "/etc/x", ".hidden", "a\0b", "A", "a\\b", "ä"];
    for name in names.into_iter().chain([&*format!("{longest}x")]) {
        let kind = |result: io::Result<()>| result.unwrap_err().kind();
        assert_eq!(kind(kept.put(name, &record(1, None))), io::ErrorKind::InvalidInput, "{name}");
        assert_eq!(kind(kept.remove(name)), io::ErrorKind::InvalidInput, "{name}");
    }
    assert_eq!(file_names(&data), ["v1.example.com.json"]);
    kept.put(&longest, &record(1, None)).unwrap();
    assert_eq!(kept.load().len(), 2);
}

#[test]
fn what_cannot_be_written_is_an_error_and_loses_nothing() {
    let (data, kept, path) = with_one();
    let before = fs::read(&path).unwrap();
    let no_json = Record { resources: Bytes::from_static(b"[{"), ..record(8, None) };
    assert!(kept.put(NAME, &no_json).is_err());
    let large = Bytes::from(format!("\"{}\"", "x".repeat(FILE_BYTES_MAX)));
    let error = kept.put(NAME, &Record { resources: large, ..record(8, None) }).unwrap_err();
    assert_eq!(error.to_string(), format!("{}: larger than 67108864 bytes", path.display()));
    assert_eq!(fs::read(&path).unwrap(), before);
    // The last step fails: something that is no file is in its place.
    let taken = data.path().join(DIRECTORY).join("v1.taken.json");
    fs::create_dir(&taken).unwrap();
    let error = kept.put("v1.taken", &record(8, None)).unwrap_err().to_string();
    assert!(error.starts_with(&taken.display().to_string()), "{error}");
    assert_eq!(file_names(&data), ["v1.example.com.json", "v1.taken.json"]);
    // The first step fails.
    fs::remove_dir_all(data.path().join(DIRECTORY)).unwrap();
    assert_eq!(kept.put(NAME, &record(8, None)).unwrap_err().kind(), io::ErrorKind::NotFound);
    assert_eq!(kept.load(), []);
}

#[test]
fn a_data_directory_that_cannot_be_made_is_named() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let error = Kept::open(file.path()).unwrap_err().to_string();
    assert!(error.starts_with(&file.path().join(DIRECTORY).display().to_string()), "{error}");
}
