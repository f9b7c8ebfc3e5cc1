//! Names and shapes of the vision tower and the projector, so that every tensor of a multimodal checkpoint is
//! accounted for. The tower's arithmetic is not here.

use scout_core::ParamSpec;

use crate::config::VisionConfig;

pub fn params(vision: &VisionConfig, text_hidden_size: usize) -> Vec<ParamSpec> {
    let hidden = vision.hidden_size;
    let num_patches = (vision.image_size / vision.patch_size).pow(2);
    let patch_values = vision.num_channels * vision.patch_size * vision.patch_size;
    let mut params = vec![
        ParamSpec::new("vision_model.class_embedding", [hidden]),
        // One row more than patches: the class token's.
        ParamSpec::new("vision_model.positional_embedding_vlm", [num_patches + 1, hidden]),
        ParamSpec::new("vision_model.patch_embedding.linear.weight", [hidden, patch_values]),
    ];
    let mut with_bias = |name: &str, dims: &[usize]| {
        params.push(ParamSpec::new(format!("vision_model.{name}.weight"), dims));
        params.push(ParamSpec::new(format!("vision_model.{name}.bias"), [dims[0]]));
    };
    with_bias("layernorm_pre", &[hidden]);
    with_bias("layernorm_post", &[hidden]);
    for layer_index in 0..vision.num_layers {
        let layer = |name: &str| format!("model.layers.{layer_index}.{name}");
        with_bias(&layer("input_layernorm"), &[hidden]);
        with_bias(&layer("post_attention_layernorm"), &[hidden]);
        for projection in ["q_proj", "k_proj", "v_proj", "o_proj"] {
            with_bias(&layer(&format!("self_attn.{projection}")), &[hidden, hidden]);
        }
        with_bias(&layer("mlp.fc1"), &[vision.intermediate_size, hidden]);
        with_bias(&layer("mlp.fc2"), &[hidden, vision.intermediate_size]);
    }
    let shuffled = (hidden as f64 / vision.pixel_shuffle_ratio.powi(2)).round() as usize;
    let [input, output] = [vision.projector_input_dim, vision.projector_output_dim];
    params.push(ParamSpec::new("vision_model.vision_adapter.mlp.fc1.weight", [input, shuffled]));
    params.push(ParamSpec::new("vision_model.vision_adapter.mlp.fc2.weight", [output, input]));
    params.push(ParamSpec::new("multi_modal_projector.linear_1.weight", [text_hidden_size, vision.vision_output_dim]));
    params
}
