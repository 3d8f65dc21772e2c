//! What GStreamer may build by itself inside `decodebin`: demuxers of an allow-list, and what parses and decodes audio.
//!
//! A file says what it is, and may say that its audio is elsewhere: playlists, sessions described in text, streams in
//! pieces. GStreamer has elements that would go and fetch it, from the network or from this box's own disk, in the name
//! of whoever sent the file. So nothing is built but what is known to read the file itself, and a plugin that is
//! installed tomorrow is not used until it is named here.

use gstreamer::{self as gst, glib, prelude::*};

use crate::base::{Error, Kind, Result};

/// Read what is in the file, and nothing else.
const DEMUXERS: [&str; 20] = [
    "aiffparse",
    "apedemux",
    "asfdemux",
    "auparse",
    "avdemux_ape",
    "avdemux_mpc",
    "avdemux_mpc8",
    "avdemux_tta",
    "avdemux_voc",
    "avdemux_xwma",
    "avidemux",
    "flvdemux",
    "id3demux",
    "matroskademux",
    "mpegpsdemux",
    "mxfdemux",
    "oggdemux",
    "qtdemux",
    "tsdemux",
    "wavparse",
];

/// Containers whose kind is neither audio nor video.
const CONTAINERS: [&str; 5] =
    ["application/ogg", "application/x-id3", "application/x-apetag", "application/mxf", "application/x-3gp"];

/// Keeps a decodebin to the list. `refuse` is told, on a thread of GStreamer, what is to be said of a file that is none.
pub(super) fn guard(decodebin: &gst::Element, refuse: impl Fn(Error) + Send + Sync + 'static) -> Result<()> {
    // Of GstAutoplugSelectResult, which has no name in the library's bindings.
    const TRY: i32 = 0;
    const SKIP: i32 = 2;
    let answers = glib::Type::from_name("GstAutoplugSelectResult").and_then(glib::EnumClass::with_type);
    let known = |answers: &glib::EnumClass| [TRY, SKIP].iter().all(|it| answers.value(*it).is_some());
    let Some(answers) = answers.filter(known) else {
        return Err(Error::unavailable("this version of GStreamer does not let us choose its decoders")
            .hint("sudo apt-get install --reinstall gstreamer1.0-plugins-base"));
    };
    // (the bin, the pad, what it carries): whether to go on, for what the file is and for each track in it.
    decodebin.connect("autoplug-continue", false, move |values| {
        if let Some(kind) = kind_of(values).filter(|kind| !is_media(kind) && is_of_the_file(values)) {
            log::debug!("a file of the kind {kind} is refused");
            refuse(none_of_ours(&kind));
        }
        Some(true.to_value())
    });
    // (the bin, the pad, what it carries, what would be built)
    decodebin.connect("autoplug-select", false, move |values| {
        let factory = values.get(3).and_then(|it| it.get::<gst::ElementFactory>().ok());
        let (Some(kind), Some(factory)) = (kind_of(values), factory) else { return answers.to_value(SKIP) };
        let name = factory.name();
        let class = factory.metadata("klass").unwrap_or_default();
        if is_media(&kind) && may_be_built(&name, class) {
            answers.to_value(TRY)
        } else {
            log::debug!("`{name}` ({class}) is not used for {kind}");
            answers.to_value(SKIP)
        }
    });
    Ok(())
}

fn kind_of(signal: &[glib::Value]) -> Option<String> {
    let carried = signal.get(2)?.get::<gst::Caps>().ok()?;
    Some(carried.structure(0)?.name().to_string())
}

/// Not of a track in it: those may be texts, pictures, whatever else.
fn is_of_the_file(signal: &[glib::Value]) -> bool {
    let Some(pad) = signal.get(1).and_then(|it| it.get::<gst::Pad>().ok()) else { return false };
    // What is told is a stand-in that leads to the pad itself.
    let behind = pad.downcast_ref::<gst::GhostPad>().and_then(|ghost| ghost.target());
    let maker = behind.unwrap_or(pad).parent_element().and_then(|element| element.factory());
    maker.is_some_and(|factory| factory.name() == "typefind")
}

/// Video is looked into for its audio.
fn is_media(kind: &str) -> bool {
    kind.starts_with("audio/") || kind.starts_with("video/") || CONTAINERS.contains(&kind)
}

fn may_be_built(name: &str, class: &str) -> bool {
    let is = |word| class.split('/').any(|it| it == word);
    DEMUXERS.contains(&name) || (is("Audio") && (is("Parser") || is("Decoder")) && !is("Source") && !is("Network"))
}

/// Said of what is no audio, whatever it is instead.
pub(super) fn none_of_ours(kind: &str) -> Error {
    let points = ["hls", "dash", "sdp", "uri", "sstr", "smil", "rtsp", "playlist", "mpegurl", "rmp", "redirect"];
    if points.iter().any(|it| kind.contains(it)) {
        Error::new(Kind::Unsupported, "this file holds no audio, it only says where some is")
            .hint("send the recording itself; nothing is fetched that a file points to")
    } else {
        Error::new(Kind::Unsupported, "this is no audio file that can be opened")
            .hint("send WAV, FLAC, MP3, AAC, Ogg, WebM, M4A, or another container that GStreamer knows")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::media::pool;

    #[test]
    fn what_reads_the_file_itself_is_built_and_what_fetches_is_not() {
        pool::start_gstreamer().unwrap();
        let class_of = |name: &str| {
            let factory = gst::ElementFactory::find(name)?;
            Some(factory.metadata("klass").unwrap_or_default().to_owned())
        };
        for name in
            ["avidemux", "qtdemux", "aiffparse", "flacparse", "flacdec", "opusdec", "avdec_aac", "mpegaudioparse"]
        {
            assert!(may_be_built(name, &class_of(name).unwrap()), "{name}");
        }
        let fetching = [
            "hlsdemux",
            "hlsdemux2",
            "dashdemux",
            "dashdemux2",
            "mssdemux",
            "mssdemux2",
            "sdpdemux",
            "sdpsrc",
            "splitmuxsrc",
            "rtspsrc",
            "souphttpsrc",
            "filesrc",
            "uridecodebin",
            "parsebin",
            "multipartdemux",
            "avdec_h264",
            "pngdec",
            "subparse",
        ];
        let found: Vec<&str> = fetching.into_iter().filter(|name| class_of(name).is_some()).collect();
        assert!(found.len() > 8, "{found:?}");
        for name in found {
            assert!(!may_be_built(name, &class_of(name).unwrap()), "{name}");
        }
    }

    #[test]
    fn the_kinds_that_point_elsewhere_are_told_apart_from_those_that_are_nothing() {
        for kind in ["application/x-hls", "application/dash+xml", "application/sdp", "text/uri-list"] {
            assert!(!is_media(kind) && none_of_ours(kind).message().contains("where"), "{kind}");
        }
        for kind in ["text/plain", "image/png", "application/pdf", "application/xml"] {
            assert!(!is_media(kind) && none_of_ours(kind).message().contains("no audio file"), "{kind}");
        }
        assert!(is_media("video/x-msvideo") && is_media("application/ogg"));
    }
}
