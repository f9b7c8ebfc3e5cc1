//! Variables of the environment, and what is said about those that are missing or make no sense.

use std::str::FromStr;

use scout_core::ExitCode;

use crate::failure::Mistake;

/// Answers with the value of a variable, where it is set to something.
pub type Variables<'a> = &'a dyn Fn(&str) -> Option<String>;

pub fn mistake(message: String) -> Mistake {
    Mistake { message, code: ExitCode::BadConfig, hint: None }
}

pub fn required(variables: Variables, name: &str, why: &str) -> Result<String, Mistake> {
    variables(name).ok_or_else(|| mistake(format!("{name} is not set: {why}")))
}

pub fn number<N: FromStr>(name: &str, value: &str) -> Result<N, Mistake> {
    value.parse().map_err(|_| mistake(format!("{name} is `{value}`, expected a number")))
}
