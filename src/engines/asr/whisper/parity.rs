//! The engine against the reference's results, token by token. Needs the folder `VIGIA_TEST_ASSETS` and ONNX Runtime;
//! without them these tests say so and pass.

#[cfg(test)]
mod tests {
    use std::{
        env, fs,
        path::{Path, PathBuf},
    };

    use serde_json::Value;

    use super::super::*;
    use crate::{engines::Decode, flow::Pcm, runtime::for_tests};

    /// The reference takes the first result, whatever it thinks of it.
    fn plain(timestamps: bool) -> Decode {
        Decode {
            timestamps,
            temperatures: vec![0.0],
            max_compression_ratio: None,
            min_log_probability: None,
            max_no_speech: None,
            ..Decode::default()
        }
    }

    struct Golden {
        whisper: Whisper,
        dir: PathBuf,
        audio: PathBuf,
        golden: Value,
    }

    fn assets() -> Option<PathBuf> {
        let assets = env::var("VIGIA_TEST_ASSETS").ok().map(PathBuf::from);
        if assets.is_none() {
            println!("skipped: VIGIA_TEST_ASSETS is not set");
        }
        assets
    }

    /// The same again with more audio, for `scripts/test --long`: a debug build is slow over fifty thousand logits.
    fn is_long_test() -> bool {
        env::var("VIGIA_TEST_LONG").is_ok_and(|it| it == "1")
    }

    fn json(path: &Path) -> Value {
        serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
    }

    fn open(dir: &Path, change: impl Fn(&mut WhisperSpec)) -> Option<Whisper> {
        let mut spec = WhisperSpec::of(dir, &for_tests()?, 2);
        change(&mut spec);
        Some(Whisper::open(&spec).unwrap())
    }

    fn golden() -> Option<Golden> {
        let golden = assets()?.join("golden");
        let dir = golden.join("whisper-tiny-random");
        let whisper = open(&dir, |_| ())?;
        Some(Golden { whisper, golden: json(&dir.join("golden/golden.json")), audio: golden.join("audio"), dir })
    }

    fn wav(path: &Path) -> Vec<f32> {
        let bytes = fs::read(path).unwrap();
        let data = bytes.windows(4).position(|it| it == b"data").unwrap() + 8;
        let sample = |pair: &[u8]| f32::from(i16::from_le_bytes([pair[0], pair[1]])) / 32_768.0;
        bytes[data..].as_chunks::<2>().0.iter().map(|pair| sample(pair)).collect()
    }

    /// The numbers of an array of f32.
    fn npy(path: &Path) -> Vec<f32> {
        let bytes = fs::read(path).unwrap();
        let header = u16::from_le_bytes([bytes[8], bytes[9]]) as usize;
        bytes[10 + header..].as_chunks::<4>().0.iter().map(|it| f32::from_le_bytes(*it)).collect()
    }

    fn ids(value: &Value) -> Vec<u32> {
        value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
    }

    fn furthest(got: &[f32], want: &[f32]) -> f32 {
        assert_eq!(got.len(), want.len());
        got.iter().zip(want).map(|(got, want)| (got - want).abs()).fold(0.0, f32::max)
    }

    impl Golden {
        fn audios(&self) -> Vec<(String, Value)> {
            let audios = self.golden["audios"].as_object().unwrap();
            audios.iter().map(|(name, expected)| (name.clone(), expected.clone())).collect()
        }

        fn pcm(&self, name: &str) -> Pcm {
            wav(&self.audio.join(format!("{name}.wav"))).into()
        }

        fn ask(&self, name: &str, language: &str, decode: Decode) -> TranscribeAsk {
            TranscribeAsk { decode, ..TranscribeAsk::of(self.pcm(name), language) }
        }

        fn text(&mut self, ask: &TranscribeAsk) -> PieceText {
            self.whisper.transcribe(ask, &mut |_| (), &Cancel::default()).unwrap().remove(0)
        }

        /// Prompt and tokens.
        fn sequence(&mut self, ask: &TranscribeAsk) -> Vec<u32> {
            let text = self.text(ask);
            [text.prompt_tokens, text.tokens].concat()
        }
    }

    #[test]
    fn features_and_what_the_encoder_hears_are_the_references() {
        let Some(mut golden) = golden() else { return };
        for (name, _) in golden.audios() {
            let features = golden.whisper.mel.features(&golden.pcm(&name), 0, None).unwrap();
            let off = furthest(&features.values, &npy(&golden.dir.join(format!("golden/{name}.mel.npy"))));
            println!("{name}: features differ by {off:.1e}");
            assert!(off < 1e-4, "{name}: {off}");
            let hidden = golden.whisper.encoder.run(&features.values, &golden.whisper.files).unwrap();
            let off = furthest(hidden.f32().unwrap(), &npy(&golden.dir.join(format!("golden/{name}.encoder.npy"))));
            println!("{name}: what the encoder gives differs by {off:.1e}");
            assert!(off < 1e-3, "{name}: {off}");
        }
    }

    #[test]
    fn features_of_a_long_recording_are_the_references_window_by_window() {
        let Some(mut golden) = golden() else { return };
        let want = npy(&golden.dir.join("golden/long70.mel.npy"));
        let (audio, total) = (golden.pcm("long70"), want.len() / 80);
        let mut loudest = golden.whisper.loudest();
        loudest.push(&audio).unwrap();
        let loudest = loudest.finish().unwrap();
        for first in [0_usize, 2990, 4000, 6000] {
            let piece = cut_piece(&audio, first, loudest);
            let features = golden.whisper.window(&piece).unwrap().features;
            assert_eq!(features.content, 3000.min(total - first));
            for bin in 0..80 {
                let want = &want[bin * total + first..][..features.content];
                let off = furthest(&features.values[bin * 3000..][..features.content], want);
                assert!(off < 1e-4, "bin {bin} from {first}: {off}");
            }
        }
    }

    /// A window of a recording, with what its first and last frames reach to.
    fn cut_piece(audio: &[f32], first_frame: usize, loudest: f32) -> Piece {
        let lead = (first_frame * 160).min(200);
        let from = first_frame * 160 - lead;
        let to = (first_frame * 160 + 480_000 + 200).min(audio.len());
        Piece { audio: audio[from..to].to_vec().into(), lead, loudest: Some(loudest), previous: Vec::new() }
    }

    #[test]
    fn languages_and_silence_are_as_probable_as_to_the_reference() {
        let Some(mut golden) = golden() else { return };
        for (name, expected) in golden.audios() {
            let text = golden.text(&golden.ask(&name, "auto", plain(true)));
            assert_eq!(format!("<|{}|>", text.language), expected["language"].as_str().unwrap());
            for (code, probability) in &text.language_probabilities {
                let want = expected["language_probs"][format!("<|{code}|>")].as_f64().unwrap();
                assert!((f64::from(*probability) - want).abs() < 1e-4, "{name} {code}: {probability} {want}");
            }
            let want = expected["no_speech_prob_at_sot"].as_f64().unwrap();
            assert!((f64::from(text.no_speech_probability) - want).abs() < 1e-5);
        }
    }

    #[test]
    fn greedy_tokens_are_the_references() {
        let Some(mut golden) = golden() else { return };
        for (name, expected) in golden.audios() {
            for language in ["auto", expected["language"].as_str().unwrap().trim_matches(['<', '|', '>'])] {
                let text = golden.text(&golden.ask(&name, language, plain(false)));
                let want = &expected["greedy_no_timestamps"];
                assert_eq!(text.prompt_tokens, ids(&want["prompt"]), "{name}");
                assert_eq!(text.tokens, ids(&want["tokens"]), "{name} {language}");
                let sum = text.segments[0].avg_logprob * text.tokens.len() as f32;
                assert!(
                    (f64::from(sum) - want["sum_logprob_processed"].as_f64().unwrap()).abs() < 0.05,
                    "{name}: {sum}"
                );

                let want = &expected["greedy_timestamps_single_window"]["tokens"];
                assert_eq!(golden.sequence(&golden.ask(&name, language, plain(true))), ids(want), "{name} {language}");
            }
        }
    }

    #[test]
    fn prompts_tasks_and_suppressed_beginnings_give_the_references_tokens() {
        let Some(mut golden) = golden() else { return };
        for (name, expected) in golden.audios() {
            let mut ask = golden.ask(&name, "es", plain(false));
            ask.translate = true;
            assert_eq!(golden.sequence(&ask), ids(&expected["greedy_forced_es_translate"]["tokens"]), "{name}");

            let mut ask = golden.ask(&name, "es", plain(false));
            let want = &expected["greedy_es_with_prompt"];
            ask.prompt = want["prompt_text"].as_str().map(str::to_owned);
            assert_eq!(
                golden.sequence(&ask),
                [
                    ids(&want["prompt_ids"]),
                    ids(&want["tokens"])[ids(&want["tokens"]).len() - golden.text(&ask).tokens.len() - 4..].to_vec()
                ]
                .concat(),
                "{name}"
            );

            let want = &expected["greedy_begin_suppress_probe"];
            let own = std::mem::replace(&mut golden.whisper.tokens.begin_suppress, ids(&want["begin_suppress_tokens"]));
            assert_eq!(golden.sequence(&golden.ask(&name, "auto", plain(false))), ids(&want["tokens"]), "{name}");
            golden.whisper.tokens.begin_suppress = own;
        }
    }

    #[test]
    fn beam_search_finds_the_references_tokens() {
        let Some(mut golden) = golden() else { return };
        for (name, expected) in golden.audios() {
            if name != "noise" && !is_long_test() {
                continue;
            }
            for (timestamps, want) in [(false, "beam5_no_timestamps"), (true, "beam5_timestamps_single_window")] {
                let text = golden.text(&golden.ask(&name, "auto", Decode { beam: 5, ..plain(timestamps) }));
                let want = &expected[want];
                assert_eq!([text.prompt_tokens, text.tokens].concat(), ids(&want["tokens"]), "{name} {timestamps}");
                let score = f64::from(text.segments[0].avg_logprob);
                assert!((score - want["sequences_score"].as_f64().unwrap()).abs() < 1e-3, "{name}: {score}");
            }
        }
    }

    /// What stands above the engine does in a loop: one window after the other, each beginning where the last one ended.
    fn sequential(
        golden: &mut Golden,
        ask: &TranscribeAsk,
        condition: bool,
        mut window: impl FnMut(&mut Whisper, usize) -> Window,
        frames: usize,
    ) -> Vec<(f64, f64, Vec<u32>)> {
        let (mut seek, mut segments, mut language) = (0, Vec::<(f64, f64, Vec<u32>)>::new(), ask.language.clone());
        while seek < frames {
            let mut next = window(&mut golden.whisper, seek);
            if condition {
                let begin = golden.whisper.tokens.timestamp_begin;
                next.previous = segments.iter().flat_map(|(_, _, tokens)| said(tokens, begin)).collect();
            }
            let ask = TranscribeAsk { language: language.clone(), ..ask.clone() };
            let (cancel, mut step) = (Cancel::default(), |_| ());
            let mut progress = Progress { step: &mut step, cancel: &cancel };
            let text = golden.whisper.transcribe_windows(&[next], &ask, 0, &mut progress).unwrap().remove(0);
            let offset = seek as f64 * 0.01;
            segments.extend(text.segments.into_iter().map(|it| (offset + it.start, offset + it.end, it.tokens)));
            seek += (text.advance_secs * 100.0).round() as usize;
            language = text.language;
        }
        segments
    }

    /// The time that opens what follows is not said yet.
    fn said(tokens: &[u32], begin: u32) -> Vec<u32> {
        match tokens {
            [said @ .., before, _] if !said.is_empty() && *before >= begin => [said, &[*before]].concat(),
            _ => tokens.to_vec(),
        }
    }

    fn assert_segments(got: &[(f64, f64, Vec<u32>)], want: &Value, what: &str) {
        let want = want.as_array().unwrap();
        let times: Vec<_> = got.iter().map(|(start, end, tokens)| (*start, *end, tokens.len())).collect();
        assert_eq!(got.len(), want.len(), "{what}: {times:?}");
        for ((start, end, tokens), want) in got.iter().zip(want) {
            assert_eq!(*tokens, ids(&want["tokens"]), "{what}");
            let off = |got: f64, want: &Value| (got - want.as_f64().unwrap()).abs();
            assert!(off(*start, &want["start"]) < 1e-3 && off(*end, &want["end"]) < 1e-3, "{what}: {times:?}");
        }
    }

    #[test]
    fn a_window_that_is_sought_through_gives_the_references_segments() {
        let Some(mut golden) = golden() else { return };
        for (name, expected) in golden.audios() {
            let whole = golden.whisper.mel.features(&golden.pcm(&name), 0, None).unwrap().values;
            let ask = golden.ask(&name, "auto", plain(true));
            let part = |_: &mut Whisper, seek: usize| {
                let mut values = vec![0.0; whole.len()];
                for (to, from) in values.chunks_exact_mut(3000).zip(whole.chunks_exact(3000)) {
                    to[..3000 - seek].copy_from_slice(&from[seek..]);
                }
                Window { features: Features { values, content: 3000 - seek }, previous: Vec::new() }
            };
            let segments = sequential(&mut golden, &ask, false, part, 3000);
            assert_segments(&segments, &expected["greedy_timestamps"]["segments"], &name);
        }
    }

    #[test]
    fn long_recordings_sought_through_give_the_references_segments() {
        let Some(mut golden) = golden() else { return };
        let (audio, expected) = (golden.pcm("long70"), golden.golden["long70"].clone());
        let mut loudest = golden.whisper.loudest();
        loudest.push(&audio).unwrap();
        let loudest = loudest.finish().unwrap();
        let skip = &expected["no_speech_skip"]["kwargs"];
        let threshold = |name: &str| skip[name].as_f64().map(|it| it as f32);
        let silence = Decode {
            min_log_probability: threshold("logprob_threshold"),
            max_no_speech: threshold("no_speech_threshold"),
            ..plain(true)
        };
        let modes = [
            ("default", "auto", false, plain(true)),
            ("condition_on_prev", "auto", true, plain(true)),
            ("forced_es", "es", false, plain(true)),
            ("no_speech_skip", "auto", false, silence),
            ("beam5", "auto", false, Decode { beam: 5, ..plain(true) }),
        ];
        for (mode, language, condition, decode) in modes {
            if mode == "beam5" && !is_long_test() {
                continue;
            }
            let ask = TranscribeAsk { decode, ..TranscribeAsk::of(Vec::new().into(), language) };
            let part = |whisper: &mut Whisper, seek: usize| whisper.window(&cut_piece(&audio, seek, loudest)).unwrap();
            let segments = sequential(&mut golden, &ask, condition, part, 7000);
            assert_segments(&segments, &expected[mode]["segments"], mode);
        }
    }

    struct Clip {
        name: String,
        language: String,
        audio: Pcm,
        want: Value,
    }

    /// The short clips of the trained model, in the languages that they were decoded in.
    fn clips(dir: &Path) -> Vec<Clip> {
        let golden = json(&dir.join("clips/golden.json"));
        let golden = golden.as_object().unwrap().iter().filter(|(_, want)| want["tokens_notimestamps"].is_array());
        let languages = [(50_259, "en"), (50_262, "es")];
        golden
            .map(|(name, want)| {
                let token = ids(&want["tokens_notimestamps"])[1];
                let language = languages.iter().find(|(id, _)| *id == token).unwrap().1.to_owned();
                let audio = wav(&dir.join("clips").join(name)).into();
                Clip { name: name.clone(), language, audio, want: want.clone() }
            })
            .collect()
    }

    fn texts(whisper: &mut Whisper, clips: &[&Clip], decode: Decode) -> Vec<PieceText> {
        let pieces = clips.iter().map(|clip| Piece::from(clip.audio.clone())).collect();
        let ask = TranscribeAsk { pieces, decode, ..TranscribeAsk::of(Vec::new().into(), &clips[0].language) };
        whisper.transcribe(&ask, &mut |_| (), &Cancel::default()).unwrap()
    }

    #[test]
    fn a_trained_model_says_the_same_alone_and_in_a_batch_and_what_the_reference_says() {
        let Some(dir) = assets().map(|assets| assets.join("real/micro-whisper")) else { return };
        let Some(mut whisper) = open(&dir, |spec| spec.batch = 5) else { return };
        let clips = clips(&dir);
        for language in ["en", "es"] {
            let clips: Vec<&Clip> = clips.iter().filter(|clip| clip.language == language).collect();
            for (timestamps, want) in [(true, "tokens_timestamps"), (false, "tokens_notimestamps")] {
                for (clip, text) in clips.iter().zip(texts(&mut whisper, &clips, plain(timestamps))) {
                    assert_eq!([text.prompt_tokens, text.tokens].concat(), ids(&clip.want[want]), "{}", clip.name);
                }
            }
            let several = *clips.iter().find(|clip| clip.name.contains("multi_00")).unwrap();
            let alone = texts(&mut whisper, &[several], plain(true)).remove(0);
            let times: Vec<_> = alone.segments.iter().map(|it| [it.start, it.end]).collect();
            let want: Vec<[f64; 2]> = serde_json::from_value(several.want["segments"].clone()).unwrap();
            let near = |(got, want): (&f64, &f64)| (got - want).abs() < 1e-3;
            assert!(times.as_flattened().iter().zip(want.as_flattened()).all(near), "{times:?} {want:?}");
        }
    }

    #[test]
    fn a_quantised_model_says_the_same_words() {
        let Some(dir) = assets().map(|assets| assets.join("real/micro-whisper")) else { return };
        let quantised = |spec: &mut WhisperSpec| {
            spec.encoder.suffix = "_quantized".to_owned();
            spec.decoder.suffix = "_quantized".to_owned();
        };
        let Some(mut whisper) = open(&dir, quantised) else { return };
        let clips = clips(&dir);
        let short: Vec<&Clip> = clips.iter().filter(|clip| clip.name.starts_with("es_short")).collect();
        for (clip, text) in short.iter().zip(texts(&mut whisper, &short, Decode::default())) {
            let said: String = text.segments.iter().map(|segment| segment.text.as_str()).collect();
            assert_eq!(said, clip.want["text"].as_str().unwrap(), "{}", clip.name);
        }
    }

    #[test]
    fn silence_and_noise_are_no_text_and_the_same_seed_draws_the_same_text() {
        let Some(dir) = assets().map(|assets| assets.join("real/micro-whisper")) else { return };
        let Some(mut whisper) = open(&dir, |_| ()) else { return };
        let clips = clips(&dir);
        let clip = |name: &str| clips.iter().find(|clip| clip.name == name).unwrap();
        for text in texts(&mut whisper, &[clip("silence.wav"), clip("noise.wav")], Decode::default()) {
            assert!(text.segments.iter().all(|segment| segment.text.trim().is_empty()), "{:?}", text.segments);
            assert!(text.no_speech_probability > 0.9);
        }
        let drawn = Decode { temperatures: vec![0.8], best_of: 2, ..plain(true) };
        let mut say = |seed: u64| {
            let decode = Decode { seed, max_new_tokens: Some(12), ..drawn.clone() };
            texts(&mut whisper, &[clip("es_short_00.wav")], decode).remove(0).tokens
        };
        assert_eq!(say(1), say(1));
    }

    #[test]
    fn attention_is_told_where_the_export_has_it() {
        let Some(assets) = assets() else { return };
        let dir = assets.join("golden/whisper-tiny-random");
        let timestamped = |spec: &mut WhisperSpec| spec.decoder.folder = "onnx_timestamped".to_owned();
        let Some(mut with) = open(&dir, timestamped) else { return };
        let Some(mut without) = open(&dir, |_| ()) else { return };
        let mut ask = TranscribeAsk::of(wav(&assets.join("golden/audio/speech_es.wav")).into(), "es");
        (ask.words, ask.decode) = (true, plain(true));
        let text = |whisper: &mut Whisper| whisper.transcribe(&ask, &mut |_| (), &Cancel::default()).unwrap().remove(0);
        let (with_words, without_words) = (text(&mut with), text(&mut without));
        assert!(!with_words.without_words && without_words.without_words);
        assert_eq!(with_words.tokens, without_words.tokens);
    }

    #[test]
    fn nobody_waiting_any_more_ends_the_work_at_the_next_token() {
        let Some(mut golden) = golden() else { return };
        let (cancel, mut steps) = (Cancel::default(), 0);
        let ask = golden.ask("noise", "es", plain(false));
        let mut step = |step: TranscribeStep| {
            steps += 1;
            assert_eq!((step.piece, step.tokens), (0, steps));
            if steps == 3 {
                cancel.cancel();
            }
        };
        let error = golden.whisper.transcribe(&ask, &mut step, &cancel).unwrap_err();
        assert_eq!((error.kind(), steps), (crate::base::Kind::Cancelled, 3));
    }

    #[test]
    fn asks_without_sense_are_refused() {
        let Some(mut golden) = golden() else { return };
        let second = vec![0.0; 16_000];
        type Change = fn(&mut TranscribeAsk);
        let cases: [(Vec<f32>, &str, Change); 4] = [
            (vec![0.0; 31 * 16_000], "es", |_| ()),
            (vec![f32::NAN; 16_000], "es", |_| ()),
            (second.clone(), "xx", |_| ()),
            (second, "es", |ask| ask.pieces[0].lead = 17_000),
        ];
        for (audio, language, change) in cases {
            let mut ask = TranscribeAsk::of(audio.into(), language);
            change(&mut ask);
            let error = golden.whisper.transcribe(&ask, &mut |_| (), &Cancel::default()).unwrap_err();
            assert_eq!(error.kind(), crate::base::Kind::Invalid, "{}", error.full());
        }
    }

    #[test]
    fn files_that_are_cut_off_or_of_another_model_are_errors() {
        let (Some(assets), Some(library)) = (assets(), for_tests()) else { return };
        let dir = assets.join("golden/whisper-tiny-random");
        let copy = |change: &dyn Fn(&Path)| {
            let temp = tempfile::tempdir().unwrap();
            fs::create_dir(temp.path().join("onnx")).unwrap();
            let names = ["config.json", "generation_config.json", "preprocessor_config.json", "tokenizer.json"];
            let graphs = ["onnx/encoder_model.onnx", "onnx/decoder_model_merged.onnx"];
            for name in names.iter().chain(&graphs) {
                fs::write(temp.path().join(name), fs::read(dir.join(name)).unwrap()).unwrap();
            }
            change(temp.path());
            let opened = Whisper::open(&WhisperSpec::of(temp.path(), &library, 1));
            let Err(error) = opened else { panic!("opened a broken model") };
            error.full()
        };
        let cut = |name: &'static str| {
            move |dir: &Path| {
                let bytes = fs::read(dir.join(name)).unwrap();
                fs::write(dir.join(name), &bytes[..bytes.len() / 2]).unwrap();
            }
        };
        let config = |from: &'static str, to: &'static str| {
            move |dir: &Path| {
                let text = fs::read_to_string(dir.join("config.json")).unwrap();
                fs::write(dir.join("config.json"), text.replace(from, to)).unwrap();
            }
        };
        for name in ["config.json", "tokenizer.json", "onnx/encoder_model.onnx", "onnx/decoder_model_merged.onnx"] {
            let error = copy(&cut(name));
            assert!(error.contains(name.trim_start_matches("onnx/")), "{name}: {error}");
        }
        let vocabulary = copy(&config("\"vocab_size\": 51865", "\"vocab_size\": 51000"));
        assert!(vocabulary.contains("51000"), "{vocabulary}");
        let vocabulary = copy(&config("\"vocab_size\": 51865", "\"vocab_size\": 60000"));
        assert!(vocabulary.contains("60000"), "{vocabulary}");
        let layers = copy(&config("\"decoder_layers\": 2", "\"decoder_layers\": 3"));
        assert!(layers.contains("keys and values"), "{layers}");
        let heads = copy(&config("\"decoder_attention_heads\": 4", "\"decoder_attention_heads\": 8"));
        assert!(heads.contains("past_key_values"), "{heads}");
        let swapped = copy(&|dir: &Path| {
            fs::copy(dir.join("onnx/encoder_model.onnx"), dir.join("onnx/decoder_model_merged.onnx"))
                .map(drop)
                .unwrap();
        });
        assert!(swapped.contains("decoder"), "{swapped}");
    }

    #[test]
    fn little_time_is_spent_on_a_token_outside_the_graphs() {
        if std::env::var_os("VIGIA_TEST_FIGURES").is_none() {
            println!("SKIPPED: a figure of the release build (VIGIA_TEST_FIGURES is not set)");
            return;
        }
        let Some(Golden { whisper, .. }) = golden() else { return };
        let rules = Rules::new(&whisper.tokens, true, Some(50));
        let mut random = fastrand::Rng::with_seed(1);
        let row: Vec<f32> = (0..whisper.files.vocabulary).map(|_| random.f32() * 20.0).collect();
        let (mut logits, rounds) = (row.clone(), 500);
        let start = std::time::Instant::now();
        for _ in 0..rounds {
            logits.copy_from_slice(&row);
            rules.apply(&mut logits, &[whisper.tokens.timestamp_begin, 500]);
            std::hint::black_box((numbers::ln_sum_exp(&logits), numbers::argmax(&logits)));
        }
        println!("rules and choice: {:.1} us a token", start.elapsed().as_secs_f64() * 1e6 / f64::from(rounds));
    }
}
