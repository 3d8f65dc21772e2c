//! Models of voices and diarizers as a host runs them.

use crate::{
    base::Result,
    engines::{Cancel, DiarizeAsk, DiarizeStep, Diarizer, EmbedAsk, Embedded, Embedder, Engine, Observed},
};

/// Any model of voices.
pub struct Voiceprints(pub Box<dyn Embedder>);

impl Engine for Voiceprints {
    type Ask = EmbedAsk;
    type Progress = ();
    type Answer = Embedded;

    fn answer(&mut self, ask: &EmbedAsk, _: &mut dyn FnMut(()), cancel: &Cancel) -> Result<Embedded> {
        let voices = ask.utterances.iter().map(|utterance| self.0.embed(utterance, cancel)).collect::<Result<_>>()?;
        Ok(Embedded { kind: self.0.kind(), voices })
    }
}

/// Any diarizer.
pub struct Speakers(pub Box<dyn Diarizer>);

impl Engine for Speakers {
    type Ask = DiarizeAsk;
    type Progress = DiarizeStep;
    type Answer = Observed;

    fn answer(&mut self, ask: &DiarizeAsk, step: &mut dyn FnMut(DiarizeStep), cancel: &Cancel) -> Result<Observed> {
        self.0.diarize(ask, step, cancel)
    }
}
