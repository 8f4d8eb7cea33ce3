//! What must not change between the start of a run and its resumption. Knows no files.

use crate::{Dataset, Result, TrainingConfig};
use half::bf16;
use mc_lora::LoRAAdapter;
use mc_models::CausalLM;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// Names and values, in an order in which differences are best told.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Fingerprint(Map<String, Value>);

/// Differ between data sets, between configurations of models, and between their weights; their values mean nothing to a reader.
const DATA: &str = "data";
const MODEL: &str = "model";
const WEIGHTS: &str = "weights";

impl Fingerprint {
    /// The fingerprint of a run; without data what can be known before it.
    pub(crate) fn new(
        model: &dyn CausalLM,
        adapter: &LoRAAdapter,
        config: &TrainingConfig,
        data: Option<&Dataset>,
    ) -> Result<Self> {
        let lora = adapter.config();
        let mut all = Map::new();
        let mut add = |name: &str, value: Value| drop(all.insert(name.into(), value));
        // Not the model's name, device or dtype: it may have moved.
        add(MODEL, json!(hash(format!("{:?}", model.config()).bytes().map(u64::from))));
        add(WEIGHTS, json!(weights(model)?));
        add("rank", json!(lora.rank));
        add("alpha", json!(lora.alpha));
        add("dropout", json!(lora.dropout));
        add("rslora", json!(lora.use_rslora));
        add("dora", json!(lora.use_dora));
        add("alpha_pattern", json!(lora.alpha_pattern));
        // Targets and rank patterns by what they select.
        let projections: Vec<_> = adapter.layers().map(|l| format!("{} {}", l.path(), l.config().rank)).collect();
        add("projections", json!(projections));
        add("seed", json!(config.seed));
        add("batch_size", json!(config.batch_size));
        add("grad_accum", json!(config.grad_accum));
        add("shuffle", json!(config.shuffle));
        if let Some(data) = data {
            add("examples", json!(data.len()));
            add(DATA, json!(data.fingerprint()));
        }
        Ok(Self(all))
    }

    /// Says the first difference of a run now to the one that was started with `self`. What an earlier version did not note is
    /// not compared.
    pub(crate) fn check(&self, now: &Self) -> Result<(), String> {
        let differs = |(name, now): &(&String, &Value)| self.0.get(*name).is_some_and(|then| then != *now);
        let Some((name, now)) = now.0.iter().find(differs) else { return Ok(()) };
        let then = self.0.get(name).unwrap_or(&Value::Null);
        Err(match (name.as_str(), then, now) {
            (MODEL, ..) => "the model's configuration is not that of the model that the run was started with".into(),
            (WEIGHTS, ..) => {
                "the model's weights are not those that the run was started with, or in f16 where they were not".into()
            }
            (DATA, ..) => "the training data are not those that the run was started with".into(),
            (_, Value::Array(then), Value::Array(now)) => {
                let at = (0..then.len()).find(|i| then.get(*i) != now.get(*i)).unwrap_or(then.len());
                let shown = |list: &[Value]| list.get(at).map_or("nothing".into(), Value::to_string);
                format!("`{name}` has {} where the run was started with {}", shown(now), shown(then))
            }
            _ => format!("`{name}` is {now}, the run was started with {then}"),
        })
    }
}

/// A number that differs between models of one configuration: of a few weights of each matrix, rounded to `bf16`, which is what other devices
/// may make of them.
fn weights(model: &dyn CausalLM) -> Result<u64> {
    /// Of each matrix. Of one that was trained further nearly all have changed.
    const WEIGHTS: usize = 16;
    let projections = (0..model.sites().len()).filter_map(|index| model.projection(index)).map(|p| &p.weight);
    let mut values = vec![];
    for weight in projections.chain([model.head()]) {
        values.extend(weight.sample(WEIGHTS)?.into_iter().map(|x| u64::from(bf16::from_f32(x).to_bits())));
    }
    Ok(hash(values))
}

/// FNV-1a, of values in place of bytes.
pub(crate) fn hash(values: impl IntoIterator<Item = u64>) -> u64 {
    let mix = |hash: u64, value: u64| (hash ^ value).wrapping_mul(0x0000_0100_0000_01b3);
    values.into_iter().fold(0xcbf2_9ce4_8422_2325, mix)
}
