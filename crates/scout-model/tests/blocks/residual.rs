//! What a block adds to the residual stream is added whole: nothing small is rounded away on its own beside a large residual.

use scout_core::Projection;
use scout_device::Tensor;
use scout_model::Trace;

use crate::rig::{Rig, lora, small};

/// Keeps what attention adds.
#[derive(Default)]
struct OutputOfAttention(Vec<f32>);

impl Trace for OutputOfAttention {
    fn is_on(&self) -> bool {
        true
    }

    fn record(&mut self, name: &str, tensor: &Tensor) {
        if name.ends_with("attn_out") {
            self.0 = tensor.to_f32_vec().unwrap();
        }
    }
}

#[test]
fn an_adapter_of_the_output_projection_is_not_rounded_away_beside_the_residual() {
    for projections in [&[Projection::O][..], &[Projection::Q]] {
        let rig = Rig::new(small(), &lora(projections));
        let batch = rig.batch(&[(0, 9)]);
        // Neighbouring f32 numbers of this size are half of one apart.
        let x = rig.activations(1, &batch).to_f32_vec().unwrap();
        let x: Vec<f32> = x.into_iter().map(|value| (value.signum() + value) * 4_194_304.0).collect();
        let residual = Tensor::from_f32(x.clone(), [batch.num_tokens(), rig.config.hidden_size]).unwrap();
        let block = &rig.model.blocks[rig.block_index(0, true)];
        let mut added = OutputOfAttention::default();
        let (y, _) =
            block.forward(&mut rig.source(block.forward_units()), residual, &rig.pass(&batch), &mut added).unwrap();
        let y = y.to_f32_vec().unwrap();
        assert!(added.0.iter().any(|value| value.abs() > 0.25), "something is added");
        for ((y, x), added) in y.into_iter().zip(x).zip(added.0) {
            assert_eq!(y, x + added, "{x} and {added}");
        }
    }
}
