//! A session's transcript as the files that people open: plain text, SubRip, WebVTT.

use std::fmt::Write as _;

use crate::flow::TextSegment;

/// One line for each segment, after its speaker where that is known.
pub(crate) fn txt(segments: &[TextSegment]) -> String {
    spoken(segments).map(|segment| format!("{}\n", line(segment))).collect()
}

pub(crate) fn srt(segments: &[TextSegment]) -> String {
    let mut text = String::new();
    for (number, segment) in spoken(segments).enumerate() {
        let (start, end) = (clock(segment.start, ','), clock(segment.end, ','));
        // Writing to a String cannot fail.
        _ = write!(text, "{}\n{start} --> {end}\n{}\n\n", number + 1, line(segment));
    }
    text
}

pub(crate) fn vtt(segments: &[TextSegment]) -> String {
    let mut text = "WEBVTT\n\n".to_owned();
    for segment in spoken(segments) {
        let (start, end) = (clock(segment.start, '.'), clock(segment.end, '.'));
        // These two would begin an entity or a tag.
        let spoken = one_line(&segment.text).replace('&', "&amp;").replace('<', "&lt;");
        let voice = segment.speaker.as_ref().map(|speaker| format!("<v {speaker}>")).unwrap_or_default();
        _ = write!(text, "{start} --> {end}\n{voice}{spoken}\n\n");
    }
    text
}

/// Segments that nobody has transcribed yet have no text, and no place in a file for reading.
fn spoken(segments: &[TextSegment]) -> impl Iterator<Item = &TextSegment> {
    segments.iter().filter(|segment| !segment.text.trim().is_empty())
}

fn line(segment: &TextSegment) -> String {
    let text = one_line(&segment.text);
    segment.speaker.as_ref().map_or_else(|| text.clone(), |speaker| format!("{speaker}: {text}"))
}

/// An empty line would end the cue, an arrow would look like the next one's times.
fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<&str>>().join(" ").replace("-->", "→")
}

fn clock(secs: f64, decimal: char) -> String {
    let ms = (secs.max(0.0) * 1000.0).round() as u64;
    let (hours, minutes, secs, ms) = (ms / 3_600_000, ms / 60_000 % 60, ms / 1000 % 60, ms % 1000);
    format!("{hours:02}:{minutes:02}:{secs:02}{decimal}{ms:03}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(id: u64, start: f64, end: f64, text: &str, speaker: Option<&str>) -> TextSegment {
        let speaker = speaker.map(str::to_owned);
        let (text, language) = (text.to_owned(), "es".to_owned());
        TextSegment { id, start, end, text, language, probability: 1.0, speaker, words: Vec::new() }
    }

    #[test]
    fn files_hold_what_was_said_and_when() {
        let segments = [
            segment(0, 0.5, 2.25, "Hola.\n\n¿Qué tal?", Some("S1")),
            segment(1, 3.0, 4.0, "  ", None),
            segment(2, 3661.0, 3662.9996, "a < b & c --> d", None),
        ];
        assert_eq!(txt(&segments), "S1: Hola. ¿Qué tal?\na < b & c → d\n");
        assert_eq!(
            srt(&segments),
            "1\n00:00:00,500 --> 00:00:02,250\nS1: Hola. ¿Qué tal?\n\n\
             2\n01:01:01,000 --> 01:01:03,000\na < b & c → d\n\n"
        );
        assert_eq!(
            vtt(&segments),
            "WEBVTT\n\n00:00:00.500 --> 00:00:02.250\n<v S1>Hola. ¿Qué tal?\n\n\
             01:01:01.000 --> 01:01:03.000\na &lt; b &amp; c → d\n\n"
        );
        assert_eq!((txt(&[]).as_str(), vtt(&[]).as_str()), ("", "WEBVTT\n\n"));
    }
}
