//! The learning rate as a pure function of the step.

/// How the rate falls after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decay {
    Linear,
    Cosine,
    Constant,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LearningRate {
    pub peak: f64,
    pub warmup_steps: usize,
    pub total_steps: usize,
    pub decay: Decay,
}

impl LearningRate {
    /// The rate of step `step`, counted from 0. With a warm-up the first step has rate 0: only the moments move.
    pub fn at(&self, step: usize) -> f64 {
        if step < self.warmup_steps {
            return self.peak * step as f64 / self.warmup_steps as f64;
        }
        let left = self.total_steps.saturating_sub(self.warmup_steps).max(1) as f64;
        let progress = ((step - self.warmup_steps) as f64 / left).min(1.0);
        match self.decay {
            Decay::Linear => self.peak * (1.0 - progress),
            Decay::Cosine => self.peak * 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()),
            Decay::Constant => self.peak,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(decay: Decay, warmup_steps: usize, total_steps: usize, expected: &[(usize, f64)]) {
        let rate = LearningRate { peak: 1e-3, warmup_steps, total_steps, decay };
        for &(step, value) in expected {
            assert!((rate.at(step) - value).abs() < 1e-12, "{decay:?} step {step}: {} {value}", rate.at(step));
        }
    }

    #[test]
    fn rates_rise_linearly_and_fall_as_the_schedule_says() {
        check(Decay::Cosine, 2, 10, &[(0, 0.0), (1, 5e-4), (2, 1e-3), (6, 5e-4), (9, 3.806023374435663e-5)]);
        check(Decay::Linear, 0, 4, &[(0, 1e-3), (1, 7.5e-4), (3, 2.5e-4), (4, 0.0), (9, 0.0)]);
        check(Decay::Constant, 2, 4, &[(0, 0.0), (1, 5e-4), (2, 1e-3), (100, 1e-3)]);
        check(Decay::Linear, 4, 4, &[(3, 7.5e-4), (4, 1e-3)]);
    }
}
