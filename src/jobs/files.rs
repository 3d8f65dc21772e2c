//! A recording of any length becomes text: decoded as it is needed, listened to, cut into windows of speech, and each
//! window asked for through the queue, so that somebody who is speaking is served between two of them. Holds the audio
//! of one window at a time, whatever the recording's length.

use std::time::{Duration, Instant};

use tokio::{sync::mpsc, time::timeout};

use crate::{
    base::{Error, Kind, Result},
    engines::{
        Asr, Guards, Heard, PieceText, TranscribeAsk, Voice, VoiceState, VoiceStream,
        diarize::{Cast, Voices, attribute},
        longform::{BySpeech, text_segment},
    },
    flow::{Priority, TextSegment, Warning, audio::samples_to_secs},
    jobs::{Ask, Overhearing, Queue},
    media::FileStream,
    segment::{Tape, Voiced, Windows, speech::FRAME},
};

/// Frames that are heard at a time: one second. More would only make the memory larger.
const FRAMES_AT_A_TIME: usize = 31;

/// The voice detector answers each of these within milliseconds.
const HEAR_LIMIT: Duration = Duration::from_secs(30);

/// Nobody reads faster.
const PROGRESS_EVERY: Duration = Duration::from_millis(250);

/// What is to be made of a recording.
pub struct FileAsk {
    /// Its pieces are not looked at.
    pub transcribe: TranscribeAsk,
    pub speakers: Option<FileSpeakers>,
    /// The id of its first segment.
    pub first_id: u64,
}

/// How its speakers are told apart.
pub struct FileSpeakers {
    /// How many there are, where it is known.
    pub count: Option<usize>,
    /// What they are called, in their order.
    pub names: Naming,
}

/// What the speakers of a recording are called.
pub type Naming = Box<dyn FnOnce(&Cast) -> Vec<String> + Send + Sync>;

impl FileSpeakers {
    /// Called by their names where they are known.
    pub fn known(count: Option<usize>, known: Voices) -> FileSpeakers {
        FileSpeakers { count, names: Box::new(move |cast| cast.names(&known)) }
    }
}

/// Where the samples of a recording come from.
pub trait Recorded: Send {
    /// The next ones, at 16 kHz; None when these were all, or after an error.
    fn next(&mut self) -> impl Future<Output = Option<Result<Vec<f32>>>> + Send;

    /// How long it is, where that is known.
    fn duration(&self) -> Option<Duration>;

    /// Why it is not whole; known at its end.
    fn warning(&self) -> Option<Warning> {
        None
    }
}

impl Recorded for FileStream {
    async fn next(&mut self) -> Option<Result<Vec<f32>>> {
        FileStream::next(self).await
    }

    fn duration(&self) -> Option<Duration> {
        FileStream::duration(self)
    }

    fn warning(&self) -> Option<Warning> {
        FileStream::warning(self).cloned()
    }
}

/// What is told while the work goes on. Who speaks is known at its end only.
#[derive(Debug, Clone, PartialEq)]
pub enum FileNews {
    Segment(TextSegment),
    /// Seconds of the recording that are done, and how many there will be, where the file says so.
    Progress {
        secs: f64,
        of: Option<f64>,
    },
}

/// What is known at the end. The text is in the segments.
#[derive(Debug, Clone, PartialEq)]
pub struct FileSummary {
    /// As asked for, or as found; empty where nobody speaks and none was asked for.
    pub language: String,
    /// How sure the model is of the language.
    pub probability: f32,
    pub secs: f64,
    /// Words were asked for, and this model cannot tell their times.
    pub without_words: bool,
    /// Why the text is not that of the whole recording, or not by what the settings want to have made it.
    pub warnings: Vec<Warning>,
    /// All segments once more, with their speakers, and cut where the speaker changes. None where nobody asked who speaks.
    pub spoken: Option<Vec<TextSegment>>,
}

/// Where a recording is listened to and transcribed.
pub struct FileDesk {
    pub voice: Voice,
    pub queue: Queue,
    pub priority: Priority,
    /// Windows that go to the engine together: a live caller waits for all of them.
    pub batch: usize,
}

impl FileDesk {
    /// Dropping the future ends the work at the engine's next step; so does dropping the other end of `news`.
    pub async fn transcribe(
        &self,
        mut stream: impl Recorded,
        ask: FileAsk,
        news: mpsc::Sender<FileNews>,
    ) -> Result<FileSummary> {
        let mut work = Work::new(self, ask, news);
        let mut samples = Vec::new();
        while let Some(decoded) = stream.next().await {
            samples.extend(decoded?);
            let whole = samples.len() / FRAME_LEN * FRAME_LEN;
            if whole >= FRAMES_AT_A_TIME * FRAME_LEN {
                let rest = samples.split_off(whole);
                work.hear(&samples).await?;
                samples = rest;
                work.tell_progress(stream.duration()).await?;
            }
        }
        let summary = work.finish(&samples).await?;
        Ok(FileSummary { warnings: stream.warning().into_iter().collect(), ..summary })
    }
}

const FRAME_LEN: usize = FRAME as usize;

/// One recording on its way.
struct Work<'a> {
    desk: &'a FileDesk,
    ears: Ears,
    machine: BySpeech,
    tape: Tape,
    heard: u64,
    asked_language: String,
    /// Whether times of words are told; to cut where the speaker changes they are asked for in any case.
    tells_words: bool,
    speakers: Option<(Overhearing, FileSpeakers)>,
    /// What was told, for its speakers.
    told: Vec<TextSegment>,
    /// Its first window has found a place in the queue.
    begun: bool,
    news: mpsc::Sender<FileNews>,
    next_id: u64,
    told_at: Instant,
}

impl<'a> Work<'a> {
    fn new(desk: &'a FileDesk, ask: FileAsk, news: mpsc::Sender<FileNews>) -> Work<'a> {
        let FileAsk { transcribe, speakers, first_id } = ask;
        let tells_words = transcribe.words;
        let transcribe = TranscribeAsk { words: tells_words || speakers.is_some(), ..transcribe };
        Work {
            desk,
            ears: Ears::open(&desk.voice),
            asked_language: transcribe.language.clone(),
            tells_words,
            speakers: speakers.map(|speakers| (Overhearing::new(desk.queue.clone(), desk.priority), speakers)),
            told: Vec::new(),
            machine: BySpeech::new(transcribe, Windows::default(), desk.batch, Guards::default()),
            tape: Tape::default(),
            heard: 0,
            begun: false,
            news,
            next_id: first_id,
            told_at: Instant::now(),
        }
    }

    /// Whole frames.
    async fn hear(&mut self, samples: &[f32]) -> Result<()> {
        self.heard += samples.len() as u64;
        self.tape.push(samples);
        self.ears.hear(samples).await?.into_iter().for_each(|voiced| self.machine.hear(voiced));
        self.transcribe_windows().await?;
        self.tape.forget_before(self.machine.needed_from());
        // After the first window has found its place: a queue that is full refuses the recording at the door.
        if let Some((overhearing, _)) = &mut self.speakers {
            overhearing.hear(samples).await?;
        }
        Ok(())
    }

    async fn finish(mut self, rest: &[f32]) -> Result<FileSummary> {
        self.heard += rest.len() as u64;
        self.tape.push(rest);
        // A last part of a frame is filled up with silence, so that it is heard as well.
        let mut filled = rest.to_vec();
        filled.resize(rest.len().next_multiple_of(FRAME_LEN), 0.0);
        self.ears.hear(&filled).await?.into_iter().for_each(|voiced| self.machine.hear(voiced));
        self.machine.finish(self.heard);
        self.transcribe_windows().await?;
        let spoken = match self.speakers.take() {
            Some((mut overhearing, speakers)) => {
                overhearing.hear(rest).await?;
                let cast = overhearing.finish(speakers.count).await?;
                let names = (speakers.names)(&cast);
                Some(self.attributed(&cast, &names))
            }
            None => None,
        };
        let secs = rounded(samples_to_secs(self.heard));
        self.tell(FileNews::Progress { secs, of: Some(secs) }).await?;
        let asked = if self.asked_language == "auto" { String::new() } else { self.asked_language };
        let found = self.machine.language().map(|(language, probability)| (language.to_owned(), probability));
        let (language, probability) = found.unwrap_or((asked, 0.0));
        Ok(FileSummary {
            language,
            probability,
            secs,
            without_words: self.machine.without_words(),
            warnings: Vec::new(),
            spoken,
        })
    }

    async fn transcribe_windows(&mut self) -> Result<()> {
        while let Some(request) = self.machine.request() {
            let answers = self.ask(request.ask(|from, to| self.tape.cut(from, to))).await?;
            let language = answers.first().map(|it| it.language.clone()).unwrap_or_default();
            for segment in self.machine.accept(answers)? {
                let language = self.machine.language().map_or(&*language, |(language, _)| language);
                let segment = text_segment(self.next_id, language, segment);
                self.next_id += 1;
                if self.speakers.is_some() {
                    self.told.push(segment.clone());
                }
                self.tell(FileNews::Segment(self.without_words(segment))).await?;
            }
        }
        Ok(())
    }

    /// Unless they were asked for.
    fn without_words(&self, segment: TextSegment) -> TextSegment {
        if self.tells_words { segment } else { TextSegment { words: Vec::new(), ..segment } }
    }

    fn attributed(&mut self, cast: &Cast, names: &[String]) -> Vec<TextSegment> {
        let told = std::mem::take(&mut self.told);
        let spoken = attribute(told, &cast.turns, |speaker| names[speaker].clone(), &mut self.next_id);
        spoken.into_iter().map(|segment| self.without_words(segment)).collect()
    }

    async fn ask(&mut self, ask: TranscribeAsk) -> Result<Vec<PieceText>> {
        let ask = Ask::<Asr>::new(ask);
        // Refused at the door where the queue is full; once begun, a recording waits for its turn.
        let answer = if self.begun {
            self.desk.queue.submit_patiently(self.desk.priority, ask).await?
        } else {
            self.desk.queue.submit(self.desk.priority, ask)?
        };
        self.begun = true;
        answer.await
    }

    async fn tell_progress(&mut self, of: Option<Duration>) -> Result<()> {
        if self.told_at.elapsed() < PROGRESS_EVERY {
            return Ok(());
        }
        self.told_at = Instant::now();
        let secs = samples_to_secs(self.heard);
        // A file may say less than it holds.
        let of = of.map(|of| rounded(of.as_secs_f64().max(secs)));
        self.tell(FileNews::Progress { secs: rounded(secs), of }).await
    }

    async fn tell(&self, news: FileNews) -> Result<()> {
        self.news.send(news).await.map_err(|_| Error::new(Kind::Cancelled, "whoever asked has left"))
    }
}

/// Milliseconds are what the frames can tell; more digits would only look exact.
fn rounded(secs: f64) -> f64 {
    (secs * 1000.0).round() / 1000.0
}

/// A recording's stream to the voice detector, in lockstep: what is handed in is heard before more comes.
struct Ears {
    stream: VoiceStream,
    /// Each frame; nothing more after an error.
    heard: mpsc::Receiver<Result<Voiced>>,
}

impl Ears {
    fn open(voice: &Voice) -> Ears {
        // All that is handed in at a time has a place, so that the listening thread never waits.
        let (sink, heard) = mpsc::channel(2 * FRAMES_AT_A_TIME);
        let hear = move |heard: Heard<'_>| {
            let told = match heard {
                Heard::Frame { voiced, .. } => Ok(voiced),
                Heard::Failed(error) => Err(error),
                // Nobody ends these streams.
                Heard::End => return,
            };
            if let Err(error) = sink.try_send(told) {
                log::debug!("nobody listens to a recording any more: {error}");
            }
        };
        let stream = voice.open(VoiceState::default(), Box::new(hear));
        Ears { stream, heard }
    }

    /// Whole frames.
    async fn hear(&mut self, samples: &[f32]) -> Result<Vec<Voiced>> {
        let mut frames = Vec::with_capacity(samples.len() / FRAME_LEN);
        for chunk in samples.chunks(FRAMES_AT_A_TIME * FRAME_LEN) {
            self.stream.push(chunk);
            for _ in 0..chunk.len() / FRAME_LEN {
                let late = |_| Error::new(Kind::Timeout, "the voice detector does not answer");
                let heard = timeout(HEAR_LIMIT, self.heard.recv()).await.map_err(late)?;
                frames.push(heard.ok_or_else(|| Error::internal("the voice detector has ended"))??);
            }
        }
        Ok(frames)
    }
}
