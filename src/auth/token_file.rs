//! Static bearer tokens from a CSV file (`apiserver/pkg/authentication/token/tokenfile`).

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use foldhash::quality::RandomState;

use super::caller::Caller;
use crate::model::user::User;
use crate::runtime::files::{Files, Unreadable};
use crate::runtime::snapshot::View;

/// Tokens with their users, as the file has them.
#[derive(Debug, Default)]
pub struct Tokens {
    callers: HashMap<Box<[u8]>, Arc<Caller>, RandomState>,
}

/// What is wrong with a token file.
#[derive(Debug, thiserror::Error)]
pub enum TokenFileError {
    /// The file cannot be read.
    #[error("token file: {0}")]
    Unreadable(#[from] Unreadable),
    /// The file is no CSV.
    #[error("token file '{path}': {error}")]
    Csv {
        /// The file.
        path: String,
        /// Why.
        error: csv::Error,
    },
    /// A line has fewer than three columns.
    #[error(
        "token file '{path}' must have at least 3 columns (token, user name, user uid), \
         found {columns} in line {line}"
    )]
    Columns {
        /// The file.
        path: String,
        /// Line number, from 1.
        line: u64,
        /// How many there are.
        columns: usize,
    },
    /// A user that cannot be told to a backend.
    #[error("token file '{path}' line {line}: {problem}")]
    User {
        /// The file.
        path: String,
        /// Line number, from 1.
        line: u64,
        /// What is wrong.
        problem: String,
    },
}

impl Tokens {
    /// The tokens in a file, for as long as `files` are followed.
    pub fn follow(files: &mut Files, path: &Path) -> Result<View<Self>, TokenFileError> {
        let place = path.display().to_string();
        files.add("tokens", [path], move |[text]| Self::parse(&place, text))
    }

    /// Reads `token,user,uid[,"group1,group2"]` lines. A line without token is skipped, and of a
    /// token that stands twice the last counts; both are warned of.
    pub fn parse(place: &str, text: &[u8]) -> Result<Self, TokenFileError> {
        let place = place.to_owned();
        let read_error = |error| TokenFileError::Csv { path: place.clone(), error };
        let mut reader = csv::ReaderBuilder::new()
            .has_headers(false)
            .flexible(true)
            .trim(csv::Trim::None)
            .from_reader(text);
        let mut callers = HashMap::default();
        for record in reader.records() {
            let record = record.map_err(read_error)?;
            let line = record.position().map_or(0, csv::Position::line);
            let (Some(token), Some(name), Some(uid)) =
                (record.get(0), record.get(1), record.get(2))
            else {
                return Err(TokenFileError::Columns { path: place, line, columns: record.len() });
            };
            if token.is_empty() {
                tracing::warn!(file = %place, line, "empty token in token file, line skipped");
                continue;
            }
            let groups = record.get(3).unwrap_or_default().split(',').map(str::trim);
            let user = User {
                name: name.to_owned(),
                uid: uid.to_owned(),
                groups: groups.filter(|group| !group.is_empty()).map(str::to_owned).collect(),
                ..User::default()
            };
            let caller = Caller::new(user.authenticated())
                .map_err(|problem| TokenFileError::User { path: place.clone(), line, problem })?;
            if callers.insert(token.as_bytes().into(), Arc::new(caller)).is_some() {
                tracing::warn!(file = %place, line, "duplicate token in token file, last one counts");
            }
        }
        Ok(Self { callers })
    }

    /// The caller whose token it is.
    pub(super) fn find(&self, token: &[u8]) -> Option<&Arc<Caller>> {
        self.callers.get(token)
    }

    /// True when no token is known.
    pub fn is_empty(&self) -> bool {
        self.callers.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Tokens, TokenFileError> {
        Tokens::parse("tokens.csv", text.as_bytes())
    }

    #[test]
    fn columns_are_token_user_uid_and_groups() {
        let tokens = read("t1,alice,u1,\"dev,ops\"\nt2,bob,u2\n,nobody,u3\nt2,carol,u4\n").unwrap();
        let alice = &tokens.find(b"t1").unwrap().user;
        assert_eq!(alice.groups, ["dev", "ops", "system:authenticated"]);
        assert_eq!(alice.uid, "u1");
        assert_eq!(tokens.find(b"t2").unwrap().user.name, "carol");
        assert!(tokens.find(b"").is_none());
    }

    #[test]
    fn a_line_with_too_few_columns_is_an_error_that_names_it() {
        let error = read("t1,alice,u1\nt2,bob\n").unwrap_err().to_string();
        assert!(
            error.contains("at least 3 columns") && error.contains("found 2 in line 2"),
            "{error}"
        );
    }
}
