//! Long recordings and words against the reference's results. Needs the folder `VIGIA_TEST_ASSETS` and ONNX Runtime;
//! without them these tests say so and pass.

#[cfg(test)]
mod tests {
    use std::{
        env, fs,
        path::{Path, PathBuf},
    };

    use serde_json::Value;

    use super::super::{
        Decode, Guards, PieceText, SegmentText, TranscribeAsk, WordErrors,
        longform::{BySpeech, Recording, Sequential},
        whisper::{Whisper, WhisperSpec},
    };
    use crate::{
        engines::{Cancel, Transcriber, vad},
        flow::{Pcm, Word},
        runtime::{Runtime, for_tests},
        segment::{Voiced, Windows, speech::FRAME},
    };

    struct Assets {
        folder: PathBuf,
        library: PathBuf,
    }

    fn assets() -> Option<Assets> {
        let folder = env::var("VIGIA_TEST_ASSETS").ok().map(PathBuf::from);
        let assets = folder.zip(for_tests()).map(|(folder, library)| Assets { folder, library });
        if assets.is_none() {
            println!("skipped: VIGIA_TEST_ASSETS is not set, or ONNX Runtime was not found");
        }
        assets
    }

    impl Assets {
        fn json(&self, path: &str) -> Value {
            serde_json::from_slice(&fs::read(self.folder.join(path)).unwrap()).unwrap()
        }

        fn wav(&self, path: &str) -> Pcm {
            let bytes = fs::read(self.folder.join(path)).unwrap();
            let data = bytes.windows(4).position(|it| it == b"data").unwrap() + 8;
            let sample = |pair: &[u8]| f32::from(i16::from_le_bytes([pair[0], pair[1]])) / 32_768.0;
            bytes[data..].as_chunks::<2>().0.iter().map(|pair| sample(pair)).collect::<Vec<f32>>().into()
        }

        fn whisper(&self, folder: &str, change: impl FnOnce(&mut WhisperSpec)) -> Whisper {
            let mut spec = WhisperSpec::of(&self.folder.join(folder), &self.library, 2);
            change(&mut spec);
            Whisper::open(&spec).unwrap()
        }
    }

    /// The reference takes the first result, whatever it thinks of it.
    fn plain() -> Decode {
        Decode {
            temperatures: vec![0.0],
            max_compression_ratio: None,
            min_log_probability: None,
            max_no_speech: None,
            ..Decode::default()
        }
    }

    fn cut(audio: &Pcm) -> impl FnMut(u64, u64) -> Pcm {
        |from, to| {
            let index = |sample: u64| (sample as usize).min(audio.len());
            audio[index(from)..index(to)].to_vec().into()
        }
    }

    fn answer(whisper: &mut Whisper, ask: &TranscribeAsk) -> Vec<PieceText> {
        whisper.transcribe(ask, &mut |_| (), &Cancel::default()).unwrap()
    }

    fn sequential(
        whisper: &mut Whisper,
        audio: &Pcm,
        ask: TranscribeAsk,
        condition: bool,
        filled_up: bool,
    ) -> Vec<SegmentText> {
        let mut loudest = whisper.loudest();
        audio.chunks(7_000).for_each(|chunk| loudest.push(chunk).unwrap());
        let recording = Recording { samples: audio.len() as u64, loudest: loudest.finish().unwrap(), filled_up };
        let context = if condition { whisper.context_tokens() } else { 0 };
        let mut machine = Sequential::new(ask, recording, context, Guards::NONE);
        let mut segments = Vec::new();
        while let Some(request) = machine.request() {
            let answers = answer(whisper, &request.ask(cut(audio)));
            segments.extend(machine.accept(answers).unwrap());
        }
        segments
    }

    fn by_speech(
        whisper: &mut Whisper,
        heard: &[Voiced],
        audio: &Pcm,
        ask: TranscribeAsk,
        batch: usize,
    ) -> Vec<SegmentText> {
        let mut machine = BySpeech::new(ask, Windows::default(), batch, Guards::default());
        let mut segments = Vec::new();
        for step in 0..=heard.len() {
            match heard.get(step) {
                Some(voiced) => machine.hear(*voiced),
                None => machine.finish(audio.len() as u64),
            }
            while let Some(request) = machine.request() {
                assert!(request.until() <= (step as u64 + 1) * FRAME);
                let answers = answer(whisper, &request.ask(cut(audio)));
                segments.extend(machine.accept(answers).unwrap());
            }
        }
        segments
    }

    fn ids(value: &Value) -> Vec<u32> {
        value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
    }

    fn assert_segments(got: &[SegmentText], want: &Value, name: &str) {
        let want = want.as_array().unwrap();
        let near = |got: f64, want: &Value| (got - want.as_f64().unwrap()).abs() < 2e-3;
        let shown: Vec<_> = got.iter().map(|it| (it.start, it.end, it.tokens.len())).collect();
        assert_eq!(got.len(), want.len(), "{name}: {shown:?}");
        for (number, (got, want)) in got.iter().zip(want).enumerate() {
            assert_eq!(got.tokens, ids(&want["tokens"]), "{name}, segment {number}");
            assert!(near(got.start, &want["start"]) && near(got.end, &want["end"]), "{name}: {shown:?}");
        }
    }

    #[test]
    fn sequential_long_form_equals_the_reference() {
        let Some(assets) = assets() else { return };
        let audio = assets.wav("golden/audio/long70.wav");
        let all = assets.json("golden/whisper-tiny-random/golden/golden.json");
        let golden = &all["long70"];
        let mut whisper = assets.whisper("golden/whisper-tiny-random", |_| ());
        let kwargs = &golden["no_speech_skip"]["kwargs"];
        let limit = |name: &str| Some(kwargs[name].as_f64().unwrap() as f32);
        let skip = Decode {
            min_log_probability: limit("logprob_threshold"),
            max_no_speech: limit("no_speech_threshold"),
            ..plain()
        };
        for (name, language, decode, condition) in [
            ("default", "auto", plain(), false),
            ("condition_on_prev", "auto", plain(), true),
            ("beam5", "auto", Decode { beam: 5, ..plain() }, false),
            ("forced_es", "es", plain(), false),
            ("no_speech_skip", "auto", skip, false),
        ] {
            let ask = TranscribeAsk { decode, ..TranscribeAsk::of(Vec::new().into(), language) };
            let segments = sequential(&mut whisper, &audio, ask, condition, true);
            assert_segments(&segments, &golden[name]["segments"], name);
        }
        for (name, want) in all["audios"].as_object().unwrap() {
            let audio = assets.wav(&format!("golden/audio/{name}.wav"));
            let ask = TranscribeAsk { decode: plain(), ..TranscribeAsk::of(Vec::new().into(), "auto") };
            let segments = sequential(&mut whisper, &audio, ask, false, true);
            assert_segments(&segments, &want["greedy_timestamps"]["segments"], name);
        }
    }

    #[test]
    fn times_of_words_equal_the_reference() {
        let Some(assets) = assets() else { return };
        let golden = assets.json("golden/whisper-tiny-random/golden/token_timestamps.json");
        let mut whisper =
            assets.whisper("golden/whisper-tiny-random", |spec| spec.decoder.folder = "onnx_timestamped".to_owned());
        for (name, want) in golden["audios"].as_object().unwrap() {
            let audio = assets.wav(&format!("golden/audio/{name}.wav"));
            let ask = TranscribeAsk { decode: plain(), words: true, ..TranscribeAsk::of(audio, "es") };
            let text = answer(&mut whisper, &ask).remove(0);
            let sequence = ids(&want["sequence"]);
            assert_eq!([&text.prompt_tokens[..], &text.tokens].concat(), sequence);
            assert!(!text.without_words);
            // A word begins where the token before it ends, and ends with its last token.
            let ends: Vec<f64> =
                want["token_timestamps"].as_array().unwrap().iter().map(|it| it.as_f64().unwrap()).collect();
            let words: Vec<&Word> = text.segments.iter().flat_map(|segment| &segment.words).collect();
            assert!(!words.is_empty(), "{name}");
            let is_end = |secs: f64| ends.iter().any(|end| (end - secs).abs() < 1e-6);
            for word in &words {
                assert!(is_end(word.start) && is_end(word.end) && word.start <= word.end, "{name}: {word:?}");
            }
            assert!(words.windows(2).all(|pair| pair[0].end <= pair[1].start), "{name}: {words:?}");
        }
    }

    #[test]
    fn real_speech_is_understood_in_windows_of_speech_and_in_sequence() {
        let (Some(assets), Some(silero)) = (assets(), silero()) else { return };
        let mut detector = vad::Silero::open(&Runtime::open(&assets.library).unwrap(), &silero, 1).unwrap();
        let clips = assets.json("real/micro-whisper/clips/clips.json");
        for suffix in ["", "_quantized"] {
            let mut whisper = assets.whisper("real/micro-whisper", |spec| {
                spec.encoder.suffix = suffix.to_owned();
                spec.decoder.suffix = suffix.to_owned();
            });
            let mut errors = WordErrors::default();
            for clip in clips.as_array().unwrap() {
                // What the precision changes is seen in any of them; most of the work is the debug build's own.
                if !suffix.is_empty() && clip["kind"] != "long" && clip["kind"] != "nospeech" {
                    continue;
                }
                let audio = assets.wav(&format!("real/micro-whisper/clips/{}", clip["file"].as_str().unwrap()));
                let said = clip["text"].as_str().unwrap_or_default();
                let ask = TranscribeAsk::of(Vec::new().into(), clip["language"].as_str().unwrap_or("auto"));
                let heard = vad::hear(&mut detector, &audio).unwrap();
                let windows = by_speech(&mut whisper, &heard, &audio, ask.clone(), 4);
                let sequence = sequential(&mut whisper, &audio, ask, false, false);
                for segments in [windows, sequence] {
                    let understood: String = segments.iter().map(|segment| format!("{} ", segment.text)).collect();
                    errors += WordErrors::between(said, &understood);
                    assert_eq!(errors.count(), 0, "{suffix} {}: {understood}", clip["file"]);
                }
            }
            assert!(errors.words > 500);
        }
    }

    fn silero() -> Option<PathBuf> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(".vigia/state/models/silero-vad").join(vad::FILE);
        path.is_file().then_some(path)
    }
}
