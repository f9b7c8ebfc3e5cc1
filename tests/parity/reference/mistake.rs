//! The mistakes that code for this model is known to make, by the names of the fixture README's table of symptoms.

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mistake {
    None,
    HalfSplitPairs,
    RotationTheOtherWay,
    BandsIgnored,
    NoQkNorm,
    QkToUnitLength,
    QkNormOnNopeLayers,
    RopeOnNopeLayers,
    NoTemperature,
    TemperatureWithoutPlusOne,
    TemperatureOnAllLayers,
    PlainCausalOnRopeLayers,
    SlidingWindow,
    ChunksOnNopeLayers,
    TiledKvHeads,
    Softmax,
    ScoreIgnored,
    ScoreOnOutput,
    GateAndUpExchanged,
    GateAndUpInterleaved,
    NoSharedExpert,
    NoRoutedExperts,
    NoRouterGradient,
    RowMeansAveraged,
}

impl Mistake {
    /// Every mistake with its name in the table.
    pub const ALL: [(Mistake, &str); 23] = [
        (Mistake::HalfSplitPairs, "half-split RoPE pairs"),
        (Mistake::RotationTheOtherWay, "rotation the other way"),
        (Mistake::BandsIgnored, "frequency bands ignored"),
        (Mistake::NoQkNorm, "no Q/K norm"),
        (Mistake::QkToUnitLength, "Q/K to unit length instead of RMS"),
        (Mistake::QkNormOnNopeLayers, "Q/K norm also on NoPE layers"),
        (Mistake::RopeOnNopeLayers, "RoPE also on NoPE layers"),
        (Mistake::NoTemperature, "no temperature"),
        (Mistake::TemperatureWithoutPlusOne, "temperature with p instead of p+1"),
        (Mistake::TemperatureOnAllLayers, "temperature on all layers"),
        (Mistake::PlainCausalOnRopeLayers, "plain causal on RoPE layers"),
        (Mistake::SlidingWindow, "sliding window instead of chunks"),
        (Mistake::ChunksOnNopeLayers, "chunks on NoPE layers"),
        (Mistake::TiledKvHeads, "kv heads tiled instead of repeated"),
        (Mistake::Softmax, "softmax instead of sigmoid"),
        (Mistake::ScoreIgnored, "score ignored"),
        (Mistake::ScoreOnOutput, "score on the expert's output"),
        (Mistake::GateAndUpExchanged, "gate and up exchanged"),
        (Mistake::GateAndUpInterleaved, "gate/up read interleaved"),
        (Mistake::NoSharedExpert, "shared expert left out"),
        (Mistake::NoRoutedExperts, "routed experts left out"),
        (Mistake::NoRouterGradient, "no gradient through the router score"),
        (Mistake::RowMeansAveraged, "row means averaged instead of token sum"),
    ];
}
