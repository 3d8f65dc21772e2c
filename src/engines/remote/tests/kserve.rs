//! What is said to a KServe server, and what is made of its answers.

use serde_json::{Value, json};

use super::{chat, chat_ask};
use crate::{
    base::{Error, Kind},
    engines::{
        Cancel, DescribeAsk, Message, Role, Sampling, SpeakAsk, TranscribeAsk,
        remote::{
            Remote, RemoteState,
            fake::{Act, Fake},
        },
    },
    flow::{Image, Pcm, Task},
    settings::Protocol,
};

fn remote(fake: &Fake) -> Remote {
    fake.remote_with(|settings| settings.protocol = Protocol::Kserve)
}

/// Ready, its tensors, and then this.
fn served(inputs: &Value, outputs: &Value, act: Act) -> Fake {
    Fake::start([Act::status(200, &[]), Act::json(&json!({"name": "m", "inputs": inputs, "outputs": outputs})), act])
}

fn text_to_text(act: Act) -> Fake {
    let text = json!([{"name": "TEXT", "datatype": "BYTES", "shape": [-1, 1]}]);
    served(&text, &text, act)
}

fn said(text: &str) -> Act {
    Act::json(&json!({"outputs": [{"name": "TEXT", "datatype": "BYTES", "shape": [1, 1], "data": [text]}]}))
}

#[test]
fn a_question_goes_as_text_in_the_shape_of_the_model() {
    let fake = text_to_text(said("hola END more"));
    let remote = remote(&fake);
    let mut chatter = remote.chatter("a b").unwrap();
    let mut ask = chat_ask();
    ask.sampling.stop = vec!["END".into()];
    let mut parts = Vec::new();
    for _ in 0..2 {
        let answer = chatter.chat(&ask, &mut |step| parts.push(step.text), &Cancel::default()).unwrap();
        assert_eq!(answer.text, "hola ");
    }
    assert_eq!(parts, ["hola ", "hola "]);
    let paths: Vec<String> = fake.seen().into_iter().map(|seen| seen.path).collect();
    // The tensors are asked once.
    let model = "/v2/models/a%20b";
    assert_eq!(paths, [format!("{model}/ready"), model.to_owned(), format!("{model}/infer"), format!("{model}/infer")]);
    let body = fake.seen()[2].json();
    assert_eq!(body["inputs"][0]["data"], json!(["be short\n\nhola"]));
    assert_eq!(body["inputs"][0]["shape"], json!([1, 1]));
    assert_eq!((&body["outputs"][0]["name"], &body["parameters"]["max_tokens"]), (&json!("TEXT"), &json!(1024)));
}

#[test]
fn what_tensors_cannot_say_is_refused_before_anything_is_sent() {
    let fake = text_to_text(said("hola"));
    let remote = remote(&fake);
    let mut with_answers = chat_ask();
    with_answers.messages.push(Message { role: Role::Assistant, text: "hola".into() });
    let mut with_schema = chat_ask();
    with_schema.schema = Some("{}".into());
    for ask in [with_answers, with_schema] {
        let error = remote.chatter("m").unwrap().chat(&ask, &mut |_| {}, &Cancel::default()).unwrap_err();
        assert_eq!(error.kind(), Kind::Unsupported);
        assert!(error.full().contains("protocol = \"openai\""), "{}", error.full());
    }
    assert!(fake.seen().is_empty());
}

#[test]
fn sound_goes_and_comes_as_bytes() {
    let audio = |rank: usize| json!([{"name": "AUDIO", "datatype": "FP32", "shape": vec![-1; rank]}]);
    let text = json!([{"name": "TEXT", "datatype": "BYTES", "shape": ["-1"]}]);
    let fake = served(&audio(2), &text, said(" hola "));
    let mut ask = TranscribeAsk::of(Pcm::from(vec![0.5; 16_000]), "es");
    ask.words = true;
    let pieces = remote(&fake).transcriber("m").unwrap().transcribe(&ask, &mut |_| {}, &Cancel::default()).unwrap();
    assert_eq!((pieces[0].segments[0].text.as_str(), pieces[0].without_words), ("hola", true));
    let seen = &fake.seen()[2];
    let length: usize = seen.headers["inference-header-content-length"].parse().unwrap();
    assert_eq!(seen.body.len(), length + 64_000);
    let body: Value = serde_json::from_slice(&seen.body[..length]).unwrap();
    assert_eq!((&body["inputs"][0]["shape"], &body["parameters"]["language"]), (&json!([1, 16_000]), &json!("es")));

    let output = json!({"name": "AUDIO", "datatype": "FP32", "shape": [2], "parameters": {"binary_data_size": 8}});
    let mut answer = json!({"outputs": [output]}).to_string().into_bytes();
    let headers = vec![
        "Content-Type: application/octet-stream".to_owned(),
        format!("Inference-Header-Content-Length: {}", answer.len()),
    ];
    answer.extend([0.5_f32, -0.5].iter().flat_map(|it| it.to_le_bytes()));
    let fake = served(&text, &audio(1), Act::Reply { status: 200, headers, body: answer });
    let ask = SpeakAsk { text: "hola".into(), voice: "a".into(), language: "es".into(), speed: 1.0 };
    let mut heard = Vec::new();
    let mut speaker = remote(&fake).speaker("m").unwrap();
    let spoken = speaker.speak(&ask, &mut |step| heard.extend(step.samples), &Cancel::default()).unwrap();
    assert_eq!((spoken.samples, spoken.rate_hz, heard), (2, 24_000, vec![0.5, -0.5]));
}

#[test]
fn a_photo_goes_as_pixels() {
    let inputs = json!([
        {"name": "IMAGE", "datatype": "UINT8", "shape": [-1, -1, -1, 3]},
        {"name": "TEXT", "datatype": "BYTES", "shape": [1]},
    ]);
    let fake = served(&inputs, &json!([{"name": "TEXT", "datatype": "BYTES", "shape": [1]}]), said("a dog"));
    let image = Image { width: 2, height: 1, rgb: vec![1, 2, 3, 4, 5, 6].into(), original_size: (2, 1) };
    let (prompt, sampling) = ("what?".to_owned(), Sampling::default());
    let mut ask = DescribeAsk { images: vec![image.clone()], prompt, system: None, sampling, schema: None };
    let remote = fake.remote_with(|settings| (settings.protocol, settings.binary_tensors) = (Protocol::Kserve, false));
    let mut describer = remote.describer("m").unwrap();
    assert_eq!(describer.describe(&ask, &mut |_| {}, &Cancel::default()).unwrap().text, "a dog");
    let body = fake.seen()[2].json();
    assert_eq!(
        (&body["inputs"][0]["shape"], &body["inputs"][0]["data"]),
        (&json!([1, 1, 2, 3]), &json!([1, 2, 3, 4, 5, 6]))
    );
    ask.images.push(image);
    assert_eq!(describer.describe(&ask, &mut |_| {}, &Cancel::default()).unwrap_err().kind(), Kind::Unsupported);
}

#[test]
fn a_model_that_does_not_fit_says_what_it_has() {
    let error = |fake: &Fake| -> Error { chat(&remote(fake)).0.unwrap_err() };
    let other = json!([{"name": "text_input", "datatype": "BYTES", "shape": [1]}]);
    let told = error(&served(&other, &json!([{"name": "TEXT", "datatype": "BYTES", "shape": [1]}]), said("a")));
    assert_eq!(told.kind(), Kind::Unavailable, "it is nothing that whoever asks could mend");
    assert!(told.full().contains("it has text_input (see remotes.box.text_in)"), "{}", told.full());
    let other = json!([{"name": "TEXT", "datatype": "INT64", "shape": [1]}]);
    let told = error(&served(&other, &json!([{"name": "TEXT", "datatype": "BYTES", "shape": [1]}]), said("a")));
    assert!(told.full().contains("takes TEXT as INT64"), "{}", told.full());

    let told = error(&Fake::start([Act::status(400, &[])]));
    assert!(told.message().contains("the model qwen is not ready at box"), "{}", told.full());
}

#[test]
fn a_model_that_does_not_fit_is_seen_and_asked_anew_until_it_does() {
    let tensor = |name: &str| json!([{"name": name, "datatype": "BYTES", "shape": [1]}]);
    let metadata = |name: &str| Act::json(&json!({"name": "m", "inputs": tensor(name), "outputs": tensor("TEXT")}));
    let ready = || Act::status(200, &[]);
    let evil = format!("\u{1b}[31m{}", "a".repeat(5000));
    let fake = Fake::start([ready(), metadata("other"), ready(), metadata(&evil)]);
    let remote = remote(&fake);
    let mut chatter = remote.chatter("m").unwrap();
    let mut say = || chatter.chat(&chat_ask(), &mut |_| {}, &Cancel::default());
    for _ in 0..2 {
        let told = say().unwrap_err().full();
        assert!(told.len() < 1000 && !told.contains(char::is_control), "{told}");
        assert!(remote.trouble(Task::Chat).unwrap().contains("has no tensor TEXT"));
        assert_eq!((remote.health().state, remote.trouble(Task::Speak)), (RemoteState::Failing, None));
    }
    // Somebody has put it right there.
    fake.play([ready(), metadata("TEXT"), said("hola")]);
    assert_eq!((say().unwrap().text.as_str(), remote.trouble(Task::Chat)), ("hola", None));
    let asked = fake.seen().len();
    say().unwrap();
    assert_eq!(fake.seen().len(), asked + 1, "what fits is asked once");
    // And loaded another.
    fake.play([Act::status(400, &[]), ready(), metadata("TEXT"), said("hola")]);
    assert_eq!(say().unwrap_err().kind(), Kind::Invalid);
    assert_eq!(say().unwrap().text, "hola");
}

#[test]
fn a_model_that_is_ready_and_fails_opens_the_breaker() {
    let fake = text_to_text(Act::status(500, &[]));
    let remote = fake.remote_with(|settings| {
        (settings.protocol, settings.retries, settings.breaker_failures) = (Protocol::Kserve, 0, 2);
    });
    for _ in 0..2 {
        let text = json!([{"name": "TEXT", "datatype": "BYTES", "shape": [-1, 1]}]);
        let metadata = Act::json(&json!({"name": "m", "inputs": text, "outputs": text}));
        fake.play([Act::status(200, &[]), metadata, Act::status(500, &[])]);
        assert!(chat(&remote).0.unwrap_err().message().contains("is not well"));
    }
    assert_eq!(remote.health().state, RemoteState::Resting);
}

#[test]
fn broken_tensors_are_errors() {
    let output = |size: usize| json!({"outputs": [{"name": "TEXT", "datatype": "BYTES", "parameters": {"binary_data_size": size}}]});
    for (act, words) in [
        (Act::json(&json!({"outputs": []})), "without the tensor TEXT"),
        (Act::json(&json!({"outputs": [{"name": "TEXT", "datatype": "FP32", "data": [1]}]})), "as FP32"),
        (Act::json(&output(99)), "other sizes"),
        (Act::reply(200, "text/plain", "hola"), "instead of JSON"),
        (
            Act::Reply { status: 200, headers: vec!["Inference-Header-Content-Length: 999".into()], body: vec![] },
            "other sizes",
        ),
        (
            Act::Reply { status: 200, headers: vec!["Inference-Header-Content-Length: -1".into()], body: vec![] },
            "other sizes",
        ),
    ] {
        let fake = text_to_text(act);
        let error = chat(&remote(&fake)).0.unwrap_err();
        assert_eq!(error.kind(), Kind::Unavailable);
        assert!(error.full().contains(words), "{}", error.full());
        assert_eq!(fake.seen().len(), 3);
    }
}
