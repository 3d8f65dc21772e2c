//! `/v1/audio/speech`: text to a WAV file, heard while it comes. WAV because it says its rate: what servers call `pcm`
//! has whatever rate their model has.

use serde_json::json;

use crate::{
    base::Result,
    engines::{
        ANY_VOICE, Cancel, SpeakAsk, SpeakStep, Speaker, Spoken,
        remote::{
            link::{Link, Request},
            trouble::Trouble,
            wav::Wav,
        },
    },
};

pub(crate) struct OpenAiSpeaker {
    link: Link,
    model: String,
}

impl OpenAiSpeaker {
    pub(crate) fn new(link: Link, model: &str) -> OpenAiSpeaker {
        OpenAiSpeaker { link, model: model.to_owned() }
    }
}

impl Speaker for OpenAiSpeaker {
    fn speak(&mut self, ask: &SpeakAsk, step: &mut dyn FnMut(SpeakStep), cancel: &Cancel) -> Result<Spoken> {
        // The protocol has no language: the voice decides.
        let mut body = json!({
            "model": self.model,
            "input": ask.text,
            "speed": (f64::from(ask.speed) * 100.0).round() / 100.0,
            "response_format": "wav",
        });
        // Most servers have a voice of their own for those who name none; the others say that they want one.
        if ask.voice != ANY_VOICE {
            body["voice"] = json!(ask.voice);
        }
        let spoken = self.link.ask(&Request::json("/v1/audio/speech", &body), cancel, |answer| {
            // Some servers call every sound by one name; the bytes are what counts.
            if answer.kind().starts_with("text/") || answer.kind().ends_with("json") {
                return Err(answer.wrong_kind("sound"));
            }
            let mut wav = Wav::default();
            let mut chunk = [0; 16 << 10];
            let mut spoken = 0;
            loop {
                let count = answer.read(&mut chunk)?;
                if count == 0 {
                    break;
                }
                let samples = wav.take(&chunk[..count]).map_err(|what| {
                    let error = answer.server.strange(&format!("was asked for a WAV file and answers with {what}"));
                    Trouble::lasting(error.hint("choose a server that gives response_format \"wav\""))
                })?;
                if let (Some(rate_hz), false) = (wav.rate_hz(), samples.is_empty()) {
                    answer.deliver();
                    let at = spoken;
                    spoken += samples.len() as u64;
                    step(SpeakStep { at, samples, rate_hz });
                }
            }
            match wav.rate_hz() {
                Some(rate_hz) => Ok(Spoken { samples: spoken, rate_hz }),
                None => Err(Trouble::lasting(answer.server.strange("answers with no sound"))),
            }
        })?;
        self.link.server.heard(spoken)
    }
}
