//! Whole files of every container decode, from a path and from memory, within a limit of length.

use super::*;
use crate::{base::Kind, media::AudioFile};

const HOUR: Duration = Duration::from_secs(3600);

#[tokio::test]
async fn files_of_every_container_decode() {
    let media = media();
    for file in [
        "tone.wav",
        "alaw.wav",
        "tone.flac",
        "opus.ogg",
        "vorbis.ogg",
        "stereo.webm",
        "tone.mp3",
        "tone.aac",
        "fragmented.mp4",
        "faststart.m4a",
        "moov_last.m4a",
    ] {
        for source in [AudioFile::Path(data_path(file)), AudioFile::Bytes(data(file))] {
            let pcm = media.decode_file(source, HOUR).await.unwrap_or_else(|error| panic!("{file}: {}", error.full()));
            assert!(pcm.len().abs_diff(32_000) < 1000, "{file}: {} samples", pcm.len());
            let likeness = likeness(&pcm, 1600);
            assert!(likeness > 0.9, "{file}: likeness {likeness}");
        }
    }
    hostile::all_seats_free(&media).await;
}

#[tokio::test]
async fn an_mp3_behind_an_id3_tag_decodes() {
    let tag = [&b"ID3\x04\0\0\0\0\x7F\x7F"[..], &[0xFF; 127 * 128 + 127]].concat();
    let bytes = Bytes::from([&tag[..], &data("tone.mp3")].concat());
    let pcm = media().decode_file(AudioFile::Bytes(bytes), HOUR).await.unwrap();
    assert!(likeness(&pcm, 1600) > 0.9);
}

#[tokio::test]
async fn a_file_that_is_too_long_is_refused() {
    let error = media().decode_file(AudioFile::Bytes(data("tone.wav")), Duration::from_secs(1)).await.unwrap_err();
    assert_eq!(error.kind(), Kind::TooLarge);
}

#[tokio::test]
async fn what_is_no_audio_is_refused() {
    let media = media();
    let playlist = Bytes::from_static(b"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\nhttp://127.0.0.1:1/a.ts\n");
    for bytes in [Bytes::new(), playlist, data("rgb.png")] {
        let error = media.decode_file(AudioFile::Bytes(bytes), HOUR).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Unsupported);
    }
    let missing = media.decode_file(AudioFile::Path("/nonexistent.wav".into()), HOUR).await.unwrap_err();
    assert_eq!(missing.kind(), Kind::NotFound);
    assert!(missing.message().contains("/nonexistent.wav"));
    let folder = media.decode_file(AudioFile::Path("/tmp".into()), HOUR).await.unwrap_err();
    assert_eq!(folder.kind(), Kind::Invalid);
    hostile::all_seats_free(&media).await;
}

#[tokio::test]
async fn cut_files_end_within_the_limit() {
    let media = media();
    for file in
        ["tone.wav", "tone.flac", "opus.ogg", "stereo.webm", "tone.mp3", "tone.aac", "fragmented.mp4", "moov_last.m4a"]
    {
        let bytes = data(file);
        for at in [20, 200, bytes.len() / 2] {
            let decoded =
                tokio::time::timeout(LIMIT, media.decode_file(AudioFile::Bytes(bytes.slice(..at)), HOUR)).await;
            if let Err(error) = decoded.unwrap() {
                assert_eq!(error.kind(), Kind::Invalid, "{file} cut at {at}: {}", error.full());
            }
        }
    }
}
