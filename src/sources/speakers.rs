//! Who speaks in a live session. A segment's voice is asked for beside its text and named in the order of the segments, so
//! that the same names come out whenever the same is heard again. The take as a whole is overheard meanwhile, by a task of
//! its own; at its end that says who really spoke, under the names that were told (`SessionSpeakers::correct`).
//!
//! What was told stays told: only the final result has other speakers, or a segment in parts. Its first part keeps the id,
//! the others get ids above all that were given. A name that becomes known during a take stands in the segments from then
//! on, and in all of the take's final result.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::mpsc,
    time::{Instant, timeout, timeout_at},
};
use tokio_util::task::AbortOnDropHandle;

use crate::{
    base::{Error, Kind, Result},
    engines::{
        EmbedAsk, Embedded, Turn, Voiceprints,
        diarize::{Cast, LiveSpeakers, SpokenBy, Voices, attribute},
    },
    flow::{Pcm, Priority, SAMPLE_RATE_HZ, SessionId, TextSegment},
    jobs::{Ask, Overhearing, Queue},
    store::AudioLog,
};

/// A segment is told without its speaker rather than later than this after it was cut.
const VOICE_LIMIT: Duration = Duration::from_secs(10);
/// Audio that the overhearing may be behind: 8 MB. Beyond it the box has too much to do, and the take keeps the speakers of
/// its segments.
const MAX_BEHIND: usize = 120 * SAMPLE_RATE_HZ as usize;
/// Messages of audio that may wait, whatever their size.
const CHUNKS: usize = 8192;
/// Of a take that was begun by an earlier daemon.
const READ_AT_A_TIME: u64 = 30 * SAMPLE_RATE_HZ as u64;
/// From the end of a take to the speakers of the whole.
const CAST_LIMIT: Duration = Duration::from_secs(60);

/// The voice of a segment. None where it is too short, or where there is none in time: text does not wait for it longer.
pub(super) async fn voice(queue: Queue, audio: Pcm) -> Option<Embedded> {
    if audio.secs() < LiveSpeakers::SHORTEST_SECS {
        return None;
    }
    let asked = async {
        let ask = Ask::<Voiceprints>::new(EmbedAsk { utterances: vec![audio] });
        queue.submit_patiently(Priority::Live, ask).await?.await
    };
    let late = |_| Err(Error::new(Kind::Timeout, "the voice of a segment is late"));
    match timeout(VOICE_LIMIT, asked).await.unwrap_or_else(late) {
        Ok(embedded) => Some(embedded),
        Err(error) => {
            log::warn!("a segment has no speaker: {}", error.full());
            None
        }
    }
}

/// The speakers of one session, over all its takes.
pub(super) struct SessionSpeakers {
    known: Voices,
    live: LiveSpeakers,
}

impl SessionSpeakers {
    /// `kept`: what `state` said of this session before.
    pub(super) fn new(known: Voices, kept: Option<&str>) -> SessionSpeakers {
        let live = kept.map(serde_json::from_str).transpose().unwrap_or_else(|error| {
            // Another version's: its numbers are lost, and the session is not.
            log::error!("the speakers of a session cannot be read: {error}");
            None
        });
        SessionSpeakers { known, live: live.unwrap_or_default() }
    }

    /// To be kept with every segment that is told: a few KiB.
    pub(super) fn state(&self) -> String {
        serde_json::to_string(&self.live).unwrap_or_default()
    }

    /// What stays of a session that is over: numbers and names, so that none is given twice, and nobody's voice.
    pub(super) fn without_voices(&self) -> String {
        serde_json::to_string(&self.live.without_voices()).unwrap_or_default()
    }

    /// Names the speaker of a segment that is about to be told.
    pub(super) fn name(&mut self, segment: &mut TextSegment, voice: Option<Embedded>) {
        let Some(Embedded { kind, voices }) = voice else { return };
        let Some(voice) = voices.first() else { return };
        if let Some(speaker) = self.live.hear(&kind, voice, segment.end - segment.start) {
            self.live.recognise(speaker, &self.known);
            segment.speaker = Some(self.live.called(speaker));
        }
    }

    /// The take's segments with the speakers that the whole of it has. `offset_secs`: of the session before the take.
    pub(super) fn correct(
        &mut self,
        mut segments: Vec<TextSegment>,
        mut cast: Cast,
        offset_secs: f64,
        next_id: &mut u64,
    ) -> Vec<TextSegment> {
        for Turn { start, end, .. } in &mut cast.turns {
            (*start, *end) = (*start + offset_secs, *end + offset_secs);
        }
        let numbers: Vec<Option<usize>> = segments.iter().map(|it| self.live.number(it.speaker.as_deref()?)).collect();
        let adopted = self.adopt(&cast, &segments);
        // A name that came to be known after the segment was told.
        for (segment, number) in segments.iter_mut().zip(numbers) {
            segment.speaker = number.map(|number| self.live.called(number));
        }
        attribute(segments, &cast.turns, |speaker| self.live.called(adopted[speaker]), next_id)
    }

    /// What the speakers of all takes are called, as `told` calls them.
    pub(super) fn names(&mut self, cast: &Cast, told: &[TextSegment]) -> Vec<String> {
        self.adopt(cast, told).into_iter().map(|speaker| self.live.called(speaker)).collect()
    }

    /// The numbers of a cast's speakers.
    fn adopt(&mut self, cast: &Cast, told: &[TextSegment]) -> Vec<usize> {
        let by_whom = |it: &TextSegment| {
            let speaker = self.live.number(it.speaker.as_deref()?)?;
            Some(SpokenBy { start: it.start, end: it.end, speaker })
        };
        let published: Vec<SpokenBy> = told.iter().filter_map(by_whom).collect();
        let adopted = self.live.adopt(cast, &published);
        adopted.iter().for_each(|speaker| self.live.recognise(*speaker, &self.known));
        adopted
    }
}

/// What of a take was there before this daemon: it is in the log, and does not come again.
pub(super) struct Before {
    pub(super) audio_log: AudioLog,
    pub(super) session: SessionId,
    pub(super) take: u64,
    pub(super) until: u64,
}

impl Before {
    /// The next part of it. What the log has lost is silence, so that times stay right.
    async fn read(&self, at: u64) -> Result<Vec<f32>> {
        let to = self.until.min(at + READ_AT_A_TIME);
        let audio = self.audio_log.read(&self.session, self.take, at..to).await?;
        let mut part = vec![0.0; (to - at) as usize];
        let from = (audio.first_sample.saturating_sub(at) as usize).min(part.len());
        for (heard, sample) in part[from..].iter_mut().zip(audio.samples) {
            *heard = f32::from(sample) / 32768.0;
        }
        Ok(part)
    }
}

/// A take that is overheard for who speaks in the whole of it. Dropping this gives it up.
pub(super) struct Overheard {
    /// None once all is in, or when the take is not overheard any more.
    samples: Option<mpsc::Sender<Vec<f32>>>,
    /// Once all is in.
    wanted_by: Option<Instant>,
    behind: Arc<AtomicUsize>,
    cast: AbortOnDropHandle<Result<Cast>>,
}

impl Overheard {
    pub(super) fn start(queue: Queue, before: Before) -> Overheard {
        let (samples, inbox) = mpsc::channel(CHUNKS);
        let behind = Arc::new(AtomicUsize::new(0));
        let cast = AbortOnDropHandle::new(tokio::spawn(overhear(queue, before, inbox, Arc::clone(&behind))));
        Overheard { samples: Some(samples), wanted_by: None, behind, cast }
    }

    /// Never waits. A take that cannot be overheard in time is not overheard any more.
    pub(super) fn hear(&mut self, samples: &[f32]) {
        let Some(sender) = self.samples.as_ref().filter(|_| !samples.is_empty()) else { return };
        let behind = self.behind.fetch_add(samples.len(), Ordering::Relaxed) + samples.len();
        if behind > MAX_BEHIND || sender.try_send(samples.to_vec()).is_err() {
            if !self.cast.is_finished() {
                log::warn!("a take is not overheard any more: its segments keep the speakers that they were told with");
            }
            self.cast.abort();
            self.samples = None;
        }
    }

    /// All samples are in.
    pub(super) fn end(&mut self) {
        self.samples = None;
        self.wanted_by.get_or_insert_with(|| Instant::now() + CAST_LIMIT);
    }

    /// Who speaks in the whole, once all samples are in. It can be dropped without loss.
    pub(super) async fn cast(&mut self) -> Option<Cast> {
        let cast = match self.wanted_by {
            None => Ok((&mut self.cast).await),
            Some(limit) => timeout_at(limit, &mut self.cast).await,
        };
        let error = match cast {
            Ok(Ok(Ok(cast))) => return Some(cast),
            Ok(Ok(Err(error))) => error,
            // It was given up, and that was said.
            Ok(Err(_)) => return None,
            Err(_) => Error::new(Kind::Timeout, "who spoke in a take was not known in time")
                .hint("the box has more to do than it can: fewer sessions with `diarize`"),
        };
        log::warn!("a take keeps the speakers of its segments: {}", error.full());
        None
    }
}

async fn overhear(
    queue: Queue,
    before: Before,
    mut inbox: mpsc::Receiver<Vec<f32>>,
    behind: Arc<AtomicUsize>,
) -> Result<Cast> {
    // Whoever speaks now goes first.
    let mut overhearing = Overhearing::new(queue, Priority::Interactive);
    let mut at = 0;
    while at < before.until {
        let part = before.read(at).await?;
        at += part.len() as u64;
        overhearing.hear(&part).await?;
    }
    while let Some(samples) = inbox.recv().await {
        overhearing.hear(&samples).await?;
        behind.fetch_sub(samples.len(), Ordering::Relaxed);
    }
    overhearing.finish(None).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engines::diarize::{Likeness, Voice, VoiceKind};

    fn kind() -> VoiceKind {
        VoiceKind { model: "m".to_owned(), likeness: Likeness { merge: 0.7, coherence: 0.8, same: 0.7 } }
    }

    fn voice(direction: [f32; 2]) -> Option<Embedded> {
        Some(Embedded { kind: kind(), voices: vec![direction.to_vec()] })
    }

    fn segment(id: u64, start: f64, text: &str) -> TextSegment {
        TextSegment {
            id,
            start,
            end: start + 3.0,
            text: text.to_owned(),
            language: "es".to_owned(),
            probability: 1.0,
            speaker: None,
            words: Vec::new(),
        }
    }

    fn told(speakers: &mut SessionSpeakers, id: u64, start: f64, direction: [f32; 2]) -> TextSegment {
        let mut segment = segment(id, start, "hola");
        speakers.name(&mut segment, voice(direction));
        segment
    }

    fn called(segments: &[TextSegment]) -> Vec<&str> {
        segments.iter().map(|it| it.speaker.as_deref().unwrap_or("nobody")).collect()
    }

    #[test]
    fn the_whole_take_corrects_what_its_segments_said_and_keeps_their_names() {
        let dir = tempfile::tempdir().unwrap();
        let mut speakers = SessionSpeakers::new(Voices::open(dir.path()).unwrap(), None);
        let mut segments = vec![
            told(&mut speakers, 4, 100.0, [1.0, 0.0]),
            told(&mut speakers, 5, 103.0, [0.0, 1.0]),
            // Taken for the first while it was told.
            told(&mut speakers, 6, 106.0, [1.0, 0.0]),
        ];
        segments.push(segment(7, 140.0, "sin voz"));
        assert_eq!(called(&segments), ["S1", "S2", "S1", "nobody"]);
        let turns = vec![Turn { start: 0.0, end: 3.0, speaker: 0 }, Turn { start: 3.0, end: 9.0, speaker: 1 }];
        let cast = Cast { turns, voices: vec![vec![1.0, 0.0], vec![0.0, 1.0]], kind: Some(kind()) };
        let mut next_id = 8;
        let corrected = speakers.correct(segments.clone(), cast, 100.0, &mut next_id);
        assert_eq!(called(&corrected), ["S1", "S2", "S2", "nobody"]);
        assert_eq!(corrected.iter().map(|it| it.id).collect::<Vec<_>>(), [4, 5, 6, 7]);
        // Without anything overheard, nothing changes.
        assert_eq!(
            called(&speakers.correct(segments, Cast::default(), 100.0, &mut next_id)),
            ["S1", "S2", "S1", "nobody"]
        );
    }

    #[test]
    fn a_state_that_was_kept_gives_the_same_names_and_one_of_a_session_that_is_over_no_voice() {
        let dir = tempfile::tempdir().unwrap();
        let known = || Voices::open(dir.path()).unwrap();
        let mut speakers = SessionSpeakers::new(known(), None);
        told(&mut speakers, 0, 0.0, [1.0, 0.0]);
        let mut again = SessionSpeakers::new(known(), Some(&speakers.state()));
        assert_eq!(called(&[told(&mut again, 1, 3.0, [0.0, 1.0]), told(&mut again, 2, 6.0, [1.0, 0.0])]), ["S2", "S1"]);
        let mut over = SessionSpeakers::new(known(), Some(&again.without_voices()));
        assert_eq!(called(&[told(&mut over, 3, 9.0, [1.0, 0.0])]), ["S3"]);
        assert_eq!(called(&[told(&mut SessionSpeakers::new(known(), Some("no json")), 0, 0.0, [1.0, 0.0])]), ["S1"]);
    }

    #[test]
    fn a_name_that_becomes_known_stands_from_then_on_and_in_all_of_the_final_result() {
        let dir = tempfile::tempdir().unwrap();
        let mut speakers = SessionSpeakers::new(Voices::open(dir.path()).unwrap(), None);
        let first = told(&mut speakers, 0, 0.0, [0.8, 0.6]);
        let (name, model, enrolled_at) = ("Ana".to_owned(), "m".to_owned(), "2026-01-01T00:00:00Z".to_owned());
        speakers.known.enroll(Voice { name, model, secs: 9.0, enrolled_at, voice: vec![1.0, 0.0] }).unwrap();
        let second = told(&mut speakers, 1, 3.0, [1.0, 0.0]);
        assert_eq!(called(&[first.clone(), second.clone()]), ["S1", "Ana"]);
        let corrected = speakers.correct(vec![first, second], Cast::default(), 0.0, &mut 2);
        assert_eq!(called(&corrected), ["Ana", "Ana"]);
    }
}
