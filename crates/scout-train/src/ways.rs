//! The ways in which a run can be held in memory on several GPUs, and the fastest of them: which layers every rank keeps
//! whole, what blocks keep for the way back, in how many runs an update is computed, how far gathers run ahead. On one GPU
//! the same without gathers. A pure function of shapes, batch, number of ranks and memory.

use scout_comm::gpu::RowsSize;
use scout_core::{ByteCount, UnitId};
use scout_device::cuda::Choice;
use scout_model::{Keep, Keeping, ModelConfig, UnitPlan, lies_evenly};
use scout_shard::{ShardPlan, ring_bytes};

use crate::machine::{ComputeType, Hardware, Kind};
use crate::memory::{KEEPS, MemoryPlan, PassShape};
use crate::rates::{END_OF_STEP, Link, MEMORY, REDUCE};
use crate::runs::Rows;
use crate::schedules::Schedules;
use crate::timeline::{self, Walked};
use crate::times::{Times, Work};

/// Sharded units that are gathered ahead of the block in use: more than a layer gains nothing.
pub const WHOLE_LAYER: usize = 4;
/// The same where no times are known.
pub const LOOKAHEAD: usize = 2;
/// Less where memory is short.
const LOOKAHEADS: [usize; 5] = [WHOLE_LAYER, 3, 2, 1, 0];
/// What the table shows of the ways, the fastest of them.
const MOST_SHOWN: usize = 12;
/// Between two ways of keeping so many steps are tried, each with some layers more that keep more.
const STEPS_OF_KEEPING: usize = 8;

/// What every rank keeps whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resident {
    pub num_layers: usize,
    /// Of so many other layers what experts multiply last, three tenths of a layer: for memory that no whole layer fits into.
    pub num_downs: usize,
    pub embedding: bool,
    pub head: bool,
}

/// How tokens and the experts that compute them come together on several ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Experts {
    /// Experts that are not whole on every rank are gathered.
    Come,
    /// Each rank keeps its own, and rows go to them and come back.
    Stay,
}

impl Experts {
    /// What happens to them, in a word.
    pub fn word(self) -> &'static str {
        match self {
            Experts::Come => "come",
            Experts::Stay => "stay",
        }
    }
}

/// Which of the two a run may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MayBe {
    Only(Experts),
    Either,
}

impl MayBe {
    fn all(self) -> impl Iterator<Item = Experts> {
        [Experts::Come, Experts::Stay].into_iter().filter(move |experts| match self {
            MayBe::Only(only) => *experts == only,
            MayBe::Either => true,
        })
    }
}

/// One way to hold a run, with what it costs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Way {
    pub keep: Keeping,
    pub experts: Experts,
    pub resident: Resident,
    /// Flat runs in which a rank computes its rows of an update; their sum is the same in any number.
    pub runs: usize,
    /// Tokens of the largest run of any rank.
    pub most_rows: usize,
    /// Rows that come to experts, in all layers, of which gate and up are kept.
    pub most_kept_rows: usize,
    pub lookahead: usize,
    pub memory: MemoryPlan,
    /// Unknown on the host.
    pub time: Option<StepTime>,
}

/// Predicted for the largest update, if its runs are even.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepTime {
    pub seconds: f64,
    /// Of it, while the busiest rank only waits for others.
    pub exposed: f64,
    /// Of one rank.
    pub num_tokens: usize,
}

impl StepTime {
    pub fn tokens_per_second(&self) -> f64 {
        self.num_tokens as f64 / self.seconds
    }

    pub fn exposed_share(&self) -> f64 {
        self.exposed / self.seconds
    }
}

impl Resident {
    pub const NOTHING: Resident = Resident { num_layers: 0, num_downs: 0, embedding: false, head: false };

    pub fn everything(num_layers: usize) -> Resident {
        Resident { num_layers, num_downs: 0, embedding: true, head: true }
    }

    /// Spread evenly over the depth, the first among them: between two sharded layers lies as much arithmetic as can be,
    /// and the first layer is there when a step begins.
    pub fn has_layer(&self, layer_index: usize, num_layers: usize) -> bool {
        lies_evenly(layer_index, self.num_layers, num_layers)
    }

    /// By unit. Of layers whose experts stay with their ranks all else is whole.
    pub fn units(&self, units: &UnitPlan, num_layers: usize, experts: Experts) -> Vec<bool> {
        let mut resident = vec![false; units.units().len()];
        resident[units.embedding().0] = self.embedding;
        resident[units.head().0] = self.head;
        let layers = |are_whole| (0..num_layers).filter(move |index| self.has_layer(*index, num_layers) == are_whole);
        for layer in layers(true).map(|index| units.layer(index)) {
            for id in [layer.attention, layer.shared] {
                resident[id.0] = true;
            }
            for id in [layer.gate_up, layer.down] {
                resident[id.0] = experts == Experts::Come;
            }
        }
        let others: Vec<usize> = layers(false).collect();
        for (nth, &index) in others.iter().enumerate() {
            // Evenly over them; where it can be not the first, which a pass finds gathered when it begins.
            let turned = (nth + others.len() / 2) % others.len();
            resident[units.layer(index).down.0] = lies_evenly(turned, self.num_downs, others.len());
        }
        resident
    }
}

/// What the ways of one run have in common.
#[derive(Debug, Clone, Copy)]
pub struct Run<'a> {
    pub units: &'a UnitPlan,
    pub schedules: &'a Schedules,
    pub hardware: Hardware,
    /// With the largest micro-batch.
    pub pass: PassShape<'a>,
    pub rows: Rows,
    pub link: Link,
    pub experts: MayBe,
    /// As of times, where experts stay.
    pub busiest_share: f64,
    pub num_adapter_elements: usize,
    /// Adapter, or trained weights, with all that goes with them.
    pub trained: ByteCount,
    pub budget: Option<ByteCount>,
}

impl Run<'_> {
    pub fn shards(&self, resident: &Resident, experts: Experts, lookahead: usize) -> ShardPlan {
        let whole = resident.units(self.units, self.pass.config.num_layers, experts);
        let plan = ShardPlan::new(self.units.units(), self.hardware.world_size, &|id: UnitId| whole[id.0], lookahead)
            .stored_as(self.hardware.compute.dtype());
        let plan = if experts == Experts::Stay { plan.leaving_experts() } else { plan };
        match self.hardware.kind {
            Kind::Gpu if self.link.brings_others_alone => plan.reading_in_place(),
            Kind::Gpu | Kind::Host => plan,
        }
    }

    /// From the way that keeps the most, everything else being given; micro-batches are computed as they are dealt.
    pub fn ways_of_keeping(&self, resident: Resident, lookahead: usize) -> Vec<Way> {
        let runs = self.rows.num_micro_batches;
        let of_experts = |experts| {
            let held = self.held(resident, experts, lookahead);
            KEEPS.map(|keep| self.way(Choices { keep: keep.into(), experts, runs }, &held))
        };
        self.experts.all().flat_map(of_experts).collect()
    }

    /// Where nothing is gathered: micro-batches as they are dealt, or merged into fewer runs. The fastest come first.
    pub fn ways_of_merging(&self, resident: Resident, lookahead: usize) -> Vec<Way> {
        let held = self.held(resident, Experts::Come, lookahead);
        let merges = |choices: &Choices| choices.runs <= self.rows.num_micro_batches;
        self.fastest_first(self.choices(Experts::Come).filter(merges).map(|choices| self.way(choices, &held)).collect())
    }

    /// For each way of keeping and each number of runs the fastest way that fits, or the smallest where none does; and the
    /// fastest where some layers keep more. The fastest come first. Where `num_layers` is given so many are resident.
    pub fn ways_on_several_gpus(&self, num_layers: Option<usize>) -> Vec<Way> {
        // Where runs of the program must agree bit by bit, an update is computed as it is dealt: in how many flat runs would
        // otherwise follow from memory and links, and the order of sums from that.
        let is_fixed = self.pass.choice == Choice::First;
        let may_be = |choices: &Choices| !is_fixed || choices.runs == self.rows.num_micro_batches;
        let ways = self.experts.all().flat_map(|experts| {
            let held = self.ways_of_holding(num_layers, experts);
            let of_choices = |choices| {
                std::iter::once(self.fastest(choices, &held))
                    .chain(self.fastest_mixture(choices, &held))
                    .collect::<Vec<_>>()
            };
            self.choices(experts).filter(may_be).flat_map(of_choices).collect::<Vec<_>>()
        });
        self.fastest_first(ways.collect())
    }

    /// Those that do not fit come last. Of all that compute micro-batches as they are dealt, the best is always among them.
    fn fastest_first(&self, mut ways: Vec<Way>) -> Vec<Way> {
        let seconds = |way: &Way| way.time.map_or(0.0, |time| time.seconds);
        ways.sort_by(|a, b| match (a.memory.fits(), b.memory.fits()) {
            (true, true) => seconds(a).total_cmp(&seconds(b)),
            (false, false) => a.memory.total().cmp(&b.memory.total()),
            (a_fits, b_fits) => b_fits.cmp(&a_fits),
        });
        let is_as_dealt = |way: &&Way| way.runs == self.rows.num_micro_batches;
        let as_dealt = ways.iter().skip(MOST_SHOWN).find(is_as_dealt).copied();
        ways.truncate(MOST_SHOWN);
        let is_among_them = ways.iter().any(|way| is_as_dealt(&way));
        ways.extend(as_dealt.filter(|_| !is_among_them));
        ways
    }

    /// Where some layers keep more than what all of them keep.
    fn fastest_mixture(&self, choices: Choices, held: &[Vec<Held>]) -> Option<Way> {
        if choices.keep.least == Keep::Everything {
            return None;
        }
        let num_layers = self.pass.config.num_layers;
        let mut nums_more: Vec<usize> =
            (1..STEPS_OF_KEEPING).map(|step| step * num_layers / STEPS_OF_KEEPING).collect();
        nums_more.dedup();
        nums_more.retain(|more| *more > 0);
        let mixed = |num_more| Choices { keep: Keeping::mixed(choices.keep.least, num_more, num_layers), ..choices };
        let ways = nums_more.into_iter().map(|num_more| self.fastest(mixed(num_more), held));
        let seconds = |way: &Way| way.time.map_or(f64::INFINITY, |time| time.seconds);
        ways.filter(|way| way.memory.fits()).min_by(|a, b| seconds(a).total_cmp(&seconds(b)))
    }

    fn fastest(&self, choices: Choices, held: &[Vec<Held>]) -> Way {
        let fixed = self.memory(choices, ByteCount(0), ByteCount(0));
        let work = self.work(choices);
        let fits = |held: &&Held| MemoryPlan { shard: held.shard, gathered: held.gathered, ..fixed }.fits();
        let fitting: Vec<&Held> = held.iter().filter_map(|farthest_first| farthest_first.iter().find(fits)).collect();
        let is_best = |held: &&Held| !fitting.iter().any(|other| other.is_more_than(held));
        let timed =
            fitting.iter().copied().filter(is_best).map(|held| (self.step(choices, &held.shards, &work).seconds, held));
        let fastest = timed.min_by(|(a, _), (b, _)| a.total_cmp(b)).map(|(_, held)| held);
        let smallest = || held.iter().flatten().min_by_key(|held| held.shard + held.gathered);
        let best = fastest.or_else(smallest).expect("there is a way to hold weights");
        self.way(choices, best)
    }

    /// For everything that may be resident and has room by itself, gathers that run less and less far ahead. The farther the
    /// faster, so only the first that fits is of interest.
    fn ways_of_holding(&self, num_layers: Option<usize>, experts: Experts) -> Vec<Vec<Held>> {
        let all = self.pass.config.num_layers;
        let (least, most) = num_layers.map_or((0, all), |written| (written, written));
        let layers = (least..=most).flat_map(|num_layers| {
            // More would be a whole layer. Where a number of layers is written, it is those and no more.
            let most_downs = if experts == Experts::Come { (most - num_layers).min(3) } else { 0 };
            (0..=most_downs).map(move |num_downs| Resident { num_layers, num_downs, ..Resident::NOTHING })
        });
        let ends = [(false, false), (true, false), (false, true), (true, true)];
        let resident = layers.flat_map(|layers| ends.map(|(embedding, head)| Resident { embedding, head, ..layers }));
        let smallest = Resident { num_layers: least, ..Resident::NOTHING };
        let room = self.budget.unwrap_or(ByteCount(u64::MAX));
        let has_room = |held: &Resident| *held == smallest || self.shards(held, experts, 0).kept_bytes() <= room;
        let resident = resident.filter(has_room);
        resident.map(|resident| LOOKAHEADS.map(|lookahead| self.held(resident, experts, lookahead)).into()).collect()
    }

    fn held(&self, resident: Resident, experts: Experts, lookahead: usize) -> Held {
        let shards = self.shards(&resident, experts, lookahead);
        let Schedules { train, evaluate, .. } = self.schedules;
        let gathered = match self.hardware.kind {
            Kind::Host => shards.gathered_peak(train),
            // One arena, with gaps between units of different sizes.
            Kind::Gpu => ring_bytes(&shards, &[train, evaluate]),
        };
        Held { resident, shard: shards.kept_bytes(), gathered, shards }
    }

    /// First micro-batches as they are dealt, which stay where nothing else is faster. Then other numbers of runs, from one
    /// up to one for each row, in steps of a half or a third, as far as that makes runs smaller.
    fn choices(&self, experts: Experts) -> impl Iterator<Item = Choices> {
        let (as_dealt, num_rows) = (self.rows.num_micro_batches, self.rows.trained.update.num_rows.max(1));
        let powers = std::iter::successors(Some(1_usize), |power| power.checked_mul(2));
        let steps = powers.take_while(|power| *power <= num_rows).flat_map(|power| [power, power + power / 2]);
        let mut all: Vec<usize> = steps.filter(|runs| *runs <= num_rows).chain([num_rows]).collect();
        all.dedup_by_key(|runs| num_rows.div_ceil(*runs));
        all.retain(|runs| *runs != as_dealt);
        all.insert(0, as_dealt);
        all.into_iter().flat_map(move |runs| KEEPS.map(|keep| Choices { keep: keep.into(), experts, runs }))
    }

    fn way(&self, choices: Choices, held: &Held) -> Way {
        let is_on_gpu = self.hardware.kind == Kind::Gpu;
        Way {
            keep: choices.keep,
            experts: choices.experts,
            resident: held.resident,
            runs: choices.runs,
            most_rows: self.rows.largest_run(choices.runs).num_tokens,
            most_kept_rows: self.pass_of(choices).most_kept_rows(choices.keep),
            lookahead: held.shards.lookahead(),
            memory: self.memory(choices, held.shard, held.gathered),
            time: is_on_gpu.then(|| self.step(choices, &held.shards, &self.work(choices))),
        }
    }

    fn memory(&self, choices: Choices, shard: ByteCount, gathered: ByteCount) -> MemoryPlan {
        let (keep, pass) = (choices.keep, self.pass_of(choices));
        let arriving = match (choices.experts, self.hardware.kind) {
            (Experts::Stay, Kind::Gpu) => {
                rows_size(pass.config, pass.batch.num_tokens, pass.compute).bytes(pass.num_sources)
            }
            _ => ByteCount(0),
        };
        MemoryPlan {
            shard,
            gathered,
            arriving,
            trained: self.trained,
            activations: pass.activations(keep),
            workspace: pass.workspace(),
            libraries: pass.libraries(self.hardware.world_size),
            budget: self.budget,
        }
    }

    /// Over the largest run.
    fn pass_of(&self, choices: Choices) -> PassShape<'_> {
        let num_sources = self.num_sources(choices.experts);
        PassShape { batch: self.rows.largest_run(choices.runs), num_sources, ..self.pass }
    }

    /// Ranks whose rows a rank's experts compute.
    fn num_sources(&self, experts: Experts) -> usize {
        match experts {
            Experts::Come => 1,
            Experts::Stay => self.hardware.world_size,
        }
    }

    /// Of each use of a unit by one run.
    fn work(&self, Choices { keep, experts, runs }: Choices) -> Vec<Work> {
        let (PassShape { config, lora, compute, .. }, update) = (self.pass, self.rows.trained.update);
        let (num_tokens, num_rows) = (update.num_tokens as f64, update.num_rows.max(1) as f64);
        let row_length = num_tokens / num_rows;
        let (num_sources, num_tokens) = (self.num_sources(experts), num_tokens / runs as f64);
        let busiest_share = if experts == Experts::Stay { self.busiest_share } else { 1.0 };
        let times = Times { config, lora, compute, keep, num_sources, busiest_share, num_tokens, row_length };
        times.of_order(self.units, &self.schedules.train)
    }

    fn step(&self, choices: Choices, shards: &ShardPlan, work: &[Work]) -> StepTime {
        let Walked { total, waited } = timeline::walks(shards, &self.schedules.train, work, self.link, choices.runs);
        // Gradients are on their way under the last backward pass; what is left to wait for is what all have updated.
        let reduce = self.reduce();
        StepTime {
            seconds: total + reduce + self.optimizer() + END_OF_STEP,
            exposed: waited + reduce,
            num_tokens: self.rows.trained.update.num_tokens,
        }
    }

    /// The new parameters of all ranks to everybody, in f32 and in bf16.
    fn reduce(&self) -> f64 {
        let world_size = self.hardware.world_size as f64;
        let remote = (world_size - 1.0) / world_size;
        6.0 * self.num_adapter_elements as f64 * remote / REDUCE
    }

    /// AdamW reads gradient and weight and two moments and writes three of them, and the weight in bf16.
    fn optimizer(&self) -> f64 {
        30.0 * self.num_adapter_elements as f64 / self.hardware.world_size as f64 / MEMORY
    }
}

/// How large exchanges are in which a rank sends at most so many rows.
pub fn rows_size(config: &ModelConfig, most_rows: usize, compute: ComputeType) -> RowsSize {
    let ModelConfig { num_experts, hidden_size: width, .. } = *config;
    RowsSize { num_experts, most_rows, width, dtype: compute.dtype() }
}

/// What is computed, whatever is resident.
#[derive(Debug, Clone, Copy)]
struct Choices {
    keep: Keeping,
    experts: Experts,
    runs: usize,
}

/// Weights as one way holds them.
struct Held {
    resident: Resident,
    shards: ShardPlan,
    shard: ByteCount,
    gathered: ByteCount,
}

impl Held {
    /// Whether it holds as many of all as the other, reaches as far ahead, and has more of one of these.
    fn is_more_than(&self, other: &Held) -> bool {
        let of = |held: &Held| {
            let Resident { num_layers, num_downs, embedding, head } = held.resident;
            [num_layers, num_downs, usize::from(embedding), usize::from(head), held.shards.lookahead()]
        };
        let (own, others) = (of(self), of(other));
        own != others && own.iter().zip(&others).all(|(own, other)| own >= other)
    }
}
