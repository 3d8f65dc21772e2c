//! What is told to whom: to everybody, as events, with what is to be kept; and to the client, in numbered messages.

use std::{sync::Arc, time::Duration};

use futures_util::FutureExt;
use serde_json::{Value, json};

use super::SessionTask;
use crate::{
    base::{Error, Result},
    flow::{Draft, EventType, TextSegment, Word},
    publish::Published,
    segment::Shown,
    sources::{
        Said,
        acks::Ack,
        analysis::Analysed,
        committed::Partial,
        finals::Spoken,
        take::{News, Take},
    },
    store::Note,
    telemetry::events::{SegmentCut, emit},
};

/// A final result that the store does not commit within this is told all the same.
const COMMIT_LIMIT: Duration = Duration::from_secs(15);

impl SessionTask {
    pub(super) async fn tell(&mut self, news: News) {
        match news {
            News::Speech { speaking, at, checkpoint } => {
                let state = if speaking { "start" } else { "end" };
                let note = checkpoint.map(|it| Note::Checkpoint(self.config.id.clone(), it));
                let notes = note.into_iter().collect();
                self.publish(EventType::Speech, json!({ "state": state, "at": at }), notes).await;
                self.say(Said::Speech { speaking, at }).await;
            }
            News::Partial(Partial { shown: Shown { text, committed }, segment, start }) => {
                let data = json!({ "text": text, "committed": committed, "segment": segment, "start": start });
                self.publish(EventType::TranscriptPartial, data, Vec::new()).await;
                self.say(Said::Partial { text, committed, segment, start }).await;
            }
            News::Segment(Spoken { mut segment, error, voice }) => {
                emit(SegmentCut { secs: segment.end - segment.start });
                if let Some(error) = error {
                    self.fail(error).await;
                }
                // What has no text is noise, and nobody's voice.
                let voice = voice.filter(|_| !segment.text.is_empty());
                let heard = voice.is_some();
                self.speakers.name(&mut segment, voice);
                if let Some(take) = &mut self.take {
                    take.settle(segment.clone());
                }
                let words = self.trim(&mut segment);
                if segment.text.is_empty() {
                    self.note(Note::Silent(self.config.id.clone(), segment)).await;
                } else {
                    let data = json!({ "segment": segment });
                    // With what is told, so that after a crash neither is known without the other.
                    let mut notes = Vec::new();
                    if heard {
                        notes.push(Note::Speakers(self.config.id.clone(), self.speakers.state()));
                    }
                    if !words.is_empty() {
                        notes.push(Note::Words { session: self.config.id.clone(), segment: segment.id, words });
                    }
                    let published = self.publish(EventType::TranscriptSegment, data, notes).await;
                    self.say_result(&published, Said::Segment(segment)).await;
                }
            }
            News::Checkpoint(checkpoint) => self.note(Note::Checkpoint(self.config.id.clone(), checkpoint)).await,
        }
    }

    /// Tells the text so far, once what is committed of it is kept.
    pub(super) async fn show(&mut self, partial: Partial) {
        let Some(commitments) = self.take.as_mut().map(Take::commitments) else { return };
        if commitments.holds(&partial) {
            return self.tell(News::Partial(partial)).await;
        }
        let (session, text) = (self.config.id.clone(), partial.shown.committed.clone());
        let note = Note::Committed { session, segment: partial.segment, text };
        let store = self.services.store.clone();
        commitments.keep(partial, async move { store.note_durably(note).await }.boxed());
    }

    /// Times of words that only serve to tell speakers apart are nobody's business. Returns those.
    pub(super) fn trim(&self, segment: &mut TextSegment) -> Vec<Word> {
        if self.tells_words { Vec::new() } else { std::mem::take(&mut segment.words) }
    }

    pub(super) async fn say_ack(&mut self) {
        if let Some(Ack { received_samples, chunk_id }) = self.acks.say() {
            self.say(Said::Ack { received_samples, chunk_id }).await;
        }
    }

    pub(super) async fn publish(&mut self, kind: EventType, data: Value, notes: Vec<Note>) -> Arc<Published> {
        let device = self.config.device.as_str().into();
        let draft = Draft { kind, device, session: Some(self.config.id.clone()), data };
        self.services.hub.publish_with(draft, notes).await
    }

    /// A client that has its result forgets the audio: what it is told must be on disk, whatever becomes of us.
    pub(super) async fn journaled(&mut self, position: i64) {
        let mut committed = self.services.store.committed();
        let reached = committed.wait_for(|committed| *committed >= position);
        if tokio::time::timeout(COMMIT_LIMIT, reached).await.is_err() {
            log::error!(session = self.config.id.as_str(); "the final result is told before it is on disk");
        }
    }

    pub(super) async fn note(&mut self, note: Note) {
        if let Err(error) = self.services.store.note(note).await {
            log::error!(session = self.config.id.as_str(); "{}", error.full());
        }
    }

    pub(super) async fn tell_analysis(&mut self, done: Result<Analysed>) {
        match done {
            Ok(Analysed { analysis, published }) => {
                self.say_result(&published, Said::Analysis(Box::new(analysis))).await;
            }
            Err(error) => {
                log::error!(session = self.config.id.as_str(); "no analysis: {}", error.full());
                self.fail(error).await;
            }
        }
    }

    pub(super) async fn fail(&mut self, error: Error) {
        self.say(Said::Failed { error, fatal: false }).await;
    }

    /// Who is not there is told when it comes back.
    pub(super) async fn say_result(&mut self, published: &Published, said: Said) {
        if let Some(seq) = self.line.say(said).await {
            let event = published.event.seq;
            self.note(Note::Told { session: self.config.id.clone(), seq, event }).await;
        }
    }

    pub(super) async fn say(&mut self, said: Said) {
        self.line.say(said).await;
    }
}
