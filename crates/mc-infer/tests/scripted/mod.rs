//! A model that says what it is told to, whatever it reads: for tests of what lies around a model.

use candle_core::{DType, Device, Result, Tensor};
use mc_backend::Weight;
use mc_models::{CausalLM, ModelConfig, Pass, Projection, Site};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Each call for logits names the next token of a script as the likeliest by far; after the last one, token 0.
pub(crate) struct Scripted {
    config: ModelConfig,
    head: Weight,
    script: Vec<u32>,
    next: AtomicUsize,
}

impl Scripted {
    /// In a script: logits that are no numbers.
    #[allow(dead_code, reason = "not every test file breaks a model")]
    pub(crate) const NAN: u32 = u32::MAX;
    /// In a script: every token is as likely as any other.
    #[allow(dead_code, reason = "not every test file draws")]
    pub(crate) const FLAT: u32 = u32::MAX - 1;

    pub(crate) fn new(vocab_size: usize, script: &[u32]) -> Self {
        let json = serde_json::json!({
            "model_type": "qwen2", "vocab_size": vocab_size, "hidden_size": 2, "intermediate_size": 2,
            "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1,
            "max_position_embeddings": 10_000,
        });
        // No blocks: then there is nothing to attend to, and nothing to cache.
        let config = ModelConfig { num_hidden_layers: 0, ..ModelConfig::from_json("script", &json).unwrap() };
        let head = Weight::from_tensor(&Tensor::zeros((vocab_size, 2), DType::F32, &Device::Cpu).unwrap()).unwrap();
        Self { config, head, script: script.to_vec(), next: AtomicUsize::new(0) }
    }

    /// How many times logits were asked for.
    #[allow(dead_code, reason = "not every test file counts")]
    pub(crate) fn passes(&self) -> usize {
        self.next.load(Ordering::Relaxed)
    }

    /// Starts the script again.
    #[allow(dead_code, reason = "not every test file plays a script twice")]
    pub(crate) fn rewind(&self) {
        self.next.store(0, Ordering::Relaxed);
    }
}

impl CausalLM for Scripted {
    fn config(&self) -> &ModelConfig {
        &self.config
    }
    fn device(&self) -> &Device {
        &Device::Cpu
    }
    fn dtype(&self) -> DType {
        DType::F32
    }
    fn sites(&self) -> &[Site] {
        &[]
    }
    fn projection(&self, _: usize) -> Option<&Projection> {
        None
    }
    fn embed(&self, _: &[u32], (b, t): (usize, usize)) -> Result<Tensor> {
        Tensor::zeros((b, t, 2), DType::F32, &Device::Cpu)
    }
    fn block(&self, _: usize, x: &Tensor, _: &mut Pass) -> Result<Tensor> {
        Ok(x.clone())
    }
    fn norm(&self, x: &Tensor) -> Result<Tensor> {
        Ok(x.clone())
    }
    fn head(&self) -> &Weight {
        &self.head
    }
    fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        assert_eq!(hidden.dims(), [1, 1, 2], "only the last position has to be known");
        let token = self.script.get(self.next.fetch_add(1, Ordering::Relaxed)).copied().unwrap_or(0);
        let mut logits = vec![-10.0; self.config.vocab_size];
        match logits.get_mut(token as usize) {
            Some(logit) => *logit = 10.0,
            None if token == Self::FLAT => {}
            None => logits.fill(f32::NAN),
        }
        Tensor::from_vec(logits, (1, 1, self.config.vocab_size), &Device::Cpu)
    }
}
