//! `POST /api/tts`: a text is spoken, and heard while it is. The work ends with whoever asked for it. Sound that cannot go
//! on is cut, not ended: the connection closes without the end of the answer.

use std::io;

use bytes::{BufMut as _, Bytes, BytesMut};
use futures_util::stream::unfold;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::{
    body::Frame,
    header::{self, HeaderValue},
};
use tokio::sync::mpsc;

use crate::{
    api::{
        body,
        call::{Call, Response},
        error::{Refusal, Reply},
        speech::language,
        wire::{SpeechFormat, TtsRequest},
    },
    base::{Error, Result},
    engines::{ANY_VOICE, Speak, SpeakAsk, SpeakStep},
    flow::{Priority, Task},
    jobs::{Answer, Ask},
    media::{SpeechContainer, SpeechEncoder},
};

const MAX_SPOKEN_CHARS: usize = 2000;
const SPEEDS: std::ops::RangeInclusive<f32> = 0.5..=2.0;
/// Parts that may wait for a client; then the speaking waits.
const PARTS: usize = 8;

/// Say a text
///
/// The audio is streamed as it is spoken, mono: `wav` in 16 bits, `pcm` the same without a head, whose `Content-Type` says
/// its rate, `mp3`, `ogg` with Opus, or `flac`. Leaving ends the work.
#[utoipa::path(post, path = "/api/tts", tag = "speech", request_body = TtsRequest,
    responses((status = 200, description = "The text, spoken", content(
        (Vec<u8> = "audio/wav"), (Vec<u8> = "audio/mpeg"), (Vec<u8> = "audio/ogg"), (Vec<u8> = "audio/flac"),
    ))),
)]
pub(crate) async fn tts(mut call: Call) -> Reply {
    let request: TtsRequest = body::json(&mut call).await?;
    check(&request)?;
    let context = call.context();
    context.registry.installed(Task::Speak)?;
    let container = container(request.format);
    if let Some(container) = container {
        context.media.can_encode(container).await?;
    }
    let ask = SpeakAsk {
        text: request.inputs,
        voice: request.voice_preset,
        language: request.language,
        speed: request.speed,
    };
    let (steps, parts) = mpsc::channel(PARTS);
    let answer = context.queue.submit(Priority::Interactive, Ask::<Speak>::new(ask).telling(steps))?;
    let mut speech = Speech { parts, answer, heard: 0 };
    // Until something is to be heard an error is one.
    let Some(first) = speech.next().await? else {
        return Err(Error::internal("the voice said nothing").into());
    };
    let packing = match container {
        Some(container) => Packing::Encoded(context.media.speech_encoder(container, first.rate_hz).await?),
        None => Packing::Plain,
    };
    Ok(streamed(request.format, packing, first, speech))
}

fn container(format: SpeechFormat) -> Option<SpeechContainer> {
    match format {
        SpeechFormat::Wav | SpeechFormat::Pcm => None,
        SpeechFormat::Mp3 => Some(SpeechContainer::Mp3),
        SpeechFormat::Ogg => Some(SpeechContainer::Ogg),
        SpeechFormat::Flac => Some(SpeechContainer::Flac),
    }
}

fn check(request: &TtsRequest) -> Result<(), Refusal> {
    let chars = request.inputs.chars().count();
    if request.inputs.trim().is_empty() {
        return Err(Error::invalid("inputs is empty").into());
    }
    if chars > MAX_SPOKEN_CHARS {
        return Err(Error::invalid(format!("inputs has {chars} characters, at most {MAX_SPOKEN_CHARS} are spoken"))
            .hint("send it in parts")
            .into());
    }
    if !SPEEDS.contains(&request.speed) {
        return Err(Error::invalid("speed must be 0.5 to 2").into());
    }
    let named = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '+' | '(' | ')' | '/' | ':');
    let voice = &request.voice_preset;
    if voice.is_empty() || voice.len() > 128 || !voice.chars().all(named) {
        let hint = format!("a name of GET /api/tts/voices, or {ANY_VOICE}");
        return Err(Error::invalid("voice_preset is no name of a voice").hint(hint).into());
    }
    Ok(language(&request.language)?)
}

/// What is being spoken. Dropping it ends the work.
struct Speech {
    parts: mpsc::Receiver<SpeakStep>,
    answer: Answer<Speak>,
    heard: u64,
}

impl Speech {
    /// None at the end.
    async fn next(&mut self) -> Result<Option<SpeakStep>> {
        while let Some(mut part) = self.parts.recv().await {
            let end = part.at + part.samples.len() as u64;
            // A job that began anew tells what was heard already.
            let again = self.heard.saturating_sub(part.at);
            if end > self.heard {
                part.samples.drain(..again as usize);
                self.heard = end;
                return Ok(Some(part));
            }
        }
        (&mut self.answer).await.map(|_| None)
    }
}

/// How samples become the bytes of an answer.
enum Packing {
    Plain,
    Encoded(SpeechEncoder),
}

/// What was spoken, on its way out.
struct Outgoing {
    speech: Speech,
    packing: Packing,
    /// Spoken and not handed on yet.
    waiting: Option<Vec<f32>>,
    /// Goes before all of it.
    head: Bytes,
    spoken: bool,
}

impl Outgoing {
    /// None at the end.
    async fn next(&mut self) -> Result<Option<Bytes>> {
        let Outgoing { speech, packing, waiting, head, spoken } = self;
        loop {
            let encoder = match packing {
                Packing::Encoded(encoder) => encoder,
                Packing::Plain => {
                    let samples = match waiting.take() {
                        Some(samples) => samples,
                        None => match speech.next().await? {
                            Some(part) => part.samples,
                            None => return Ok(None),
                        },
                    };
                    let mut bytes = BytesMut::from(&std::mem::take(head)[..]);
                    put(&samples, &mut bytes);
                    return Ok(Some(bytes.freeze()));
                }
            };
            // What is encoded goes out while the next part is still being spoken.
            tokio::select! {
                encoded = encoder.next() => return encoded.transpose(),
                room = encoder.room(), if waiting.is_some() => {
                    room?;
                    encoder.push(&waiting.take().unwrap_or_default());
                }
                part = speech.next(), if waiting.is_none() && !*spoken => match part? {
                    Some(part) => *waiting = Some(part.samples),
                    None => {
                        *spoken = true;
                        encoder.end();
                    }
                },
            }
        }
    }
}

fn streamed(format: SpeechFormat, packing: Packing, first: SpeakStep, speech: Speech) -> Response {
    let rate_hz = first.rate_hz;
    let mut head = BytesMut::new();
    if format == SpeechFormat::Wav {
        wav_head(rate_hz, &mut head);
    }
    let outgoing = Outgoing { speech, packing, waiting: Some(first.samples), head: head.freeze(), spoken: false };
    let parts = unfold(Some(outgoing), |state| async {
        let mut outgoing = state?;
        // The job's own limit ends a voice that says nothing more, and a client that takes nothing.
        match outgoing.next().await {
            Ok(Some(bytes)) => Some((Ok(Frame::data(bytes)), Some(outgoing))),
            Ok(None) => None,
            Err(error) => {
                log::warn!("/api/tts: cut off: {}", error.full());
                Some((Err(io::Error::other("the speech cannot go on")), None))
            }
        }
    });
    let mut response = Response::new(StreamBody::new(parts).boxed());
    let kind = match format {
        SpeechFormat::Pcm => HeaderValue::from_str(&format!("audio/pcm;rate={rate_hz};channels=1")).ok(),
        SpeechFormat::Wav => Some(HeaderValue::from_static("audio/wav")),
        SpeechFormat::Mp3 => Some(HeaderValue::from_static("audio/mpeg")),
        SpeechFormat::Ogg => Some(HeaderValue::from_static("audio/ogg")),
        SpeechFormat::Flac => Some(HeaderValue::from_static("audio/flac")),
    };
    let headers = response.headers_mut();
    headers.extend(kind.map(|kind| (header::CONTENT_TYPE, kind)));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// Of 16 bits, mono, and as long as it becomes: players read a stream with the largest length to its end.
fn wav_head(rate_hz: u32, out: &mut BytesMut) {
    out.put_slice(b"RIFF");
    out.put_u32_le(u32::MAX);
    out.put_slice(b"WAVEfmt ");
    out.put_u32_le(16);
    // PCM, one channel, its rate, bytes a second, bytes a sample, bits a sample.
    out.put_u16_le(1);
    out.put_u16_le(1);
    out.put_u32_le(rate_hz);
    out.put_u32_le(rate_hz.saturating_mul(2));
    out.put_u16_le(2);
    out.put_u16_le(16);
    out.put_slice(b"data");
    out.put_u32_le(u32::MAX);
}

fn put(samples: &[f32], out: &mut BytesMut) {
    out.reserve(2 * samples.len());
    for sample in samples {
        out.put_i16_le((sample.clamp(-1.0, 1.0) * f32::from(i16::MAX)).round() as i16);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(at: u64, samples: &[f32]) -> SpeakStep {
        SpeakStep { at, samples: samples.to_vec(), rate_hz: 24_000 }
    }

    #[tokio::test]
    async fn a_job_that_begins_anew_is_not_heard_twice() {
        let queue = crate::jobs::Queue::new(crate::jobs::QueueLimits { live: 1, interactive: 1, batch: 1 });
        let ask = SpeakAsk { text: "x".into(), voice: "v".into(), language: "es".into(), speed: 1.0 };
        let answer = queue.submit(Priority::Interactive, Ask::<Speak>::new(ask)).unwrap();
        let (steps, parts) = mpsc::channel(PARTS);
        let mut speech = Speech { parts, answer, heard: 0 };
        for step in [part(0, &[0.1, 0.2]), part(2, &[0.3]), part(0, &[0.1, 0.2]), part(2, &[0.3, 0.4])] {
            steps.send(step).await.unwrap();
        }
        let mut heard = Vec::new();
        for _ in 0..3 {
            heard.extend(speech.next().await.unwrap().unwrap().samples);
        }
        assert_eq!(heard, [0.1, 0.2, 0.3, 0.4]);
        drop((steps, queue));
        assert!(speech.next().await.is_err(), "the job is lost with its queue");
    }

    #[test]
    fn a_head_of_44_bytes_and_samples_that_stay_in_their_range() {
        let mut out = BytesMut::new();
        wav_head(22_050, &mut out);
        assert_eq!(out.len(), 44);
        assert_eq!((&out[..4], &out[8..16], &out[36..40]), (&b"RIFF"[..], &b"WAVEfmt "[..], &b"data"[..]));
        assert_eq!(out[24..28], 22_050_u32.to_le_bytes());
        let mut out = BytesMut::new();
        put(&[0.0, 1.0, -2.0], &mut out);
        assert_eq!(out[..], [0, 0, 0xff, 0x7f, 0x01, 0x80]);
    }
}
