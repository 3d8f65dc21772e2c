//! Speech on its way out: mono f32 of any rate becomes MP3, Ogg or FLAC while it is being spoken.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use bytes::Bytes;
use tokio::task::spawn_blocking;

use super::{
    Media,
    audio::busy,
    feed::{Feed, Stream, Unit},
    pool::{Lent, start_gstreamer},
};
use crate::base::{Error, Kind, Result};

/// What speech can be packed into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpeechContainer {
    Mp3,
    /// With Opus.
    Ogg,
    Flac,
}

impl SpeechContainer {
    fn pipeline(self) -> &'static str {
        match self {
            SpeechContainer::Mp3 => "speech-mp3",
            SpeechContainer::Ogg => "speech-ogg",
            SpeechContainer::Flac => "speech-flac",
        }
    }
}

/// One text's encoder. Both waits may be dropped without loss, through `select!`. Dropping it in the middle gives the
/// pipeline back, off the async threads.
pub struct SpeechEncoder {
    line: Lent,
    ended: AtomicBool,
}

impl Media {
    /// `Unsupported` where an element is missing, with what to install: before anybody speaks in vain.
    pub async fn can_encode(&self, container: SpeechContainer) -> Result<()> {
        let recipe = self.pool.recipes().get(container.pipeline())?;
        let look = move || {
            start_gstreamer()?;
            recipe.ensure_installed().map_err(|error| {
                let unsupported = Error::new(Kind::Unsupported, error.message());
                unsupported.hint(error.hint_text().unwrap_or_default())
            })
        };
        spawn_blocking(look).await.map_err(|error| Error::internal("GStreamer could not be asked").cause(error))?
    }

    /// `Busy` when all pipelines of audio are taken.
    pub async fn speech_encoder(&self, container: SpeechContainer, rate_hz: u32) -> Result<SpeechEncoder> {
        let seat = Arc::clone(&self.audio_seats).try_acquire_owned().map_err(|_| busy())?;
        let caps = format!("audio/x-raw,format=F32LE,layout=interleaved,rate={rate_hz},channels=1");
        let feed = Feed::Stream(Stream::new(Unit::Samples));
        let line = self.pool.lend(container.pipeline(), seat, feed, vec![("in", caps)]).await?;
        Ok(SpeechEncoder { line, ended: AtomicBool::new(false) })
    }
}

impl SpeechEncoder {
    /// Waits until samples may be pushed, within a limit.
    pub async fn room(&self) -> Result<()> {
        self.line.room().await
    }

    /// Only after `room`.
    pub fn push(&self, samples: &[f32]) {
        let bytes: Vec<u8> = samples.iter().flat_map(|sample| sample.clamp(-1.0, 1.0).to_le_bytes()).collect();
        self.line.push(bytes.into());
    }

    /// No more samples; `next` goes on until everything is out.
    pub fn end(&self) {
        self.ended.store(true, Ordering::Release);
        self.line.end();
    }

    /// The next bytes, in order; `None` once `end` was called and everything is out, or after an error.
    pub async fn next(&self) -> Option<Result<Bytes>> {
        let sample = match self.line.next(|| self.ended.load(Ordering::Acquire)).await? {
            Ok(sample) => sample,
            Err(error) => return Some(Err(error)),
        };
        let unreadable = || Error::internal("an encoded buffer cannot be read");
        let copied = sample.buffer().ok_or_else(unreadable).and_then(|buffer| {
            let map = buffer.map_readable().map_err(|error| unreadable().cause(error))?;
            Ok(Bytes::copy_from_slice(&map))
        });
        Some(copied)
    }
}
