//! What the device had no memory for: passed over for a while, so that not every job waits for a load that fails. Pure:
//! it is told the time.

use std::{collections::BTreeMap, time::Instant};

use crate::{flow::Priority, models::ModelKey};

#[derive(Debug, Default)]
pub(super) struct Shortages(BTreeMap<ModelKey, Shortage>);

#[derive(Debug)]
struct Shortage {
    until: Instant,
    /// The most urgent work that did not get it. What is more urgent may make others leave, and may try.
    priority: Priority,
    why: String,
}

impl Shortages {
    /// Whether this is news.
    pub(super) fn note(&mut self, key: &ModelKey, priority: Priority, why: String, until: Instant) -> bool {
        let known = self.0.get(key);
        let is_news = known.is_none_or(|known| known.why != why);
        let priority = known.map_or(priority, |known| known.priority.min(priority));
        self.0.insert(key.clone(), Shortage { until, priority, why });
        is_news
    }

    /// Whether anything is known of this model.
    pub(super) fn touch(&self, model: &str) -> bool {
        self.0.keys().any(|key| key.model == model)
    }

    /// Which of `keys`, best first, is to be asked for now, and why not those before it. One that stands in, in the same
    /// memory, goes on until it leaves: trying the better one would take the memory from it. The last is always tried,
    /// for nobody is refused because of what was so a while ago.
    pub(super) fn choose(
        &mut self,
        keys: &[ModelKey],
        priority: Priority,
        now: Instant,
        is_loaded: impl Fn(&ModelKey) -> bool,
    ) -> (usize, Option<String>) {
        let mut first = None;
        for (at, key) in keys.iter().enumerate() {
            let stands_in = |other: &ModelKey| other.provider == key.provider && is_loaded(other);
            let is_short = |it: &Shortage| now < it.until || keys[at + 1..].iter().any(stands_in);
            match self.0.get(key) {
                Some(it) if it.priority <= priority && is_short(it) && at + 1 < keys.len() => {
                    first = first.or_else(|| Some(it.why.clone()));
                }
                Some(it) if now >= it.until => {
                    self.0.remove(key);
                    return (at, first);
                }
                _ => return (at, first),
            }
        }
        (0, None)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::flow::Priority::{Batch, Interactive, Live};

    const PAUSE: Duration = Duration::from_secs(600);

    fn key(variant: &str, provider: &str) -> ModelKey {
        ModelKey { model: "m".to_owned(), variant: variant.to_owned(), provider: provider.to_owned() }
    }

    fn keys() -> [ModelKey; 3] {
        [key("fp32", "cuda"), key("q8", "cuda"), key("fp32", "cpu")]
    }

    #[test]
    fn what_was_too_large_is_passed_over_until_its_time_is_over() {
        let (now, mut it) = (Instant::now(), Shortages::default());
        let none = |_: &ModelKey| false;
        assert_eq!(it.choose(&keys(), Live, now, none), (0, None));
        assert!(it.note(&keys()[0], Live, "no room".to_owned(), now + PAUSE));
        assert!(!it.note(&keys()[0], Live, "no room".to_owned(), now + PAUSE), "it is known");
        assert!(it.touch("m") && !it.touch("other"));
        assert_eq!(it.choose(&keys(), Live, now, none), (1, Some("no room".to_owned())));
        it.note(&keys()[1], Live, "nor here".to_owned(), now + PAUSE);
        assert_eq!(it.choose(&keys(), Batch, now, none), (2, Some("no room".to_owned())), "the first says why");
        assert_eq!(it.choose(&keys(), Live, now + PAUSE, none), (0, None));
        assert_eq!(it.choose(&keys(), Live, now, none), (0, None), "it was forgotten, to be tried");
    }

    #[test]
    fn one_that_stands_in_goes_on_while_it_is_in_that_memory() {
        let (now, mut it) = (Instant::now(), Shortages::default());
        it.note(&keys()[0], Live, "no room".to_owned(), now);
        assert_eq!(it.choose(&keys(), Live, now + PAUSE, |key| key.variant == "q8").0, 1);
        assert_eq!(
            it.choose(&keys(), Live, now + PAUSE, |key| key.provider == "cpu").0,
            0,
            "it is in the way of nobody"
        );
    }

    #[test]
    fn the_last_is_always_tried() {
        let (now, mut it) = (Instant::now(), Shortages::default());
        assert!(keys().iter().all(|key| it.note(key, Live, key.to_string(), now + PAUSE)));
        assert_eq!(it.choose(&keys(), Live, now, |_| false), (2, Some("m (fp32 on cuda)".to_owned())));
        assert_eq!(it.choose(&keys()[..1], Live, now, |_| false), (0, None));
    }

    #[test]
    fn more_urgent_work_may_try_what_less_urgent_work_did_not_get() {
        let (now, mut it) = (Instant::now(), Shortages::default());
        it.note(&keys()[0], Interactive, "residents".to_owned(), now + PAUSE);
        it.note(&keys()[0], Batch, "residents".to_owned(), now + PAUSE);
        for (priority, chosen) in [(Live, 0), (Interactive, 1), (Batch, 1)] {
            assert_eq!(it.choose(&keys(), priority, now, |_| false).0, chosen, "{}", priority.name());
        }
    }
}
