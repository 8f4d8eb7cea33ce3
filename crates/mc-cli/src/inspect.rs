//! `metal-candle inspect`: what a model or an adapter is, before anything is computed with it.

use crate::{failure::wrong, global::Global, report, source};
use anyhow::Result;
use metal_candle::{
    checkpoint::PeftAdapter,
    models::RopeScaling,
    prelude::{Device, ModelLoader},
};
use serde_json::json;
use std::path::Path;

/// Show what a model or an adapter is
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  metal-candle inspect\n  metal-candle inspect models/qwen\n  metal-candle inspect adapters/shell --json"
)]
pub(crate) struct Args {
    /// Directory or hub id of a model, or directory of an adapter [default: the embedded model]
    #[arg(value_name = "ID|DIR")]
    name: Option<String>,
    /// Also list every projection that can carry an adapter
    #[arg(long)]
    sites: bool,
}

pub(crate) fn run(global: &Global, args: &Args) -> Result<()> {
    if global.device != "auto" || global.dtype != "auto" || global.threads.is_some() {
        global.say("--device, --dtype and --threads change nothing here: nothing is computed");
    }
    let path = Path::new(args.name.as_deref().unwrap_or_default());
    if path.is_file() {
        return Err(wrong(format!("{} is a file", path.display()), "name the directory it is in"));
    }
    if path.join("adapter_config.json").is_file() && args.name.is_some() {
        adapter(global, path)
    } else {
        model(global, args)
    }
}

fn model(global: &Global, args: &Args) -> Result<()> {
    let source = source::Source::open(global, args.name.as_deref())?;
    let config = &source.config;
    let weights = source.dir.weights()?;
    let mut parameters = 0u64;
    let mut dtypes = std::collections::BTreeMap::<String, u64>::new();
    for name in weights.names() {
        let n: usize = weights.shape(&name).unwrap_or_default().iter().product();
        parameters += n as u64;
        let dtype = weights.dtype(&name).map_or("other".into(), |d| d.as_str().to_string());
        *dtypes.entry(dtype).or_default() += n as u64;
    }
    // Mapped, so this costs no memory; it shows that every tensor is there with its right shape.
    let model = ModelLoader::new().with_device(Device::Cpu).load_dir(&source.dir)?;
    let generation = source.dir.generation_config()?;
    if global.json {
        return report::json(&json!({
            "kind": "model", "name": source.name(), "model_type": config.model_type, "parameters": parameters,
            "dtypes": dtypes, "vocab_size": config.vocab_size, "hidden_size": config.hidden_size,
            "intermediate_size": config.intermediate_size, "num_hidden_layers": config.num_hidden_layers,
            "num_attention_heads": config.num_attention_heads, "num_key_value_heads": config.num_key_value_heads,
            "head_dim": config.head_dim, "max_position_embeddings": config.max_position_embeddings,
            "rope_theta": config.rope.theta, "eos_token_ids": generation.eos_token_ids,
            "chat_template": source.chat_template.is_some(),
            "sites": model.sites().iter().map(|s| json!({"path": s.path, "in": s.in_features, "out": s.out_features})).collect::<Vec<_>>(),
        }));
    }
    let types: Vec<_> = dtypes.iter().map(|(dtype, n)| format!("{} {dtype}", report::count(*n))).collect();
    report::line(&format!(
        "{}: {} model, {} parameters ({})",
        source.name(),
        config.model_type,
        report::count(parameters),
        types.join(", ")
    ))?;
    let c = config;
    report::line(&format!(
        "  blocks           {} of width {}, feed-forward {}",
        c.num_hidden_layers, c.hidden_size, c.intermediate_size
    ))?;
    report::line(&format!(
        "  attention        {} heads over {}, width {}",
        c.num_attention_heads, c.num_key_value_heads, c.head_dim
    ))?;
    let windows = c.sliding_windows.iter().flatten().count();
    if windows > 0 {
        report::line(&format!(
            "  sliding window   in {windows} blocks, {} tokens",
            c.sliding_windows.iter().flatten().next().unwrap_or(&0)
        ))?;
    }
    report::line(&format!(
        "  context          {} tokens, rope theta {}{}",
        report::count(c.max_position_embeddings),
        c.rope.theta,
        match &c.rope.scaling {
            RopeScaling::Default => String::new(),
            scaling => format!(", {scaling:?}"),
        }
    ))?;
    report::line(&format!(
        "  vocabulary       {}, end of text {:?}",
        report::count(c.vocab_size),
        generation.eos_token_ids
    ))?;
    report::line(&format!("  chat template    {}", if source.chat_template.is_some() { "yes" } else { "no" }))?;
    let mut names: Vec<&str> = model.sites().iter().filter_map(|s| s.path.rsplit('.').next()).collect();
    names.sort_unstable();
    names.dedup();
    report::line(&format!("  adapter targets  {}", names.join(", ")))?;
    if args.sites {
        for site in model.sites() {
            report::line(&format!("  {} {} → {}", site.path, site.in_features, site.out_features))?;
        }
    }
    Ok(())
}

fn adapter(global: &Global, path: &Path) -> Result<()> {
    let adapter = PeftAdapter::read(path, &Device::Cpu)?;
    let config = &adapter.config;
    let parameters: usize = adapter.tensors.values().map(metal_candle::prelude::Tensor::elem_count).sum();
    let settings = serde_json::to_value(config)?;
    if global.json {
        return report::json(&json!({
            "kind": "adapter", "path": path, "parameters": parameters, "tensors": adapter.tensors.len(),
            "config": settings, "metadata": adapter.metadata,
        }));
    }
    report::line(&format!(
        "{}: LoRA adapter, {} parameters in {} tensors",
        path.display(),
        report::count(parameters as u64),
        adapter.tensors.len()
    ))?;
    for field in [
        "base_model_name_or_path",
        "r",
        "lora_alpha",
        "lora_dropout",
        "target_modules",
        "use_rslora",
        "use_dora",
        "rank_pattern",
        "alpha_pattern",
    ] {
        if let Some(value) = settings.get(field).filter(|v| !v.is_null() && **v != json!({})) {
            report::line(&format!("  {field:24} {value}"))?;
        }
    }
    let odd = adapter.tensors.iter().find(|(name, tensor)| {
        name.ends_with("lora_A.weight") && config.rank_pattern.is_empty() && tensor.dims().first() != Some(&config.r)
    });
    if let Some((name, tensor)) = odd {
        global.say(format!(
            "warning: `{name}` is {:?}, which is not of rank {}: no model can load it",
            tensor.dims(),
            config.r
        ));
    }
    for (name, value) in adapter.metadata.iter().filter(|(name, _)| *name != "format") {
        report::line(&format!("  {name:24} {value}"))?;
    }
    Ok(())
}
