//! What a rank holds in memory during a step, worked out from shapes: what is kept between the passes, and the most that
//! lives beside it while something computes.
//!
//! The sums name the tensors of the model's `attention.rs`, `experts.rs` and `head.rs` that live at one time. Whoever changes
//! how long one of them lives there, changes its sum here. On an H200 such a sum and the account of the device agreed to a
//! few parts in a thousand.

use scout_core::{ByteCount, Projection};
use scout_device::cuda::Choice;
use scout_device::cuda::dnn::{self, AttentionShape, SumOrder};
use scout_kernels::{cross_entropy, lora};
use scout_model::{Keep, Keeping, LoraSettings, ModelConfig};

use crate::machine::{ComputeType, Kind};

/// From the one that keeps the most.
pub const KEEPS: [Keep; 3] = [Keep::Everything, Keep::AllButGateUp, Keep::InputOnly];

/// Predicted bytes on each rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryPlan {
    pub shard: ByteCount,
    pub gathered: ByteCount,
    /// Where rows for experts that stay with their ranks arrive, and results come back. Not counted on the host.
    pub arriving: ByteCount,
    /// Adapter, its gradient and moments; or moments and gradients of the parts of trained weights, and the whole
    /// gradients that are being made or under way.
    pub trained: ByteCount,
    pub activations: Activations,
    /// Scratch memory of libraries.
    pub workspace: ByteCount,
    /// What they take beside it where several GPUs work together.
    pub libraries: ByteCount,
    pub budget: Option<ByteCount>,
}

/// Of the largest run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Activations {
    /// From the forward pass to the backward pass.
    pub kept: ByteCount,
    /// Beside that while a block or the head computes, at most.
    pub at_work: ByteCount,
}

impl Activations {
    pub fn most(self) -> ByteCount {
        self.kept + self.at_work
    }
}

impl MemoryPlan {
    /// As if everything were at its most at one time. It is not quite: what that leaves over, fills the gaps between blocks
    /// of different sizes.
    pub fn total(&self) -> ByteCount {
        let activations = self.activations.most();
        let held = [self.shard, self.gathered, self.arriving, self.trained];
        held.into_iter().chain([activations, self.workspace, self.libraries]).sum()
    }

    /// What is left for all that a step takes out of working memory: without a budget as much as it needs.
    pub fn working(&self) -> ByteCount {
        let all = self.budget.unwrap_or(self.total());
        ByteCount(all.0.saturating_sub((self.shard + self.gathered + self.arriving + self.libraries).0))
    }

    pub fn fits(&self) -> bool {
        self.budget.is_none_or(|budget| self.total() <= budget)
    }
}

/// The largest flat run of several, as far as memory is concerned: none has more of any of these.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LargestBatch {
    pub num_rows: usize,
    pub num_tokens: usize,
    pub longest_row: usize,
}

impl LargestBatch {
    /// A run of rows of these lengths.
    pub fn of(lengths: impl IntoIterator<Item = usize>) -> LargestBatch {
        lengths.into_iter().fold(LargestBatch::default(), |batch, length| LargestBatch {
            num_rows: batch.num_rows + 1,
            num_tokens: batch.num_tokens + length,
            longest_row: batch.longest_row.max(length),
        })
    }

    /// What neither of the two exceeds.
    pub fn or(self, other: LargestBatch) -> LargestBatch {
        LargestBatch {
            num_rows: self.num_rows.max(other.num_rows),
            num_tokens: self.num_tokens.max(other.num_tokens),
            longest_row: self.longest_row.max(other.longest_row),
        }
    }
}

/// A pass forward and back.
#[derive(Debug, Clone, Copy)]
pub struct PassShape<'a> {
    pub config: &'a ModelConfig,
    pub lora: &'a LoraSettings,
    pub drops: bool,
    /// Layers that are walked back, the last ones.
    pub num_kept_layers: usize,
    pub batch: LargestBatch,
    pub kind: Kind,
    pub compute: ComputeType,
    pub choice: Choice,
    /// Ranks whose rows the experts of this one compute: itself, or all where experts stay with their ranks. Then all of them
    /// may send all that they have.
    pub num_sources: usize,
}

/// Bytes of one token in tensors of these widths: the model's, all query heads, all key heads, an expert's.
#[derive(Debug, Clone, Copy)]
struct Widths {
    d: u64,
    q: u64,
    k: u64,
    f: u64,
}

/// Of rows that come to experts of a rank, how many times as many are kept as it sends: over all layers uneven routing evens
/// out.
const ROOM_FOR_ROWS: f64 = 1.25;
/// Context and NCCL, on each of several GPUs. Two H200 held 2.1 GiB beside what the arenas hold.
const OF_SEVERAL_GPUS: ByteCount = ByteCount(5 << 29);
/// Of it what a plan counts for NCCL's collectives. What they take of GPUs that are there is seen before a plan is made.
pub const COUNTED_FOR_NCCL: ByteCount = ByteCount(1 << 29);
/// An f32 or a u32 for each token.
const NUMBER: u64 = 4;
/// Of a batch itself: ids, positions and three names, and of every scored position its row, token and weight.
const OF_BATCH: u64 = 8 * NUMBER;

impl PassShape<'_> {
    /// Every position may be scored.
    pub fn activations(&self, keeping: impl Into<Keeping>) -> Activations {
        let keeping = keeping.into();
        let tokens = self.batch.num_tokens as u64;
        let kept_of = |layer| self.kept_of_layer(layer, keeping.of_layer(layer));
        let kept: u64 = self.kept_layers().map(kept_of).sum::<u64>() + OF_BATCH;
        // Those that keep least have the most at work.
        let keep = keeping.least;
        // When the last layer has done its experts' way back, what they kept is gone.
        let last = match keeping.of_layer(self.config.num_layers.saturating_sub(1)) {
            // Of rows that came to its experts there may have been no room to keep any.
            Keep::Everything if self.num_sources > 1 => self.kept_of_experts() + self.kept_of_shared(),
            Keep::Everything => self.kept_of_experts() + self.kept_of_wide(),
            Keep::AllButGateUp | Keep::InputOnly => self.kept_of_experts(),
        };
        let of_attention = self.attention_backward(keep).saturating_sub(last);
        let of_blocks = self.forward(keep).max(self.experts_backward(keep)).max(of_attention);
        let (of_blocks, of_head) = (of_blocks * tokens, self.head().0);
        let at_work = match self.kind {
            Kind::Host => of_blocks.max(of_head),
            // What blocks have freed lies in gaps between what they kept, into which the head's larger tensors do not fit. With
            // the larger of the two alone, a run that had 121 MiB free found no place for 98.
            Kind::Gpu => of_blocks + of_head,
        };
        Activations { kept: ByteCount(kept * tokens), at_work: ByteCount(at_work) }
    }

    /// On the host everything comes out of tensors.
    pub fn workspace(&self) -> ByteCount {
        if self.kind == Kind::Host {
            return ByteCount(0);
        }
        let widest = self.of_all_sources(2 * self.widths().f);
        let largest = ByteCount(widest * self.batch.num_tokens as u64).max(self.logits());
        let of_products = self.choice.scratch(largest);
        // The library's own stays where it is while attention and adapters work.
        let beside_others = Choice::First.scratch(ByteCount(0)) + self.of_attention_by_cudnn().max(self.of_adapters());
        of_products.max(beside_others)
    }

    /// For the driver's context and its peers, and for NCCL, whose channels have buffers for each rank.
    pub fn libraries(&self, world_size: usize) -> ByteCount {
        match self.kind {
            Kind::Gpu if world_size > 1 => OF_SEVERAL_GPUS,
            Kind::Gpu | Kind::Host => ByteCount(0),
        }
    }

    fn of_attention_by_cudnn(&self) -> ByteCount {
        let ModelConfig { num_heads: query, num_kv_heads: kv, head_dim: size, .. } = *self.config;
        let order = if self.choice == Choice::First { SumOrder::Fixed } else { SumOrder::Any };
        let LargestBatch { num_rows, num_tokens, longest_row } = self.batch;
        let shape = AttentionShape::new(dnn::Heads { query, kv, size }, num_rows, longest_row, order);
        match (self.compute, shape) {
            // Where it would take more, our own kernels take its place, which need 8 bytes for each query of each head.
            (ComputeType::Bf16, Ok(shape)) => dnn::backward_scratch(&shape, num_tokens).min(dnn::most_scratch(order)),
            (ComputeType::F32, _) | (_, Err(_)) => ByteCount(0),
        }
    }

    /// Parts of sums on the way back through an adapter.
    fn of_adapters(&self) -> ByteCount {
        match self.compute {
            ComputeType::Bf16 => {
                let ModelConfig { hidden_size, intermediate_size, num_heads, num_kv_heads, head_dim, .. } =
                    *self.config;
                let of_heads = [num_heads, num_kv_heads, num_kv_heads].map(|heads| heads * head_dim);
                let scratch = |widths: &[usize]| lora::most_scratch(self.batch.num_tokens, widths, self.lora.rank);
                scratch(&of_heads).max(scratch(&[intermediate_size; 2])).max(scratch(&[hidden_size]))
            }
            ComputeType::F32 => ByteCount(0),
        }
    }

    fn kept_layers(&self) -> impl Iterator<Item = usize> {
        self.config.num_layers - self.num_kept_layers..self.config.num_layers
    }

    fn kept_of_layer(&self, layer_index: usize, keep: Keep) -> u64 {
        let input = self.widths().d;
        let attention = if keep == Keep::InputOnly { 0 } else { self.inside_of_attention(layer_index) };
        let wide = if keep == Keep::Everything { self.kept_of_wide() } else { 0 };
        input + attention + self.kept_of_experts() + wide
    }

    /// q, k, v, the context and what their way back needs of norms and softmax.
    fn inside_of_attention(&self, layer_index: usize) -> u64 {
        let Widths { q, k, .. } = self.widths();
        let (num_heads, num_kv_heads) = (self.config.num_heads as u64, self.config.num_kv_heads as u64);
        let is_normalised = self.config.rope_layers[layer_index] && self.config.use_qk_norm;
        let of_norms = if is_normalised { NUMBER * (num_heads + num_kv_heads) } else { 0 };
        let narrow = self.narrow(&[Projection::Q, Projection::K, Projection::V, Projection::O]);
        NUMBER + 2 * q + 2 * k + of_norms + NUMBER * num_heads + narrow
    }

    /// The input, which expert with which score and at which place, the norm, and products of the down adapters.
    fn kept_of_experts(&self) -> u64 {
        let narrow =
            self.narrow(&[Projection::SharedDown]) + self.of_all_sources(self.narrow(&[Projection::ExpertsDown]));
        self.widths().d + 5 * NUMBER + narrow
    }

    /// Gate and up of the shared and of the routed expert.
    fn kept_of_wide(&self) -> u64 {
        let routed = 2 * self.widths().f + self.narrow(&[Projection::ExpertsGateUp]);
        let room = ROOM_FOR_ROWS.min(self.num_sources as f64);
        self.kept_of_shared() + (room * routed as f64).ceil() as u64
    }

    fn kept_of_shared(&self) -> u64 {
        2 * self.widths().f + self.narrow(&[Projection::SharedGate, Projection::SharedUp])
    }

    /// Rows that come to experts of which there is room to keep gate and up.
    pub fn most_kept_rows(&self, keeping: Keeping) -> usize {
        let keeps = |layer: &usize| keeping.of_layer(*layer) == Keep::Everything;
        let room = ROOM_FOR_ROWS.min(self.num_sources as f64) * self.batch.num_tokens as f64;
        (self.kept_layers().filter(keeps).count() as f64 * room) as usize
    }

    /// Bytes for each token of this rank of what there is for each row of all that may come.
    fn of_all_sources(&self, bytes: u64) -> u64 {
        bytes * self.num_sources as u64
    }

    fn narrow(&self, projections: &[Projection]) -> u64 {
        let adapted = projections.iter().filter(|projection| self.adapts(**projection)).count() as u64;
        adapted * self.compute.dtype().size().0 * self.lora.rank as u64
    }

    /// The experts' forward pass, which holds more than attention's: both kinds of gate and up are alive to its end.
    fn forward(&self, keep: Keep) -> u64 {
        let Widths { d, f, .. } = self.widths();
        // Of layers that are not walked back nothing is kept, and this is there only while they compute.
        let is_kept = keep == Keep::Everything && self.num_kept_layers > 0;
        let wide = match self.num_sources {
            1 if is_kept => 0,
            1 => self.kept_of_wide(),
            // There may be no room for what comes; then it is there only while this layer computes.
            _ => self.of_all_sources(2 * f) + if is_kept { 0 } else { self.kept_of_wide() },
        };
        let logits = NUMBER * self.config.num_experts as u64;
        // What the adapter adds to what goes through the experts, before the shared result is there.
        let adapts_down = self.adapts(Projection::ExpertsDown);
        let at_down = if adapts_down { d + f + self.of_all_sources(f + 2 * d) } else { 0 };
        // The normed input, both hidden products, the scaled rows, both results and their sum. Rows that arrive and results
        // that come back have a place of their own.
        let at_end = 4 * d + f + self.of_all_sources(d + f);
        // The first of them, and what the adapter adds to gate and up.
        let at_gate_up =
            if self.adapts(Projection::ExpertsGateUp) { 3 * d + f + self.of_all_sources(2 * f) } else { 0 };
        wide + logits + at_end.max(at_gate_up).max(at_down)
    }

    fn experts_backward(&self, keep: Keep) -> u64 {
        let Widths { d, f, .. } = self.widths();
        let of_routed = self.of_all_sources(2 * f + self.narrow(&[Projection::ExpertsGateUp]));
        let [shared_again, routed_again] = match keep {
            Keep::Everything if self.num_sources == 1 => [0; 2],
            Keep::Everything => [0, of_routed],
            Keep::AllButGateUp | Keep::InputOnly => [self.kept_of_shared(), of_routed],
        };
        // Made again where somebody is trained on it: an adapter, or the weights of a run without adapters.
        let trains_weights = self.lora.projections.is_empty();
        let hidden_again = |projection| if trains_weights || self.adapts(projection) { f } else { 0 };
        // Dropout drops from the hidden product, and from what goes through gate and up: a sum, its next part, that dropped.
        let (dropped_hidden, of_input) = if self.drops { (f, 3 * d) } else { (0, d) };
        // The gradients of the hidden product and of gate and up, and the product again.
        let at_shared = f + 2 * f + hidden_again(Projection::SharedDown) + dropped_hidden;
        // That of gate and up, and the gradient of the shared expert's input.
        let at_shared_input = 2 * f + of_input;
        let beside_input = if self.adapts(Projection::ExpertsGateUp) { d } else { 0 };
        // The same two gradients, and the product again or the gradient of the input, where an adapter adds to that, and reads
        // the scaled rows after that.
        let of_rows = f + 2 * f + hidden_again(Projection::ExpertsDown).max(d + beside_input);
        let [before, during, after] = match self.num_sources {
            // Then gathered rows beside the shared gradient.
            1 => [at_shared.max(at_shared_input), 2 * d + of_rows, 0],
            // Rows are under way beside the first half, and what that found waits until results are. Then these are held.
            _ => {
                [at_shared + 2 * d, 2 * f + d + self.of_all_sources(of_rows), at_shared_input + self.of_all_sources(d)]
            }
        };
        // Both gradients, the router's, the norm's.
        let at_end = 4 * d;
        let (gradient, normed) = (d, d);
        gradient + normed + (shared_again + before).max(routed_again + during).max(after).max(at_end)
    }

    /// Beside what attention kept, when it kept something.
    fn attention_backward(&self, keep: Keep) -> u64 {
        let Widths { d, q, k, .. } = self.widths();
        let of_input = if self.drops { 3 * d } else { d };
        let (inside, again) = match keep {
            Keep::Everything | Keep::AllButGateUp => (0, 0),
            // The norm, and what is dropped of it; q and k before they are placed.
            Keep::InputOnly => {
                (self.inside_of_attention(self.config.num_layers.saturating_sub(1)), of_input + d + q + k)
            }
        };
        // Of the context: what goes through the adapter, that dropped, and what is dropped of the context.
        let dropped = if self.drops { 3 * q } else { 0 };
        // Gradients of the context, of q and k twice and of v, the norm, the gradient of its result and its own.
        let at_end = q + 2 * (q + k) + k + d + of_input + d;
        let sums_of_rows = if self.compute == ComputeType::F32 { NUMBER * self.config.num_heads as u64 } else { 0 };
        d + inside + again.max(dropped).max(at_end + sums_of_rows)
    }

    /// The last output, its scored rows, their norm and its gradient, with the logits; or with the gradients that come of it.
    fn head(&self) -> ByteCount {
        let (d, tokens) = (self.widths().d, self.batch.num_tokens as u64);
        let rows = (4 * d + 2 * NUMBER) * tokens;
        ByteCount(rows) + self.logits().max(ByteCount(2 * d * tokens))
    }

    fn logits(&self) -> ByteCount {
        let (num_rows, vocabulary) = (self.batch.num_tokens, self.config.vocab_size);
        match self.kind {
            Kind::Host => cross_entropy::logits_on_host(num_rows, vocabulary),
            Kind::Gpu => cross_entropy::logits_on_gpu(num_rows, vocabulary, self.compute.dtype()),
        }
    }

    fn adapts(&self, projection: Projection) -> bool {
        self.lora.projections.contains(&projection)
    }

    fn widths(&self) -> Widths {
        let ModelConfig { hidden_size, intermediate_size, num_heads, num_kv_heads, head_dim, .. } = *self.config;
        let bytes = |width: usize| self.compute.dtype().size().0 * width as u64;
        Widths {
            d: bytes(hidden_size),
            q: bytes(num_heads * head_dim),
            k: bytes(num_kv_heads * head_dim),
            f: bytes(intermediate_size),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use scout_core::Projection::{ExpertsGateUp, K, O, Q, SharedDown, SharedGate, SharedUp, V};

    fn lora(projections: &[Projection]) -> LoraSettings {
        LoraSettings { rank: 8, alpha: 16.0, use_rslora: false, projections: projections.iter().copied().collect() }
    }

    fn scout(num_layers: usize) -> ModelConfig {
        let rope_layers = ModelConfig::scout().rope_layers[..num_layers].to_vec();
        ModelConfig { num_layers, rope_layers, ..ModelConfig::scout() }
    }

    /// Whose head needs less than its blocks.
    fn of_few_words(num_layers: usize) -> ModelConfig {
        ModelConfig { vocab_size: 1000, ..scout(num_layers) }
    }

    fn pass<'a>(config: &'a ModelConfig, lora: &'a LoraSettings, num_rows: usize, longest_row: usize) -> PassShape<'a> {
        let batch = LargestBatch { num_rows, num_tokens: num_rows * longest_row, longest_row };
        let (kind, compute, choice) = (Kind::Gpu, ComputeType::Bf16, Choice::Timed);
        PassShape {
            config,
            lora,
            drops: false,
            num_kept_layers: config.num_layers,
            batch,
            kind,
            compute,
            choice,
            num_sources: 1,
        }
    }

    fn near(found: ByteCount, gib: f64, tolerance: f64) {
        let found = found.as_f64() / 2f64.powi(30);
        assert!((found - gib).abs() <= tolerance * gib, "{found} GiB, expected {gib}");
    }

    #[test]
    fn four_layers_need_what_their_tensors_add_up_to() {
        // 8 x 2048 tokens, attention and shared expert adapted, everything kept.
        let (config, lora) = (scout(4), lora(&[Q, K, V, O, SharedGate, SharedUp, SharedDown]));
        let pass = pass(&config, &lora, 8, 2048);
        let activations = pass.activations(Keep::Everything);
        near(activations.kept, 6.777, 0.001);
        // Five tensors of the model's width and three of an expert's, in the last layer's experts on the way back; and
        // the head's.
        let of_blocks = 16_384 * 2 * (5 * 5120 + 3 * 8192);
        assert_eq!(activations.at_work.0, of_blocks + pass.head().0);
        let on_the_host = PassShape { kind: Kind::Host, ..pass };
        assert_eq!(on_the_host.activations(Keep::Everything).at_work.0, of_blocks.max(on_the_host.head().0));
        // What an H200 held: the trial of the head's product.
        near(pass.workspace(), 1.13, 0.005);
    }

    #[test]
    fn what_a_layer_keeps_is_the_sum_of_its_tensors() {
        // A token of Scout in bf16: inputs, q, k, v and context; gate and up of two experts; f32 for norms, softmax, routing.
        let config = scout(1);
        let (bare, adapted) = (lora(&[]), lora(&[Q, SharedUp, SharedDown]));
        let inputs = 2 * 2 * 5120;
        let attention = 2 * (5120 + 1024 + 1024 + 5120) + 4 * (1 + 40 + 40 + 8);
        let (experts, wide) = (4 * 5, 2 * 4 * 8192);
        for (keep, expected, narrow) in [
            (Keep::Everything, inputs + attention + experts + wide, 3),
            (Keep::AllButGateUp, inputs + attention + experts, 2),
            (Keep::InputOnly, inputs + experts, 1),
        ] {
            let kept = |lora| pass(&config, lora, 1, 1000).activations(keep).kept.0;
            assert_eq!(kept(&bare), 1000 * (expected + OF_BATCH), "{keep:?}");
            assert_eq!(kept(&adapted) - kept(&bare), 1000 * narrow * 2 * 8, "{keep:?}");
        }
        // A layer without rotation has no norms of q and k.
        let config = scout(4);
        let four = pass(&config, &bare, 1, 1000).activations(Keep::AllButGateUp).kept.0;
        assert_eq!(four, 1000 * (4 * (inputs + attention + experts) - 4 * 48 + OF_BATCH));
    }

    #[test]
    fn rows_of_other_ranks_are_counted_where_they_may_come() {
        let (config, lora) = (of_few_words(2), lora(&[Q, SharedGate]));
        let alone = pass(&config, &lora, 1, 1000);
        let (d, f) = (2 * 5120, 2 * 8192);
        for (num_sources, room) in [(2, 1.25), (4, 1.25)] {
            let several = PassShape { num_sources, ..alone };
            let n = num_sources as u64;
            let [of_one, of_several] = [alone, several].map(|pass| pass.activations(Keep::Everything));
            // Two layers keep gate and up of a quarter more rows than they send.
            assert_eq!(of_several.kept.0 - of_one.kept.0, 1000 * 2 * f / 2);
            assert_eq!(several.most_kept_rows(Keep::Everything.into()), (2.0 * room * 1000.0) as usize);
            assert_eq!(several.most_kept_rows(Keep::AllButGateUp.into()), 0);
            assert_eq!(several.most_kept_rows(Keeping::mixed(Keep::AllButGateUp, 1, 2)), 1250);
            // On the way back gate and up are made again, for lack of room, beside two gradients and that of the input, of all
            // rows; and beside the gradients of the block and of the shared gate and up, the norm, and rows that set out.
            let at_work = 3 * d + 2 * f + n * (2 * f + 3 * f + d);
            assert_eq!(of_several.at_work.0, 1000 * at_work + several.head().0, "{num_sources}");
        }
    }

    #[test]
    fn less_kept_is_less_in_all_and_grows_with_layers_alone() {
        for num_layers in [1, 4, 48] {
            let (config, lora) = (of_few_words(num_layers), lora(&[Q, SharedGate]));
            let pass = pass(&config, &lora, 4, 1024);
            let [most, some, least] = KEEPS.map(|keep| pass.activations(keep));
            assert!(most.most() > some.most() && some.most() > least.most(), "{most:?} {some:?} {least:?}");
            assert!(most.at_work < some.at_work, "gate and up are made again beside the rest");
            let half = PassShape { num_kept_layers: num_layers / 2, ..pass };
            assert!(half.activations(Keep::Everything).kept < most.kept);
        }
    }

    #[test]
    fn dropout_adapted_experts_and_f32_need_more_at_work() {
        // Experts that are wide for their model.
        let config = ModelConfig { intermediate_size: 5 * 8192, ..of_few_words(2) };
        let (shared, all) = (lora(&[SharedDown]), lora(&Projection::ALL));
        let plain = pass(&config, &shared, 4, 1024);
        let at_work = |pass: &PassShape| pass.activations(Keep::Everything).at_work;
        assert!(at_work(&PassShape { drops: true, ..plain }) > at_work(&plain));
        assert!(at_work(&PassShape { lora: &all, ..plain }) > at_work(&plain));
        let in_f32 = PassShape { compute: ComputeType::F32, ..plain };
        assert!(at_work(&in_f32).0 > 19 * at_work(&plain).0 / 10);
        assert_eq!(PassShape { kind: Kind::Host, ..in_f32 }.workspace(), ByteCount(0));
    }

    #[test]
    fn adapters_of_gate_and_up_need_one_more_row_of_the_model_beside_the_gradient_of_their_input() {
        let (config, lora) = (scout(2), lora(&[ExpertsGateUp]));
        let pass = pass(&config, &lora, 8, 2048);
        let of_blocks = 16_384 * 2 * (6 * 5120 + 3 * 8192);
        assert_eq!(pass.activations(Keep::Everything).at_work.0, of_blocks + pass.head().0);
    }

    #[test]
    fn sums_in_a_fixed_order_cost_the_square_of_the_longest_row_and_spare_trials() {
        let (config, lora) = (scout(2), lora(&[]));
        let plain = pass(&config, &lora, 8, 2048);
        let fixed = PassShape { choice: Choice::First, ..plain };
        let scores = 8 * 40 * 2048 * 2048 * 2;
        assert!(fixed.workspace().0 > scores && fixed.workspace().0 < scores + (1 << 30), "{}", fixed.workspace());
        let short = pass(&config, &lora, 1, 128);
        let fixed = PassShape { choice: Choice::First, ..short };
        assert!(fixed.workspace() < short.workspace());
    }
}
