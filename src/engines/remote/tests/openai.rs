//! What is said to an OpenAI-compatible server, and what is made of its answers.

use serde_json::{Value, json};

use super::{END, chat, chat_ask, delta, hola, stream};
use crate::{
    base::Kind,
    engines::{
        Cancel, ChatAsk, DescribeAsk, End, PieceText, Sampling, SpeakAsk, TranscribeAsk, Usage,
        remote::{
            Remote,
            fake::{Act, Fake},
            wav::wav,
        },
    },
    flow::{Image, Pcm},
};

#[test]
fn a_stream_is_told_part_by_part() {
    let usage = "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":2}}\r\n\r\n";
    let text = format!(": hello\r\n\r\nevent: x\r\n{}{}{usage}{END}", delta("ho"), delta("la"));
    let fake = Fake::start([stream(&text)]);
    let (said, parts) = chat(&fake.remote());
    let said = said.unwrap();
    assert_eq!((said.text.as_str(), said.end, parts), ("hola", End::Stop, vec!["ho".to_owned(), "la".to_owned()]));
    assert_eq!(said.usage, Some(Usage { prompt_tokens: 7, answer_tokens: 2 }));

    let seen = &fake.seen()[0];
    assert_eq!((seen.path.as_str(), seen.headers.get("authorization")), ("/v1/chat/completions", None));
    let body = seen.json();
    assert_eq!(
        body["messages"],
        json!([{"role": "system", "content": "be short"}, {"role": "user", "content": "hola"}])
    );
    assert_eq!((&body["model"], &body["temperature"], &body["stream"]), (&json!("qwen"), &json!(0.7), &json!(true)));
    assert!(body.get("stop").is_none() && body.get("seed").is_none() && body.get("response_format").is_none());
}

#[test]
fn a_server_without_streams_is_understood() {
    let answer = json!({"choices": [{"message": {"content": "hola"}, "finish_reason": "length"}], "usage": null});
    let fake = Fake::start([Act::json(&answer)]);
    let (said, parts) = chat(&fake.remote());
    let said = said.unwrap();
    assert_eq!((said.text.as_str(), said.end, parts), ("hola", End::Length, vec!["hola".to_owned()]));
}

#[test]
fn a_connection_is_used_again_and_gives_way_all_the_same() {
    let answer = json!({"choices": [{"message": {"content": "hola"}, "finish_reason": "stop"}]}).to_string();
    let fake = Fake::start([Act::Keep(answer.clone()), Act::Keep(answer), Act::Silence]);
    let mut chatter = fake.remote_with(|settings| settings.timeout_secs = 1).chatter("qwen").unwrap();
    let mut say = || chatter.chat(&chat_ask(), &mut |_| {}, &Cancel::default());
    assert_eq!(say().unwrap().text, "hola");
    assert_eq!(say().unwrap().text, "hola");
    assert_eq!(say().unwrap_err().kind(), Kind::Timeout);
    assert_eq!((fake.seen().len(), fake.connections()), (3, 1));
}

#[test]
fn a_schema_goes_along_and_an_answer_that_is_no_json_is_an_error() {
    let fake = Fake::start([stream(&format!("{}{END}", delta("{\"a\": 1}"))), hola()]);
    let remote = fake.remote();
    let mut chatter = remote.chatter("qwen").unwrap();
    let sampling = Sampling { stop: vec!["x".into()], seed: Some(3), ..Sampling::default() };
    let mut ask = chat_ask();
    (ask.schema, ask.sampling) = (Some("{\"type\": \"object\"}".into()), sampling);
    let mut say = |ask: &ChatAsk| chatter.chat(ask, &mut |_| {}, &Cancel::default());
    assert_eq!(say(&ask).unwrap().text, "{\"a\": 1}");
    let body = fake.seen()[0].json();
    assert_eq!(body["response_format"]["json_schema"]["schema"], json!({"type": "object"}));
    assert_eq!((&body["stop"], &body["seed"]), (&json!(["x"]), &json!(3)));
    let error = say(&ask).unwrap_err();
    assert!(error.full().contains("asked for JSON") && error.full().contains("response_format"), "{}", error.full());
    ask.schema = Some("{".into());
    assert_eq!(say(&ask).unwrap_err().kind(), Kind::Invalid);
    assert_eq!(fake.seen().len(), 2);
}

#[test]
fn photos_go_as_data_urls_before_the_prompt() {
    let fake = Fake::start([hola()]);
    let image = Image { width: 2, height: 1, rgb: vec![1, 2, 3, 4, 5, 6].into(), original_size: (2, 1) };
    let ask = DescribeAsk {
        images: vec![image],
        prompt: "what?".into(),
        system: Some("be short".into()),
        sampling: Sampling::default(),
        schema: None,
    };
    let said = fake.remote().describer("vl").unwrap().describe(&ask, &mut |_| {}, &Cancel::default()).unwrap();
    assert_eq!(said.text, "hola");
    let body = fake.seen()[0].json();
    let content = &body["messages"][1]["content"];
    assert!(content[0]["image_url"]["url"].as_str().unwrap().starts_with("data:image/png;base64,iVBORw0KGgo"));
    assert_eq!(content[1], json!({"type": "text", "text": "what?"}));
}

fn speech(words: bool) -> TranscribeAsk {
    let mut ask = TranscribeAsk::of(Pcm::from(vec![0.25; 32_000]), "auto");
    (ask.words, ask.pieces[0].lead) = (words, 16_000);
    ask
}

fn transcribe(remote: &Remote, ask: &TranscribeAsk) -> Vec<PieceText> {
    remote.transcriber("whisper").unwrap().transcribe(ask, &mut |_| {}, &Cancel::default()).unwrap()
}

#[test]
fn words_and_segments_are_taken_with_their_times_within_the_piece() {
    let answer = json!({
        "text": " hola mundo", "language": "spanish", "duration": "1.0",
        "segments": [
            {"start": 0.0, "end": 0.5, "text": " hola", "avg_logprob": -0.1, "tokens": [1, 2], "no_speech_prob": 0.2},
            {"start": 0.5, "end": 99.0, "text": " mundo"}
        ],
        "words": [{"word": "hola", "start": 0.1, "end": 0.4}, {"word": "mundo", "start": 0.6, "end": -3.0}],
    });
    let fake = Fake::start([Act::json(&answer)]);
    let pieces = transcribe(&fake.remote(), &speech(true));
    let [piece] = pieces.as_slice() else { panic!("{pieces:?}") };
    assert_eq!((piece.language.as_str(), piece.advance_secs, piece.without_words), ("es", 1.0, false));
    assert_eq!((piece.segments[1].text.as_str(), piece.segments[1].end), ("mundo", 1.0));
    assert_eq!((piece.tokens.as_slice(), piece.no_speech_probability), ([1, 2].as_slice(), 0.2));
    let words: Vec<_> = piece.segments.iter().flat_map(|it| &it.words).map(|it| (it.text.as_str(), it.end)).collect();
    assert_eq!(words, [("hola", 0.4), ("mundo", 0.6)]);
    assert!((piece.segments[0].words[0].probability - (-0.1_f32).exp()).abs() < 1e-6);

    let seen = &fake.seen()[0];
    let form = seen.text();
    assert_eq!(seen.path, "/v1/audio/transcriptions");
    assert!(seen.headers["content-type"].starts_with("multipart/form-data; boundary=vigia-"));
    for part in ["name=\"model\"\r\n\r\nwhisper\r\n", "\r\n\r\nverbose_json\r\n", "granularities[]\"\r\n\r\nword\r\n"] {
        assert!(form.contains(part), "{part}");
    }
    assert!(!form.contains("name=\"language\""));
    // One second of the two: what leads is not sent.
    assert!(seen.body.len() > 32_000 && seen.body.len() < 34_000);
}

#[test]
fn a_server_that_tells_less_is_asked_for_less_and_remembered() {
    let plain = Act::json(&json!({"text": "hola"}));
    let fake = Fake::start([Act::status(400, &[]), Act::status(422, &[]), plain]);
    let remote = fake.remote();
    let mut transcriber = remote.transcriber("whisper").unwrap();
    let mut ask = speech(true);
    ask.language = "es-AR".to_owned();
    ask.prompt = Some("before".into());
    for requests in [3, 4] {
        let pieces = transcriber.transcribe(&ask, &mut |_| {}, &Cancel::default()).unwrap();
        assert!(pieces[0].without_words);
        assert_eq!((pieces[0].segments[0].text.as_str(), pieces[0].segments[0].end), ("hola", 1.0));
        assert_eq!(fake.seen().len(), requests);
    }
    let form = fake.seen()[3].text();
    assert!(form.contains("\r\n\r\njson\r\n") && !form.contains("granularities"), "json alone");
    assert!(form.contains("name=\"language\"\r\n\r\nes\r\n") && form.contains("name=\"prompt\"\r\n\r\nbefore\r\n"));

    fake.play([Act::status(400, &[])]);
    let refused = remote.transcriber("whisper").unwrap().transcribe(&ask, &mut |_| {}, &Cancel::default());
    assert_eq!(refused.unwrap_err().kind(), Kind::Invalid);
}

#[test]
fn silence_has_no_segments_and_translation_its_own_path() {
    let fake = Fake::start([Act::json(&json!({"text": " ", "segments": []}))]);
    let mut ask = speech(false);
    ask.translate = true;
    assert_eq!(transcribe(&fake.remote(), &ask)[0].segments, []);
    assert_eq!(fake.seen()[0].path, "/v1/audio/translations");
}

#[test]
fn speech_is_heard_as_it_comes() {
    let file = wav(&vec![0.5; 40_000]);
    let fake = Fake::start([Act::reply(200, "audio/wav", file), Act::reply(200, "audio/mpeg", "ID3…")]);
    let remote = fake.remote();
    let ask = SpeakAsk { text: "hola".into(), voice: "ef_dora".into(), language: "es".into(), speed: 1.1 };
    let mut heard = Vec::new();
    let mut speaker = remote.speaker("kokoro").unwrap();
    let spoken = speaker.speak(&ask, &mut |step| heard.push(step), &Cancel::default()).unwrap();
    assert_eq!((spoken.samples, spoken.rate_hz), (40_000, 16_000));
    assert!(heard.len() > 1 && heard.iter().map(|step| step.samples.len()).sum::<usize>() == 40_000);
    let body: Value = fake.seen()[0].json();
    let expected =
        json!({"model": "kokoro", "input": "hola", "voice": "ef_dora", "speed": 1.1, "response_format": "wav"});
    assert_eq!(body, expected);

    for (act, words) in [
        (Act::reply(200, "audio/mpeg", "ID3 and so on"), "no WAV file"),
        (Act::reply(200, "application/json", "{}"), "instead of sound"),
        (Act::reply(200, "audio/wav", ""), "no sound"),
    ] {
        fake.play([act]);
        let error = speaker.speak(&ask, &mut |_| {}, &Cancel::default()).unwrap_err();
        assert!(error.full().contains(words), "{}", error.full());
    }
}
