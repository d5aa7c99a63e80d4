//! Just enough of Rust's grammar for the rules: words and signs without comments and literals, and which of them are
//! compiled for unit tests only.

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Token {
    pub(crate) text: String,
    pub(crate) line: usize,
}

/// A file's words and signs without comments and whitespace; every string and character literal is `""`.
pub(crate) fn tokenize(text: &str) -> Vec<Token> {
    let mut reader = Reader { letters: text.chars().collect(), at: 0, line: 1 };
    let mut tokens = Vec::new();
    while let Some(letter) = reader.peek(0) {
        let line = reader.line;
        let text = match letter {
            '/' if reader.peek(1) == Some('/') => {
                reader.skip_while(|letter| letter != '\n');
                continue;
            }
            '/' if reader.peek(1) == Some('*') => {
                reader.skip_block_comment();
                continue;
            }
            '"' => reader.skip_string(),
            '\'' => reader.skip_quote(),
            ':' if reader.peek(1) == Some(':') => {
                reader.skip(2);
                "::".to_owned()
            }
            _ if letter.is_whitespace() => {
                reader.skip(1);
                continue;
            }
            _ if is_word(letter) => reader.word(),
            _ => {
                reader.skip(1);
                letter.to_string()
            }
        };
        tokens.push(Token { text, line });
    }
    tokens
}

fn is_word(letter: char) -> bool {
    letter.is_alphanumeric() || letter == '_'
}

struct Reader {
    letters: Vec<char>,
    at: usize,
    line: usize,
}

impl Reader {
    fn peek(&self, ahead: usize) -> Option<char> {
        self.letters.get(self.at + ahead).copied()
    }

    fn skip(&mut self, count: usize) {
        for _ in 0..count {
            if self.peek(0) == Some('\n') {
                self.line += 1;
            }
            self.at += 1;
        }
    }

    fn skip_while(&mut self, wanted: impl Fn(char) -> bool) {
        while self.peek(0).is_some_and(&wanted) {
            self.skip(1);
        }
    }

    fn skip_block_comment(&mut self) {
        let mut depth = 0_usize;
        while let Some(letter) = self.peek(0) {
            match (letter, self.peek(1)) {
                ('/', Some('*')) => depth += 1,
                ('*', Some('/')) => depth -= 1,
                _ => {
                    self.skip(1);
                    continue;
                }
            }
            self.skip(2);
            if depth == 0 {
                return;
            }
        }
    }

    fn skip_string(&mut self) -> String {
        self.skip(1);
        while let Some(letter) = self.peek(0) {
            self.skip(if letter == '\\' { 2 } else { 1 });
            if letter == '"' {
                break;
            }
        }
        "\"\"".to_owned()
    }

    /// A raw string from its first `#` or quote on.
    fn skip_raw_string(&mut self) -> String {
        let mut hashes = 0_usize;
        while self.peek(0) == Some('#') {
            hashes += 1;
            self.skip(1);
        }
        self.skip(1);
        while let Some(letter) = self.peek(0) {
            self.skip(1);
            if letter == '"' && (0..hashes).all(|ahead| self.peek(ahead) == Some('#')) {
                self.skip(hashes);
                break;
            }
        }
        "\"\"".to_owned()
    }

    /// A character literal, or the quote of a lifetime.
    fn skip_quote(&mut self) -> String {
        if self.peek(1) == Some('\\') {
            self.skip(3);
            self.skip_while(|letter| letter != '\'');
            self.skip(1);
        } else if self.peek(2) == Some('\'') {
            self.skip(3);
        } else {
            self.skip(1);
            return "'".to_owned();
        }
        "\"\"".to_owned()
    }

    fn word(&mut self) -> String {
        let start = self.at;
        self.skip_while(is_word);
        let word: String = self.letters.iter().skip(start).take(self.at - start).collect();
        let prefixes_raw = matches!(word.as_str(), "r" | "br" | "cr");
        match self.peek(0) {
            Some('"') if prefixes_raw => self.skip_raw_string(),
            Some('"') if matches!(word.as_str(), "b" | "c") => self.skip_string(),
            Some('#') if prefixes_raw => {
                let after_hashes = (0..).find_map(|ahead| match self.peek(ahead) {
                    Some('#') => None,
                    other => Some(other),
                });
                if after_hashes == Some(Some('"')) {
                    return self.skip_raw_string();
                }
                // A raw identifier: `r#type`.
                self.skip(1);
                self.word()
            }
            _ => word,
        }
    }
}

/// An item that is compiled for tests only: its tokens, from its first attribute on.
struct TestItem {
    start: usize,
    end: usize,
}

fn test_items(tokens: &[Token]) -> Vec<TestItem> {
    let mut items = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        if is_test_attribute(tokens, at) {
            let end = end_of_item(tokens, at);
            items.push(TestItem { start: at, end });
            at = end;
        } else {
            at += 1;
        }
    }
    items
}

/// Whether `#[cfg(test)]`, or `#[cfg(all(…))]` with `test` in it, begins at `at`.
fn is_test_attribute(tokens: &[Token], at: usize) -> bool {
    let end = end_of_brackets(tokens, at + 1);
    let texts: Vec<&str> =
        tokens.iter().take(end).skip(at).map(|token| token.text.as_str()).collect();
    match texts.as_slice() {
        ["#", "[", "cfg", "(", "test", ")", "]"] => true,
        ["#", "[", "cfg", "(", "all", inside @ ..] => {
            inside.contains(&"test") && !inside.contains(&"not") && !inside.contains(&"any")
        }
        _ => false,
    }
}

/// The index after the bracket that closes the one at `at`; `at` itself where there is none.
fn end_of_brackets(tokens: &[Token], at: usize) -> usize {
    let mut depth = 0_usize;
    for (index, token) in tokens.iter().enumerate().skip(at) {
        match token.text.as_str() {
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth == 0 {
            return if index == at { at } else { index + 1 };
        }
    }
    tokens.len()
}

/// The index after the item that the attribute at `at` belongs to.
fn end_of_item(tokens: &[Token], at: usize) -> usize {
    let text = |at: usize| tokens.get(at).map_or("", |token| token.text.as_str());
    let mut at = at;
    while text(at) == "#" && text(at + 1) == "[" {
        at = end_of_brackets(tokens, at + 1);
    }
    let mut before_body = (at..at + 5).map(text).take_while(|text| !matches!(*text, ";" | "{"));
    let is_import = before_body.any(|text| text == "use");
    while at < tokens.len() {
        match text(at) {
            ";" => return at + 1,
            "{" if !is_import => return end_of_brackets(tokens, at),
            "(" | "[" | "{" => at = end_of_brackets(tokens, at),
            // The end of what holds the item: a last field or argument.
            ")" | "]" | "}" => return at,
            _ => at += 1,
        }
    }
    tokens.len()
}

pub(crate) fn without_tests(tokens: &[Token]) -> Vec<Token> {
    let items = test_items(tokens);
    let is_test = |at: usize| items.iter().any(|item| (item.start..item.end).contains(&at));
    let kept = tokens.iter().enumerate().filter(|(at, _)| !is_test(*at));
    kept.map(|(_, token)| token.clone()).collect()
}

/// The line on which the unit tests at the end of a file begin.
pub(crate) fn trailing_tests_line(tokens: &[Token]) -> Option<usize> {
    let last = test_items(tokens).pop()?;
    let is_module = tokens.iter().take(last.end).skip(last.start).any(|token| token.text == "mod");
    let line = tokens.get(last.start)?.line;
    (is_module && last.end == tokens.len()).then_some(line)
}

/// The files that hold modules which `path` declares as `#[cfg(test)] mod name;`.
pub(crate) fn test_only_files(path: &str, text: &str) -> Vec<String> {
    let tokens = tokenize(text);
    let own_folder = match path.rsplit_once('/') {
        Some((folder, "mod.rs" | "lib.rs" | "main.rs")) => folder.to_owned(),
        _ => path.trim_end_matches(".rs").to_owned(),
    };
    let mut files = Vec::new();
    for item in test_items(&tokens) {
        let texts: Vec<&str> = tokens
            .iter()
            .take(item.end)
            .skip(item.start)
            .map(|token| token.text.as_str())
            .collect();
        if let [.., "mod", name, ";"] = texts.as_slice() {
            files.push(format!("{own_folder}/{name}.rs"));
            files.push(format!("{own_folder}/{name}/mod.rs"));
        }
    }
    files
}
