//! What is trained: the weights themselves, or adapters, their size, and the modules they sit on. Names of tensors are not
//! known here.

use std::fmt;

use crate::error::or_list;
use crate::error::{ConfigError, one_line};
use crate::freeze::FreezeConfig;
use crate::settings::{Settings, without_effect};
use crate::values::{ABOVE_ZERO, BELOW_ONE};
use crate::words::words;

#[derive(Debug, Clone, PartialEq)]
pub struct LoraConfig {
    pub finetuning_type: FinetuningType,
    pub lora_rank: usize,
    pub lora_alpha: f64,
    pub lora_dropout: f64,
    pub use_rslora: bool,
    pub lora_target: LoraTargets,
    /// Read whatever is trained, meant for `freeze` alone.
    pub freeze: FreezeConfig,
}

words! {
    FinetuningType {
        /// Adapters beside frozen weights.
        Lora = "lora",
        /// Every weight of the text model.
        Full = "full",
        /// Some of the weights.
        Freeze = "freeze",
    }
}

/// The modules that get an adapter, in every layer. At least one is set.
///
/// `gate`, `up` and `down` are those of the shared expert; the routed experts have their own two.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LoraTargets {
    pub q: bool,
    pub k: bool,
    pub v: bool,
    pub o: bool,
    pub gate: bool,
    pub up: bool,
    pub down: bool,
    pub experts_gate_up: bool,
    pub experts_down: bool,
}

impl LoraConfig {
    pub(crate) fn read(settings: &Settings) -> Result<LoraConfig, ConfigError> {
        let lora_rank = settings.positive("lora_rank")?;
        let lora_alpha = settings.optional("lora_alpha", |settings, key| settings.number(key, &ABOVE_ZERO))?;
        let config = LoraConfig {
            finetuning_type: settings.word("finetuning_type", &[])?,
            lora_rank,
            lora_alpha: lora_alpha.unwrap_or(2.0 * lora_rank as f64),
            lora_dropout: settings.number("lora_dropout", &BELOW_ONE)?,
            use_rslora: settings.flag("use_rslora")?,
            lora_target: LoraTargets::read(settings)?,
            freeze: FreezeConfig::read(settings)?,
        };
        config.check(settings)?;
        Ok(config)
    }

    fn check(&self, settings: &Settings) -> Result<(), ConfigError> {
        if self.finetuning_type != FinetuningType::Lora {
            return match settings.is_written("adapter_name_or_path") {
                true => Err(settings.contradiction("adapter_name_or_path", "finetuning_type", "finetuning_type lora")),
                false => Ok(()),
            };
        }
        if self.lora_dropout > 0.0 && self.lora_target.any_experts() {
            let expected = "lora_dropout 0: PEFT loads no adapter that has dropout on routed experts";
            return Err(settings.contradiction("lora_dropout", "lora_target", expected));
        }
        Ok(())
    }

    /// One line for the keys of another kind of training, which LLaMA-Factory passes over without a word.
    pub(crate) fn notes(&self, settings: &Settings) -> Vec<String> {
        const OF_LORA: [&str; 6] =
            ["lora_rank", "lora_alpha", "lora_dropout", "use_rslora", "lora_target", "adapter_layout"];
        const OF_FREEZE: [&str; 3] = ["freeze_trainable_layers", "freeze_trainable_modules", "freeze_extra_modules"];
        let unused: Vec<&str> = match self.finetuning_type {
            FinetuningType::Lora => OF_FREEZE.to_vec(),
            FinetuningType::Full => [&OF_LORA[..], &OF_FREEZE].concat(),
            FinetuningType::Freeze => OF_LORA.to_vec(),
        };
        let written: Vec<&str> = unused.into_iter().filter(|key| settings.is_written(key)).collect();
        let mut notes = Vec::new();
        if !written.is_empty() {
            notes
                .push(without_effect(&written.join("`, `"), &format!("`finetuning_type` is {}", self.finetuning_type)));
        }
        if self.finetuning_type == FinetuningType::Freeze {
            notes.extend(self.freeze.notes());
        }
        notes
    }

    pub(crate) fn resolved(&self) -> Vec<(&'static str, String)> {
        let mut resolved = vec![
            ("finetuning_type", self.finetuning_type.to_string()),
            ("lora_rank", self.lora_rank.to_string()),
            ("lora_alpha", format!("{:?}", self.lora_alpha)),
            ("lora_dropout", format!("{:?}", self.lora_dropout)),
            ("use_rslora", self.use_rslora.to_string()),
            ("lora_target", self.lora_target.to_string()),
        ];
        resolved.extend(self.freeze.resolved());
        resolved
    }
}

impl LoraTargets {
    /// Attention and the shared expert.
    pub const ALL: LoraTargets = LoraTargets {
        q: true,
        k: true,
        v: true,
        o: true,
        gate: true,
        up: true,
        down: true,
        experts_gate_up: false,
        experts_down: false,
    };

    /// Attention, the shared expert and the routed experts.
    pub const ALL_AND_EXPERTS: LoraTargets = LoraTargets { experts_gate_up: true, experts_down: true, ..Self::ALL };

    pub fn any_experts(&self) -> bool {
        self.experts_gate_up || self.experts_down
    }

    fn read(settings: &Settings) -> Result<LoraTargets, ConfigError> {
        const NAMES: [&str; 12] = [
            "all",
            "all+experts",
            "q_proj",
            "k_proj",
            "v_proj",
            "o_proj",
            "gate_proj",
            "up_proj",
            "down_proj",
            "experts",
            "experts.gate_up_proj",
            "experts.down_proj",
        ];
        let mut targets = LoraTargets::default();
        for name in settings.list("lora_target")? {
            match name.as_str() {
                "all" => targets = LoraTargets::ALL.with(targets),
                "all+experts" => targets = LoraTargets::ALL_AND_EXPERTS,
                "q_proj" => targets.q = true,
                "k_proj" => targets.k = true,
                "v_proj" => targets.v = true,
                "o_proj" => targets.o = true,
                "gate_proj" => targets.gate = true,
                "up_proj" => targets.up = true,
                "down_proj" => targets.down = true,
                "experts" => (targets.experts_gate_up, targets.experts_down) = (true, true),
                "experts.gate_up_proj" => targets.experts_gate_up = true,
                "experts.down_proj" => targets.experts_down = true,
                other => {
                    let found = one_line(&format!("{other:?}"));
                    let why = if other.contains("router") { ": routers get no adapter" } else { "" };
                    return Err(settings.wrong_found("lora_target", found, format!("{}{why}", or_list(&NAMES))));
                }
            }
        }
        Ok(targets)
    }

    /// These targets and the experts of `other`.
    fn with(self, other: LoraTargets) -> LoraTargets {
        LoraTargets { experts_gate_up: other.experts_gate_up, experts_down: other.experts_down, ..self }
    }
}

/// As it would be written in YAML.
impl fmt::Display for LoraTargets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == LoraTargets::ALL {
            return f.write_str("all");
        }
        if *self == LoraTargets::ALL_AND_EXPERTS {
            return f.write_str("all+experts");
        }
        let names = [
            (self.q, "q_proj"),
            (self.k, "k_proj"),
            (self.v, "v_proj"),
            (self.o, "o_proj"),
            (self.gate, "gate_proj"),
            (self.up, "up_proj"),
            (self.down, "down_proj"),
            (self.experts_gate_up, "experts.gate_up_proj"),
            (self.experts_down, "experts.down_proj"),
        ];
        let chosen: Vec<&str> = names.iter().filter(|(is_chosen, _)| *is_chosen).map(|(_, name)| *name).collect();
        write!(f, "[{}]", chosen.join(", "))
    }
}
