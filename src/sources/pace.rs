//! When the open segment is read next: at the interval of the settings, and more seldom where reading it takes long. Pure.

use std::time::Duration;

/// Until a segment has a text, it is read again after this: people wait for the first word.
const FIRST_STEP: Duration = Duration::from_millis(100);
/// A session's partials take at most one part in so many of the time, their wait in the queue included: what they take is
/// taken from everybody's finals …
const SHARE: u32 = 3;
/// … and a larger part until there is a text.
const FIRST_SHARE: u32 = 2;
/// Refused so often in a row, the wait grows no more.
const MOST_REFUSALS: u32 = 3;

#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    interval: Duration,
    refusals: u32,
}

impl Pace {
    pub(super) fn new(interval: Duration) -> Pace {
        Pace { interval, refusals: 0 }
    }

    /// From asking to asking again, after an answer that took this long; and whether that is longer than it should be.
    pub(super) fn answered(&mut self, has_text: bool, took: Duration) -> (Duration, bool) {
        self.refusals = 0;
        let step = self.step(has_text);
        let least = took.saturating_mul(if has_text { SHARE } else { FIRST_SHARE });
        (step.max(least), least > step)
    }

    /// From being refused to asking again.
    pub(super) fn refused(&mut self, has_text: bool) -> Duration {
        self.refusals = (self.refusals + 1).min(MOST_REFUSALS);
        self.step(has_text).saturating_mul(1 << (self.refusals - 1))
    }

    fn step(&self, has_text: bool) -> Duration {
        if has_text { self.interval } else { FIRST_STEP.min(self.interval) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn the_interval_stands_until_reading_takes_too_large_a_part_of_it() {
        let mut pace = Pace::new(ms(700));
        assert_eq!(pace.answered(true, ms(100)), (ms(700), false));
        assert_eq!(pace.answered(true, ms(1_000)), (ms(3_000), true));
        assert_eq!(pace.answered(false, ms(50)), (FIRST_STEP, false));
        assert_eq!(pace.answered(false, ms(80)), (ms(160), true));
        assert_eq!(Pace::new(ms(50)).answered(false, ms(1)), (ms(50), false));
    }

    #[test]
    fn who_is_refused_asks_ever_more_seldom_until_it_is_served() {
        let mut pace = Pace::new(ms(700));
        assert_eq!([(); 5].map(|()| pace.refused(true).as_millis()), [700, 1_400, 2_800, 2_800, 2_800]);
        pace.answered(true, ms(1));
        assert_eq!(pace.refused(true), ms(700));
    }
}
