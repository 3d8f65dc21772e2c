//! A transcriber for tests: it answers with what it was given (language, length, loudness), so that a test sees
//! whether the right audio arrived. Never part of a release.

use crate::{
    base::Result,
    engines::{Cancel, TranscribeAsk, Transcriber},
    flow::{Transcript, Word},
};

pub struct Echo;

impl Transcriber for Echo {
    fn transcribe(&mut self, ask: &TranscribeAsk, _: &Cancel) -> Result<Transcript> {
        let secs = ask.audio.secs();
        let energy: f64 = ask.audio.iter().map(|sample| f64::from(*sample).powi(2)).sum();
        let loudness = 10.0 * (energy / ask.audio.len().max(1) as f64).max(1e-10).log10();
        let language = if ask.language == "auto" { "es" } else { &ask.language };
        let text = format!("{secs:.2} s {loudness:.0} dB");
        let word = Word { start: 0.0, end: secs, text: text.clone(), probability: 1.0 };
        Ok(Transcript {
            text,
            language: language.to_owned(),
            probability: 1.0,
            words: if ask.words { vec![word] } else { Vec::new() },
        })
    }
}
