//! A session's task: takes one after another, each from its client's chunks to its final result. One loop that never
//! waits for one thing alone, so that results go out while audio comes in, and a full stage only holds back its client.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt;
use serde_json::json;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep_until},
};

use crate::{
    base::{Error, Kind, Result},
    engines::{Asr, Voice, transcript},
    flow::{Draft, EventType, SAMPLE_RATE_HZ, SessionConfig, Task, TextSegment, Transcript, audio::samples_to_secs},
    jobs::Answer,
    media::AudioDecoder,
    publish::Published,
    sources::{
        FinalResult, Input, Said, SharedServices,
        acks::{Ack, Acks},
        take::{DRAIN_LIMIT, News, Take, TakeParts},
    },
    store::{Progress, SessionRow},
    telemetry::events::{ChunkReceived, DecoderFailed, SamplesDecoded, SegmentCut, emit},
};

/// Where a session stands when a client comes to it.
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

pub(super) struct SessionTask {
    services: SharedServices,
    config: SessionConfig,
    voice: Voice,
    timeline: Timeline,
    input: mpsc::Receiver<Input>,
    output: mpsc::Sender<Said>,
    acks: Acks,
    /// The newest chunk that was decoded, for encodings where a chunk is its samples.
    chunk_id: Option<u64>,
    /// The disk failed: said once, not with every chunk.
    disk_failed: bool,
}

/// One thing that happened to a take.
enum Step {
    Input(Option<Input>),
    Pushed(Result<()>),
    Samples(Option<Result<Vec<f32>>>),
    News,
    Final((TextSegment, Option<Error>)),
    Partial(Option<Transcript>),
    PartialDue,
    Durable,
    AckDue,
    Stop,
}

/// How a take's loop ended.
enum TakeEnd {
    /// Finish it: the rest is decoded, heard and transcribed.
    Finish {
        last: bool,
    },
    Cancelled,
}

impl SessionTask {
    pub(super) fn new(
        services: SharedServices,
        config: SessionConfig,
        voice: Voice,
        timeline: Timeline,
        input: mpsc::Receiver<Input>,
        output: mpsc::Sender<Said>,
    ) -> SessionTask {
        SessionTask {
            services,
            config,
            voice,
            timeline,
            input,
            output,
            acks: Acks::default(),
            chunk_id: None,
            disk_failed: false,
        }
    }

    /// Serves the client until it leaves or the daemon stops; then the session is over.
    pub(super) async fn run(mut self, first_decoder: AudioDecoder, transcribes: bool) {
        let mut decoder = Some(first_decoder);
        let mut last = false;
        while !last {
            // The next take begins with its first chunk.
            let Some(first) = self.first_chunk(transcribes).await else { break };
            let made = match decoder.take() {
                Some(decoder) => Ok(decoder),
                None => self.services.media.audio_decoder(self.config.format).await,
            };
            let mut take = match made {
                Ok(decoder) => self.begin_take(decoder, transcribes),
                Err(error) => {
                    self.say(Said::Failed(error)).await;
                    self.pass_over_take(transcribes).await;
                    continue;
                }
            };
            match self.run_take(&mut take, first).await {
                TakeEnd::Finish { last: is_last } => {
                    last = is_last;
                    self.finish_take(take, transcribes).await;
                }
                TakeEnd::Cancelled => {
                    self.fall_silent(&mut take).await;
                    self.close_take(take.samples(), take.next_segment()).await;
                }
            }
        }
        self.end_session().await;
    }

    async fn first_chunk(&mut self, transcribes: bool) -> Option<Input> {
        loop {
            let input = tokio::select! {
                input = self.input.recv() => input?,
                () = self.services.shutdown.wait() => return None,
            };
            match input {
                Input::Audio { .. } => return Some(input),
                Input::End => self.say_empty(transcribes).await,
                Input::Cancel => {}
            }
        }
    }

    /// A take without a decoder (all pipelines are taken) is given up whole: one that were free a moment later would
    /// begin in the middle of it.
    async fn pass_over_take(&mut self, transcribes: bool) {
        loop {
            let input = tokio::select! {
                input = self.input.recv() => input,
                () = self.services.shutdown.wait() => None,
            };
            match input {
                Some(Input::Audio { .. }) => {}
                Some(Input::End) => return self.say_empty(transcribes).await,
                Some(Input::Cancel) | None => return,
            }
        }
    }

    /// The result of a take that held nothing.
    async fn say_empty(&mut self, transcribes: bool) {
        let result = final_result(Vec::new(), 0, &self.config, transcribes);
        self.say(Said::Final(result)).await;
    }

    fn begin_take(&mut self, decoder: AudioDecoder, transcribes: bool) -> Take {
        self.timeline.takes += 1;
        Take::new(TakeParts {
            decoder,
            voice: &self.voice,
            rules: self.services.rules,
            transcribes,
            partial_interval: self.config.partials.then_some(self.services.partial_interval),
            offset: self.timeline.samples,
            next_segment: self.timeline.next_segment,
        })
    }

    /// Until the client ends the take, drops it, or is gone.
    async fn run_take(&mut self, take: &mut Take, first: Input) -> TakeEnd {
        let mut durable = self.services.audio_log.durable();
        let mut pushing = None;
        let mut step = Step::Input(Some(first));
        loop {
            match step {
                Step::Input(Some(Input::Audio { data, chunk_id })) => {
                    emit(ChunkReceived { bytes: data.len() });
                    // A chunk is its samples only where nothing is decoded.
                    self.chunk_id = chunk_id.filter(|_| self.config.format.is_direct());
                    pushing = Some(data);
                }
                Step::Input(Some(Input::Cancel)) => return TakeEnd::Cancelled,
                Step::Input(Some(Input::End)) => return TakeEnd::Finish { last: false },
                Step::Input(None) | Step::Stop => return TakeEnd::Finish { last: true },
                Step::Pushed(Ok(())) => pushing = None,
                Step::Pushed(Err(error)) => {
                    pushing = None;
                    self.say(Said::Failed(error)).await;
                }
                Step::Samples(Some(Ok(samples))) => self.listen(take, samples).await,
                Step::Samples(Some(Err(error))) => self.break_off(take, error).await,
                // A container may say itself that it is complete; what follows it is not part of the take.
                Step::Samples(None) => take.broken = true,
                Step::News => {
                    self.hear(take).await;
                    if let Err(error) = take.ears.ended() {
                        self.break_off(take, error).await;
                    }
                }
                Step::Final((segment, error)) => self.tell(take, News::Segment(segment, error)).await,
                Step::Partial(transcript) => {
                    if let Some(news) = take.partial_news(transcript) {
                        self.tell(take, news).await;
                    }
                }
                Step::PartialDue => take.ask_partial(&self.services.queue, &self.config),
                Step::Durable => self.acks.reached(*durable.borrow_and_update()),
                Step::AckDue => self.say_ack().await,
            }
            if take.broken {
                pushing = None;
            }
            step = self.step(take, &pushing, &mut durable).await;
        }
    }

    /// What happens next. Every wait here can be given up without loss.
    async fn step(&mut self, take: &mut Take, pushing: &Option<Bytes>, durable: &mut watch::Receiver<u64>) -> Step {
        let room = take.has_room();
        let partial_due = take.partial_due();
        let ack_due = self.acks.due_at();
        let Take { decoder, ears, finals, partial, broken, .. } = take;
        tokio::select! {
            biased;
            () = self.services.shutdown.wait() => Step::Stop,
            () = ears.news() => Step::News,
            Some(done) = finals.next() => Step::Final(done),
            transcript = answer(partial), if partial.is_some() => Step::Partial(transcript),
            () = at(partial_due), if partial_due.is_some() => Step::PartialDue,
            Ok(()) = durable.changed(), if self.acks.newest_ticket().is_some() => Step::Durable,
            () = at(ack_due), if ack_due.is_some() => Step::AckDue,
            samples = decoder.next(), if room && !*broken => Step::Samples(samples),
            // Not while nothing is taken from the decoder: it would give the chunk up as if it were stuck itself.
            pushed = push(decoder, pushing), if room && pushing.is_some() => Step::Pushed(pushed),
            input = self.input.recv(), if room && pushing.is_none() => Step::Input(input),
        }
    }

    /// The stream cannot be read on: its further bytes mean nothing until the client ends the take.
    async fn break_off(&mut self, take: &mut Take, error: Error) {
        emit(DecoderFailed { encoding: self.config.format.encoding.name() });
        take.broken = true;
        self.say(Said::Failed(error)).await;
    }

    /// Hears the rest and tells the final result.
    async fn finish_take(&mut self, mut take: Take, transcribes: bool) {
        take.decoder.end();
        let drained = tokio::time::timeout(DRAIN_LIMIT, async {
            loop {
                // No more at a time than live: a few KiB of compressed silence unfold to hours.
                let samples = tokio::select! {
                    biased;
                    samples = take.decoder.next(), if take.keeps_up() => samples,
                    () = take.ears.news() => {
                        self.hear(&mut take).await;
                        continue;
                    }
                };
                match samples {
                    Some(Ok(samples)) => self.listen(&mut take, samples).await,
                    Some(Err(error)) => {
                        self.say(Said::Failed(error)).await;
                        break;
                    }
                    None => break,
                }
                self.hear(&mut take).await;
            }
            take.end();
            loop {
                self.hear(&mut take).await;
                match take.ears.ended() {
                    Ok(true) => break,
                    Ok(false) => take.ears.news().await,
                    Err(error) => {
                        self.say(Said::Failed(error)).await;
                        break;
                    }
                }
            }
            self.hear(&mut take).await;
        })
        .await;
        if drained.is_err() {
            let error = Error::new(Kind::Timeout, "the rest of the audio was not decoded in time");
            self.say(Said::Failed(error)).await;
        }
        // Each has a limit of its own.
        while let Some((segment, error)) = take.finals.next().await {
            self.tell(&mut take, News::Segment(segment, error)).await;
        }
        self.fall_silent(&mut take).await;
        self.acknowledge_all().await;
        self.close_take(take.samples(), take.next_segment()).await;
        let samples = take.samples();
        let result = final_result(take.segments, samples, &self.config, transcribes);
        let published = self.publish(EventType::TranscriptFinal, json!(result)).await;
        self.journaled(published.position).await;
        self.say(Said::Final(result)).await;
    }

    /// A take that is cut off in the middle of speech leaves nobody behind who is said to speak.
    async fn fall_silent(&mut self, take: &mut Take) {
        if let Some(news) = take.fall_silent() {
            self.tell(take, news).await;
        }
    }

    /// The session's times and numbers go on after this take.
    async fn close_take(&mut self, samples: u64, next_segment: u64) {
        self.timeline.samples += samples;
        self.timeline.next_segment = next_segment;
        let stored = self.services.store.session_progress(&self.config.id, self.timeline.progress()).await;
        self.log_failure(stored);
    }

    async fn listen(&mut self, take: &mut Take, samples: Vec<f32>) {
        emit(SamplesDecoded { samples: samples.len() });
        take.listen(&samples);
        if self.disk_failed {
            return;
        }
        let first = take.samples() - samples.len() as u64;
        let pcm: Vec<i16> = samples.iter().map(|sample| (sample * 32768.0).round() as i16).collect();
        match self.services.audio_log.append(&self.config.id, self.timeline.takes, first, &pcm).await {
            Ok(ticket) => {
                let received_samples = self.timeline.samples + take.samples();
                self.acks.hand_in(ticket, Ack { received_samples, chunk_id: self.chunk_id });
            }
            Err(error) => {
                self.disk_failed = true;
                log::error!(session = self.config.id.as_str(); "{}", error.full());
                let told = Error::new(error.kind(), "the audio cannot be kept on disk: no more acks in this session")
                    .hint("the session goes on; look at the disk of the box");
                self.say(Said::Failed(told)).await;
            }
        }
    }

    async fn hear(&mut self, take: &mut Take) {
        for news in take.hear(&self.services.queue, &self.config) {
            self.tell(take, news).await;
        }
    }

    async fn tell(&mut self, take: &mut Take, news: News) {
        match news {
            News::Speech { speaking, at } => {
                let state = if speaking { "start" } else { "end" };
                self.publish(EventType::Speech, json!({ "state": state, "at": at })).await;
                self.say(Said::Speech { speaking, at }).await;
            }
            News::Partial { text, segment, start } => {
                // Nothing is committed before two partials agree; that comes with the recogniser.
                let committed = String::new();
                let data = json!({ "text": text, "committed": committed, "segment": segment, "start": start });
                self.publish(EventType::TranscriptPartial, data).await;
                self.say(Said::Partial { text, committed, segment, start }).await;
            }
            News::Segment(segment, error) => {
                emit(SegmentCut { secs: segment.end - segment.start });
                if let Some(error) = error {
                    self.say(Said::Failed(error)).await;
                }
                take.segments.push(segment.clone());
                if !segment.text.is_empty() {
                    self.publish(EventType::TranscriptSegment, json!({ "segment": segment })).await;
                    self.say(Said::Segment(segment)).await;
                }
            }
        }
    }

    /// Waits, within a limit, until all that came is on disk, and says so.
    async fn acknowledge_all(&mut self) {
        if let Some(newest) = self.acks.newest_ticket() {
            let mut durable = self.services.audio_log.durable();
            let reached = tokio::time::timeout(DRAIN_LIMIT, durable.wait_for(|ticket| *ticket >= newest)).await;
            if let Ok(Ok(ticket)) = reached {
                self.acks.reached(*ticket);
            }
        }
        self.say_ack().await;
    }

    async fn say_ack(&mut self) {
        if let Some(Ack { received_samples, chunk_id }) = self.acks.say() {
            self.say(Said::Ack { received_samples, chunk_id }).await;
        }
    }

    async fn end_session(&mut self) {
        // The row first: whoever hears of the end may ask for the session at once.
        let ended = self.services.store.session_ended(&self.config.id, self.timeline.progress()).await;
        self.log_failure(ended);
        let duration = samples_to_secs(self.timeline.samples);
        self.publish(EventType::SessionEnd, json!({ "duration": duration, "takes": self.timeline.takes })).await;
        self.services.audio_log.release(&self.config.id);
        if self.services.shutdown.started() {
            self.say(Said::Closing).await;
        }
    }

    fn log_failure(&self, result: Result<()>) {
        if let Err(error) = result {
            log::error!(session = self.config.id.as_str(); "{}", error.full());
        }
    }

    async fn publish(&self, kind: EventType, data: serde_json::Value) -> Arc<Published> {
        let device = self.config.device.as_str().into();
        self.services.hub.publish(Draft { kind, device, session: Some(self.config.id.clone()), data }).await
    }

    /// A client that has its result forgets the audio: what it is told must be on disk, whatever becomes of us.
    async fn journaled(&self, position: i64) {
        let mut committed = self.services.store.committed();
        let reached = committed.wait_for(|committed| *committed >= position);
        if tokio::time::timeout(DRAIN_LIMIT, reached).await.is_err() {
            log::error!(session = self.config.id.as_str(); "the final result is told before it is on disk");
        }
    }

    /// A client that has left needs no answers; the session is finished all the same.
    async fn say(&self, said: Said) {
        drop(self.output.send(said).await);
    }
}

async fn at(due: Option<Instant>) {
    if let Some(due) = due {
        sleep_until(due).await;
    }
}

async fn push(decoder: &AudioDecoder, chunk: &Option<Bytes>) -> Result<()> {
    match chunk {
        Some(chunk) => decoder.push(chunk.clone()).await,
        None => Ok(()),
    }
}

async fn answer(partial: &mut Option<Answer<Asr>>) -> Option<Transcript> {
    Some(transcript(partial.as_mut()?.await.ok()?))
}

fn final_result(segments: Vec<TextSegment>, samples: u64, config: &SessionConfig, transcribes: bool) -> FinalResult {
    let spoken = || segments.iter().filter(|segment| !segment.text.is_empty());
    let texts: Vec<&str> = spoken().map(|segment| segment.text.as_str()).collect();
    // The language of the longest segment stands for the take.
    let longest = spoken().max_by(|a, b| (a.end - a.start).total_cmp(&(b.end - b.start)));
    FinalResult {
        text: texts.join(" "),
        language: longest.map_or_else(|| config.language.clone(), |segment| segment.language.clone()),
        duration: samples_to_secs(samples),
        unavailable: if transcribes { Vec::new() } else { vec![Task::Transcribe] },
        segments,
    }
}
