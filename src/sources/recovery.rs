//! How a session goes on that an earlier daemon left open, however that one ended: as if nothing had happened. Reads what
//! is there; what is to be done with it is the session's task's.
//!
//! The take is put where its newest checkpoint was. From there its audio is heard again, out of the log, and segments that
//! had been cut but have no text are transcribed; nothing that was told before is told again.

use crate::{
    base::Result,
    flow::{AudioFormat, Encoding, SAMPLE_RATE_HZ, SessionConfig, TextSegment, Wish},
    segment::SessionLanguage,
    sources::{
        Services,
        course::Stage,
        kept::{self, Kept, TakeState},
        marks::Marks,
        task::Timeline,
    },
    store::{SessionRow, TakeAudio},
};

/// Samples that are heard again at a time: one second, so that the take's task looks around in between.
const STRIDE: usize = SAMPLE_RATE_HZ as usize;

/// What a daemon left of a session.
pub(super) struct Found {
    pub(super) config: SessionConfig,
    pub(super) timeline: Timeline,
    pub(super) language: SessionLanguage,
    pub(super) left: Option<Left>,
}

/// What a daemon left of a take.
pub(super) struct Left {
    pub(super) kept: Kept,
    pub(super) marks: Marks,
    pub(super) replay: Replay,
    /// The newest chunk that is wholly part of its samples.
    pub(super) chunk_id: Option<u64>,
}

/// Samples to be heard again.
pub(super) struct Replay {
    samples: Vec<i16>,
    at: usize,
}

impl Replay {
    /// The next ones; none when these were all.
    pub(super) fn next(&mut self) -> Vec<f32> {
        let next = &self.samples[self.at..][..STRIDE.min(self.samples.len() - self.at)];
        self.at += next.len();
        next.iter().map(|sample| f32::from(*sample) / 32768.0).collect()
    }
}

impl Found {
    pub(super) fn stage(&self) -> Stage {
        match &self.left {
            None => Stage::None,
            Some(left) if left.kept.state.ended => Stage::Finishing,
            Some(_) => Stage::Open,
        }
    }
}

/// Of a session that is open in the store and not live.
pub(super) async fn look(services: &Services, row: SessionRow) -> Result<Found> {
    let config = services.store.session_config(&row.id).await?.unwrap_or_else(|| plain_config(&row));
    let take = row.takes + 1;
    let mut noted = services.store.open_take(&row.id).await?;
    let checkpoint = noted.checkpoint.take().filter(|checkpoint| checkpoint.take == take);
    let there = services.audio_log.takes(&row.id).contains(&take);
    if checkpoint.is_none() && !there {
        // Between two takes; or whatever there was is gone, and then its segments' numbers are not given out again.
        let row = services.store.session_opened(&row.id, &config.device, &config.language).await?;
        let language = language_after(&config, &services.store.transcript(&row.id).await?);
        return Ok(Found { config, timeline: Timeline::of(&row), language, left: None });
    }
    let mut published = services.store.transcript(&row.id).await?;
    let before = published.extract_if(.., |segment| segment.id < row.next_segment).collect::<Vec<_>>();
    let kept = match checkpoint {
        Some(checkpoint) => kept::read(&checkpoint, published, noted)?,
        None => {
            let state = TakeState { next_segment: row.next_segment, ..TakeState::default() };
            Kept { state, ..Kept::default() }
        }
    };
    let state = &kept.state;
    let language = language_after(&config, before.iter().chain(&kept.told));
    let audio = services.audio_log.read(&row.id, take, state.needed_from(&services.rules)..u64::MAX).await?;
    let TakeAudio { first_sample: from, samples, end: journaled, chunk_id, .. } = audio;
    let heard = if state.ended { journaled } else { state.live.heard() };
    log::info!(
        session = row.id.as_str();
        "goes on at {} s of its take, {} s of it heard again", journaled / u64::from(SAMPLE_RATE_HZ),
        journaled.saturating_sub(heard) / u64::from(SAMPLE_RATE_HZ)
    );
    Ok(Found {
        config,
        timeline: Timeline::of(&row),
        language,
        left: Some(Left {
            marks: Marks::resumed(from, heard, journaled),
            kept,
            replay: Replay { samples, at: 0 },
            chunk_id,
        }),
    })
}

/// What a session's language has become with the segments that were published, in order.
fn language_after<'a>(config: &SessionConfig, segments: impl IntoIterator<Item = &'a TextSegment>) -> SessionLanguage {
    let mut language = SessionLanguage::new(&config.language);
    for TextSegment { start, end, text, language: spoken, probability, .. } in segments {
        if !text.is_empty() {
            language.published(spoken, *probability, end - start);
        }
    }
    language
}

/// For a session of which nobody has noted what its client asked.
fn plain_config(row: &SessionRow) -> SessionConfig {
    SessionConfig {
        id: row.id.clone(),
        device: row.device.clone(),
        format: AudioFormat { encoding: Encoding::Pcm16, sample_rate: SAMPLE_RATE_HZ, channels: 1 },
        language: row.language.clone(),
        partials: true,
        diarize: Wish::IfPossible,
        analyze: Wish::IfPossible,
        words: false,
        prompt: None,
        translate: false,
    }
}
