//! What an adapter says about itself beside its tensors.

#[derive(Debug, Clone, PartialEq)]
pub struct AdapterSettings {
    pub rank: usize,
    pub alpha: f64,
    pub dropout: f64,
    /// Scale by alpha/√rank instead of alpha/rank.
    pub use_rslora: bool,
    /// Path or hub name of the model underneath, as the user wrote it.
    pub base_model_name: Option<String>,
}
