//! Who spoke when. Engines hear pieces of a recording (`observe`, `embedder`, `segmentation`); what they observed
//! becomes speakers in pure code (`gather`, with `islands`, `tracks` and `cluster`), and speakers of text in `attribute`.
//! `live` follows a session, `voices` knows names.
//!
//! A model of voices is needed, a segmentation model is not. Nobody's voice leaves this box.

pub mod ask;
mod assign;
mod attribute;
mod cluster;
mod embedder;
mod engine;
mod features;
mod files;
mod gather;
mod islands;
mod live;
mod observe;
mod open;
mod segmentation;
mod spec;
mod tracks;
mod voices;

pub use ask::{
    DiarizeAsk, DiarizeStep, EmbedAsk, Embedded, Heard, LEAD, Observed, PIECE, TAIL, Turn, VoiceKind, pieces,
};
pub use assign::assign;
pub use attribute::attribute;
pub use cluster::Likeness;
pub use embedder::VoiceModel;
pub use engine::{Speakers, Voiceprints};
pub(in crate::engines) use files::graph as graph_file;
pub use gather::{Cast, Gathering, speakers};
pub use live::{LiveSpeakers, SpokenBy, speaker_name};
pub use observe::{Ear, Observer};
pub use open::{installed_dir, voices_dir};
pub use segmentation::Segmenter;
pub use spec::{SpeakersSpec, VoiceFiles, VoicesSpec};
pub use voices::{Voice, Voices};

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
mod stand_ins;

#[cfg(test)]
mod tests;
