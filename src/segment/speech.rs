//! From voice probabilities, one a frame of 32 ms, to spans of speech.
//!
//! Two machines over the same rules, each equal to its reference (contracts of Silero VAD): [`Offline`] sees a whole
//! recording and pads its spans; [`Live`] sees one frame at a time, speaks as early as it can, and cuts long speech at
//! its best pause.

use serde::{Deserialize, Serialize};

use super::voiced::{Certainty, Voiced, are_near, is_speech};
use crate::flow::SAMPLE_RATE_HZ;

/// Samples of one frame.
pub const FRAME: u64 = 512;

/// A pause must be longer than this to be a place where long speech may be cut.
const CUT_SILENCE: u64 = samples(98);

const fn samples(ms: u64) -> u64 {
    ms * SAMPLE_RATE_HZ as u64 / 1000
}

/// When speech begins and ends, in samples.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rules {
    pub threshold: f32,
    pub exit: f32,
    pub min_speech: u64,
    pub min_silence: u64,
    pub pad: u64,
    /// Longest span; `u64::MAX` for no limit.
    pub max_speech: u64,
    /// Silence after which [`Live`] says that speech may be over; `u64::MAX`: it never does.
    pub settle: u64,
}

impl Rules {
    pub fn new(threshold: f32, hysteresis: f32, min_speech_ms: u32, min_silence_ms: u32, pad_ms: u32) -> Rules {
        Rules {
            threshold,
            exit: (threshold - hysteresis).max(0.01),
            min_speech: samples(min_speech_ms.into()),
            min_silence: samples(min_silence_ms.into()),
            pad: samples(pad_ms.into()),
            max_speech: u64::MAX,
            settle: u64::MAX,
        }
    }

    /// The reference's defaults for whole recordings.
    pub fn reference() -> Rules {
        Rules::new(0.5, 0.15, 250, 100, 30)
    }

    pub fn max_speech_secs(self, secs: f64) -> Rules {
        Rules { max_speech: (secs * f64::from(SAMPLE_RATE_HZ)) as u64, ..self }
    }

    pub fn settle_ms(self, ms: u32) -> Rules {
        Rules { settle: samples(ms.into()), ..self }
    }

    /// Pads the end of one span and the start of the next; they share a pause that has no room for both pads.
    pub(super) fn pad_between(&self, span: &mut Span, next: &mut Span, total: u64) {
        let gap = next.start.saturating_sub(span.end);
        let pad = self.pad.min(gap / 2);
        span.end = (span.end + pad).min(total);
        next.start = next.start.saturating_sub(pad);
    }

    /// The longest stretch before a cut is looked for: room for a frame and both pads stays.
    fn cut_after(&self) -> u64 {
        self.max_speech.saturating_sub(FRAME + 2 * self.pad)
    }
}

/// A stretch of speech in samples, `[start, end)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    pub start: u64,
    pub end: u64,
}

impl Span {
    pub fn len(&self) -> u64 {
        self.end - self.start
    }

    pub fn is_empty(&self) -> bool {
        self.end == self.start
    }
}

/// Spans of a whole recording.
pub struct Offline {
    rules: Rules,
    frames: u64,
    start: Option<u64>,
    quiet_since: Option<u64>,
    pauses: Vec<Span>,
    spans: Vec<Span>,
}

impl Offline {
    pub fn new(rules: Rules) -> Offline {
        Offline { rules, frames: 0, start: None, quiet_since: None, pauses: Vec::new(), spans: Vec::new() }
    }

    pub fn push(&mut self, probability: f32) {
        let now = self.frames * FRAME;
        self.frames += 1;
        let loud = probability >= self.rules.threshold;

        // 1. Speech goes on after a pause: remember the pause as a place to cut.
        if loud && let Some(since) = self.quiet_since.take() {
            let pause = Span { start: since, end: now };
            if pause.len() > CUT_SILENCE {
                self.pauses.push(pause);
            }
        }
        // 2. Speech begins.
        let Some(start) = self.start else {
            if loud {
                self.start = Some(now);
            }
            return;
        };
        // 3. Too long: cut at the longest pause, or here if there was none.
        if now - start > self.rules.cut_after() {
            if let Some(pause) = self.longest_pause() {
                self.spans.push(Span { start, end: pause.start });
                self.start = Some(pause.end);
            } else {
                self.spans.push(Span { start, end: now });
                self.start = None;
            }
            self.quiet_since = None;
            self.pauses.clear();
            if self.start.is_none() {
                return;
            }
        }
        // 4. Quiet for long enough: speech ended where the quiet began.
        if probability < self.rules.exit {
            let since = *self.quiet_since.get_or_insert(now);
            if now - since >= self.rules.min_silence {
                let start = self.start.take().unwrap_or(start);
                self.keep(Span { start, end: since });
                self.quiet_since = None;
                self.pauses.clear();
            }
        }
    }

    /// The spans that have ended since the last time, without their pads: these depend on the span that follows.
    pub(super) fn take_ended(&mut self) -> Vec<Span> {
        std::mem::take(&mut self.spans)
    }

    /// Where the speech that is going on began, without its pad.
    pub(super) fn speaking_since(&self) -> Option<u64> {
        self.start
    }

    /// Samples seen so far.
    pub(super) fn heard(&self) -> u64 {
        self.frames * FRAME
    }

    /// Open speech ends with the recording, after `total` samples.
    pub(super) fn end(&mut self, total: u64) {
        if let Some(start) = self.start.take() {
            self.keep(Span { start, end: total.max(start) });
        }
    }

    /// The spans, padded, of a recording with that many samples.
    pub fn finish(mut self, total: u64) -> Vec<Span> {
        self.end(total);
        let rules = self.rules;
        let mut spans = self.spans;
        if let Some(first) = spans.first_mut() {
            first.start = first.start.saturating_sub(rules.pad);
        }
        for i in 1..spans.len() {
            let (before, after) = spans.split_at_mut(i);
            rules.pad_between(&mut before[i - 1], &mut after[0], total);
        }
        if let Some(last) = spans.last_mut() {
            last.end = (last.end + rules.pad).min(total);
        }
        spans
    }

    fn keep(&mut self, span: Span) {
        if span.end > span.start && span.len() > self.rules.min_speech {
            self.spans.push(span);
        }
    }

    fn longest_pause(&self) -> Option<Span> {
        // The first of equals, as the reference does.
        self.pauses.iter().copied().reduce(|best, pause| if pause.len() > best.len() { pause } else { best })
    }
}

/// What the live machine says, in samples since the start of the take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpeechEvent {
    /// Somebody begins to speak.
    Start { at: u64 },
    /// They have paused. If the silence lasts, this will be the segment, to the sample; else they go on.
    Pause(Span),
    /// They fell silent.
    End { at: u64 },
    /// A segment to transcribe. Comes after its `Start`; before its `End`, or in the middle of long speech.
    Segment(Span),
}

/// One frame at a time.
pub struct Live {
    rules: Rules,
    now: LiveState,
}

/// What the live machine remembers, in samples since the start of the take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct LiveState {
    frames: u64,
    start: Option<u64>,
    quiet_since: Option<u64>,
    /// Of this quiet, that speech may be over was said already.
    settled: bool,
    longest_pause: Option<Span>,
    /// Of what began at `start`.
    certainty: Certainty,
    /// It is known to be speech, and stays so: its text may be shown already.
    believed: bool,
    /// The last segment that was speech whatever was near to it.
    spoken: Option<Span>,
}

/// Speech that is going on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Speaking {
    pub since: u64,
    /// Where the segment would end if the quiet of this moment lasts.
    pub quiet_after: Option<u64>,
    /// A cut of this segment, for its length, lies here or later; None: behind all that was heard.
    pub cut_from: Option<u64>,
}

impl LiveState {
    /// Samples heard so far.
    pub fn heard(&self) -> u64 {
        self.frames * FRAME
    }

    /// Where the speech that is going on began.
    pub fn speaking_since(&self) -> Option<u64> {
        self.start
    }
}

impl Live {
    pub fn new(rules: Rules) -> Live {
        Live::resume(rules, LiveState::default())
    }

    /// Goes on from what it had remembered.
    pub fn resume(rules: Rules, state: LiveState) -> Live {
        Live { rules, now: state }
    }

    pub fn state(&self) -> LiveState {
        self.now
    }

    /// Takes the next frame; says up to two things.
    pub fn push(&mut self, voiced: Voiced, mut say: impl FnMut(SpeechEvent)) {
        let probability = voiced.probability;
        // The reference counts the position after the frame.
        let now = (self.now.frames + 1) * FRAME;
        self.now.frames += 1;
        let likely = probability >= self.rules.threshold;

        // 1. Speech goes on after a pause: remember the longest as the place to cut.
        if likely && let Some(since) = self.now.quiet_since.take() {
            self.now.settled = false;
            let pause = Span { start: since, end: now };
            let best = self.now.longest_pause.map_or(CUT_SILENCE, |best| best.len());
            if self.may_cut_at(since) && pause.len() > best {
                self.now.longest_pause = Some(pause);
            }
        }
        // 2. Speech begins.
        let Some(start) = self.now.start else {
            if likely {
                let at = now.saturating_sub(self.rules.pad + FRAME);
                self.now.start = Some(at);
                (self.now.certainty, self.now.believed) = (Certainty::default(), false);
                self.now.certainty.add(voiced);
                say(SpeechEvent::Start { at });
            }
            return;
        };
        if probability >= self.rules.exit {
            self.now.certainty.add(voiced);
        }
        self.now.believed |= self.is_believable(Span { start, end: now });
        // 3. Too long: cut at the longest pause, or here if there was none; they are still speaking.
        if now - start > self.rules.cut_after() {
            let (end, next) = match self.now.longest_pause.take() {
                Some(pause) => {
                    let pad = self.rules.pad.min(pause.len() / 2);
                    (pause.start - FRAME + pad, pause.end - FRAME - pad)
                }
                None => (now, now),
            };
            self.segment(Span { start, end }, &mut say);
            self.now.start = Some(next);
            // What was said of a pause was said of another segment.
            self.now.settled = false;
        }
        // 4. Quiet for long enough: speech ended where the quiet began.
        if probability < self.rules.exit {
            let since = *self.now.quiet_since.get_or_insert(now);
            if now - since >= self.rules.min_silence {
                self.end_at(self.end_after(since), &mut say);
            } else if now - since >= self.rules.settle && !self.now.settled {
                self.now.settled = true;
                let span = Span { start: self.now.start.unwrap_or(start), end: self.end_after(since) };
                if self.is_segment(span) {
                    say(SpeechEvent::Pause(span));
                }
            }
        }
    }

    /// The take is over after `total` samples: open speech ends there.
    pub fn finish(&mut self, total: u64, mut say: impl FnMut(SpeechEvent)) {
        if self.now.start.is_some() {
            let end = self.now.quiet_since.map_or(total, |since| self.end_after(since).min(total));
            self.end_at(end, &mut say);
        }
    }

    /// The speech that is going on; None as well of a sound that is not yet known to be speech.
    pub fn speaking(&self) -> Option<Speaking> {
        let since = self.now.start.filter(|_| self.now.believed)?;
        // A longer pause takes the place of an earlier one, never the other way round.
        let quiet = self.now.quiet_since.filter(|quiet| self.may_cut_at(*quiet));
        let pause = self.now.longest_pause.map(|pause| pause.start).or(quiet);
        Some(Speaking {
            since,
            quiet_after: self.now.quiet_since.map(|quiet| self.end_after(quiet).max(since)),
            cut_from: pause.map(|pause| pause.saturating_sub(FRAME)),
        })
    }

    /// Long speech is cut in its second half alone: the first half is text that nobody has to wait with.
    fn may_cut_at(&self, sample: u64) -> bool {
        self.now.start.is_some_and(|start| sample.saturating_sub(start) >= self.rules.cut_after() / 2)
    }

    fn end_after(&self, quiet_since: u64) -> u64 {
        (quiet_since + self.rules.pad).saturating_sub(FRAME)
    }

    fn end_at(&mut self, end: u64, say: &mut impl FnMut(SpeechEvent)) {
        if let Some(start) = self.now.start.take() {
            let span = Span { start, end: end.max(start) };
            self.segment(span, say);
            say(SpeechEvent::End { at: span.end });
        }
        self.now.quiet_since = None;
        self.now.settled = false;
        self.now.longest_pause = None;
    }

    fn segment(&mut self, span: Span, say: &mut impl FnMut(SpeechEvent)) {
        if self.is_segment(span) {
            say(SpeechEvent::Segment(span));
        }
        if is_speech(span, self.now.certainty) {
            self.now.spoken = Some(span);
        }
    }

    /// A click, a cough or a note is voice activity, but nothing to transcribe. The pad at the start is no speech.
    fn is_segment(&self, span: Span) -> bool {
        span.end > span.start && span.len() > self.rules.min_speech && self.now.believed
    }

    fn is_believable(&self, span: Span) -> bool {
        let near = self.now.spoken.is_some_and(|spoken| are_near(spoken, span));
        near || span.len() > self.rules.min_speech && is_speech(span, self.now.certainty)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    /// Probabilities with what the reference's own functions make of them (tests/data/make/vad_spans.py).
    fn cases() -> Vec<Value> {
        let text = include_str!("../../tests/data/vad/spans.json");
        let file: Value = serde_json::from_str(text).unwrap();
        file["cases"].as_array().unwrap().clone()
    }

    fn probabilities(case: &Value) -> Vec<f32> {
        case["probabilities"].as_array().unwrap().iter().map(|it| it.as_f64().unwrap() as f32).collect()
    }

    #[test]
    fn offline_spans_equal_the_reference() {
        for (number, case) in cases().iter().enumerate() {
            let option = |name: &str, default: u64| case["options"][name].as_u64().unwrap_or(default) as u32;
            let mut rules = Rules::new(
                0.5,
                0.15,
                option("min_speech_duration_ms", 250),
                option("min_silence_duration_ms", 100),
                option("speech_pad_ms", 30),
            );
            if let Some(secs) = case["options"]["max_speech_duration_s"].as_f64() {
                rules = rules.max_speech_secs(secs);
            }
            let mut offline = Offline::new(rules);
            probabilities(case).iter().for_each(|probability| offline.push(*probability));
            let spans: Vec<[u64; 2]> =
                offline.finish(case["samples"].as_u64().unwrap()).iter().map(|span| [span.start, span.end]).collect();
            let expected: Vec<[u64; 2]> = serde_json::from_value(case["offline"].clone()).unwrap();
            assert_eq!(spans, expected, "case {number}: {}", case["options"]);
        }
    }

    #[test]
    fn live_starts_and_ends_equal_the_reference() {
        for (number, case) in cases().iter().enumerate() {
            let silence = case["live_min_silence_ms"].as_u64().unwrap() as u32;
            let mut live = Live::new(Rules::new(0.5, 0.15, 250, silence, 30));
            let mut said = Vec::new();
            for probability in probabilities(case) {
                live.push(Voiced::faint(probability), |event| match event {
                    SpeechEvent::Start { at } => said.push(("start", at)),
                    SpeechEvent::End { at } => said.push(("end", at)),
                    SpeechEvent::Segment(_) | SpeechEvent::Pause(_) => {}
                });
            }
            let expected: Vec<(&str, u64)> = case["live"]
                .as_array()
                .unwrap()
                .iter()
                .map(|event| match (event["start"].as_u64(), event["end"].as_u64()) {
                    (Some(at), _) => ("start", at),
                    (_, at) => ("end", at.unwrap()),
                })
                .collect();
            assert_eq!(said, expected, "case {number}");
        }
    }

    fn live_segments(rules: Rules, probabilities: &[f32]) -> (Vec<Span>, Vec<SpeechEvent>) {
        live_heard(rules, &probabilities.iter().map(|it| Voiced::faint(*it)).collect::<Vec<_>>())
    }

    fn live_heard(rules: Rules, heard: &[Voiced]) -> (Vec<Span>, Vec<SpeechEvent>) {
        let mut live = Live::new(rules);
        let mut all = Vec::new();
        heard.iter().for_each(|voiced| live.push(*voiced, |event| all.push(event)));
        live.finish(heard.len() as u64 * FRAME, |event| all.push(event));
        let segments = all.iter().filter_map(|event| match event {
            SpeechEvent::Segment(span) => Some(*span),
            _ => None,
        });
        (segments.collect(), all)
    }

    #[test]
    fn a_loud_sound_of_which_the_detector_is_never_sure_is_a_segment_only_behind_speech_or_if_it_goes_on() {
        let rules = Rules::new(0.5, 0.15, 250, 384, 30).settle_ms(192);
        // Half seconds of a note, of speech, of silence, of a faint voice.
        for (heard, segments) in [
            ("n.......n.......", 0),
            ("ss.n..", 2),
            ("ss...........n..", 1),
            ("ss.n.........n..", 2),
            ("nnnnnnn..", 1),
            ("ff..", 1),
            ("ns..", 1),
        ] {
            let halves = heard.chars().flat_map(|it| {
                let (probability, loud) = match it {
                    'n' => (0.99, true),
                    's' => (0.999, true),
                    'f' => (0.9, false),
                    _ => (0.01, true),
                };
                std::iter::repeat_n(Voiced { probability, loud }, 16)
            });
            let halves: Vec<Voiced> = halves.collect();
            let (found, all) = live_heard(rules, &halves);
            assert_eq!(found.len(), segments, "{heard}: {all:?}");
            let pauses = all.iter().filter(|event| matches!(event, SpeechEvent::Pause(_))).count();
            assert_eq!(pauses, segments, "{heard}: what is no segment has no trial either");
        }
    }

    #[test]
    fn a_sound_is_shown_as_speech_once_it_is_known_to_be() {
        let mut live = Live::new(Rules::new(0.5, 0.15, 250, 384, 30));
        let mut spoken = |probability| {
            live.push(Voiced { probability, loud: true }, |_| {});
            live.speaking().is_some()
        };
        assert!(!(0..30).any(|_| spoken(0.99)));
        assert!(spoken(0.999) && spoken(0.99) && spoken(0.1));
    }

    #[test]
    fn a_click_is_voice_activity_and_no_segment() {
        let mut probabilities = vec![0.0; 20];
        probabilities[4] = 0.9;
        let (segments, all) = live_segments(Rules::reference(), &probabilities);
        assert!(segments.is_empty());
        assert!(matches!(all[..], [SpeechEvent::Start { .. }, SpeechEvent::End { .. }]));
    }

    #[test]
    fn long_speech_is_cut_at_its_longest_pause_and_goes_on() {
        let second = 31;
        let mut probabilities = vec![0.9; 6 * second];
        probabilities[40..45].fill(0.1);
        probabilities[70..80].fill(0.1);
        let rules = Rules::new(0.5, 0.15, 250, 500, 30).max_speech_secs(4.0);
        let (segments, all) = live_segments(rules, &probabilities);
        assert_eq!(segments.len(), 2, "{segments:?}");
        assert!((70 * FRAME..80 * FRAME).contains(&segments[0].end), "{segments:?}");
        assert!((70 * FRAME..=80 * FRAME).contains(&segments[1].start), "{segments:?}");
        assert!(segments[0].end <= segments[1].start);
        assert_eq!(all.iter().filter(|event| matches!(event, SpeechEvent::Start { .. })).count(), 1);
    }

    #[test]
    fn speech_without_a_pause_is_cut_all_the_same_and_loses_nothing() {
        let rules = Rules::reference().max_speech_secs(2.0);
        let (segments, _) = live_segments(rules, &[0.9; 310]);
        assert!(segments.len() >= 4, "{segments:?}");
        assert!(segments.iter().all(|span| span.len() <= 2 * u64::from(SAMPLE_RATE_HZ)));
        assert!(segments.windows(2).all(|pair| pair[0].end == pair[1].start), "{segments:?}");
        assert_eq!(segments.last().unwrap().end, 310 * FRAME);
    }

    #[test]
    fn a_machine_that_goes_on_says_what_the_uninterrupted_one_says() {
        for case in cases() {
            let rules = Rules::new(0.5, 0.15, 250, 300, 30).max_speech_secs(3.0);
            let probabilities = probabilities(&case);
            let heard: Vec<Voiced> = probabilities.iter().map(|it| Voiced { probability: *it, loud: true }).collect();
            let (_, whole) = live_heard(rules, &heard);
            for cut in (0..heard.len()).step_by(7) {
                let mut said = Vec::new();
                let (before, after) = heard.split_at(cut);
                let mut live = Live::new(rules);
                before.iter().for_each(|it| live.push(*it, |event| said.push(event)));
                let kept = serde_json::to_string(&live.state()).unwrap();
                let mut live = Live::resume(rules, serde_json::from_str(&kept).unwrap());
                after.iter().for_each(|it| live.push(*it, |event| said.push(event)));
                live.finish(heard.len() as u64 * FRAME, |event| said.push(event));
                assert_eq!(said, whole, "cut at {cut}");
            }
        }
    }

    #[test]
    fn a_pause_foretells_the_segment_that_it_ends_and_is_told_once() {
        let mut probabilities = vec![0.9; 30];
        probabilities.extend([0.1; 8]);
        probabilities.extend([0.9; 10]);
        probabilities.extend([0.1; 20]);
        let rules = Rules::new(0.5, 0.15, 250, 384, 30).settle_ms(192);
        let (segments, all) = live_segments(rules, &probabilities);
        let pauses: Vec<Span> = all
            .iter()
            .filter_map(|event| match event {
                SpeechEvent::Pause(span) => Some(*span),
                _ => None,
            })
            .collect();
        assert_eq!((pauses.len(), segments.len()), (2, 1), "{all:?}");
        assert_eq!(pauses[0], Span { start: 0, end: 30 * FRAME + 480 });
        assert_eq!(pauses[1], segments[0]);
        let click: Vec<f32> = [vec![0.9; 4], vec![0.1; 20]].concat();
        let (_, all) = live_segments(rules, &click);
        assert!(!all.iter().any(|event| matches!(event, SpeechEvent::Pause(_))), "{all:?}");
    }

    proptest! {
        #[test]
        fn what_is_said_of_speech_that_goes_on_holds(turns in prop::collection::vec((1..40usize, 1..14usize), 1..30)) {
            let rules = Rules::new(0.5, 0.15, 250, 384, 30).settle_ms(192).max_speech_secs(4.0);
            let mut live = Live::new(rules);
            let mut spoken = Vec::new();
            turns.iter().for_each(|(loud, quiet)| {
                spoken.extend(std::iter::repeat_n(0.9, *loud));
                spoken.extend(std::iter::repeat_n(0.1, *quiet));
            });
            // The earliest place of a cut, as far as it was told; the segment that a pause foretold.
            let (mut earliest, mut foretold) = (0, None);
            for (frame, probability) in spoken.iter().enumerate() {
                let mut events = Vec::new();
                live.push(Voiced::faint(*probability), |event| events.push(event));
                for (number, event) in events.iter().enumerate() {
                    match event {
                        SpeechEvent::Segment(span) => {
                            let ended = events.get(number + 1) == Some(&SpeechEvent::End { at: span.end });
                            prop_assert!(span.end >= earliest, "{span:?} was cut before {earliest}");
                            prop_assert!(span.len() <= 4 * u64::from(SAMPLE_RATE_HZ));
                            // A cut in the very frame that ends speech leaves no time to foretell anything.
                            let cut_here = span.end == (frame as u64 + 1) * FRAME;
                            if ended && !cut_here {
                                prop_assert!(foretold.is_none_or(|foretold| foretold == *span), "{foretold:?}, {span:?}");
                            }
                            (earliest, foretold) = (0, None);
                        }
                        SpeechEvent::Pause(span) => foretold = Some(*span),
                        SpeechEvent::Start { .. } | SpeechEvent::End { .. } => (earliest, foretold) = (0, None),
                    }
                }
                if let Some(speaking) = live.speaking() {
                    let now = (frame as u64 + 1) * FRAME;
                    prop_assert!(speaking.cut_from.is_none_or(|cut| cut <= now && cut >= speaking.since));
                    prop_assert!(speaking.quiet_after.is_none_or(|quiet| quiet >= speaking.since));
                    // What ends for its quiet keeps all that was spoken: only a cut can take words away.
                    let quiet = speaking.quiet_after.unwrap_or(now);
                    earliest = earliest.max(speaking.cut_from.unwrap_or(now).min(quiet));
                }
            }
        }
    }

    #[test]
    fn the_end_of_a_take_ends_its_speech() {
        let (segments, all) = live_segments(Rules::reference(), &[0.9; 20]);
        assert_eq!(segments, [Span { start: 0, end: 20 * FRAME }]);
        assert_eq!(all.last(), Some(&SpeechEvent::End { at: 20 * FRAME }));
    }
}
