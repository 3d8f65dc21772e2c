//! `vigia bench diarize`: error rate, number of speakers, speed and memory of diarization, on recordings whose turns
//! somebody marked and on mixes whose turns are known exactly.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{
    base::{Error, Result},
    cli::{
        Chosen, Outcome, SettingsArgs,
        bench::{
            der::{self, Errors},
            figures::{self, Figure, told, wanted},
            mixes::{self, Kind, Mix, Person},
            utterance::Utterance,
        },
        places, print,
        try_engine::decode,
    },
    engines::{
        Cancel, Diarizer, Registry, Turn,
        diarize::{self, LiveSpeakers, Observer},
        vad::{self, Silero},
    },
    flow::audio::samples_to_secs,
    segment::Offline,
    settings::Settings,
    sources::speech_rules,
};

const COLLAR_SECS: f64 = 0.25;
const WANTED_RATE: f64 = 0.15;
/// Mixes are made of these seeds on; none was looked at while thresholds were chosen, on the voices of other people.
const FIRST_SEED: u64 = 1000;
/// Who says less than this in all has no voice to speak of.
const LEAST_SAID_SECS: f64 = 4.0;
/// Its two sentences are spoken by two synthetic voices.
const TWO_VOICES: &str = "azure_es-mx.wav";

/// Measure diarization on recordings and on mixes with exact boundaries
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
    #[command(flatten)]
    settings: SettingsArgs,
    /// Folder with `real/`; by default VIGIA_TEST_ASSETS
    #[arg(long, value_name = "DIR")]
    assets: Option<PathBuf>,
    /// Folder of the model; by default real/ge2e of the assets
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Mixes of one to five speakers, so many of each kind
    #[arg(long, default_value_t = 15)]
    mixes: u16,
    /// Print a line for each mix, too
    #[arg(long)]
    each: bool,
    /// Seconds of the long recording whose speed and memory are measured; 0 for none
    #[arg(long, default_value_t = 3600)]
    long_secs: u32,
    /// Threads for one run of a model
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    threads: u16,
}

const HEAD: &str =
    "error rates in %                      all    miss   false  confused  speakers         live  speakers\n";

struct Bench<'a> {
    settings: &'a Settings,
    real: PathBuf,
    observer: Observer,
    detector: Silero,
}

#[derive(Clone, Copy)]
struct Scored {
    errors: Errors,
    speakers: usize,
    found: usize,
    /// As segments were told while they were spoken, before the end of the take.
    live: Errors,
    live_found: usize,
}

pub(super) fn run(args: Args) -> Outcome {
    let assets =
        args.assets.clone().or_else(|| args.settings.sources().variable("VIGIA_TEST_ASSETS").map(PathBuf::from));
    let assets = assets.ok_or_else(|| {
        Error::invalid("no folder of recordings is named").hint("pass --assets DIR, or set VIGIA_TEST_ASSETS")
    })?;
    let Chosen { loaded, .. } = args.settings.load()?;
    let settings = &loaded.settings;
    let real = assets.join("real");
    let model = args.model.clone().unwrap_or_else(|| real.join("ge2e"));
    let registry = Registry::new(settings, places(settings));
    let observer = registry.open_observer(Some(&model), args.threads.into())?;
    let mut bench = Bench { settings, real, observer, detector: registry.open_silero(1)? };

    if args.model.is_none() {
        print(&figures::to_text(&[bench.embeddings()?]))?;
    }
    print(HEAD)?;
    for (file, truth) in bench.marked()? {
        let samples = decode(settings, &bench.real.join("diarization").join(&file))?;
        let scored = bench.score(&samples, &truth)?;
        print(&line(&file, &[scored]))?;
    }
    let readers = bench.readers()?;
    for seed in 1..=3 {
        let Mix { name, samples, truth, .. } = mixes::whole(&readers, seed);
        let scored = bench.score(&samples, &truth)?;
        print(&line(&name, &[scored]))?;
    }
    let people: Vec<Person> = readers.into_iter().chain(bench.others()?).collect();
    let mut all = Vec::new();
    for kind in Kind::ALL {
        let mut of_kind = Vec::new();
        for at in 0..args.mixes {
            let (speakers, secs) = (1 + usize::from(at % 5), [20.0, 40.0, 80.0][usize::from(at / 5 % 3)]);
            let Mix { name, samples, truth, .. } =
                mixes::cut(&people, kind, speakers, secs, FIRST_SEED + u64::from(at));
            let scored = bench.score(&samples, &truth)?;
            if args.each {
                print(&line(&name, &[scored]))?;
            }
            of_kind.push(scored);
        }
        if !of_kind.is_empty() {
            print(&line(&format!("{} mixes, {}", of_kind.len(), kind.name()), &of_kind))?;
        }
        all.extend(of_kind);
    }
    let mut figures = summary(&all);
    if args.long_secs > 0 {
        figures.extend(bench.long(&people, f64::from(args.long_secs))?);
    }
    print(&figures::to_text(&figures))
}

/// Error rates are parts of the speech of all.
fn line(name: &str, scored: &[Scored]) -> String {
    let speech: f64 = scored.iter().map(|it| it.errors.speech).sum();
    let part = |secs: fn(&Scored) -> f64| 100.0 * scored.iter().map(secs).sum::<f64>() / speech.max(f64::MIN_POSITIVE);
    let speakers = |found: fn(&Scored) -> usize| match scored {
        [one] => format!("{} of {}{}", found(one), one.speakers, if found(one) == one.speakers { "" } else { " ✗" }),
        many => format!("right in {}", many.iter().filter(|it| found(it) == it.speakers).count()),
    };
    let [miss, false_alarm, confusion] =
        [part(|it| it.errors.miss), part(|it| it.errors.false_alarm), part(|it| it.errors.confusion)];
    format!(
        "{name:<34} {:>6.1} {miss:>7.1} {false_alarm:>7.1} {confusion:>9.1}  {:<12} {:>8.1}  {}\n",
        miss + false_alarm + confusion,
        speakers(|it| it.found),
        part(|it| it.live.secs()),
        speakers(|it| it.live_found),
    )
}

fn summary(scored: &[Scored]) -> Vec<Figure> {
    if scored.is_empty() {
        return Vec::new();
    }
    let speech: f64 = scored.iter().map(|it| it.errors.speech).sum();
    let rate = |secs: fn(&Scored) -> f64| 100.0 * scored.iter().map(secs).sum::<f64>() / speech;
    let counts = |found: fn(&Scored) -> usize| -> String {
        let right = scored.iter().filter(|it| found(it) == it.speakers).count();
        let fewer = scored.iter().filter(|it| found(it) < it.speakers).count();
        format!("{right} of {}; {fewer} too few, {} too many", scored.len(), scored.len() - right - fewer)
    };
    let all = rate(|it| it.errors.secs());
    let worst = scored.iter().map(|it| it.errors.rate()).fold(0.0, f64::max);
    vec![
        wanted("mixes, error rate of all", format!("{all:.1} %"), "at most 15 %", all <= 100.0 * WANTED_RATE),
        told("mixes, worst error rate", format!("{:.1} %", 100.0 * worst)),
        told("mixes, speakers counted right", counts(|it| it.found)),
        told("mixes, live: error rate of all", format!("{:.1} %", rate(|it| it.live.secs()))),
        told("mixes, live: counted right", counts(|it| it.live_found)),
    ]
}

impl Bench<'_> {
    fn turns(&mut self, samples: &[f32]) -> Result<Vec<Turn>> {
        let observer = &mut self.observer;
        let observe = |ask| observer.diarize(&ask, &mut |_| {}, &Cancel::default());
        let observed = diarize::pieces(samples).map(observe).collect::<Result<Vec<_>>>()?;
        Ok(diarize::speakers(observed, None))
    }

    /// Each segment under the speaker that it is published with, one after another as a session hears them.
    fn live_turns(&mut self, samples: &[f32]) -> Result<Vec<Turn>> {
        let mut offline = Offline::new(speech_rules(&self.settings.vad));
        vad::probabilities(&mut self.detector, samples)?.into_iter().for_each(|it| offline.push(it));
        let (kind, mut speakers) = (self.observer.voices.kind(), LiveSpeakers::default());
        let mut turns = Vec::new();
        for span in offline.finish(samples.len() as u64) {
            let said = &samples[span.start as usize..span.end as usize];
            let secs = samples_to_secs(said.len() as u64);
            if secs >= LiveSpeakers::SHORTEST_SECS {
                let voice = self.observer.voices.embed(said, &Cancel::default())?;
                let (start, end) = (samples_to_secs(span.start), samples_to_secs(span.end));
                turns.extend(speakers.hear(&kind, &voice, secs).map(|speaker| Turn { start, end, speaker }));
            }
        }
        Ok(turns)
    }

    fn score(&mut self, samples: &[f32], truth: &[Turn]) -> Result<Scored> {
        let turns = self.turns(samples)?;
        let live_turns = self.live_turns(samples)?;
        Ok(Scored {
            errors: der::errors(truth, &turns, COLLAR_SECS),
            speakers: count(truth),
            found: count(&turns),
            live: der::errors(truth, &live_turns, COLLAR_SECS),
            live_found: count(&live_turns),
        })
    }

    /// The largest difference from the reference's voices.
    fn embeddings(&mut self) -> Outcome<Figure> {
        let expected = read_json(&self.real.join("ge2e/expected_embeddings.json"))?;
        let expected: BTreeMap<String, Vec<f32>> = serde_json::from_value(expected["embeddings"].clone())
            .map_err(|error| Error::invalid("expected_embeddings.json holds no voices").cause(error))?;
        let mut worst = 0.0_f32;
        let mut compared = 0;
        for (file, wanted) in &expected {
            let path = self.real.join("speakers").join(file);
            if path.is_file() {
                let voice = self.observer.voices.embed(&decode(self.settings, &path)?, &Cancel::default())?;
                worst = voice.iter().zip(wanted).map(|(a, b)| (a - b).abs()).fold(worst, f32::max);
                compared += 1;
            }
        }
        let measured = format!("{worst:.1e}, {compared} recordings");
        Ok(wanted("voices against the reference", measured, "within 1e-3", worst <= 1e-3 && compared > 0))
    }

    /// Recordings whose turns somebody marked by hand.
    fn marked(&self) -> Result<Vec<(String, Vec<Turn>)>> {
        let folder = self.real.join("diarization");
        let mut marked = Vec::new();
        for path in listed(&folder)? {
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            if let Some(stem) = name.strip_suffix(".segments.json") {
                marked.push((format!("{stem}.wav"), segments(&read_json(&path)?)));
            } else if let Some(stem) = name.strip_suffix(".rttm") {
                marked.push((format!("{stem}.wav"), rttm(&read_text(&path)?)));
            }
        }
        Ok(marked)
    }

    /// The people of real/speakers, by the number in the names of their files.
    fn readers(&self) -> Outcome<Vec<Person>> {
        let mut people: BTreeMap<String, Vec<Utterance>> = BTreeMap::new();
        for path in listed(&self.real.join("speakers"))? {
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            if let Some((person, _)) = name.strip_suffix(".flac").and_then(|stem| stem.split_once('-')) {
                let said = Utterance::new(decode(self.settings, &path)?.to_vec());
                people.entry(person.to_owned()).or_default().push(said);
            }
        }
        Ok(people.into_values().map(|utterances| Person { utterances }).collect())
    }

    /// More people, one a recording, so that mixes may have five.
    fn others(&self) -> Outcome<Vec<Person>> {
        let mut people = Vec::new();
        for folder in ["audio-en", "audio-es"] {
            for path in listed(&self.real.join(folder))? {
                if !path.extension().is_some_and(|it| it == "wav" || it == "flac") || path.ends_with(TWO_VOICES) {
                    continue;
                }
                let said = decode(self.settings, &path)?;
                if said.secs() >= LEAST_SAID_SECS {
                    people.push(Person { utterances: vec![Utterance::new(said.to_vec())] });
                }
            }
        }
        Ok(people)
    }

    /// Speed and memory for a long conversation.
    fn long(&mut self, people: &[Person], secs: f64) -> Outcome<Vec<Figure>> {
        let Mix { samples, truth, .. } = mixes::cut(people, Kind::Plain, 4, secs, FIRST_SEED);
        let audio_bytes = samples.len() * size_of::<f32>();
        // The peak starts anew here; where the kernel does not let it, the figure means nothing and is 0.
        fs::write("/proc/self/clear_refs", "5").unwrap_or(());
        let before = peak_rss_bytes();
        let begun = Instant::now();
        let turns = self.turns(&samples)?;
        let elapsed = begun.elapsed();
        let grown = peak_rss_bytes().saturating_sub(before);
        let rate = der::errors(&truth, &turns, COLLAR_SECS).rate();
        let factor = elapsed.div_f64(secs);
        let mib = |bytes: usize| format!("{} MiB", bytes >> 20);
        Ok(vec![
            told(
                "long recording",
                format!("{secs:.0} s, {:.1} % errors, {} speakers of 4", 100.0 * rate, count(&turns)),
            ),
            wanted(
                "real-time factor",
                format!("{:.3}", factor.as_secs_f64()),
                "below 1",
                factor < Duration::from_secs(1),
            ),
            told("memory beside the audio", format!("{} more, audio {}", mib(grown), mib(audio_bytes))),
        ])
    }
}

fn count(turns: &[Turn]) -> usize {
    let mut speakers: Vec<usize> = turns.iter().map(|turn| turn.speaker).collect();
    speakers.sort_unstable();
    speakers.dedup();
    speakers.len()
}

fn listed(folder: &Path) -> Result<Vec<PathBuf>> {
    let missing = |error| Error::unavailable(format!("{} cannot be read", folder.display())).cause(error);
    let entries = fs::read_dir(folder).map_err(missing)?;
    let mut paths: Vec<PathBuf> = entries.filter_map(|entry| entry.ok().map(|entry| entry.path())).collect();
    paths.sort();
    Ok(paths)
}

fn read_text(path: &Path) -> Result<String> {
    fs::read_to_string(path)
        .map_err(|error| Error::unavailable(format!("{} cannot be read", path.display())).cause(error))
}

fn read_json(path: &Path) -> Result<Value> {
    serde_json::from_str(&read_text(path)?)
        .map_err(|error| Error::invalid(format!("{} is no JSON", path.display())).cause(error))
}

/// `{"tests":{"diarization_tests":[{"segments":[{"start_sec","end_sec","speaker_tag"}]}]}}`
fn segments(text: &Value) -> Vec<Turn> {
    let segments = text["tests"]["diarization_tests"][0]["segments"].as_array().cloned().unwrap_or_default();
    let turn = |it: &Value| {
        let speaker = it["speaker_tag"].as_u64()? as usize;
        Some(Turn { start: it["start_sec"].as_f64()?, end: it["end_sec"].as_f64()?, speaker })
    };
    segments.iter().filter_map(turn).collect()
}

/// `SPEAKER file 1 start length <NA> <NA> name <NA> <NA>`
fn rttm(text: &str) -> Vec<Turn> {
    let mut names: Vec<&str> = Vec::new();
    let mut turns = Vec::new();
    for line in text.lines() {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [_, _, _, start, length, _, _, name, ..] = fields[..] else { continue };
        let (Ok(start), Ok(length)) = (start.parse::<f64>(), length.parse::<f64>()) else { continue };
        let speaker = names.iter().position(|known| *known == name).unwrap_or_else(|| {
            names.push(name);
            names.len() - 1
        });
        turns.push(Turn { start, end: start + length, speaker });
    }
    turns
}

/// The most that this process had in memory since the peak was last reset.
fn peak_rss_bytes() -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap_or(0) << 10
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_of_both_forms_are_read() {
        let text = "SPEAKER a 1 6.690 0.430 <NA> <NA> one <NA> <NA>\nSPEAKER a 1 7 1 <NA> <NA> two <NA> <NA>\nnoise\n";
        let turns = rttm(text);
        assert_eq!(turns.iter().map(|turn| turn.speaker).collect::<Vec<_>>(), [0, 1]);
        assert!((turns[0].end - 7.12).abs() < 1e-9);
        let text = serde_json::json!({ "tests": { "diarization_tests": [
            { "segments": [{ "start_sec": 1.5, "end_sec": 3.0, "speaker_tag": 2 }, { "start_sec": 1.0 }] }] } });
        assert_eq!(segments(&text), [Turn { start: 1.5, end: 3.0, speaker: 2 }]);
    }

    #[test]
    fn this_process_has_some_memory() {
        assert!(peak_rss_bytes() > 1 << 20);
    }
}
