//! A whole adapter: a layer at each projection that it is for, and the three ways to pass it to a model.

use crate::{Error, LoRAAdapterConfig, LoRAConfig, LoRALayer, Result, layer::Terms, targets::Targets};
use candle_core::{Tensor, Var};
use mc_backend::{Purpose, Stream, ops::Dropout};
use mc_models::{Adapter, Addition, CausalLM, Projection, Site};

/// A trainable LoRA or DoRA adapter.
///
/// As an [`Adapter`] it computes what its parameters say now, without dropout and without gradients. For gradients
/// there is [`LoRAAdapter::training_pass`], for many passes over parameters that stay [`LoRAAdapter::freeze`].
#[derive(Debug)]
pub struct LoRAAdapter {
    config: LoRAAdapterConfig,
    base_model: Option<String>,
    /// By the site's index.
    layers: Vec<Option<LoRALayer>>,
    variables: Vec<(String, Var)>,
}

/// How many numbers the low-rank factors of these layers have, one for each site.
fn parameters(layers: &[Option<LoRAConfig>], sites: &[Site]) -> usize {
    let of = |(layer, site): (&Option<LoRAConfig>, &Site)| {
        layer.as_ref().map_or(0, |layer| layer.rank.saturating_mul(site.in_features + site.out_features))
    };
    layers.iter().zip(sites).map(of).fold(0, usize::saturating_add)
}

/// Whether so many parameters can be trained, before any memory is taken for them.
fn check_room(parameters: usize, available: Option<u64>) -> Result<()> {
    /// In `f32`: the value, the optimizer's, its two moments, the gradient.
    const BYTES: u64 = 5 * 4;
    let needed = (parameters as u64).saturating_mul(BYTES);
    let too_much = |short| {
        Err(Error::config("rank", format!("makes {parameters} parameters; training them takes at least {short}")))
    };
    mc_backend::shortage(needed, available).map_or(Ok(()), too_much)
}

impl LoRAAdapter {
    /// An adapter that changes nothing yet.
    ///
    /// # Errors
    /// If the configuration is out of range, or names something that the model does not have, or training so many parameters takes
    /// more memory than there is.
    pub fn new(model: &dyn CausalLM, config: LoRAAdapterConfig) -> Result<Self> {
        let targets = Targets::new(&config)?;
        let selected = targets.select(model.sites())?;
        targets.all_matched(model.sites())?;
        if model.device().is_cpu() {
            check_room(parameters(&selected, model.sites()), mc_backend::available_memory_bytes())?;
        }
        let layer = |(index, layer)| match (layer, model.projection(index)) {
            (Some(layer), Some(projection)) => LoRALayer::new(projection, layer, config.seed).map(Some),
            _ => Ok(None),
        };
        let layers = selected.into_iter().enumerate().map(layer).collect::<Result<_>>()?;
        Ok(Self::from_layers(config, layers))
    }

    pub(crate) fn from_layers(config: LoRAAdapterConfig, layers: Vec<Option<LoRALayer>>) -> Self {
        let mut variables = vec![];
        for layer in layers.iter().flatten() {
            let [a, b, magnitude] = keys(layer.path());
            variables.push((a, layer.a().clone()));
            variables.push((b, layer.b().clone()));
            variables.extend(layer.magnitude().map(|m| (magnitude, m.clone())));
        }
        Self { config, base_model: None, layers, variables }
    }

    /// Notes the name of the model that the adapter is for, which is written when it is saved.
    pub fn with_base_model(self, name: impl Into<String>) -> Self {
        Self { base_model: Some(name.into()), ..self }
    }

    /// The name of the model that the adapter is for, if it was noted or loaded.
    pub fn base_model(&self) -> Option<&str> {
        self.base_model.as_deref()
    }

    /// The settings that it was made with.
    pub fn config(&self) -> &LoRAAdapterConfig {
        &self.config
    }

    /// The layers, in the order of the model's sites.
    pub fn layers(&self) -> impl Iterator<Item = &LoRALayer> {
        self.layers.iter().flatten()
    }

    /// The trainable parameters by their key in PEFT's format, in the order of the model's sites: A, B, magnitude.
    pub fn variables(&self) -> &[(String, Var)] {
        &self.variables
    }

    /// How many numbers are trained.
    pub fn num_parameters(&self) -> usize {
        self.variables.iter().map(|(_, var)| var.elem_count()).sum()
    }

    /// The adapter with dropout and gradients, for one forward and backward pass.
    ///
    /// Equal `seed` and `micro_step` give equal masks, so that a block may be computed twice.
    pub fn training_pass(&self, seed: u64, micro_step: u64) -> TrainingPass<'_> {
        TrainingPass { adapter: self, seed, micro_step }
    }

    /// The adapter as it is now, for generation: a copy that later training does not change. With DoRA it is much
    /// faster than the adapter itself, since the norms of the weight's rows are computed once.
    ///
    /// # Errors
    /// If the adapter is for another model.
    pub fn freeze(&self, model: &dyn CausalLM) -> Result<FrozenAdapter> {
        let (made_for, found) = (self.layers.len(), model.sites().len());
        if made_for != found {
            return Err(foreign(&format!("that had {made_for} projections, this model has {found}")).into());
        }
        let frozen = |(index, layer): (usize, &Option<LoRALayer>)| {
            let (Some(layer), Some(projection)) = (layer, model.projection(index)) else { return Ok(None) };
            same_place(layer.path(), projection)?;
            Ok(Some((layer.path().to_string(), layer.terms(&projection.weight)?.copied(model.dtype())?)))
        };
        let layers = self.layers.iter().enumerate().map(frozen).collect::<candle_core::Result<_>>()?;
        Ok(FrozenAdapter { layers })
    }

    /// What a layer adds with the terms and dropout that it is given; the norms of DoRA are not computed for nothing.
    fn layer_addition(
        &self,
        projection: &Projection,
        terms: impl Fn(&LoRALayer) -> candle_core::Result<(Terms, Option<Dropout>)>,
    ) -> candle_core::Result<Addition> {
        match self.layer(projection)? {
            None => Ok(Addition::Nothing),
            Some(layer) if layer.is_dora() => Ok(Addition::Other),
            Some(layer) => terms(layer).map(|(terms, dropout)| terms.addition(dropout)),
        }
    }

    fn layer(&self, projection: &Projection) -> candle_core::Result<Option<&LoRALayer>> {
        let layer = at(&self.layers, projection)?;
        layer.map_or(Ok(()), |layer| same_place(layer.path(), projection))?;
        Ok(layer)
    }
}

impl Adapter for LoRAAdapter {
    fn project(&self, group: &[Projection], x: &Tensor) -> candle_core::Result<Vec<Tensor>> {
        let project = |projection: &Projection| match self.layer(projection)? {
            Some(layer) => layer.terms(&projection.weight)?.detached().project(projection, x, None),
            None => projection.forward(x),
        };
        group.iter().map(project).collect()
    }

    fn addition(&self, projection: &Projection) -> candle_core::Result<Addition> {
        self.layer_addition(projection, |layer| Ok((layer.terms(&projection.weight)?.detached(), None)))
    }
}

/// An adapter in training; see [`LoRAAdapter::training_pass`].
#[derive(Clone, Copy, Debug)]
pub struct TrainingPass<'a> {
    adapter: &'a LoRAAdapter,
    seed: u64,
    micro_step: u64,
}

impl TrainingPass<'_> {
    /// A mask of its own for each site of each micro-step.
    fn dropout(&self, layer: &LoRALayer, site: usize) -> Option<Dropout> {
        let probability = layer.config().dropout as f32;
        let sites = self.adapter.layers.len() as u64;
        let step = self.micro_step.wrapping_mul(sites).wrapping_add(site as u64);
        (probability > 0.0).then(|| Dropout { probability, stream: Stream::new(self.seed, Purpose::Dropout, step) })
    }
}

impl Adapter for TrainingPass<'_> {
    fn project(&self, group: &[Projection], x: &Tensor) -> candle_core::Result<Vec<Tensor>> {
        let project = |projection: &Projection| match self.adapter.layer(projection)? {
            Some(layer) => {
                let dropout = self.dropout(layer, projection.site.index);
                layer.terms(&projection.weight)?.project(projection, x, dropout)
            }
            None => projection.forward(x),
        };
        group.iter().map(project).collect()
    }

    fn addition(&self, projection: &Projection) -> candle_core::Result<Addition> {
        self.adapter.layer_addition(projection, |layer| {
            Ok((layer.terms(&projection.weight)?, self.dropout(layer, projection.site.index)))
        })
    }
}

/// An adapter that does not change any more; see [`LoRAAdapter::freeze`].
#[derive(Clone, Debug)]
pub struct FrozenAdapter {
    /// By the site's index, with the site's path.
    layers: Vec<Option<(String, Terms)>>,
}

impl Adapter for FrozenAdapter {
    fn project(&self, group: &[Projection], x: &Tensor) -> candle_core::Result<Vec<Tensor>> {
        let project = |projection: &Projection| match at(&self.layers, projection)? {
            Some((path, terms)) => {
                same_place(path, projection)?;
                terms.project(projection, x, None)
            }
            None => projection.forward(x),
        };
        group.iter().map(project).collect()
    }

    fn addition(&self, projection: &Projection) -> candle_core::Result<Addition> {
        match at(&self.layers, projection)? {
            Some((path, terms)) => {
                same_place(path, projection)?;
                Ok(terms.clone().addition(None))
            }
            None => Ok(Addition::Nothing),
        }
    }
}

/// The keys of A, B and magnitude in PEFT's format.
pub(crate) fn keys(path: &str) -> [String; 3] {
    ["lora_A.weight", "lora_B.weight", "lora_magnitude_vector"].map(|name| format!("base_model.model.{path}.{name}"))
}

/// What there is for a projection, if the adapter was made for a model that has it.
fn at<'a, T>(layers: &'a [Option<T>], projection: &Projection) -> candle_core::Result<Option<&'a T>> {
    let Some(layer) = layers.get(projection.site.index) else {
        let path = &projection.site.path;
        return Err(foreign(&format!("that had {} projections, this model also has `{path}`", layers.len())));
    };
    Ok(layer.as_ref())
}

fn same_place(path: &str, projection: &Projection) -> candle_core::Result<()> {
    if path != projection.site.path {
        let found = &projection.site.path;
        return Err(foreign(&format!("it adapts `{path}`, where this model has `{found}`")));
    }
    Ok(())
}

fn foreign(how: &str) -> candle_core::Error {
    candle_core::Error::msg(format!("the adapter was made for another model: {how}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device};
    use mc_models::ModelLoader;
    use mc_testkit::golden;
    use std::collections::HashSet;

    #[test]
    fn more_parameters_than_memory_are_refused_before_it_is_taken() {
        assert!(check_room(1000, Some(20_000)).is_ok() && check_room(usize::MAX, None).is_ok());
        let error = check_room(36_037_459_968, Some(24_000_000_000)).unwrap_err().to_string();
        let expected = "`rank` makes 36037459968 parameters; training them takes at least 720.7 GB of memory, expected at most the 24.0 GB that are free";
        assert_eq!(error, expected);
        assert!(check_room(1001, Some(20_000)).is_err() && check_room(usize::MAX, Some(u64::MAX - 1)).is_err());
        // What is counted before is what there is after.
        let model = ModelLoader::new().load(golden::dir("models/qwen2")).unwrap();
        let rank_pattern = vec![("q_proj".into(), 5)];
        let target_modules = vec![crate::TargetModule::QProj, crate::TargetModule::DownProj];
        let config = LoRAAdapterConfig { rank: 3, rank_pattern, target_modules, ..Default::default() };
        let selected = Targets::new(&config).unwrap().select(model.sites()).unwrap();
        let adapter = LoRAAdapter::new(&*model, config).unwrap();
        assert_eq!(parameters(&selected, model.sites()), adapter.num_parameters());
    }

    /// No two sites or steps drop the same, and together they drop as much as was asked for.
    #[test]
    fn masks() {
        let model = ModelLoader::new().load(golden::dir("models/qwen2")).unwrap();
        let adapter = LoRAAdapter::new(&*model, LoRAAdapterConfig { dropout: 0.3, ..Default::default() }).unwrap();
        let ones = Tensor::ones(4096, DType::F32, &Device::Cpu).unwrap();
        let (mut seen, mut dropped, mut all) = (HashSet::new(), 0, 0);
        for step in 0..8 {
            let pass = adapter.training_pass(1, step);
            for (site, layer) in adapter.layers().enumerate() {
                let mask = pass.dropout(layer, site).unwrap().mask(&ones).unwrap().to_vec1::<f32>().unwrap();
                assert!(mask.iter().all(|m| *m == 0.0 || (m - 1.0 / 0.7).abs() < 1e-6));
                let zeros: Vec<bool> = mask.iter().map(|m| *m == 0.0).collect();
                (dropped, all) = (dropped + zeros.iter().filter(|z| **z).count(), all + zeros.len());
                assert!(seen.insert(zeros), "step {step}, site {site}");
            }
        }
        // Of 688,128 the share has a standard deviation of 0.00055.
        let share = dropped as f64 / all as f64;
        assert!((share - 0.3).abs() < 0.002, "{share}");
    }
}
