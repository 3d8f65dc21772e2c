//! Instants as they stand on the wire: RFC 3339, UTC, milliseconds.

use jiff::{Timestamp, Unit};

/// Now, as `…_at` fields say it.
pub fn now_at() -> String {
    let now = Timestamp::now();
    let rounded = now.round(Unit::Millisecond).unwrap_or(now);
    format!("{rounded:.3}")
}

/// Seconds since 1970, for comparing what is stored.
pub fn unix_secs() -> i64 {
    Timestamp::now().as_second()
}

#[cfg(test)]
mod tests {
    #[test]
    fn instants_have_milliseconds_and_a_z() {
        let text = super::now_at();
        assert_eq!(text.len(), "2026-01-02T03:04:05.678Z".len(), "{text}");
        assert!(text.ends_with('Z'));
    }
}
