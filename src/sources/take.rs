//! One take: from the first chunk to the final result. Owns what is held of its audio and what is being worked on;
//! decides nothing about the session around it.

use std::{collections::VecDeque, time::Duration};

use futures_util::{StreamExt, future::BoxFuture, stream::FuturesOrdered};
use tokio::time::{Instant, sleep_until, timeout};

use crate::{
    base::{Error, Kind},
    engines::{Asr, TranscribeAsk, Voice, VoiceState, VoiceStream, transcript},
    flow::{Pcm, Priority, SAMPLE_RATE_HZ, SessionConfig, TextSegment, Transcript, audio::samples_to_secs},
    jobs::{Answer, Ask, Queue},
    segment::{Rules, Span, SpeechEvent, Tape},
    sources::{
        ears::{Ears, Mark},
        kept::{Owed, TakeState},
        marks::Marks,
    },
    store::Checkpoint,
};

/// Audio that may be handed to the voice detector ahead of its answers: 4 s. Beyond it the client is held back.
const MAX_BACKLOG: usize = 4 * SAMPLE_RATE_HZ as usize;
/// Segments of one session that may wait for their text.
const MAX_PENDING: usize = 8;
/// Less audio than this has no text worth showing.
const MIN_PARTIAL: u64 = SAMPLE_RATE_HZ as u64 * 3 / 10;

/// From being cut to having its text, the queue included.
const SEGMENT_LIMIT: Duration = Duration::from_secs(600);

/// What a take reports to its session. A checkpoint is to be kept before or with what it comes with.
pub(super) enum News {
    Speech {
        speaking: bool,
        at: f64,
        checkpoint: Option<Checkpoint>,
    },
    Partial {
        text: String,
        segment: u64,
        start: f64,
    },
    /// A segment is final; with the error if there is no text because of one.
    Segment(TextSegment, Option<Error>),
    Checkpoint(Checkpoint),
}

/// One thing that happened to a take.
pub(super) enum TakeStep {
    /// Something was heard.
    News,
    Final((TextSegment, Option<Error>)),
    Partial(Option<Transcript>),
    PartialDue,
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
    finals: FuturesOrdered<BoxFuture<'static, (TextSegment, Option<Error>)>>,
    /// … and which these are.
    pending: VecDeque<Owed>,
    partial: Option<Answer<Asr>>,
    partial_due: Option<Instant>,
    partial_interval: Duration,
    speaking_since: Option<u64>,
    /// All samples are in.
    ended: bool,
    segments: Vec<TextSegment>,
}

/// What a take is made of.
pub(super) struct TakeParts<'a> {
    pub(super) number: u64,
    pub(super) voice: &'a Voice,
    pub(super) rules: Rules,
    pub(super) transcribes: bool,
    pub(super) partial_interval: Option<Duration>,
    pub(super) offset: u64,
    pub(super) next_segment: u64,
}

impl Take {
    pub(super) fn new(parts: TakeParts<'_>) -> Take {
        let state = TakeState { next_segment: parts.next_segment, ..TakeState::default() };
        Take::resume(parts, state, VoiceState::default(), Marks::default(), Vec::new())
    }

    /// Goes on from a state that was kept, one whose samples were all in included; `told`: the take's segments that have
    /// their text.
    pub(super) fn resume(
        parts: TakeParts<'_>,
        state: TakeState,
        detector: VoiceState,
        marks: Marks,
        told: Vec<TextSegment>,
    ) -> Take {
        let ears = Ears::new(parts.rules, state.live, state.ended);
        let partial_interval = parts.partial_interval.unwrap_or(Duration::MAX);
        let speaking_since = state.live.speaking_since();
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
            partial: None,
            partial_due: speaking_since.and_then(|_| Instant::now().checked_add(partial_interval)),
            partial_interval,
            speaking_since,
            ended: state.ended,
            segments: told,
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

    pub(super) fn next_segment(&self) -> u64 {
        self.next_segment
    }

    /// Whether more audio may come now, or the client is to be held back.
    pub(super) fn has_room(&self) -> bool {
        self.finals.len() < MAX_PENDING && self.keeps_up()
    }

    /// Whether the voice detector is near enough behind what has been decoded.
    pub(super) fn keeps_up(&self) -> bool {
        self.stream.backlog() < MAX_BACKLOG
    }

    /// How often the client wants to see text that is not final; `None` for never.
    pub(super) fn set_partials(&mut self, interval: Option<Duration>) {
        self.partial_interval = interval.unwrap_or(Duration::MAX);
        self.partial_due = self.speaking_since.and_then(|_| Instant::now().checked_add(self.partial_interval));
    }

    /// What happens next. Every wait here can be given up without loss.
    pub(super) async fn next(&mut self) -> TakeStep {
        let due = if self.partial.is_some() { None } else { self.partial_due };
        tokio::select! {
            biased;
            () = self.ears.news() => TakeStep::News,
            Some(done) = self.finals.next() => {
                self.pending.pop_front();
                TakeStep::Final(done)
            }
            transcript = answer(&mut self.partial), if self.partial.is_some() => TakeStep::Partial(transcript),
            () = at(due), if due.is_some() => TakeStep::PartialDue,
        }
    }

    /// Takes the next samples; returns from which of them on the log is to have them.
    pub(super) fn listen(&mut self, samples: &[f32], queue: &Queue, config: &SessionConfig) -> usize {
        let fresh = self.marks.pass(samples.len());
        if let Some(tape) = &mut self.tape {
            tape.push(&samples[fresh.for_tape..]);
        }
        self.stream.push(&samples[fresh.for_ears..]);
        self.ask_owed(self.marks.taped_to(), queue, config);
        fresh.for_log
    }

    /// Asks for the texts of segments that were cut before a crash, once their audio is here up to that sample.
    fn ask_owed(&mut self, taped_to: u64, queue: &Queue, config: &SessionConfig) {
        while let Some(owed) = self.owed.pop_front_if(|owed| owed.span.end <= taped_to) {
            // If there is no transcriber any more, or none of its audio, its times are all that there will be.
            if let Some(segment) = self.ask_segment(owed, queue, config) {
                self.finals.push_back(Box::pin(std::future::ready((segment, None))));
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

    /// Whether it is heard, and every segment has its text.
    pub(super) fn is_done(&self) -> bool {
        self.is_heard() && self.finals.is_empty()
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
        self.speaking_since = Some(at);
        self.partial_due = Instant::now().checked_add(self.partial_interval);
        News::Speech { speaking: true, at: self.secs(at), checkpoint: None }
    }

    fn end_speech(&mut self, at: u64) -> News {
        self.speaking_since = None;
        self.partial_due = None;
        self.partial = None;
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
        // What comes after a cut in the middle of long speech is a new segment with partials of its own.
        self.partial = None;
        self.speaking_since = self.speaking_since.map(|_| span.end);
        self.ask_segment(owed, queue, config).map(|segment| News::Segment(segment, None))
    }

    /// Returns the segment when there is nobody to ask, or nothing to ask for.
    fn ask_segment(&mut self, owed: Owed, queue: &Queue, config: &SessionConfig) -> Option<TextSegment> {
        let Owed { id, span } = owed;
        let segment = TextSegment {
            id,
            start: self.secs(span.start),
            end: self.secs(span.end),
            text: String::new(),
            language: config.language.clone(),
            probability: 0.0,
            speaker: None,
            words: Vec::new(),
        };
        let audio = self.tape.as_ref().map(|tape| tape.cut(span.start, span.end));
        let Some(audio) = audio.filter(|audio| !audio.is_empty()) else { return Some(segment) };
        let ask = transcribe_ask(config, audio);
        self.finals.push_back(Box::pin(transcribe(queue.clone(), ask, segment)));
        self.pending.push_back(owed);
        None
    }

    /// What is to be said of speech that will not be heard to its end.
    pub(super) fn fall_silent(&mut self) -> Option<News> {
        self.speaking_since.take()?;
        Some(News::Speech { speaking: false, at: self.secs(self.samples()), checkpoint: None })
    }

    /// Asks for the text so far. When the queue is full the partial is left out: a later one says more anyway.
    pub(super) fn ask_partial(&mut self, queue: &Queue, config: &SessionConfig) {
        self.partial_due = Instant::now().checked_add(self.partial_interval);
        let (Some(since), Some(tape)) = (self.speaking_since, &self.tape) else { return };
        if self.samples().saturating_sub(since) < MIN_PARTIAL {
            return;
        }
        let ask = Ask::<Asr>::new(transcribe_ask(config, tape.cut(since, self.marks.at())));
        self.partial = queue.submit(Priority::Live, ask).ok();
    }

    /// The partial's text, unless it failed or its segment is final already.
    pub(super) fn partial_news(&mut self, transcript: Option<Transcript>) -> Option<News> {
        self.partial = None;
        let start = self.secs(self.speaking_since?);
        let text = transcript?.text;
        (!text.is_empty()).then_some(News::Partial { text, segment: self.next_segment, start })
    }

    fn secs(&self, sample: u64) -> f64 {
        // Milliseconds are what the frames can tell; more digits would only look exact.
        (samples_to_secs(self.offset + sample) * 1000.0).round() / 1000.0
    }
}

async fn at(due: Option<Instant>) {
    if let Some(due) = due {
        sleep_until(due).await;
    }
}

async fn answer(partial: &mut Option<Answer<Asr>>) -> Option<Transcript> {
    Some(transcript(partial.as_mut()?.await.ok()?))
}

fn transcribe_ask(config: &SessionConfig, audio: Pcm) -> TranscribeAsk {
    TranscribeAsk {
        words: config.words,
        translate: config.translate,
        prompt: config.prompt.clone(),
        ..TranscribeAsk::of(audio, &config.language)
    }
}

async fn transcribe(queue: Queue, ask: TranscribeAsk, mut segment: TextSegment) -> (TextSegment, Option<Error>) {
    let asked = async { queue.submit_patiently(Priority::Live, Ask::<Asr>::new(ask)).await?.await };
    let late = |_| {
        Err(Error::new(Kind::Timeout, "a segment has waited too long for its text").hint(
            "the box has more to transcribe than it can: a smaller model, or fewer sessions (audio.max_sessions)",
        ))
    };
    match timeout(SEGMENT_LIMIT, asked).await.unwrap_or_else(late) {
        Ok(pieces) => {
            let transcript = transcript(pieces);
            let shift = |secs: f64| ((segment.start + secs) * 1000.0).round() / 1000.0;
            segment.words = transcript.words;
            for word in &mut segment.words {
                (word.start, word.end) = (shift(word.start), shift(word.end));
            }
            segment.text = transcript.text;
            segment.language = transcript.language;
            segment.probability = transcript.probability;
            (segment, None)
        }
        Err(error) => (segment, Some(error)),
    }
}
