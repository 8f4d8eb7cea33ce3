//! An encoder with a head that scores whole texts: what judges pairs for reranking.

use crate::{Result, TextEncoder, Texts, encoder::Renamed, loading::Loading};
use candle_core::{DType, Device, Tensor};
use mc_backend::{Weight, ops};
use mc_checkpoint::WeightSource;

/// An encoder and what reads the hidden state of each text's first token.
#[derive(Debug)]
pub struct Classifier {
    encoder: TextEncoder,
    dense: (Weight, Tensor),
    out: (Weight, Tensor),
}

impl Classifier {
    /// The head that is in `source` beside `encoder`.
    ///
    /// # Errors
    /// If there is none, or one of another shape.
    pub(crate) fn load(
        encoder: TextEncoder,
        source: &dyn WeightSource,
        device: &Device,
        dtype: Option<DType>,
    ) -> Result<Self> {
        // BERT's pooler is part of the encoder, the first layer of the others is part of the head.
        let (dense, out) = match encoder.model_type() {
            "bert" => ("pooler.dense", "classifier"),
            _ => ("classifier.dense", "classifier.out_proj"),
        };
        let hidden = encoder.hidden_size();
        let linear = |source: &dyn WeightSource, path: &str, out: usize| -> Result<_> {
            let loading = Loading::new(source, device, dtype);
            Ok((loading.weight(&format!("{path}.weight"), (out, hidden))?, loading.bias(&format!("{path}.bias"), out)?))
        };
        let labels = source.shape(&format!("{out}.weight")).and_then(|shape| shape.first().copied());
        let pooler = Renamed::prefixed(source, &["bert.", ""], &format!("{dense}.weight"));
        Ok(Self { dense: linear(&pooler, dense, hidden)?, out: linear(source, out, labels.unwrap_or(1))?, encoder })
    }

    /// The encoder below the head.
    pub fn encoder(&self) -> &TextEncoder {
        &self.encoder
    }

    /// How many numbers there are for each text.
    pub fn labels(&self) -> usize {
        self.out.0.rows()
    }

    /// The score of each text for each label, before any activation: `(texts, labels)`.
    ///
    /// # Errors
    /// As [`Encoder::hidden`](crate::Encoder::hidden).
    pub fn logits(&self, texts: &Texts) -> candle_core::Result<Tensor> {
        let hidden = self.encoder.hidden(texts)?;
        let first: Vec<u32> = texts.segments().iter().map(|s| s.start as u32).collect();
        let first = hidden.index_select(&Tensor::from_vec(first, texts.lengths.len(), hidden.device())?, 0)?;
        let dense = ops::linear(&first, &self.dense.0, Some(&self.dense.1))?.tanh()?;
        ops::linear(&dense, &self.out.0, Some(&self.out.1))
    }
}
