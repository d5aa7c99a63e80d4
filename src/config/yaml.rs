//! The file's YAML as a tree whose every node knows its place.
//!
//! Scalars stay the text that was written, so that a value means the same as behind a flag: nothing
//! becomes a number or a boolean on the way. Aliases and tags are left for the reader to refuse.

use granit_parser::{Event, Parser, ScalarStyle, ScanError, Span};

/// A place in the file, both counted from 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    /// The line.
    pub(super) line: usize,
    /// The column, in characters.
    pub(super) column: usize,
}

/// A value and where it begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Node {
    /// Where it begins.
    pub(super) place: Place,
    /// What it is.
    pub(super) value: Value,
}

/// What a node is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value {
    /// A scalar as it is written, without its quotes.
    Text(String),
    /// Nothing, `~` or `null`.
    Nothing,
    /// A sequence.
    List(Vec<Node>),
    /// A mapping; keys may be there twice.
    Map(Vec<(Node, Node)>),
    /// An alias of a node elsewhere.
    Alias,
    /// Anything with a tag.
    Tagged,
}

impl Value {
    /// What it is called when something else was expected.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Text(_) => "a single value",
            Self::Nothing => "nothing",
            Self::List(_) => "a list",
            Self::Map(_) => "a map",
            Self::Alias => "an alias",
            Self::Tagged => "a value with a tag",
        }
    }
}

/// Why the text is not YAML, or not one document, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NotYaml {
    /// Where.
    pub(super) place: Place,
    /// Why.
    pub(super) text: String,
}

/// The one document in `text`; nothing when there is none.
pub(super) fn parse(text: &str) -> Result<Option<Node>, NotYaml> {
    let options = granit_parser::options! { emit_comments: false };
    let mut events = Events { parser: Parser::new_from_str_with_options(text, options) };
    let mut document = None;
    while let Some((event, place)) = events.next()? {
        if !matches!(event, Event::DocumentStart(..)) {
            continue;
        }
        if document.is_some() {
            let text = "a second document begins here, one is expected".to_owned();
            return Err(NotYaml { place, text });
        }
        document = events.node()?;
    }
    Ok(document)
}

struct Events<I> {
    parser: I,
}

impl<'text, I> Events<I>
where
    I: Iterator<Item = Result<(Event<'text>, Span), ScanError>>,
{
    fn next(&mut self) -> Result<Option<(Event<'text>, Place)>, NotYaml> {
        match self.parser.next() {
            None => Ok(None),
            Some(Ok((event, span))) => Ok(Some((event, place(span.start)))),
            Some(Err(error)) => Err(NotYaml { place: place(*error.marker()), text: error.info() }),
        }
    }

    /// The next node with all that is in it; nothing at the end of a collection. The parser bounds
    /// how deep they are nested.
    fn node(&mut self) -> Result<Option<Node>, NotYaml> {
        while let Some((event, place)) = self.next()? {
            let (value, tagged) = match event {
                Event::Scalar(text, style, _, tag) => {
                    (scalar(text.into_owned(), style), tag.is_some())
                }
                Event::Alias(_) => (Value::Alias, false),
                Event::SequenceStart(_, _, tag) => (self.list()?, tag.is_some()),
                Event::MappingStart(_, _, tag) => (self.map()?, tag.is_some()),
                Event::SequenceEnd | Event::MappingEnd | Event::DocumentEnd | Event::StreamEnd => {
                    return Ok(None);
                }
                _ => continue,
            };
            let value = if tagged { Value::Tagged } else { value };
            return Ok(Some(Node { place, value }));
        }
        Ok(None)
    }

    fn list(&mut self) -> Result<Value, NotYaml> {
        let mut items = Vec::new();
        while let Some(item) = self.node()? {
            items.push(item);
        }
        Ok(Value::List(items))
    }

    fn map(&mut self) -> Result<Value, NotYaml> {
        let mut entries = Vec::new();
        while let Some(key) = self.node()? {
            let Some(value) = self.node()? else { break };
            entries.push((key, value));
        }
        Ok(Value::Map(entries))
    }
}

fn scalar(text: String, style: ScalarStyle) -> Value {
    let nothing = matches!(text.as_str(), "" | "~" | "null" | "Null" | "NULL");
    if nothing && style == ScalarStyle::Plain { Value::Nothing } else { Value::Text(text) }
}

fn place(marker: granit_parser::Marker) -> Place {
    Place { line: marker.line(), column: marker.col() + 1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The tree with its places, in one line.
    fn shown(node: &Node) -> String {
        let Place { line, column } = node.place;
        let value = match &node.value {
            Value::Text(text) => format!("{text:?}"),
            Value::List(items) => {
                let items: Vec<_> = items.iter().map(shown).collect();
                format!("[{}]", items.join(", "))
            }
            Value::Map(entries) => {
                let entry = |(key, value): &(Node, Node)| shown(key) + ": " + &shown(value);
                let entries: Vec<_> = entries.iter().map(entry).collect();
                format!("{{{}}}", entries.join(", "))
            }
            other => other.kind().to_owned(),
        };
        format!("{line}:{column} {value}")
    }

    #[track_caller]
    fn check(text: &str, expected: &str) {
        let found = match parse(text) {
            Ok(None) => "empty".to_owned(),
            Ok(Some(node)) => shown(&node),
            Err(NotYaml { place, text }) => format!("{}:{} {text}", place.line, place.column),
        };
        assert!(found.starts_with(expected), "{text:?}: {found}");
    }

    #[test]
    fn scalars_stay_as_they_are_written() {
        check(
            "a: 0644\nb: 1.0\nc: yes",
            r#"1:1 {1:1 "a": 1:4 "0644", 2:1 "b": 2:4 "1.0", 3:1 "c""#,
        );
        check("a: 'it''s'\n", r#"1:1 {1:1 "a": 1:4 "it's"}"#);
        check("a: \"\"\nb: ''", r#"1:1 {1:1 "a": 1:4 "", 2:1 "b": 2:4 ""}"#);
    }

    #[test]
    fn nothing_is_told_from_an_empty_text() {
        check("a:\nb: ~\n", r#"1:1 {1:1 "a": 1:2 nothing, 2:1 "b": 2:4 nothing}"#);
        check("", "empty");
        check("# words\n", "empty");
        check("---\n", "1:4 nothing");
    }

    #[test]
    fn collections_know_their_items_places() {
        check("a: [x, y]", r#"1:1 {1:1 "a": 1:4 [1:5 "x", 1:8 "y"]}"#);
        check("# c\na:\n- x\n- - y\n", r#"2:1 {2:1 "a": 3:3 [3:3 "x", 4:3 [4:5 "y"]]}"#);
        check("a: {b: c}", r#"1:1 {1:1 "a": 1:4 {1:5 "b": 1:8 "c"}}"#);
        check("a: 1\na: 2\n", r#"1:1 {1:1 "a": 1:4 "1", 2:1 "a": 2:4 "2"}"#);
    }

    #[test]
    fn aliases_and_tags_are_kept_apart_from_values() {
        check("a: &x 1\nb: *x\n", r#"1:1 {1:1 "a": 1:7 "1", 2:1 "b": 2:4 an alias}"#);
        let tagged = parse("a: !include x\nb: !!seq [1]\nc: d\n").unwrap().unwrap();
        let Value::Map(entries) = tagged.value else { panic!("a map") };
        let kinds: Vec<_> = entries.iter().map(|(_, value)| value.value.kind()).collect();
        assert_eq!(kinds, ["a value with a tag", "a value with a tag", "a single value"]);
    }

    #[test]
    fn what_is_not_one_document_is_refused_with_its_place() {
        check("a: 1\n---\nb: 2\n", "2:1 a second document");
        for text in ["a: [1", "a: 'x", "a: *nowhere", "a:\n\tb: 1\n", "a: b: c"] {
            let wrong = parse(text).unwrap_err();
            assert!(wrong.place.line >= 1 && !wrong.text.is_empty(), "{text:?}: {wrong:?}");
        }
        let deep = "[".repeat(100_000);
        assert!(parse(&deep).is_err());
    }
}
