//! `vigia try asr`: one speech model on one recording, with everything that the engine knows of it. Follows the
//! reference, without the guards that a service has, so that results can be laid beside it.

use std::{
    path::{Path, PathBuf},
    time::Instant,
};

use clap::ValueEnum;
use serde_json::{Map, Value, json};

use crate::{
    base::Result,
    cli::{
        Chosen, Outcome, places, print,
        try_engine::{self, decode},
    },
    engines::{
        Cancel, Decode, Guards, PieceText, Registry, SegmentText, TranscribeAsk, Transcriber,
        asr::whisper::{Whisper, WhisperSpec},
        longform::{BySpeech, Recording, Request, Sequential},
        vad,
    },
    flow::{Pcm, SAMPLE_RATE_HZ},
    runtime,
    segment::{Voiced, Windows},
    settings::Settings,
};

const WINDOW: usize = 30 * SAMPLE_RATE_HZ as usize;

/// Transcribe a recording with a model's folder
#[derive(Debug, clap::Args)]
pub(super) struct TryAsr {
    /// Any audio file that GStreamer opens
    file: PathBuf,
    /// Folder with config.json, tokenizer.json and onnx/
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// What is spoken: a code such as es, or auto
    #[arg(long, default_value = "auto")]
    language: String,
    #[arg(long, value_enum, default_value = "transcribe")]
    task: AsrTask,
    /// Let the model say when its segments begin and end (so unless --no-timestamps)
    #[arg(long, overrides_with = "no_timestamps")]
    timestamps: bool,
    /// Text alone
    #[arg(long)]
    no_timestamps: bool,
    /// Look for the likeliest text along so many ways
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=16))]
    beam: u8,
    /// How freely tokens are drawn; given, no other is tried
    #[arg(long, value_name = "T", value_parser = temperature)]
    temperature: Option<f32>,
    /// What was said before, or how names are spelled
    #[arg(long, value_name = "TEXT")]
    prompt: Option<String>,
    /// One decode of the first 30 s, filled up with silence
    #[arg(long, conflicts_with = "long_form")]
    single_window: bool,
    /// How recordings of any length are cut
    #[arg(long, value_enum, default_value = "vad")]
    long_form: LongForm,
    /// Show each window the text before it (sequential only)
    #[arg(long)]
    condition_on_previous: bool,
    /// Which graphs: _fp16, _quantized, _q4…
    #[arg(long, default_value = "", value_parser = suffix)]
    suffix: String,
    /// Times of words, where the export can tell them
    #[arg(long)]
    words: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum AsrTask {
    Transcribe,
    Translate,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum LongForm {
    /// Window after window, as the model's timestamps say
    Sequential,
    /// Windows of speech
    Vad,
}

/// Everything that is known at the end.
struct Tried {
    pieces: Vec<PieceText>,
    segments: Vec<SegmentText>,
}

impl TryAsr {
    pub(super) fn run(&self, common: &try_engine::Args) -> Outcome {
        let Chosen { loaded, .. } = common.settings.load()?;
        let settings = &loaded.settings;
        let begun = Instant::now();
        let pcm = decode(settings, &self.file)?;
        let object = self.tried(&pcm, settings, common)?;
        if common.json {
            return print(&format!("{object}\n"));
        }
        let text = object["text"].as_str().unwrap_or_default();
        let elapsed = begun.elapsed();
        print(&format!("{:.1} s of audio, {}, {elapsed:.0?}\n{text}\n", pcm.secs(), object["language"]))
    }

    fn tried(&self, pcm: &Pcm, settings: &Settings, common: &try_engine::Args) -> Result<Value> {
        let places = places(settings);
        let library = runtime::find(&settings.runtime.library, &places.library)?;
        let mut spec = WhisperSpec::of(&self.model, &library, common.threads.into());
        spec.provider = common.provider_options(settings);
        spec.batch = 1;
        spec.encoder.suffix.clone_from(&self.suffix);
        spec.decoder.suffix.clone_from(&self.suffix);
        if self.words
            && let Some(folder) = with_attention(&self.model, &self.suffix)
        {
            folder.clone_into(&mut spec.decoder.folder);
        }
        let mut whisper = Whisper::open(&spec)?;
        let tried = match (self.single_window, self.long_form) {
            (true, _) => self.one_window(&mut whisper, pcm)?,
            (false, LongForm::Sequential) => self.sequential(&mut whisper, pcm)?,
            (false, LongForm::Vad) => {
                let mut detector = Registry::new(settings, places).open_silero(1)?;
                self.by_speech(&mut whisper, pcm, vad::hear(&mut detector, pcm)?)?
            }
        };
        Ok(object(&tried, &self.language))
    }

    fn ask(&self) -> TranscribeAsk {
        let usual = Decode::default();
        let temperatures = self.temperature.map_or(usual.temperatures, |temperature| vec![temperature]);
        let decode =
            Decode { timestamps: !self.no_timestamps, beam: self.beam.into(), temperatures, ..Decode::default() };
        TranscribeAsk {
            pieces: Vec::new(),
            words: self.words,
            translate: self.task == AsrTask::Translate,
            prompt: self.prompt.clone(),
            decode,
            ..TranscribeAsk::of(Vec::new().into(), &self.language)
        }
    }

    fn one_window(&self, whisper: &mut Whisper, pcm: &Pcm) -> Result<Tried> {
        let ask = self.ask();
        let decode = Decode {
            temperatures: vec![self.temperature.unwrap_or(0.0)],
            max_compression_ratio: None,
            min_log_probability: None,
            max_no_speech: None,
            ..ask.decode
        };
        let audio = Pcm::from(pcm[..pcm.len().min(WINDOW)].to_vec());
        let ask = TranscribeAsk { pieces: vec![audio.into()], decode, ..ask };
        let pieces = answer(whisper, &ask)?;
        let segments = pieces.iter().flat_map(|piece| piece.segments.clone()).collect();
        Ok(Tried { pieces, segments })
    }

    fn sequential(&self, whisper: &mut Whisper, pcm: &Pcm) -> Result<Tried> {
        let mut loudest = whisper.loudest();
        loudest.push(pcm)?;
        // As the reference: a short recording is followed by silence.
        let recording = Recording { samples: pcm.len() as u64, loudest: loudest.finish()?, filled_up: true };
        let context = if self.condition_on_previous { whisper.context_tokens() } else { 0 };
        let mut machine = Sequential::new(self.ask(), recording, context, Guards::NONE);
        let mut tried = Tried { pieces: Vec::new(), segments: Vec::new() };
        while let Some(request) = machine.request() {
            let answers = answer(whisper, &cut_out(request, pcm))?;
            tried.pieces.extend(answers.iter().cloned());
            tried.segments.extend(machine.accept(answers)?);
        }
        Ok(tried)
    }

    fn by_speech(&self, whisper: &mut Whisper, pcm: &Pcm, heard: Vec<Voiced>) -> Result<Tried> {
        let mut machine = BySpeech::new(self.ask(), Windows::default(), 1, Guards::NONE);
        heard.into_iter().for_each(|voiced| machine.hear(voiced));
        machine.finish(pcm.len() as u64);
        let mut tried = Tried { pieces: Vec::new(), segments: Vec::new() };
        while let Some(request) = machine.request() {
            let answers = answer(whisper, &cut_out(request, pcm))?;
            tried.pieces.extend(answers.iter().cloned());
            tried.segments.extend(machine.accept(answers)?);
        }
        Ok(tried)
    }
}

fn answer(whisper: &mut Whisper, ask: &TranscribeAsk) -> Result<Vec<PieceText>> {
    whisper.transcribe(ask, &mut |_| {}, &Cancel::default())
}

fn cut_out(request: Request, pcm: &Pcm) -> TranscribeAsk {
    let index = |sample: u64| usize::try_from(sample).unwrap_or(usize::MAX).min(pcm.len());
    request.ask(|from, to| pcm[index(from)..index(to)].to_vec().into())
}

/// Exports with word times lie beside the others, or are all there is.
fn with_attention(model: &Path, suffix: &str) -> Option<&'static str> {
    const FOLDER: &str = "onnx_timestamped";
    model.join(FOLDER).join(format!("decoder_model_merged{suffix}.onnx")).is_file().then_some(FOLDER)
}

fn object(tried: &Tried, asked: &str) -> Value {
    let nothing = PieceText::default();
    let first = tried.pieces.first().unwrap_or(&nothing);
    let language = if tried.pieces.is_empty() { asked } else { &first.language };
    let probabilities: Map<String, Value> =
        first.language_probabilities.iter().map(|(code, probability)| (code.clone(), json!(probability))).collect();
    let tokens: Vec<u32> = tried.pieces.iter().flat_map(|piece| piece.tokens.iter().copied()).collect();
    let text: String = tried.segments.iter().map(|segment| segment.text.as_str()).collect();
    let mut object = json!({
        "language": language,
        "language_probabilities": probabilities,
        "no_speech_probability": first.no_speech_probability,
        "prompt_tokens": first.prompt_tokens,
        "tokens": tokens,
        "segments": tried.segments,
        "text": text.trim(),
    });
    if tried.pieces.iter().any(|piece| piece.without_words) {
        object["unavailable"] = json!(["words"]);
    }
    object
}

fn temperature(text: &str) -> Result<f32, String> {
    let wrong = || format!("`{text}` is no temperature: 0 to 2");
    let temperature: f32 = text.parse().map_err(|_| wrong())?;
    if (0.0..=2.0).contains(&temperature) { Ok(temperature) } else { Err(wrong()) }
}

/// It becomes a part of a path.
fn suffix(text: &str) -> Result<String, String> {
    let safe = text.is_empty() || text.starts_with('_') && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    if safe { Ok(text.to_owned()) } else { Err(format!("`{text}` is no suffix, such as _quantized")) }
}
