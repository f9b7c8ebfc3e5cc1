//! Times on the command line.

use std::time::Duration;

/// A time on the command line, ten minutes at most.
pub fn seconds(text: &str) -> Result<Duration, String> {
    at_most(600.0, text)
}

/// One of which ranks spend twice as much before they hear of each other again. Who is not heard of for ten minutes is taken
/// for hung.
pub fn quiet_seconds(text: &str) -> Result<Duration, String> {
    at_most(240.0, text)
}

fn at_most(limit: f64, text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "expected a number of seconds".to_string())?;
    if (0.0..=limit).contains(&seconds) {
        Ok(Duration::from_secs_f64(seconds))
    } else {
        Err(format!("expected 0 to {limit} seconds"))
    }
}
