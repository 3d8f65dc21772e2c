//! What a transcriber is asked and what it answers. Plain data: it crosses to the process of the engine.
//!
//! An ask is small on purpose, 30 s a piece at most, so that live speech is served between the pieces of a long file;
//! what makes one text of a long file stands above the engine.

use serde::{Deserialize, Serialize};

use crate::flow::{Pcm, Transcript, Word};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TranscribeAsk {
    /// Independent of each other; decoded together where that is faster. Answered in the same order.
    pub pieces: Vec<Piece>,
    /// A code such as `es`, or `auto`.
    pub language: String,
    /// With `auto`: the language to take as long as the model gives it at least this probability.
    pub leaning: Option<(String, f32)>,
    pub words: bool,
    /// With `words`: tell what each of them listened to, where the model can.
    pub attention: bool,
    pub translate: bool,
    /// What was said before, or how names are spelled.
    pub prompt: Option<String>,
    /// Words to expect; unlike the prompt they stay for every piece.
    pub hotwords: Option<String>,
    pub decode: Decode,
}

impl TranscribeAsk {
    /// One piece, decoded as the defaults say.
    pub fn of(audio: Pcm, language: &str) -> TranscribeAsk {
        TranscribeAsk {
            pieces: vec![Piece::from(audio)],
            language: language.to_owned(),
            leaning: None,
            words: false,
            attention: false,
            translate: false,
            prompt: None,
            hotwords: None,
            decode: Decode::default(),
        }
    }
}

/// At most 30 s of audio, and what its first and last frames reach to beyond it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Piece {
    pub audio: Pcm,
    /// Samples at the front of `audio` that belong to what came before: the first frames look back on them. Times count
    /// from behind them. Some hundred samples behind the 30 s are looked at in the same way.
    pub lead: usize,
    /// The greatest log-mel value of the whole recording, where this piece is a part of one; else its own counts.
    pub loudest: Option<f32>,
    /// Tokens of the text before, for models that take them as context.
    pub previous: Vec<u32>,
}

impl From<Pcm> for Piece {
    fn from(audio: Pcm) -> Piece {
        Piece { audio, lead: 0, loudest: None, previous: Vec::new() }
    }
}

/// How tokens are chosen, and when a result is doubted. The defaults are the reference's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Decode {
    /// Let the model say where its segments begin and end.
    pub timestamps: bool,
    /// 1: greedy.
    pub beam: usize,
    pub patience: f32,
    /// None: by length.
    pub length_penalty: Option<f32>,
    /// Samples drawn at a temperature above 0, the best of which is taken.
    pub best_of: usize,
    /// Tried in turn while the result is doubted. One: no fallback.
    pub temperatures: Vec<f32>,
    /// A text that compresses better than this repeats itself. None: not asked.
    pub max_compression_ratio: Option<f32>,
    /// A text less likely than this, by token, is doubted. None: not asked.
    pub min_log_probability: Option<f32>,
    /// Silence where the model says so with more than this, unless the text is likely. None: not asked.
    pub max_no_speech: Option<f32>,
    /// Latest start of the first segment. None: as the model's files say.
    pub max_initial_timestamp_secs: Option<f32>,
    /// None: as many as the model can.
    pub max_new_tokens: Option<usize>,
    /// For sampling; the same seed gives the same text.
    pub seed: u64,
}

impl Default for Decode {
    fn default() -> Decode {
        Decode {
            timestamps: true,
            beam: 1,
            patience: 1.0,
            length_penalty: None,
            best_of: 5,
            temperatures: vec![0.0, 0.2, 0.4, 0.6, 0.8, 1.0],
            max_compression_ratio: Some(2.4),
            min_log_probability: Some(-1.0),
            max_no_speech: Some(0.6),
            max_initial_timestamp_secs: None,
            max_new_tokens: None,
            seed: 0,
        }
    }
}

/// Told after every token, so that whoever waits sees words and may leave.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TranscribeStep {
    /// Which of the ask's pieces.
    pub piece: usize,
    pub tokens: usize,
}

/// What was understood of one piece. Times are seconds from its start.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct PieceText {
    pub language: String,
    /// By code, the likeliest first; empty where the language was given.
    pub language_probabilities: Vec<(String, f32)>,
    pub no_speech_probability: f32,
    pub prompt_tokens: Vec<u32>,
    /// Without the prompt, with the end token where the model gave it.
    pub tokens: Vec<u32>,
    /// None where the piece is silence.
    pub segments: Vec<SegmentText>,
    /// Words were asked for, and this model cannot tell their times.
    pub without_words: bool,
    /// From the start of the piece to where the next one of a long recording begins.
    pub advance_secs: f64,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct SegmentText {
    pub start: f64,
    pub end: f64,
    /// With the timestamps. The last segment of a piece that goes on also has the one that opens what follows.
    pub tokens: Vec<u32>,
    pub text: String,
    pub avg_logprob: f32,
    pub compression_ratio: f32,
    pub no_speech_probability: f32,
    pub temperature: f32,
    pub words: Vec<Word>,
    /// Where it was asked for: the second of the piece that each of the words listened to most.
    pub attends_to: Vec<f64>,
}

/// The whole answer as one text.
pub fn transcript(pieces: Vec<PieceText>) -> Transcript {
    let mut all = Transcript::default();
    for piece in pieces {
        if all.language.is_empty() {
            all.probability = piece.language_probabilities.first().map_or(1.0, |(_, probability)| *probability);
            all.language = piece.language;
        }
        for segment in piece.segments {
            if !all.text.is_empty() {
                all.text.push(' ');
            }
            all.text.push_str(segment.text.trim());
            all.words.extend(segment.words);
        }
    }
    all
}
