//! Answers one message through the model's chat template, streaming, with an adapter if one is named.
//!
//! Run with: `cargo run --release -p mc-examples --bin chat -- MODEL_DIR "Why is the sky blue?" [ADAPTER_DIR]`

use metal_candle::prelude::*;
use std::{io::Write, sync::Arc};

fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    let (Some(directory), Some(question)) = (args.next(), args.next()) else {
        anyhow::bail!("usage: chat MODEL_DIR QUESTION [ADAPTER_DIR]")
    };
    // A directory; with `--features metal-candle/hub` also an id on the hub. Its settings are those that the model's makers recommend.
    let generator = Generator::from_pretrained(directory, Device::new_with_fallback(0))?;
    let mut generator = generator.with_config(GeneratorConfig { max_tokens: 128, ..generator.config().clone() })?;
    if let Some(adapter) = args.next() {
        let model = generator.model();
        let adapter = LoRAAdapter::load(model, adapter)?.freeze(model)?;
        generator = generator.with_adapter(Arc::new(adapter));
    }
    generator.chat_stream(&[Message::new("user", question)], |token| {
        print!("{}", token.text);
        std::io::stdout().flush().is_ok()
    })?;
    println!();
    Ok(())
}
