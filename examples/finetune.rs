//! Trains a LoRA adapter on a file of records and saves it as a PEFT directory.
//!
//! Run with: `cargo run --release -p mc-examples --bin finetune -- MODEL_DIR train.jsonl adapters/mine`

use metal_candle::{
    prelude::*,
    text::ChatTemplate,
    training::{Observer, StepMetrics},
};
use std::ops::ControlFlow;

struct Print;

impl Observer for Print {
    fn on_step(&mut self, m: &StepMetrics) -> ControlFlow<()> {
        println!("step {:4}  loss {:.4}  {:.0} tokens/s", m.step, m.loss, m.tokens_per_second);
        ControlFlow::Continue(())
    }
}

fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    let (Some(directory), Some(data), Some(output)) = (args.next(), args.next(), args.next()) else {
        anyhow::bail!("usage: finetune MODEL_DIR train.jsonl OUTPUT_DIR")
    };
    let device = Device::new_with_fallback(0); // Metal, then CUDA, then CPU
    let model = ModelLoader::new().with_device(device).load(&directory)?;
    let tokenizer = Tokenizer::load(&directory)?;
    let options = DatasetOptions { chat_template: ChatTemplate::load(&directory)?, ..Default::default() };
    let dataset = Dataset::load(data, &tokenizer, &options)?;

    let adapter = LoRAAdapter::new(
        &model,
        LoRAAdapterConfig {
            rank: 8,
            alpha: 16.0,
            dropout: 0.0,
            target_modules: vec![TargetModule::QProj, TargetModule::VProj],
            ..Default::default()
        },
    )?
    .with_base_model(directory);
    let mut config = TrainingConfig { num_epochs: 3, max_grad_norm: Some(1.0), ..Default::default() };
    config.lr_scheduler = LRScheduler::warmup_cosine(10, config.total_steps(dataset.len()), 1e-4, 1e-6);
    let mut trainer = Trainer::new(model, adapter, config)?.with_observer(Box::new(Print));
    let metrics = trainer.train(&dataset)?;
    save_checkpoint(trainer.lora_adapter(), &output, None)?;
    println!("{} steps, adapter in {output}", metrics.steps);
    Ok(())
}
