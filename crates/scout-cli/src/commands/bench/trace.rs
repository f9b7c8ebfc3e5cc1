//! One step as a picture: what every stream of every rank did when, in the form that Perfetto and Chrome read.

use std::time::{Duration, Instant};

use scout_comm::Job;
use scout_comm::gpu::SUM;
use scout_core::Diary;
use scout_device::Device;
use scout_device::cuda::Timed;
use scout_train::TrainError;
use scout_train::step_bench::StepBench;
use serde_json::{Value, json};

use super::told;

/// Rows of the picture, for each rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lane {
    Host,
    Compute,
    Gather,
    /// NCCL's sums run on a stream of their own, at the same time as gathers: on one row they would lie across each other.
    Sums,
}

const LANES: [Lane; 4] = [Lane::Host, Lane::Compute, Lane::Gather, Lane::Sums];

impl Lane {
    fn name(self) -> &'static str {
        match self {
            Lane::Host => "host",
            Lane::Compute => "compute",
            Lane::Gather => "gather",
            Lane::Sums => "sums",
        }
    }
}

/// Something that took time on a rank.
struct Span {
    lane: Lane,
    name: String,
    begin: Duration,
    time: Duration,
}

/// One more step of all ranks, which the first one gets. Every rank calls it.
///
/// Zero is when all ranks had met: they leave a barrier within some microseconds, each notes its own time there, and its
/// GPU, which has nothing to do, reaches an event. What the step before began to gather for this one is not in it.
pub fn of_a_step(bench: &mut StepBench, device: &Device, job: &Job) -> Result<Option<Value>, TrainError> {
    let own = spans(bench, device, job)?;
    let own: Vec<Value> = own.iter().map(|span| event(span, job.mesh().rank().0)).collect();
    let all = told::by_rank(job, &Value::Array(own).to_string())?;
    if !job.mesh().is_first() {
        return Ok(None);
    }
    let of_rank = |text: &String| -> Vec<Value> { serde_json::from_str(text).expect(told::OWN_WORDS) };
    Ok(Some(picture(all.iter().map(of_rank).collect())))
}

fn spans(bench: &mut StepBench, device: &Device, job: &Job) -> Result<Vec<Span>, TrainError> {
    bench.finish()?;
    job.comm.barrier()?;
    let zero = Instant::now();
    let zero_of_gpu = match device {
        Device::Cpu => None,
        Device::Cuda(gpu) => {
            let event = gpu.compute().record_time()?;
            gpu.begin_profile();
            Some((gpu, event))
        }
    };
    job.whereabouts.begin_diary();
    bench.step()?;
    let mut spans = phases(&job.whereabouts.end_diary(), zero, Instant::now());
    if let Some((gpu, zero)) = zero_of_gpu {
        spans.extend(gpu.end_trace(&zero)?.into_iter().map(of_gpu));
    }
    Ok(spans)
}

/// Each phase ends where the next one begins.
fn phases(diary: &Diary, zero: Instant, end: Instant) -> Vec<Span> {
    let ends = diary.iter().skip(1).map(|(at, _)| *at).chain([end]);
    let phase = |((begin, place), end): (&(Instant, scout_core::Place), Instant)| Span {
        lane: Lane::Host,
        name: place.phase.to_string(),
        begin: begin.saturating_duration_since(zero),
        time: end.saturating_duration_since(*begin),
    };
    diary.iter().zip(ends).map(phase).collect()
}

fn of_gpu(Timed { name, on_compute, begin, time }: Timed) -> Span {
    let lane = match on_compute {
        true => Lane::Compute,
        false if name == SUM => Lane::Sums,
        false => Lane::Gather,
    };
    Span { lane, name, begin, time }
}

/// Times are microseconds.
fn event(Span { lane, name, begin, time }: &Span, rank: usize) -> Value {
    let microseconds = |time: &Duration| time.as_nanos() as f64 / 1e3;
    json!({
        "ph": "X", "name": name, "cat": lane.name(), "pid": rank, "tid": *lane as usize,
        "ts": microseconds(begin), "dur": microseconds(time),
    })
}

/// The events of all ranks, each with names for its rows.
fn picture(ranks: Vec<Vec<Value>>) -> Value {
    let mut events = Vec::new();
    for (rank, of_rank) in ranks.into_iter().enumerate() {
        let name = json!({ "name": format!("rank {rank}") });
        events.push(json!({ "ph": "M", "name": "process_name", "pid": rank, "args": name }));
        for lane in LANES {
            let name = json!({ "name": lane.name() });
            events.push(json!({
                "ph": "M", "name": "thread_name", "pid": rank, "tid": lane as usize, "args": name,
            }));
        }
        events.extend(of_rank);
    }
    json!({ "displayTimeUnit": "ms", "traceEvents": events })
}

#[cfg(test)]
mod tests {
    use scout_core::{Phase, Whereabouts};

    use super::*;

    #[test]
    fn a_span_is_an_event_in_microseconds_on_the_row_of_its_stream() {
        let (begin, time) = (Duration::from_nanos(1_500), Duration::from_millis(2));
        let gathered = of_gpu(Timed { name: "layer.3.down".to_string(), on_compute: false, begin, time });
        let computed = of_gpu(Timed { name: "a product".to_string(), on_compute: true, begin, time });
        // It overlaps the gather, and neither holds the other.
        let summed = Timed { name: SUM.to_string(), on_compute: false, begin: begin + time / 2, time };
        let spans = [gathered, computed, of_gpu(summed)];
        let picture = picture(vec![vec![], spans.iter().map(|span| event(span, 1)).collect()]);
        let events = picture["traceEvents"].as_array().unwrap();
        let spans: Vec<&Value> = events.iter().filter(|event| event["ph"] == "X").collect();
        assert_eq!(spans.len(), 3);
        assert_eq!((&spans[0]["name"], &spans[0]["pid"]), (&json!("layer.3.down"), &json!(1)));
        assert_eq!((&spans[0]["ts"], &spans[0]["dur"]), (&json!(1.5), &json!(2000.0)));
        // Every span lies on a row that has a name.
        for (span, lane) in spans.into_iter().zip(["gather", "compute", "sums"]) {
            let names: Vec<&Value> = events
                .iter()
                .filter(|event| event["name"] == "thread_name")
                .filter(|event| event["pid"] == span["pid"] && event["tid"] == span["tid"])
                .map(|event| &event["args"]["name"])
                .collect();
            assert_eq!(names, [&json!(lane)]);
        }
        assert_eq!(events.iter().filter(|event| event["name"] == "process_name").count(), 2);
    }

    #[test]
    fn a_phase_lasts_until_the_next_one_begins() {
        let (zero, whereabouts) = (Instant::now(), Whereabouts::new(None));
        whereabouts.begin_diary();
        whereabouts.enter_step(Phase::Forward, 1);
        whereabouts.enter(Phase::Backward);
        let diary = whereabouts.end_diary();
        let end = diary[1].0 + Duration::from_millis(7);
        let spans = phases(&diary, zero, end);
        assert_eq!(spans.iter().map(|span| &span.name[..]).collect::<Vec<_>>(), ["forward", "backward"]);
        assert_eq!(spans[0].begin + spans[0].time, spans[1].begin);
        assert_eq!(spans[1].time, Duration::from_millis(7));
    }
}
