//! How one server was last seen: as a whole, by those who look at it, and by the jobs of each task. A look that goes
//! well says nothing of a task that fails; only a job of that task does. Pure: asks nobody and writes no log, but says
//! what is news to it.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use crate::{base::Error, flow::Task};

/// What something is said of: the jobs of one task, or, without one, the server as a whole.
pub(super) type About = Option<Task>;

#[derive(Default)]
pub(super) struct Seen {
    /// Somebody has seen it well or ill.
    known: bool,
    /// A job has gone well, and nothing has gone wrong since.
    proven: bool,
    ills: BTreeMap<About, Ill>,
    pub(super) last_ok: Option<Instant>,
    /// Of the last look.
    pub(super) latency: Option<Duration>,
}

struct Ill {
    reason: String,
    /// What the log has had of it, by its hint: that is ours, while a server may word its refusals anew each time.
    told: BTreeSet<String>,
}

impl Seen {
    /// Whether this is news.
    pub(super) fn ill(&mut self, about: About, error: &Error) -> bool {
        self.known = true;
        self.proven = false;
        let ill = self.ills.entry(about).or_insert_with(|| Ill { reason: String::new(), told: BTreeSet::new() });
        ill.reason = error.full();
        ill.told.insert(error.hint_text().unwrap_or_default().to_owned())
    }

    /// A look went well. Whether that is news.
    pub(super) fn looked_well(&mut self, now: Instant, latency: Duration) -> bool {
        self.known = true;
        self.last_ok = Some(now);
        self.latency = Some(latency);
        self.ills.remove(&None).is_some()
    }

    /// A job went well. What that is news of.
    pub(super) fn done(&mut self, task: About, now: Instant) -> BTreeSet<About> {
        self.known = true;
        self.proven = true;
        self.last_ok = Some(now);
        BTreeSet::from([None, task]).into_iter().filter(|about| self.ills.remove(about).is_some()).collect()
    }

    pub(super) fn is_known(&self) -> bool {
        self.known
    }

    pub(super) fn is_proven(&self) -> bool {
        self.proven
    }

    /// Everything that is wrong. None: nothing is.
    pub(super) fn reason(&self) -> Option<String> {
        let told = |(about, ill): (&About, &Ill)| match about {
            Some(task) => format!("{}: {}", task.name(), ill.reason),
            None => ill.reason.clone(),
        };
        let reasons: Vec<String> = self.ills.iter().map(told).collect();
        (!reasons.is_empty()).then(|| reasons.join("; "))
    }

    /// What is wrong for the jobs of one task.
    pub(super) fn reason_for(&self, task: Task) -> Option<&str> {
        let ill = self.ills.get(&None).or_else(|| self.ills.get(&Some(task)))?;
        Some(&ill.reason)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn no(text: &str, hint: &str) -> Error {
        Error::unavailable(text).hint(hint)
    }

    #[test]
    fn a_look_says_nothing_of_a_task_that_fails() {
        let (now, mut seen) = (Instant::now(), Seen::default());
        assert!(!seen.is_known() && !seen.looked_well(now, Duration::ZERO));
        assert!(seen.is_known() && seen.reason().is_none());
        assert!(seen.ill(Some(Task::Speak), &no("404: a", "check the name")));
        assert!(!seen.looked_well(now, Duration::ZERO), "nothing has passed");
        assert_eq!(seen.reason().as_deref(), Some("speak: 404: a (check the name)"));
        assert_eq!(seen.reason_for(Task::Speak), Some("404: a (check the name)"));
        assert_eq!(seen.reason_for(Task::Chat), None);
        assert_eq!(seen.done(Some(Task::Chat), now), BTreeSet::new(), "another task says nothing of it either");
        assert_eq!(seen.done(Some(Task::Speak), now), BTreeSet::from([Some(Task::Speak)]));
        assert!(seen.reason().is_none());
    }

    #[test]
    fn a_server_that_is_gone_is_gone_for_every_task_until_anybody_sees_it() {
        let (now, mut seen) = (Instant::now(), Seen::default());
        assert!(seen.ill(None, &no("gone", "")));
        assert!(!seen.ill(None, &no("gone", "")));
        assert_eq!((seen.reason_for(Task::Chat), seen.reason_for(Task::Speak)), (Some("gone ()"), Some("gone ()")));
        assert!(seen.looked_well(now, Duration::ZERO));
        assert!(seen.ill(None, &no("gone", "")), "it is news again");
        assert_eq!(seen.done(Some(Task::Chat), now), BTreeSet::from([None]));
    }

    #[test]
    fn each_reason_is_news_once_until_it_is_well() {
        let (now, mut seen) = (Instant::now(), Seen::default());
        let mut speaks = |text: &str, hint: &str| seen.ill(Some(Task::Speak), &no(text, hint));
        assert!(speaks("401", "the key") && speaks("404: request 1", "the name"));
        assert!(!speaks("404: request 2", "the name") && !speaks("401", "the key"));
        assert_eq!(seen.reason_for(Task::Speak), Some("401 (the key)"), "the last one is shown");
        seen.done(Some(Task::Speak), now);
        assert!(seen.is_proven() && seen.ill(Some(Task::Speak), &no("401", "the key")) && !seen.is_proven());
    }
}
