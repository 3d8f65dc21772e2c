//! Windows of speech: cut where nobody speaks, asked for several at a time, each understood by itself.
//!
//! What is no speech is never asked for: that is the first guard against text that nobody said, and what makes hours of
//! silence cheap. Takes the recording's voice probabilities as they come, in one reading.

use std::collections::VecDeque;

use super::{Part, Request, expect_answers, language::Language, whole_ms};
use crate::{
    base::{Error, Result},
    engines::asr::{
        PieceText, SegmentText, TranscribeAsk,
        guards::{Guard, Guards},
        words,
    },
    flow::audio::samples_to_secs,
    segment::{Voiced, Window, Windows},
};

/// So many windows may be unsure of their language before the most votes decide.
const LANGUAGE_WINDOWS: usize = 4;
/// Of a window that the model left, a shorter rest than this is not worth an ask.
const LEAST_REST_SECS: f64 = 1.0;

pub struct BySpeech {
    ask: TranscribeAsk,
    windows: Windows,
    /// Windows to an ask.
    batch: usize,
    guard: Guard,
    language: Language,
    /// In order: those with a text first, then those that are asked for, then those that wait.
    slots: VecDeque<Slot>,
    asked: usize,
    finished: bool,
    without_words: bool,
    /// Where the last window that was understood ended.
    done: u64,
}

struct Slot {
    window: Window,
    text: Option<PieceText>,
}

impl BySpeech {
    /// `ask` says what every window is asked; its pieces are not looked at. `batch` windows are asked for together.
    pub fn new(ask: TranscribeAsk, windows: Windows, batch: usize, guards: Guards) -> BySpeech {
        BySpeech {
            language: Language::new(&ask.language, LANGUAGE_WINDOWS),
            ask: TranscribeAsk { pieces: Vec::new(), ..ask },
            windows,
            batch: batch.max(1),
            guard: Guard::new(guards),
            slots: VecDeque::new(),
            asked: 0,
            finished: false,
            without_words: false,
            done: 0,
        }
    }

    /// The next frame.
    pub fn hear(&mut self, voiced: Voiced) {
        self.windows.push(voiced);
        self.gather();
    }

    /// The recording is over after `samples`.
    pub fn finish(&mut self, samples: u64) {
        self.windows.finish(samples);
        self.finished = true;
        self.gather();
    }

    /// What to ask next; None while speech is missing for a full batch, or while an answer is awaited. After
    /// [`BySpeech::finish`], None means that all is done.
    pub fn request(&mut self) -> Option<Request> {
        let waiting = self.slots.iter().filter(|slot| slot.text.is_none()).count();
        // One window is enough to find the language by, and each that is understood in a wrong one is lost work.
        let batch = if self.language.settled().is_some() { self.batch } else { 1 };
        if self.asked > 0 || waiting == 0 || (waiting < batch && !self.finished) {
            return None;
        }
        let parts: Vec<Part> = self
            .slots
            .iter()
            .filter(|slot| slot.text.is_none())
            .take(batch)
            .map(|slot| Part {
                spans: slot.window.spans().to_vec(),
                lead: 0,
                filled_to: 0,
                loudest: None,
                previous: Vec::new(),
            })
            .collect();
        self.asked = parts.len();
        Some(Request { parts, ask: TranscribeAsk { language: self.language.ask().to_owned(), ..self.ask.clone() } })
    }

    /// The segments that are known by now, with times of the recording.
    pub fn accept(&mut self, answers: Vec<PieceText>) -> Result<Vec<SegmentText>> {
        let asked = std::mem::take(&mut self.asked);
        if asked == 0 {
            return Err(Error::internal("an answer came that was not asked for"));
        }
        expect_answers(asked, &answers)?;
        let was_settled = self.language.settled().is_some();
        for (slot, text) in self.slots.iter_mut().filter(|slot| slot.text.is_none()).zip(answers) {
            self.language.hear(&text);
            self.without_words |= text.without_words;
            slot.text = Some(text);
        }
        if self.finished && self.slots.iter().all(|slot| slot.text.is_some()) {
            self.language.settle();
        }
        let Some(language) = self.language.settled().map(str::to_owned) else { return Ok(Vec::new()) };
        // What was understood in another language before this one was found is asked for again.
        if !was_settled {
            for slot in &mut self.slots {
                slot.text.take_if(|text| text.language != language);
            }
        }
        let mut segments = Vec::new();
        while let Some(Slot { window, text }) = self.slots.pop_front_if(|slot| slot.text.is_some()) {
            let Some(mut text) = text else { continue };
            words::tidy(&mut text.segments, 0.0);
            self.done = window.end();
            if let Some(rest) = rest(&window, &text) {
                self.slots.push_front(Slot { window: rest, text: None });
            }
            let heard = text.segments.into_iter().filter_map(|segment| in_recording(segment, &window));
            segments.extend(heard.filter_map(|segment| self.guard.pass(segment, &language).segment));
        }
        Ok(segments)
    }

    /// No sample before this one will be asked for.
    pub fn needed_from(&self) -> u64 {
        let asked = self.slots.front().map(|slot| slot.window.start());
        asked.unwrap_or(u64::MAX).min(self.windows.needed_from())
    }

    /// The recording is understood up to this sample, silence after it left aside.
    pub fn done(&self) -> u64 {
        self.done
    }

    /// The language, as far as it is known, and how sure of it the model was.
    pub fn language(&self) -> Option<(&str, f32)> {
        self.language.settled().map(|language| (language, self.language.probability()))
    }

    /// Words were asked for, and this model cannot tell their times.
    pub fn without_words(&self) -> bool {
        self.without_words
    }

    fn gather(&mut self) {
        while let Some(window) = self.windows.take() {
            self.slots.push_back(Slot { window, text: None });
        }
    }
}

/// What the model left of a window: it stopped at a place from which it wants to be asked again.
fn rest(window: &Window, text: &PieceText) -> Option<Window> {
    let goes_on = text.advance_secs >= LEAST_REST_SECS
        && text.advance_secs + LEAST_REST_SECS <= samples_to_secs(window.len())
        && !text.segments.is_empty();
    goes_on.then(|| window.after(text.advance_secs)).flatten()
}

/// None for text that begins behind the audio, in what fills the window up.
fn in_recording(mut segment: SegmentText, window: &Window) -> Option<SegmentText> {
    let length = samples_to_secs(window.len());
    if segment.start >= length || segment.text.trim().is_empty() {
        return None;
    }
    for word in &mut segment.words {
        let (start, end) = window.word_secs(word.start, word.end);
        (word.start, word.end) = (whole_ms(start), whole_ms(end));
    }
    let (start, end) = match (segment.words.first(), segment.words.last()) {
        (Some(first), Some(last)) => (first.start, last.end),
        _ => window.segment_secs(segment.start, segment.end.min(length)),
    };
    (segment.start, segment.end) = (whole_ms(start), whole_ms(end));
    Some(segment)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        flow::{SAMPLE_RATE_HZ, Word},
        segment::speech::FRAME,
    };

    const RATE: u64 = SAMPLE_RATE_HZ as u64;

    fn machine(language: &str, batch: usize) -> BySpeech {
        BySpeech::new(TranscribeAsk::of(Vec::new().into(), language), Windows::default(), batch, Guards::NONE)
    }

    fn hear(machine: &mut BySpeech, secs: f64, probability: f32) {
        (0..(secs * RATE as f64) as u64 / FRAME).for_each(|_| machine.hear(Voiced::faint(probability)));
    }

    /// Twenty seconds of speech and some silence, as often as asked.
    fn hear_turns(machine: &mut BySpeech, turns: usize) {
        for _ in 0..turns {
            hear(machine, 20.0, 0.9);
            hear(machine, 5.0, 0.0);
        }
    }

    fn text(language: &str, probability: f32, start: f64, end: f64, text: &str) -> PieceText {
        let segment = SegmentText { start, end, text: text.to_owned(), ..SegmentText::default() };
        PieceText {
            language: language.to_owned(),
            language_probabilities: vec![(language.to_owned(), probability)],
            segments: vec![segment],
            advance_secs: 30.0,
            ..PieceText::default()
        }
    }

    fn texts(segments: &[SegmentText]) -> Vec<&str> {
        segments.iter().map(|segment| &*segment.text).collect()
    }

    #[test]
    fn windows_are_asked_for_in_batches_and_mapped_back() {
        let mut machine = machine("es", 2);
        hear_turns(&mut machine, 1);
        assert_eq!(machine.request(), None, "half a batch waits for more");
        hear_turns(&mut machine, 2);
        let request = machine.request().unwrap();
        assert_eq!((request.parts.len(), &*request.ask.language), (2, "es"));
        assert_eq!(machine.request(), None, "one ask at a time");
        let second = request.parts[1].spans[0].start;
        assert!(machine.needed_from() <= request.parts[0].spans[0].start);
        let answers = vec![text("es", 1.0, 0.0, 2.0, "uno"), text("es", 1.0, 1.0, 3.0, "dos")];
        let segments = machine.accept(answers).unwrap();
        assert_eq!(texts(&segments), ["uno", "dos"]);
        assert!((segments[1].start - (samples_to_secs(second) + 1.0)).abs() < 1e-3);
        assert!(machine.needed_from() > second);

        machine.finish(75 * RATE);
        assert_eq!(machine.request().unwrap().parts.len(), 1);
        machine.accept(vec![text("es", 1.0, 0.0, 2.0, "tres")]).unwrap();
        assert_eq!(machine.request(), None);
        assert!(machine.done() > 70 * RATE);
    }

    #[test]
    fn silence_is_never_asked_for() {
        let mut machine = machine("auto", 4);
        hear(&mut machine, 600.0, 0.02);
        assert!(machine.needed_from() > 599 * RATE);
        machine.finish(600 * RATE);
        assert_eq!((machine.request(), machine.language()), (None, None));
    }

    #[test]
    fn the_language_is_found_first_and_a_window_in_another_is_asked_for_again() {
        let mut machine = machine("auto", 3);
        hear_turns(&mut machine, 4);
        machine.finish(100 * RATE);
        let first = machine.request().unwrap();
        assert_eq!((first.parts.len(), &*first.ask.language), (1, "auto"));
        assert!(machine.accept(vec![text("cy", 0.3, 0.0, 2.0, "un")]).unwrap().is_empty());
        assert_eq!(machine.request().unwrap().ask.language, "auto");
        let segments = machine.accept(vec![text("es", 0.8, 0.0, 2.0, "dos")]).unwrap();
        assert!(segments.is_empty(), "the first window comes first");
        let again = machine.request().unwrap();
        assert_eq!((again.parts.len(), &*again.ask.language), (3, "es"));
        assert_eq!(again.parts[0], first.parts[0]);
        let answers = ["uno", "tres", "cuatro"].map(|it| text("es", 1.0, 0.0, 2.0, it)).to_vec();
        assert_eq!(texts(&machine.accept(answers).unwrap()), ["uno", "dos", "tres", "cuatro"]);
        assert_eq!((machine.request(), machine.language()), (None, Some(("es", 0.8))));
    }

    #[test]
    fn few_unsure_windows_settle_at_the_end() {
        let mut machine = machine("auto", 3);
        hear_turns(&mut machine, 1);
        machine.finish(25 * RATE);
        machine.request().unwrap();
        assert_eq!(texts(&machine.accept(vec![text("es", 0.2, 0.0, 2.0, "uno")]).unwrap()), ["uno"]);
        assert_eq!(machine.language(), Some(("es", 0.2)));
    }

    #[test]
    fn what_the_model_left_of_a_window_is_asked_for() {
        let mut machine = machine("es", 1);
        hear_turns(&mut machine, 1);
        machine.finish(25 * RATE);
        let whole = machine.request().unwrap();
        let half = PieceText { advance_secs: 8.0, ..text("es", 1.0, 0.0, 8.0, "uno") };
        assert_eq!(texts(&machine.accept(vec![half]).unwrap()), ["uno"]);
        let rest = machine.request().unwrap();
        assert_eq!(rest.parts[0].spans[0].start, whole.parts[0].spans[0].start + 8 * RATE);
        let segments = machine.accept(vec![text("es", 1.0, 0.0, 2.0, "dos")]).unwrap();
        assert_eq!((segments[0].start, segments[0].end), (8.0, 10.0));
        assert_eq!(machine.request(), None);
    }

    #[test]
    fn a_model_that_never_goes_on_is_not_asked_for_ever() {
        for advance_secs in [0.0, 0.02, -1.0, f64::NAN, 1e9] {
            let mut machine = machine("es", 1);
            hear_turns(&mut machine, 1);
            machine.finish(25 * RATE);
            machine.request().unwrap();
            machine.accept(vec![PieceText { advance_secs, ..text("es", 1.0, 0.0, 1.0, "uno") }]).unwrap();
            assert_eq!(machine.request(), None, "{advance_secs}");
        }
    }

    #[test]
    fn words_carry_their_segment_and_text_behind_the_audio_is_dropped() {
        let mut machine = machine("es", 1);
        hear(&mut machine, 2.0, 0.9);
        hear(&mut machine, 10.0, 0.0);
        hear(&mut machine, 2.0, 0.9);
        machine.finish(14 * RATE);
        let request = machine.request().unwrap();
        let [first, second] = &request.parts[0].spans[..] else { panic!("{request:?}") };
        let border = samples_to_secs(first.len());
        let mut answer = text("es", 1.0, 0.0, border + 1.0, "uno dos");
        let word = |text: &str, start: f64, end: f64| Word { start, end, text: text.to_owned(), probability: 1.0 };
        answer.segments[0].words = vec![word("uno", 0.5, 1.0), word("dos", border - 0.1, border + 0.5)];
        answer.segments.extend(text("es", 1.0, 29.0, 30.0, "gracias").segments);
        let segments = machine.accept(vec![answer]).unwrap();
        assert_eq!(texts(&segments), ["uno dos"]);
        let start = samples_to_secs(second.start);
        assert_eq!((segments[0].words[1].start, segments[0].start), (start, 0.5));
        assert!((segments[0].end - (start + 0.5)).abs() < 2e-3, "{segments:?}");
    }

    #[test]
    fn answers_that_were_not_asked_for_are_refused() {
        let mut machine = machine("es", 2);
        assert!(machine.accept(vec![]).is_err());
        hear_turns(&mut machine, 2);
        machine.finish(50 * RATE);
        assert_eq!(machine.request().unwrap().parts.len(), 2);
        assert!(machine.accept(vec![PieceText::default()]).is_err());
    }
}
