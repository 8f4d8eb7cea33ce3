//! From `--model` to what a command works with: files, tokenizer, chat template.

use crate::{embedded, global::Global, report};
use anyhow::Result;
use metal_candle::{
    checkpoint::ModelDir,
    lora::LoRAAdapter,
    models::{self, CausalLM, Model, open_model},
    text::{ChatTemplate, Tokenizer, TokenizerFiles},
};
use std::{borrow::Cow, path::Path};

/// A model's files and what its text needs.
pub(crate) struct Source {
    pub(crate) dir: ModelDir,
    pub(crate) tokenizer: Tokenizer,
    pub(crate) chat_template: Option<ChatTemplate>,
}

impl Source {
    /// Opens a directory, a hub id, or the embedded model where there is no name.
    pub(crate) fn open(global: &Global, name: Option<&str>) -> Result<Self> {
        let dir = match name.filter(|_| !embedded::is_meant(name)) {
            None => embedded::model(),
            Some(name) => open_model(name, &mut report::download(global)).map_err(|e| match e {
                // One word may be meant as a directory.
                models::Error::Checkpoint(e) if !name.contains('/') && !Path::new(name).exists() => {
                    anyhow::Error::new(e).context(format!("no directory `{name}`, and on the hub"))
                }
                e => e.into(),
            })?,
        };
        let files = tokenizer_files(&dir)?;
        let tokenizer = Tokenizer::from_files(&files)?;
        let chat_template = ChatTemplate::from_files(&files)?;
        Ok(Self { dir, tokenizer, chat_template })
    }

    pub(crate) fn load(&self, global: &Global) -> Result<Model> {
        Ok(global.loader()?.load_dir(&self.dir)?)
    }

    /// The model's name as an adapter records it.
    pub(crate) fn name(&self) -> &str {
        self.dir.name()
    }
}

/// The adapter of `--adapter`, made for `model`.
pub(crate) fn adapter(model: &dyn CausalLM, dir: &Path) -> Result<LoRAAdapter> {
    Ok(LoRAAdapter::load(model, dir)?)
}

/// A directory's tokenizer files; one in memory has no path to read them from.
fn tokenizer_files(dir: &ModelDir) -> Result<TokenizerFiles<'static>> {
    if let Some(path) = dir.path() {
        return Ok(TokenizerFiles::read(path)?);
    }
    let text = |name: &str| Ok::<_, anyhow::Error>(dir.read(name)?);
    Ok(TokenizerFiles {
        directory: dir.name().into(),
        tokenizer_json: text("tokenizer.json")?.unwrap_or(Cow::Borrowed(b"")),
        tokenizer_config: text("tokenizer_config.json")?,
        ..TokenizerFiles::default()
    })
}
