//! AdamW for one number, in f64.

use super::Hyper;

#[derive(Debug, Clone, Copy)]
pub(super) struct Number {
    pub parameter: f64,
    pub first_moment: f64,
    pub second_moment: f64,
}

pub(super) fn update(number: Number, gradient: f64, hyper: &Hyper) -> Number {
    let decayed = number.parameter * (1.0 - hyper.learning_rate * hyper.weight_decay);
    let first_moment = hyper.beta1 * number.first_moment + (1.0 - hyper.beta1) * gradient;
    let second_moment = hyper.beta2 * number.second_moment + (1.0 - hyper.beta2) * gradient * gradient;
    let unbiased_first = first_moment / (1.0 - hyper.beta1.powi(hyper.step as i32));
    let unbiased_second = second_moment / (1.0 - hyper.beta2.powi(hyper.step as i32));
    let step = hyper.learning_rate * unbiased_first / (unbiased_second.sqrt() + hyper.epsilon);
    Number { parameter: decayed - step, first_moment, second_moment }
}
