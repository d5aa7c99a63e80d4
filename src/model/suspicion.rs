//! When a connection is asked whether it still lives, and what its silence says of its endpoint.
//!
//! Only silence makes suspicious: an answer that is late while others come is its handler's matter.
//! A peer that is silent while requests wait is sent a ping; one that does not answer it is dialled
//! anew, for a frozen process still accepts TCP, but makes no TLS handshake. All times are those of
//! the caller's clock, which need not run while the caller does not.

use std::time::Duration;

use super::fault::Hop;

/// The first pause before a dead endpoint is dialled anew, as a part of the interval.
const FIRST_PAUSE_PARTS: u32 = 16;
/// Dead endpoints that are dialled anew within the interval; where more are dead, each is less often.
const REVIVALS_PER_INTERVAL: usize = 200;
/// How long requests may wait in silence before the first ping, as a part of the time for a verdict.
const SILENCE_PARTS: u32 = 4;
/// Looks at a connection within the time for a verdict.
const LOOKS: u32 = 8;
/// How many times as long as its last one a new dial may take.
const DIAL_FACTOR: u32 = 4;
/// How much of its share a revived endpoint gets at first, in percent.
const SLOW_START_MIN_PERCENT: u128 = 10;

/// How patient a watchdog is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// The least silence that is looked into.
    pub silence_min: Duration,
    /// The silence that is looked into when nothing but pongs has come for long.
    pub silence_max: Duration,
    /// How long the answer to a ping is waited for where a new connection can be made.
    pub pong: Duration,
    /// How long neither a pong nor a handshake may come until the endpoint is dead.
    pub verdict: Duration,
}

impl Patience {
    /// For connections with requests that have a deadline.
    pub fn with_short_requests(verdict: Duration) -> Self {
        Self { silence_min: verdict / SILENCE_PARTS, silence_max: verdict, pong: verdict, verdict }
    }

    /// For connections with watches only.
    pub fn with_watches(verdict: Duration, interval: Duration, pong: Duration) -> Self {
        Self { silence_min: interval, silence_max: interval, pong, verdict }
    }

    /// How often a connection is looked at.
    pub fn look_interval(&self) -> Duration {
        look_interval(self.verdict).min(self.silence_min / 2)
    }
}

/// How often what takes at most `verdict` is looked at.
pub fn look_interval(verdict: Duration) -> Duration {
    (verdict / LOOKS).max(Duration::from_millis(1))
}

/// How long a dial with its handshake may take, when the last one took `last`.
pub fn dial_limit(verdict: Duration, last: Duration) -> Duration {
    verdict.max(last * DIAL_FACTOR)
}

/// How long nothing has come on one connection.
#[derive(Debug)]
pub struct Silence {
    /// What had been heard at the last look.
    heard: u64,
    /// Since when.
    since: Duration,
    /// How long it may last now.
    bearable: Duration,
}

impl Silence {
    /// Begins to listen.
    pub fn new(patience: &Patience, heard: u64, now: Duration) -> Self {
        Self { heard, since: now, bearable: patience.silence_min }
    }

    /// True when it has lasted so long that a ping is due; `is_awaited` while a request is open.
    pub fn is_suspicious(
        &mut self,
        patience: &Patience,
        heard: u64,
        is_awaited: bool,
        now: Duration,
    ) -> bool {
        if heard != self.heard {
            *self = Self::new(patience, heard, now);
            return false;
        }
        if !is_awaited {
            self.since = now;
        }
        now.saturating_sub(self.since) >= self.bearable
    }

    /// A pong came, and nothing else: the peer lives, and thinks. The next ping takes longer.
    pub fn answered(&mut self, patience: &Patience, heard: u64, now: Duration) {
        let bearable = (self.bearable * 2).min(patience.silence_max);
        *self = Self { heard, since: now, bearable };
    }
}

/// What a doubt has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finding {
    /// Not known yet.
    Open,
    /// The connection is of no use; the endpoint makes new ones.
    Condemned,
    /// The endpoint answers neither on this connection nor to a new one.
    Dead,
}

/// How a new dial went on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialled {
    /// It is under way.
    Open,
    /// A connection was made, TLS and all.
    Made,
    /// None was made.
    Failed,
}

/// What no pong for `waited` together with a new dial says.
pub fn find(patience: &Patience, waited: Duration, dialled: Dialled) -> Finding {
    match dialled {
        Dialled::Failed if waited >= patience.verdict => Finding::Dead,
        Dialled::Made if waited >= patience.pong => Finding::Condemned,
        Dialled::Open | Dialled::Failed | Dialled::Made => Finding::Open,
    }
}

/// Whether an endpoint to which no connection could be made is dead; `lives` where something came
/// lately on another one. A refusal is its own word; a dial that fails otherwise may have been lost.
pub fn is_death(hop: Hop, lives: bool) -> bool {
    match hop {
        // Not the endpoint's fault.
        Hop::InvalidCaBundle | Hop::NoSystemRoots => false,
        Hop::ConnectRefused => true,
        _ => !lives,
    }
}

/// Whether it is of no use to ask a dead endpoint: it takes long to say nothing. One that refuses at
/// once may be back by now, and to ask it costs nothing.
pub fn is_hopeless(hop: Hop) -> bool {
    matches!(hop, Hop::ConnectTimeout | Hop::HandshakeTimeout)
}

/// How long to wait before a dead endpoint is dialled anew, after `before`, while so many are dead in
/// all: at most `interval`, but for the many.
pub fn revival_pause(before: Duration, interval: Duration, dead: usize) -> Duration {
    let turns = u32::try_from(dead.div_ceil(REVIVALS_PER_INTERVAL)).unwrap_or(u32::MAX).max(1);
    (2 * before).clamp(interval / FIRST_PAUSE_PARTS, interval).saturating_mul(turns)
}

/// Whether doubted endpoints may be avoided: never more than half of them all.
pub fn may_avoid(doubted: usize, endpoints: usize) -> bool {
    2 * doubted <= endpoints
}

/// How much of its share of requests a revived endpoint takes, in percent; 100 once it is well.
pub fn slow_start_percent(since_revived: Duration, slow_start: Duration) -> u32 {
    let percent = (100 * since_revived.as_nanos()).checked_div(slow_start.as_nanos());
    let percent = percent.unwrap_or(100).clamp(SLOW_START_MIN_PERCENT, 100);
    u32::try_from(percent).unwrap_or(100)
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn patience() -> Patience {
        Patience::with_short_requests(ms(1000))
    }

    #[test]
    fn silence_while_a_request_is_open_is_looked_into_and_any_byte_ends_it() {
        let patience = patience();
        let mut silence = Silence::new(&patience, 7, ms(0));
        // (now, heard, is awaited, suspicious)
        let looks = [
            (ms(125), 7, false, false),
            (ms(10_000), 7, false, false),
            (ms(10_125), 7, true, false),
            (ms(10_250), 7, true, true),
            (ms(10_375), 8, true, false),
            (ms(10_500), 8, true, false),
            (ms(10_625), 8, true, true),
        ];
        for (now, heard, is_awaited, expected) in looks {
            let suspicious = silence.is_suspicious(&patience, heard, is_awaited, now);
            assert_eq!(suspicious, expected, "{now:?}");
        }
    }

    #[test]
    fn a_peer_that_only_answers_pings_is_pinged_less_and_less_until_it_says_something() {
        let patience = patience();
        let mut silence = Silence::new(&patience, 0, ms(0));
        let (mut now, mut heard, mut waited) = (ms(0), 0, Vec::new());
        for _ in 0..5 {
            let begun = now;
            while !silence.is_suspicious(&patience, heard, true, now) {
                now += ms(125);
            }
            waited.push(now.saturating_sub(begun).as_millis());
            heard += 1;
            silence.answered(&patience, heard, now);
        }
        assert_eq!(waited, [250, 500, 1000, 1000, 1000]);
        assert!(!silence.is_suspicious(&patience, heard + 1, true, now));
        assert!(silence.is_suspicious(&patience, heard + 1, true, now + ms(250)));
    }

    #[test]
    fn a_connection_with_watches_only_is_left_alone_for_its_interval() {
        let patience = Patience::with_watches(ms(1000), ms(30_000), ms(15_000));
        let mut silence = Silence::new(&patience, 0, ms(0));
        assert!(!silence.is_suspicious(&patience, 0, true, ms(29_999)));
        assert!(silence.is_suspicious(&patience, 0, true, ms(30_000)));
        assert_eq!(patience.look_interval(), ms(125));
    }

    #[test]
    fn a_new_dial_decides_between_the_connection_and_its_endpoint() {
        let (short, long) = (patience(), Patience::with_watches(ms(1000), ms(30_000), ms(15_000)));
        let cases = [
            (&short, ms(999), Dialled::Failed, Finding::Open),
            (&short, ms(1000), Dialled::Failed, Finding::Dead),
            (&short, ms(999), Dialled::Made, Finding::Open),
            (&short, ms(1000), Dialled::Made, Finding::Condemned),
            (&short, ms(60_000), Dialled::Open, Finding::Open),
            (&long, ms(1000), Dialled::Failed, Finding::Dead),
            (&long, ms(1000), Dialled::Made, Finding::Open),
            (&long, ms(15_000), Dialled::Made, Finding::Condemned),
        ];
        for (patience, waited, dialled, expected) in cases {
            assert_eq!(find(patience, waited, dialled), expected, "{waited:?} {dialled:?}");
        }
    }

    #[test]
    fn a_failed_dial_is_death_unless_the_fault_is_ours_or_others_are_heard() {
        // (what failed, dead where others are heard, dead where not, hopeless)
        let cases = [
            (Hop::ConnectRefused, true, true, false),
            (Hop::ConnectTimeout, false, true, true),
            (Hop::HandshakeTimeout, false, true, true),
            (Hop::UnknownAuthority, false, true, false),
            (Hop::InvalidCaBundle, false, false, false),
            (Hop::NoSystemRoots, false, false, false),
        ];
        for (hop, with_others, alone, hopeless) in cases {
            let found = (is_death(hop, true), is_death(hop, false), is_hopeless(hop));
            assert_eq!(found, (with_others, alone, hopeless), "{hop:?}");
        }
    }

    #[test]
    fn the_dead_are_dialled_each_second_unless_there_are_very_many() {
        let second = ms(1000);
        let mut pauses = Vec::new();
        let mut pause = ms(0);
        for _ in 0..6 {
            pause = revival_pause(pause, second, 200);
            pauses.push(pause.as_micros());
        }
        assert_eq!(pauses, [62_500, 125_000, 250_000, 500_000, 1_000_000, 1_000_000]);
        assert_eq!(revival_pause(second, second, 0), second);
        assert_eq!(revival_pause(second, second, 201), 2 * second);
        assert_eq!(revival_pause(second, second, 5000), 25 * second);
    }

    #[test]
    fn doubt_covers_at_most_half_of_the_endpoints() {
        let avoided: Vec<(usize, usize)> = [(1, 1), (1, 2), (2, 2), (1, 3), (2, 3), (2, 4), (3, 4)]
            .into_iter()
            .filter(|(doubted, all)| may_avoid(*doubted, *all))
            .collect();
        assert_eq!(avoided, [(1, 2), (1, 3), (2, 4)]);
    }

    #[test]
    fn a_revived_endpoint_gets_its_share_by_and_by() {
        let share = |at: u64| slow_start_percent(ms(at), ms(5000));
        assert_eq!([share(0), share(2500), share(5000), share(9000)], [10, 50, 100, 100]);
        assert_eq!(slow_start_percent(ms(0), ms(0)), 100);
    }

    #[test]
    fn an_endpoint_that_is_far_has_more_time_for_a_handshake() {
        assert_eq!(dial_limit(ms(1000), ms(3)), ms(1000));
        assert_eq!(dial_limit(ms(1000), ms(600)), ms(2400));
    }
}
