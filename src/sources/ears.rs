//! What the listening thread tells one take: probabilities in, speech events out. The bridge between that thread,
//! which must not wait, and the take's task, which must not be woken for every frame.
//!
//! With whatever is heard goes a mark: all that is needed to go on from the frame after it as if nothing had happened.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard},
};

use tokio::sync::Notify;

use crate::{
    base::{Error, lock},
    engines::{Heard, Sink, VoiceState},
    segment::{Live, LiveState, Rules, Speaking, SpeechEvent, speech::FRAME},
};

/// The take's task is woken about once a second of audio even if nobody speaks, so that it sees its backlog shrink.
const WAKE_EVERY_FRAMES: u64 = 31;
/// In silence, and in long speech, a mark comes about once a minute: so much is heard again after a crash at most, which
/// takes a tenth of a second.
const MARK_EVERY_FRAMES: u64 = 60 * 31;

/// What was heard at one frame, and what is remembered after it.
pub(super) struct Overheard {
    pub(super) event: Option<SpeechEvent>,
    /// With the last event of a frame.
    pub(super) mark: Option<Box<Mark>>,
}

/// The state after a frame.
pub(super) struct Mark {
    pub(super) live: LiveState,
    pub(super) detector: VoiceState,
    /// It was the last.
    pub(super) ended: bool,
}

#[derive(Clone)]
pub(super) struct Ears(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    news: Notify,
}

struct State {
    live: Live,
    events: VecDeque<Overheard>,
    /// Since the last mark.
    unmarked: u64,
    /// Samples of the whole take, known when it ends.
    total: u64,
    ended: bool,
    failed: Option<Error>,
}

impl Ears {
    /// From a state that was kept, which may be that after the last frame; a new take's is the default.
    pub(super) fn new(rules: Rules, live: LiveState, ended: bool) -> Ears {
        let live = Live::resume(rules, live);
        let state = State { live, events: VecDeque::new(), unmarked: 0, total: 0, ended, failed: None };
        Ears(Arc::new(Shared { state: Mutex::new(state), news: Notify::new() }))
    }

    /// For `Voice::open`.
    pub(super) fn sink(&self) -> Sink {
        let ears = self.clone();
        Box::new(move |heard| ears.hear(heard))
    }

    fn hear(&self, heard: Heard<'_>) {
        let mut state = self.lock();
        let State { live, events, unmarked, .. } = &mut *state;
        match heard {
            Heard::Frame { voiced, state: detector } => {
                let known = events.len();
                live.push(voiced, |event| events.push_back(Overheard { event: Some(event), mark: None }));
                *unmarked += 1;
                // A pause is told at once and kept by nobody: what follows from it follows from its end.
                let lasting = |it: &Overheard| !matches!(it.event, Some(SpeechEvent::Pause(_)));
                let paused = events.len() > known;
                if events.iter().skip(known).any(lasting) || *unmarked >= MARK_EVERY_FRAMES {
                    *unmarked = 0;
                    mark(events, known, Mark { live: live.state(), detector: detector.clone(), ended: false });
                } else if !paused && !live.state().heard().is_multiple_of(WAKE_EVERY_FRAMES * FRAME) {
                    return;
                }
            }
            Heard::End => {
                let total = state.total;
                let State { live, events, .. } = &mut *state;
                let known = events.len();
                live.finish(total, |event| events.push_back(Overheard { event: Some(event), mark: None }));
                mark(events, known, Mark { live: live.state(), detector: VoiceState::default(), ended: true });
                state.ended = true;
            }
            Heard::Failed(error) => {
                state.failed = Some(error);
                // Nothing more is heard: whoever waits for the end must not wait for it in vain.
                state.ended = true;
            }
        }
        drop(state);
        self.0.news.notify_one();
    }

    /// Resolves when there may be something new since the last call.
    pub(super) async fn news(&self) {
        self.0.news.notified().await;
    }

    pub(super) fn next(&self) -> Option<Overheard> {
        self.lock().events.pop_front()
    }

    /// To be said before the voice stream is ended.
    pub(super) fn set_total(&self, samples: u64) {
        self.lock().total = samples;
    }

    /// Whether all has been heard that ever will be, and `next` has told it.
    pub(super) fn ended(&self) -> bool {
        let state = self.lock();
        state.ended && state.events.is_empty()
    }

    /// What is not heard by now will not be.
    pub(super) fn stop(&self) {
        self.lock().ended = true;
    }

    /// Why nothing more is heard, once.
    pub(super) fn failure(&self) -> Option<Error> {
        self.lock().failed.take()
    }

    /// The speech that is going on, as far as it has been heard; None also while events about it wait to be taken.
    pub(super) fn speaking(&self) -> Option<Speaking> {
        let state = self.lock();
        if state.events.is_empty() { state.live.speaking() } else { None }
    }

    /// Samples before this one can be in no segment any more.
    pub(super) fn needed_from(&self, rules: &Rules) -> u64 {
        needed_from(&self.lock().live.state(), rules)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.0.state)
    }
}

/// Puts a mark to the last of the events since `known`, or for itself.
fn mark(events: &mut VecDeque<Overheard>, known: usize, mark: Mark) {
    if events.len() == known {
        events.push_back(Overheard { event: None, mark: None });
    }
    if let Some(last) = events.back_mut() {
        last.mark = Some(Box::new(mark));
    }
}

/// Samples before this one can be in no segment that begins or ends after that state.
pub(super) fn needed_from(live: &LiveState, rules: &Rules) -> u64 {
    live.speaking_since().unwrap_or(live.heard().saturating_sub(rules.pad + FRAME))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{base::Kind, segment::Voiced};

    fn new() -> (Ears, Sink) {
        let ears = Ears::new(Rules::reference(), LiveState::default(), false);
        let sink = ears.sink();
        (ears, sink)
    }

    #[test]
    fn a_detector_that_is_gone_is_told_once_and_ends_the_take() {
        let (ears, mut sink) = new();
        assert!(!ears.ended());
        sink(Heard::Failed(Error::internal("gone")));
        assert!(ears.ended());
        assert_eq!(ears.failure().unwrap().kind(), Kind::Internal);
        assert!(ears.failure().is_none());
    }

    #[test]
    fn with_all_that_is_heard_goes_the_state_after_it() {
        let (ears, mut sink) = new();
        let mut frame =
            |probability| sink(Heard::Frame { voiced: Voiced::faint(probability), state: &VoiceState::default() });
        (0..20).for_each(|_| frame(0.9));
        (0..20).for_each(|_| frame(0.0));
        let heard: Vec<Overheard> = std::iter::from_fn(|| ears.next()).collect();
        let kinds: Vec<(bool, bool)> = heard.iter().map(|it| (it.event.is_some(), it.mark.is_some())).collect();
        assert_eq!(kinds, [(true, true), (true, false), (true, true)], "start; segment and end of one frame");
        assert_eq!(heard[0].mark.as_ref().unwrap().live.heard(), FRAME);
        assert!(heard[2].mark.as_ref().unwrap().live.speaking_since().is_none());
    }

    #[test]
    fn the_end_of_a_take_is_marked_even_in_silence() {
        let (ears, mut sink) = new();
        sink(Heard::Frame { voiced: Voiced::faint(0.0), state: &VoiceState::default() });
        ears.set_total(FRAME);
        sink(Heard::End);
        assert!(!ears.ended(), "it is still to be told");
        let last = ears.next().unwrap();
        assert!(last.event.is_none() && last.mark.unwrap().ended);
        assert!(ears.ended());
    }

    #[test]
    fn in_long_silence_there_is_a_mark_now_and_then() {
        let (ears, mut sink) = new();
        (0..2 * MARK_EVERY_FRAMES)
            .for_each(|_| sink(Heard::Frame { voiced: Voiced::faint(0.0), state: &VoiceState::default() }));
        let heard: Vec<Overheard> = std::iter::from_fn(|| ears.next()).collect();
        assert_eq!(heard.len(), 2);
        assert!(heard.iter().all(|it| it.event.is_none() && it.mark.is_some()));
    }
}
