//! Adapters from and to PEFT's format. Every tensor must be known, there and of the right shape.

use crate::{
    Error, LoRAAdapter, LoRAAdapterConfig, LoRAConfig, LoRALayer, Result, TargetModule,
    adapter::keys,
    layer::Parameters,
    targets::{Targets, names},
};
use candle_core::{DType, Device, Tensor};
use mc_checkpoint::{PeftAdapter, PeftConfig, TargetModules};
use mc_models::{CausalLM, Projection};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

const CONFIG: &str = "adapter_config.json";
const NOT_FINITE: &str = "has values that are not finite";
pub(crate) const WEIGHTS: &str = "adapter_model.safetensors";

impl LoRAAdapter {
    /// The adapter that a directory in PEFT's format holds.
    ///
    /// # Errors
    /// If it cannot be read, or does not fit the model; all that does not fit is listed.
    pub fn load(model: &dyn CausalLM, dir: impl AsRef<Path>) -> Result<Self> {
        let dir = dir.as_ref();
        read(model, &PeftAdapter::read(dir, &Device::Cpu)?, dir)
    }

    /// The adapter that these configuration and tensors are.
    ///
    /// # Errors
    /// If they do not fit the model or each other; all that does not fit is listed.
    pub fn from_peft(model: &dyn CausalLM, peft: &PeftAdapter) -> Result<Self> {
        read(model, peft, Path::new(""))
    }

    /// A copy in PEFT's format. The seed has no place in it.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn to_peft(&self, base_model_name: &str) -> Result<PeftAdapter> {
        let copy = |(key, var): &(String, candle_core::Var)| Ok((key.clone(), var.as_detached_tensor().copy()?));
        let mut config = to_config(self.config(), base_model_name);
        if config.target_modules == TargetModules::AllLinear {
            // The names it stood for, as PEFT writes them: readers that know no models know no `all-linear`.
            let names: BTreeSet<&str> = self.layers().filter_map(|l| l.path().rsplit('.').next()).collect();
            config.target_modules = TargetModules::Names(names.into_iter().map(str::to_string).collect());
        }
        Ok(PeftAdapter {
            config,
            tensors: self.variables().iter().map(copy).collect::<Result<_>>()?,
            metadata: BTreeMap::new(),
        })
    }

    /// Writes the adapter as a directory in PEFT's format, with the name of its base model if that is noted
    /// ([`LoRAAdapter::with_base_model`]); each file is replaced as a whole.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn save(&self, dir: impl AsRef<Path>) -> Result<()> {
        crate::save_checkpoint(self, dir, None)
    }
}

/// The adapter that was read from `dir`, which errors name.
pub(crate) fn read(model: &dyn CausalLM, peft: &PeftAdapter, dir: &Path) -> Result<LoRAAdapter> {
    let sites = model.sites();
    let file = |name| dir.join(name).display().to_string();
    if let Some(name) = peft.config.modules_to_save.iter().flatten().next() {
        let error = Error::Unsupported { field: "modules_to_save", name: name.clone(), available: names(sites) };
        return Err(error.in_file(&file(CONFIG)));
    }
    let config = from_config(&peft.config);
    let selected = Targets::new(&config).and_then(|t| t.select(sites)).map_err(|e| e.in_file(&file(CONFIG)))?;
    let mut found = Found { peft, problems: vec![], only_rank: true, known: BTreeSet::new() };
    let mut layers = Vec::with_capacity(sites.len());
    for (index, layer) in selected.into_iter().enumerate() {
        let (Some(layer), Some(projection)) = (layer, model.projection(index)) else {
            layers.push(None);
            continue;
        };
        layers.push(found.parameters(projection, layer)?.map(|parameters| (projection, layer, parameters)));
    }
    found.finish(file(WEIGHTS))?;
    let build = |layer: Option<(&Projection, LoRAConfig, Parameters)>| {
        layer.map(|(projection, config, values)| LoRALayer::from_parameters(projection, config, &values)).transpose()
    };
    let layers = layers.into_iter().map(build).collect::<Result<_>>()?;
    let adapter = LoRAAdapter::from_layers(config, layers);
    Ok(match &peft.config.base_model_name_or_path {
        Some(name) => adapter.with_base_model(name),
        None => adapter,
    })
}

/// What an adapter's tensors turned out to be.
struct Found<'a> {
    peft: &'a PeftAdapter,
    problems: Vec<String>,
    /// Whether all problems are ranks other than the configuration's.
    only_rank: bool,
    known: BTreeSet<String>,
}

impl Found<'_> {
    /// The parameters at one projection, or problems and nothing.
    fn parameters(&mut self, projection: &Projection, config: LoRAConfig) -> Result<Option<Parameters>> {
        let (rank, inner, outer) = (config.rank, projection.site.in_features, projection.site.out_features);
        let [a, b, magnitude] = keys(&projection.site.path);
        let a = self.tensor(a, &[rank, inner], Some(0))?;
        let b = self.tensor(b, &[outer, rank], Some(1))?;
        if !config.use_dora {
            return Ok(a.zip(b).map(|(a, b)| Parameters { a, b, magnitude: None }));
        }
        let magnitude = self.tensor(magnitude, &[outer], None)?;
        Ok(a.zip(b).zip(magnitude).map(|((a, b), magnitude)| Parameters { a, b, magnitude: Some(magnitude) }))
    }

    /// The tensor of a name in `f32`, if it is as it should be; `rank` is the dimension that is the rank.
    fn tensor(&mut self, key: String, expected: &[usize], rank: Option<usize>) -> Result<Option<Tensor>> {
        let (tensor, problem, only_rank) = match self.peft.tensors.get(&key) {
            None => (None, format!("no tensor `{key}`"), false),
            Some(t) if t.dims() != expected => {
                let same = |(i, (a, b)): (usize, (&usize, &usize))| Some(i) == rank || a == b;
                let only_rank = t.rank() == expected.len() && t.dims().iter().zip(expected).enumerate().all(same);
                let problem = format!("tensor `{key}` is {}, expected {}", shape(t.dims()), shape(expected));
                (None, problem, only_rank)
            }
            Some(t) if !t.dtype().is_float() => {
                (None, format!("tensor `{key}` is of {:?}, expected a float", t.dtype()), false)
            }
            Some(t) => {
                let t = t.to_dtype(DType::F32)?;
                let finite = t.flatten_all()?.to_vec1::<f32>()?.iter().all(|v| v.is_finite());
                (finite.then_some(t), format!("tensor `{key}` {NOT_FINITE}"), false)
            }
        };
        if tensor.is_none() {
            self.problems.push(problem);
            self.only_rank &= only_rank;
        }
        self.known.insert(key);
        Ok(tensor)
    }

    fn finish(mut self, file: String) -> Result<()> {
        for key in self.peft.tensors.keys().filter(|key| !self.known.contains(*key)) {
            self.problems.push(format!("unexpected tensor `{key}`"));
            self.only_rank = false;
        }
        if self.problems.is_empty() {
            return Ok(());
        }
        let hint = if self.only_rank {
            "the tensors have another rank than adapter_config.json says"
        } else if self.problems.iter().all(|problem| problem.ends_with(NOT_FINITE)) {
            "the training that made it went wrong, or the file is damaged"
        } else {
            "this adapter was made for another model, or adapter_config.json does not belong to it"
        };
        Err(Error::Tensors { file, problems: self.problems, hint: hint.into() })
    }
}

fn shape(dims: &[usize]) -> String {
    format!("({})", dims.iter().map(usize::to_string).collect::<Vec<_>>().join(", "))
}

fn from_config(peft: &PeftConfig) -> LoRAAdapterConfig {
    let targets = |targets: &TargetModules| match targets {
        TargetModules::Names(names) => names.iter().map(|name| TargetModule::named(name)).collect(),
        TargetModules::Pattern(pattern) => vec![TargetModule::Regex(pattern.clone())],
        TargetModules::AllLinear => vec![TargetModule::AllLinear],
    };
    LoRAAdapterConfig {
        rank: peft.r,
        alpha: peft.lora_alpha,
        dropout: peft.lora_dropout,
        target_modules: targets(&peft.target_modules),
        exclude_modules: peft.exclude_modules.as_ref().map(targets).unwrap_or_default(),
        layers_to_transform: peft.layers_to_transform.clone(),
        layers_pattern: peft.layers_pattern.clone().unwrap_or_default(),
        rank_pattern: peft.rank_pattern.iter().map(|(pattern, rank)| (pattern.clone(), *rank)).collect(),
        alpha_pattern: peft.alpha_pattern.iter().map(|(pattern, alpha)| (pattern.clone(), *alpha)).collect(),
        use_rslora: peft.use_rslora,
        use_dora: peft.use_dora,
        seed: 0,
    }
}

fn to_config(config: &LoRAAdapterConfig, base_model_name: &str) -> PeftConfig {
    let targets = |targets: &[TargetModule]| match targets {
        [TargetModule::AllLinear] => TargetModules::AllLinear,
        [TargetModule::Regex(pattern)] => TargetModules::Pattern(pattern.clone()),
        names => TargetModules::Names(names.iter().map(ToString::to_string).collect()),
    };
    let some = |list: &[TargetModule]| (!list.is_empty()).then(|| targets(list));
    PeftConfig {
        base_model_name_or_path: (!base_model_name.is_empty()).then(|| base_model_name.into()),
        r: config.rank,
        lora_alpha: config.alpha,
        lora_dropout: config.dropout,
        target_modules: targets(&config.target_modules),
        exclude_modules: some(&config.exclude_modules),
        use_rslora: config.use_rslora,
        use_dora: config.use_dora,
        rank_pattern: config.rank_pattern.iter().cloned().collect(),
        alpha_pattern: config.alpha_pattern.iter().cloned().collect(),
        layers_to_transform: config.layers_to_transform.clone(),
        layers_pattern: (!config.layers_pattern.is_empty()).then(|| config.layers_pattern.clone()),
        ..PeftConfig::default()
    }
}
