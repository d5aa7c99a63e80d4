//! Texts of errors as people read them: with their causes, and no longer than is of use.

use std::error::Error;

/// An error with its causes, of which none is told twice: many errors tell theirs already.
pub fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let reason = error.to_string();
        if !text.ends_with(&reason) {
            text = format!("{text}: {reason}");
        }
        cause = error.source();
    }
    text
}

/// So many characters of a text, which shows where it was cut.
pub fn shortened(mut text: String, characters_max: usize) -> String {
    if let Some((end, _)) = text.char_indices().nth(characters_max) {
        text.truncate(end);
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Told {
        text: &'static str,
        source: Option<Box<Self>>,
    }

    #[track_caller]
    fn check_causes(texts: &[&'static str], expected: &str) {
        let error = texts.iter().rfold(None, |source, &text| Some(Box::new(Told { text, source })));
        assert_eq!(with_causes(&*error.unwrap()), expected);
    }

    #[test]
    fn every_cause_is_told_once() {
        check_causes(&["a"], "a");
        check_causes(&["a", "b", "c"], "a: b: c");
        check_causes(&["a: b", "b", "c"], "a: b: c");
        check_causes(&["a: b: c", "b: c", "c"], "a: b: c");
    }

    #[test]
    fn a_long_text_is_cut_between_characters() {
        assert_eq!(shortened("äöü".to_owned(), 3), "äöü");
        assert_eq!(shortened("äöü".to_owned(), 2), "äö…");
        assert_eq!(shortened(String::new(), 0), "");
    }
}
