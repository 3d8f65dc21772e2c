//! `vigia try diarize`: who speaks when in a recording.

use std::{path::PathBuf, time::Instant};

use serde_json::json;

use crate::{
    cli::{
        Chosen, Outcome, places, print,
        try_engine::{self, decode},
    },
    engines::{
        Cancel, Diarizer, Registry,
        diarize::{self, Ear},
    },
};

/// Tell who speaks when in a recording
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Any audio file that GStreamer opens
    file: PathBuf,
    /// Folder of a model of voices, or of a segmentation model; by default what the settings name
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// How many speakers there are, where it is known
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=64))]
    speakers: Option<u8>,
}

impl Args {
    pub(super) fn run(&self, common: &try_engine::Args) -> Outcome {
        common.on_cpu_only("diarization")?;
        let Chosen { loaded, .. } = common.settings.load()?;
        let settings = &loaded.settings;
        let registry = Registry::new(settings, places(settings));
        let mut observer = registry.open_observer(self.model.as_deref(), common.threads.into())?;
        let by = match observer.ear {
            Ear::Detector(_) => "voice activity",
            Ear::Segmenter(_) => "segmentation model",
        };
        let pcm = decode(settings, &self.file)?;
        let begun = Instant::now();
        let observed = diarize::pieces(&pcm)
            .map(|ask| observer.diarize(&ask, &mut |_| {}, &Cancel::default()))
            .collect::<Result<Vec<_>, _>>()?;
        let turns = diarize::speakers(observed, self.speakers.map(usize::from));
        let elapsed = begun.elapsed();

        let speakers = turns.iter().map(|turn| turn.speaker + 1).max().unwrap_or(0);
        if common.json {
            let round = |secs: f64| (secs * 1000.0).round() / 1000.0;
            let turns: Vec<_> = turns
                .iter()
                .map(|turn| {
                    let speaker = diarize::speaker_name(turn.speaker);
                    json!({ "start": round(turn.start), "end": round(turn.end), "speaker": speaker })
                })
                .collect();
            return print(&format!("{}\n", json!({ "speakers": speakers, "turns": turns, "speech_by": by })));
        }
        let mut text = format!("{:.1} s of audio, {speakers} speakers, by {by}, {elapsed:.0?}\n", pcm.secs());
        for turn in &turns {
            let speaker = diarize::speaker_name(turn.speaker);
            text.push_str(&format!("  {:8.2} – {:8.2} s  {speaker}\n", turn.start, turn.end));
        }
        print(&text)
    }
}
