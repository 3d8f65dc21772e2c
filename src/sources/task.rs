//! A session's task: serves one client after another, and one take after another, each from its first chunk to its final
//! result. Carries out what `course` decides, in one loop that never waits for one thing alone, so that results go out
//! while audio comes in, and a full stage only holds back its client.
//!
//! `door`: clients come and go; `finish`: a take comes to its end; `tell`: what is told to whom.

mod door;
mod finish;
mod tell;

use std::time::Duration;

use bytes::Bytes;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, sleep_until},
};

use crate::{
    base::{Error, Result},
    engines::Voice,
    flow::{SAMPLE_RATE_HZ, SessionConfig, audio::samples_to_secs},
    media::AudioDecoder,
    segment::SessionLanguage,
    sources::{
        Coming, Input, Said, SharedServices, Told,
        acks::{Ack, Acks},
        analysis::{Analysed, Analysing},
        chunks::Chunks,
        course::{Course, Duty, Happening},
        intake::{Arrival, Intake},
        line::Line,
        recovery::{Left, Replay},
        speakers::{Before, Overheard, SessionSpeakers},
        take::{News, Take, TakeParts, TakeStep},
    },
    store::{Place, Progress, SessionRow},
    telemetry::events::{ChunkReceived, DecoderFailed, SamplesDecoded, emit},
};

/// A session begins because of a client that is about to come in.
const FIRST_CLIENT_LIMIT: Duration = Duration::from_secs(30);

/// How far a session had come when its last take was over.
#[derive(Debug, Clone, Copy)]
pub(super) struct Timeline {
    pub(super) takes: u64,
    pub(super) next_segment: u64,
    /// 16 kHz samples of all its takes.
    pub(super) samples: u64,
}

impl Timeline {
    pub(super) fn of(row: &SessionRow) -> Timeline {
        let samples = (row.duration_secs * f64::from(SAMPLE_RATE_HZ)).round() as u64;
        Timeline { takes: row.takes, next_segment: row.next_segment, samples }
    }

    fn progress(&self) -> Progress {
        Progress { takes: self.takes, duration_secs: samples_to_secs(self.samples), next_segment: self.next_segment }
    }
}

/// A client at the door.
pub(super) struct Arriving {
    pub(super) config: SessionConfig,
    pub(super) coming: Coming,
    pub(super) transcribes: bool,
    pub(super) diarizes: bool,
    /// For its first take, or for the one that it goes on with.
    pub(super) decoder: AudioDecoder,
    pub(super) input: mpsc::Receiver<Input>,
    pub(super) output: mpsc::Sender<Told>,
    /// Closed: it has not waited.
    pub(super) reply: oneshot::Sender<Result<Admitted>>,
}

/// What a client that is let in is told.
#[derive(Debug)]
pub(super) struct Admitted {
    pub(super) resumed: bool,
    pub(super) received_samples: u64,
    pub(super) take_open: bool,
    pub(super) seq: u64,
}

pub(super) struct SessionTask {
    services: SharedServices,
    /// What the client asks; the times of words are asked for to tell speakers apart as well.
    config: SessionConfig,
    /// Whether the client wants them.
    tells_words: bool,
    voice: Voice,
    transcribes: bool,
    speakers: SessionSpeakers,
    /// Whether they are told apart.
    diarizes: bool,
    course: Course,
    timeline: Timeline,
    /// As the takes before this one left it.
    language: SessionLanguage,
    take: Option<Take>,
    analysis: Analysing,
    /// What the take has to hear again before anything new.
    replay: Option<Replay>,
    door: mpsc::Receiver<Box<Arriving>>,
    /// The newest client at the door.
    arriving: Option<Box<Arriving>>,
    intake: Intake,
    line: Line,
    chunks: Chunks,
    acks: Acks,
    durable: watch::Receiver<u64>,
    /// 16 kHz samples of the session that are on disk.
    durable_samples: u64,
    /// What comes belongs to a take that has no decoder (all pipelines are taken) and is given up whole: one that were
    /// free a moment later would begin in the middle of it.
    passes_over: bool,
    /// The client says goodbye.
    goodbye: bool,
    /// The disk failed: said once, not with every chunk.
    disk_failed: bool,
    /// The client may come back until then.
    awaited_until: Option<Instant>,
    /// What is left of the take that is being finished is given up then.
    finish_by: Option<Instant>,
    stopping: bool,
}

/// What a session's task begins with.
pub(super) struct Beginning {
    pub(super) config: SessionConfig,
    pub(super) voice: Voice,
    pub(super) transcribes: bool,
    pub(super) speakers: SessionSpeakers,
    pub(super) diarizes: bool,
    pub(super) course: Course,
    pub(super) timeline: Timeline,
    pub(super) language: SessionLanguage,
    /// The take that an earlier daemon left open.
    pub(super) left: Option<Left>,
    /// An earlier daemon has begun to analyse it.
    pub(super) owes_analysis: bool,
    pub(super) door: mpsc::Receiver<Box<Arriving>>,
}

/// One thing that happened to a session.
enum Step {
    Stop,
    Came(Option<Box<Arriving>>),
    Take(TakeStep),
    Replayed(Vec<f32>),
    Arrived(Arrival),
    Analysed(Result<Analysed>),
    Durable,
    AckDue,
    WindowOver,
    /// The take is not finished in time.
    Late,
}

/// Whether the session is over for this task.
type Over = bool;

impl SessionTask {
    pub(super) fn new(services: SharedServices, beginning: Beginning) -> SessionTask {
        let Beginning {
            config,
            voice,
            transcribes,
            speakers,
            diarizes,
            course,
            timeline,
            language,
            left,
            owes_analysis,
            door,
        } = beginning;
        let analysis = match (owes_analysis, &left) {
            (false, _) => Analysing::Idle,
            (true, None) => Analysing::start(&services, &config.id),
            (true, Some(_)) => Analysing::Due,
        };
        let tells_words = config.words;
        let mut task = SessionTask {
            durable: services.audio_log.durable(),
            // Whoever was cut off by the end of the daemon has the whole window from its start on.
            awaited_until: Instant::now().checked_add(if course.is_known() {
                services.resume_window
            } else {
                FIRST_CLIENT_LIMIT
            }),
            services,
            config: asking(config, diarizes),
            tells_words,
            voice,
            transcribes,
            speakers,
            diarizes,
            course,
            durable_samples: timeline.samples,
            timeline,
            language,
            take: None,
            analysis,
            replay: None,
            door,
            arriving: None,
            intake: Intake::default(),
            line: Line::default(),
            chunks: Chunks::default(),
            acks: Acks::default(),
            passes_over: false,
            goodbye: false,
            disk_failed: false,
            finish_by: None,
            stopping: false,
        };
        if let Some(left) = left {
            task.go_on(left);
        }
        task
    }

    fn go_on(&mut self, left: Left) {
        let Left { kept, marks, replay, chunk_id } = left;
        self.timeline.takes += 1;
        self.durable_samples += marks.journaled_to();
        self.chunks = Chunks::resumed(chunk_id);
        self.take = Some(Take::resume(self.take_parts(marks.at()), kept, marks));
        self.replay = Some(replay);
    }

    /// Until the session is over, or the daemon stops. Returns what is still being found out about it.
    pub(super) async fn run(mut self) -> Analysing {
        loop {
            let step = self.step().await;
            if self.carry_on(step).await || self.settle().await {
                return self.analysis;
            }
        }
    }

    /// What happens next. Every wait here can be given up without loss.
    async fn step(&mut self) -> Step {
        // A take that is being finished, or whose client is gone, is heard as fast as can be: there is nobody to be held
        // back.
        let live = self.course.take_is_open() && self.course.has_client();
        let room = self.take.as_ref().is_none_or(|take| if live { take.has_room() } else { take.keeps_up() });
        let replays = self.replay.is_some();
        let listens = self.course.listens() && !replays && room;
        let waits_for_disk = self.acks.newest_ticket().is_some();
        let ack_due = self.acks.due_at();
        let SessionTask {
            services,
            door,
            take,
            analysis,
            replay,
            intake,
            durable,
            awaited_until,
            finish_by,
            stopping,
            ..
        } = self;
        tokio::select! {
            biased;
            () = services.shutdown.wait(), if !*stopping => Step::Stop,
            arriving = door.recv() => Step::Came(arriving),
            step = next_of(take) => Step::Take(step),
            Ok(()) = durable.changed(), if waits_for_disk => Step::Durable,
            () = at(ack_due), if ack_due.is_some() => Step::AckDue,
            () = at(*awaited_until), if awaited_until.is_some() => Step::WindowOver,
            () = at(*finish_by), if finish_by.is_some() => Step::Late,
            done = analysis.done(), if analysis.is_running() => Step::Analysed(done),
            samples = next_again(replay), if room && replays => Step::Replayed(samples),
            arrival = intake.next(room && !replays, listens) => Step::Arrived(arrival),
        }
    }

    async fn carry_on(&mut self, step: Step) -> Over {
        match step {
            Step::Stop => {
                self.stopping = true;
                return self.on(Happening::Stop).await;
            }
            Step::Came(Some(arriving)) => {
                let resumes = arriving.coming.resumes;
                // One that is still waiting learns of it by its reply going away.
                self.arriving = Some(arriving);
                return self.on(Happening::Came { resumes }).await;
            }
            // Nobody can come any more: the daemon is being taken down.
            Step::Came(None) => return true,
            Step::Take(step) => self.take_step(step).await,
            Step::Replayed(samples) if samples.is_empty() => self.replay = None,
            Step::Replayed(samples) => self.hear_again(&samples),
            Step::Arrived(arrival) => return self.arrived(arrival).await,
            Step::Analysed(done) => self.tell_analysis(done).await,
            Step::Durable => self.note_durable(),
            Step::AckDue => self.say_ack().await,
            Step::WindowOver => {
                self.awaited_until = None;
                return self.on(Happening::WindowOver).await;
            }
            Step::Late => self.give_up().await,
        }
        false
    }

    async fn on(&mut self, happening: Happening) -> Over {
        let mut duty = self.course.on(happening);
        while let Some(next) = duty.take() {
            match next {
                Duty::BeginTake => self.begin_take(),
                Duty::FinishTake => self.begin_to_finish(),
                Duty::DropTake => {
                    self.drop_take().await;
                    duty = self.course.on(Happening::TakeOver);
                }
                Duty::SayEmpty => self.say_empty().await,
                Duty::LetIn { resumed } => {
                    if !self.let_in(resumed).await {
                        duty = self.course.on(Happening::WentAway);
                    }
                }
                Duty::AwaitClient => self.await_client(),
                Duty::EndSession => {
                    self.end_session().await;
                    return true;
                }
                Duty::Leave => {
                    self.say(Said::Closing).await;
                    return true;
                }
            }
        }
        false
    }

    async fn arrived(&mut self, arrival: Arrival) -> Over {
        match arrival {
            Arrival::Input(Input::Audio { data, chunk_id }) => return self.audio(data, chunk_id).await,
            Arrival::Input(Input::End) => {
                self.passes_over = false;
                return self.on(Happening::End).await;
            }
            Arrival::Input(Input::Cancel) => {
                self.passes_over = false;
                return self.on(Happening::Cancel).await;
            }
            Arrival::Input(Input::Wrong { error, fatal }) => self.say(Said::Failed { error, fatal }).await,
            Arrival::Input(Input::Goodbye) => self.goodbye = true,
            Arrival::Left => {
                self.line.hang_up();
                self.passes_over = false;
                let done = std::mem::take(&mut self.goodbye);
                return self.on(Happening::Left { done }).await;
            }
            Arrival::Refused(error) => {
                self.chunks.refused();
                self.fail(error).await;
            }
            Arrival::Samples(Ok(samples)) => self.listen(&samples).await,
            Arrival::Samples(Err(error)) => self.break_off(error).await,
            Arrival::Decoded => {}
        }
        false
    }

    async fn audio(&mut self, data: Bytes, chunk_id: Option<u64>) -> Over {
        emit(ChunkReceived { bytes: data.len() });
        if self.passes_over || self.chunks.is_replay(chunk_id) {
            return false;
        }
        if !self.intake.has_decoder() && !self.course.take_is_open() {
            match self.services.media.audio_decoder(self.config.format).await {
                Ok(decoder) => self.intake.set_decoder(decoder),
                Err(error) => {
                    self.passes_over = true;
                    self.fail(error).await;
                    return false;
                }
            }
        }
        let over = self.on(Happening::Audio).await;
        self.chunks.pushed(chunk_id);
        self.intake.push(data);
        over
    }

    fn begin_take(&mut self) {
        self.timeline.takes += 1;
        self.analysis.put_off();
        self.take = Some(Take::new(self.take_parts(0)));
    }

    /// Its audio before that sample comes no more.
    fn take_parts(&self, from: u64) -> TakeParts<'_> {
        let before = || Before {
            audio_log: self.services.audio_log.clone(),
            session: self.config.id.clone(),
            take: self.timeline.takes,
            until: from,
        };
        TakeParts {
            number: self.timeline.takes,
            voice: &self.voice,
            rules: self.services.rules,
            transcribes: self.transcribes,
            partials: self.services.partials,
            shows_partials: self.config.partials,
            language: self.language.clone(),
            offset: self.timeline.samples,
            next_segment: self.timeline.next_segment,
            overheard: self.diarizes.then(|| Overheard::start(self.services.queue.clone(), before())),
        }
    }

    /// The stream cannot be read on: its further bytes mean nothing until the client ends the take.
    async fn break_off(&mut self, error: Error) {
        emit(DecoderFailed { encoding: self.config.format.encoding.name() });
        self.intake.break_off();
        self.fail(error).await;
    }

    /// Samples that the log holds already.
    fn hear_again(&mut self, samples: &[f32]) {
        if let Some(take) = &mut self.take {
            take.listen(samples, &self.services.queue, &self.config);
        }
    }

    async fn listen(&mut self, samples: &[f32]) {
        let Some(take) = &mut self.take else { return };
        emit(SamplesDecoded { samples: samples.len() });
        // What is heard is what the log holds, to the bit: after a crash it is heard from there.
        let pcm: Vec<i16> = samples.iter().map(|sample| (sample * 32768.0).round() as i16).collect();
        let heard: Vec<f32> = pcm.iter().map(|sample| f32::from(*sample) / 32768.0).collect();
        let fresh = take.listen(&heard, &self.services.queue, &self.config);
        if self.config.format.is_direct() {
            self.chunks.decoded();
        }
        if !self.disk_failed {
            self.journal(&pcm[fresh..]).await;
        }
    }

    async fn journal(&mut self, pcm: &[i16]) {
        let Some(take) = &mut self.take else { return };
        let first = take.samples() - pcm.len() as u64;
        let chunk_id = self.chunks.newest();
        let place = Place { session: &self.config.id, take: take.number(), first_sample: first, chunk_id };
        match self.services.audio_log.append(place, pcm).await {
            Ok(ticket) => {
                take.marks().journaled();
                let received_samples = self.timeline.samples + take.samples();
                self.acks.hand_in(ticket, Ack { received_samples, chunk_id });
            }
            Err(error) => {
                self.disk_failed = true;
                log::error!(session = self.config.id.as_str(); "{}", error.full());
                let told =
                    Error::new(error.kind(), "the audio cannot be kept on disk: no more acks on this connection")
                        .hint("the session goes on; look at the disk of the box");
                self.fail(told).await;
            }
        }
    }

    async fn take_step(&mut self, step: TakeStep) {
        let Some(take) = &mut self.take else { return };
        match step {
            TakeStep::News => {
                for news in take.hear(&self.services.queue, &self.config) {
                    self.tell(news).await;
                }
                if let Some(error) = self.take.as_ref().and_then(Take::failure) {
                    self.break_off(error).await;
                }
            }
            TakeStep::Final(done) => {
                if let Some(news) = take.final_news(*done, &self.services.queue, &self.config) {
                    self.tell(news).await;
                }
            }
            TakeStep::Partial(texts) => {
                if let Some(partial) = take.partial_news(texts) {
                    self.show(partial).await;
                }
            }
            // Its segment may have been closed meanwhile: its final text follows, and says more.
            TakeStep::Kept(partial) if !take.is_open(partial.segment) => {}
            TakeStep::Kept(partial) => self.tell(News::Partial(partial)).await,
            TakeStep::Overheard => {}
            TakeStep::PartialDue => take.ask_partial(&self.services.queue, &self.config),
        }
    }
}

/// Times of words say where a segment is to be cut, if the speaker changes.
fn asking(config: SessionConfig, diarizes: bool) -> SessionConfig {
    SessionConfig { words: config.words || diarizes, ..config }
}

async fn next_of(take: &mut Option<Take>) -> TakeStep {
    match take {
        Some(take) => take.next().await,
        None => std::future::pending().await,
    }
}

async fn next_again(replay: &mut Option<Replay>) -> Vec<f32> {
    replay.as_mut().map(Replay::next).unwrap_or_default()
}

async fn at(due: Option<Instant>) {
    if let Some(due) = due {
        sleep_until(due).await;
    }
}
