//! When to leave a server alone: after some failures in a row it is asked nothing for a while, then one request tries
//! it. Pure: the time is told, and nobody is asked.

use std::time::{Duration, Instant};

pub(super) struct Breaker {
    limit: u32,
    rest: Duration,
    state: State,
}

enum State {
    Closed {
        failures: u32,
    },
    Open {
        until: Instant,
    },
    /// Half open: one request is on its way.
    Trying,
}

/// Why nothing may be asked now.
#[derive(Debug, PartialEq)]
pub(super) enum Refusal {
    /// For so long.
    Resting(Duration),
    /// Until the request that is on its way comes back.
    Trying,
}

impl Breaker {
    pub(super) fn new(limit: u32, rest: Duration) -> Breaker {
        Breaker { limit, rest, state: State::Closed { failures: 0 } }
    }

    /// Whoever is let in tells how it went: `succeeded`, `failed` or `gave_up`.
    pub(super) fn admit(&mut self, now: Instant) -> Result<(), Refusal> {
        if let State::Open { until } = self.state
            && until <= now
        {
            self.state = State::Trying;
            return Ok(());
        }
        self.refusal(now).map_or(Ok(()), Err)
    }

    /// What `admit` would say, without being let in.
    pub(super) fn refusal(&self, now: Instant) -> Option<Refusal> {
        match self.state {
            State::Closed { .. } => None,
            State::Open { until } => {
                Some(until.saturating_duration_since(now)).filter(|it| !it.is_zero()).map(Refusal::Resting)
            }
            State::Trying => Some(Refusal::Trying),
        }
    }

    pub(super) fn succeeded(&mut self) {
        self.state = State::Closed { failures: 0 };
    }

    pub(super) fn failed(&mut self, now: Instant) {
        self.state = match self.state {
            State::Closed { failures } if failures + 1 < self.limit => State::Closed { failures: failures + 1 },
            // One that was let in before says nothing new.
            State::Open { until } => State::Open { until },
            State::Closed { .. } | State::Trying => State::Open { until: now + self.rest },
        };
    }

    /// The one who asked left before there was an answer, which says nothing of the server: the next may try.
    pub(super) fn gave_up(&mut self, now: Instant) {
        if let State::Trying = self.state {
            self.state = State::Open { until: now };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REST: Duration = Duration::from_secs(30);

    fn opened(now: Instant) -> Breaker {
        let mut breaker = Breaker::new(3, REST);
        for _ in 0..3 {
            assert_eq!(breaker.admit(now), Ok(()));
            breaker.failed(now);
        }
        breaker
    }

    #[test]
    fn opens_after_failures_in_a_row_and_only_then() {
        let now = Instant::now();
        let mut breaker = Breaker::new(3, REST);
        for _ in 0..5 {
            breaker.failed(now);
            breaker.failed(now);
            assert_eq!(breaker.admit(now), Ok(()));
            breaker.succeeded();
        }
        assert_eq!(opened(now).admit(now + REST / 3), Err(Refusal::Resting(REST * 2 / 3)));
    }

    #[test]
    fn one_tries_after_the_rest_and_its_success_lets_all_in() {
        let now = Instant::now();
        let mut breaker = opened(now);
        let later = now + REST;
        assert_eq!(breaker.refusal(later), None);
        assert_eq!(breaker.admit(later), Ok(()));
        assert_eq!(breaker.admit(later), Err(Refusal::Trying));
        breaker.succeeded();
        assert_eq!(breaker.admit(later), Ok(()));
        assert_eq!(breaker.admit(later), Ok(()));
    }

    #[test]
    fn a_try_that_fails_opens_again_for_the_whole_rest() {
        let now = Instant::now();
        let mut breaker = opened(now);
        assert_eq!(breaker.admit(now + REST), Ok(()));
        breaker.failed(now + REST);
        assert_eq!(breaker.admit(now + REST), Err(Refusal::Resting(REST)));
        assert_eq!(breaker.admit(now + REST * 2), Ok(()));
    }

    #[test]
    fn a_try_that_is_given_up_leaves_the_next_one_to_another() {
        let now = Instant::now();
        let mut breaker = opened(now);
        assert_eq!(breaker.admit(now + REST), Ok(()));
        breaker.gave_up(now + REST);
        assert_eq!(breaker.admit(now + REST), Ok(()));
        breaker.succeeded();
        breaker.gave_up(now);
        assert_eq!(breaker.admit(now), Ok(()));
    }

    #[test]
    fn a_late_failure_does_not_make_the_rest_longer() {
        let now = Instant::now();
        let mut breaker = opened(now);
        breaker.failed(now + REST / 2);
        assert_eq!(breaker.admit(now + REST), Ok(()));
    }
}
