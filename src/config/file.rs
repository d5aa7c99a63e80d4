//! The file of `--config`: each key is a setting's name, each value what its flag would be given.
//!
//! Values are turned into the flag's arguments and judged by the flag's own value parser, so that
//! there is one definition of each setting. Every fault is found, not the first one alone.

use std::any::TypeId;
use std::collections::BTreeMap;
use std::error::Error as _;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::error::{ContextKind, ContextValue};
use clap::{Arg, ArgAction, ValueHint};

use super::yaml::{self, Node, Place, Value};
use crate::tls::server::SniPair;

/// Bytes of the file.
const FILE_BYTES_MAX: u64 = 1024 * 1024;
/// What the file may say of itself, as Kubernetes' files do.
const TYPE: [(&str, &str); 2] =
    [("apiVersion", "portico.dev/v1alpha1"), ("kind", "PorticoConfiguration")];

/// What is wrong in the file, and where.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct FileFault {
    /// Where.
    pub(super) place: Place,
    /// The key.
    pub(super) key: String,
    /// What is wrong.
    pub(super) text: String,
}

/// What a file says.
#[derive(Debug, Default)]
pub(super) struct File {
    /// By the setting's name: where its key is, and the arguments that say the same.
    pub(super) settings: BTreeMap<String, (Place, Vec<OsString>)>,
    /// Everything that is wrong with single entries.
    pub(super) faults: Vec<FileFault>,
}

/// Reads a file; what is wrong as a whole is a line that names it.
pub(super) fn read(path: &Path, command: &clap::Command) -> Result<File, String> {
    let shown = path.display();
    let text = text(path).map_err(|error| format!("{shown}{error}"))?;
    let at = |place: Place| format!("{shown}:{}:{}", place.line, place.column);
    let document =
        yaml::parse(&text).map_err(|wrong| format!("{}: {}", at(wrong.place), wrong.text))?;
    let mut file = File::default();
    match document.map(|node| (node.place, node.value)) {
        None | Some((_, Value::Nothing)) => {}
        Some((_, Value::Map(entries))) => {
            let base = path.parent().unwrap_or(Path::new(""));
            Reader { command, base, file: &mut file, seen: BTreeMap::new() }.entries(&entries);
        }
        Some((place, other)) => {
            let kind = other.kind();
            return Err(format!("{}: expected a map of settings, found {kind}", at(place)));
        }
    }
    Ok(file)
}

/// The file's text, or the place and the reason why there is none.
fn text(path: &Path) -> Result<String, String> {
    use std::io::Read as _;
    let mut bytes = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes))
        .map_err(|error| format!(": cannot be read: {error}"))?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(format!(": is larger than {FILE_BYTES_MAX} bytes"));
    }
    String::from_utf8(bytes).map_err(|error| {
        let valid = error.as_bytes().iter().take(error.utf8_error().valid_up_to());
        let line = valid.filter(|byte| **byte == b'\n').count() + 1;
        format!(":{line}: is not UTF-8")
    })
}

struct Reader<'file> {
    command: &'file clap::Command,
    base: &'file Path,
    file: &'file mut File,
    /// Names and where they were first.
    seen: BTreeMap<String, Place>,
}

impl Reader<'_> {
    fn entries(mut self, entries: &[(Node, Node)]) {
        for (key, value) in entries {
            let Value::Text(name) = &key.value else {
                let text = format!("expected a setting's name, found {}", key.value.kind());
                self.fault(key.place, "key", text);
                continue;
            };
            self.entry(name, key.place, value);
        }
    }

    fn fault(&mut self, place: Place, key: &str, text: impl Into<String>) {
        self.file.faults.push(FileFault { place, key: key.to_owned(), text: text.into() });
    }

    fn entry(&mut self, key: &str, place: Place, value: &Node) {
        let command = self.command;
        let argument = command.get_arguments().find(|argument| is_called(argument, key));
        let known = TYPE.iter().find(|(name, _)| *name == key);
        // A setting may have two names.
        let name = argument.and_then(Arg::get_long).unwrap_or(key);
        if let Some(first) = self.seen.insert(name.to_owned(), place) {
            let again = if name == key { "" } else { &format!(" as {name}") };
            self.seen.insert(name.to_owned(), first);
            self.fault(place, key, format!("already set{again} on line {}", first.line));
        } else if let Some((_, expected)) = known {
            if value.value != Value::Text((*expected).to_owned()) {
                self.fault(value.place, key, format!("expected {expected}"));
            }
        } else if let Some(argument) = argument {
            self.setting(argument, key, place, value);
        } else {
            let meant = match suggestion(command, key) {
                Some(name) => format!(", did you mean {name}?"),
                None => String::new(),
            };
            self.fault(place, key, format!("unknown setting{meant}"));
        }
    }

    fn setting(&mut self, argument: &Arg, key: &str, place: Place, value: &Node) {
        let Some(name) = argument.get_long() else { return };
        let is_list = matches!(argument.get_action(), ArgAction::Append);
        let faults_before = self.file.faults.len();
        let mut arguments = Vec::new();
        match &value.value {
            Value::List(items) if is_list => {
                for item in items {
                    arguments.extend(self.argument(argument, name, key, item));
                }
                if items.is_empty() && !argument.get_default_values().is_empty() {
                    arguments.push(format!("--{name}=").into());
                }
            }
            Value::Text(_) if !is_list => {
                arguments.extend(self.argument(argument, name, key, value));
            }
            other => {
                let expected = if is_list { "a list" } else { "a single value" };
                let found = other.kind();
                self.fault(value.place, key, format!("expected {expected}, found {found}"));
            }
        }
        if self.file.faults.len() == faults_before {
            self.file.settings.insert(name.to_owned(), (place, arguments));
        }
    }

    /// `--name=text`, when the flag would take it.
    fn argument(
        &mut self,
        argument: &Arg,
        name: &str,
        key: &str,
        value: &Node,
    ) -> Option<OsString> {
        let Value::Text(text) = &value.value else {
            let found = value.value.kind();
            self.fault(value.place, key, format!("expected a single value, found {found}"));
            return None;
        };
        if argument.get_value_delimiter().is_some_and(|delimiter| text.contains(delimiter)) {
            self.fault(
                value.place,
                key,
                format!("\"{text}\" holds a comma, write each value as an item of its own"),
            );
            return None;
        }
        let line = ["portico".to_owned(), format!("--{name}={text}")];
        if let Err(error) = self.command.clone().try_get_matches_from(line) {
            self.fault(value.place, key, reason(&error, text));
            return None;
        }
        let mut line = OsString::from(format!("--{name}="));
        line.push(resolved(argument, text, self.base));
        Some(line)
    }
}

fn is_called(argument: &Arg, key: &str) -> bool {
    argument.get_long_and_visible_aliases().is_some_and(|names| names.contains(&key))
}

/// What clap says about a value, without the flag around it.
fn reason(error: &clap::Error, text: &str) -> String {
    if let Some(source) = error.source() {
        return source.to_string();
    }
    match error.get(ContextKind::ValidValue) {
        Some(ContextValue::Strings(values)) if !values.is_empty() => {
            format!("\"{text}\" is not one of {}", values.join(", "))
        }
        _ if text.is_empty() => "must not be empty".to_owned(),
        _ => error.kind().to_string(),
    }
}

/// The setting that was meant: perhaps it is written as the kubelet writes its settings, or as a
/// flag; else one that is spelled alike.
fn suggestion(command: &clap::Command, key: &str) -> Option<String> {
    let mut name = String::new();
    for letter in key.trim_start_matches('-').chars() {
        match letter {
            '_' => name.push('-'),
            letter if letter.is_ascii_uppercase() => {
                name.push('-');
                name.push(letter.to_ascii_lowercase());
            }
            letter => name.push(letter),
        }
    }
    if !name.chars().all(|letter| letter.is_ascii_alphanumeric() || letter == '-') {
        return None;
    }
    if command.get_arguments().any(|argument| is_called(argument, &name)) {
        return Some(name);
    }
    let line = ["portico".to_owned(), format!("--{name}=")];
    let error = command.clone().try_get_matches_from(line).err()?;
    match error.get(ContextKind::SuggestedArg) {
        Some(ContextValue::String(flag)) => Some(flag.trim_start_matches('-').to_owned()),
        _ => None,
    }
}

/// The value with its paths relative to the file's directory, as the kubelet reads its file.
fn resolved(argument: &Arg, text: &str, base: &Path) -> OsString {
    if argument.get_value_parser().type_id() == TypeId::of::<SniPair>()
        && let Ok(pair) = text.parse::<SniPair>()
    {
        let (certificate, key) = (base.join(&pair.certificate), base.join(&pair.key));
        return SniPair { certificate, key, ..pair }.to_string().into();
    }
    let is_path = matches!(
        argument.get_value_hint(),
        ValueHint::AnyPath | ValueHint::FilePath | ValueHint::DirPath
    );
    // A dash is standard output.
    if is_path && text != "-" {
        return base.join(PathBuf::from(text)).into_os_string();
    }
    text.into()
}
