//! From voice probabilities to windows that a transcriber takes whole: speech of up to half a minute, cut where nobody
//! speaks, the silence between left out. Works while the recording comes in and forgets what it has given away.

use std::collections::VecDeque;

use super::{
    speech::{Offline, Rules, Span},
    voiced::{Certainty, Voiced, are_near, is_speech},
};
use crate::flow::{SAMPLE_RATE_HZ, audio::samples_to_secs};

/// What a transcriber takes at most.
const LONGEST_SECS: f64 = 30.0;

/// A window waits this long at most for more speech, so that hours of silence after one word hold no audio.
const PATIENCE: u64 = 120 * SAMPLE_RATE_HZ as u64;

/// Spans of speech that follow each other, laid end to end. Never empty.
#[derive(Debug, Clone, PartialEq)]
pub struct Window {
    spans: Vec<Span>,
}

impl Window {
    pub fn spans(&self) -> &[Span] {
        &self.spans
    }

    pub fn start(&self) -> u64 {
        self.spans[0].start
    }

    pub fn end(&self) -> u64 {
        self.spans[self.spans.len() - 1].end
    }

    /// Samples of speech.
    pub fn len(&self) -> u64 {
        self.spans.iter().map(Span::len).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What is left behind that second of the window.
    pub fn after(&self, secs: f64) -> Option<Window> {
        let mut skip = sample_of(secs);
        let mut spans = Vec::new();
        for span in &self.spans {
            let skipped = skip.min(span.len());
            skip -= skipped;
            if skipped < span.len() {
                spans.push(Span { start: span.start + skipped, end: span.end });
            }
        }
        (!spans.is_empty()).then_some(Window { spans })
    }

    /// Which span holds that second of the window. The second at which two meet belongs to the later one, unless
    /// something `ends` there.
    fn span_at(&self, secs: f64, ends: bool) -> usize {
        let sample = sample_of(secs);
        let mut end = 0;
        let found = self.spans.iter().position(|span| {
            end += span.len();
            sample < end || (ends && sample == end)
        });
        found.unwrap_or(self.spans.len() - 1)
    }

    /// The second of the recording for a second of the window, as it lies in that span.
    fn secs_in(&self, span: usize, secs: f64) -> f64 {
        let before: u64 = self.spans[..span].iter().map(Span::len).sum();
        let Span { start, end } = self.spans[span];
        (samples_to_secs(start) + secs - samples_to_secs(before)).clamp(samples_to_secs(start), samples_to_secs(end))
    }

    /// Start and end of a segment in the recording. Each is looked up by itself: a segment may go over a pause.
    pub fn segment_secs(&self, start: f64, end: f64) -> (f64, f64) {
        (self.secs_in(self.span_at(start, false), start), self.secs_in(self.span_at(end, true), end))
    }

    /// Start and end of a word in the recording. Its middle says where it was spoken: no word goes over a pause.
    pub fn word_secs(&self, start: f64, end: f64) -> (f64, f64) {
        let span = self.span_at((start + end) / 2.0, false);
        (self.secs_in(span, start), self.secs_in(span, end))
    }
}

fn sample_of(secs: f64) -> u64 {
    (secs.max(0.0) * f64::from(SAMPLE_RATE_HZ)).round() as u64
}

/// A span in the window that is being filled.
struct Placed {
    /// With its pads.
    span: Span,
    /// The silence before it, pads and all.
    pause: u64,
    certainty: Certainty,
}

/// Gathers speech to windows, one frame's probability after the other.
pub struct Windows {
    rules: Rules,
    offline: Offline,
    /// The last span: its end is padded when it is known what follows.
    held: Option<Placed>,
    /// Where the last span ended, without its pad.
    spoken_until: u64,
    /// Of what came behind the last span.
    certainty: Certainty,
    open: Vec<Placed>,
    /// The last span, of those given away, that was speech whatever was near to it.
    spoken: Option<Span>,
    ready: VecDeque<Window>,
}

impl Default for Windows {
    /// Short pauses cut, because a window is filled up with what follows; much room around speech, because a lost first
    /// syllable costs a word. What is shorter than any word is no speech: single notes of music are taken for voices, and
    /// a transcriber that hears nothing else writes words into them.
    fn default() -> Windows {
        Windows::new(Rules::new(0.5, 0.15, 250, 160, 400))
    }
}

impl Windows {
    pub fn new(rules: Rules) -> Windows {
        let rules = rules.max_speech_secs(LONGEST_SECS);
        Windows {
            rules,
            offline: Offline::new(rules),
            held: None,
            spoken_until: 0,
            certainty: Certainty::default(),
            open: Vec::new(),
            spoken: None,
            ready: VecDeque::new(),
        }
    }

    pub fn push(&mut self, voiced: Voiced) {
        self.offline.push(voiced.probability);
        if self.offline.speaking_since().is_some() && voiced.probability >= self.rules.exit {
            self.certainty.add(voiced);
        }
        for span in self.offline.take_ended() {
            self.follow(span, u64::MAX);
        }
        let now = self.offline.heard();
        let silent = self.offline.speaking_since().is_none();
        if silent {
            // Also of what was too short to be speech.
            self.certainty = Certainty::default();
        }
        // No speech can begin any more where its pad would meet this one's.
        if silent && let Some(mut held) = self.held.take_if(|held| now >= held.span.end + 2 * self.rules.pad) {
            held.span.end += self.rules.pad;
            self.place(held);
        }
        if self.open.first().is_some_and(|first| now >= first.span.start + PATIENCE) {
            self.close(self.open.len());
        }
    }

    /// The recording is over after `total` samples.
    pub fn finish(&mut self, total: u64) {
        self.offline.end(total);
        for span in self.offline.take_ended() {
            self.follow(span, total);
        }
        if let Some(Placed { span, pause, certainty }) = self.held.take() {
            let span = Span { start: span.start.min(total), end: (span.end + self.rules.pad).min(total) };
            self.place(Placed { span, pause, certainty });
        }
        self.close(self.open.len());
    }

    /// The next window whose audio is all known.
    pub fn take(&mut self) -> Option<Window> {
        self.ready.pop_front()
    }

    /// No window that is still to come begins before this sample.
    pub fn needed_from(&self) -> u64 {
        let ready = self.ready.front().map(Window::start);
        let open = self.open.first().or(self.held.as_ref()).map(|first| first.span.start);
        let speaking = self.offline.speaking_since().map(|start| start.saturating_sub(self.rules.pad));
        let silence = self.offline.heard().saturating_sub(self.rules.pad);
        [ready, open, speaking].into_iter().flatten().fold(silence, u64::min)
    }

    fn follow(&mut self, mut span: Span, total: u64) {
        let pause = span.start.saturating_sub(self.spoken_until);
        self.spoken_until = span.end;
        match self.held.take() {
            Some(mut before) => {
                self.rules.pad_between(&mut before.span, &mut span, total);
                self.place(before);
            }
            None => span.start = span.start.saturating_sub(self.rules.pad),
        }
        self.held = Some(Placed { span, pause, certainty: std::mem::take(&mut self.certainty) });
    }

    fn place(&mut self, placed: Placed) {
        if placed.span.is_empty() {
            return;
        }
        self.open.push(placed);
        while filled(&self.open) > sample_of(LONGEST_SECS) && self.open.len() > 1 {
            self.close(self.best_cut());
        }
    }

    /// Before which span to cut a window that the last one has no room in: at the longest silence of its second half, for
    /// people pause longer between sentences than within.
    fn best_cut(&self) -> usize {
        let half = sample_of(LONGEST_SECS / 2.0);
        let late = (1..self.open.len()).filter(|cut| filled(&self.open[..*cut]) >= half);
        late.max_by_key(|cut| self.open[*cut].pause).unwrap_or(self.open.len() - 1)
    }

    /// Gives away that many of the open spans, those left out that are no speech.
    fn close(&mut self, count: usize) {
        let speech = |placed: &Placed| is_speech(placed.span, placed.certainty).then_some(placed.span);
        let spoken: Vec<Span> = self.spoken.into_iter().chain(self.open.iter().filter_map(speech)).collect();
        self.spoken = self.open[..count].iter().rev().find_map(speech).or(self.spoken);
        let mut spans: Vec<Span> = Vec::with_capacity(count);
        for Placed { span, .. } in self.open.drain(..count) {
            match spans.last_mut() {
                _ if !spoken.iter().any(|speech| are_near(*speech, span)) => (),
                Some(before) if before.end == span.start => before.end = span.end,
                _ => spans.push(span),
            }
        }
        if !spans.is_empty() {
            self.ready.push_back(Window { spans });
        }
    }
}

fn filled(placed: &[Placed]) -> u64 {
    placed.iter().map(|placed| placed.span.len()).sum()
}

#[cfg(test)]
mod tests {
    use super::{super::speech::FRAME, *};

    const RATE: u64 = SAMPLE_RATE_HZ as u64;

    /// Seconds of speech and silence in turn, speech first.
    fn windows_of(turns: &[f64]) -> (Vec<Window>, Vec<Span>) {
        let mut windows = Windows::default();
        let mut offline = Offline::new(Rules::new(0.5, 0.15, 250, 160, 400).max_speech_secs(30.0));
        let mut all = Vec::new();
        let mut samples = 0;
        for (turn, secs) in turns.iter().enumerate() {
            for _ in 0..(secs * RATE as f64) as u64 / FRAME {
                let probability = if turn % 2 == 0 { 0.9 } else { 0.1 };
                let needed = windows.needed_from();
                windows.push(Voiced::faint(probability));
                offline.push(probability);
                samples += FRAME;
                while let Some(window) = windows.take() {
                    assert!(window.start() >= needed, "{window:?} begins before {needed}");
                    all.push(window);
                }
            }
        }
        windows.finish(samples);
        all.extend(std::iter::from_fn(|| windows.take()));
        (all, offline.finish(samples))
    }

    /// Spans that touch are one.
    fn joined(spans: impl IntoIterator<Item = Span>) -> Vec<Span> {
        let mut all: Vec<Span> = Vec::new();
        for span in spans {
            match all.last_mut() {
                Some(last) if last.end == span.start => last.end = span.end,
                _ => all.push(span),
            }
        }
        all
    }

    #[test]
    fn windows_hold_the_spans_of_the_whole_recording() {
        let mut random = fastrand::Rng::with_seed(3);
        for _ in 0..30 {
            let turns: Vec<f64> = (0..40).map(|_| random.f64() * if random.bool() { 1.0 } else { 9.0 }).collect();
            let (windows, spans) = windows_of(&turns);
            assert!(windows.iter().all(|window| window.len() <= 30 * RATE && !window.is_empty()));
            let held = joined(windows.into_iter().flat_map(|window| window.spans));
            assert_eq!(held, joined(spans), "{turns:?}");
        }
    }

    #[test]
    fn speech_that_never_pauses_is_cut_and_loses_nothing() {
        let (windows, _) = windows_of(&[95.0]);
        assert!(windows.len() >= 4);
        assert!(windows.windows(2).all(|pair| pair[0].end() == pair[1].start()), "{windows:?}");
        assert_eq!((windows[0].start(), windows[windows.len() - 1].end()), (0, 95 * RATE / FRAME * FRAME));
    }

    #[test]
    fn a_full_window_ends_at_the_longest_pause_of_its_second_half() {
        // Sentences of 5 s with short pauses; the longest but one of all is early, the longest of the late ones behind 22 s.
        let (windows, _) = windows_of(&[5.0, 0.7, 5.0, 0.3, 5.0, 0.2, 5.0, 0.5, 4.0, 0.2, 5.0, 0.2, 5.0]);
        let secs: Vec<f64> = windows.iter().map(|window| samples_to_secs(window.end())).collect();
        assert_eq!(windows.len(), 2, "{windows:?}");
        assert!((21.0..21.9).contains(&secs[0]), "{secs:?}");
    }

    #[test]
    fn silence_asks_for_no_audio_and_a_word_waits_only_so_long() {
        let mut windows = Windows::default();
        for _ in 0..60 * RATE / FRAME {
            windows.push(Voiced::faint(0.01));
        }
        assert!(windows.needed_from() > 59 * RATE);
        (0..30).for_each(|_| windows.push(Voiced::faint(0.9)));
        let begun = windows.needed_from();
        let mut given = None;
        for frame in 0..300 * RATE / FRAME {
            windows.push(Voiced::faint(0.01));
            given = given.or_else(|| windows.take().map(|window| (frame, window)));
        }
        let (frame, window) = given.unwrap();
        assert!(frame * FRAME < PATIENCE);
        assert_eq!(window.start(), begun);
        assert!(windows.needed_from() > 350 * RATE);
    }

    #[test]
    fn single_notes_that_pass_for_a_voice_have_no_window() {
        let (windows, _) = windows_of(&[0.032, 4.0, 0.192, 2.0, 0.096, 5.0]);
        assert_eq!(windows, []);
        assert_eq!(windows_of(&[0.3, 4.0]).0.len(), 1, "a short word has one");
    }

    #[test]
    fn a_recording_of_silence_or_nothing_has_no_window() {
        let mut windows = Windows::default();
        (0..1000).for_each(|_| windows.push(Voiced::faint(0.1)));
        windows.finish(1000 * FRAME);
        assert_eq!(windows.take(), None);
        let mut nothing = Windows::default();
        nothing.finish(0);
        assert_eq!(nothing.take(), None);
    }

    #[test]
    fn a_last_frame_that_was_filled_up_ends_with_the_recording() {
        let mut windows = Windows::default();
        (0..10).for_each(|_| windows.push(Voiced::faint(0.9)));
        windows.finish(10 * FRAME - 100);
        assert_eq!(windows.take().unwrap().end(), 10 * FRAME - 100);
    }

    #[test]
    fn a_sound_of_which_the_detector_is_never_sure_is_speech_only_beside_speech_or_if_it_goes_on() {
        // (seconds, probability, whether it is loud), and how many seconds are left with the room around speech.
        for (turns, left) in [
            (&[(0.5, 0.99, true)][..], 0.0),
            (&[(0.5, 0.999, true)], 1.3),
            (&[(0.5, 0.9, false)], 1.3),
            (&[(4.0, 0.9, true)], 4.8),
            // A click that is no speech makes nothing else sure.
            (&[(0.1, 0.999, true), (1.0, 0.0, true), (0.5, 0.99, true)], 0.0),
            (&[(0.5, 0.99, true), (4.0, 0.0, true), (0.5, 0.999, true), (4.0, 0.0, true), (0.5, 0.99, true)], 3.9),
            (&[(0.5, 0.99, true), (6.0, 0.0, true), (0.5, 0.999, true), (6.0, 0.0, true), (0.5, 0.99, true)], 1.3),
            // Speech of the window before counts.
            (&[(28.0, 0.999, true), (3.0, 0.0, true), (2.8, 0.99, true)], 32.4),
        ] {
            let mut windows = Windows::default();
            let silence = [(1.0, 0.0, true)];
            let mut samples = 0;
            for (secs, probability, loud) in silence.iter().chain(turns).chain(&silence) {
                let frames = (secs * RATE as f64) as u64 / FRAME;
                (0..frames).for_each(|_| windows.push(Voiced { probability: *probability, loud: *loud }));
                samples += frames * FRAME;
            }
            windows.finish(samples);
            let found: u64 = std::iter::from_fn(|| windows.take()).map(|window| window.len()).sum();
            assert!((samples_to_secs(found) - left).abs() < 0.15, "{turns:?}: {}", samples_to_secs(found));
        }
    }

    fn two_spans() -> Window {
        let spans = vec![Span { start: RATE, end: 3 * RATE }, Span { start: 10 * RATE, end: 14 * RATE }];
        Window { spans }
    }

    #[test]
    fn times_go_back_to_where_they_were_spoken() {
        let window = two_spans();
        assert_eq!(window.segment_secs(0.5, 2.0), (1.5, 3.0));
        assert_eq!(window.segment_secs(2.0, 3.5), (10.0, 11.5));
        assert_eq!(window.segment_secs(1.0, 9.0), (2.0, 14.0));
        // A word's middle decides, and the word stays within its span.
        assert_eq!(window.word_secs(1.8, 2.1), (2.8, 3.0));
        assert_eq!(window.word_secs(1.9, 2.5), (10.0, 10.5));
    }

    #[test]
    fn the_rest_of_a_window_is_a_window() {
        let window = two_spans();
        assert_eq!(window.after(0.0), Some(window.clone()));
        assert_eq!(window.after(1.0).unwrap().spans()[0], Span { start: 2 * RATE, end: 3 * RATE });
        assert_eq!(window.after(2.0).unwrap().spans(), &window.spans()[1..]);
        assert_eq!(window.after(6.0), None);
    }
}
