//! One take: from the first chunk to the final result. Owns what is held of its audio and what is being worked on;
//! decides nothing about the session around it.

use std::time::Duration;

use futures_util::{future::BoxFuture, stream::FuturesOrdered};
use tokio::time::{Instant, timeout};

use crate::{
    base::{Error, Kind},
    engines::{Asr, TranscribeAsk, Voice, VoiceStream, transcript},
    flow::{Pcm, Priority, SAMPLE_RATE_HZ, SessionConfig, TextSegment, Transcript, audio::samples_to_secs},
    jobs::{Answer, Ask, Queue},
    media::AudioDecoder,
    segment::{Rules, Span, SpeechEvent, Tape},
    sources::ears::Ears,
};

/// Audio that may be handed to the voice detector ahead of its answers: 4 s. Beyond it the client is held back.
const MAX_BACKLOG: usize = 4 * SAMPLE_RATE_HZ as usize;
/// Segments of one session that may wait for their text.
const MAX_PENDING: usize = 8;
/// Less audio than this has no text worth showing.
const MIN_PARTIAL: u64 = SAMPLE_RATE_HZ as u64 * 3 / 10;
/// The decoder's rest and the last frames come within this, or the take is given up.
pub(super) const DRAIN_LIMIT: Duration = Duration::from_secs(15);

/// From being cut to having its text, the queue included.
const SEGMENT_LIMIT: Duration = Duration::from_secs(600);

/// What a take reports to its session.
pub(super) enum News {
    Speech {
        speaking: bool,
        at: f64,
    },
    Partial {
        text: String,
        segment: u64,
        start: f64,
    },
    /// A segment is final; with the error if there is no text because of one.
    Segment(TextSegment, Option<Error>),
}

pub(super) struct Take {
    pub(super) decoder: AudioDecoder,
    pub(super) ears: Ears,
    stream: VoiceStream,
    rules: Rules,
    tape: Option<Tape>,
    samples: u64,
    /// Samples of the session before this take: times on the wire count from the session's start.
    offset: u64,
    next_segment: u64,
    /// Segments whose text is being made, in order.
    pub(super) finals: FuturesOrdered<BoxFuture<'static, (TextSegment, Option<Error>)>>,
    pub(super) partial: Option<Answer<Asr>>,
    partial_due: Option<Instant>,
    partial_interval: Duration,
    speaking_since: Option<u64>,
    /// Nothing more can be decoded.
    pub(super) broken: bool,
    pub(super) segments: Vec<TextSegment>,
}

/// What a take is made of.
pub(super) struct TakeParts<'a> {
    pub(super) decoder: AudioDecoder,
    pub(super) voice: &'a Voice,
    pub(super) rules: Rules,
    pub(super) transcribes: bool,
    pub(super) partial_interval: Option<Duration>,
    pub(super) offset: u64,
    pub(super) next_segment: u64,
}

impl Take {
    pub(super) fn new(parts: TakeParts<'_>) -> Take {
        let ears = Ears::new(parts.rules);
        Take {
            decoder: parts.decoder,
            stream: parts.voice.open(ears.sink()),
            ears,
            rules: parts.rules,
            // Without a transcriber nobody will ask for the audio again.
            tape: parts.transcribes.then(Tape::default),
            samples: 0,
            offset: parts.offset,
            next_segment: parts.next_segment,
            finals: FuturesOrdered::new(),
            partial: None,
            partial_due: None,
            partial_interval: parts.partial_interval.unwrap_or(Duration::MAX),
            speaking_since: None,
            broken: false,
            segments: Vec::new(),
        }
    }

    pub(super) fn samples(&self) -> u64 {
        self.samples
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

    pub(super) fn listen(&mut self, samples: &[f32]) {
        self.samples += samples.len() as u64;
        if let Some(tape) = &mut self.tape {
            tape.push(samples);
        }
        self.stream.push(samples);
    }

    /// All samples are in: hear the rest.
    pub(super) fn end(&mut self) {
        self.ears.set_total(self.samples);
        self.stream.end();
    }

    /// What has been heard since the last call, taken to its consequences.
    pub(super) fn hear(&mut self, queue: &Queue, config: &SessionConfig) -> Vec<News> {
        let mut news = Vec::new();
        // Asked before the events are taken: a segment that is cut meanwhile still needs its samples.
        let needed_from = self.ears.needed_from(&self.rules);
        while let Some(event) = self.ears.next() {
            match event {
                SpeechEvent::Start { at } => {
                    self.speaking_since = Some(at);
                    self.partial_due = Instant::now().checked_add(self.partial_interval);
                    news.push(News::Speech { speaking: true, at: self.secs(at) });
                }
                SpeechEvent::End { at } => {
                    self.speaking_since = None;
                    self.partial_due = None;
                    self.partial = None;
                    news.push(News::Speech { speaking: false, at: self.secs(at) });
                }
                SpeechEvent::Segment(span) => news.extend(self.segment(span, queue, config)),
            }
        }
        if let Some(tape) = &mut self.tape {
            tape.forget_before(needed_from);
        }
        news
    }

    /// Asks for the segment's text; without a transcriber its times alone are final at once.
    fn segment(&mut self, span: Span, queue: &Queue, config: &SessionConfig) -> Option<News> {
        let segment = TextSegment {
            id: self.next_segment,
            start: self.secs(span.start),
            end: self.secs(span.end),
            text: String::new(),
            language: config.language.clone(),
            probability: 0.0,
            speaker: None,
            words: Vec::new(),
        };
        self.next_segment += 1;
        // What comes after a cut in the middle of long speech is a new segment with partials of its own.
        self.partial = None;
        self.speaking_since = self.speaking_since.map(|_| span.end);
        let Some(tape) = &self.tape else { return Some(News::Segment(segment, None)) };
        let ask = transcribe_ask(config, tape.cut(span.start, span.end));
        self.finals.push_back(Box::pin(transcribe(queue.clone(), ask, segment)));
        None
    }

    /// What is to be said of speech that will not be heard to its end.
    pub(super) fn fall_silent(&mut self) -> Option<News> {
        self.speaking_since.take()?;
        Some(News::Speech { speaking: false, at: self.secs(self.samples) })
    }

    pub(super) fn partial_due(&self) -> Option<Instant> {
        if self.partial.is_some() { None } else { self.partial_due }
    }

    /// Asks for the text so far. When the queue is full the partial is left out: a later one says more anyway.
    pub(super) fn ask_partial(&mut self, queue: &Queue, config: &SessionConfig) {
        self.partial_due = Instant::now().checked_add(self.partial_interval);
        let (Some(since), Some(tape)) = (self.speaking_since, &self.tape) else { return };
        if self.samples.saturating_sub(since) < MIN_PARTIAL {
            return;
        }
        let ask = Ask::<Asr>::new(transcribe_ask(config, tape.cut(since, self.samples)));
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
