//! What the listening thread tells one take: probabilities in, speech events out. The bridge between that thread,
//! which must not wait, and the take's task, which must not be woken for every frame.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard},
};

use tokio::sync::Notify;

use crate::{
    base::{Error, Result, lock},
    engines::{Heard, Sink},
    segment::{Live, Rules, SpeechEvent, speech::FRAME},
};

/// The take's task is woken about once a second of audio even if nobody speaks, so that it sees its backlog shrink.
const WAKE_EVERY_FRAMES: u64 = 31;

#[derive(Clone)]
pub(super) struct Ears(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    news: Notify,
}

struct State {
    live: Live,
    events: VecDeque<SpeechEvent>,
    frames: u64,
    /// Samples of the whole take, known when it ends.
    total: u64,
    ended: bool,
    failed: Option<Error>,
}

impl Ears {
    pub(super) fn new(rules: Rules) -> Ears {
        let state =
            State { live: Live::new(rules), events: VecDeque::new(), frames: 0, total: 0, ended: false, failed: None };
        Ears(Arc::new(Shared { state: Mutex::new(state), news: Notify::new() }))
    }

    /// For `Voice::open`.
    pub(super) fn sink(&self) -> Sink {
        let ears = self.clone();
        Box::new(move |heard| ears.hear(heard))
    }

    fn hear(&self, heard: Heard) {
        let mut state = self.lock();
        let State { live, events, .. } = &mut *state;
        let known = events.len();
        match heard {
            Heard::Frame { probability } => {
                live.push(probability, |event| events.push_back(event));
                let news = events.len() > known;
                state.frames += 1;
                if !news && !state.frames.is_multiple_of(WAKE_EVERY_FRAMES) {
                    return;
                }
            }
            Heard::End => {
                let total = state.total;
                let State { live, events, .. } = &mut *state;
                live.finish(total, |event| events.push_back(event));
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

    pub(super) fn next(&self) -> Option<SpeechEvent> {
        self.lock().events.pop_front()
    }

    /// To be said before the voice stream is ended.
    pub(super) fn set_total(&self, samples: u64) {
        self.lock().total = samples;
    }

    /// Whether all has been heard that ever will be; once an error, if that is because the detector is gone.
    pub(super) fn ended(&self) -> Result<bool> {
        let mut state = self.lock();
        state.failed.take().map_or(Ok(state.ended), Err)
    }

    /// Samples before this one can be in no segment any more.
    pub(super) fn needed_from(&self, rules: &Rules) -> u64 {
        let state = self.lock();
        let heard = state.frames * FRAME;
        state.live.speaking_since().unwrap_or(heard.saturating_sub(rules.pad + FRAME))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.0.state)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Kind;

    #[test]
    fn a_detector_that_is_gone_is_told_once_and_ends_the_take() {
        let ears = Ears::new(Rules::reference());
        assert!(!ears.ended().unwrap());
        (ears.sink())(Heard::Failed(Error::internal("gone")));
        assert_eq!(ears.ended().unwrap_err().kind(), Kind::Internal);
        assert!(ears.ended().unwrap());
    }
}
