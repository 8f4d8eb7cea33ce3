//! ModernBERT: rotary positions, norms before each half, a gated feed-forward, and layers of which most see only what is
//! near (Warner et al., "Smarter, Better, Faster, Longer", 2024).

use crate::{
    Encoder, Result, TextEncoder, Texts,
    encoder::Renamed,
    fields::Fields,
    loading::{Loading, Norm},
    rope::RopeConfig,
};
use candle_core::{DType, Device, Tensor};
use mc_backend::{
    Computation, Weight,
    ops::{self, Activation, Attention, EncoderAttention, EncoderFeedForward, Gelu, Projections, Rope},
};
use mc_checkpoint::WeightSource;
use std::sync::Arc;

const WORDS: &str = "embeddings.tok_embeddings.weight";

/// Sizes and settings.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Config {
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    heads: usize,
    max_tokens: usize,
    eps: f64,
    norm_bias: bool,
    attention_bias: bool,
    mlp_bias: bool,
    /// How far a token sees where it does not see all: less than so many positions.
    window: usize,
    /// Per layer, whether it sees only what is near.
    local: Vec<bool>,
    /// Rotation where all is seen, and where only what is near.
    ropes: [RopeConfig; 2],
}

pub(crate) fn configure(fields: &Fields) -> Result<Config> {
    let hidden_size = fields.required_size("hidden_size", 1..=131_072)?;
    let layers = fields.required_size("num_hidden_layers", 1..=1_024)?;
    let heads = fields.heads("num_attention_heads", hidden_size)?;
    if !(hidden_size / heads).is_multiple_of(2) {
        let problem = format!("is {heads}: heads of {} cannot turn in pairs", hidden_size / heads);
        return Err(fields.error("num_attention_heads", problem));
    }
    if fields.gelu("hidden_activation")? != Gelu::Exact {
        return Err(fields.error("hidden_activation", "is by tanh, expected \"gelu\""));
    }
    Ok(Config {
        vocab_size: fields.required_size("vocab_size", 1..=10_000_000)?,
        hidden_size,
        intermediate_size: fields.required_size("intermediate_size", 1..=1_048_576)?,
        heads,
        max_tokens: fields.size("max_position_embeddings", 1..=1 << 24)?.unwrap_or(8_192),
        eps: fields.number("norm_eps", 0.0..=0.1)?.unwrap_or(1e-5),
        norm_bias: fields.flag("norm_bias", false)?,
        attention_bias: fields.flag("attention_bias", false)?,
        mlp_bias: fields.flag("mlp_bias", false)?,
        window: fields.size("local_attention", 1..=1 << 24)?.unwrap_or(128) / 2 + 1,
        local: local(fields, layers)?,
        ropes: [
            fields.rope_of("full_attention", "global_rope_theta", 160_000.0)?,
            fields.rope_of("sliding_attention", "local_rope_theta", 10_000.0)?,
        ],
    })
}

/// Per layer, whether it sees only what is near.
fn local(fields: &Fields, layers: usize) -> Result<Vec<bool>> {
    let every = fields.size("global_attn_every_n_layers", 1..=1_024)?.unwrap_or(3);
    let Some(types) = fields.list("layer_types", layers)? else {
        return Ok((0..layers).map(|i| i % every != 0).collect());
    };
    let one = |kind: &serde_json::Value| match kind.as_str() {
        Some("full_attention") => Ok(false),
        Some("sliding_attention") => Ok(true),
        _ => Err(fields.error("layer_types", format!("has {kind}, expected full_attention or sliding_attention"))),
    };
    types.iter().map(one).collect()
}

#[derive(Debug)]
pub(crate) struct ModernBert {
    config: Config,
    device: Device,
    dtype: DType,
    words: Weight,
    norm: Norm,
    layers: Vec<Layer>,
    final_norm: Norm,
    ropes: [Arc<Rope>; 2],
}

#[derive(Debug)]
struct Layer {
    /// The first layer reads what is normal already.
    attention_norm: Option<Norm>,
    qkv: Projections,
    attention_out: Projections,
    norm: Norm,
    up: Projections,
    down: Projections,
}

impl ModernBert {
    pub(crate) fn load(
        config: Config,
        source: &dyn WeightSource,
        device: &Device,
        dtype: Option<DType>,
    ) -> Result<Self> {
        let source = Renamed::prefixed(source, &["model.", ""], WORDS);
        let loading = Loading::new(&source, device, dtype);
        let c = &config;
        let (hidden, inner) = (c.hidden_size, c.intermediate_size);
        let mut layers = Vec::with_capacity(c.local.len());
        for index in 0..c.local.len() {
            let at = |name: &str| format!("layers.{index}.{name}");
            let projection = |name: &str, shape, bias| loading.projections(&[at(name)], shape, bias);
            let qkv = projection("attn.Wqkv", (3 * hidden, hidden), c.attention_bias)?;
            let attention_out = projection("attn.Wo", (hidden, hidden), c.attention_bias)?;
            let up = projection("mlp.Wi", (2 * inner, hidden), c.mlp_bias)?;
            let down = projection("mlp.Wo", (hidden, inner), c.mlp_bias)?;
            let norm = |name: &str| loading.layer_norm(&at(name), hidden, c.norm_bias, c.eps);
            let attention_norm = (index > 0).then(|| norm("attn_norm")).transpose()?;
            layers.push(Layer { attention_norm, qkv, attention_out, norm: norm("mlp_norm")?, up, down });
        }
        let head_dim = hidden / c.heads;
        Ok(Self {
            device: device.clone(),
            dtype: loading.activations,
            words: loading.table(WORDS, (c.vocab_size, hidden))?,
            norm: loading.layer_norm("embeddings.norm", hidden, c.norm_bias, c.eps)?,
            layers,
            final_norm: loading.layer_norm("final_norm", hidden, c.norm_bias, c.eps)?,
            ropes: c.ropes.each_ref().map(|rope| Rope::new(rope.inverse_frequencies(head_dim), device)),
            config,
        })
    }
}

impl Encoder for ModernBert {
    fn model_type(&self) -> &'static str {
        "modernbert"
    }

    fn hidden_size(&self) -> usize {
        self.config.hidden_size
    }

    fn vocab_size(&self) -> usize {
        self.config.vocab_size
    }

    fn max_tokens(&self) -> usize {
        self.config.max_tokens
    }

    fn device(&self) -> &Device {
        &self.device
    }

    fn dtype(&self) -> DType {
        self.dtype
    }

    fn computation(&self) -> Computation {
        self.layers.first().map_or_else(|| self.words.computation(), |layer| layer.up.computation())
    }

    fn hidden(&self, texts: &Texts) -> candle_core::Result<Tensor> {
        texts.check(self.max_tokens())?;
        let c = &self.config;
        if texts.token_types.is_some_and(|types| types.iter().any(|t| *t != 0)) {
            candle_core::bail!("a modernbert has no token types")
        }
        let positions: Arc<[u32]> = texts.lengths.iter().flat_map(|n| 0..*n as u32).collect();
        let all = Attention { segments: Some(texts.segments().into()), ..Attention::default() };
        let near = Attention { window: Some(c.window), ..all.clone() };
        let words = ops::embedding(texts.ids, &[1, texts.ids.len()], &self.words, self.dtype)?;
        let mut x = self.norm.forward(&words)?;
        for (layer, local) in self.layers.iter().zip(&c.local) {
            let half = EncoderAttention {
                before: layer.attention_norm.as_ref().map(Norm::op),
                qkv: &layer.qkv,
                o: &layer.attention_out,
                after: None,
                head_dim: c.hidden_size / c.heads,
                rope: Some((&self.ropes[usize::from(*local)], &positions)),
                how: if *local { &near } else { &all },
            };
            let (before, activation) = (Some(layer.norm.op()), Activation::Geglu);
            let feed = EncoderFeedForward { before, up: &layer.up, activation, down: &layer.down, after: None };
            x = ops::encoder_feed_forward(&ops::encoder_attention(&x, &half)?, &feed)?;
        }
        self.final_norm.forward(&x)?.squeeze(0)
    }

    fn plain(&self, dtype: DType) -> candle_core::Result<TextEncoder> {
        let layer = |l: &Layer| -> candle_core::Result<Layer> {
            let (attention_norm, norm) = (l.attention_norm.clone(), l.norm.clone());
            let (qkv, attention_out) = (l.qkv.plain(dtype)?, l.attention_out.plain(dtype)?);
            Ok(Layer { attention_norm, qkv, attention_out, norm, up: l.up.plain(dtype)?, down: l.down.plain(dtype)? })
        };
        Ok(Arc::new(Self {
            config: self.config.clone(),
            device: self.device.clone(),
            dtype,
            words: self.words.plain(dtype)?,
            norm: self.norm.clone(),
            layers: self.layers.iter().map(layer).collect::<candle_core::Result<_>>()?,
            final_norm: self.final_norm.clone(),
            ropes: self.ropes.clone(),
        }))
    }
}
