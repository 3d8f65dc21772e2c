//! What a bench prints: one line a figure, with what is wanted beside it.

use std::time::Duration;

/// A figure, its limit in words, and whether it holds (`None`: only told).
pub(super) struct Figure {
    pub(super) name: &'static str,
    pub(super) measured: String,
    pub(super) wanted: &'static str,
    pub(super) holds: Option<bool>,
}

pub(super) fn told(name: &'static str, measured: impl Into<String>) -> Figure {
    Figure { name, measured: measured.into(), wanted: "", holds: None }
}

pub(super) fn wanted(name: &'static str, measured: impl Into<String>, wanted: &'static str, holds: bool) -> Figure {
    Figure { name, measured: measured.into(), wanted, holds: Some(holds) }
}

pub(super) fn to_text(figures: &[Figure]) -> String {
    let mut text = String::new();
    for Figure { name, measured, wanted, holds } in figures {
        let mark = match holds {
            Some(true) => "✓",
            Some(false) => "✗",
            None => " ",
        };
        text.push_str(format!("  {mark} {name:<34} {measured:<34} {wanted}").trim_end());
        text.push('\n');
    }
    text
}

/// The value below which that part of the samples lies.
pub(super) fn percentile(sorted: &[Duration], part: f64) -> Duration {
    let index = ((sorted.len() as f64 * part).ceil() as usize).clamp(1, sorted.len().max(1)) - 1;
    sorted.get(index).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_samples_that_occurred() {
        let sorted: Vec<Duration> = (1..=100).map(Duration::from_millis).collect();
        assert_eq!(percentile(&sorted, 0.5), Duration::from_millis(50));
        assert_eq!(percentile(&sorted, 0.99), Duration::from_millis(99));
        assert_eq!(percentile(&sorted, 1.0), Duration::from_millis(100));
        assert_eq!(percentile(&[], 0.5), Duration::ZERO);
    }
}
