//! A number of bytes that carries its unit: printed as people read it, parsed as people write it.

use std::fmt;
use std::iter::Sum;
use std::ops::{Add, AddAssign, Mul};
use std::str::FromStr;

/// A number of bytes. `Display` prints binary units (`4.10 GiB`); `FromStr` takes `80GiB`, `80 GB`, `512M`, `1024`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteCount(pub u64);

impl ByteCount {
    pub const fn mib(count: u64) -> ByteCount {
        ByteCount(count << 20)
    }

    pub fn as_f64(self) -> f64 {
        self.0 as f64
    }
}

impl fmt::Display for ByteCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
        let mut value = self.0 as f64;
        let mut unit_index = 0;
        while value >= 1024.0 && unit_index + 1 < UNITS.len() {
            value /= 1024.0;
            unit_index += 1;
        }
        let text = if unit_index == 0 { format!("{} B", self.0) } else { format!("{value:.2} {}", UNITS[unit_index]) };
        f.pad(&text)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a number of bytes (examples: `80GiB`, `64 GB`, `512MiB`, `1048576`)")]
pub struct NotBytes(pub String);

impl FromStr for ByteCount {
    type Err = NotBytes;

    fn from_str(text: &str) -> Result<ByteCount, NotBytes> {
        let fail = || NotBytes(text.to_string());
        let trimmed = text.trim();
        let split = trimmed.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(trimmed.len());
        let (number, unit) = trimmed.split_at(split);
        let factor: f64 = match unit.trim().to_ascii_lowercase().as_str() {
            "" | "b" => 1.0,
            "k" | "kb" => 1e3,
            "m" | "mb" => 1e6,
            "g" | "gb" => 1e9,
            "t" | "tb" => 1e12,
            "kib" => 1024.0,
            "mib" => 1024.0 * 1024.0,
            "gib" => 1024.0 * 1024.0 * 1024.0,
            "tib" => 1024.0 * 1024.0 * 1024.0 * 1024.0,
            _ => return Err(fail()),
        };
        let value: f64 = number.parse().map_err(|_| fail())?;
        let bytes = value * factor;
        if !bytes.is_finite() || bytes > u64::MAX as f64 {
            return Err(fail());
        }
        Ok(ByteCount(bytes.round() as u64))
    }
}

impl Add for ByteCount {
    type Output = ByteCount;
    fn add(self, other: ByteCount) -> ByteCount {
        ByteCount(self.0 + other.0)
    }
}

impl AddAssign for ByteCount {
    fn add_assign(&mut self, other: ByteCount) {
        self.0 += other.0;
    }
}

impl Mul<u64> for ByteCount {
    type Output = ByteCount;
    fn mul(self, factor: u64) -> ByteCount {
        ByteCount(self.0 * factor)
    }
}

impl Sum for ByteCount {
    fn sum<I: Iterator<Item = ByteCount>>(iter: I) -> ByteCount {
        iter.fold(ByteCount(0), Add::add)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_counts_read_what_people_write() {
        for (text, expected) in
            [("80GiB", 80 << 30), (" 80 GB ", 80_000_000_000), ("1.5MiB", 3 << 19), ("512", 512), ("0", 0), ("7 B", 7)]
        {
            assert_eq!(text.parse::<ByteCount>().unwrap(), ByteCount(expected), "{text}");
        }
        for text in ["", "GiB", "80 potatoes", "-3", "1e3", "99999999999999TiB"] {
            assert!(text.parse::<ByteCount>().is_err(), "{text}");
        }
    }

    #[test]
    fn byte_counts_print_three_digits_and_a_unit() {
        assert_eq!(ByteCount(512).to_string(), "512 B");
        assert_eq!(ByteCount(4_404_203_520).to_string(), "4.10 GiB");
    }
}
