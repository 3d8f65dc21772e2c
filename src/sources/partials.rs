//! The text of the segment that is being spoken: read again and again while it grows, one reading at a time, never a queue
//! of stale ones. Also reads it on trial as soon as somebody pauses: if the silence lasts, that reading is the final one.
//!
//! Whatever happens here changes how soon a text is seen, and what of it is shown as committed; what the final text says
//! is decided in `finals`.

use std::time::Duration;

use tokio::time::Instant;

use crate::{
    engines::{Asr, Decode, PieceText, guarded, transcript},
    flow::{Pcm, SAMPLE_RATE_HZ, SessionConfig},
    jobs::{Answer, Ask, Offer, Queue},
    segment::{CommitRule, Committer, ReadWord, Reading, SessionLanguage, Shown, Span, Speaking},
    sources::{
        finals::{Texts, transcribe_ask},
        pace::Pace,
    },
    telemetry::events::{PartialEnded, PartialStretched, TrialEnded, emit},
};

/// Nobody speaks faster; a partial that is longer has lost its way.
const MOST_TOKENS_A_SEC: f64 = 12.0;
const MOST_TOKENS_BESIDE: usize = 16;
/// What was not heard yet when it should have been asked for is asked for after this: soon, for people wait.
const HEAR_STEP: Duration = Duration::from_millis(20);

/// How partials are made; from the settings.
#[derive(Debug, Clone, Copy)]
pub struct PartialRules {
    pub commit: CommitRule,
    /// Speech before the first.
    pub first: Duration,
    pub interval: Duration,
}

/// Of one take.
pub(super) struct Partials {
    rules: PartialRules,
    /// The client wants them; trials are made all the same.
    wanted: bool,
    open: Option<Open>,
    asked: Option<Asked>,
    /// The reading on trial that has been answered.
    tried: Option<(Span, Vec<PieceText>)>,
    /// The settings ask for what this model cannot tell: said once.
    told: bool,
}

/// The segment that is being spoken.
struct Open {
    since: u64,
    /// The end of what was read last.
    read_until: u64,
    committer: Committer,
    shown: Shown,
    pace: Pace,
    due: Option<Instant>,
}

struct Asked {
    span: Span,
    at: Instant,
    offer: Offer,
    trial: bool,
    answer: Answer<Asr>,
}

/// What becomes of a segment when its end is known.
pub(super) struct Closed {
    pub(super) committer: Committer,
    pub(super) trial: Option<Trial>,
}

/// The final reading, begun before it was known to be that.
pub(super) enum Trial {
    Answered(Vec<PieceText>),
    Asked(Answer<Asr>),
}

impl Partials {
    pub(super) fn new(rules: PartialRules, wanted: bool) -> Partials {
        Partials { rules, wanted, open: None, asked: None, tried: None, told: false }
    }

    /// Whether there is a client that wants them.
    pub(super) fn set_wanted(&mut self, wanted: bool) {
        self.wanted = wanted;
    }

    /// Somebody began to speak there; so many samples have been heard since.
    pub(super) fn begin(&mut self, since: u64, heard: u64) {
        let first = self.rules.first.saturating_sub(secs(heard.saturating_sub(since)));
        self.open_at(since, first);
    }

    /// Of the segment that is being spoken that was committed before a crash.
    pub(super) fn go_on(&mut self, committed: String) {
        if let Some(open) = &mut self.open {
            open.committer = Committer::resumed(self.rules.commit, committed);
        }
    }

    /// They fell silent, and what was said has been closed.
    pub(super) fn end(&mut self) {
        self.give_up();
        self.open = None;
    }

    /// What was said so far is a segment. Speech may go on, where it was cut for its length: what follows is a new segment.
    pub(super) fn close(&mut self, span: Span, queue: &Queue) -> Closed {
        let committer = self.open.take().map(|open| open.committer);
        let committer = committer.unwrap_or_else(|| Committer::new(self.rules.commit));
        let tried = self.tried.take().filter(|(tried, _)| *tried == span).map(|(_, pieces)| Trial::Answered(pieces));
        let asked = self.asked.take_if(|asked| asked.trial && asked.span == span);
        let trial = tried.or_else(|| {
            let asked = asked?;
            // It is work that somebody needs by now.
            queue.promote(asked.offer);
            Some(Trial::Asked(asked.answer))
        });
        if trial.is_some() {
            emit(TrialEnded { outcome: "final" });
        }
        self.give_up();
        self.open_at(span.end, self.rules.interval);
        Closed { committer, trial }
    }

    /// Of a segment that was cut before a crash, with what had been committed of it.
    pub(super) fn unread(&self, committed: Option<String>) -> Closed {
        let committer = Committer::resumed(self.rules.commit, committed.unwrap_or_default());
        Closed { committer, trial: None }
    }

    /// Somebody paused: reads what would be the segment.
    pub(super) fn pause(
        &mut self,
        span: Span,
        audio: Pcm,
        queue: &Queue,
        config: &SessionConfig,
        language: &SessionLanguage,
    ) {
        self.give_up();
        match queue.offer(Ask::new(transcribe_ask(config, language, audio))) {
            Ok((offer, answer)) => self.asked = Some(Asked { span, at: Instant::now(), offer, trial: true, answer }),
            Err(_) => emit(TrialEnded { outcome: "left_out" }),
        }
    }

    /// Whether something of the segment that is being spoken has been shown.
    pub(super) fn has_shown(&self) -> bool {
        self.open.as_ref().is_some_and(|open| !open.shown.text.is_empty())
    }

    pub(super) fn due(&self) -> Option<Instant> {
        if self.wanted && self.asked.is_none() { self.open.as_ref()?.due } else { None }
    }

    /// Asks for the text so far, `heard` samples into the take. Where finals wait it is left out: a later one says more anyway.
    pub(super) fn ask(
        &mut self,
        speaking: Option<Speaking>,
        heard: u64,
        cut: impl FnOnce(u64, u64) -> Pcm,
        queue: &Queue,
        config: &SessionConfig,
        language: &SessionLanguage,
    ) {
        let (Some(open), now) = (&mut self.open, Instant::now()) else { return };
        // What is quiet belongs to no segment, so the audio is the one that a final reading would have.
        let end = speaking.map(|it| it.quiet_after.unwrap_or(heard));
        let span =
            speaking.zip(end).map(|(speaking, end)| Span { start: speaking.since, end: end.max(speaking.since) });
        let Some(span) = span.filter(|span| secs(span.len()) >= self.rules.first) else {
            open.due = now.checked_add(HEAR_STEP);
            return;
        };
        open.since = span.start;
        if open.read_until == span.end {
            // Nothing was said since.
            open.due = now.checked_add(HEAR_STEP);
            return;
        }
        let attention = matches!(self.rules.commit, CommitRule::Attention { .. });
        let mut ask = transcribe_ask(config, language, cut(span.start, span.end));
        ask.words |= attention;
        ask.attention = attention;
        // A reading that is doubted is left out: the next one comes soon, and asking again and again takes long.
        ask.decode.temperatures = vec![0.0];
        let tokens = MOST_TOKENS_BESIDE + (MOST_TOKENS_A_SEC * secs(span.len()).as_secs_f64()) as usize;
        ask.decode.max_new_tokens = Some(tokens);
        match queue.offer(Ask::new(ask)) {
            Ok((offer, answer)) => self.asked = Some(Asked { span, at: now, offer, trial: false, answer }),
            Err(_) => {
                open.due = now.checked_add(open.pace.refused(!open.shown.text.is_empty()));
                emit(PartialEnded { outcome: "left_out", took: None });
            }
        }
    }

    pub(super) fn is_waiting(&self) -> bool {
        self.asked.is_some()
    }

    /// The answer to what was asked; for ever pending where nothing was. Giving up the wait loses nothing.
    pub(super) async fn answered(&mut self) -> Texts {
        match &mut self.asked {
            Some(asked) => (&mut asked.answer).await,
            None => std::future::pending().await,
        }
    }

    /// What the answer changes of what is shown, and where its segment begins.
    pub(super) fn news(&mut self, texts: Texts, cut_from: Option<u64>) -> Option<(u64, Shown)> {
        let Asked { span, at, trial, .. } = self.asked.take()?;
        let open = self.open.as_mut()?;
        let took = at.elapsed();
        let Ok(pieces) = texts else {
            open.due = Instant::now().checked_add(self.rules.interval);
            emit(PartialEnded { outcome: "failed", took: None });
            return None;
        };
        let attends = !matches!(self.rules.commit, CommitRule::Attention { .. }) || trial;
        if !attends && !self.told && pieces.iter().any(|piece| piece.without_words) {
            self.told = true;
            log::warn!(
                "audio.partials is \"attention\", and this model does not tell what it listens to: words are committed by \
                 agreement. Take a model named …-timestamped, or set audio.partials to \"agreement\""
            );
        }
        open.read_until = span.end;
        // What a final text would leave out is not shown either.
        let reading = reading(&guarded(pieces.clone()), secs(span.len()).as_secs_f64());
        let cut_after = cut_from.map(|cut| secs(cut.saturating_sub(open.since)).as_secs_f64());
        // Nothing is committed to whom nothing is shown.
        let shown = if self.wanted { open.committer.read(reading, cut_after) } else { Shown::default() };
        let (wait, stretched) = open.pace.answered(!shown.text.is_empty(), took);
        open.due = at.checked_add(wait);
        if trial {
            self.tried = Some((span, pieces));
        } else {
            emit(PartialEnded { outcome: "done", took: Some(took) });
            if stretched {
                emit(PartialStretched);
            }
        }
        let changed = shown != open.shown && !shown.text.is_empty();
        open.shown.clone_from(&shown);
        changed.then_some((open.since, shown))
    }

    fn open_at(&mut self, since: u64, wait: Duration) {
        let (committer, pace) = (Committer::new(self.rules.commit), Pace::new(self.rules.interval));
        let due = Instant::now().checked_add(wait);
        self.open = Some(Open { since, read_until: since, committer, shown: Shown::default(), pace, due });
    }

    /// Whoever is asked stops at the next step.
    fn give_up(&mut self) {
        self.tried = None;
        match self.asked.take() {
            Some(asked) if asked.trial => emit(TrialEnded { outcome: "given_up" }),
            Some(_) => emit(PartialEnded { outcome: "given_up", took: None }),
            None => {}
        }
    }
}

fn secs(samples: u64) -> Duration {
    Duration::from_secs_f64(samples as f64 / f64::from(SAMPLE_RATE_HZ))
}

fn reading(pieces: &[PieceText], heard_secs: f64) -> Reading {
    let limits = Decode::default();
    let segments = || pieces.iter().flat_map(|piece| &piece.segments);
    let repeats = segments().any(|it| limits.max_compression_ratio.is_some_and(|most| it.compression_ratio > most));
    let unlikely = segments().any(|it| limits.min_log_probability.is_some_and(|least| it.avg_logprob < least));
    let transcript = transcript(pieces.to_vec());
    if repeats {
        // A text that goes round in circles is nothing to show.
        return Reading { language: transcript.language, heard_secs, doubted: true, ..Reading::default() };
    }
    let words = segments().flat_map(|segment| {
        segment.words.iter().enumerate().map(|(number, word)| ReadWord {
            text: word.text.clone(),
            end: word.end,
            attends_to: segment.attends_to.get(number).copied(),
        })
    });
    let words = words.collect();
    Reading { text: transcript.text, language: transcript.language, heard_secs, words, doubted: unlikely }
}
