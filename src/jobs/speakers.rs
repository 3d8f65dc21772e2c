//! Who speaks in audio that comes: piece by piece it is asked for through the queue, and what was observed is gathered.
//! Holds the audio of two pieces and what surrounds them, whatever the length.

use crate::{
    base::Result,
    engines::{
        DiarizeAsk, Speakers,
        diarize::{Cast, Gathering, LEAD, PIECE, TAIL},
    },
    flow::{Priority, audio::samples_to_secs},
    jobs::{Answer, Ask, Queue},
    segment::Tape,
};

pub struct Overhearing {
    queue: Queue,
    priority: Priority,
    tape: Tape,
    heard: u64,
    /// Where the next piece begins.
    next: u64,
    /// One is worked on while the next one comes.
    asked: Option<Answer<Speakers>>,
    gathering: Gathering,
}

impl Overhearing {
    pub fn new(queue: Queue, priority: Priority) -> Overhearing {
        let (tape, gathering) = (Tape::default(), Gathering::default());
        Overhearing { queue, priority, tape, heard: 0, next: 0, asked: None, gathering }
    }

    /// Waits where a second piece would have to wait for its turn.
    pub async fn hear(&mut self, samples: &[f32]) -> Result<()> {
        self.tape.push(samples);
        self.heard += samples.len() as u64;
        while self.heard >= self.next + (PIECE + TAIL) as u64 {
            self.ask(PIECE as u64).await?;
        }
        Ok(())
    }

    /// Hears the rest. `count`: how many speakers there are, where it is known.
    pub async fn finish(mut self, count: Option<usize>) -> Result<Cast> {
        while self.next < self.heard {
            self.ask((self.heard - self.next).min(PIECE as u64)).await?;
        }
        self.answered().await?;
        let gathering = self.gathering;
        // Hours of conversation take a second.
        tokio::task::spawn_blocking(move || gathering.finish(count))
            .await
            .map_err(|error| crate::base::Error::internal("telling speakers apart crashed").cause(error))
    }

    async fn ask(&mut self, len: u64) -> Result<()> {
        self.answered().await?;
        let from = self.next.saturating_sub(LEAD as u64);
        let to = (self.next + len + TAIL as u64).min(self.heard);
        let ask = DiarizeAsk {
            audio: self.tape.cut(from, to),
            lead: (self.next - from) as usize,
            len: len as usize,
            start_secs: samples_to_secs(self.next),
        };
        self.asked = Some(self.queue.submit_patiently(self.priority, Ask::new(ask)).await?);
        self.next += len;
        self.tape.forget_before(self.next.saturating_sub(LEAD as u64));
        Ok(())
    }

    async fn answered(&mut self) -> Result<()> {
        if let Some(answer) = self.asked.take() {
            self.gathering.add(answer.await?);
        }
        Ok(())
    }
}
