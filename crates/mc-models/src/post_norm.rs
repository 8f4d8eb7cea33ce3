//! The encoder of BERT and those that followed it: learned positions, and a norm after each half of a layer.
//!
//! What differs between them is names, the place where positions begin, and a bias on the scores of attention; that is
//! said by one file each.

use crate::{
    Encoder, Result, TextEncoder, Texts,
    encoder::Renamed,
    fields::Fields,
    loading::{Loading, Norm},
};
use candle_core::{DType, Device, Tensor};
use mc_backend::{
    Computation, Weight,
    ops::{self, Activation, Attention, EncoderAttention, EncoderFeedForward, Gelu, Projections, RelativeBias},
};
use mc_checkpoint::WeightSource;
use std::sync::Arc;

/// Sizes and settings.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Config {
    pub(crate) model_type: String,
    pub(crate) vocab_size: usize,
    pub(crate) hidden_size: usize,
    pub(crate) intermediate_size: usize,
    pub(crate) layers: usize,
    pub(crate) heads: usize,
    /// Rows of the table of positions.
    pub(crate) positions: usize,
    /// The id of padding where positions begin after it, and it has that position itself.
    pub(crate) padding: Option<u32>,
    /// Rows of the table of token types; 0 if there is none.
    pub(crate) types: usize,
    pub(crate) eps: f64,
    pub(crate) gelu: Gelu,
    /// Buckets of the relative bias of attention scores.
    pub(crate) buckets: Option<usize>,
}

/// What a checkpoint calls the parts of a layer.
pub(crate) struct Names {
    /// What may stand before all names, the empty one last.
    pub(crate) prefixes: &'static [&'static str],
    pub(crate) layers: &'static str,
    pub(crate) qkv: [&'static str; 3],
    pub(crate) o: &'static str,
    pub(crate) attention_norm: &'static str,
    pub(crate) up: &'static str,
    pub(crate) down: &'static str,
    pub(crate) norm: &'static str,
}

const WORDS: &str = "embeddings.word_embeddings.weight";

#[derive(Debug)]
pub(crate) struct PostNorm {
    config: Config,
    device: Device,
    dtype: DType,
    words: Weight,
    positions: Weight,
    types: Option<Weight>,
    norm: Norm,
    layers: Vec<Layer>,
    bias: Option<Arc<RelativeBias>>,
}

#[derive(Debug)]
struct Layer {
    qkv: Projections,
    o: Projections,
    attention_norm: Norm,
    up: Projections,
    down: Projections,
    norm: Norm,
}

impl Config {
    /// The fields that BERT has, by the names that it gives them.
    pub(crate) fn bert(fields: &Fields, model_type: String) -> Result<Self> {
        let hidden_size = fields.required_size("hidden_size", 1..=131_072)?;
        for field in ["is_decoder", "is_causal", "add_cross_attention"] {
            if fields.flag(field, false)? {
                return Err(fields.error(field, "is true: this is no encoder"));
            }
        }
        fields.expect_text("position_embedding_type", "absolute")?;
        Ok(Self {
            model_type,
            vocab_size: fields.required_size("vocab_size", 1..=10_000_000)?,
            hidden_size,
            intermediate_size: fields.required_size("intermediate_size", 1..=1_048_576)?,
            layers: fields.required_size("num_hidden_layers", 1..=1_024)?,
            heads: fields.heads("num_attention_heads", hidden_size)?,
            positions: fields.required_size("max_position_embeddings", 1..=1 << 24)?,
            padding: None,
            types: fields.size("type_vocab_size", 1..=1_024)?.unwrap_or(2),
            eps: fields.number("layer_norm_eps", 0.0..=0.1)?.unwrap_or(1e-12),
            gelu: fields.gelu("hidden_act")?,
            buckets: None,
        })
    }

    /// The same with positions that begin after that of padding.
    pub(crate) fn after_padding(self, fields: &Fields) -> Result<Self> {
        let id = fields.size("pad_token_id", 0..=10_000_000)?.unwrap_or(1);
        if id + 1 >= self.positions {
            let problem = format!("is {id}, which leaves none of {} positions", self.positions);
            return Err(fields.error("pad_token_id", problem));
        }
        Ok(Self { padding: Some(id as u32), ..self })
    }

    fn max_tokens(&self) -> usize {
        self.positions - self.padding.map_or(0, |id| id as usize + 1)
    }
}

impl PostNorm {
    pub(crate) fn load(
        config: Config,
        names: &Names,
        source: &dyn WeightSource,
        device: &Device,
        dtype: Option<DType>,
    ) -> Result<Self> {
        let source = Renamed::prefixed(source, names.prefixes, WORDS);
        let loading = Loading::new(&source, device, dtype);
        let c = &config;
        let (hidden, inner) = (c.hidden_size, c.intermediate_size);
        let mut layers = Vec::with_capacity(c.layers);
        for index in 0..c.layers {
            let at = |name: &str| format!("{}.{index}.{name}", names.layers);
            let projections = |names: &[&str], shape| {
                loading.projections(&names.iter().map(|name| at(name)).collect::<Vec<_>>(), shape, true)
            };
            let (qkv, o) = (projections(&names.qkv, (hidden, hidden))?, projections(&[names.o], (hidden, hidden))?);
            let (up, down) = (projections(&[names.up], (inner, hidden))?, projections(&[names.down], (hidden, inner))?);
            let attention_norm = loading.layer_norm(&at(names.attention_norm), hidden, true, c.eps)?;
            let norm = loading.layer_norm(&at(names.norm), hidden, true, c.eps)?;
            layers.push(Layer { qkv, o, attention_norm, up, down, norm });
        }
        let bias = match c.buckets {
            Some(buckets) => Some(relative_bias(&source, buckets, c.heads)?),
            None => None,
        };
        let types = (c.types > 0).then(|| loading.table("embeddings.token_type_embeddings.weight", (c.types, hidden)));
        Ok(Self {
            device: device.clone(),
            dtype: loading.activations,
            words: loading.table(WORDS, (c.vocab_size, hidden))?,
            positions: loading.table("embeddings.position_embeddings.weight", (c.positions, hidden))?,
            types: types.transpose()?,
            norm: loading.layer_norm("embeddings.LayerNorm", hidden, true, c.eps)?,
            layers,
            bias,
            config,
        })
    }

    /// Words, positions and types, `(1, tokens, hidden)`.
    fn embed(&self, texts: &Texts) -> candle_core::Result<Tensor> {
        let shape = [1, texts.ids.len()];
        let row = |ids: &[u32], table: &Weight| ops::embedding(ids, &shape, table, self.dtype);
        let mut positions = Vec::with_capacity(texts.ids.len());
        for segment in texts.segments() {
            let mut next = self.config.padding.map_or(0, |id| id + 1);
            for id in &texts.ids[segment] {
                let padding = self.config.padding.filter(|padding| padding == id);
                positions.push(padding.unwrap_or(next));
                next += u32::from(padding.is_none());
            }
        }
        let mut x = row(texts.ids, &self.words)?;
        match (&self.types, texts.token_types) {
            (Some(table), Some(types)) => {
                if let Some(found) = types.iter().find(|t| **t as usize >= table.rows()) {
                    candle_core::bail!("token type {found} is not below the {} of the model", table.rows())
                }
                x = (x + row(types, table)?)?;
            }
            (Some(table), None) => x = (x + row(&vec![0; texts.ids.len()], table)?)?,
            (None, _) => {}
        }
        self.norm.forward(&(x + row(&positions, &self.positions)?)?)
    }
}

impl Encoder for PostNorm {
    fn model_type(&self) -> &str {
        &self.config.model_type
    }

    fn hidden_size(&self) -> usize {
        self.config.hidden_size
    }

    fn vocab_size(&self) -> usize {
        self.config.vocab_size
    }

    fn max_tokens(&self) -> usize {
        self.config.max_tokens()
    }

    fn token_types(&self) -> usize {
        self.config.types
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
        let how =
            Attention { segments: Some(texts.segments().into()), bias: self.bias.clone(), ..Attention::default() };
        let mut x = self.embed(texts)?;
        for layer in &self.layers {
            let half = EncoderAttention {
                before: None,
                qkv: &layer.qkv,
                o: &layer.o,
                after: Some(layer.attention_norm.op()),
                head_dim: c.hidden_size / c.heads,
                rope: None,
                how: &how,
            };
            let activation = Activation::Gelu(c.gelu);
            let after = Some(layer.norm.op());
            let feed = EncoderFeedForward { before: None, up: &layer.up, activation, down: &layer.down, after };
            x = ops::encoder_feed_forward(&ops::encoder_attention(&x, &half)?, &feed)?;
        }
        x.squeeze(0)
    }

    fn plain(&self, dtype: DType) -> candle_core::Result<TextEncoder> {
        let layer = |l: &Layer| -> candle_core::Result<Layer> {
            let (attention_norm, norm) = (l.attention_norm.clone(), l.norm.clone());
            let (qkv, o) = (l.qkv.plain(dtype)?, l.o.plain(dtype)?);
            Ok(Layer { qkv, o, attention_norm, up: l.up.plain(dtype)?, down: l.down.plain(dtype)?, norm })
        };
        Ok(Arc::new(Self {
            config: self.config.clone(),
            device: self.device.clone(),
            dtype,
            words: self.words.plain(dtype)?,
            positions: self.positions.plain(dtype)?,
            types: self.types.as_ref().map(|t| t.plain(dtype)).transpose()?,
            norm: self.norm.clone(),
            layers: self.layers.iter().map(layer).collect::<candle_core::Result<_>>()?,
            bias: self.bias.clone(),
        }))
    }
}

/// The bias of scores by distance, in buckets that are wider far away: half of them for keys after the query, and of each
/// half one for every distance up to its middle, then ever more, up to 128 (transformers, `modeling_mpnet.py`).
fn relative_bias(source: &dyn WeightSource, buckets: usize, heads: usize) -> Result<Arc<RelativeBias>> {
    const FARTHEST: usize = 128;
    let name = "encoder.relative_attention_bias.weight";
    let table = source.tensor(name, &[buckets, heads], &Device::Cpu, DType::F32)?.to_vec2::<f32>()?;
    let half = buckets / 2;
    let near = half / 2;
    let bucket = |distance: isize| {
        let side = if distance > 0 { half } else { 0 };
        let n = distance.unsigned_abs();
        if n < near {
            return side + n;
        }
        // In f32, as the weights were trained with.
        let share = (n as f32 / near as f32).ln() / ((FARTHEST as f64 / near as f64).ln() as f32);
        side + (near + (share * (half - near) as f32) as usize).min(half - 1)
    };
    Ok(RelativeBias::new(heads, FARTHEST, |head, distance| table[bucket(distance)][head]))
}

#[cfg(test)]
mod tests {
    use crate::{bert, distilbert, fields::Fields, mpnet, xlm_roberta};
    use serde_json::json;

    /// What transformers 5.23 takes where a config.json does not say; another usual one, 1e-5, would show in no golden file.
    #[test]
    fn the_epsilon_that_nobody_names() {
        let json = json!({
            "vocab_size": 9, "hidden_size": 4, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
            "max_position_embeddings": 16, "dim": 4, "hidden_dim": 8, "n_layers": 1, "n_heads": 2,
        });
        for configure in [bert::configure, mpnet::configure, xlm_roberta::configure, distilbert::configure] {
            let config = Fields::new("config.json", &json).and_then(|fields| configure(&fields, String::new()));
            assert_eq!(config.unwrap().eps, 1e-12);
        }
    }
}
