//! Audio and photos as they arrive become what engines take: 16 kHz mono f32, upright RGB of a bounded size; and speech
//! becomes what players take.
//!
//! The only module that knows GStreamer. It must never initialise it before it is needed (an idle daemon stays
//! small), never wait for it on an async thread, and never let a pipeline outlive the client it decodes for.
//!
//! - `recipe`: the texts in `pipelines/`; `pipeline`: one built from them; `allowed`: what GStreamer may add to it by
//!   itself; `pool`: the ones kept for the next client
//! - `audio`: a live stream; `file`: a whole file, and `ending`: whether it is; `photo`: a picture; `encode`: speech on its
//!   way out

mod allowed;
mod audio;
mod bus;
mod encode;
mod ending;
mod exif;
mod feed;
mod file;
mod head;
mod photo;
mod pipeline;
mod pixels;
mod pool;
mod raw;
mod recipe;
#[cfg(test)]
mod tests;

use std::sync::Arc;

pub use audio::AudioDecoder;
pub use encode::{SpeechContainer, SpeechEncoder};
pub use file::{AudioFile, Decoded, FileStream};
pub use photo::PhotoInfo;
pub use recipe::ElementCheck;
use tokio::sync::Semaphore;

use crate::{
    base::Result,
    settings::{Audio, Pipelines, Vision},
};

/// Photos decoded at a time: one of 50 megapixels takes up to 200 MB while it is.
const PHOTOS_AT_A_TIME: usize = 2;

/// Photos that may wait for their turn; one more is answered "busy".
const PHOTOS_WAITING: usize = 16;

/// A handle, cheap to clone.
#[derive(Clone)]
pub struct Media {
    pool: Arc<pool::Pool>,
    vision: Vision,
    /// Pipelines of audio that may run at a time (`audio.max_pipelines`).
    audio_seats: Arc<Semaphore>,
    photo_seats: Arc<Semaphore>,
    photo_turns: Arc<Semaphore>,
}

impl Media {
    /// Reads the pipelines' texts; GStreamer itself starts with the first stream or photo that needs it.
    pub fn new(pipelines: &Pipelines, audio: &Audio, vision: &Vision) -> Result<Media> {
        let recipes = recipe::Recipes::load(&pipelines.dir, &pipelines.variant)?;
        Ok(Media {
            pool: Arc::new(pool::Pool::new(recipes)),
            vision: vision.clone(),
            audio_seats: Arc::new(Semaphore::new(audio.max_pipelines)),
            photo_seats: Arc::new(Semaphore::new(PHOTOS_AT_A_TIME + PHOTOS_WAITING)),
            photo_turns: Arc::new(Semaphore::new(PHOTOS_AT_A_TIME)),
        })
    }

    /// Every element that the pipelines of this device need, and whether it is there. Starts GStreamer and may
    /// take seconds where its registry is stale: not for async threads.
    pub fn elements(&self) -> Result<Vec<ElementCheck>> {
        pool::start_gstreamer()?;
        Ok(self.pool.recipes().checks())
    }
}
