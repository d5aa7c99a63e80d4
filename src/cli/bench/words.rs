//! How figures are written for people: three digits, and a unit that fits.

use std::time::Duration;

use super::results::Cpu;

/// What stands for a figure that is not there.
pub(super) const NONE: &str = "–";

/// Three digits, without a zero that says nothing.
pub(super) fn number(value: f64) -> String {
    if value >= 99.95 {
        format!("{value:.0}")
    } else if value >= 9.995 {
        format!("{value:.1}")
    } else {
        format!("{value:.2}")
    }
}

/// With `k` and `M` for large numbers.
pub(super) fn count(value: f64) -> String {
    if value < 9_999.5 {
        number(value)
    } else if value < 999_500.0 {
        format!("{}k", number(value / 1e3))
    } else {
        format!("{}M", number(value / 1e6))
    }
}

/// `18.4 ms`.
pub(super) fn time(time: Duration) -> String {
    micros(time.as_secs_f64() * 1e6)
}

/// The same of µs.
pub(super) fn micros(micros: f64) -> String {
    if micros < 999.5 {
        format!("{} µs", number(micros))
    } else if micros < 999_500.0 {
        format!("{} ms", number(micros / 1e3))
    } else {
        format!("{} s", number(micros / 1e6))
    }
}

/// `254 kB`; whole bytes below one kB.
pub(super) fn bytes(bytes: f64) -> String {
    if bytes < 999.5 {
        format!("{bytes:.0} B")
    } else if bytes < 999_500.0 {
        format!("{} kB", number(bytes / 1e3))
    } else if bytes < 999_500_000.0 {
        format!("{} MB", number(bytes / 1e6))
    } else {
        format!("{} GB", number(bytes / 1e9))
    }
}

/// CPU time per read.
pub(super) fn cpu(cpu: Cpu) -> String {
    match cpu {
        Cpu::Micros(value) => micros(value),
        Cpu::Below(value) => format!("<{}", micros(value)),
    }
}

/// What is there, or the sign for nothing.
pub(super) fn or_none<T>(value: Option<T>, text: impl FnOnce(T) -> String) -> String {
    value.map_or_else(|| NONE.to_owned(), text)
}

/// A number with its noun: `1 error`, `2 errors`.
pub(super) fn counted(count: u64, noun: &str) -> String {
    if count == 1 { format!("1 {noun}") } else { format!("{count} {noun}s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_have_three_digits_and_a_fitting_unit() {
        for (micros, expected) in [
            (0.0, "0.00 µs"),
            (17.34, "17.3 µs"),
            (999.4, "999 µs"),
            (999.6, "1.00 ms"),
            (20_500.0, "20.5 ms"),
            (999_600.0, "1.00 s"),
            (61e6, "61.0 s"),
        ] {
            assert_eq!(super::micros(micros), expected);
        }
        assert_eq!((bytes(0.0).as_str(), bytes(253_900.0).as_str()), ("0 B", "254 kB"));
        assert_eq!((bytes(5.3e6).as_str(), bytes(2e9).as_str()), ("5.30 MB", "2.00 GB"));
        assert_eq!((count(1.0).as_str(), count(9_999.0).as_str()), ("1.00", "9999"));
        assert_eq!((count(43_210.0).as_str(), count(2e6).as_str()), ("43.2k", "2.00M"));
        assert_eq!(
            (counted(1, "error"), counted(0, "error")),
            ("1 error".into(), "0 errors".into())
        );
        assert_eq!(cpu(Cpu::Below(3.1)), "<3.10 µs");
    }
}
