//! The plan for any number of ranks, printed by a process that is alone: its numbers worked out once more from shapes.

use std::fs;
use std::time::Duration;

use scout_core::DType;
use scout_tests::run_in;
use serde_json::Value;

use crate::rig::Toy;

const LIMIT: Duration = Duration::from_secs(60);
const WORLDS: [u64; 5] = [1, 2, 3, 8, 64];
const F32: u64 = 4;
/// Units that the plan gathers ahead.
const LOOKAHEAD: usize = 2;

struct Planner {
    toy: Toy,
}

impl Planner {
    fn new() -> Planner {
        let toy = Toy::new(DType::F32);
        let config = format!(
            "model_name_or_path: {}\ndataset: toy_messages\ndataset_dir: {}\ntemplate: llama4\ncutoff_len: 64\n\
             lora_rank: 4\nlora_target: all\noutput_dir: none\n",
            toy.model().display(),
            toy.model().join("data").display()
        );
        fs::write(toy.model().join("run.yaml"), config).unwrap();
        Planner { toy }
    }

    fn plan(&self, world: u64, more: &[&str]) -> String {
        let world = world.to_string();
        let arguments = [&["plan", "run.yaml", "--world", world.as_str()], more].concat();
        let ended = run_in(&self.toy.model(), &arguments, LIMIT);
        assert_eq!(ended.code, Some(0), "{arguments:?}\n{}", ended.stderr);
        ended.stdout
    }

    fn json(&self, world: u64, more: &[&str]) -> Value {
        serde_json::from_str(&self.plan(world, &[&["--json"], more].concat())).unwrap()
    }
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value} is a number"))
}

/// The blocks of an update in their order: forward through two layers, the head, and back again.
fn expected_order() -> Vec<Vec<String>> {
    let attention = |layer: usize| vec![format!("layers.{layer}.attention")];
    let experts = |layer: usize| ["shared", "gate_up", "down"].map(|part| format!("layers.{layer}.{part}")).to_vec();
    let mut order = vec![vec!["embedding".to_string()]];
    order.extend((0..2).flat_map(|layer| [attention(layer), experts(layer)]));
    order.push(vec!["head".to_string()]);
    order.extend((0..2).rev().flat_map(|layer| [experts(layer), attention(layer)]));
    order
}

#[test]
fn bytes_of_every_number_of_ranks_follow_from_shapes() {
    let planner = Planner::new();
    for world in WORLDS {
        let plan = planner.json(world, &[]);
        assert_eq!((number(&plan["world"]), number(&plan["lookahead"])), (world, LOOKAHEAD as u64));
        let units = plan["units"].as_array().unwrap();
        let unit = |name: &str| units.iter().find(|unit| unit["name"] == name).unwrap();
        let mut shard = 0;
        for unit in units {
            let kept = number(&unit["parameters"]).div_ceil(world);
            let gathered = if world > 1 { F32 * kept * world } else { 0 };
            assert_eq!((number(&unit["kept_elements"]), number(&unit["kept_bytes"])), (kept, F32 * kept), "{unit}");
            assert_eq!(number(&unit["gathered_bytes"]), gathered, "{unit}");
            shard += F32 * kept;
        }
        let memory = &plan["memory"];
        assert_eq!(number(&memory["shard"]), shard, "{world} ranks");
        let order: Vec<Vec<String>> = serde_json::from_value(plan["order"].clone()).unwrap();
        assert_eq!(order, expected_order());
        // Block by block: its own units, and those of the next blocks until so many more have to be gathered. A unit that is
        // used twice within that is there once.
        let flat: Vec<&String> = order.iter().flatten().collect();
        let (mut start, mut ahead) = (0, 0);
        let peaks = order.iter().map(|block| {
            let is_new = |at: &usize| !flat[start..*at].contains(&flat[*at]);
            let behind = start + block.len()..flat.len();
            ahead = ahead.max(behind.filter(is_new).nth(LOOKAHEAD).unwrap_or(flat.len()));
            let window = (start..ahead).filter(is_new).map(|at| number(&unit(flat[at])["gathered_bytes"])).sum::<u64>();
            start += block.len();
            window
        });
        assert_eq!(number(&memory["gathered"]), peaks.max().unwrap(), "{world} ranks");
        // Adapter and gradient whole, two moments of one part.
        let part = F32 * number(&plan["trained_parameters"]).div_ceil(world);
        assert_eq!(number(&memory["trained"]), 2 * part * world + 2 * part, "{world} ranks");
    }
}

#[test]
fn the_walk_is_printed_with_what_it_looks_ahead() {
    let planner = Planner::new();
    for world in WORLDS {
        let said = planner.plan(world, &[]);
        assert!(said.contains(&format!("ranks      {world}\n")), "{said}");
        if world == 1 {
            assert!(said.contains("gathered   nothing: every rank keeps all weights"), "{said}");
            continue;
        }
        let walk = said.split_once("gathered   2 units ahead of the block in use, at most ").expect("a walk").1;
        let blocks: Vec<&str> = walk.lines().skip(1).map(str::trim).collect();
        let back = "layers 1 to 0, each: shared, gate_up, down | attention";
        assert_eq!(blocks, ["embedding", "layers 0 to 1, each: attention | shared, gate_up, down", "head", back]);
    }
    let resident = planner.json(8, &["weights=resident"]);
    assert_eq!((number(&resident["memory"]["gathered"]), number(&resident["units"][0]["gathered_bytes"])), (0, 0));
}
