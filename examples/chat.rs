//! Answers one message through the model's chat template, streaming, with an adapter if one is named.
//!
//! Run with: `cargo run --release -p mc-examples --bin chat -- MODEL_DIR "Why is the sky blue?" [ADAPTER_DIR]`

use metal_candle::{
    checkpoint::ModelDir,
    prelude::*,
    text::{ChatTemplate, Message},
};
use std::{io::Write, sync::Arc};

fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    let (Some(directory), Some(question)) = (args.next(), args.next()) else {
        anyhow::bail!("usage: chat MODEL_DIR QUESTION [ADAPTER_DIR]")
    };
    let dir = ModelDir::open(&directory)?;
    let model = ModelLoader::new().with_device(Device::new_with_fallback(0)).load_dir(&dir)?;
    // Which tokens end an answer stands in generation_config.json, and how the model's makers would sample.
    let recommended = GeneratorConfig::from_generation_config(&dir.generation_config()?);
    let config = GeneratorConfig { max_tokens: 128, ..recommended };
    let mut generator = Generator::new(model.clone(), Tokenizer::load(&directory)?, config)?
        .with_chat_template(ChatTemplate::load(&directory)?);
    if let Some(adapter) = args.next() {
        generator = generator.with_adapter(Arc::new(LoRAAdapter::load(&model, adapter)?.freeze(&model)?));
    }
    generator.chat_stream(&[Message::new("user", question)], |token| {
        print!("{}", token.text);
        std::io::stdout().flush().is_ok()
    })?;
    println!();
    Ok(())
}
