//! `vigia voices`: people whose names stand in transcripts. Their voices are kept in the store's folder alone.

use std::path::PathBuf;

use crate::{
    base::{Error, clock},
    cli::{Chosen, Outcome, SettingsArgs, places, print, table::columns, try_engine::decode},
    engines::{
        Cancel, Registry,
        diarize::{Voice, Voices},
    },
};

/// From less speech than this a voice is recognised too seldom.
const LEAST_SECS: f64 = 3.0;

/// Name people by their voices
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    action: Action,
    #[command(flatten)]
    settings: SettingsArgs,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Learn a voice from a recording in which nobody else speaks; best half a minute
    Enroll {
        name: String,
        /// Any audio file that GStreamer opens
        file: PathBuf,
        /// Folder of the model of voices; by default the one that goes with the settings' diarizer
        #[arg(long, value_name = "DIR")]
        model: Option<PathBuf>,
    },
    /// List the known voices
    List,
    /// Forget a voice
    Remove { name: String },
}

pub(super) fn run(args: Args) -> Outcome {
    let Chosen { loaded, .. } = args.settings.load()?;
    let settings = &loaded.settings;
    let mut voices = Voices::open(&settings.store_dir())?;
    match args.action {
        Action::Enroll { name, file, model } => {
            let mut voice_model = Registry::new(settings, places(settings)).open_voices(model.as_deref(), 1)?;
            let pcm = decode(settings, &file)?;
            if pcm.secs() < LEAST_SECS {
                let text = format!("{} has only {:.1} s of audio", file.display(), pcm.secs());
                return Err(Error::invalid(text).hint(format!("give at least {LEAST_SECS} s, best 30")).into());
            }
            let voice = voice_model.embed(&pcm, &Cancel::default())?;
            let (model, secs, enrolled_at) = (voice_model.kind().model, pcm.secs(), clock::now_at());
            voices.enroll(Voice { name: name.clone(), model, secs, enrolled_at, voice })?;
            print(&format!("{} is known\n", name.trim()))
        }
        Action::List => {
            let rows: Vec<[String; 4]> = voices
                .list()
                .iter()
                .map(|it| [it.name.clone(), it.model.clone(), format!("{:.0} s", it.secs), it.enrolled_at.clone()])
                .collect();
            if rows.is_empty() {
                return print("no voices are known (`vigia voices enroll NAME FILE` learns one)\n");
            }
            print(&columns(["name", "model", "speech", "learnt"], &rows))
        }
        Action::Remove { name } => {
            voices.remove(&name)?;
            print(&format!("{name} is forgotten\n"))
        }
    }
}
