//! What comes from a session's client: its messages, and its audio as 16 kHz samples. Owns the decoder of the take and
//! the chunk on its way into it; knows nothing of what the samples are for.

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::{base::Result, media::AudioDecoder, sources::Input};

#[derive(Default)]
pub(super) struct Intake {
    input: Option<mpsc::Receiver<Input>>,
    decoder: Option<AudioDecoder>,
    pushing: Option<Bytes>,
    /// Nothing more can be decoded: what comes until the end of the take is passed over.
    broken: bool,
    /// Nothing more goes into the decoder.
    ended: bool,
}

pub(super) enum Arrival {
    Input(Input),
    /// No more messages come.
    Left,
    /// A chunk was refused; the stream goes on.
    Refused(crate::base::Error),
    Samples(Result<Vec<f32>>),
    /// Everything is decoded.
    Decoded,
}

impl Intake {
    /// From a new client; nothing more is read of the older one. The decoder is for its take, unless that of a take which
    /// is being finished still works.
    pub(super) fn connect(&mut self, input: mpsc::Receiver<Input>, decoder: AudioDecoder) {
        self.input = Some(input);
        if !self.is_decoding() {
            *self = Intake { input: self.input.take(), decoder: Some(decoder), ..Intake::default() };
        }
    }

    pub(super) fn has_decoder(&self) -> bool {
        self.decoder.is_some()
    }

    pub(super) fn set_decoder(&mut self, decoder: AudioDecoder) {
        self.decoder = Some(decoder);
    }

    /// A chunk on its way into the decoder.
    pub(super) fn push(&mut self, chunk: Bytes) {
        if !self.broken {
            self.pushing = Some(chunk);
        }
    }

    /// The stream cannot be read on: its further bytes mean nothing until the client ends the take.
    pub(super) fn break_off(&mut self) {
        self.broken = true;
        self.pushing = None;
    }

    /// No more chunks; what was sent is still decoded.
    pub(super) fn end_take(&mut self) {
        self.ended = true;
        if self.broken {
            self.decoder = None;
        } else if let Some(decoder) = &self.decoder {
            decoder.end();
        }
    }

    /// The take is over. Another decoder than its own stays.
    pub(super) fn close_take(&mut self) {
        if self.ended {
            self.drop_take();
        }
    }

    /// The take is over, whatever is left of it.
    pub(super) fn drop_take(&mut self) {
        self.decoder = None;
        self.pushing = None;
        self.broken = false;
        self.ended = false;
    }

    /// Whether more samples of the take come.
    pub(super) fn is_decoding(&self) -> bool {
        self.ended && self.decoder.is_some()
    }

    /// What comes next; never ready while there is nothing to wait for. It can be dropped without loss. `room`: samples
    /// may come; `listens`: messages may.
    pub(super) async fn next(&mut self, room: bool, listens: bool) -> Arrival {
        loop {
            let Intake { input, decoder, pushing, broken, ended } = self;
            let decodes = decoder.is_some() && !*broken;
            let arrived = tokio::select! {
                biased;
                samples = samples(decoder), if room && decodes => match samples {
                    Some(samples) => Some(Arrival::Samples(samples)),
                    None if *ended => {
                        *decoder = None;
                        Some(Arrival::Decoded)
                    }
                    // A container may say itself that it is complete; what follows it is not part of the take.
                    None => {
                        self.break_off();
                        None
                    }
                },
                // Not while nothing is taken from the decoder: it would give the chunk up as if it were stuck itself.
                pushed = push(decoder, pushing), if room && decodes && pushing.is_some() => {
                    *pushing = None;
                    pushed.err().map(Arrival::Refused)
                }
                message = message(input), if listens && input.is_some() && pushing.is_none() => Some(match message {
                    Some(message) => Arrival::Input(message),
                    None => {
                        *input = None;
                        Arrival::Left
                    }
                }),
                () = std::future::pending() => None,
            };
            if let Some(arrived) = arrived {
                return arrived;
            }
        }
    }
}

async fn samples(decoder: &Option<AudioDecoder>) -> Option<Result<Vec<f32>>> {
    decoder.as_ref()?.next().await
}

async fn push(decoder: &Option<AudioDecoder>, chunk: &Option<Bytes>) -> Result<()> {
    match (decoder, chunk) {
        (Some(decoder), Some(chunk)) => decoder.push(chunk.clone()).await,
        _ => Ok(()),
    }
}

async fn message(input: &mut Option<mpsc::Receiver<Input>>) -> Option<Input> {
    input.as_mut()?.recv().await
}
