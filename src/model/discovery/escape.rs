//! What Go's encoder escapes in JSON besides what it has to (`encoding/json`, `SetEscapeHTML`).

/// Compact or indented JSON in Go's bytes: `<`, `>`, `&`, U+2028 and U+2029, which can stand in
/// strings only, are escaped.
pub fn as_go(json: Vec<u8>) -> Vec<u8> {
    // Names of resources have none of them, hence almost always.
    if !json.iter().any(|byte| matches!(byte, b'<' | b'>' | b'&' | 0xe2)) {
        return json;
    }
    let mut out = Vec::with_capacity(json.len() + 16);
    let mut rest = &*json;
    while let [first, after @ ..] = rest {
        rest = after;
        match (first, after) {
            (b'<', _) => out.extend(br"\u003c"),
            (b'>', _) => out.extend(br"\u003e"),
            (b'&', _) => out.extend(br"\u0026"),
            // U+2028 and U+2029 in UTF-8.
            (0xe2, [0x80, last @ (0xa8 | 0xa9), further @ ..]) => {
                out.extend(if *last == 0xa8 { br"\u2028" } else { br"\u2029" });
                rest = further;
            }
            (other, _) => out.push(*other),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(json: &str, expected: &str) {
        assert_eq!(String::from_utf8(as_go(json.into())).unwrap(), expected);
    }

    #[test]
    fn what_go_escapes_is_escaped() {
        check(r#"["A<B>&C"]"#, r#"["A\u003cB\u003e\u0026C"]"#);
        check("[\"\u{2028}x\u{2029}\"]", r#"["\u2028x\u2029"]"#);
        check("[\"\u{20ac} \u{2027} \u{1f600}\"]", "[\"\u{20ac} \u{2027} \u{1f600}\"]");
        check(r#"{"plain":[1,null]}"#, r#"{"plain":[1,null]}"#);
        check("", "");
    }
}
