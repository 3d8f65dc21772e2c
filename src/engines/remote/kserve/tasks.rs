//! The four tasks as tensors. Sampling, language and voice go as parameters of the request: a model that reads none of
//! them answers all the same.

use serde_json::{Value, json};

use crate::{
    base::{Error, Kind, Result},
    engines::{
        ANY_VOICE, Cancel, ChatAsk, Chatter, DescribeAsk, Describer, End, Message, PieceText, Role, Said, Sampling,
        SegmentText, SpeakAsk, SpeakStep, Speaker, Spoken, TextStep, TranscribeAsk, TranscribeStep, Transcriber,
        remote::{
            kserve::{
                model::{Given, Model, Wanted},
                tensor::{Data, Output},
            },
            link::Link,
        },
    },
    flow::SAMPLE_RATE_HZ,
};

pub(crate) struct KserveChat(Model);

pub(crate) struct KserveTranscriber(Model);

pub(crate) struct KserveSpeaker(Model);

impl KserveChat {
    pub(crate) fn new(link: Link, model: &str) -> KserveChat {
        KserveChat(Model::new(link, model))
    }

    fn complete(
        &mut self,
        prompt: &str,
        image: Option<Given<'_>>,
        sampling: &Sampling,
        step: &mut dyn FnMut(TextStep),
        cancel: &Cancel,
    ) -> Result<Said> {
        let settings = self.0.link.server.settings.clone();
        let text = Given { key: "text_in", name: &settings.text_in, sizes: vec![1], data: Data::Text(prompt) };
        let given: Vec<Given<'_>> = image.into_iter().chain([text]).collect();
        let mut parameters = json!({
            "temperature": f64::from(sampling.temperature),
            "top_p": f64::from(sampling.top_p),
            "max_tokens": sampling.max_tokens,
        });
        if let Some(seed) = sampling.seed {
            parameters["seed"] = json!(seed);
        }
        let wanted = Wanted { key: "text_out", name: &settings.text_out };
        let mut text = self.0.infer(&given, &parameters, &wanted, cancel, Output::text)?;
        // The protocol has no stop texts: they are looked for here.
        if let Some(end) = sampling.stop.iter().filter(|stop| !stop.is_empty()).filter_map(|stop| text.find(stop)).min()
        {
            text.truncate(end);
        }
        step(TextStep { text: text.clone() });
        Ok(Said { text, end: End::Stop, usage: None })
    }
}

impl Chatter for KserveChat {
    fn chat(&mut self, ask: &ChatAsk, step: &mut dyn FnMut(TextStep), cancel: &Cancel) -> Result<Said> {
        if ask.messages.iter().any(|message| message.role == Role::Assistant) {
            return Err(without("a conversation with answers in it"));
        }
        no_schema(ask.schema.as_deref())?;
        let texts: Vec<&str> = ask.messages.iter().map(|Message { text, .. }| text.as_str()).collect();
        self.complete(&texts.join("\n\n"), None, &ask.sampling, step, cancel)
    }
}

impl Describer for KserveChat {
    fn describe(&mut self, ask: &DescribeAsk, step: &mut dyn FnMut(TextStep), cancel: &Cancel) -> Result<Said> {
        no_schema(ask.schema.as_deref())?;
        let [image] = ask.images.as_slice() else { return Err(without("more or less than one photo")) };
        let name = self.0.link.server.settings.image_in.clone();
        let sizes = vec![image.height as usize, image.width as usize, 3];
        let given = Given { key: "image_in", name: &name, sizes, data: Data::U8(&image.rgb) };
        let texts: Vec<&str> = ask.system.as_deref().into_iter().chain([ask.prompt.as_str()]).collect();
        self.complete(&texts.join("\n\n"), Some(given), &ask.sampling, step, cancel)
    }
}

impl KserveTranscriber {
    pub(crate) fn new(link: Link, model: &str) -> KserveTranscriber {
        KserveTranscriber(Model::new(link, model))
    }
}

impl Transcriber for KserveTranscriber {
    fn transcribe(
        &mut self,
        ask: &TranscribeAsk,
        step: &mut dyn FnMut(TranscribeStep),
        cancel: &Cancel,
    ) -> Result<Vec<PieceText>> {
        let settings = self.0.link.server.settings.clone();
        let mut parameters = json!({"task": if ask.translate { "translate" } else { "transcribe" }});
        let given_language = if ask.language == "auto" { "" } else { &ask.language };
        if !given_language.is_empty() {
            parameters["language"] = Value::from(given_language);
        }
        let mut pieces = Vec::new();
        for (piece, it) in ask.pieces.iter().enumerate() {
            let samples = it.audio.get(it.lead..).unwrap_or_default();
            let secs = samples.len() as f64 / f64::from(SAMPLE_RATE_HZ);
            let sizes = vec![samples.len()];
            let given = [Given { key: "audio_in", name: &settings.audio_in, sizes, data: Data::F32(samples) }];
            let wanted = Wanted { key: "text_out", name: &settings.text_out };
            let text = self.0.infer(&given, &parameters, &wanted, cancel, Output::text)?;
            let text = text.trim().to_owned();
            let segment = (!text.is_empty()).then(|| SegmentText { end: secs, text, ..SegmentText::default() });
            pieces.push(PieceText {
                language: given_language.to_owned(),
                segments: segment.into_iter().collect(),
                without_words: ask.words,
                advance_secs: secs,
                ..PieceText::default()
            });
            step(TranscribeStep { piece, tokens: 0 });
        }
        Ok(pieces)
    }
}

impl KserveSpeaker {
    pub(crate) fn new(link: Link, model: &str) -> KserveSpeaker {
        KserveSpeaker(Model::new(link, model))
    }
}

impl Speaker for KserveSpeaker {
    fn speak(&mut self, ask: &SpeakAsk, step: &mut dyn FnMut(SpeakStep), cancel: &Cancel) -> Result<Spoken> {
        let settings = self.0.link.server.settings.clone();
        let given = [Given { key: "text_in", name: &settings.text_in, sizes: vec![1], data: Data::Text(&ask.text) }];
        let mut parameters = json!({"language": ask.language, "speed": f64::from(ask.speed)});
        if ask.voice != ANY_VOICE {
            parameters["voice"] = json!(ask.voice);
        }
        let wanted = Wanted { key: "audio_out", name: &settings.audio_out };
        let samples = self.0.infer(&given, &parameters, &wanted, cancel, Output::samples)?;
        let spoken = Spoken { samples: samples.len() as u64, rate_hz: settings.audio_out_hz };
        let spoken = self.0.link.server.heard(spoken)?;
        step(SpeakStep { at: 0, samples, rate_hz: settings.audio_out_hz });
        Ok(spoken)
    }
}

fn no_schema(schema: Option<&str>) -> Result<()> {
    if schema.is_some() { Err(without("an answer by a schema")) } else { Ok(()) }
}

fn without(what: &str) -> Error {
    Error::new(Kind::Unsupported, format!("KServe v2 has no form for {what}"))
        .hint("serve this task through the server's OpenAI-compatible frontend: protocol = \"openai\"")
}
