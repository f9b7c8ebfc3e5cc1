//! Folders recorded in bf16 in which every token went where that arithmetic sent it. Nothing is forced here either, so
//! some tokens go elsewhere, and behind them no tensor can be compared: losses, directions of gradients and the share of
//! such tokens can. Where f32 arithmetic of the same weights is recorded too, a row says whose rounding a distance is.

use super::checks::Checks;
use super::compare::{Kind, Numbered, Precision, Row, distance};
use super::compute::Bench;
use super::promise::NATURAL_ADAPTER;
use super::recording::{Recording, read_probe, read_promised};
use super::together::agree;
use super::verdict::Group;
use crate::error::Result;

impl Checks<'_> {
    pub fn natural_folder(&mut self) -> Result<()> {
        let probe = read_probe(self.folder, "", self.bench.config.vocab_size);
        let probe = match agree(&*self.job.comm, probe)? {
            Ok((probe, _)) => probe,
            Err(reason) => {
                self.fail("expected", "batch", reason);
                return Ok(());
            }
        };
        self.bench.meet([&probe])?;
        self.natural_case(["expected"; 2], |_| Ok(Vec::new()), |bench| bench.losses_and_routes(&probe))?;
        let name = format!("adapter_{NATURAL_ADAPTER}");
        self.natural_case(
            [&name, &format!("{name}.expected")],
            |bench| {
                bench.wear(NATURAL_ADAPTER)?;
                Ok(bench.adapter_tensors()?.into_keys().collect())
            },
            |bench| bench.losses_routes_and_gradients(&probe),
        )
    }

    /// One recorded file, and the one of the same numbers in f32 where it is promised. `prepare` returns the names of the
    /// trained tensors and waits for nobody.
    fn natural_case(
        &mut self,
        [name, file]: [&str; 2],
        prepare: impl FnOnce(&mut Bench) -> Result<Vec<String>>,
        compute: impl FnOnce(&mut Bench) -> Result<Numbered>,
    ) -> Result<()> {
        let (folder, manifest) = (self.folder, self.manifest);
        self.attempt(
            name,
            |bench| {
                let gradients = prepare(bench)?;
                let promised = manifest.natural_names(&bench.config, &gradients);
                let recorded = read_promised(&folder.join(format!("{file}.safetensors")), &promised);
                Ok((promised, recorded))
            },
            |bench, (promised, recorded)| {
                Ok(Group::new(name, promised, recorded, compute(bench)?).under(Precision::Natural))
            },
        )?;
        let found = self.verdict.groups.last().filter(|group| manifest.args.f32 && group.name == name);
        let Some(Group { promised, recorded, computed, .. }) = found.cloned() else { return Ok(()) };
        let truth = read_promised(&folder.join(format!("{file}.f32.safetensors")), &promised);
        self.verdict.rows.push(rounding(name, &truth, &recorded, &computed));
        let precision = match self.bench.precision() {
            Precision::GpuBf16 => Precision::Natural,
            in_f32 => in_f32,
        };
        self.verdict.groups.push(Group::new(&format!("{name}_f32"), promised, truth, computed).under(precision));
        Ok(())
    }
}

/// How far both sides are from f32 arithmetic, the worst tensor of each kind. What one of them lacks has a row elsewhere.
fn rounding(name: &str, truth: &Recording, recorded: &Recording, computed: &Numbered) -> Row {
    let worst = |kind: Kind| {
        let rule = kind.rule(Precision::Natural);
        let far = truth.iter().filter(|(name, _)| Kind::of_name(name) == kind).filter_map(|(name, truth)| {
            let sides = [computed.get(name)?, recorded.get(name)?.as_ref().ok()?];
            let truth = truth.as_ref().ok()?;
            let far = |side| distance(rule, truth, side).ok().filter(|far| !far.is_nan()).unwrap_or(f64::INFINITY);
            Some(sides.map(far))
        });
        far.fold([0.0_f64; 2], |most, far| [most[0].max(far[0]), most[1].max(far[1])])
    };
    let parts = [
        ("loss", Kind::Loss),
        ("1 - cosine of gradients", Kind::Gradient),
        ("share of tokens routed elsewhere", Kind::Routing),
    ];
    let distances = parts.map(|(what, kind)| (what, worst(kind)));
    let detail = distances
        .map(|(what, [computed, recorded])| format!("{what} {computed:.1e} computed, {recorded:.1e} recorded"))
        .join("; ");
    // How large a distance may be is for the rows of the groups to say; here it only has to be a number.
    match distances.iter().flat_map(|(_, sides)| sides).all(|side| side.is_finite()) {
        true => Row { detail, ..Row::ok(name, "distance from f32") },
        false => Row::fail(name, "distance from f32", detail),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verify::compare::{Numbers, Status};

    #[test]
    fn a_distance_from_f32_must_be_a_number() {
        let loss = |value: f64| ("loss".to_string(), Numbers::scalar(value));
        let recorded = |value| Recording::from([loss(value)].map(|(name, numbers)| (name, Ok(numbers))));
        for (computed, expected) in [(2.0, Status::Ok), (9.0, Status::Ok), (f64::NAN, Status::Fail)] {
            let row = rounding("expected", &recorded(2.0), &recorded(2.5), &Numbered::from([loss(computed)]));
            assert_eq!(row.status, expected, "{}", row.detail);
        }
    }
}
