//! How soon an engine whose process has died may be started again, and when it is left alone for a while. Pure: it is
//! told the time.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// When a process that dies is started again.
#[derive(Debug, Clone)]
pub struct RestartRules {
    /// So many deaths within the time below, and nothing is started for `cool_down`.
    pub deaths: usize,
    pub within: Duration,
    pub cool_down: Duration,
    /// After the second death in a row; doubled after each further one. After the first there is no pause, because a
    /// job may be waiting for its second try.
    pub first_pause: Duration,
}

impl Default for RestartRules {
    fn default() -> RestartRules {
        RestartRules {
            deaths: 5,
            within: Duration::from_secs(60),
            cool_down: Duration::from_secs(60),
            first_pause: Duration::from_millis(250),
        }
    }
}

#[derive(Debug, PartialEq)]
pub(super) enum Next {
    After(Duration),
    /// Nothing is started for so long.
    Quarantined(Duration),
}

#[derive(Debug, Default)]
pub(in crate::engines) struct Restarts {
    rules: RestartRules,
    /// Those that still count, the oldest first.
    deaths: VecDeque<Instant>,
    quarantined_until: Option<Instant>,
}

impl Restarts {
    pub(super) fn new(rules: RestartRules) -> Restarts {
        Restarts { rules, deaths: VecDeque::new(), quarantined_until: None }
    }

    /// Until when nothing is started, if this was one death too many.
    pub(in crate::engines) fn died(&mut self, now: Instant) -> Option<Instant> {
        self.forget(now);
        self.quarantined_until = self.quarantined_until.filter(|until| now < *until);
        self.deaths.push_back(now);
        if self.deaths.len() >= self.rules.deaths {
            self.quarantined_until = Some(now + self.rules.cool_down);
        }
        self.quarantined_until
    }

    pub(super) fn next(&mut self, now: Instant) -> Next {
        if let Some(until) = self.quarantined_until {
            if now < until {
                return Next::Quarantined(until - now);
            }
            self.quarantined_until = None;
            self.deaths.clear();
        }
        self.forget(now);
        let (Some(last), Some(doublings)) = (self.deaths.back(), self.deaths.len().checked_sub(2)) else {
            return Next::After(Duration::ZERO);
        };
        let pause = self.rules.first_pause.saturating_mul(1 << doublings.min(16));
        Next::After(pause.saturating_sub(now - *last))
    }

    fn forget(&mut self, now: Instant) {
        self.deaths.retain(|death| now - *death < self.rules.within);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEC: Duration = Duration::from_secs(1);

    fn rules() -> RestartRules {
        RestartRules { deaths: 4, within: 10 * SEC, cool_down: 20 * SEC, first_pause: SEC }
    }

    #[test]
    fn the_first_restart_is_at_once_and_later_ones_wait_longer_each_time() {
        let (now, mut restarts) = (Instant::now(), Restarts::new(rules()));
        assert_eq!(restarts.next(now), Next::After(Duration::ZERO));
        for pause in [0, 1, 2] {
            assert_eq!(restarts.died(now), None);
            assert_eq!(restarts.next(now), Next::After(pause * SEC));
        }
        assert_eq!(restarts.next(now + SEC), Next::After(SEC), "the time since the death counts");
    }

    #[test]
    fn repeated_deaths_are_a_quarantine_that_ends() {
        let (now, mut restarts) = (Instant::now(), Restarts::new(rules()));
        for _ in 0..3 {
            restarts.died(now);
        }
        assert_eq!(restarts.died(now + SEC), Some(now + 21 * SEC));
        assert_eq!(restarts.next(now + 2 * SEC), Next::Quarantined(19 * SEC));
        assert_eq!(restarts.next(now + 21 * SEC), Next::After(Duration::ZERO));
    }

    #[test]
    fn deaths_of_long_ago_do_not_count() {
        let (now, mut restarts) = (Instant::now(), Restarts::new(rules()));
        for hour in 0..10 {
            assert_eq!(restarts.died(now + hour * 3600 * SEC), None);
        }
    }
}
