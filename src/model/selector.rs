//! Label and field selectors: upstream's grammar, upstream's words for what is wrong with them.

use std::collections::BTreeSet;

use serde_json::Value;

use super::rejection::Rejection;

const LABEL_KEY_RULE: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', \
    and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or \
    '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const LABEL_VALUE_RULE: &str = "a valid label must be an empty string or consist of alphanumeric \
    characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. \
    'MyValue',  or 'my_value',  or '12345', regex used for validation is \
    '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";
/// The longest name part of a label's key, and the longest value.
const LABEL_LENGTH_MAX: usize = 63;
/// The longest prefix of a label's key.
const LABEL_PREFIX_LENGTH_MAX: usize = 253;

/// Both selectors of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selectors {
    /// By label.
    pub labels: LabelSelector,
    /// By field.
    pub fields: FieldSelector,
}

/// One requirement of a selector as authorizers are told of it (`metav1.LabelSelectorRequirement`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SelectorRequirement {
    /// The label or the field.
    pub key: String,
    /// `In`, `NotIn`, `Exists` or `DoesNotExist`.
    pub operator: &'static str,
    /// Empty where the operator takes none.
    pub values: Vec<String>,
}

/// Requirements on labels, all of which must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelSelector {
    requirements: Vec<Requirement>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Requirement {
    key: String,
    operator: Operator,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Operator {
    Exists,
    DoesNotExist,
    In(BTreeSet<String>),
    NotIn(BTreeSet<String>),
}

/// Requirements on `metadata.name` and `metadata.namespace`, all of which must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSelector {
    requirements: Vec<FieldRequirement>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct FieldRequirement {
    field: Field,
    equal: bool,
    value: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Field {
    Name,
    Namespace,
}

impl Selectors {
    /// Reads both; empty texts select everything.
    pub fn parse(labels: &str, fields: &str) -> Result<Self, Rejection> {
        Ok(Self { labels: LabelSelector::parse(labels)?, fields: FieldSelector::parse(fields)? })
    }

    /// True when everything is selected.
    pub fn is_empty(&self) -> bool {
        self.labels.requirements.is_empty() && self.fields.requirements.is_empty()
    }

    /// Whether an object in JSON is selected.
    pub fn matches(&self, object: &Value) -> bool {
        let metadata = |key| object.pointer("/metadata").and_then(|metadata| metadata.get(key));
        let text = |key| metadata(key).and_then(Value::as_str).unwrap_or_default();
        let label = |key: &str| metadata("labels").and_then(|labels| labels.get(key)?.as_str());
        self.labels.matches(label) && self.fields.matches(text("name"), text("namespace"))
    }
}

impl LabelSelector {
    /// Reads `k=v,k==v,k!=v,k in (a,b),k notin (a),k,!k`.
    pub fn parse(text: &str) -> Result<Self, Rejection> {
        Parser::new(text).requirements().map_err(Rejection::BadRequest)
    }

    /// The requirements by key, as upstream sorts them.
    pub fn requirements(&self) -> Vec<SelectorRequirement> {
        let told = |requirement: &Requirement| {
            let (operator, values) = match &requirement.operator {
                Operator::Exists => ("Exists", Vec::new()),
                Operator::DoesNotExist => ("DoesNotExist", Vec::new()),
                Operator::In(values) => ("In", values.iter().cloned().collect()),
                Operator::NotIn(values) => ("NotIn", values.iter().cloned().collect()),
            };
            SelectorRequirement { key: requirement.key.clone(), operator, values }
        };
        let mut requirements: Vec<_> = self.requirements.iter().map(told).collect();
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        requirements
    }

    /// Whether the labels, given as a way to look one up, fulfil every requirement.
    pub fn matches<'a>(&self, label: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.requirements.iter().all(|requirement| {
            let value = label(&requirement.key);
            match &requirement.operator {
                Operator::Exists => value.is_some(),
                Operator::DoesNotExist => value.is_none(),
                Operator::In(values) => value.is_some_and(|value| values.contains(value)),
                Operator::NotIn(values) => !value.is_some_and(|value| values.contains(value)),
            }
        })
    }
}

impl FieldSelector {
    /// Reads `a=b,a==b,a!=b` of the two fields; commas, equals signs and backslashes in values are
    /// escaped with a backslash.
    pub fn parse(text: &str) -> Result<Self, Rejection> {
        let mut requirements = Vec::new();
        for term in split_terms(text).into_iter().filter(|term| !term.is_empty()) {
            let bad = |why: String| Rejection::BadRequest(why);
            let (name, equal, value) = split_term(term).ok_or_else(|| {
                bad(format!("invalid selector: '{text}'; can't understand '{term}'"))
            })?;
            let field = match name {
                "metadata.name" => Field::Name,
                "metadata.namespace" => Field::Namespace,
                _ => {
                    return Err(bad(format!(
                        "{name:?} is not a known field selector: only \"metadata.name\", \
                         \"metadata.namespace\""
                    )));
                }
            };
            let value = unescape(value)
                .ok_or_else(|| bad(format!("invalid field selector value: {value:?}")))?;
            requirements.push(FieldRequirement { field, equal, value });
        }
        Ok(Self { requirements })
    }

    /// Whether an object of this name and namespace fulfils every requirement.
    pub fn matches(&self, name: &str, namespace: &str) -> bool {
        self.requirements.iter().all(|requirement| {
            let actual = match requirement.field {
                Field::Name => name,
                Field::Namespace => namespace,
            };
            (actual == requirement.value) == requirement.equal
        })
    }
}

/// The requirements of a field selector on whatever fields, in upstream's order
/// (`fields.ParseSelector`); `None` when it cannot be understood.
pub fn field_requirements(text: &str) -> Option<Vec<SelectorRequirement>> {
    let mut terms = split_terms(text);
    terms.sort_unstable();
    let terms = terms.into_iter().filter(|term| !term.is_empty());
    let requirement = |term| {
        let (field, equal, value) = split_term(term)?;
        let operator = if equal { "In" } else { "NotIn" };
        Some(SelectorRequirement {
            key: field.to_owned(),
            operator,
            values: vec![unescape(value)?],
        })
    };
    terms.map(requirement).collect()
}

/// Splits at commas that are not escaped.
fn split_terms(text: &str) -> Vec<&str> {
    let mut escaped = false;
    text.split(|character| {
        let splits = character == ',' && !escaped;
        escaped = character == '\\' && !escaped;
        splits
    })
    .collect()
}

/// Splits at the first operator that is not escaped: field, whether equal, value.
fn split_term(term: &str) -> Option<(&str, bool, &str)> {
    let mut escaped = false;
    for (at, character) in term.char_indices() {
        if !escaped {
            let (field, rest) = term.split_at_checked(at)?;
            for (operator, equal) in [("!=", false), ("==", true), ("=", true)] {
                if let Some(value) = rest.strip_prefix(operator) {
                    return Some((field, equal, value));
                }
            }
        }
        escaped = character == '\\' && !escaped;
    }
    None
}

/// Removes escapes; `None` when a character is escaped that need not be, or one is not that must.
fn unescape(value: &str) -> Option<String> {
    let mut plain = String::with_capacity(value.len());
    let mut characters = value.chars();
    while let Some(character) = characters.next() {
        match character {
            '\\' => plain.push(characters.next().filter(|next| "\\,=".contains(*next))?),
            ',' | '=' => return None,
            other => plain.push(other),
        }
    }
    Some(plain)
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Word(String),
    Symbol(&'static str),
    End,
}

impl Token {
    fn text(&self) -> &str {
        match self {
            Self::Word(word) => word,
            Self::Symbol(symbol) => symbol,
            Self::End => "",
        }
    }
}

/// The longest symbols first.
const SYMBOLS: [&str; 8] = ["==", "!=", "=", "!", "(", ")", ",", ">"];

/// Reads a label selector token by token (`labels.Parser`).
struct Parser<'a> {
    rest: &'a str,
}

impl<'a> Parser<'a> {
    fn new(text: &'a str) -> Self {
        Self { rest: text }
    }

    fn requirements(mut self) -> Result<LabelSelector, String> {
        let mut requirements = Vec::new();
        if self.peek() == Token::End {
            return Ok(LabelSelector { requirements });
        }
        loop {
            match self.peek() {
                Token::Word(_) | Token::Symbol("!") => {}
                other => {
                    let found = other.text();
                    return Err(if requirements.is_empty() {
                        format!("found '{found}', expected: !, identifier, or 'end of string'")
                    } else {
                        format!("found '{found}', expected: identifier after ','")
                    });
                }
            }
            let requirement = self
                .requirement()
                .map_err(|error| format!("unable to parse requirement: {error}"))?;
            requirements.push(requirement);
            match self.next() {
                Token::End => return Ok(LabelSelector { requirements }),
                Token::Symbol(",") => {}
                other => {
                    let found = other.text();
                    return Err(format!("found '{found}', expected: ',' or 'end of string'"));
                }
            }
        }
    }

    fn requirement(&mut self) -> Result<Requirement, String> {
        let mut token = self.next();
        let negated = token == Token::Symbol("!");
        if negated {
            token = self.next();
        }
        let Token::Word(key) = token else {
            return Err(format!("found '{}', expected: identifier", token.text()));
        };
        check_key(&key)?;
        let alone = matches!(self.peek(), Token::End | Token::Symbol(","));
        let operator = match (negated, alone) {
            (true, _) => Operator::DoesNotExist,
            (false, true) => Operator::Exists,
            (false, false) => self.operator()?,
        };
        if let Operator::In(values) | Operator::NotIn(values) = &operator {
            check_values(&key, values)?;
        }
        Ok(Requirement { key, operator })
    }

    fn operator(&mut self) -> Result<Operator, String> {
        let token = self.next();
        match token.text() {
            "in" => self.values().map(Operator::In),
            "notin" => self.values().map(Operator::NotIn),
            "=" | "==" => self.value().map(Operator::In),
            "!=" => self.value().map(Operator::NotIn),
            found => Err(format!("found '{found}', expected: in, notin, =, ==, !=, gt, lt")),
        }
    }

    fn value(&mut self) -> Result<BTreeSet<String>, String> {
        match self.peek() {
            Token::End | Token::Symbol(",") => Ok(BTreeSet::from([String::new()])),
            Token::Word(word) => {
                self.next();
                Ok(BTreeSet::from([word]))
            }
            other @ Token::Symbol(_) => {
                Err(format!("found '{}', expected: identifier", other.text()))
            }
        }
    }

    /// The list behind `in` and `notin`; an empty place in it is the empty value.
    fn values(&mut self) -> Result<BTreeSet<String>, String> {
        let open = self.next();
        if open != Token::Symbol("(") {
            return Err(format!("found '{}' expected: '('", open.text()));
        }
        let mut values = BTreeSet::new();
        if self.peek() == Token::Symbol(")") {
            self.next();
            return Ok(values);
        }
        loop {
            match self.peek() {
                Token::Word(word) => {
                    self.next();
                    values.insert(word);
                }
                Token::Symbol("," | ")") => {
                    values.insert(String::new());
                }
                other => {
                    return Err(format!("found '{}', expected: ',', or identifier", other.text()));
                }
            }
            match self.next() {
                Token::Symbol(",") => {}
                Token::Symbol(")") => return Ok(values),
                other => return Err(format!("found '{}', expected: ',' or ')'", other.text())),
            }
        }
    }

    fn peek(&self) -> Token {
        Parser { rest: self.rest }.next()
    }

    fn next(&mut self) -> Token {
        self.rest = self.rest.trim_start_matches([' ', '\t', '\r', '\n']);
        for symbol in SYMBOLS {
            if let Some(rest) = self.rest.strip_prefix(symbol) {
                self.rest = rest;
                return Token::Symbol(symbol);
            }
        }
        let end = self
            .rest
            .find([' ', '\t', '\r', '\n', '=', '!', '(', ')', ',', '>'])
            .unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at_checked(end).unwrap_or((self.rest, ""));
        self.rest = rest;
        if word.is_empty() { Token::End } else { Token::Word(word.to_owned()) }
    }
}

fn check_key(key: &str) -> Result<(), String> {
    let (prefix, name) = match key.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, key),
    };
    let fault = if prefix.is_some_and(|prefix| !is_subdomain(prefix)) {
        "prefix part must be a lowercase RFC 1123 subdomain".to_owned()
    } else if name.is_empty() {
        "name part must be non-empty".to_owned()
    } else if name.len() > LABEL_LENGTH_MAX {
        format!("name part must be no more than {LABEL_LENGTH_MAX} bytes")
    } else if !is_label_text(name) {
        LABEL_KEY_RULE.to_owned()
    } else {
        return Ok(());
    };
    Err(format!("<nil>: Invalid value: {key:?}: {fault}"))
}

fn check_values(key: &str, values: &BTreeSet<String>) -> Result<(), String> {
    if values.is_empty() {
        return Err("values: Invalid value: []: for 'in', 'notin' operators, values set can't be \
                    empty"
            .to_owned());
    }
    for (index, value) in values.iter().enumerate() {
        let fault = if value.len() > LABEL_LENGTH_MAX {
            format!("must be no more than {LABEL_LENGTH_MAX} bytes")
        } else if !value.is_empty() && !is_label_text(value) {
            LABEL_VALUE_RULE.to_owned()
        } else {
            continue;
        };
        return Err(format!("values[{index}][{key}]: Invalid value: {value:?}: {fault}"));
    }
    Ok(())
}

fn is_label_text(text: &str) -> bool {
    let bytes = text.as_bytes();
    let ends = [bytes.first(), bytes.last()];
    ends.iter().all(|end| end.is_some_and(u8::is_ascii_alphanumeric))
        && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(byte))
}

/// Whether `text` is a lowercase RFC 1123 subdomain, as names of objects must be.
pub fn is_subdomain(text: &str) -> bool {
    let lower = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    text.len() <= LABEL_PREFIX_LENGTH_MAX
        && text.split('.').all(|part| {
            let bytes = part.as_bytes();
            [bytes.first(), bytes.last()].iter().all(|end| end.is_some_and(lower))
                && bytes.iter().all(|byte| lower(byte) || *byte == b'-')
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[track_caller]
    fn check(selector: &str, labels: &[(&str, &str)], expected: bool) {
        let parsed = LabelSelector::parse(selector).unwrap();
        let label = |key: &str| labels.iter().find(|(name, _)| *name == key).map(|(_, v)| *v);
        assert_eq!(parsed.matches(label), expected, "{selector} on {labels:?}");
    }

    #[test]
    fn labels_are_selected_by_every_operator() {
        let labels = &[("app", "web"), ("example.com/tier", "a"), ("empty", "")];
        let cases = [
            ("", true),
            ("app=web", true),
            ("app==web", true),
            ("app = web , empty", true),
            ("app!=web", false),
            ("absent!=x", true),
            ("app in (web,db)", true),
            ("app in (db)", false),
            ("app notin (db)", true),
            ("absent notin (db)", true),
            ("absent in (db,)", false),
            ("empty in (db,)", true),
            ("empty=", true),
            ("app", true),
            ("!app", false),
            ("! absent", true),
            ("example.com/tier=a,app=web", true),
            ("example.com/tier=a,app=db", false),
            ("in in (in)", false),
        ];
        for (selector, expected) in cases {
            check(selector, labels, expected);
        }
    }

    #[track_caller]
    fn refused(selector: &str, expected: &str) {
        let message = LabelSelector::parse(selector).unwrap_err().message();
        assert!(message.starts_with(expected), "{selector}: {message}");
    }

    #[test]
    fn broken_label_selectors_are_refused_in_upstreams_words() {
        refused(
            "a b",
            "unable to parse requirement: found 'b', expected: in, notin, =, ==, !=, gt",
        );
        refused("a=b=c", "found '=', expected: ',' or 'end of string'");
        refused("a,", "found '', expected: identifier after ','");
        refused(",", "found ',', expected: !, identifier, or 'end of string'");
        refused("a in b", "unable to parse requirement: found 'b' expected: '('");
        refused("a in (b", "unable to parse requirement: found '', expected: ',' or ')'");
        refused("a in ()", "unable to parse requirement: values: Invalid value: []: for 'in',");
        refused("a=(", "unable to parse requirement: found '(', expected: identifier");
        refused("!", "unable to parse requirement: found '', expected: identifier");
        refused("a@b=c", "unable to parse requirement: <nil>: Invalid value: \"a@b\": name part");
        refused("A_/b", "unable to parse requirement: <nil>: Invalid value: \"A_/b\": prefix part");
        refused("a=-", "unable to parse requirement: values[0][a]: Invalid value: \"-\": a valid");
    }

    #[test]
    fn fields_are_selected_by_name_and_namespace() {
        let matches = |text: &str| FieldSelector::parse(text).unwrap().matches("n", "ns");
        assert!(matches(""));
        assert!(matches("metadata.name=n"));
        assert!(matches("metadata.name==n,metadata.namespace=ns"));
        assert!(!matches("metadata.name=n,metadata.namespace!=ns"));
        assert!(!matches("metadata.name=n\\,x"));
        let refused = |text: &str| FieldSelector::parse(text).unwrap_err().message();
        assert_eq!(
            refused("spec.x=1"),
            "\"spec.x\" is not a known field selector: only \"metadata.name\", \
             \"metadata.namespace\""
        );
        assert_eq!(refused("a,b"), "invalid selector: 'a,b'; can't understand 'a'");
        assert_eq!(refused("metadata.name=a=b"), "invalid field selector value: \"a=b\"");
    }

    #[test]
    fn requirements_are_told_as_authorizers_know_them() {
        let told = |requirements: Vec<SelectorRequirement>| -> Vec<String> {
            let told = requirements.iter();
            told.map(|it| format!("{} {} {:?}", it.key, it.operator, it.values)).collect()
        };
        let labels = LabelSelector::parse("b notin (y,x),!a,c,d=1,e!=").unwrap().requirements();
        let expected = [
            "a DoesNotExist []",
            "b NotIn [\"x\", \"y\"]",
            "c Exists []",
            "d In [\"1\"]",
            "e NotIn [\"\"]",
        ];
        assert_eq!(told(labels), expected);
        let fields = field_requirements("spec.nodeName!=n,metadata.name==a\\,b,").unwrap();
        let expected = ["metadata.name In [\"a,b\"]", "spec.nodeName NotIn [\"n\"]"];
        assert_eq!(told(fields), expected);
        assert_eq!(field_requirements("a"), None);
        assert_eq!(field_requirements("a=b=c"), None);
        assert_eq!(field_requirements(""), Some(Vec::new()));
    }

    #[test]
    fn objects_are_selected_by_both() {
        let object = json!({"metadata": {"name": "n", "labels": {"app": "web"}}});
        let matches = |labels, fields| Selectors::parse(labels, fields).unwrap().matches(&object);
        assert!(matches("app=web", "metadata.name=n"));
        assert!(!matches("app=db", "metadata.name=n"));
        assert!(!matches("app=web", "metadata.name!=n"));
    }
}
