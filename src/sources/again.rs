//! A session that is over is transcribed once more, from the audio that is kept of it: by another model, in another
//! language, or because there was no model while people spoke. What comes of it stands for all that was told before, under
//! segment ids of its own, so that no id ever has two texts. Must never get into the way of a client that comes back.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
    time::Duration,
};

use serde_json::json;
use tokio::{sync::mpsc, time::timeout};

use crate::{
    base::{Error, Kind, Result, lock},
    engines::{TranscribeAsk, diarize::Cast},
    flow::{Draft, EventType, Priority, SAMPLE_RATE_HZ, SessionId, Task, TextSegment, audio::samples_to_secs},
    jobs::{FileAsk, FileDesk, FileNews, FileSpeakers, FileSummary, Recorded},
    sources::{FinalResult, Services, Sessions, speakers::SessionSpeakers},
    store::{AudioLog, Note, Progress, SessionRow, SessionState},
};

/// Audio that is read of the log at a time: 5 minutes, for each time the log is searched.
const READ_AT_A_TIME: u64 = 300 * SAMPLE_RATE_HZ as u64;
/// And that goes on from there at a time.
const STRIDE: usize = SAMPLE_RATE_HZ as usize;
/// News that may wait.
const NEWS_QUEUE: usize = 16;
/// Until the result is on disk.
const COMMIT_LIMIT: Duration = Duration::from_secs(15);
/// Takes are counted to the sample; more is missing only where audio was not kept.
const MISSING_SECS: f64 = 0.01;

/// What is asked for; the rest is as the session's client asked.
#[derive(Debug, Clone, Default)]
pub struct Again {
    pub language: Option<String>,
    /// None: if the client did not decline it, and there is a model for it.
    pub diarize: Option<bool>,
    /// How many speakers there are, where it is known.
    pub speakers: Option<usize>,
    pub words: Option<bool>,
    pub prompt: Option<String>,
    pub translate: Option<bool>,
}

/// What came of it.
#[derive(Debug, Clone)]
pub struct Retold {
    pub result: FinalResult,
    /// How sure the model is of the language.
    pub probability: f32,
    /// Words were asked for, and this model cannot tell their times.
    pub without_words: bool,
}

impl Sessions {
    /// Dropping the future ends the work, and leaves everything as it was.
    pub async fn transcribe_again(&self, id: &SessionId, again: Again) -> Result<Retold> {
        let services = self.services();
        services.registry.installed(Task::Transcribe)?;
        let row = closed(services.store.session(id).await?, id)?;
        let audio = KeptAudio::open(services, &row).await?;
        let told = services.store.transcript(id).await?;
        let kept = services.store.session_speakers(id).await?;
        let speakers = Arc::new(Mutex::new(SessionSpeakers::new(self.known_voices(), kept.as_deref())));
        let config = services.store.session_config(id).await?;
        let asked = Asked::new(services, &row, config.as_ref(), again)?;
        let ask = FileAsk {
            transcribe: asked.transcribe.clone(),
            speakers: asked.diarize.then(|| {
                let speakers = Arc::clone(&speakers);
                let names = move |cast: &Cast| lock(&speakers).names(cast, &told);
                FileSpeakers { count: asked.speakers, names: Box::new(names) }
            }),
            first_id: row.next_segment,
        };
        let (mut summary, segments) = work(services, audio, ask).await?;
        summary.warnings.extend(services.registry.instead(Task::of_transcript(asked.diarize)));
        let progress = Progress { next_segment: next_id(&segments, row.next_segment), ..row.progress() };
        let result = FinalResult {
            text: texts(&segments),
            language: if summary.language.is_empty() { row.language.clone() } else { summary.language },
            duration: summary.secs,
            segments,
            unavailable: Vec::new(),
            warnings: summary.warnings,
            again: true,
        };
        let mut notes = vec![Note::Retold(id.clone(), progress)];
        if asked.diarize {
            notes.push(Note::Speakers(id.clone(), lock(&speakers).without_voices()));
        }
        self.tell_again(&row, &result, notes).await?;
        Ok(Retold { result, probability: summary.probability, without_words: summary.without_words })
    }

    /// Publishes the result, if the session is what it was when the work began.
    async fn tell_again(&self, row: &SessionRow, result: &FinalResult, notes: Vec<Note>) -> Result<()> {
        let services = self.services();
        let changed = || {
            Error::new(Kind::Busy, "the session has gone on meanwhile: what was transcribed of it is not the whole")
                .hint("transcribe it when it is over")
        };
        // While this place is held nobody comes in; it takes as long as a commit.
        let (entered, _door) = self.enter(&row.id).ok_or_else(changed)?;
        if services.store.session(&row.id).await?.as_ref() != Some(row) {
            return Err(changed());
        }
        let (kind, device) = (EventType::TranscriptFinal, row.device.as_str().into());
        let draft = Draft { kind, device, session: Some(row.id.clone()), data: json!(result) };
        let published = services.hub.publish_with(draft, notes).await;
        let mut committed = services.store.committed();
        let reached = committed.wait_for(|committed| *committed >= published.position);
        if timeout(COMMIT_LIMIT, reached).await.is_err() {
            log::error!(session = row.id.as_str(); "the new transcript is told before it is on disk");
        }
        drop(entered);
        Ok(())
    }
}

/// What the session's client asked, with what is asked now in its place.
struct Asked {
    transcribe: TranscribeAsk,
    diarize: bool,
    speakers: Option<usize>,
}

impl Asked {
    fn new(
        services: &Services,
        row: &SessionRow,
        config: Option<&crate::flow::SessionConfig>,
        again: Again,
    ) -> Result<Asked> {
        let can_diarize = services.registry.installed(Task::Diarize);
        let diarize = match again.diarize {
            Some(true) => can_diarize.map(|()| true)?,
            Some(false) => false,
            None => can_diarize.is_ok() && config.is_none_or(|it| it.diarize != crate::flow::Wish::No),
        };
        let language = again.language.unwrap_or_else(|| row.language.clone());
        let transcribe = TranscribeAsk {
            words: again.words.unwrap_or_else(|| config.is_some_and(|it| it.words)),
            translate: again.translate.unwrap_or_else(|| config.is_some_and(|it| it.translate)),
            prompt: again.prompt.or_else(|| config?.prompt.clone()),
            ..TranscribeAsk::of(Vec::new().into(), &language)
        };
        Ok(Asked { transcribe, diarize, speakers: again.speakers })
    }
}

fn closed(row: Option<SessionRow>, id: &SessionId) -> Result<SessionRow> {
    let row = row.ok_or_else(|| Error::new(Kind::NotFound, format!("there is no session {id}")))?;
    match row.state {
        SessionState::Closed => Ok(row),
        SessionState::Open => Err(Error::invalid("this session is still open")
            .hint("it is transcribed as it goes; end it, then transcribe it again")),
    }
}

/// All segments in the end, and what is known besides.
async fn work(services: &Services, audio: KeptAudio, ask: FileAsk) -> Result<(FileSummary, Vec<TextSegment>)> {
    let desk = FileDesk {
        voice: services.registry.voice().await?,
        queue: services.queue.clone(),
        priority: Priority::Batch,
        batch: 1,
    };
    let (news, mut told) = mpsc::channel(NEWS_QUEUE);
    let segments = async {
        let mut segments = Vec::new();
        while let Some(news) = told.recv().await {
            if let FileNews::Segment(segment) = news {
                segments.push(segment);
            }
        }
        segments
    };
    let transcribed = async { tokio::join!(desk.transcribe(audio, ask, news), segments) };
    let (summary, segments) = tokio::select! {
        done = transcribed => done,
        () = services.shutdown.wait() => {
            return Err(Error::new(Kind::Busy, "the daemon is going down").hint("ask again when it is back"));
        }
    };
    let mut summary = summary?;
    let segments = summary.spoken.take().unwrap_or(segments);
    Ok((summary, segments))
}

fn next_id(segments: &[TextSegment], first: u64) -> u64 {
    segments.iter().map(|segment| segment.id + 1).fold(first, u64::max)
}

fn texts(segments: &[TextSegment]) -> String {
    let texts = segments.iter().map(|segment| segment.text.as_str()).filter(|text| !text.is_empty());
    texts.collect::<Vec<&str>>().join(" ")
}

/// The audio of all takes, end to end, as its session counts. A take that was dropped is silence.
struct KeptAudio {
    audio_log: AudioLog,
    session: SessionId,
    /// What is still to be read.
    parts: VecDeque<Part>,
    /// What was read.
    samples: Vec<f32>,
    at: usize,
    secs: f64,
}

struct Part {
    take: u64,
    from: u64,
    to: u64,
    dropped: bool,
}

impl KeptAudio {
    async fn open(services: &Services, row: &SessionRow) -> Result<KeptAudio> {
        let (audio_log, session) = (services.audio_log.clone(), row.id.clone());
        let takes = audio_log.takes(&session);
        if takes.is_empty() {
            return Err(Error::new(Kind::NotFound, "no audio is kept of this session").hint(
                match services.keep_audio {
                    true => "it had none, or made room for newer audio: store.max_audio sets how much is kept",
                    false => "set store.keep_audio = true to keep the audio of the sessions to come",
                },
            ));
        }
        let dropped = services.store.dropped_takes(&session).await?;
        let (mut parts, mut samples) = (VecDeque::new(), 0);
        for take in takes {
            // Only where it ends is asked for.
            let end = audio_log.read(&session, take, u64::MAX..u64::MAX).await?.end;
            samples += end;
            let dropped = dropped.contains(&take);
            let starts = (0..end).step_by(READ_AT_A_TIME as usize);
            parts.extend(starts.map(|from| Part { take, from, to: end.min(from + READ_AT_A_TIME), dropped }));
        }
        let secs = samples_to_secs(samples);
        if (secs - row.duration_secs).abs() > MISSING_SECS {
            let kept = format!("{secs:.1} s of the session's {:.1} s of audio are kept", row.duration_secs);
            return Err(Error::new(Kind::NotFound, kept)
                .hint("what is missing was not kept, or did not fit on the disk: it cannot be transcribed again"));
        }
        Ok(KeptAudio { audio_log, session, parts, samples: Vec::new(), at: 0, secs })
    }

    async fn read(&self, part: &Part) -> Result<Vec<f32>> {
        let len = (part.to - part.from) as usize;
        if part.dropped {
            return Ok(vec![0.0; len]);
        }
        let audio = self.audio_log.read(&self.session, part.take, part.from..part.to).await?;
        if audio.samples.len() != len {
            return Err(Error::new(Kind::NotFound, "the session's audio has gone meanwhile")
                .hint("it made room for newer audio, or somebody deleted the session"));
        }
        Ok(audio.samples.iter().map(|sample| f32::from(*sample) / 32768.0).collect())
    }
}

impl Recorded for KeptAudio {
    async fn next(&mut self) -> Option<Result<Vec<f32>>> {
        if self.at == self.samples.len() {
            let part = self.parts.pop_front()?;
            self.at = 0;
            match self.read(&part).await {
                Ok(samples) => self.samples = samples,
                Err(error) => return Some(Err(error)),
            }
        }
        let next = &self.samples[self.at..][..STRIDE.min(self.samples.len() - self.at)];
        self.at += next.len();
        Some(Ok(next.to_vec()))
    }

    fn duration(&self) -> Option<Duration> {
        Some(Duration::from_secs_f64(self.secs))
    }
}
