//! A transcript as the files that people open: plain text, SubRip, WebVTT. (As JSON it is the object on the wire.)
//!
//! Subtitles are read while one looks at something else: two short lines at a time, and a long segment becomes several
//! cues, cut where its words are known to be spoken, else in proportion to its letters.

use std::fmt::Write as _;

use super::TextSegment;

/// What broadcasters put on a line.
const LINE_COLUMNS: usize = 42;
const CUE_LINES: usize = 2;

/// One line for each segment, after its speaker where that is known.
pub fn txt(segments: &[TextSegment]) -> String {
    let line = |segment: &TextSegment| match &segment.speaker {
        Some(speaker) => format!("{}: {}\n", one_line(speaker), one_line(&segment.text)),
        None => format!("{}\n", one_line(&segment.text)),
    };
    spoken(segments).map(line).collect()
}

pub fn srt(segments: &[TextSegment]) -> String {
    let mut text = String::new();
    let mut number = 0;
    for segment in spoken(segments) {
        let speaker = segment.speaker.as_ref().map(|speaker| format!("{}: ", one_line(speaker))).unwrap_or_default();
        for cue in cues(segment, &speaker) {
            number += 1;
            let (start, end) = (clock(cue.start, ','), clock(cue.end, ','));
            // Writing to a String cannot fail.
            _ = write!(text, "{number}\n{start} --> {end}\n{}\n\n", cue.lines.join("\n"));
        }
    }
    text
}

pub fn vtt(segments: &[TextSegment]) -> String {
    let mut text = "WEBVTT\n\n".to_owned();
    for segment in spoken(segments) {
        let voice =
            segment.speaker.as_ref().map(|speaker| format!("<v {}>", escaped(&one_line(speaker)))).unwrap_or_default();
        for cue in cues(segment, "") {
            let (start, end) = (clock(cue.start, '.'), clock(cue.end, '.'));
            _ = write!(text, "{start} --> {end}\n{voice}{}\n\n", escaped(&cue.lines.join("\n")));
        }
    }
    text
}

/// Segments that nobody has transcribed yet have no text, and no place in a file for reading.
fn spoken(segments: &[TextSegment]) -> impl Iterator<Item = &TextSegment> {
    segments.iter().filter(|segment| !segment.text.trim().is_empty())
}

/// An empty line would end the cue, an arrow would look like the next one's times.
fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<&str>>().join(" ").replace("-->", "→")
}

/// For WebVTT, where these would begin or end an entity or a tag.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

struct Cue {
    start: f64,
    end: f64,
    lines: Vec<String>,
}

fn cues(segment: &TextSegment, before: &str) -> Vec<Cue> {
    let text = format!("{before}{}", one_line(&segment.text));
    let lines = lines(&text);
    let letters = |lines: &[String]| lines.iter().map(|line| letters(line)).sum::<usize>();
    let all = letters(&lines).max(1);
    let mut said = 0;
    let mut start = segment.start;
    let mut cues = Vec::new();
    for lines in lines.chunks(CUE_LINES) {
        said += letters(lines);
        let end = if said >= all {
            segment.end
        } else {
            time_of(segment, said.saturating_sub(self::letters(before)), said as f64 / all as f64)
        };
        let end = end.max(start);
        cues.push(Cue { start, end, lines: lines.to_vec() });
        start = end;
    }
    cues
}

/// When so many letters of the segment have been said.
fn time_of(segment: &TextSegment, said: usize, share: f64) -> f64 {
    let mut counted = 0;
    let word = segment.words.iter().find(|word| {
        counted += letters(&word.text);
        counted > said
    });
    match word {
        Some(word) => word.start,
        None => segment.start + share * (segment.end - segment.start).max(0.0),
    }
}

fn letters(text: &str) -> usize {
    text.chars().filter(|letter| !letter.is_whitespace()).count()
}

/// As few lines as it takes, about as long as each other within their cue.
fn lines(text: &str) -> Vec<String> {
    let filled = fill(text, LINE_COLUMNS);
    let mut lines = Vec::new();
    for cue in filled.chunks(CUE_LINES) {
        let text = cue.concat();
        let narrowest = (1..=LINE_COLUMNS).map(|columns| fill(&text, columns)).find(|it| it.len() <= cue.len());
        lines.extend(narrowest.unwrap_or_else(|| cue.to_vec()).into_iter().map(|line| line.trim_end().to_owned()));
    }
    lines
}

/// Lines filled up to that width, each with the space that follows it, so that together they are the text.
fn fill(text: &str, columns: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    let mut used = 0;
    for word in text.split_inclusive(' ') {
        let width = wide(word.trim_end());
        if used > 0 && used + width > columns {
            lines.push(String::new());
            used = 0;
        }
        // A word that is wider than a line is cut: some languages have no spaces.
        for letter in word.chars() {
            let width = column_count(letter);
            if used > 0 && used + width > columns && letter != ' ' {
                lines.push(String::new());
                used = 0;
            }
            used += width;
            if let Some(line) = lines.last_mut() {
                line.push(letter);
            }
        }
    }
    lines
}

fn wide(text: &str) -> usize {
    text.chars().map(column_count).sum()
}

/// Letters of East Asia take twice the room.
fn column_count(letter: char) -> usize {
    match letter {
        '\u{1100}'..='\u{115f}'
        | '\u{2e80}'..='\u{a4cf}'
        | '\u{ac00}'..='\u{d7a3}'
        | '\u{f900}'..='\u{faff}'
        | '\u{fe30}'..='\u{fe6f}'
        | '\u{ff00}'..='\u{ff60}' => 2,
        _ => 1,
    }
}

fn clock(secs: f64, decimal: char) -> String {
    let ms = (secs.max(0.0) * 1000.0).round() as u64;
    let (hours, minutes, secs, ms) = (ms / 3_600_000, ms / 60_000 % 60, ms / 1000 % 60, ms % 1000);
    format!("{hours:02}:{minutes:02}:{secs:02}{decimal}{ms:03}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::Word;

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

    #[test]
    fn a_speakers_name_breaks_no_file() {
        let segments = [segment(0, 0.0, 1.0, "x", Some("A > B\n& -->"))];
        assert_eq!(srt(&segments), "1\n00:00:00,000 --> 00:00:01,000\nA > B & →: x\n\n");
        assert!(vtt(&segments).contains("<v A &gt; B &amp; →>x\n"));
    }

    #[test]
    fn lines_are_short_and_about_as_long_as_each_other() {
        let text = "Necesito preparar el informe y cambiar la cámara hoy.";
        assert_eq!(lines(text), ["Necesito preparar el informe", "y cambiar la cámara hoy."]);
        assert_eq!(lines("Hola."), ["Hola."]);
        let long = "Tenemos que arreglar el presupuesto después de la reunión. ".repeat(8);
        assert!(lines(long.trim()).iter().all(|line| wide(line) <= LINE_COLUMNS));
        assert_eq!(lines(long.trim()).join(" "), long.trim());
        let chinese = "今天天气很好".repeat(20);
        assert!(lines(&chinese).iter().all(|line| wide(line) <= LINE_COLUMNS));
        assert_eq!(lines(&chinese).concat(), chinese);
    }

    #[test]
    fn a_long_segment_becomes_several_cues_in_proportion_to_its_letters() {
        let long = segment(0, 10.0, 30.0, &"Tenemos que leer la cámara mañana. ".repeat(6), Some("S1"));
        let cues = cues(&long, "");
        assert!(cues.len() >= 3 && cues.iter().all(|cue| cue.lines.len() <= CUE_LINES));
        assert_eq!((cues[0].start, cues[cues.len() - 1].end), (10.0, 30.0));
        assert!(cues.windows(2).all(|pair| pair[0].end == pair[1].start && pair[0].start < pair[0].end));
        // The speaker is named once in a subtitle, and belongs to every cue of WebVTT.
        assert_eq!(srt(std::slice::from_ref(&long)).matches("S1: ").count(), 1);
        assert_eq!(vtt(&[long]).matches("<v S1>").count(), cues.len());
    }

    #[test]
    fn words_say_when_a_cue_ends() {
        let text = "Tenemos que leer la cámara mañana. ".repeat(6);
        let mut long = segment(0, 10.0, 40.0, &text, Some("S1"));
        let mut start = 10.0;
        for (number, word) in text.split_whitespace().enumerate() {
            // Somebody thinks for a long time in the middle.
            let end = start + if number == 16 { 18.0 } else { 0.3 };
            long.words.push(Word { start, end, text: word.to_owned(), probability: 1.0 });
            start = end;
        }
        let cues = cues(&long, "S1: ");
        let starts: Vec<f64> = long.words.iter().map(|word| word.start).collect();
        for cue in &cues[1..] {
            let first = cue.lines[0].split(' ').next().unwrap();
            let at = starts.iter().position(|start| *start == cue.start).unwrap();
            assert_eq!(long.words[at].text, first);
        }
    }

    #[test]
    fn times_that_make_no_sense_stay_in_order() {
        for (start, end) in [(5.0, 1.0), (f64::NAN, 2.0), (-3.0, -1.0), (1.0, f64::INFINITY)] {
            let long = segment(0, start, end, &"palabra ".repeat(40), None);
            assert!(srt(&[long]).matches("-->").count() > 1);
        }
    }
}
