//! How numbers are spelled for people: durations and large counts. Byte counts spell themselves (`scout_core`).

use std::time::Duration;

/// `h:mm:ss`, with days in front when there are any: the text that LLaMA-Factory puts into its log.
pub fn clock(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let time = format!("{}:{:02}:{:02}", rest / 3600, rest / 60 % 60, rest % 60);
    match days {
        0 => time,
        1 => format!("1 day, {time}"),
        _ => format!("{days} days, {time}"),
    }
}

/// A count with commas between its thousands.
pub fn grouped(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_spelled_as_python_spells_a_timedelta() {
        for (seconds, expected) in [
            (0.0, "0:00:00"),
            (59.99, "0:00:59"),
            (185.0, "0:03:05"),
            (36_000.0, "10:00:00"),
            (86_400.0, "1 day, 0:00:00"),
            (200_000.0, "2 days, 7:33:20"),
        ] {
            assert_eq!(clock(Duration::from_secs_f64(seconds)), expected);
        }
    }

    #[test]
    fn counts_get_a_comma_every_three_digits_from_the_right() {
        for (count, expected) in
            [(0, "0"), (999, "999"), (1_000, "1,000"), (169_705, "169,705"), (1_234_567, "1,234,567")]
        {
            assert_eq!(grouped(count), expected);
        }
    }
}
