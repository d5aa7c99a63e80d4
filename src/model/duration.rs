//! Durations as Go writes them (`time.ParseDuration`): `60s`, `1m30s`, `1.5h`, `-500ms`, `0`.

use std::time::Duration;

/// A duration with its sign.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signed {
    /// Zero or more.
    Positive(Duration),
    /// Less than zero, by this much.
    Negative(Duration),
}

/// Reads a duration; the error is Go's text.
pub fn parse(text: &str) -> Result<Signed, String> {
    let (negative, unsigned) = match text.strip_prefix(['-', '+']) {
        Some(rest) => (text.starts_with('-'), rest),
        None => (false, text),
    };
    let total = parse_unsigned(text, unsigned)?;
    Ok(if negative && !total.is_zero() { Signed::Negative(total) } else { Signed::Positive(total) })
}

fn parse_unsigned(text: &str, unsigned: &str) -> Result<Duration, String> {
    let invalid = || format!("time: invalid duration {text:?}");
    if unsigned == "0" {
        return Ok(Duration::ZERO);
    }
    if unsigned.is_empty() {
        return Err(invalid());
    }
    let is_number = |c: char| c.is_ascii_digit() || c == '.';
    let mut total = Duration::ZERO;
    let mut rest = unsigned;
    while !rest.is_empty() {
        let digits = rest.find(|c| !is_number(c)).unwrap_or(rest.len());
        let (number, tail) = rest.split_at(digits);
        let number: f64 = number.parse().ok().ok_or_else(invalid)?;
        let end = tail.find(is_number).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(end);
        let seconds = match unit {
            "ns" => 1e-9,
            "us" | "µs" | "μs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            "" => return Err(format!("time: missing unit in duration {text:?}")),
            unit => return Err(format!("time: unknown unit {unit:?} in duration {text:?}")),
        };
        let part = Duration::try_from_secs_f64(number * seconds).ok();
        total = part.and_then(|part| total.checked_add(part)).ok_or_else(invalid)?;
        rest = tail;
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Result<u64, &str>) {
        let got = parse(text).map(|duration| match duration {
            Signed::Positive(duration) => u64::try_from(duration.as_millis()).unwrap(),
            Signed::Negative(_) => 0,
        });
        assert_eq!(got, expected.map_err(str::to_owned), "{text}");
    }

    #[test]
    fn durations_are_gos() {
        check("1m30s", Ok(90_000));
        check("500ms", Ok(500));
        check("1.5h", Ok(5_400_000));
        check("0", Ok(0));
        check("-5s", Ok(0));
        check("+2s", Ok(2_000));
        check(".5s", Ok(500));
        check("60", Err("time: missing unit in duration \"60\""));
        check("3x", Err("time: unknown unit \"x\" in duration \"3x\""));
        check("", Err("time: invalid duration \"\""));
        check("s", Err("time: invalid duration \"s\""));
        check("1e400h", Err("time: unknown unit \"e\" in duration \"1e400h\""));
        check("99999999999999999999h", Err("time: invalid duration \"99999999999999999999h\""));
        assert_eq!(parse("-5s"), Ok(Signed::Negative(Duration::from_secs(5))));
    }
}
