//! What GStreamer's bus says went wrong, as an error that a person can act on.

use gstreamer as gst;

use super::{allowed, recipe::Recipe};
use crate::base::{Error, Kind};

/// `what` GStreamer could not do becomes a message about the client's data; its own words are for the log.
pub(super) fn error(recipe: &Recipe, message: &gst::message::Error) -> Error {
    let cause = message.error();
    let debug = message.debug().unwrap_or_default();
    let name = recipe.name;
    let no_decoder = cause.matches(gst::CoreError::MissingPlugin) || cause.matches(gst::StreamError::CodecNotFound);
    let unknown = [gst::StreamError::TypeNotFound, gst::StreamError::WrongType];
    let error = if recipe.is_container() && unknown.iter().any(|it| cause.matches(*it)) {
        allowed::none_of_ours("")
    } else if recipe.is_container() && no_decoder {
        Error::unavailable("no decoder is installed for this file, or it holds no audio")
            .hint("send WAV, FLAC, MP3, AAC, Ogg, WebM or M4A; WMA needs gstreamer1.0-plugins-ugly")
    } else if recipe.is_source() {
        Error::unavailable("there is no microphone that can be opened")
            .hint("see `gst-device-monitor-1.0 Audio/Source`, and whether another program holds it")
    } else if no_decoder {
        Error::unavailable(format!("no decoder is installed for what is inside this {name} data"))
            .hint(format!("sudo apt-get install {}, or send another codec", recipe.packages()))
    } else if recipe.work() == "encoder" {
        Error::internal(format!("`{name}` cannot encode this speech")).hint("run `vigia doctor`, or ask for wav")
    } else if cause.is::<gst::StreamError>() || cause.matches(gst::CoreError::Negotiation) {
        let what = if recipe.is_container() { "a file" } else { &format!("{name} data") };
        Error::invalid(format!("this is not {what} that can be decoded"))
            .hint("check that what was sent is what it is said to be, from its first byte on")
    } else if cause.matches(gst::ResourceError::NotFound) || cause.is::<gst::LibraryError>() {
        Error::unavailable(format!("the {name} decoder does not work on this device")).hint("run `vigia doctor`")
    } else {
        Error::new(Kind::Internal, format!("decoding {name} failed"))
    };
    error.cause(format!("{cause}; {debug}"))
}
