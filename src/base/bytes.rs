//! Sizes of memory and disk, written by people as `"12 MiB"` and printed the same way.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ByteSize(pub u64);

const UNITS: [(&str, u64); 4] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

impl ByteSize {
    pub const fn mib(n: u64) -> ByteSize {
        ByteSize(n << 20)
    }

    pub fn get(self) -> u64 {
        self.0
    }
}

impl FromStr for ByteSize {
    type Err = String;

    fn from_str(text: &str) -> Result<ByteSize, String> {
        let wrong = || format!("`{text}` is not a size; write for example \"512 KiB\", \"20 MiB\" or \"1.5 GiB\"");
        let text_trimmed = text.trim();
        let digits = text_trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text_trimmed.len());
        let (number, unit) = text_trimmed.split_at(digits);
        let number: f64 = number.parse().map_err(|_| wrong())?;
        let unit = match unit.trim() {
            "" => "B",
            unit => unit,
        };
        let (_, factor) = UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit)).ok_or_else(wrong)?;
        Ok(ByteSize((number * *factor as f64).round() as u64))
    }
}

impl TryFrom<String> for ByteSize {
    type Error = String;

    fn try_from(text: String) -> Result<ByteSize, String> {
        text.parse()
    }
}

impl From<ByteSize> for String {
    fn from(size: ByteSize) -> String {
        size.to_string()
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, factor) = UNITS.iter().find(|(_, factor)| self.0 >= *factor).unwrap_or(&UNITS[3]);
        if self.0.is_multiple_of(*factor) {
            write!(f, "{} {unit}", self.0 / factor)
        } else {
            write!(f, "{:.1} {unit}", self.0 as f64 / *factor as f64)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_and_print_as_people_write_them() {
        for (text, bytes) in [("0 B", 0), ("512 KiB", 512 << 10), ("20 MiB", 20 << 20), ("1.5 GiB", 3 << 29)] {
            let size: ByteSize = text.parse().unwrap();
            assert_eq!(size.0, bytes);
            assert_eq!(size.to_string(), text);
        }
        assert_eq!("12mib".parse::<ByteSize>().unwrap(), ByteSize::mib(12));
        assert_eq!("7".parse::<ByteSize>().unwrap(), ByteSize(7));
        assert!("many".parse::<ByteSize>().unwrap_err().contains("MiB"));
        assert!("-3 MiB".parse::<ByteSize>().is_err());
    }
}
