//! One fused loop, shared out in pieces.

use rayon::prelude::*;

use super::Hyper;

const ELEMENTS_PER_TASK: usize = 16 * 1024;

/// What a step overwrites.
pub(super) struct State<'a> {
    pub parameters: &'a mut [f32],
    pub first_moment: &'a mut [f32],
    pub second_moment: &'a mut [f32],
}

/// The scalars of a step, rounded to f32 where torch hands them to an f32 tensor.
pub(super) struct Scalars {
    pub gradient_scale: f32,
    pub decay: f32,
    pub lerp: f32,
    pub beta2: f32,
    pub one_minus_beta2: f32,
    pub correction2_sqrt: f32,
    pub epsilon: f32,
    pub negative_step_size: f32,
}

impl Scalars {
    pub fn new(gradient_scale: f32, hyper: &Hyper) -> Scalars {
        let steps = hyper.step as f64;
        let correction1 = 1.0 - hyper.beta1.powf(steps);
        let correction2 = 1.0 - hyper.beta2.powf(steps);
        Scalars {
            gradient_scale,
            decay: (1.0 - hyper.learning_rate * hyper.weight_decay) as f32,
            lerp: (1.0 - hyper.beta1) as f32,
            beta2: hyper.beta2 as f32,
            one_minus_beta2: (1.0 - hyper.beta2) as f32,
            correction2_sqrt: correction2.sqrt() as f32,
            epsilon: hyper.epsilon as f32,
            negative_step_size: -(hyper.learning_rate / correction1) as f32,
        }
    }
}

pub(super) fn update(state: State, gradients: &[f32], gradient_scale: f32, hyper: &Hyper) {
    let scalars = Scalars::new(gradient_scale, hyper);
    let pieces = state
        .parameters
        .par_chunks_mut(ELEMENTS_PER_TASK)
        .zip(state.first_moment.par_chunks_mut(ELEMENTS_PER_TASK))
        .zip(state.second_moment.par_chunks_mut(ELEMENTS_PER_TASK))
        .zip(gradients.par_chunks(ELEMENTS_PER_TASK));
    pieces.for_each(|(((parameters, first_moment), second_moment), gradients)| {
        update_piece(State { parameters, first_moment, second_moment }, gradients, &scalars);
    });
}

fn update_piece(state: State, gradients: &[f32], s: &Scalars) {
    let moments = state.first_moment.iter_mut().zip(state.second_moment);
    for ((p, (m, v)), &g) in state.parameters.iter_mut().zip(moments).zip(gradients) {
        let g = g * s.gradient_scale;
        *p *= s.decay;
        // torch's lerp: the formula changes sides at a weight of one half.
        *m = if s.lerp < 0.5 { *m + s.lerp * (g - *m) } else { g - (g - *m) * (1.0 - s.lerp) };
        *v = *v * s.beta2 + s.one_minus_beta2 * g * g;
        let denominator = v.sqrt() / s.correction2_sqrt + s.epsilon;
        *p += s.negative_step_size * *m / denominator;
    }
}
