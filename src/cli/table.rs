//! What a command reports, as data, and the two ways to show it: lines a person can read, and JSON. Knows
//! nothing of what it shows.

use std::fmt::Write;

use serde::Serialize;

use crate::base::printable;

/// Sections of rows, in reading order.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(super) struct Report {
    /// No row is bad.
    pub(super) ok: bool,
    pub(super) sections: Vec<Section>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Section {
    pub(super) title: &'static str,
    pub(super) rows: Vec<Row>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Row {
    pub(super) state: State,
    pub(super) name: String,
    pub(super) value: String,
    /// What to do about it.
    pub(super) hint: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum State {
    Good,
    /// Works, with less than it could.
    Warn,
    Bad,
    /// A fact, neither good nor bad.
    Info,
}

impl Row {
    pub(super) fn new(state: State, name: impl Into<String>, value: impl Into<String>) -> Row {
        Row { state, name: name.into(), value: value.into(), hint: None }
    }

    pub(super) fn hint(mut self, hint: impl Into<String>) -> Row {
        self.hint = Some(hint.into());
        self
    }
}

impl Report {
    pub(super) fn new(sections: Vec<Section>) -> Report {
        let ok = sections.iter().flat_map(|section| &section.rows).all(|row| row.state != State::Bad);
        Report { ok, sections }
    }

    /// Aligned lines with ticks and crosses. What others have written colours nothing.
    pub(super) fn to_text(&self, colours: bool) -> String {
        let rows = self.sections.iter().flat_map(|section| &section.rows);
        let width = rows.map(|row| width(&row.name)).max().unwrap_or(0);
        let (bold, plain) = if colours { ("\x1b[1m", "\x1b[0m") } else { ("", "") };
        let mut text = String::new();
        for Section { title, rows } in &self.sections {
            let gap = if text.is_empty() { "" } else { "\n" };
            push(&mut text, format_args!("{gap}{bold}{title}{plain}\n"));
            for Row { state, name, value, hint } in rows {
                let (value, hint) = (printable(value), hint.as_deref().map(printable));
                let (mark, colour) = state.mark();
                let colour = if colours { colour } else { "" };
                let pad = padding(name, width);
                push(&mut text, format_args!("  {colour}{mark}{plain} {name}{pad}  {value}\n"));
                if let Some(hint) = hint {
                    push(&mut text, format_args!("    {:width$}  → {hint}\n", ""));
                }
            }
        }
        text
    }

    pub(super) fn to_json(&self) -> Result<String, serde_json::Error> {
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }
}

impl State {
    fn mark(self) -> (char, &'static str) {
        match self {
            State::Good => ('✓', "\x1b[32m"),
            State::Warn => ('!', "\x1b[33m"),
            State::Bad => ('✗', "\x1b[31m"),
            State::Info => ('·', "\x1b[2m"),
        }
    }
}

/// Rows of equal length below their heads, each column as wide as its widest cell.
pub(super) fn columns<const N: usize>(heads: [&str; N], rows: &[[String; N]]) -> String {
    let heads = heads.map(|head| head.to_uppercase());
    let rows: Vec<[String; N]> = rows.iter().map(|row| row.each_ref().map(|cell| printable(cell))).collect();
    let widths: [usize; N] =
        std::array::from_fn(|at| rows.iter().chain([&heads]).map(|row| width(&row[at])).max().unwrap_or(0));
    let mut text = String::new();
    for row in [&heads].into_iter().chain(&rows) {
        let cells: Vec<String> =
            row.iter().zip(widths).map(|(cell, width)| cell.clone() + &padding(cell, width)).collect();
        push(&mut text, format_args!("{}\n", cells.join("  ").trim_end()));
    }
    text
}

fn width(text: &str) -> usize {
    text.chars().count()
}

fn padding(text: &str, to: usize) -> String {
    " ".repeat(to.saturating_sub(width(text)))
}

fn push(text: &mut String, line: std::fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    let _written = text.write_fmt(line);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        Report::new(vec![
            Section {
                title: "Device",
                rows: vec![Row::new(State::Good, "processor", "2 cores"), Row::new(State::Info, "año", "2026")],
            },
            Section { title: "Media", rows: vec![Row::new(State::Bad, "opus", "missing").hint("apt-get install x")] },
        ])
    }

    #[test]
    fn values_stand_below_each_other_and_hints_below_values() {
        assert_eq!(
            report().to_text(false),
            "Device\n  ✓ processor  2 cores\n  · año        2026\n\nMedia\n  ✗ opus       missing\n               → apt-get install x\n"
        );
    }

    #[test]
    fn colours_only_when_asked_for() {
        assert!(!report().to_text(false).contains('\x1b'));
        assert!(report().to_text(true).contains("\x1b[31m✗\x1b[0m opus"));
    }

    #[test]
    fn json_has_every_row_and_whether_all_is_well() {
        let json: serde_json::Value = serde_json::from_str(&report().to_json().unwrap()).unwrap();
        assert_eq!(json["ok"], false);
        assert_eq!(json["sections"][0]["rows"][0]["state"], "good");
        assert_eq!(json["sections"][1]["rows"][0]["hint"], "apt-get install x");
        assert!(Report::new(Vec::new()).ok);
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [["a".to_owned(), "b".to_owned()], ["longer".to_owned(), "c".to_owned()]];
        assert_eq!(columns(["name", "x"], &rows), "NAME    X\na       b\nlonger  c\n");
    }
}
