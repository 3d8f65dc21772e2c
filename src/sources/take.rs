//! One take: from the first chunk to the final result. Owns what is held of its audio and what is being worked on;
//! decides nothing about the session around it.

use std::collections::VecDeque;

use futures_util::{StreamExt, future::BoxFuture, stream::FuturesOrdered};
use tokio::time::{Instant, sleep_until};

use crate::{
    base::Error,
    engines::{Voice, VoiceStream, diarize::Cast},
    flow::{Pcm, SAMPLE_RATE_HZ, SessionConfig, TextSegment, audio::samples_to_secs},
    jobs::Queue,
    segment::{Rules, SessionLanguage, Span, SpeechEvent, Tape},
    sources::{
        committed::{Commitments, Partial},
        ears::{Ears, Mark},
        finals::{Read, Settled, Spoken, Texts, Unsettled, with_voice},
        kept::{Kept, Owed, TakeState},
        marks::Marks,
        partials::{Closed, PartialRules, Partials, Trial},
        speakers::{self, Overheard, SessionSpeakers},
    },
    store::Checkpoint,
};

/// Audio that may be handed to the voice detector ahead of its answers: 4 s. Beyond it the client is held back.
const MAX_BACKLOG: usize = 4 * SAMPLE_RATE_HZ as usize;
/// Segments of one session that may wait for their text.
const MAX_PENDING: usize = 8;

/// What a take reports to its session. A checkpoint is to be kept before or with what it comes with.
pub(super) enum News {
    Speech {
        speaking: bool,
        at: f64,
        checkpoint: Option<Checkpoint>,
    },
    Partial(Partial),
    /// A segment is final.
    Segment(Spoken),
    Checkpoint(Checkpoint),
}

/// One thing that happened to a take.
pub(super) enum TakeStep {
    /// Something was heard.
    News,
    Final(Read),
    Partial(Texts),
    /// What is committed in it is on disk.
    Kept(Partial),
    PartialDue,
    /// It is known who speaks in the whole, or that it will not be.
    Overheard,
}

pub(super) struct Take {
    number: u64,
    ears: Ears,
    stream: VoiceStream,
    rules: Rules,
    tape: Option<Tape>,
    marks: Marks,
    /// Samples of the session before this take: times on the wire count from the session's start.
    offset: u64,
    next_segment: u64,
    /// Segments that were cut before a crash, until their audio is here again.
    owed: VecDeque<Owed>,
    /// Segments whose text is being made, in order …
    finals: FuturesOrdered<BoxFuture<'static, Read>>,
    /// … and which these are.
    pending: VecDeque<Owed>,
    partials: Partials,
    commitments: Commitments,
    /// Of the session, with what this take has made of it.
    language: SessionLanguage,
    speaking: bool,
    /// All samples are in.
    ended: bool,
    segments: Vec<TextSegment>,
    diarizes: bool,
    /// Until it is known who speaks in the whole.
    overheard: Option<Overheard>,
    cast: Option<Cast>,
}

/// What a take is made of.
pub(super) struct TakeParts<'a> {
    pub(super) number: u64,
    pub(super) voice: &'a Voice,
    pub(super) rules: Rules,
    pub(super) transcribes: bool,
    pub(super) partials: PartialRules,
    pub(super) shows_partials: bool,
    pub(super) language: SessionLanguage,
    pub(super) offset: u64,
    pub(super) next_segment: u64,
    /// If speakers are told apart.
    pub(super) overheard: Option<Overheard>,
}

impl Take {
    pub(super) fn new(parts: TakeParts<'_>) -> Take {
        let state = TakeState { next_segment: parts.next_segment, ..TakeState::default() };
        Take::resume(parts, Kept { state, ..Kept::default() }, Marks::default())
    }

    /// Goes on from what was kept of a take, one whose samples were all in included.
    pub(super) fn resume(parts: TakeParts<'_>, kept: Kept, marks: Marks) -> Take {
        let Kept { state, detector, told, committed } = kept;
        let mut commitments = Commitments::left(committed, state.next_segment);
        let ears = Ears::new(parts.rules, state.live, state.ended);
        let mut partials = Partials::new(parts.partials, parts.shows_partials && parts.transcribes);
        let speaking_since = state.live.speaking_since();
        if let Some(since) = speaking_since {
            partials.begin(since, state.live.heard());
            partials.go_on(commitments.take(state.next_segment).unwrap_or_default());
        }
        Take {
            number: parts.number,
            stream: parts.voice.open(detector, ears.sink()),
            ears,
            rules: parts.rules,
            // Without a transcriber nobody will ask for the audio again.
            tape: parts.transcribes.then(|| Tape::from(marks.at())),
            marks,
            offset: parts.offset,
            next_segment: state.next_segment,
            owed: state.owed.into(),
            finals: FuturesOrdered::new(),
            pending: VecDeque::new(),
            partials,
            commitments,
            language: parts.language,
            speaking: speaking_since.is_some(),
            ended: state.ended,
            segments: told,
            diarizes: parts.overheard.is_some(),
            overheard: parts.overheard,
            cast: None,
        }
    }

    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// Where the take's audio stands.
    pub(super) fn marks(&mut self) -> &mut Marks {
        &mut self.marks
    }

    pub(super) fn samples(&self) -> u64 {
        self.marks.at()
    }

    /// The id of the first segment after this take. What was shown of a segment that never came to its end is never shown
    /// of another one.
    pub(super) fn next_segment(&self) -> u64 {
        self.next_segment + u64::from(self.partials.has_shown())
    }

    /// Whether more audio may come now, or the client is to be held back.
    pub(super) fn has_room(&self) -> bool {
        self.finals.len() < MAX_PENDING && self.keeps_up()
    }

    /// Whether the voice detector is near enough behind what has been decoded.
    pub(super) fn keeps_up(&self) -> bool {
        self.stream.backlog() < MAX_BACKLOG
    }

    /// Another client goes on with it.
    pub(super) fn set_client(&mut self, config: &SessionConfig) {
        self.partials.set_wanted(config.partials && self.tape.is_some());
        self.language.set_asked(&config.language);
    }

    /// What the session's language has become.
    pub(super) fn language(&self) -> &SessionLanguage {
        &self.language
    }

    /// What happens next. Every wait here can be given up without loss.
    pub(super) async fn next(&mut self) -> TakeStep {
        let due = self.partials.due();
        tokio::select! {
            biased;
            () = self.ears.news() => TakeStep::News,
            Some(done) = self.finals.next() => TakeStep::Final(done),
            partial = self.commitments.next(), if self.commitments.is_keeping() => TakeStep::Kept(partial),
            texts = self.partials.answered(), if self.partials.is_waiting() && !self.commitments.is_keeping() => TakeStep::Partial(texts),
            () = at(due), if due.is_some() => TakeStep::PartialDue,
            cast = cast(&mut self.overheard), if self.overheard.is_some() => {
                self.cast = cast;
                self.overheard = None;
                TakeStep::Overheard
            }
        }
    }

    /// Takes the next samples; returns from which of them on the log is to have them.
    pub(super) fn listen(&mut self, samples: &[f32], queue: &Queue, config: &SessionConfig) -> usize {
        let fresh = self.marks.pass(samples.len());
        if let Some(tape) = &mut self.tape {
            tape.push(&samples[fresh.for_tape..]);
        }
        self.stream.push(&samples[fresh.for_ears..]);
        if let Some(overheard) = &mut self.overheard {
            overheard.hear(&samples[fresh.for_tape..]);
        }
        self.ask_owed(self.marks.taped_to(), queue, config);
        fresh.for_log
    }

    /// Asks for the texts of segments that were cut before a crash, once their audio is here up to that sample.
    fn ask_owed(&mut self, taped_to: u64, queue: &Queue, config: &SessionConfig) {
        while let Some(owed) = self.owed.pop_front_if(|owed| owed.span.end <= taped_to) {
            // If there is no transcriber any more, or none of its audio, what was committed is all that there will be.
            let closed = self.partials.unread(self.commitments.take(owed.id));
            if let Some(segment) = self.ask_segment(owed, closed, queue, config) {
                let unsettled = Unsettled::new(segment, Pcm::from(Vec::new()), self.partials.unread(None).committer);
                self.finals.push_back(Box::pin(std::future::ready(Box::new((unsettled, Ok(Vec::new()))))));
                self.pending.push_back(owed);
            }
        }
    }

    /// All samples are in: hear the rest.
    pub(super) fn end(&mut self, queue: &Queue, config: &SessionConfig) {
        // What of them was heard before a crash and has not come again will not come.
        self.ask_owed(u64::MAX, queue, config);
        if !std::mem::replace(&mut self.ended, true) {
            self.ears.set_total(self.samples());
            self.stream.end();
        }
    }

    pub(super) fn has_ended(&self) -> bool {
        self.ended && self.owed.is_empty()
    }

    /// Whether everything is heard that will be.
    pub(super) fn is_heard(&self) -> bool {
        self.has_ended() && self.ears.ended()
    }

    /// Once it is heard: whether every segment has its text, and who speaks is known. Only now there is a whole to say
    /// that of.
    pub(super) fn is_done(&mut self) -> bool {
        if let Some(overheard) = &mut self.overheard {
            overheard.end();
        }
        self.finals.is_empty() && self.overheard.is_none()
    }

    /// Gives the segments the speakers of the whole take. False if nobody knows them: then they keep those of their own.
    pub(super) fn correct(&mut self, speakers: &mut SessionSpeakers) -> bool {
        let Some(cast) = self.cast.take() else { return false };
        let segments = std::mem::take(&mut self.segments);
        let offset_secs = samples_to_secs(self.offset);
        self.segments = speakers.correct(segments, cast, offset_secs, &mut self.next_segment);
        true
    }

    /// Nothing more is waited for.
    pub(super) fn stop_hearing(&self) {
        self.ears.stop();
    }

    /// Why the voice detector hears nothing more, once.
    pub(super) fn failure(&self) -> Option<Error> {
        self.ears.failure()
    }

    pub(super) fn into_segments(self) -> Vec<TextSegment> {
        self.segments
    }

    /// The segment is final.
    pub(super) fn settle(&mut self, segment: TextSegment) {
        self.segments.push(segment);
    }

    /// What has been heard since the last call, taken to its consequences.
    pub(super) fn hear(&mut self, queue: &Queue, config: &SessionConfig) -> Vec<News> {
        let mut news = Vec::new();
        // Asked before the events are taken: a segment that is cut meanwhile still needs its samples.
        let mut needed_from = self.ears.needed_from(&self.rules);
        while let Some(overheard) = self.ears.next() {
            let said = match overheard.event {
                Some(SpeechEvent::Start { at }) => Some(self.begin_speech(at)),
                Some(SpeechEvent::Pause(span)) => {
                    if let Some(tape) = &self.tape {
                        self.partials.pause(span, tape.cut(span.start, span.end), queue, config, &self.language);
                    }
                    None
                }
                Some(SpeechEvent::End { at }) => Some(self.end_speech(at)),
                Some(SpeechEvent::Segment(span)) => self.segment(span, queue, config),
                None => None,
            };
            let mut checkpoint = overheard.mark.map(|mark| self.checkpoint(&mark));
            match said {
                // Told and kept together.
                Some(News::Speech { speaking, at, .. }) => {
                    news.push(News::Speech { speaking, at, checkpoint: checkpoint.take() });
                }
                other => {
                    news.extend(checkpoint.map(News::Checkpoint));
                    news.extend(other);
                }
            }
        }
        if let Some(owed) = self.owed.front() {
            needed_from = needed_from.min(owed.span.start);
        }
        if let Some(tape) = &mut self.tape {
            tape.forget_before(needed_from);
        }
        news
    }

    fn begin_speech(&mut self, at: u64) -> News {
        self.speaking = true;
        self.partials.begin(at, self.samples());
        News::Speech { speaking: true, at: self.secs(at), checkpoint: None }
    }

    fn end_speech(&mut self, at: u64) -> News {
        self.speaking = false;
        self.partials.end();
        News::Speech { speaking: false, at: self.secs(at), checkpoint: None }
    }

    fn checkpoint(&self, mark: &Mark) -> Checkpoint {
        let owed = self.owed.iter().chain(&self.pending).copied().collect();
        TakeState::at(mark, self.next_segment, owed).checkpoint(self.number, &mark.detector)
    }

    /// Asks for the segment's text; without a transcriber its times alone are final at once.
    fn segment(&mut self, span: Span, queue: &Queue, config: &SessionConfig) -> Option<News> {
        let owed = Owed { id: self.next_segment, span };
        self.next_segment += 1;
        let closed = self.partials.close(span, queue);
        let segment = self.ask_segment(owed, closed, queue, config)?;
        Some(News::Segment(Spoken::silent(segment)))
    }

    /// Returns the segment, with what was committed, when there is nobody to ask, or nothing to ask for. `closed`: what was
    /// read of it while it was spoken.
    fn ask_segment(
        &mut self,
        owed: Owed,
        closed: Closed,
        queue: &Queue,
        config: &SessionConfig,
    ) -> Option<TextSegment> {
        let Owed { id, span } = owed;
        let Closed { committer, trial } = closed;
        let segment = TextSegment {
            id,
            start: self.secs(span.start),
            end: self.secs(span.end),
            text: committer.committed().to_owned(),
            language: config.language.clone(),
            probability: 0.0,
            speaker: None,
            words: Vec::new(),
        };
        let audio = self.tape.as_ref().map(|tape| tape.cut(span.start, span.end));
        let Some(audio) = audio.filter(|audio| !audio.is_empty()) else { return Some(segment) };
        let unsettled = Unsettled::new(segment, audio.clone(), committer);
        let read = match trial {
            None => unsettled.ask(queue.clone(), config, &self.language),
            Some(Trial::Asked(answer)) => unsettled.await_trial(answer, queue.clone(), config, &self.language),
            Some(Trial::Answered(pieces)) => Box::pin(std::future::ready(Box::new((unsettled, Ok(pieces))))),
        };
        self.finals.push_back(match self.diarizes {
            true => with_voice(read, speakers::voice(queue.clone(), audio)),
            false => read,
        });
        self.pending.push_back(owed);
        None
    }

    /// The text of the oldest segment that waits for one; None where it has to be made again.
    pub(super) fn final_news(
        &mut self,
        (unsettled, texts): (Unsettled, Texts),
        queue: &Queue,
        config: &SessionConfig,
    ) -> Option<News> {
        match unsettled.settle(texts, &mut self.language) {
            Settled::Done(spoken) => {
                self.pending.pop_front();
                Some(News::Segment(spoken))
            }
            Settled::Again(unsettled) => {
                self.finals.push_front(unsettled.ask(queue.clone(), config, &self.language));
                None
            }
        }
    }

    /// What is to be said of speech that will not be heard to its end.
    pub(super) fn fall_silent(&mut self) -> Option<News> {
        let speaking = std::mem::take(&mut self.speaking);
        speaking.then(|| News::Speech { speaking: false, at: self.secs(self.samples()), checkpoint: None })
    }

    /// Asks for the text so far.
    pub(super) fn ask_partial(&mut self, queue: &Queue, config: &SessionConfig) {
        let Some(tape) = &self.tape else { return };
        let cut = |from, to| tape.cut(from, to);
        self.partials.ask(self.ears.speaking(), self.marks.at(), cut, queue, config, &self.language);
    }

    /// What the answer adds to the text so far.
    pub(super) fn partial_news(&mut self, texts: Texts) -> Option<Partial> {
        let cut_from = self.ears.speaking().and_then(|speaking| speaking.cut_from);
        let (since, shown) = self.partials.news(texts, cut_from)?;
        Some(Partial { shown, segment: self.next_segment, start: self.secs(since) })
    }

    /// Whether that is the segment that is being spoken.
    pub(super) fn is_open(&self, segment: u64) -> bool {
        segment == self.next_segment
    }

    /// What was committed, and whether it is kept.
    pub(super) fn commitments(&mut self) -> &mut Commitments {
        &mut self.commitments
    }

    fn secs(&self, sample: u64) -> f64 {
        // Milliseconds are what the frames can tell; more digits would only look exact.
        (samples_to_secs(self.offset + sample) * 1000.0).round() / 1000.0
    }
}

async fn cast(overheard: &mut Option<Overheard>) -> Option<Cast> {
    overheard.as_mut()?.cast().await
}

async fn at(due: Option<Instant>) {
    if let Some(due) = due {
        sleep_until(due).await;
    }
}
