//! Whole files of every container decode, from a path and from memory, within a limit of length.

use super::*;
use crate::{base::Kind, flow::WarningCode, media::AudioFile};

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
        "tone.aiff",
        "tone.au",
        "video.avi",
        "video.mkv",
        "tone.flv",
        "tone.ts",
        "alac.mov",
        "speex.ogg",
        "tone.ac3",
    ] {
        for source in [AudioFile::Path(data_path(file)), AudioFile::Bytes(data(file))] {
            let decoded =
                media.decode_file(source, HOUR).await.unwrap_or_else(|error| panic!("{file}: {}", error.full()));
            let pcm = decoded.whole().unwrap();
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
    let pcm = media().decode_file(AudioFile::Bytes(bytes), HOUR).await.unwrap().pcm;
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
    let zip = [&b"PK\x03\x04\x14\0\0\0\x08\0"[..], &[7; 500]].concat();
    for bytes in [&b"no audio at all, only words, and more of them"[..], &data("rgb.png"), &zip, &[0; 5000]] {
        let error = media.decode_file(AudioFile::Bytes(Bytes::copy_from_slice(bytes)), HOUR).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Unsupported, "{}", error.full());
        assert!(error.hint_text().is_some());
    }
    let empty = media.decode_file(AudioFile::Bytes(Bytes::new()), HOUR).await.unwrap_err();
    assert_eq!(empty.kind(), Kind::Invalid);
    let missing = media.decode_file(AudioFile::Path("/nonexistent.wav".into()), HOUR).await.unwrap_err();
    assert_eq!(missing.kind(), Kind::NotFound);
    assert!(missing.message().contains("/nonexistent.wav"));
    let folder = media.decode_file(AudioFile::Path("/tmp".into()), HOUR).await.unwrap_err();
    assert_eq!(folder.kind(), Kind::Invalid);
    hostile::all_seats_free(&media).await;
}

/// A file may say that its audio is elsewhere: on this disk, or on a server that somebody wants us to ask.
#[tokio::test]
async fn what_a_file_points_to_is_never_opened() {
    let media = media();
    let server = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    server.set_nonblocking(true).unwrap();
    let address = server.local_addr().unwrap();
    let tone = data_path("tone.ts");
    let local = format!("file://{}", tone.display());
    let remote = format!("http://{address}/a.ts");
    let mut files = Vec::new();
    for uri in [&local, &remote] {
        files.push(format!("#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\n{uri}\n#EXT-X-ENDLIST\n"));
        files.push(format!("#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\n{uri}\n"));
        files.push(format!(
            "<?xml version=\"1.0\"?><MPD xmlns=\"urn:mpeg:dash:schema:mpd:2011\" type=\"static\"><Period><AdaptationSet \
             mimeType=\"audio/mp4\"><Representation id=\"1\" bandwidth=\"1\"><BaseURL>{uri}</BaseURL></Representation>\
             </AdaptationSet></Period></MPD>"
        ));
        files.push(format!(
            "<SmoothStreamingMedia MajorVersion=\"2\" Duration=\"1\" Url=\"{uri}\"></SmoothStreamingMedia>"
        ));
        files.push(format!("<smil><body><audio src=\"{uri}\"/></body></smil>"));
        files.push(format!("[playlist]\nFile1={uri}\nNumberOfEntries=1\nVersion=2\n"));
        files.push(format!("{uri}\n"));
        files.push(format!("[Reference]\nRef1={uri}\n"));
    }
    let port = address.port();
    files.push(format!("v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio {port} RTP/AVP 0\n"));
    files.push("RIFF\u{10}\0\0\0CDXAfmt \u{10}\0\0\0".to_owned() + &"x".repeat(400));
    for text in files {
        let decoded = media.decode_file(AudioFile::Bytes(text.clone().into_bytes().into()), HOUR);
        let error = tokio::time::timeout(LIMIT, decoded).await.expect("it ends within the limit").unwrap_err();
        let said = matches!(error.kind(), Kind::Unsupported | Kind::Unavailable | Kind::Invalid);
        assert!(said, "{text}: {}", error.full());
        assert!(error.hint_text().is_some(), "{text}");
    }
    let asked = server.accept();
    assert!(asked.is_err(), "a file had us ask a server");
    hostile::all_seats_free(&media).await;
}

/// What decodes of a file gives text; that it is not all is said, and where nothing is left it is an error.
#[tokio::test]
async fn a_cut_file_gives_what_it_holds_and_says_that_it_is_cut() {
    let media = media();
    for file in [
        "tone.wav",
        "tone.flac",
        "opus.ogg",
        "vorbis.ogg",
        "stereo.webm",
        "tone.mp3",
        "tone.aac",
        "fragmented.mp4",
        "faststart.m4a",
        "tone.aiff",
        "tone.au",
        "video.avi",
    ] {
        let bytes = data(file);
        let cut = |at: usize| {
            let decoded = media.decode_file(AudioFile::Bytes(bytes.slice(..at)), HOUR);
            async move { tokio::time::timeout(LIMIT, decoded).await.expect("it ends within the limit") }
        };
        for part in [0.6, 0.9] {
            let at = (bytes.len() as f64 * part) as usize + 1;
            let decoded = cut(at).await.unwrap_or_else(|error| panic!("{file} cut at {at}: {}", error.full()));
            let secs = decoded.pcm.secs();
            // An AVI has its index last.
            let most = if file == "video.avi" { 2.1 } else { 1.95 };
            assert!((0.3..most).contains(&secs), "{file} cut at {at}: {secs} s");
            let warning = decoded.warning.unwrap_or_else(|| panic!("{file} cut at {at} is taken for whole"));
            assert_eq!(warning.code, WarningCode::Cut, "{file}: {}", warning.message);
            assert!(warning.message.contains(&format!("after {secs:.1} s")), "{file}: {}", warning.message);
        }
        for at in [20, 60, 200] {
            match cut(at).await {
                Ok(decoded) => assert!(decoded.warning.is_some(), "{file} cut at {at}: {:?}", decoded.pcm.len()),
                Err(error) => {
                    assert_eq!(error.kind(), Kind::Invalid, "{file} cut at {at}: {}", error.full());
                    assert!(error.hint_text().is_some());
                }
            }
        }
    }
    // Its index was to come behind the audio.
    let bytes = data("moov_last.m4a");
    let error = media.decode_file(AudioFile::Bytes(bytes.slice(..bytes.len() / 2)), HOUR).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Invalid, "{}", error.full());
    hostile::all_seats_free(&media).await;
}

/// Damage in the middle costs what follows at most, and never the text before it.
#[tokio::test]
async fn a_damaged_file_gives_what_decodes_or_an_error() {
    let media = media();
    for file in ["tone.wav", "tone.flac", "opus.ogg", "stereo.webm", "tone.mp3", "tone.aac", "fragmented.mp4"] {
        let bytes = data(file);
        let middle = bytes.len() / 2;
        let damaged = [&bytes[..middle], &hostile::garbage(3000), &bytes[middle..]].concat();
        let decoded = media.decode_file(AudioFile::Bytes(damaged.into()), HOUR);
        let decoded = tokio::time::timeout(LIMIT, decoded).await.expect("it ends within the limit");
        let decoded = decoded.unwrap_or_else(|error| panic!("{file}: {}", error.full()));
        assert!(decoded.pcm.secs() > 0.6, "{file}: {} s", decoded.pcm.secs());
    }
    hostile::all_seats_free(&media).await;
}

#[tokio::test]
async fn a_tag_longer_than_its_file_is_no_crash() {
    let tag = Bytes::from_static(b"ID3\x04\0\0\x7F\x7F\x7F\x7F and no more than this");
    let error = media().decode_file(AudioFile::Bytes(tag), HOUR).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Invalid, "{}", error.full());
}
