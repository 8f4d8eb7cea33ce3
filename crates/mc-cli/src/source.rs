//! From `--model` to what a command works with: files, tokenizer, chat template.

use crate::{embedded, failure::wrong, global::Global, report};
use anyhow::Result;
use metal_candle::{
    backend::{Computation, DeviceExt},
    candle_core::Device,
    checkpoint::ModelDir,
    lora::LoRAAdapter,
    models::{self, CausalLM, Model, ModelConfig, open_model},
    text::{ChatTemplate, Tokenizer, TokenizerFiles},
    training::DatasetOptions,
};
use std::{borrow::Cow, path::Path};

/// A model's files and what its text needs.
pub(crate) struct Source {
    pub(crate) dir: ModelDir,
    pub(crate) config: ModelConfig,
    pub(crate) tokenizer: Tokenizer,
    pub(crate) chat_template: Option<ChatTemplate>,
}

impl Source {
    /// Opens a directory, a hub id, or the embedded model where there is no name.
    pub(crate) fn open(global: &Global, name: Option<&str>) -> Result<Self> {
        let dir = open_decoder(global, name)?;
        let (tokenizer, chat_template) = text_of(&dir)?;
        let config = ModelConfig::read(&dir)?;
        Ok(Self { dir, config, tokenizer, chat_template })
    }

    /// As [`Source::open`], and loads the model meanwhile: reading a tokenizer takes longer than mapping weights.
    pub(crate) fn open_and_load(global: &Global, name: Option<&str>) -> Result<(Self, Model)> {
        let dir = open_decoder(global, name)?;
        let loader = global.loader()?;
        let (text, model) = std::thread::scope(|scope| {
            let model = scope.spawn(|| Ok::<_, anyhow::Error>((ModelConfig::read(&dir)?, loader.load_dir(&dir)?)));
            let text = text_of(&dir);
            (text, model.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        });
        let ((tokenizer, chat_template), (config, model)) = (text?, model?);
        Ok((Self { dir, config, tokenizer, chat_template }, model))
    }

    pub(crate) fn load(&self, global: &Global) -> Result<Model> {
        Ok(global.loader()?.load_dir(&self.dir)?)
    }

    /// The tokens that end a text, all of the model's vocabulary.
    pub(crate) fn eos_token_ids(&self) -> Result<Vec<u32>> {
        let ids = self.dir.generation_config()?.eos_token_ids;
        let size = self.config.vocab_size;
        if let Some(id) = ids.iter().find(|id| **id as usize >= size) {
            let has = |file: &str| {
                Ok::<_, anyhow::Error>(
                    self.dir
                        .read(file)?
                        .is_some_and(|text| String::from_utf8_lossy(&text).contains("\"eos_token_id\"")),
                )
            };
            let file = if has("generation_config.json")? { "generation_config.json" } else { "config.json" };
            let what = format!(
                "{}: `eos_token_id` is {id}, expected ids below the model's vocabulary of {size}",
                self.dir.file_name(file)
            );
            return Err(wrong(what, "the file belongs to another model, or was edited"));
        }
        Ok(ids)
    }

    /// The token that training puts after a text: the tokenizer's own if it ends texts, else the first that does.
    fn eos_token_id(&self) -> Result<Option<u32>> {
        let ids = self.eos_token_ids()?;
        let own = self.tokenizer.eos_token_id().filter(|id| ids.contains(id));
        Ok(own.or(ids.first().copied()))
    }

    /// How records become tokens for this model; `asked` is `--max-seq-len`, by default 1024 or the model's context.
    pub(crate) fn dataset_options(&self, asked: Option<usize>, mask_prompt: bool) -> Result<DatasetOptions> {
        let context = self.config.max_position_embeddings;
        if let Some(asked) = asked.filter(|asked| *asked > context) {
            let what = format!("`--max-seq-len` is {asked}, expected at most {context}");
            return Err(wrong(what, "that is the model's whole context; longer records are cut"));
        }
        Ok(DatasetOptions {
            max_seq_len: asked.unwrap_or(1024.min(context)),
            mask_prompt,
            chat_template: self.chat_template.clone(),
            eos_token_id: self.eos_token_id()?,
        })
    }

    /// The model's name as an adapter records it.
    pub(crate) fn name(&self) -> &str {
        self.dir.name()
    }
}

/// Opens the files of a directory, a hub id, or the embedded model where there is no name.
pub(crate) fn open_dir(global: &Global, name: Option<&str>) -> Result<ModelDir> {
    match name.filter(|_| !embedded::is_meant(name)) {
        None => Ok(embedded::model()),
        Some(name) if Path::new(name).is_symlink() && !Path::new(name).exists() => {
            Err(wrong(format!("{name} is a link that leads nowhere"), "name the directory of a model"))
        }
        Some(name) => open_model(name, &mut report::download(global)).map_err(|e| match e {
            // One word may be meant as a directory.
            models::Error::Checkpoint(e) if !name.contains('/') && !Path::new(name).exists() => {
                anyhow::Error::new(e).context(format!("no directory `{name}`, and on the hub"))
            }
            e => e.into(),
        }),
    }
}

/// As [`open_dir`], of a model that continues texts.
pub(crate) fn open_decoder(global: &Global, name: Option<&str>) -> Result<ModelDir> {
    let dir = open_dir(global, name)?;
    if dir.read("config.json")?.is_none() {
        let what = format!("{}: no config.json, but modules.json: an embedding model", dir.name());
        return Err(wrong(what, "metal-candle embed makes vectors with it; name a model that continues texts"));
    }
    Ok(dir)
}

/// Where and in what a model computes, for people.
pub(crate) fn computation(device: &Device, computation: Computation) -> String {
    format!("{}; {computation}", device.info().description)
}

/// The adapter of `--adapter`, made for `model`.
pub(crate) fn adapter(model: &dyn CausalLM, dir: &Path) -> Result<LoRAAdapter> {
    if dir.is_file() {
        return Err(wrong(format!("{} is a file", dir.display()), "name the directory it is in"));
    }
    Ok(LoRAAdapter::load(model, dir)?)
}

fn text_of(dir: &ModelDir) -> Result<(Tokenizer, Option<ChatTemplate>)> {
    let files = tokenizer_files(dir)?;
    Ok((Tokenizer::from_files(&files)?, ChatTemplate::from_files(&files)?))
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
        config: text("config.json")?,
        ..TokenizerFiles::default()
    })
}
