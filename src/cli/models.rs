//! `vigia models`: which models are known and which are here, and bringing, checking, carrying and removing them. Works
//! on the folder itself, whether the daemon runs or not; what a daemon has loaded stays as it was until it loads anew.

mod progress;
mod shown;

use std::{
    io::{self, IsTerminal},
    net::SocketAddr,
    path::{Path, PathBuf},
};

use crate::{
    api::client,
    base::{ByteSize, Error, Kind, Result, printable},
    cli::{
        Outcome, SettingsArgs, disk, eprintln_line, models::progress::Progress, places, print, selftest::address_of,
    },
    models::{
        archive::{self, Carried},
        catalogue::{Catalogue, Entry},
        hub::{Access, DEFAULT_ENDPOINT, Hub, Patience},
        installed::{self, Claim, Found},
        licence,
        pull::pull,
    },
    store::space,
};

/// List, fetch, check, carry and remove models
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    action: Action,
    #[command(flatten)]
    settings: SettingsArgs,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// List the models that are known, and which are installed
    List {
        /// Print one JSON array
        #[arg(long)]
        json: bool,
    },
    /// Show one model: variants, files, licence, where it comes from
    Show {
        name: String,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
        /// Print its entry of the catalogue as it is written, to begin one of your own with
        #[arg(long, conflicts_with = "json")]
        entry: bool,
    },
    /// Print the folder of a model, or where models are looked for
    Where { name: Option<String> },
    /// Fetch models from the hub (HF_ENDPOINT, HF_TOKEN, SSL_CERT_FILE); what was cut goes on where it was
    Pull {
        #[arg(required = true)]
        names: Vec<String>,
        /// A precision, such as q4; the usual one of each model unless named
        #[arg(long, value_name = "VARIANT")]
        variant: Option<String>,
        /// Accept a licence that forbids commercial use; asked once for each model
        #[arg(long)]
        accept_licence: bool,
    },
    /// Compare the files of installed models with what they were when they came
    Verify {
        names: Vec<String>,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Delete a model from the models' folder
    Remove { name: String },
    /// Take a model out of the running daemon's memory; the next job that needs it loads it again
    Unload {
        name: String,
        /// Where the daemon listens, as http://ADDRESS:PORT; by default server.listen of the settings
        #[arg(long)]
        url: Option<String>,
        /// A key, where the daemon needs one
        #[arg(long)]
        token: Option<String>,
    },
    /// Write installed models into one archive, for a machine without a network
    Export {
        /// The archive to write; one that is there already stays, and nothing is written
        file: PathBuf,
        /// Models, as `vigia models list` names them
        #[arg(required = true)]
        names: Vec<String>,
    },
    /// Install the models of an archive
    Import {
        /// An archive that `vigia models export` wrote
        file: PathBuf,
        /// Accept licences that forbid commercial use; asked once for each model
        #[arg(long)]
        accept_licence: bool,
    },
}

pub(super) fn run(args: Args) -> Outcome {
    let sources = args.settings.sources();
    let settings = args.settings.load()?.loaded.settings;
    // Only for those that need it: a daemon's memory is not on the disk.
    let shelf = || -> Result<Shelf> {
        let own_entries = sources.etc_dir.as_ref().map(|dir| dir.join("models.d"));
        let catalogue = Catalogue::load(own_entries.as_deref())?;
        catalogue.problems().iter().for_each(|problem| eprintln_line(problem));
        Ok(Shelf { catalogue, models_dir: settings.models_dir(), places: places(&settings).models })
    };
    match args.action {
        Action::List { json } => print(&shelf()?.list(json)?),
        Action::Show { name, entry: true, .. } => print(&shelf()?.entry(&name)?),
        Action::Show { name, json, .. } => print(&shelf()?.show(&name, json)?),
        Action::Where { name } => print(&shelf()?.whereabouts(name.as_deref())?),
        Action::Pull { names, variant, accept_licence } => {
            let endpoint = sources.variable("HF_ENDPOINT").unwrap_or(DEFAULT_ENDPOINT);
            let ca_file = sources.variable("SSL_CERT_FILE").map(Path::new);
            let hub = Hub::new(endpoint, Access { token: sources.variable("HF_TOKEN"), ca_file }, Patience::default())?;
            shelf()?.pull(&hub, &names, variant.as_deref(), accept_licence, io::stderr().is_terminal())
        }
        Action::Verify { names, json } => {
            let (text, right) = shelf()?.verify(&names, json)?;
            print(&text)?;
            if right {
                Ok(())
            } else {
                Err(anyhow::anyhow!(
                    "not every file is what it was; `vigia models pull` or the archive it came from brings it anew"
                )
                .into())
            }
        }
        Action::Remove { name } => {
            let shelf = shelf()?;
            let _claim = Claim::of(&shelf.models_dir)?;
            installed::remove(&shelf.models_dir, &name, shelf.catalogue.get(&name).is_some())?;
            print(&format!("{name} is removed\n"))
        }
        Action::Unload { name, url, token } => {
            let address = url.as_deref().map_or(Ok(settings.server.listen), address_of)?;
            unload(address, &name, token.as_deref())?;
            print(&format!("{name} is unloaded: its memory is free\n"))
        }
        Action::Export { file, names } => print(&shelf()?.export(&file, &names)?),
        Action::Import { file, accept_licence } => print(&shelf()?.import(&file, accept_licence)?),
    }
}

/// Resolves when the memory is back.
fn unload(address: SocketAddr, model: &str, token: Option<&str>) -> Result<()> {
    let model: String = form_urlencoded::byte_serialize(model.as_bytes()).collect();
    let path = format!("/api/models/{model}/unload");
    let failed = |error| Error::internal("no runtime for the request").cause(error);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
    let (status, answer) = runtime.block_on(client::post(address, &path, token))?;
    if status.is_success() {
        return Ok(());
    }
    let told = |key: &str| answer["error"][key].as_str().unwrap_or_default().to_owned();
    Err(Error::unavailable(told("message")).hint(told("hint")))
}

/// What is known and what is here.
struct Shelf {
    catalogue: Catalogue,
    /// Where models are brought to.
    models_dir: PathBuf,
    /// Where they may lie, that folder first.
    places: Vec<PathBuf>,
}

impl Shelf {
    fn found(&self, name: &str) -> Result<Option<Found>> {
        match self.catalogue.get(name) {
            Some(entry) => installed::find(entry, &self.places),
            None => Ok(installed::unlisted(&self.catalogue, &self.places)?.remove(name)),
        }
    }

    /// The folder of a model that is here, if only in part.
    fn folder(&self, name: &str) -> Result<Found> {
        self.found(name)?.ok_or_else(|| {
            let error = Error::new(Kind::NotFound, format!("the model {name} is not installed"));
            match self.catalogue.get(name) {
                Some(Entry { source: Some(source), .. }) => error.hint(source.clone()),
                Some(_) => error.hint(format!("vigia models pull {name}")),
                None => error.hint("`vigia models list` shows those that are known"),
            }
        })
    }

    fn whereabouts(&self, name: Option<&str>) -> Result<String> {
        let lines: Vec<String> = match name {
            Some(name) => vec![self.folder(name)?.dir.display().to_string()],
            None => self.places.iter().map(|place| place.display().to_string()).collect(),
        };
        Ok(lines.join("\n") + "\n")
    }

    fn pull(&self, hub: &Hub, names: &[String], variant: Option<&str>, accepted: bool, bars: bool) -> Outcome {
        let entries = self.with_companions(names)?;
        for entry in &entries {
            // A variant that is asked for is one of the named models'; a companion comes as it usually does.
            entry.variant(variant.filter(|_| names.contains(&entry.name)))?;
        }
        let _claim = Claim::of(&self.models_dir)?;
        for entry in &entries {
            licence::check(&self.models_dir, entry, accepted)?;
        }
        if accepted {
            licence::remember(&self.models_dir, entries.iter().copied())?;
        }
        for entry in entries {
            let variant = entry.variant(variant.filter(|_| names.contains(&entry.name)))?;
            let progress = Progress::new(bars);
            let pulled = pull(hub, entry, variant, &self.models_dir, &free, &|told| progress.tell(&told))?;
            let what = match pulled.files {
                0 => "is here already".to_owned(),
                _ => format!("is installed ({})", ByteSize(pulled.bytes)),
            };
            let variant = if entry.variants().len() > 1 { format!(" {variant}") } else { String::new() };
            print(&printable(&format!("{}{variant} {what}, licence {}\n", entry.name, entry.licence.name)))?;
        }
        Ok(())
    }

    /// The named models, each followed by those that it does not work without, and nothing twice.
    fn with_companions(&self, names: &[String]) -> Result<Vec<&Entry>> {
        let mut entries: Vec<&Entry> = Vec::new();
        let mut waiting: Vec<&str> = names.iter().rev().map(String::as_str).collect();
        while let Some(name) = waiting.pop() {
            let entry = self.catalogue.require(name)?;
            if !entries.iter().any(|it| it.name == entry.name) {
                entries.push(entry);
                waiting.extend(entry.with.iter().map(String::as_str));
            }
        }
        Ok(entries)
    }

    fn export(&self, file: &Path, names: &[String]) -> Result<String> {
        let _claim = Claim::of(&self.models_dir)?;
        let mut found: Vec<(&str, Found)> = Vec::new();
        for name in names {
            if !found.iter().any(|(known, _)| known == name) {
                found.push((name, self.whole(name)?));
            }
        }
        let carried: Vec<Carried<'_>> = found.iter().map(|(name, found)| Carried { name, dir: &found.dir }).collect();
        let bytes = archive::export(file, &carried, &self.catalogue, &free)?;
        let names: Vec<&str> = found.iter().map(|(name, _)| *name).collect();
        Ok(format!("{} holds {} ({})\n", file.display(), names.join(", "), ByteSize(bytes)))
    }

    fn whole(&self, name: &str) -> Result<Found> {
        let found = self.folder(name)?;
        if found.variants.is_empty() {
            let error = Error::unavailable(format!("the model {name} is here only in part"));
            return Err(error.hint(shown::how_to_complete(self.catalogue.get(name), name)));
        }
        Ok(found)
    }

    fn import(&self, file: &Path, accepted: bool) -> Result<String> {
        let _claim = Claim::of(&self.models_dir)?;
        let names = archive::import(file, &self.models_dir, &self.catalogue, accepted, &free)?;
        let mut told = String::new();
        for name in names {
            let is_whole = self.found(&name)?.is_none_or(|found| !found.variants.is_empty());
            let how = if is_whole { "is installed" } else { "is here in part: the archive holds no variant of it" };
            told.push_str(&format!("{name} {how}\n"));
        }
        Ok(told)
    }
}

/// Also for a folder that is only about to be made.
fn free(dir: &Path) -> Option<ByteSize> {
    space::free(&disk::nearest_existing(dir))
}

#[cfg(test)]
#[path = "models/tests.rs"]
mod tests;
