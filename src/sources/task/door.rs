//! Clients come and go: who is let in goes on where everything is durable, and is told what it has missed.

use std::time::Duration;

use tokio::time::Instant;

use super::{Admitted, Arriving, SessionTask, asking};
use crate::{
    sources::{Said, warm::warm},
    store::Note,
};

/// Who comes back waits this long at most for what it had sent to be on disk; beyond it, it sends that again.
const DURABLE_LIMIT: Duration = Duration::from_secs(5);
/// Results that a client has missed are read from the journal so many at a time.
const PAGE: usize = 200;

impl SessionTask {
    /// The client was cut off; what it has sent is heard.
    pub(super) fn await_client(&mut self) {
        self.line.hang_up();
        self.intake.end_take();
        self.awaited_until = Instant::now().checked_add(self.services.resume_window);
    }

    /// False if it has not waited, or cannot be served.
    pub(super) async fn let_in(&mut self, resumed: bool) -> bool {
        let Some(arriving) = self.arriving.take() else { return false };
        let Arriving { config, coming, transcribes, diarizes, decoder, input, output, reply } = *arriving;
        self.line.hang_up();
        if self.course.take_is_open() {
            // What the older client has sent and is not decoded is not acknowledged: the newer one sends it again.
            self.intake.drop_take();
        }
        self.until_durable().await;
        if reply.is_closed() {
            return false;
        }
        let seen = match self.services.store.session_joined(&config, coming.seen()).await {
            Ok(seen) => seen,
            Err(error) => {
                drop(reply.send(Err(error)));
                return false;
            }
        };
        self.disk_failed = false;
        self.goodbye = false;
        self.awaited_until = None;
        self.tells_words = config.words;
        self.config = asking(config, diarizes);
        self.transcribes = transcribes;
        warm(&self.services, transcribes, self.diarizes);
        self.language.set_asked(&self.config.language);
        if let Some(take) = &mut self.take {
            take.set_client(&self.config);
            if self.course.take_is_open() {
                take.marks().go_back(self.durable_samples - self.timeline.samples);
            }
        }
        self.chunks.reconnect(self.config.format.is_direct());
        self.acks.reconnect();
        self.intake.connect(input, decoder);
        let seq = self.line.connect(output, coming.last_seq);
        let admitted =
            Admitted { resumed, received_samples: self.durable_samples, take_open: self.course.take_is_open(), seq };
        if reply.send(Ok(admitted)).is_err() {
            return false;
        }
        if coming.resumes {
            self.tell_again(seen).await;
        }
        true
    }

    /// Waits, within a limit, until all that came is on disk.
    async fn until_durable(&mut self) {
        if let Some(newest) = self.acks.newest_ticket() {
            self.services.audio_log.hurry();
            let reached = self.durable.wait_for(|ticket| *ticket >= newest);
            let late = tokio::time::timeout(DURABLE_LIMIT, reached).await.is_err();
            if late {
                log::warn!(session = self.config.id.as_str(); "the disk is late: the client sends again what it has not");
            }
        }
        self.note_durable();
    }

    pub(super) fn note_durable(&mut self) {
        let ticket = *self.durable.borrow_and_update();
        if let Some(ack) = self.acks.reached(ticket) {
            self.durable_samples = ack.received_samples;
        }
    }

    /// Results after the session's event of that `seq`.
    async fn tell_again(&mut self, mut seen: u64) {
        loop {
            let results = match self.services.store.results(&self.config.id, seen, PAGE).await {
                Ok(results) => results,
                Err(error) => return self.fail(error).await,
            };
            let last_page = results.len() < PAGE;
            for (event_seq, event) in results {
                seen = event_seq;
                let Some(seq) = self.line.say(Said::Again(event.into())).await else { return };
                self.note(Note::Told { session: self.config.id.clone(), seq, event: event_seq }).await;
            }
            if last_page {
                return;
            }
        }
    }
}
