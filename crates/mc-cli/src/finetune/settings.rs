//! The options of `finetune`: the command line goes before the file of `--config`, and that before the defaults.

use crate::failure::wrong;
use anyhow::{Context, Result};
use metal_candle::{
    lora::{LoRAAdapterConfig, TargetModule},
    training::{AdamWConfig, LRScheduler, TrainingConfig},
};
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// What a run is made of. Every field is an option of the command line and a key of the TOML file.
#[derive(clap::Args, Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct Settings {
    /// Directory or hub id of the model [default: the embedded one]
    #[arg(long, value_name = "ID|DIR")]
    pub(crate) model: Option<String>,
    /// Directory with train.jsonl (and valid.jsonl), or one file of records [default: embedded shell requests]
    #[arg(long, value_name = "DIR|FILE.jsonl")]
    pub(crate) data: Option<PathBuf>,
    /// Where the adapter goes [default: a new directory under adapters/]
    #[arg(long, value_name = "DIR")]
    pub(crate) output: Option<PathBuf>,

    /// Width of the trained matrices [default: 8; embedded: 16]
    #[arg(long, value_name = "R", help_heading = "Adapter")]
    pub(crate) rank: Option<usize>,
    /// Scale of the adapter: alpha / rank multiplies it [default: 16; embedded: 32]
    #[arg(long, value_name = "A", help_heading = "Adapter")]
    pub(crate) alpha: Option<f64>,
    /// Share of inputs dropped in training [default: 0]
    #[arg(long, value_name = "P", help_heading = "Adapter")]
    pub(crate) dropout: Option<f64>,
    /// all-linear, names such as q_proj,v_proj, or a regular expression over paths [default: all-linear]
    #[arg(long, value_name = "TARGETS", help_heading = "Adapter")]
    pub(crate) target: Option<String>,
    /// Scale by alpha / √rank
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true, value_name = "BOOL", help_heading = "Adapter")]
    pub(crate) rslora: Option<bool>,
    /// Train a magnitude per output, too
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true, value_name = "BOOL", help_heading = "Adapter")]
    pub(crate) dora: Option<bool>,
    /// Start from this adapter instead of a fresh one; it brings its own rank, alpha and targets
    #[arg(long, value_name = "DIR", help_heading = "Adapter", conflicts_with_all = ["rank", "alpha", "target", "rslora", "dora", "dropout"])]
    pub(crate) init_adapter: Option<PathBuf>,

    /// Times each record is trained on [default: 3; embedded: 10]
    #[arg(long, value_name = "N", help_heading = "Training")]
    pub(crate) epochs: Option<u64>,
    /// Optimizer steps, instead of epochs
    #[arg(long, value_name = "N", help_heading = "Training", conflicts_with = "epochs")]
    pub(crate) steps: Option<u64>,
    /// Records at a time [default: 4; embedded: 8]
    #[arg(long, value_name = "N", help_heading = "Training")]
    pub(crate) batch_size: Option<usize>,
    /// Batches per optimizer step [default: 1]
    #[arg(long, value_name = "N", help_heading = "Training")]
    pub(crate) grad_accum: Option<usize>,
    /// Highest learning rate [default: 1e-4; embedded: 3e-3]
    #[arg(long, value_name = "LR", help_heading = "Training")]
    pub(crate) lr: Option<f64>,
    /// How the learning rate goes on after the warmup, to 0 unless constant [default: cosine]
    #[arg(long, value_name = "NAME", help_heading = "Training")]
    pub(crate) schedule: Option<Schedule>,
    /// Steps in which the learning rate rises from 0 [default: a thirtieth of all; embedded: 40]
    #[arg(long, value_name = "N", help_heading = "Training")]
    pub(crate) warmup: Option<u64>,
    /// Gradients are scaled down to this norm; 0: never [default: 1]
    #[arg(long, value_name = "X", help_heading = "Training")]
    pub(crate) max_grad_norm: Option<f64>,
    /// AdamW's weight decay: each step takes the share learning rate × this off each parameter [default: 0]
    #[arg(long, value_name = "X", help_heading = "Training")]
    pub(crate) weight_decay: Option<f64>,
    /// Longer records are cut, and counted [default: 1024, or the model's context if that is less]
    #[arg(long, value_name = "TOKENS", help_heading = "Training")]
    pub(crate) max_seq_len: Option<usize>,
    /// Learn only completions and answers, not prompts [default: false; embedded: true]
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true, value_name = "BOOL", help_heading = "Training")]
    pub(crate) mask_prompt: Option<bool>,
    /// Use less memory: compute each block again in the backward pass
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true, value_name = "BOOL", help_heading = "Training")]
    pub(crate) grad_checkpoint: Option<bool>,
    /// Keep the order of the records
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true, value_name = "BOOL", help_heading = "Training")]
    pub(crate) no_shuffle: Option<bool>,
    /// All randomness follows from it [default: 0]
    #[arg(long, value_name = "N", help_heading = "Training")]
    pub(crate) seed: Option<u64>,
    /// Steps between evaluations on valid.jsonl [default: once per epoch]
    #[arg(long, value_name = "N", help_heading = "Training")]
    pub(crate) eval_every: Option<u64>,
    /// Steps between checkpoints [default: no checkpoints; what --resume goes on from is saved every two minutes and with each best evaluation]
    #[arg(long, value_name = "N", help_heading = "Training")]
    pub(crate) save_every: Option<u64>,
}

/// The learning rate after the warmup: it stays, or falls to 0 in a straight line or half a cosine.
#[derive(Clone, Copy, Debug, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Schedule {
    Constant,
    Linear,
    Cosine,
}

/// Takes each field from the first that has it.
macro_rules! first_of {
    ($first:ident, $second:ident: $($field:ident)*) => { Settings { $($field: $first.$field.or($second.$field)),* } };
}

impl Settings {
    /// Takes from `other` what is open here. Steps and epochs are two ways to say one thing.
    pub(crate) fn or(self, mut other: Self) -> Self {
        if self.epochs.is_some() || self.steps.is_some() {
            (other.epochs, other.steps) = (None, None);
        }
        first_of!(self, other:
            model data output rank alpha dropout target rslora dora init_adapter epochs steps batch_size grad_accum lr
            schedule warmup max_grad_norm weight_decay max_seq_len mask_prompt grad_checkpoint no_shuffle seed
            eval_every save_every)
    }

    /// Reads a TOML file; keys are the long options, with `-` or `_`.
    pub(crate) fn from_file(path: &Path) -> Result<Self> {
        const HINT: &str = "keys are the long options of finetune, such as `batch-size = 8`";
        let name = path.display();
        let text = std::fs::read_to_string(path)
            .with_context(|| name.to_string())
            .map_err(|e| wrong(format!("{e:#}"), "--config takes a text file in TOML"))?;
        let table: toml::Table = toml::from_str(&text)
            .map_err(|e| wrong(format!("{name}: {}", e.message()), "a line is `option = value`, texts in quotes"))?;
        if table.contains_key("epochs") && table.contains_key("steps") {
            return Err(wrong(format!("{name}: `epochs` and `steps` exclude each other"), "keep one of them"));
        }
        if let Some(key) = table.keys().find(|key| key.contains('_') && table.contains_key(&key.replace('_', "-"))) {
            let what = format!("{name}: `{key}` and `{}` are one option", key.replace('_', "-"));
            return Err(wrong(what, "keep one of them"));
        }
        let mut settings = Self::default();
        // One by one, so that an error can name the key.
        for (key, value) in table {
            let one = toml::Table::from_iter([(key.replace('_', "-"), value)]);
            let one: Self = one.try_into().map_err(|e: toml::de::Error| match e.message() {
                text if text.starts_with("unknown field") => wrong(format!("{name}: `{key}` is not an option"), HINT),
                text => {
                    let whole = "expected a whole number, 0 or more";
                    let text = text.replace("expected usize", whole).replace("expected u64", whole);
                    wrong(format!("{name}: `{key}`: {}", text.replace("expected f64", "expected a number")), HINT)
                }
            })?;
            one.check().with_context(|| name.to_string())?;
            settings = settings.or(one);
        }
        Ok(settings)
    }

    /// What suits the embedded model and its few hundred short records, found by trying (see `assets/README.md`).
    /// Epochs and warmup give way where `asked` says otherwise how long the run is.
    pub(crate) fn embedded(asked: &Self) -> Self {
        let same_length = asked.epochs.is_none() && asked.batch_size.is_none() && asked.grad_accum.is_none();
        Self {
            rank: Some(16),
            alpha: Some(32.0),
            lr: Some(3e-3),
            epochs: Some(10),
            batch_size: Some(8),
            warmup: Some(40).filter(|_| same_length && asked.steps.is_none()),
            mask_prompt: Some(true),
            ..Self::default()
        }
    }

    /// Whether nothing asked for is at odds with the adapter to start from, wherever both were asked for.
    pub(crate) fn check_start(&self) -> Result<()> {
        let Some(start) = &self.init_adapter else { return Ok(()) };
        let asked = [
            ("--rank", self.rank.is_some()),
            ("--alpha", self.alpha.is_some()),
            ("--dropout", self.dropout.is_some()),
            ("--target", self.target.is_some()),
            ("--rslora", self.rslora.is_some()),
            ("--dora", self.dora.is_some()),
        ];
        match asked.iter().find(|(_, is_set)| *is_set) {
            Some((option, _)) => Err(wrong(
                format!("{option} cannot be used with --init-adapter {}", start.display()),
                format!("that adapter brings its own; leave {option} out"),
            )),
            None => Ok(()),
        }
    }

    /// Checks what can be checked before there is a model and data, which may take long to get.
    pub(crate) fn check(&self) -> Result<()> {
        self.adapter()?.check()?;
        Ok(self.training(usize::MAX, Path::new("")).check()?)
    }

    pub(crate) fn adapter(&self) -> Result<LoRAAdapterConfig> {
        let defaults = LoRAAdapterConfig::default();
        Ok(LoRAAdapterConfig {
            rank: self.rank.unwrap_or(defaults.rank),
            alpha: self.alpha.unwrap_or(defaults.alpha),
            dropout: self.dropout.unwrap_or(defaults.dropout),
            target_modules: targets(self.target.as_deref().unwrap_or("all-linear"))?,
            use_rslora: self.rslora.unwrap_or(false),
            use_dora: self.dora.unwrap_or(false),
            seed: self.seed.unwrap_or(0),
            ..defaults
        })
    }

    /// The settings of a run over `examples` records.
    pub(crate) fn training(&self, examples: usize, output: &Path) -> TrainingConfig {
        let mut config = TrainingConfig {
            num_epochs: self.epochs.unwrap_or(3),
            max_steps: self.steps,
            batch_size: self.batch_size.unwrap_or(4),
            grad_accum: self.grad_accum.unwrap_or(1),
            adamw: AdamWConfig { weight_decay: self.weight_decay.unwrap_or(0.0), ..AdamWConfig::default() },
            max_grad_norm: Some(self.max_grad_norm.unwrap_or(1.0)).filter(|norm| *norm != 0.0),
            seed: self.seed.unwrap_or(0),
            shuffle: !self.no_shuffle.unwrap_or(false),
            eval_every: self.eval_every,
            save_every: self.save_every,
            grad_checkpoint: self.grad_checkpoint.unwrap_or(false),
            output_dir: Some(output.to_path_buf()),
            ..TrainingConfig::default()
        };
        let (lr, total) = (self.lr.unwrap_or(1e-4), config.total_steps(examples));
        let warmup = self.warmup.unwrap_or(total / 30);
        config.lr_scheduler = match self.schedule.unwrap_or(Schedule::Cosine) {
            Schedule::Constant => LRScheduler::warmup_constant(warmup, lr),
            Schedule::Linear => LRScheduler::warmup_linear(warmup, total, lr, 0.0),
            Schedule::Cosine => LRScheduler::warmup_cosine(warmup, total, lr, 0.0),
        };
        config
    }
}

/// `q_proj,v_proj` are names; what has other characters is one regular expression, commas and all.
pub(crate) fn targets(text: &str) -> Result<Vec<TargetModule>> {
    let named = text.chars().all(|c| c.is_alphanumeric() || "_-., ".contains(c));
    let parts: Vec<_> = if named { text.split(',').map(str::trim).collect() } else { vec![text] };
    Ok(parts.into_iter().map(str::parse).collect::<Result<_, _>>()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_goes_before_the_file_and_that_before_the_defaults() {
        let line = Settings { rank: Some(2), ..Settings::default() };
        let file: Settings = toml::from_str("rank = 3\nalpha = 4.0").unwrap();
        let merged = line.or(file).or(Settings::embedded(&Settings::default()));
        assert_eq!((merged.rank, merged.alpha, merged.mask_prompt), (Some(2), Some(4.0), Some(true)));
    }

    #[test]
    fn targets_are_names_or_one_expression() {
        assert_eq!(targets("q_proj, v_proj").unwrap(), [TargetModule::QProj, TargetModule::VProj]);
        assert_eq!(targets("q_proj,v_proj").unwrap(), [TargetModule::QProj, TargetModule::VProj]);
        assert_eq!(targets("all-linear").unwrap(), [TargetModule::AllLinear]);
        assert_eq!(targets(r".*\.(q|v)_proj{1,2}").unwrap(), [TargetModule::Regex(r".*\.(q|v)_proj{1,2}".into())]);
        assert!(targets("q_proj,,v_proj").is_err());
    }
}
