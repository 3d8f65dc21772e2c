//! Whisper, of any size and precision, as published in the Hugging Face ONNX layout.
//!
//! ```text
//! samples ─ mel ─► features ─ encoder ─► what was heard ──┐
//!                                                          ├─ decoder, step by step ─► tokens ─ window ─► segments
//! language, task, what was said before ─ hear ─► prompt ──┘    rules · sample · beam · decode (doubt, try again)
//! ```
//! Knows one window of 30 s at a time; what makes one text of a long recording stands above. Never knows a model by
//! heart: sizes and ids come from its files (`files`, `tokens`, `graphs`).

mod appetite;
mod beam;
mod decode;
mod decoder;
mod files;
mod graphs;
mod hear;
mod listened;
mod mel;
mod numbers;
mod recent;
mod rules;
mod sample;
mod search;
mod spec;
mod tokens;
mod window;

#[cfg(test)]
mod parity;

use crate::{
    base::{Error, Result},
    engines::{
        Cancel, Piece, PieceText, SegmentText, TranscribeAsk, TranscribeStep, Transcriber, asr::words::share_out,
    },
    runtime::Runtime,
};

use decode::Decoded;
use decoder::Decoder;
use files::ModelFiles;
use graphs::{DecoderGraphs, Encoder};
use hear::{Context, alike, languages, read_prompts};
use mel::{Features, LogMel};
use recent::Recent;
use rules::Rules;
use search::{Progress, Search};
use tokens::Tokens;

pub use appetite::memory;
pub use mel::Loudest;
pub use spec::{GraphFile, PlanPlace, WhisperSpec};

pub struct Whisper {
    files: ModelFiles,
    tokens: Tokens,
    encoder: Encoder,
    recent: Recent,
    decoder: Decoder,
    mel: LogMel,
    batch: usize,
    note: Option<String>,
}

/// One piece on its way through the model.
struct Window {
    features: Features,
    previous: Vec<u32>,
}

impl Whisper {
    pub fn open(spec: &WhisperSpec) -> Result<Whisper> {
        let files = ModelFiles::read(&spec.dir)?;
        let tokens = Tokens::read(&spec.dir, &files.rules, files.vocabulary)?;
        let runtime = Runtime::open(&spec.library)?;
        let encoder = Encoder::open(spec, &runtime, &files)?;
        let graphs = DecoderGraphs::open(spec, &runtime, &files)?;
        let unchanged: Vec<String> = encoder.unchanged.iter().chain(&graphs.unchanged).cloned().collect();
        Ok(Whisper {
            note: (!unchanged.is_empty()).then(|| unchanged.join("; ")),
            decoder: Decoder::new(graphs, files.clone()),
            mel: LogMel::new(files.mel),
            tokens,
            encoder,
            recent: Recent::default(),
            files,
            batch: spec.batch.clamp(1, 64),
        })
    }

    /// How much text before its own a window may see: half of what the model can hold, one less; the rest is for its own.
    pub fn context_tokens(&self) -> usize {
        self.files.max_tokens / 2 - 1
    }

    /// Finds what the pieces of one recording are to have as `loudest`.
    pub fn loudest(&self) -> Loudest {
        Loudest::new(self.files.mel)
    }

    fn window(&mut self, piece: &Piece) -> Result<Window> {
        let Piece { audio, lead, loudest, previous } = piece;
        // The last frames may look at what follows the window.
        let longest = self.files.mel.samples() + self.files.mel.n_fft;
        if *lead > audio.len() || audio.len() - lead > longest {
            let window = self.files.mel.frames as f64 * self.files.mel.frame_secs();
            return Err(Error::invalid(format!("a piece of {:.1} s is too long for this model", audio.secs()))
                .hint(format!("cut the audio into pieces of {window} s")));
        }
        if !audio.iter().all(|sample| sample.is_finite()) {
            return Err(Error::invalid("the audio holds values that are no numbers"));
        }
        Ok(Window { features: self.mel.features(audio, *lead, *loudest)?, previous: previous.clone() })
    }

    /// `windows` are pieces of one ask, decoded together where their prompts are alike; `first` is the first one's number.
    fn transcribe_windows(
        &mut self,
        windows: &[Window],
        ask: &TranscribeAsk,
        first: usize,
        progress: &mut Progress<'_>,
    ) -> Result<Vec<PieceText>> {
        let mut hidden = Vec::with_capacity(windows.len());
        for window in windows {
            progress.go_on()?;
            let features = &window.features.values;
            let (encoder, files) = (&mut self.encoder, &self.files);
            hidden.push(self.recent.heard(features, || encoder.run(features, files))?);
        }
        progress.go_on()?;
        let (heard, detected) = languages(&mut self.decoder, &self.tokens, &hidden, ask)?;
        let context = Context::of(ask, &self.tokens, self.context_tokens())?;
        let mut answers: Vec<PieceText> = Vec::with_capacity(windows.len());
        for (window, heard) in windows.iter().zip(heard) {
            let task = self.tokens.task(heard.token, ask.translate, ask.decode.timestamps)?;
            answers.push(PieceText {
                language: heard.language,
                language_probabilities: heard.probabilities,
                prompt_tokens: context.prompt(&window.previous, task),
                ..PieceText::default()
            });
        }
        let prompts: Vec<Vec<u32>> = answers.iter().map(|answer| answer.prompt_tokens.clone()).collect();
        let rules = self.rules(ask);
        for rows in alike(&prompts) {
            progress.go_on()?;
            let (decoder, tokens) = (&mut self.decoder, &self.tokens);
            let attention = ask.words && decoder.alignment_heads() > 0;
            let (memory, mut prefilled) = read_prompts(decoder, tokens, &hidden, &prompts, &rows, detected.as_ref())?;
            prefilled.iter_mut().for_each(|it| it.piece += first);
            let room = self.files.max_tokens.saturating_sub(prompts[rows[0]].len());
            let mut search = Search {
                attention,
                decoder,
                rules: &rules,
                eot: tokens.eot,
                max_new_tokens: ask.decode.max_new_tokens.unwrap_or(room).clamp(1, room.max(1)),
            };
            let decoded = decode::decode(&mut search, tokens, &ask.decode, &prefilled, &memory, progress)?;
            for ((row, prefilled), decoded) in rows.iter().zip(&prefilled).zip(decoded) {
                self.fill(&mut answers[*row], ask, &windows[*row], decoded, prefilled.no_speech)?;
            }
        }
        Ok(answers)
    }

    fn rules(&self, ask: &TranscribeAsk) -> Rules {
        let asked = ask.decode.max_initial_timestamp_secs;
        let asked = asked.map(|secs| (f64::from(secs.max(0.0)) / self.tick_secs()).round() as usize);
        Rules::new(&self.tokens, ask.decode.timestamps, asked.or(self.files.rules.max_initial_timestamp))
    }

    /// A timestamp's unit: a frame of the encoder.
    fn tick_secs(&self) -> f64 {
        self.files.mel.frames as f64 * self.files.mel.frame_secs() / self.files.encoder_frames as f64
    }

    /// What a text says, and when.
    fn fill(
        &self,
        answer: &mut PieceText,
        ask: &TranscribeAsk,
        window: &Window,
        decoded: Decoded,
        no_speech: f32,
    ) -> Result<()> {
        let content_secs = window.features.content as f64 * self.files.mel.frame_secs();
        let tick_secs = self.tick_secs();
        let tokens = &decoded.hypothesis.tokens;
        let said = tokens.strip_suffix(&[self.tokens.eot]).unwrap_or(tokens);
        let cut = window::cut(said, &self.tokens, (content_secs / tick_secs + 1e-6) as usize);
        answer.no_speech_probability = no_speech;
        answer.advance_secs = content_secs;
        answer.without_words = ask.words && self.decoder.alignment_heads() == 0;
        if !decode::is_silence(&ask.decode, decoded.avg_logprob, no_speech) {
            answer.advance_secs = cut.advance.map_or(content_secs, |ticks| ticks as f64 * tick_secs);
            for slice in cut.slices {
                answer.segments.push(SegmentText {
                    start: slice.start as f64 * tick_secs,
                    end: slice.end as f64 * tick_secs,
                    text: self.tokens.text(&slice.tokens)?,
                    tokens: slice.tokens,
                    avg_logprob: decoded.avg_logprob,
                    compression_ratio: decoded.compression_ratio,
                    no_speech_probability: no_speech,
                    temperature: decoded.temperature,
                    words: Vec::new(),
                    attends_to: Vec::new(),
                });
            }
        }
        if ask.words && !answer.segments.is_empty() {
            let audio_frames = window.features.content / 2;
            let words = self.words_of(&decoded.hypothesis, &answer.language, audio_frames, ask.attention)?;
            share_out(words, &mut answer.segments, self.tokens.eot);
        }
        answer.tokens = decoded.hypothesis.tokens;
        Ok(())
    }
}

impl Transcriber for Whisper {
    fn note(&self) -> Option<String> {
        self.note.clone()
    }

    fn transcribe(
        &mut self,
        ask: &TranscribeAsk,
        step: &mut dyn FnMut(TranscribeStep),
        cancel: &Cancel,
    ) -> Result<Vec<PieceText>> {
        decode::check(&ask.decode)?;
        let mut progress = Progress { step, cancel };
        let mut answers = Vec::with_capacity(ask.pieces.len());
        for (batch, pieces) in ask.pieces.chunks(self.batch).enumerate() {
            let mut windows = Vec::with_capacity(pieces.len());
            for piece in pieces {
                windows.push(self.window(piece)?);
            }
            answers.extend(self.transcribe_windows(&windows, ask, batch * self.batch, &mut progress)?);
        }
        Ok(answers)
    }
}
