//! Every encoding of the wire gives the tone back, whatever the size of its chunks.

use super::*;

/// Encoders of MP3 and AAC put a frame or two before and after what they were given; the others do not.
struct Case {
    encoding: Encoding,
    file: &'static str,
    likeness: f64,
    /// Of the length, in samples at 16 kHz.
    tolerance: usize,
    most_lag: u32,
}

const TWENTY_MS: usize = 320;

fn cases() -> Vec<Case> {
    let lossless = |encoding, file| Case { encoding, file, likeness: 0.99, tolerance: TWENTY_MS, most_lag: 20 };
    let lossy = |encoding, file| Case { encoding, file, likeness: 0.9, tolerance: TWENTY_MS, most_lag: 160 };
    let padded = |encoding, file| Case { encoding, file, likeness: 0.9, tolerance: 3 * TWENTY_MS, most_lag: 1600 };
    vec![
        lossless(Encoding::Wav, "tone.wav"),
        lossless(Encoding::Wav, "alaw.wav"),
        lossless(Encoding::Flac, "tone.flac"),
        lossy(Encoding::Ogg, "opus.ogg"),
        lossy(Encoding::Ogg, "vorbis.ogg"),
        lossy(Encoding::Webm, "stereo.webm"),
        padded(Encoding::Mp3, "tone.mp3"),
        padded(Encoding::Aac, "tone.aac"),
        padded(Encoding::Mp4, "fragmented.mp4"),
        padded(Encoding::Mp4, "faststart.m4a"),
    ]
}

fn assert_is_the_tone(what: &str, samples: &[f32], case: &Case) {
    let off = samples.len().abs_diff(32_000);
    assert!(off <= case.tolerance, "{what}: {} samples, not 32000", samples.len());
    let likeness = likeness(samples, case.most_lag);
    assert!(likeness > case.likeness, "{what}: likeness {likeness}");
}

#[tokio::test]
async fn containers_decode_in_chunks_of_every_size() {
    let media = media();
    for case in cases() {
        let file = data(case.file);
        for size in [997, 4096, 1 << 20] {
            let what = format!("{} by {size}", case.file);
            let decoded = decode(&media, container(case.encoding), &pieces(&file, size)).await.unwrap();
            assert_is_the_tone(&what, &decoded.whole(), &case);
        }
    }
}

#[tokio::test]
async fn containers_decode_in_chunks_of_one_byte() {
    let media = media();
    for case in cases().into_iter().filter(|it| it.file != "tone.wav") {
        let decoded = decode(&media, container(case.encoding), &pieces(&data(case.file), 1)).await.unwrap();
        assert_is_the_tone(case.file, &decoded.whole(), &case);
    }
}

/// The pages of an Ogg under another serial number, as a recorder that was started anew writes them.
fn another_chain(ogg: &Bytes) -> Vec<u8> {
    let mut chain = ogg.to_vec();
    let mut at = 0;
    while at < chain.len() {
        let segments = usize::from(chain[at + 26]);
        let body: usize = chain[at + 27..at + 27 + segments].iter().map(|it| usize::from(*it)).sum();
        let page = &mut chain[at..at + 27 + segments + body];
        page[14..18].copy_from_slice(b"next");
        page[22..26].fill(0);
        let crc = page.iter().fold(0u32, |crc, byte| {
            (0..8).fold(crc ^ u32::from(*byte) << 24, |crc, _| (crc << 1) ^ (0x04C1_1DB7 & (crc >> 31).wrapping_neg()))
        });
        page[22..26].copy_from_slice(&crc.to_le_bytes());
        at += page.len();
    }
    chain
}

#[tokio::test]
async fn a_recorder_that_is_started_anew_loses_nothing_in_ogg() {
    let media = media();
    for file in ["opus.ogg", "vorbis.ogg"] {
        let ogg = data(file);
        let both = Bytes::from([&ogg[..], &another_chain(&ogg)].concat());
        for _ in 0..3 {
            let samples = decode(&media, container(Encoding::Ogg), &pieces(&both, 1000)).await.unwrap().whole();
            assert!(samples.len().abs_diff(64_000) < 4 * TWENTY_MS, "{file}: {} samples", samples.len());
            let halves = [&samples[..32_000], &samples[32_000..]].map(|half| likeness(half, 1600));
            assert!(halves.iter().all(|it| *it > 0.9), "{file}: {halves:?}");
            hostile::all_seats_free(&media).await;
        }
    }
}

#[tokio::test]
async fn opus_packets_decode_one_a_message() {
    let media = media();
    let case = Case { encoding: Encoding::Opus, file: "", likeness: 0.9, tolerance: 2 * TWENTY_MS, most_lag: 320 };
    for channels in [1, 2] {
        let decoded = decode(&media, format(Encoding::Opus, 16_000, channels), &opus_packets()).await.unwrap();
        assert_is_the_tone("opus", &decoded.whole(), &case);
    }
}

/// Samples in an uncompressed encoding, every channel the same.
fn encode(encoding: Encoding, samples: &[f32], channels: u8) -> Bytes {
    let mut bytes = Vec::new();
    for sample in samples {
        for _ in 0..channels {
            match encoding {
                Encoding::Pcm16 => bytes.extend(((sample * 32767.0) as i16).to_le_bytes()),
                Encoding::PcmF32 => bytes.extend(sample.to_le_bytes()),
                encoding => bytes.push(nearest_code(encoding, *sample)),
            }
        }
    }
    bytes.into()
}

/// The code of µ-law or A-law that decodes closest.
fn nearest_code(encoding: Encoding, sample: f32) -> u8 {
    static TABLES: std::sync::OnceLock<[Vec<f32>; 2]> = std::sync::OnceLock::new();
    let all: Vec<u8> = (0..=255).collect();
    let table = |encoding| crate::media::raw::mono(&format(encoding, 16_000, 1), &all).unwrap();
    let [mulaw, alaw] = TABLES.get_or_init(|| [table(Encoding::Mulaw), table(Encoding::Alaw)]);
    let table = if encoding == Encoding::Mulaw { mulaw } else { alaw };
    (0..=255)
        .min_by(|a, b| {
            let distance = |code: &u8| (table[usize::from(*code)] - sample).abs();
            distance(a).total_cmp(&distance(b))
        })
        .unwrap()
}

#[tokio::test]
async fn uncompressed_audio_of_every_rate_keeps_its_length_to_a_few_ms() {
    let media = media();
    let case = Case { encoding: Encoding::Pcm16, file: "", likeness: 0.99, tolerance: 48, most_lag: 20 };
    let every = [(8000, 1), (11_025, 2), (16_000, 1), (16_000, 8), (22_050, 1), (44_100, 6), (48_000, 2)];
    for (encoding, shapes) in [
        (Encoding::Pcm16, &every[..]),
        (Encoding::PcmF32, &[(48_000, 2), (16_000, 1)]),
        (Encoding::Mulaw, &[(8000, 1), (16_000, 1)]),
        (Encoding::Alaw, &[(8000, 1), (16_000, 2)]),
    ] {
        for &(rate, channels) in shapes {
            let bytes = encode(encoding, &tone(rate), channels);
            let frame = encoding.bytes_per_sample().unwrap() * usize::from(channels);
            let chunks = pieces(&bytes, frame * 777);
            let decoded = decode(&media, format(encoding, rate, channels), &chunks).await.unwrap();
            let what = format!("{} at {rate} Hz, {channels} channels", encoding.name());
            assert_is_the_tone(&what, &decoded.whole(), &case);
        }
    }
}

#[tokio::test]
async fn uncompressed_audio_at_16_khz_takes_no_pipeline() {
    let media = media_with(0);
    let bytes = encode(Encoding::Pcm16, &tone(SAMPLE_RATE_HZ), 1);
    let decoder = media.audio_decoder(format(Encoding::Pcm16, SAMPLE_RATE_HZ, 1)).await.unwrap();
    decoder.push(bytes.slice(..640)).await.unwrap();
    assert_eq!(decoder.next().await.unwrap().unwrap().len(), 320, "there at once");
    decoder.push(bytes.slice(640..700)).await.unwrap();
    decoder.end();
    assert_eq!(decoder.next().await.unwrap().unwrap().len(), 30);
    assert!(decoder.next().await.is_none());
    assert!(decoder.next().await.is_none());
    assert!(decoder.push(bytes).await.is_err(), "the take has ended");
}

#[tokio::test]
async fn decoded_audio_comes_while_the_stream_goes_on() {
    let media = media();
    for (encoding, file) in [
        (Encoding::Ogg, "opus.ogg"),
        (Encoding::Webm, "stereo.webm"),
        (Encoding::Mp3, "tone.mp3"),
        (Encoding::Aac, "tone.aac"),
        (Encoding::Flac, "tone.flac"),
        (Encoding::Wav, "tone.wav"),
        (Encoding::Mp4, "fragmented.mp4"),
    ] {
        let file = data(file);
        let decoder = media.audio_decoder(container(encoding)).await.unwrap();
        decoder.push(file.slice(..file.len() * 3 / 4)).await.unwrap();
        let mut heard = 0;
        // A quarter of the stream is still to come; most of what was sent must come out without it.
        while heard < 16_000 {
            let next = tokio::time::timeout(LIMIT, decoder.next()).await;
            let next = next.unwrap_or_else(|_| panic!("{}: only {heard} samples", encoding.name()));
            heard += next.unwrap().unwrap().len();
        }
    }
}

#[tokio::test]
async fn one_task_may_push_and_take_through_select() {
    let media = media();
    let decoder = media.audio_decoder(format(Encoding::Pcm16, 48_000, 1)).await.unwrap();
    let bytes = encode(Encoding::Pcm16, &tone(48_000), 1);
    // 40 s in all, far more than the queues hold: both futures are dropped in their wait again and again.
    let mut chunks = (0..20).flat_map(|_| pieces(&bytes, 9600)).collect::<Vec<Bytes>>().into_iter();
    let mut pending = chunks.next();
    let mut heard = 0;
    let work = async {
        loop {
            tokio::select! {
                pushed = decoder.push(pending.clone().unwrap_or_default()), if pending.is_some() => {
                    pushed.unwrap();
                    pending = chunks.next();
                    if pending.is_none() {
                        decoder.end();
                    }
                }
                next = decoder.next() => match next {
                    Some(samples) => heard += samples.unwrap().len(),
                    None => break,
                },
            }
        }
    };
    tokio::time::timeout(LIMIT, work).await.unwrap();
    assert!(heard.abs_diff(40 * 16_000) < 48, "{heard}");
}

#[test]
fn a_decoder_may_be_shared_by_two_tasks() {
    fn shared<T: Send + Sync>() {}
    shared::<AudioDecoder>();
    shared::<Media>();
}

#[tokio::test]
async fn a_take_without_a_byte_is_empty_and_not_an_error() {
    let media = media();
    for encoding in Encoding::ALL {
        let decoded = decode(&media, container(encoding), &[Bytes::new()]).await.unwrap();
        assert!(decoded.whole().is_empty(), "{}", encoding.name());
    }
}

#[tokio::test]
async fn takes_that_follow_each_other_share_their_pipeline() {
    let media = media();
    for case in cases().into_iter().chain([Case {
        encoding: Encoding::Opus,
        file: "",
        likeness: 0.9,
        tolerance: 640,
        most_lag: 320,
    }]) {
        let chunks = if case.file.is_empty() { opus_packets() } else { pieces(&data(case.file), 4096) };
        let before = media.pool.kept();
        for _ in 0..5 {
            let decoded = decode(&media, container(case.encoding), &chunks).await.unwrap();
            assert_is_the_tone(case.file, &decoded.whole(), &case);
            hostile::all_seats_free(&media).await;
        }
        let own = usize::from(!matches!(case.file, "alaw.wav" | "vorbis.ogg" | "faststart.m4a"));
        assert_eq!(media.pool.kept(), before + own, "{}: one pipeline served all five", case.file);
    }
}
