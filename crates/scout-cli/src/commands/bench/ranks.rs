//! What each rank of a benchmark found, side by side: ranks that differ wait for each other, and the slowest sets the pace.

use std::sync::Arc;

use scout_comm::Job;
use scout_core::ByteCount;
use scout_device::{Device, host};
use scout_train::TrainError;
use scout_train::machine::Machine;
use serde_json::{Value, json};

use super::shares::Profile;
use super::timing::Outcome;
use super::told;

/// What `exposed` means in the table, and how it differs from what a run logs.
const EXPOSED: [&str; 2] = [
    "exposed: waits for units and of the host for others, in the timed steps, and collectives and waits for sums among the",
    "arithmetic of the profiled ones; `exposed_comm` of a run's log is the waits alone, for units and of the host, on rank 0",
];

/// One line for each rank.
pub struct Ranks(Vec<Value>);

impl Ranks {
    /// What this rank found, told to all. Every rank calls it. Times are those of one step.
    ///
    /// Waits, for units on the GPU and of the host for others, were taken in the timed steps. What kernels and collectives
    /// took, waits for sums among these, and the gaps between them, is known from the profiled steps alone; on the host
    /// whatever is not waiting is work. So `exposed_s` holds more than the log of a run, which has no profile.
    pub fn gather(
        outcome: &Outcome,
        profile: Option<&Profile>,
        (machine, job): (&Machine, &Job),
    ) -> Result<Ranks, TrainError> {
        let steps = outcome.num_steps() as f64;
        let (step, waited) = (outcome.seconds / steps, outcome.waited.as_secs_f64() / steps);
        let collectives = profile.map_or(0.0, |profile| profile.in_collectives().as_secs_f64());
        let peak = match &machine.device {
            Device::Cpu => host::peak_resident(),
            Device::Cuda(gpu) => Some(gpu.account().peak_total()),
        };
        let reading = outcome.reading;
        let own = json!({
            "rank": job.mesh().rank().0, "host": host::name(), "device": device_name(&machine.device),
            "step_s": step,
            "compute_s": profile.map_or(step - waited, |profile| profile.computed().as_secs_f64()),
            "exposed_s": waited + collectives, "waited_s": waited, "collectives_s": collectives,
            "gaps_s": profile.map(|profile| profile.gaps().as_secs_f64()),
            "memory_peak_bytes": peak.map(|peak| peak.0),
            "memory_used_bytes": reading.and_then(|reading| reading.memory_used).map(|used| used.0),
            "sm_clock_megahertz": reading.map(|reading| reading.sm_clock_megahertz),
            "power_watts": reading.map(|reading| reading.power_watts),
            "nvml_utilization": reading.and_then(|reading| reading.utilization_percent),
            "sm_active": outcome.busy_multiprocessors,
        });
        let told = told::by_rank(job, &own.to_string())?;
        Ok(Ranks(told.iter().map(|text| serde_json::from_str(text).expect(told::OWN_WORDS)).collect()))
    }

    pub fn table(&self) -> Vec<String> {
        let heading = format!(
            "{:>4} {:>10} {:>10} {:>10} {:>10} {:>11} {:>9} {:>7} {:>7} {:>9}  {}",
            "rank", "step", "compute", "exposed", "gaps", "peak", "SM clock", "power", "busy", "SM active", "device"
        );
        let line = |rank: &Value| {
            let milliseconds =
                |key: &str| or_dash(rank[key].as_f64().map(|seconds| format!("{:.2} ms", seconds * 1e3)));
            let whole = |key: &str, unit: &str| or_dash(rank[key].as_f64().map(|number| format!("{number:.0} {unit}")));
            let peak = rank["memory_peak_bytes"].as_u64().map(|bytes| ByteCount(bytes).to_string());
            let active = rank["sm_active"].as_f64().map(|percent| format!("{percent:.1} %"));
            format!(
                "{:>4} {:>10} {:>10} {:>10} {:>10} {:>11} {:>9} {:>7} {:>7} {:>9}  {}",
                rank["rank"].to_string(),
                milliseconds("step_s"),
                milliseconds("compute_s"),
                milliseconds("exposed_s"),
                milliseconds("gaps_s"),
                or_dash(peak),
                whole("sm_clock_megahertz", "MHz"),
                whole("power_watts", "W"),
                whole("nvml_utilization", "%"),
                active.unwrap_or_else(|| "not given".to_string()),
                rank["device"].as_str().unwrap_or_default(),
            )
        };
        let exposed = EXPOSED.map(str::to_string);
        [heading].into_iter().chain(self.0.iter().map(line)).chain(exposed).collect()
    }

    /// The mean of a number over the ranks that know it.
    pub fn mean(&self, key: &str) -> Option<f64> {
        let known: Vec<f64> = self.0.iter().filter_map(|rank| rank[key].as_f64()).collect();
        (!known.is_empty()).then(|| known.iter().sum::<f64>() / known.len() as f64)
    }

    /// `exposed_s` as a share of the time of a step, on average over all ranks. A run logs another number under this name,
    /// see [`scout_telemetry::StepRecord::exposed_comm`].
    pub fn exposed_share(&self) -> f64 {
        let sum = |key: &str| self.0.iter().filter_map(|rank| rank[key].as_f64()).sum::<f64>();
        sum("exposed_s") / sum("step_s")
    }

    pub fn as_json(&self) -> Value {
        Value::Array(self.0.clone())
    }
}

fn device_name(device: &Device) -> String {
    match device {
        Device::Cpu => "cpu".to_string(),
        Device::Cuda(gpu) => format!("{:?}", Arc::as_ref(gpu)),
    }
}

fn or_dash(known: Option<String>) -> String {
    known.unwrap_or_else(|| "–".to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rank_has_its_line_and_what_nobody_knows_is_a_dash() {
        let rank = |rank: usize, exposed: f64, watts: Option<f64>| {
            json!({
                "rank": rank, "device": "a GPU", "step_s": 0.5, "compute_s": 0.4, "exposed_s": exposed, "gaps_s": null,
                "memory_peak_bytes": 1u64 << 30, "power_watts": watts,
            })
        };
        let ranks = Ranks(vec![rank(0, 0.1, Some(700.0)), rank(1, 0.02, None)]);
        let table = ranks.table();
        assert_eq!(table.len(), 3 + EXPOSED.len());
        assert!(table[1].starts_with("   0  500.00 ms  400.00 ms  100.00 ms          –"), "{}", table[1]);
        assert!(table[1].contains(" 700 W ") && !table[2].contains(" W "), "{table:?}");
        assert_eq!(ranks.mean("power_watts"), Some(700.0));
        assert_eq!(ranks.mean("nvml_utilization"), None);
        assert!((ranks.exposed_share() - 0.12).abs() < 1e-9);
    }
}
