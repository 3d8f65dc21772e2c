//! Window after window: each begins where the model says that it has understood the one before.
//!
//! Follows the reference closely, so that results can be laid beside it; therefore the language is what the first window
//! sounds like, speech or not. The recording is read twice: once to know its length and its loudest moment, once to
//! transcribe it.

use super::{Part, Request, expect_answers, language::Language, whole_ms};
use crate::{
    base::{Error, Result},
    engines::asr::{
        PieceText, SegmentText, TranscribeAsk,
        guards::{Guard, Guards, Silence},
        words,
    },
    flow::{SAMPLE_RATE_HZ, audio::samples_to_secs},
    segment::Span,
};

/// 10 ms, the step in which windows move.
const FRAME: u64 = SAMPLE_RATE_HZ as u64 / 100;
const WINDOW: u64 = 30 * SAMPLE_RATE_HZ as u64;
/// The first and the last frame of a window look this far over its edges.
const EDGE: u64 = 200;
/// A window whose words end sooner than this goes on where its segments say.
const LEAST_ADVANCE_SECS: f64 = 1.0;
/// Text found at a higher temperature than this is too wild to lead the next window.
const RESET_ABOVE: f32 = 0.5;

/// What the first reading of a recording found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Recording {
    pub samples: u64,
    /// Its greatest log-mel value.
    pub loudest: f32,
    /// A recording that is shorter than a window is followed by silence, and asked for to the end of the window. So does
    /// transformers; people are better served without: a model has nothing to say of silence, and says it.
    pub filled_up: bool,
}

pub struct Sequential {
    ask: TranscribeAsk,
    recording: Recording,
    /// How much of the text before each window sees, in tokens.
    context: usize,
    guards: Guards,
    guard: Guard,
    language: Language,
    /// Where the next window begins, in samples; always a whole frame.
    seek: u64,
    asked: bool,
    previous: Vec<u32>,
    last_speech_secs: f64,
    without_words: bool,
}

impl Sequential {
    /// `ask` says what every window is asked; its pieces are not looked at. `context` says how many tokens of the text
    /// before each window sees (what the model takes, or none).
    pub fn new(ask: TranscribeAsk, recording: Recording, context: usize, guards: Guards) -> Sequential {
        let samples = if recording.filled_up { recording.samples.max(WINDOW) } else { recording.samples };
        Sequential {
            language: Language::new(&ask.language, 1),
            ask: TranscribeAsk { pieces: Vec::new(), ..ask },
            // What is left behind the last whole frame has no features.
            recording: Recording { samples: samples / FRAME * FRAME, ..recording },
            context,
            guards,
            guard: Guard::new(guards),
            seek: 0,
            asked: false,
            previous: Vec::new(),
            last_speech_secs: 0.0,
            without_words: false,
        }
    }

    /// What to ask next; None when the recording is done, or while an answer is awaited.
    pub fn request(&mut self) -> Option<Request> {
        if self.asked || self.seek >= self.recording.samples {
            return None;
        }
        self.asked = true;
        let lead = self.seek.min(EDGE);
        let part = Part {
            // The recording may end within the edge, and within the last frame: `cut` gives what there is.
            spans: vec![Span { start: self.seek - lead, end: self.window_end() + EDGE }],
            lead: lead as usize,
            // A short recording is a window by itself, and silence follows it.
            loudest: (self.recording.filled_up || self.recording.samples > WINDOW).then_some(self.recording.loudest),
            filled_to: if self.recording.filled_up { (lead + self.window_end() - self.seek) as usize } else { 0 },
            previous: self.previous.clone(),
        };
        Some(Request {
            parts: vec![part],
            ask: TranscribeAsk { language: self.language.ask().to_owned(), ..self.ask.clone() },
        })
    }

    /// The segments of the window that was asked for last, with times of the recording.
    pub fn accept(&mut self, answers: Vec<PieceText>) -> Result<Vec<SegmentText>> {
        expect_answers(1, &answers)?;
        if !std::mem::take(&mut self.asked) {
            return Err(Error::internal("an answer came that was not asked for"));
        }
        let Some(text) = answers.into_iter().next() else { return Ok(Vec::new()) };
        self.language.hear(&text);
        self.without_words |= text.without_words;

        let offset = samples_to_secs(self.seek);
        let mut next = self.next_seek(text.advance_secs);
        let goes_on = next < self.window_end();
        let mut segments = text.segments;
        words::tidy(&mut segments, self.last_speech_secs - offset);
        let mut segments: Vec<SegmentText> = segments.into_iter().map(|it| moved(it, offset)).collect();
        let silence = Silence {
            window_start: offset,
            window_end: samples_to_secs(self.window_end()),
            full_window_end: samples_to_secs(self.seek + WINDOW),
            recording_end: samples_to_secs(self.recording.samples),
            last_speech: self.last_speech_secs,
        };
        let skip = self.guards.silence_secs.and_then(|limit| silence.cut(&mut segments, limit));
        if let Some(secs) = skip {
            next = self.next_seek(secs - offset);
        }
        if let Some(word) = segments.iter().flat_map(|segment| &segment.words).last() {
            self.last_speech_secs = word.end;
            // A word's end is nearer the truth than a segment's, and what lies between may be speech.
            if goes_on && skip.is_none() && word.end - offset >= LEAST_ADVANCE_SECS {
                next = self.next_seek(word.end - offset);
            }
        }
        let hot = segments.iter().any(|segment| segment.temperature > RESET_ABOVE);
        let silent = segments.is_empty();

        let language = self.language.ask().to_owned();
        let mut kept = Vec::new();
        let mut context = Vec::new();
        let mut looped = false;
        let count = segments.len();
        for (number, segment) in segments.into_iter().enumerate() {
            if segment.start == segment.end || segment.text.trim().is_empty() {
                continue;
            }
            let passed = self.guard.pass(segment, &language);
            looped |= passed.looped;
            let Some(segment) = passed.segment else { continue };
            // The last segment of a text that goes on carries the time that opens what follows, which is not said yet.
            let opens = goes_on && number + 1 == count && segment.tokens.len() > 2;
            context.extend(&segment.tokens[..segment.tokens.len() - usize::from(opens)]);
            kept.push(segment);
        }
        // What fills the next window with the same is no context, nor is what was found by chance.
        if looped || hot || (self.context == 0 && !silent) {
            self.previous.clear();
            self.ask.prompt = None;
        }
        if self.context > 0 && !looped && !hot {
            self.previous.append(&mut context);
            self.previous.drain(..self.previous.len().saturating_sub(self.context));
        }
        self.seek = next;
        Ok(kept)
    }

    /// No sample before this one will be asked for.
    pub fn needed_from(&self) -> u64 {
        self.seek.saturating_sub(EDGE)
    }

    /// How much of the recording is done, of 1.
    pub fn done(&self) -> f64 {
        if self.recording.samples == 0 { 1.0 } else { self.seek as f64 / self.recording.samples as f64 }
    }

    /// The language, as far as it is known, and how sure of it the model was.
    pub fn language(&self) -> Option<(&str, f32)> {
        self.language.settled().map(|language| (language, self.language.probability()))
    }

    /// Words were asked for, and this model cannot tell their times.
    pub fn without_words(&self) -> bool {
        self.without_words
    }

    fn window_end(&self) -> u64 {
        (self.seek + WINDOW).min(self.recording.samples)
    }

    /// Goes on by at least a frame: a model that says "here" would be asked for ever.
    fn next_seek(&self, advance_secs: f64) -> u64 {
        let frames = (advance_secs * 100.0).round();
        if frames >= 1.0 {
            self.seek.saturating_add((frames as u64).saturating_mul(FRAME)).min(self.recording.samples)
        } else {
            self.window_end()
        }
    }
}

fn moved(mut segment: SegmentText, offset: f64) -> SegmentText {
    segment.start = whole_ms(segment.start + offset);
    segment.end = whole_ms(segment.end + offset);
    for word in &mut segment.words {
        word.start = whole_ms(word.start + offset);
        word.end = whole_ms(word.end + offset);
    }
    segment
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: u64 = SAMPLE_RATE_HZ as u64;
    const CONTEXT: usize = 223;

    fn segment(start: f64, end: f64, text: &str) -> SegmentText {
        SegmentText { start, end, text: text.to_owned(), tokens: vec![start as u32 + 1], ..SegmentText::default() }
    }

    fn answer(advance_secs: f64, segments: Vec<SegmentText>) -> Vec<PieceText> {
        let language_probabilities = vec![("es".to_owned(), 0.9)];
        vec![PieceText {
            language: "es".into(),
            language_probabilities,
            segments,
            advance_secs,
            ..PieceText::default()
        }]
    }

    fn machine(samples: u64, condition: bool) -> Sequential {
        let ask = TranscribeAsk { prompt: Some("Ana".into()), ..TranscribeAsk::of(Vec::new().into(), "auto") };
        let context = if condition { CONTEXT } else { 0 };
        Sequential::new(ask, Recording { samples, loudest: 1.5, filled_up: false }, context, Guards::NONE)
    }

    #[test]
    fn windows_follow_the_models_word_and_times_are_the_recordings() {
        let mut machine = machine(70 * RATE + 100, true);
        let first = machine.request().unwrap();
        assert_eq!((first.parts[0].lead, first.until()), (0, 30 * RATE + EDGE));
        assert_eq!((&*first.ask.language, first.parts[0].loudest), ("auto", Some(1.5)));
        assert_eq!(machine.request(), None, "one window at a time");
        let segments = machine.accept(answer(20.72, vec![segment(0.56, 3.76, "a"), segment(9.7, 20.72, "b")])).unwrap();
        assert_eq!(segments.iter().map(|it| (it.start, it.end)).collect::<Vec<_>>(), [(0.56, 3.76), (9.7, 20.72)]);

        let second = machine.request().unwrap();
        let seek = 2072 * FRAME;
        assert_eq!(second.parts[0].spans, [Span { start: seek - EDGE, end: seek + WINDOW + EDGE }]);
        assert_eq!((second.parts[0].lead, &second.parts[0].previous), (200, &vec![1, 10]));
        assert_eq!((&*second.ask.language, second.ask.prompt.as_deref()), ("es", Some("Ana")));
        assert_eq!(machine.needed_from(), seek - EDGE);
        let segments = machine.accept(answer(30.0, vec![segment(1.0, 2.0, "c")])).unwrap();
        assert_eq!((segments[0].start, segments[0].end), (21.72, 22.72));

        let last = machine.request().unwrap();
        assert_eq!(last.until(), 70 * RATE + EDGE);
        machine.accept(answer(30.0, Vec::new())).unwrap();
        assert_eq!((machine.request(), machine.done(), machine.language()), (None, 1.0, Some(("es", 0.9))));
    }

    #[test]
    fn text_before_is_context_until_it_is_doubted() {
        let mut machine = machine(300 * RATE, true);
        let mut ask = |answers| {
            let request = machine.request().unwrap();
            machine.accept(answers).unwrap();
            (request.parts[0].previous.clone(), request.ask.prompt)
        };
        let prompt = Some("Ana".to_owned());
        assert_eq!(ask(answer(10.0, vec![segment(1.0, 2.0, "a")])), (vec![], prompt.clone()));
        assert_eq!(ask(answer(10.0, vec![segment(2.0, 3.0, " "), segment(3.0, 3.0, "b")])), (vec![2], prompt.clone()));
        assert_eq!(ask(answer(30.0, vec![])), (vec![2], prompt.clone()), "silence changes nothing");
        let hot = SegmentText { temperature: 0.6, ..segment(4.0, 5.0, "c") };
        assert_eq!(ask(answer(10.0, vec![hot])), (vec![2], prompt));
        assert_eq!(ask(answer(10.0, vec![segment(5.0, 6.0, "d")])), (vec![], None));
        assert_eq!(ask(answer(10.0, vec![])), (vec![6], None));
    }

    #[test]
    fn without_conditioning_the_prompt_leads_the_first_window_alone() {
        let mut machine = machine(300 * RATE, false);
        assert_eq!(machine.request().unwrap().ask.prompt.as_deref(), Some("Ana"));
        machine.accept(answer(10.0, vec![segment(1.0, 2.0, "a")])).unwrap();
        let second = machine.request().unwrap();
        assert_eq!((second.ask.prompt, second.parts[0].previous.len()), (None, 0));
    }

    #[test]
    fn the_time_that_opens_what_follows_is_no_context_yet() {
        let with = |tokens: &[u32]| vec![SegmentText { tokens: tokens.to_vec(), ..segment(0.0, 1.0, "a") }];
        let mut machine = machine(300 * RATE, true);
        let mut previous = |answers| {
            let request = machine.request().unwrap();
            machine.accept(answers).unwrap();
            request.parts[0].previous.clone()
        };
        previous(answer(10.0, with(&[90, 1, 95, 96])));
        assert_eq!(previous(answer(30.0, with(&[91, 2, 92]))), [90, 1, 95]);
        assert_eq!(previous(answer(30.0, vec![])), [90, 1, 95, 91, 2, 92]);
    }

    #[test]
    fn a_short_recording_is_a_window_by_itself_and_filled_up_only_where_asked() {
        let mut short = machine(5 * RATE, true);
        let request = short.request().unwrap();
        assert_eq!((request.parts[0].loudest, request.parts[0].filled_to), (None, 0));
        short.accept(answer(5.0, vec![])).unwrap();
        assert_eq!(short.request(), None);

        let recording = Recording { samples: 5 * RATE, loudest: 1.5, filled_up: true };
        let mut filled = Sequential::new(TranscribeAsk::of(Vec::new().into(), "es"), recording, 0, Guards::NONE);
        let ask = filled.request().unwrap().ask(|from, to| vec![0.5; (to.min(5 * RATE) - from) as usize].into());
        assert_eq!((ask.pieces[0].audio.len() as u64, ask.pieces[0].audio[80_000]), (WINDOW, 0.0));
        filled.accept(answer(10.0, vec![])).unwrap();
        assert_eq!(filled.request().unwrap().parts[0].filled_to as u64, EDGE + 20 * RATE);
    }

    #[test]
    fn context_has_a_limit() {
        let mut machine = machine(3000 * RATE, true);
        for _ in 0..5 {
            machine.request().unwrap();
            let long = SegmentText { tokens: (0..200).collect(), ..segment(0.0, 1.0, "a") };
            machine.accept(answer(30.0, vec![long])).unwrap();
        }
        let previous = machine.request().unwrap().parts[0].previous.clone();
        assert_eq!((previous.len(), previous.last()), (CONTEXT, Some(&199)));
    }

    #[test]
    fn a_model_that_never_goes_on_is_led_on() {
        for advance in [0.0, -3.0, f64::NAN, 0.001, f64::INFINITY] {
            let mut machine = machine(100 * RATE, true);
            let mut windows = 0;
            while machine.request().is_some() {
                machine.accept(answer(advance, vec![segment(0.0, 1.0, "a")])).unwrap();
                windows += 1;
                assert!(windows <= 4, "{advance}");
            }
        }
    }

    #[test]
    fn a_recording_of_nothing_is_done_and_uncalled_answers_are_refused() {
        let mut nothing = machine(100, true);
        assert_eq!((nothing.request(), nothing.done()), (None, 1.0));
        assert!(nothing.accept(answer(1.0, vec![])).is_err());
        let mut machine = machine(RATE, true);
        machine.request().unwrap();
        assert!(machine.accept(vec![]).is_err());
    }
}
