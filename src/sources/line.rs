//! The line to a session's client: numbers what is said to it. The numbers go on over all its connections, so that a
//! client that comes back can say what it has seen.

use tokio::sync::mpsc;

use crate::sources::{Said, Told};

#[derive(Default)]
pub(super) struct Line {
    output: Option<mpsc::Sender<Told>>,
    /// Of what was said last.
    seq: u64,
}

impl Line {
    /// To a new client, which has seen everything up to `last_seq`. Returns the number of the answer to its config.
    pub(super) fn connect(&mut self, output: mpsc::Sender<Told>, last_seq: Option<u64>) -> u64 {
        self.output = Some(output);
        self.seq = self.seq.max(last_seq.unwrap_or(0)) + 1;
        self.seq
    }

    pub(super) fn hang_up(&mut self) {
        self.output = None;
    }

    /// Waits while the client is behind. Returns the number; `None` if nobody is there: results wait in the journal for
    /// whoever comes back.
    pub(super) async fn say(&mut self, said: Said) -> Option<u64> {
        let output = self.output.as_ref()?;
        self.seq += 1;
        if output.send(Told { seq: self.seq, said }).await.is_err() {
            self.output = None;
        }
        Some(self.seq)
    }
}
