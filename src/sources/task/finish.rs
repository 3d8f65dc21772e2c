//! A take comes to its end, and so does the session.

use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;

use super::{Over, SessionTask};
use crate::{
    base::{Error, Kind},
    flow::{EventType, SessionConfig, Task, TextSegment, Wish, audio::samples_to_secs},
    sources::{FinalResult, Said, analysis::Analysing, chunks::Chunks, course::Happening, take::Take},
    store::Note,
};

/// The decoder's rest and the last frames come within this, or the take is given up.
const DRAIN_LIMIT: Duration = Duration::from_secs(15);

impl SessionTask {
    pub(super) fn begin_to_finish(&mut self) {
        self.intake.end_take();
        self.finish_by = Some(Instant::now() + DRAIN_LIMIT);
    }

    /// What follows from where things stand after a step: the take that is being finished goes through its stages.
    ///
    /// 1. Everything is decoded …
    /// 2. … and on disk: nothing may follow from an end that a crash would take back.
    /// 3. Everything is heard …
    /// 4. … and has its text, and it is known who speaks in the whole: the take is over.
    pub(super) async fn settle(&mut self) -> Over {
        if !self.course.is_finishing() || self.replay.is_some() || self.intake.is_decoding() {
            return false;
        }
        let Some(take) = &mut self.take else { return false };
        if !take.has_ended() {
            if self.acks.newest_ticket().is_some() {
                self.services.audio_log.hurry();
            } else {
                take.end(&self.services.queue, &self.config);
                self.finish_by = Some(Instant::now() + DRAIN_LIMIT);
            }
        } else if take.is_heard() {
            // Texts have a limit of their own.
            self.finish_by = None;
            if take.is_done() {
                self.close_take().await;
                return self.on(Happening::TakeOver).await;
            }
        }
        false
    }

    /// The take is not finished in time: what is left of it is given up.
    pub(super) async fn give_up(&mut self) {
        self.finish_by = Some(Instant::now() + DRAIN_LIMIT);
        let Some(take) = self.take.as_mut().filter(|_| self.replay.is_none()) else { return };
        let what = if take.has_ended() {
            take.stop_hearing();
            "heard"
        } else if self.intake.is_decoding() {
            self.intake.drop_take();
            "decoded"
        } else {
            self.acks.give_up();
            "on disk"
        };
        self.fail(Error::new(Kind::Timeout, format!("the rest of the audio was not {what} in time"))).await;
    }

    /// Tells the final result.
    async fn close_take(&mut self) {
        self.fall_silent().await;
        self.say_ack().await;
        let Some(mut take) = self.take.take() else { return };
        let samples = take.samples();
        let diarized = take.correct(&mut self.speakers);
        if diarized {
            self.note(Note::Speakers(self.config.id.clone(), self.speakers.state())).await;
        }
        self.count(&take);
        let mut segments = take.into_segments();
        segments.iter_mut().for_each(|segment| drop(self.trim(segment)));
        let mut result = final_result(segments, samples, &self.config, self.transcribes, diarized);
        result.warnings = self.services.registry.instead(Task::of_transcript(diarized));
        let analyses = (!result.text.is_empty() || self.analysis.is_due()) && self.may_analyse();
        let mut notes = vec![Note::TakeOver(self.config.id.clone(), self.timeline.progress())];
        if analyses {
            // With the text that it is of, so that no end of the daemon comes between.
            notes.push(Note::AnalysisOwed(self.config.id.clone()));
        } else if self.analysis.is_due() {
            notes.push(Note::AnalysisDone(self.config.id.clone()));
        }
        let published = self.publish(EventType::TranscriptFinal, json!(result), notes).await;
        self.journaled(published.position).await;
        self.say_result(&published, Said::Final(result)).await;
        self.intake.close_take();
        self.analysis = if analyses { Analysing::start(&self.services, &self.config.id) } else { Analysing::Idle };
    }

    pub(super) async fn drop_take(&mut self) {
        self.fall_silent().await;
        self.replay = None;
        self.intake.drop_take();
        if let Some(take) = self.take.take() {
            self.count(&take);
            self.note(Note::TakeDropped(self.config.id.clone(), self.timeline.progress())).await;
            // Or a crash could leave audio of the next take behind one that is still open.
            if let Err(error) = self.services.store.flush().await {
                log::error!(session = self.config.id.as_str(); "{}", error.full());
            }
        }
        if self.analysis.is_due() {
            self.analysis = Analysing::start(&self.services, &self.config.id);
        }
    }

    fn may_analyse(&self) -> bool {
        Analysing::may(&self.services, self.config.analyze).is_ok()
    }

    /// The session's times and numbers go on after this take.
    fn count(&mut self, take: &Take) {
        self.timeline.samples += take.samples();
        self.timeline.next_segment = take.next_segment();
        self.language.clone_from(take.language());
        self.durable_samples = self.timeline.samples;
        self.chunks = Chunks::default();
    }

    /// A take that is cut off in the middle of speech leaves nobody behind who is said to speak.
    async fn fall_silent(&mut self) {
        if let Some(news) = self.take.as_mut().and_then(Take::fall_silent) {
            self.tell(news).await;
        }
    }

    /// The result of a take that held nothing.
    pub(super) async fn say_empty(&mut self) {
        let result = final_result(Vec::new(), 0, &self.config, self.transcribes, self.diarizes);
        self.say(Said::Final(result)).await;
    }

    pub(super) async fn end_session(&mut self) {
        let progress = self.timeline.progress();
        let data = json!({ "duration": progress.duration_secs, "takes": progress.takes });
        if self.diarizes {
            self.note(Note::Speakers(self.config.id.clone(), self.speakers.without_voices())).await;
        }
        // With its row, so that no crash leaves a session that is over and was never said to be, or the other way round.
        self.publish(EventType::SessionEnd, data, vec![Note::Ended(self.config.id.clone(), progress)]).await;
        // Until it is analysed its audio stays.
        if !self.services.keep_audio && !self.analysis.is_running() {
            self.services.audio_log.release(&self.config.id);
        }
        if self.stopping {
            self.say(Said::Closing).await;
        }
    }
}

fn final_result(
    segments: Vec<TextSegment>,
    samples: u64,
    config: &SessionConfig,
    transcribes: bool,
    diarized: bool,
) -> FinalResult {
    let missed = [(Task::Transcribe, !transcribes), (Task::Diarize, !diarized && config.diarize == Wish::Yes)];
    let spoken = || segments.iter().filter(|segment| !segment.text.is_empty());
    let texts: Vec<&str> = spoken().map(|segment| segment.text.as_str()).collect();
    // The language of the longest segment stands for the take.
    let longest = spoken().max_by(|a, b| (a.end - a.start).total_cmp(&(b.end - b.start)));
    FinalResult {
        text: texts.join(" "),
        language: longest.map_or_else(|| config.language.clone(), |segment| segment.language.clone()),
        duration: samples_to_secs(samples),
        unavailable: missed.into_iter().filter(|(_, missed)| *missed).map(|(task, _)| task).collect(),
        segments,
        warnings: Vec::new(),
        again: false,
    }
}
