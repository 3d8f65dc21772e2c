//! What GStreamer's bus says went wrong, as an error that a person can act on.

use gstreamer as gst;

use super::recipe::Recipe;
use crate::base::{Error, Kind};

/// `what` GStreamer could not do becomes a message about the client's data; its own words are for the log.
pub(super) fn error(recipe: &Recipe, message: &gst::message::Error) -> Error {
    let cause = message.error();
    let debug = message.debug().unwrap_or_default();
    let name = recipe.name;
    let no_decoder = cause.matches(gst::CoreError::MissingPlugin) || cause.matches(gst::StreamError::CodecNotFound);
    let error = if recipe.is_source() {
        Error::unavailable("there is no microphone that can be opened")
            .hint("see `gst-device-monitor-1.0 Audio/Source`, and whether another program holds it")
    } else if no_decoder {
        Error::unavailable(format!("no decoder is installed for what is inside this {name} data"))
            .hint(format!("sudo apt-get install {}, or send another codec", recipe.packages()))
    } else if recipe.work() == "encoder" {
        Error::internal(format!("`{name}` cannot encode this speech")).hint("run `vigia doctor`, or ask for wav")
    } else if cause.is::<gst::StreamError>() || cause.matches(gst::CoreError::Negotiation) {
        Error::invalid(format!("this is not {name} data that can be decoded"))
            .hint("check that the encoding named is the one sent, from its first byte on")
    } else if cause.matches(gst::ResourceError::NotFound) || cause.is::<gst::LibraryError>() {
        Error::unavailable(format!("the {name} decoder does not work on this device")).hint("run `vigia doctor`")
    } else {
        Error::new(Kind::Internal, format!("decoding {name} failed"))
    };
    error.cause(format!("{cause}; {debug}"))
}
