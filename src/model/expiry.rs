//! When the end of a certificate is worth a word: long before, once a day, louder as it comes near.

/// Seconds of a day.
const DAY: i64 = 24 * 60 * 60;
/// Days before the end from which on it is said.
const NEAR_DAYS: i64 = 30;
/// Days before the end from which on it is urgent.
const SOON_DAYS: i64 = 7;

/// How near the end is; what is worse is greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Nearness {
    /// Less than 30 days.
    Near,
    /// Less than 7 days.
    Soon,
    /// It is over.
    Expired,
}

/// What was said last about a certificate, and when (Unix seconds).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Said {
    /// How near the end was then.
    pub nearness: Nearness,
    /// When that was.
    pub at: i64,
}

/// How near `not_after` is; none while there is time. All times are Unix seconds.
pub fn nearness(not_after: i64, now: i64) -> Option<Nearness> {
    match not_after.saturating_sub(now) {
        left if left < 0 => Some(Nearness::Expired),
        left if left < SOON_DAYS * DAY => Some(Nearness::Soon),
        left if left < NEAR_DAYS * DAY => Some(Nearness::Near),
        _ => None,
    }
}

/// What is to be said now, if anything: at once when it got nearer, else once a day.
pub fn to_say(not_after: i64, now: i64, said: Option<Said>) -> Option<Said> {
    let nearness = nearness(not_after, now)?;
    let again = said
        .is_none_or(|said| nearness > said.nearness || now.saturating_sub(said.at).abs() >= DAY);
    again.then_some(Said { nearness, at: now })
}

/// Whole days that are left, rounded down; negative when it is over.
pub fn days_left(not_after: i64, now: i64) -> i64 {
    not_after.saturating_sub(now).div_euclid(DAY)
}

/// The end of a chain: that of the certificate in it that ends first. None without certificates.
pub fn end_of_chain(ends: &[i64]) -> Option<i64> {
    ends.iter().copied().min()
}

/// The end of a set of authorities that counts: the first one still to come, since an old authority
/// often stays beside its successor; when all are over, the last one.
pub fn end_of_authorities(ends: &[i64], now: i64) -> Option<i64> {
    let to_come = ends.iter().copied().filter(|&end| end >= now).min();
    to_come.or_else(|| ends.iter().copied().max())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_700_000_000;

    #[track_caller]
    fn check(left: i64, said: Option<(Nearness, i64)>, expected: Option<Nearness>) {
        let said = said.map(|(nearness, ago)| Said { nearness, at: NOW - ago });
        let say = to_say(NOW + left, NOW, said);
        assert_eq!(say, expected.map(|nearness| Said { nearness, at: NOW }));
    }

    #[test]
    fn the_end_is_said_a_month_and_a_week_before_and_when_it_is_there() {
        check(30 * DAY, None, None);
        check(30 * DAY - 1, None, Some(Nearness::Near));
        check(7 * DAY, None, Some(Nearness::Near));
        check(7 * DAY - 1, None, Some(Nearness::Soon));
        check(0, None, Some(Nearness::Soon));
        check(-1, None, Some(Nearness::Expired));
    }

    #[test]
    fn it_is_said_once_a_day_and_at_once_when_it_got_nearer() {
        check(20 * DAY, Some((Nearness::Near, DAY - 1)), None);
        check(20 * DAY, Some((Nearness::Near, DAY)), Some(Nearness::Near));
        check(6 * DAY, Some((Nearness::Near, 1)), Some(Nearness::Soon));
        check(-1, Some((Nearness::Soon, 1)), Some(Nearness::Expired));
        check(-1, Some((Nearness::Expired, 1)), None);
        // Another certificate has come; this one is further away.
        check(20 * DAY, Some((Nearness::Soon, 1)), None);
        check(90 * DAY, Some((Nearness::Soon, 2 * DAY)), None);
    }

    #[test]
    fn a_chain_ends_with_its_first_certificate_and_authorities_with_the_first_to_come() {
        assert_eq!(end_of_chain(&[NOW + 5, NOW - 5]), Some(NOW - 5));
        assert_eq!(end_of_chain(&[]), None);
        assert_eq!(end_of_authorities(&[NOW + 9, NOW - 5, NOW + 5], NOW), Some(NOW + 5));
        assert_eq!(end_of_authorities(&[NOW - 9, NOW - 5], NOW), Some(NOW - 5));
        assert_eq!(end_of_authorities(&[], NOW), None);
    }

    #[test]
    fn days_are_rounded_down_and_strange_dates_do_no_harm() {
        assert_eq!((days_left(NOW + DAY + 1, NOW), days_left(NOW - 1, NOW)), (1, -1));
        assert_eq!(nearness(i64::MAX, i64::MIN), None);
        assert_eq!(nearness(i64::MIN, i64::MAX), Some(Nearness::Expired));
    }
}
