//! Text that others have written, as it may go to a terminal: without what would move its cursor or change its colours.

/// Control characters as `\u{1b}`; lines and tabs stay.
pub fn printable(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' | '\t' => safe.push(c),
            c if c.is_control() => safe.extend(c.escape_unicode()),
            c => safe.push(c),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_would_obey_is_shown_instead() {
        assert_eq!(printable("año\n\tniño → ✓"), "año\n\tniño → ✓");
        assert_eq!(printable("a\x1b[31mb\x07\r\u{9b}2J"), "a\\u{1b}[31mb\\u{7}\\u{d}\\u{9b}2J");
    }
}
