//! A day and a time, for the texts that name them: tool prompts and chat templates. No time zones: UTC throughout, so
//! that every host of a run writes the same text.

use std::time::{SystemTime, UNIX_EPOCH};

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

/// A moment in UTC, to the second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Date {
    seconds: i64,
}

impl Date {
    pub fn now() -> Date {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        Date::from_unix(since as i64)
    }

    /// Seconds since the beginning of 1970. A run that is to be repeated exactly keeps this number.
    pub fn from_unix(seconds: i64) -> Date {
        Date { seconds }
    }

    pub fn as_unix(self) -> i64 {
        self.seconds
    }

    /// Year, month and day by Howard Hinnant's days-to-civil algorithm, exact for every year.
    fn civil(self) -> (i64, usize, i64) {
        let days = self.seconds.div_euclid(86_400) + 719_468;
        let era = days.div_euclid(146_097);
        let day_of_era = days.rem_euclid(146_097);
        let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let shifted_month = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
        let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
        (year_of_era + era * 400 + i64::from(month <= 2), month as usize, day)
    }

    /// `strftime` for the directives that prompts use; another directive is returned as the error.
    pub fn strftime(self, format: &str) -> Result<String, String> {
        let (year, month, day) = self.civil();
        let weekday = DAYS[(self.seconds.div_euclid(86_400) + 4).rem_euclid(7) as usize];
        let month_name = MONTHS[month - 1];
        let second_of_day = self.seconds.rem_euclid(86_400);
        let (hour, minute, second) = (second_of_day / 3600, second_of_day / 60 % 60, second_of_day % 60);
        let mut out = String::new();
        let mut rest = format.chars();
        while let Some(character) = rest.next() {
            if character != '%' {
                out.push(character);
                continue;
            }
            let mut directive = rest.next();
            let plain = directive == Some('-');
            if plain {
                directive = rest.next();
            }
            let two = |number: i64| if plain { format!("{number}") } else { format!("{number:02}") };
            out += &match directive {
                Some('Y') => format!("{year}"),
                Some('y') => two(year.rem_euclid(100)),
                Some('m') => two(month as i64),
                Some('d') => two(day),
                Some('B') => month_name.to_string(),
                Some('b') => month_name[..3].to_string(),
                Some('A') => weekday.to_string(),
                Some('a') => weekday[..3].to_string(),
                Some('H') => two(hour),
                Some('I') => two((hour + 11) % 12 + 1),
                Some('p') => if hour < 12 { "AM" } else { "PM" }.to_string(),
                Some('M') => two(minute),
                Some('S') => two(second),
                Some('%') => "%".to_string(),
                Some(other) => return Err(format!("%{other}")),
                None => return Err("%".to_string()),
            };
        }
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_written_as_python_writes_them() {
        for (seconds, format, expected) in [
            (0, "%d %b %Y", "01 Jan 1970"),
            (1_721_952_000, "%d %b %Y", "26 Jul 2024"),
            (1_709_164_800, "%A %-d %B %y", "Thursday 29 February 24"),
            (951_827_696, "%a %Y-%m-%d %H:%M:%S", "Tue 2000-02-29 12:34:56"),
            (-1, "%Y-%m-%d %I %p %%", "1969-12-31 11 PM %"),
            (4_102_444_799, "%d %b %Y", "31 Dec 2099"),
        ] {
            assert_eq!(Date::from_unix(seconds).strftime(format).as_deref(), Ok(expected), "{seconds}");
        }
        assert_eq!(Date::from_unix(0).strftime("%Q"), Err("%Q".to_string()));
        assert_eq!(Date::from_unix(0).strftime("%"), Err("%".to_string()));
    }
}
