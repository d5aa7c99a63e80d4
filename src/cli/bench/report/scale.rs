//! The axes of plots: where a value stands, and which values are named.

/// From values to a length.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scale {
    from: f64,
    to: f64,
    length: f64,
    logarithmic: bool,
}

impl Scale {
    /// From 0 to at least `max`, to a round number.
    pub(super) fn linear(max: f64, length: f64) -> Self {
        let max = if max > 0.0 { max } else { 1.0 };
        Self { from: 0.0, to: round_up(max), length, logarithmic: false }
    }

    /// From 0 to just `max`.
    pub(super) fn to_just(max: f64, length: f64) -> Self {
        let max = if max > 0.0 { max } else { 1.0 };
        Self { from: 0.0, to: max, length, logarithmic: false }
    }

    /// Over these values, which are greater than 0, with some room on both sides.
    pub(super) fn logarithmic(min: f64, max: f64, length: f64) -> Self {
        let min = min.max(f64::MIN_POSITIVE);
        Self { from: min / 1.25, to: max.max(min) * 1.25, length, logarithmic: true }
    }

    /// Where a value stands.
    pub(super) fn place(self, value: f64) -> f64 {
        let share = if self.logarithmic {
            (value / self.from).ln() / (self.to / self.from).ln()
        } else {
            (value - self.from) / (self.to - self.from)
        };
        share.clamp(0.0, 1.0) * self.length
    }

    /// The values to be named, ascending: at most about six.
    pub(super) fn named(self) -> Vec<f64> {
        if self.logarithmic { self.named_logarithmic() } else { self.named_linear() }
    }

    fn named_linear(self) -> Vec<f64> {
        let step = round_up(self.to / 5.0);
        let mut named = Vec::new();
        let mut value = 0.0;
        while value <= self.to * 1.000_001 && named.len() < 12 {
            named.push(value);
            value += step;
        }
        named
    }

    fn named_logarithmic(self) -> Vec<f64> {
        let decades = (self.to / self.from).log10();
        let steps: &[f64] = match decades {
            ..0.5 => &[1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0],
            ..2.0 => &[1.0, 2.0, 5.0],
            _ => &[1.0],
        };
        let mut named = Vec::new();
        let mut decade = 10f64.powf(self.from.log10().floor());
        while decade <= self.to && named.len() < 40 {
            named.extend(steps.iter().map(|step| step * decade));
            decade *= 10.0;
        }
        named.retain(|value| (self.from..=self.to).contains(value));
        named
    }
}

/// The next of 1, 2, 2.5 and 5 times a power of ten.
fn round_up(value: f64) -> f64 {
    let power = 10f64.powf(value.log10().floor());
    let steps = [1.0, 2.0, 2.5, 5.0];
    // What is a step but for rounding is that step.
    steps
        .iter()
        .map(|step| step * power)
        .find(|step| *step >= value * 0.999_999)
        .unwrap_or(power * 10.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(found: &[f64], expected: &[f64]) {
        let same =
            found.iter().zip(expected).all(|(one, other)| (one - other).abs() <= other * 1e-9);
        assert!(found.len() == expected.len() && same, "{found:?} {expected:?}");
    }

    #[test]
    fn linear_axes_begin_at_zero_and_end_at_a_round_number() {
        check(&Scale::linear(7.0, 1.0).named(), &[0.0, 2.0, 4.0, 6.0, 8.0, 10.0]);
        check(&Scale::linear(0.0, 1.0).named(), &[0.0, 0.2, 0.4, 0.6, 0.8, 1.0]);
        assert!((Scale::linear(10.0, 200.0).place(5.0) - 100.0).abs() < 1e-9);
    }

    #[test]
    fn logarithmic_axes_name_round_values_also_for_a_single_one() {
        check(&Scale::logarithmic(20.0, 20.0, 1.0).named(), &[20.0]);
        check(&Scale::logarithmic(15.0, 300.0, 1.0).named(), &[20.0, 50.0, 100.0, 200.0]);
        check(&Scale::logarithmic(15.0, 9e5, 1.0).named(), &[100.0, 1e3, 1e4, 1e5, 1e6]);
        let scale = Scale::logarithmic(10.0, 1000.0, 300.0);
        assert!((scale.place(100.0) - 150.0).abs() < 1e-9);
        assert!(scale.place(0.0).abs() < 1e-9 && (scale.place(1e9) - 300.0).abs() < 1e-9);
    }
}
