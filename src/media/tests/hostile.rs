//! Bad data, and clients that leave or never listen: a clear error within the limit, and nothing left behind.

use super::*;
use crate::base::Kind;

/// Pipelines are given back on other threads, so this is waited for.
pub(super) async fn all_seats_free(media: &Media) {
    let all = 8;
    let free = async {
        while media.audio_seats.available_permits() < all {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(LIMIT, free).await.expect("every pipeline is given back");
}

fn threads() -> usize {
    fs::read_dir("/proc/self/task").unwrap().count()
}

/// Bytes without any pattern, the same in every run.
pub(super) fn garbage(len: usize) -> Vec<u8> {
    let mut state = 0x2545_F491_4F6C_DD1D_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..len).map(|_| next()).collect()
}

const CONTAINERS: [(Encoding, &str); 7] = [
    (Encoding::Wav, "tone.wav"),
    (Encoding::Ogg, "opus.ogg"),
    (Encoding::Webm, "stereo.webm"),
    (Encoding::Flac, "tone.flac"),
    (Encoding::Mp3, "tone.mp3"),
    (Encoding::Aac, "tone.aac"),
    (Encoding::Mp4, "fragmented.mp4"),
];

#[tokio::test]
async fn garbage_in_every_container_is_a_clear_error() {
    let media = media();
    let garbage = Bytes::from(garbage(100_000));
    for (encoding, _) in CONTAINERS {
        let error = decode(&media, container(encoding), &pieces(&garbage, 3000)).await.unwrap().error.unwrap();
        assert_eq!(error.kind(), Kind::Invalid, "{}", error.full());
        assert!(error.message().contains(encoding.name()), "{error}");
        assert!(error.hint_text().is_some());
    }
    all_seats_free(&media).await;
}

#[tokio::test]
async fn garbage_behind_a_good_begin_ends_within_the_limit() {
    let media = media();
    for (encoding, file) in CONTAINERS {
        for begin in [16, 100, 3000] {
            let bytes = Bytes::from([&data(file)[..begin], &garbage(200_000)].concat());
            let decoded = decode(&media, container(encoding), &pieces(&bytes, 4000)).await.unwrap();
            if let Some(error) = decoded.error {
                assert!(matches!(error.kind(), Kind::Invalid | Kind::Timeout), "{encoding:?}: {}", error.full());
            }
        }
    }
    all_seats_free(&media).await;
}

#[tokio::test]
async fn data_that_never_gives_audio_is_refused_before_it_fills_the_memory() {
    let media = media();
    let begin = data("opus.ogg").slice(..100);
    let filler = Bytes::from(vec![0u8; 1 << 20]);
    let mut chunks = vec![begin];
    chunks.extend((0..12).map(|_| filler.clone()));
    let error = decode(&media, container(Encoding::Ogg), &chunks).await.unwrap().error.unwrap();
    assert_eq!(error.kind(), Kind::Invalid, "{}", error.full());
}

/// A second of 8-bit silence that claims that rate.
fn wav_of_rate(rate: u32) -> Bytes {
    let format = [&[1, 0, 1, 0][..], &rate.to_le_bytes(), &rate.to_le_bytes(), &[1, 0, 8, 0]].concat();
    let begin = [b"RIFF\x64\x1F\0\0WAVEfmt \x10\0\0\0", &format[..], b"data\x40\x1F\0\0"].concat();
    [&begin[..], &[0x80; 8000]].concat().into()
}

#[tokio::test]
async fn rates_that_no_recording_has_are_refused_before_anything_is_made_of_them() {
    let media = media();
    let good = decode(&media, container(Encoding::Wav), &[wav_of_rate(8000)]).await.unwrap().whole();
    assert!(good.len().abs_diff(16_000) < 48, "{}", good.len());
    // The first would be 128 million samples; the last takes more memory than there is, and GLib ends the process.
    for rate in [1, 3999, 400_000, 0x7FFF_FFFF] {
        let error = decode(&media, container(Encoding::Wav), &[wav_of_rate(rate)]).await.unwrap().error.unwrap();
        assert_eq!(error.kind(), Kind::Invalid, "{rate}: {}", error.full());
    }
    all_seats_free(&media).await;
}

#[tokio::test]
async fn a_truncated_ogg_gives_what_it_held_and_then_ends() {
    let media = media();
    let file = data("opus.ogg");
    for keep in [0.3, 0.5, 0.9] {
        let cut = file.slice(..(file.len() as f64 * keep) as usize);
        let decoded = decode(&media, container(Encoding::Ogg), &pieces(&cut, 500)).await.unwrap();
        let samples = decoded.whole();
        let secs = samples.len() as f64 / 16_000.0;
        assert!(secs <= SECS && secs > SECS * keep - 1.1, "{keep}: {secs} s");
    }
    // Cut within its headers: nothing could be decoded, and that is said.
    let error = decode(&media, container(Encoding::Ogg), &[file.slice(..40)]).await.unwrap().error.unwrap();
    assert_eq!(error.kind(), Kind::Invalid, "{}", error.full());
}

#[tokio::test]
async fn every_container_may_be_cut_anywhere() {
    let media = media();
    for (encoding, file) in CONTAINERS {
        let file = data(file);
        for at in (1..file.len()).step_by(file.len() / 12) {
            let decoded = decode(&media, container(encoding), &[file.slice(..at)]).await.unwrap();
            assert!(decoded.samples.len() <= 34_000);
            if let Some(error) = decoded.error {
                assert_eq!(error.kind(), Kind::Invalid, "{encoding:?} cut at {at}: {}", error.full());
            }
        }
    }
    all_seats_free(&media).await;
}

#[tokio::test]
async fn an_mp4_with_its_index_behind_says_so() {
    let error = decode(&media(), container(Encoding::Mp4), &[data("moov_last.m4a")]).await.unwrap().error.unwrap();
    assert_eq!(error.kind(), Kind::Invalid);
    assert!(error.message().contains("index"), "{error}");
    assert!(error.hint_text().unwrap().contains("fragmented"));
}

#[tokio::test]
async fn a_split_sample_is_refused_and_the_stream_goes_on() {
    let media = media();
    for rate in [16_000, 48_000] {
        let decoder = media.audio_decoder(format(Encoding::Pcm16, rate, 1)).await.unwrap();
        decoder.push(vec![0; 960].into()).await.unwrap();
        assert_eq!(decoder.push(vec![0; 961].into()).await.unwrap_err().kind(), Kind::Invalid);
        decoder.push(vec![0; 960].into()).await.unwrap();
        decoder.end();
        let samples = read(&decoder).await.whole();
        assert_eq!(samples.len(), 960 * 16_000 / rate as usize);
    }
}

#[tokio::test]
async fn a_bad_opus_packet_costs_only_itself() {
    let media = media();
    let mut packets = opus_packets();
    packets.insert(20, Bytes::from_static(&[0xFF, 0xFF, 0xFF]));
    packets.insert(50, garbage(40).into());
    let decoded = decode(&media, format(Encoding::Opus, 48_000, 1), &packets).await.unwrap();
    let samples = decoded.whole();
    assert!(samples.len() >= 32_000, "{}", samples.len());

    let decoder = media.audio_decoder(format(Encoding::Opus, 48_000, 1)).await.unwrap();
    let error = decoder.push(vec![0; 70_000].into()).await.unwrap_err();
    assert!(error.hint_text().unwrap().contains("ogg"), "{error}");
}

#[tokio::test]
async fn impossible_formats_are_refused() {
    let media = media();
    for (encoding, rate, channels) in [
        (Encoding::Pcm16, 7999, 1),
        (Encoding::Pcm16, 48_001, 1),
        (Encoding::PcmF32, 16_000, 0),
        (Encoding::Mulaw, 8000, 9),
        (Encoding::Opus, 48_000, 3),
    ] {
        let error = media.audio_decoder(format(encoding, rate, channels)).await.err().unwrap();
        assert_eq!(error.kind(), Kind::Invalid, "{error}");
    }
}

#[tokio::test]
async fn busy_when_every_pipeline_is_taken() {
    let media = media_with(2);
    let first = media.audio_decoder(container(Encoding::Ogg)).await.unwrap();
    let _second = media.audio_decoder(container(Encoding::Mp3)).await.unwrap();
    let error = media.audio_decoder(container(Encoding::Wav)).await.err().unwrap();
    assert_eq!(error.kind(), Kind::Busy);
    assert!(error.hint_text().unwrap().contains("pcm16"));
    assert!(media.audio_decoder(format(Encoding::Pcm16, 16_000, 1)).await.is_ok(), "direct audio still comes in");
    drop(first);
    let again = async {
        while media.audio_decoder(container(Encoding::Wav)).await.is_err() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(LIMIT, again).await.expect("a seat comes free");
}

#[tokio::test]
async fn clients_that_leave_in_the_middle_leave_nothing() {
    let media = media();
    let before = threads();
    for round in 0..100 {
        let (encoding, file) = CONTAINERS[round % CONTAINERS.len()];
        let file = data(file);
        let decoder = media.audio_decoder(container(encoding)).await.unwrap();
        let opus = media.audio_decoder(container(Encoding::Opus)).await.unwrap();
        opus.push(opus_packets()[0].clone()).await.unwrap();
        for chunk in pieces(&file, 1000).into_iter().take(round % 10) {
            decoder.push(chunk).await.unwrap();
        }
        if round % 3 == 0 {
            drop(tokio::time::timeout(Duration::from_millis(1), decoder.next()).await);
        }
        drop((decoder, opus));
        if round % 4 == 0 {
            all_seats_free(&media).await;
        }
    }
    all_seats_free(&media).await;
    let kept = media.pool.kept();
    assert!((1..=4 * 8).contains(&kept), "{kept} pipelines are kept");
    // Other tests run in this process: what matters is that 200 clients did not leave 200 threads.
    assert!(threads() < before + 60, "{before} threads before, {} after", threads());
}

#[tokio::test]
async fn nothing_of_one_client_reaches_the_next() {
    let media = media();
    let loud: Vec<u8> = tone(48_000).iter().flat_map(|it| it.to_le_bytes()).collect();
    for _ in 0..20 {
        let first = media.audio_decoder(format(Encoding::PcmF32, 48_000, 1)).await.unwrap();
        for chunk in pieces(&loud.clone().into(), 3840).into_iter().take(30) {
            first.push(chunk).await.unwrap();
        }
        drop(tokio::time::timeout(LIMIT, first.next()).await.unwrap());
        drop(first);
        all_seats_free(&media).await;

        let silence = Bytes::from(vec![0; 48_000]);
        let second = decode(&media, format(Encoding::PcmF32, 48_000, 1), &[silence]).await.unwrap().whole();
        assert_eq!(second.len(), 4000);
        assert!(second.iter().all(|it| *it == 0.0), "the first client's audio comes out of the second's");
        all_seats_free(&media).await;
    }
    assert_eq!(media.pool.kept(), 1, "they did share a pipeline");
}

#[tokio::test]
async fn a_client_that_never_listens_is_refused_in_the_end_and_bounded_until_then() {
    let media = media();
    let decoder = media.audio_decoder(format(Encoding::Pcm16, 48_000, 1)).await.unwrap();
    let chunk = Bytes::from(vec![0; 96_000]);
    let mut taken = 0;
    let error = loop {
        match decoder.push(chunk.clone()).await {
            Ok(()) => taken += chunk.len(),
            Err(error) => break error,
        }
        assert!(taken < 8 << 20, "{taken} bytes are waiting");
    };
    assert_eq!(error.kind(), Kind::Timeout);
    // The stream itself is whole: once somebody listens, everything that was taken comes.
    decoder.end();
    assert_eq!(read(&decoder).await.whole().len(), taken / 2 / 3);
}

#[test]
fn a_decoder_may_outlive_its_runtime() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let decoder = runtime.block_on(async {
        let decoder = media().audio_decoder(container(Encoding::Mp3)).await.unwrap();
        decoder.push(data("tone.mp3")).await.unwrap();
        decoder
    });
    drop(runtime);
    drop(decoder);
}
