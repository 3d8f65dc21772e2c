//! Who spoke when. Engines hear pieces of a recording (`observe`, `embedder`, `segmentation`); what they observed
//! becomes speakers in pure code (`islands`, `tracks`, `cluster`). `live` follows a session, `voices` knows names.
//!
//! A model of voices is needed, a segmentation model is not. Nobody's voice leaves this box.

pub mod ask;
mod assign;
mod cluster;
mod embedder;
mod engine;
mod features;
mod files;
mod islands;
mod live;
mod observe;
mod open;
mod segmentation;
mod spec;
mod tracks;
mod voices;

pub use ask::{DiarizeAsk, DiarizeStep, EmbedAsk, Heard, Observed, Turn, pieces};
pub use assign::assign;
pub use cluster::Likeness;
pub use embedder::VoiceModel;
pub use engine::{Speakers, Voiceprints};
pub(in crate::engines) use files::graph as graph_file;
pub use live::{LiveSpeakers, SpokenBy, speaker_name};
pub use observe::{Ear, Observer};
pub use open::{installed_dir, voices_dir};
pub use segmentation::Segmenter;
pub use spec::{SpeakersSpec, VoiceFiles, VoicesSpec};
pub use voices::{Voice, Voices};

/// Pauses of one speaker shorter than this are part of the turn, as people who mark turns by hand see it.
const FILL_SECS: f64 = 1.0;
/// A voice detector is sure of speech only once it is under way.
const PAD_SECS: f64 = 0.1;

/// Who speaks when in a whole recording, from all its pieces. `count`: how many speakers there are, where it is known.
pub fn speakers(pieces: impl IntoIterator<Item = Observed>, count: Option<usize>) -> Vec<Turn> {
    let (mut islands, mut tracks, mut likeness) = (Vec::new(), Vec::new(), None);
    for piece in pieces {
        likeness = Some(piece.likeness);
        match piece.heard {
            Heard::Islands(heard) => islands.extend(heard),
            Heard::Tracks(heard) => tracks.extend(heard),
        }
    }
    let Some(likeness) = likeness else { return Vec::new() };
    let count = count.filter(|count| *count > 0);
    let mut turns = filled(islands::turns(&islands, &likeness, count));
    for at in 0..turns.len() {
        let before = at.checked_sub(1).map_or(0.0, |before| turns[before].end);
        turns[at].start = (turns[at].start - PAD_SECS).max(before).min(turns[at].start);
        let after = turns.get(at + 1).map_or(turns[at].end + PAD_SECS, |next| next.start);
        turns[at].end = (turns[at].end + PAD_SECS).min(after).max(turns[at].end);
    }
    // The segmentation model has measured its edges, and two may speak at once.
    turns.extend(filled(tracks::turns(&tracks, &likeness, count)));
    renumber(&mut turns);
    turns
}

/// One turn of what one speaker says with short pauses, where nobody else begins in between.
fn filled(turns: Vec<Turn>) -> Vec<Turn> {
    let mut filled: Vec<Turn> = Vec::new();
    for turn in turns {
        match filled.last_mut() {
            Some(last) if last.speaker == turn.speaker && turn.start - last.end < FILL_SECS => {
                last.end = last.end.max(turn.end);
            }
            _ => filled.push(turn),
        }
    }
    filled
}

/// In the order in which they are first heard.
fn renumber(turns: &mut [Turn]) {
    let mut order: Vec<usize> = Vec::new();
    for turn in turns {
        let known = order.iter().position(|speaker| *speaker == turn.speaker);
        turn.speaker = known.unwrap_or_else(|| {
            order.push(turn.speaker);
            order.len() - 1
        });
    }
}

/// Real models and recordings, where a machine has them.
#[cfg(test)]
fn assets() -> Option<std::path::PathBuf> {
    let assets = std::env::var("VIGIA_TEST_ASSETS").ok().map(std::path::PathBuf::from);
    if assets.is_none() {
        println!("skipped: VIGIA_TEST_ASSETS is not set");
    }
    assets
}

#[cfg(test)]
mod tests;
