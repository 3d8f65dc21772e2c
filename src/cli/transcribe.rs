//! `vigia transcribe`: recordings become text, without a daemon, in the same way as the daemon does it. Results go to
//! standard output or into files; how far it is, to standard error.

use std::{
    collections::HashSet,
    io::{self, IsTerminal},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use clap::ValueEnum;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use tokio::sync::mpsc;

use crate::{
    base::{Error, Kind, Result, Shutdown},
    cli::{Chosen, Outcome, SettingsArgs, eprintln_line, places, print},
    engines::{Registry, TranscribeAsk, diarize::Voices},
    flow::{Priority, Task, TextSegment, subtitles},
    jobs::{self, FileAsk, FileDesk, FileNews, FileSpeakers, FileSummary, Queue, QueueLimits},
    media::{AudioFile, Media},
    settings::Settings,
};

const NEWS_QUEUE: usize = 16;

/// A window of a large model on a small machine takes minutes; a person who has had enough presses Ctrl-C.
const WINDOW_LIMIT: Duration = Duration::from_secs(3600);

/// Write down what is said in recordings
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Any audio files that GStreamer opens
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// A model's name, or its folder; else that of tasks.transcribe.model
    #[arg(long)]
    model: Option<PathBuf>,
    /// What is spoken: a code such as es, or auto
    #[arg(long, default_value = "auto")]
    language: String,
    #[arg(long, value_enum, default_value = "txt")]
    format: Format,
    /// Times of words (in json, and where subtitles are cut)
    #[arg(long)]
    words: bool,
    /// Tell the speakers apart; known voices are called by their names
    #[arg(long)]
    diarize: bool,
    /// How many speakers there are, where it is known
    #[arg(long, value_name = "N", requires = "diarize", value_parser = clap::value_parser!(u8).range(1..=64))]
    speakers: Option<u8>,
    /// Translate into English
    #[arg(long)]
    translate: bool,
    /// What was said before, or how names are spelled
    #[arg(long, value_name = "TEXT")]
    prompt: Option<String>,
    /// Write a file for each recording into this folder
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
    #[command(flatten)]
    settings: SettingsArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Txt,
    Srt,
    Vtt,
    Json,
}

pub(super) fn run(mut args: Args) -> Outcome {
    if args.files.len() > 1 && args.output.is_none() && matches!(args.format, Format::Srt | Format::Vtt) {
        return Err(Error::invalid("subtitles of several recordings make no one file").hint("add --output DIR").into());
    }
    args.prepare_output()?;
    let beside = args.model.clone().map(|model| args.choose(&model)).transpose()?.flatten();
    let Chosen { loaded, facts, .. } = args.settings.load()?;
    let settings = loaded.settings;
    let mut places = places(&settings);
    places.models.splice(..0, beside);
    let registry = Registry::new(&settings, places);
    registry.installed(Task::Transcribe)?;
    if args.diarize {
        registry.installed(Task::Diarize)?;
        Voices::open(&settings.store_dir())?;
    }
    let media = Media::new(&settings.pipelines, &settings.audio, &settings.vision)?;
    let model = settings.model_for(Task::Transcribe).unwrap_or_default();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start the async runtime")?;
    let mut failed = 0;
    runtime.block_on(async {
        let shutdown = Shutdown::new();
        registry.begin(&facts);
        let queue = Queue::new(QueueLimits { live: 1, interactive: 2, batch: 1 });
        tokio::spawn(jobs::run(queue.clone(), registry.clone(), WINDOW_LIMIT, shutdown.clone()));
        let desk = FileDesk { voice: registry.voice().await?, queue, priority: Priority::Interactive, batch: 1 };
        let desk = Arc::new(desk);
        for file in &args.files {
            match args.transcribe(file, &settings, &media, &desk).await {
                Ok((mut summary, segments)) => {
                    summary.warnings.extend(registry.instead(Task::of_transcript(args.diarize)));
                    for warning in &summary.warnings {
                        eprintln_line(&format!("{}: {}", file.display(), warning.message));
                    }
                    args.write(file, model, &summary, &segments)?;
                }
                // The other recordings are worth their text all the same.
                Err(error) if args.files.len() > 1 => {
                    eprintln_line(&format!("{}: {}", file.display(), error.full()));
                    failed += 1;
                }
                Err(error) => return Err(error.into()),
            }
        }
        shutdown.start();
        registry.close().await;
        Outcome::Ok(())
    })?;
    match failed {
        0 => Ok(()),
        _ => Err(Error::invalid(format!("{failed} of {} recordings gave no text", args.files.len())).into()),
    }
}

impl Args {
    /// Before hours of work: there is a folder to write to, and no result would take another's place.
    fn prepare_output(&self) -> Result<()> {
        let Some(dir) = &self.output else { return Ok(()) };
        let mut paths = HashSet::new();
        if let Some(file) = self.files.iter().find(|file| !paths.insert(self.path_in(dir, file))) {
            let path = self.path_in(dir, file);
            return Err(Error::invalid(format!("two recordings would be written to {}", path.display()))
                .hint("write them into folders of their own, or rename one"));
        }
        std::fs::create_dir_all(dir).map_err(|error| {
            Error::invalid(format!("cannot write into {}", dir.display())).hint("--output names a folder").cause(error)
        })
    }

    fn path_in(&self, dir: &Path, file: &Path) -> PathBuf {
        let name = file.file_stem().unwrap_or(file.as_os_str());
        dir.join(name).with_added_extension(self.format.extension())
    }

    /// The folder in which a model lies that is named by its own.
    fn choose(&mut self, model: &Path) -> Result<Option<PathBuf>> {
        let folder = model.is_dir().then(|| model.canonicalize().ok()).flatten();
        let (name, beside) = match &folder {
            Some(folder) => (folder.file_name(), folder.parent().map(Path::to_owned)),
            None => (Some(model.as_os_str()), None),
        };
        let name = name.and_then(|name| name.to_str()).ok_or_else(|| {
            Error::new(Kind::NotFound, format!("{} is no model", model.display()))
                .hint("`vigia models list` shows them")
        })?;
        self.settings.sets.push(format!("tasks.transcribe.model={name}"));
        Ok(beside)
    }

    async fn transcribe(
        &self,
        file: &Path,
        settings: &Settings,
        media: &Media,
        desk: &Arc<FileDesk>,
    ) -> Result<(FileSummary, Vec<TextSegment>)> {
        let stream = media.open_file(AudioFile::Path(file.to_owned())).await?;
        let transcribe = TranscribeAsk {
            words: self.words,
            translate: self.translate,
            prompt: self.prompt.clone(),
            ..TranscribeAsk::of(Vec::new().into(), &self.language)
        };
        let speakers = match self.diarize {
            true => {
                let known = Voices::open(&settings.store_dir())?;
                Some(FileSpeakers::known(self.speakers.map(usize::from), known))
            }
            false => None,
        };
        let ask = FileAsk { transcribe, speakers, first_id: 0 };
        let (news, mut told) = mpsc::channel(NEWS_QUEUE);
        let desk = Arc::clone(desk);
        let work = tokio::spawn(async move { desk.transcribe(stream, ask, news).await });
        let bar = bar(file);
        let mut segments = Vec::new();
        while let Some(news) = told.recv().await {
            match news {
                FileNews::Segment(segment) => segments.push(segment),
                FileNews::Progress { secs, of } => {
                    if let Some(of) = of {
                        bar.set_length(of as u64);
                    }
                    bar.set_position(secs as u64);
                }
            }
        }
        bar.finish_and_clear();
        let mut summary = work.await.map_err(|error| Error::internal("the transcription crashed").cause(error))??;
        let segments = summary.spoken.take().unwrap_or(segments);
        if summary.without_words && self.words {
            eprintln_line("this model cannot tell when words are spoken; an export named _timestamped can");
        }
        Ok((summary, segments))
    }

    fn write(&self, file: &Path, model: &str, summary: &FileSummary, segments: &[TextSegment]) -> Outcome {
        let text = match self.format {
            Format::Txt => subtitles::txt(segments),
            Format::Srt => subtitles::srt(segments),
            Format::Vtt => subtitles::vtt(segments),
            Format::Json => self.json(file, model, summary, segments),
        };
        let Some(dir) = &self.output else {
            let several = self.files.len() > 1 && self.format == Format::Txt;
            let title = if several { format!("== {}\n", file.display()) } else { String::new() };
            return print(&format!("{title}{text}"));
        };
        let path = self.path_in(dir, file);
        std::fs::write(&path, text)
            .map_err(|error| Error::invalid(format!("cannot write {}", path.display())).cause(error))?;
        Ok(())
    }

    /// The object of `POST /api/stt`, with the name of the file.
    fn json(&self, file: &Path, model: &str, summary: &FileSummary, segments: &[TextSegment]) -> String {
        let texts: Vec<&str> = segments.iter().map(|it| it.text.as_str()).filter(|text| !text.is_empty()).collect();
        let mut object = json!({
            "file": file.display().to_string(),
            "text": texts.join(" "),
            "language": summary.language,
            "probability": summary.probability,
            "duration": summary.secs,
            "segments": segments,
            "model": model,
        });
        if self.words && summary.without_words {
            object["unavailable"] = json!(["words"]);
        }
        if !summary.warnings.is_empty() {
            object["warnings"] = json!(summary.warnings);
        }
        format!("{object}\n")
    }
}

impl Format {
    fn extension(self) -> &'static str {
        match self {
            Format::Txt => "txt",
            Format::Srt => "srt",
            Format::Vtt => "vtt",
            Format::Json => "json",
        }
    }
}

fn bar(file: &Path) -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    // The template is ours; were it wrong, a plain bar would do.
    let style = ProgressStyle::with_template("{bar:24} {pos:>6}/{len:6} s  {elapsed} · {eta} left  {msg}")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(0).with_style(style).with_message(file.display().to_string())
}
