//! `vigia try embed`: the voice of a recording of one speaker, as a model hears it.

use std::{path::PathBuf, time::Instant};

use serde_json::json;

use crate::{
    cli::{
        Chosen, Outcome, places, print,
        try_engine::{self, decode},
    },
    engines::{Cancel, Registry},
};

/// Turn the voice of one speaker into a vector
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Any audio file that GStreamer opens
    file: PathBuf,
    /// Folder of the model of voices
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
}

impl Args {
    pub(super) fn run(&self, common: &try_engine::Args) -> Outcome {
        common.on_cpu_only("a model of voices")?;
        let Chosen { loaded, .. } = common.settings.load()?;
        let settings = &loaded.settings;
        let registry = Registry::new(settings, places(settings));
        let mut voices = registry.open_voices(Some(&self.model), common.threads.into())?;
        let pcm = decode(settings, &self.file)?;
        let begun = Instant::now();
        let voice = voices.embed(&pcm, &Cancel::default())?;
        let elapsed = begun.elapsed();
        if common.json {
            return print(&format!("{}\n", json!({ "embedding": voice })));
        }
        let values: Vec<String> = voice.iter().map(|value| format!("{value:.4}")).collect();
        print(&format!("{:.1} s of audio, {} values, {elapsed:.0?}\n{}\n", pcm.secs(), voice.len(), values.join(" ")))
    }
}
