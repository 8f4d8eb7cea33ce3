//! The modules of a sentence-transformers directory: what is done to the hidden states of an encoder, and what the files
//! around them say of prompts and lengths.

use crate::{
    Error, Result,
    directory::{Directory, Object},
    pooling::{Pooling, PoolingMode},
    prompts::Prompts,
    tokens::cut_side,
};
use candle_core::{D, DType, Device, Tensor};
use mc_backend::{Weight, ops};
use mc_checkpoint::{SafeTensors, WeightSource};
use mc_text::CutSide;
use serde_json::{Value, json};
use std::collections::HashSet;

/// What a directory says.
#[derive(Debug)]
pub(crate) struct Recipe {
    /// Where the encoder and its tokenizer are.
    pub(crate) transformer: Directory,
    /// Whether there was no `modules.json`.
    pub(crate) bare: bool,
    pub(crate) reading: Reading,
    pub(crate) pooling: Pooling,
    pub(crate) steps: Vec<Step>,
    pub(crate) prompts: Prompts,
    /// How many of the first dimensions the model was saved to give, if not all.
    pub(crate) dimensions: Option<usize>,
    /// How its makers compare vectors, if they say: `cosine`, `dot`, `euclidean` or `manhattan`.
    pub(crate) similarity: Option<String>,
}

/// What `sentence_bert_config.json` says of how texts are read.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Reading {
    /// Tokens of a text at most.
    pub(crate) limit: Option<usize>,
    pub(crate) lower_case: bool,
    /// Where a text is cut, if not as the tokenizer's own file says.
    pub(crate) side: Option<CutSide>,
}

/// What is done to vectors of texts.
#[derive(Debug)]
pub(crate) enum Step {
    Dense(Dense),
    Normalize,
}

const MODULES: &str = "modules.json";
const SETTINGS: &str = "config_sentence_transformers.json";
const WEIGHTS: &str = "model.safetensors";
/// Where the settings say as what a model was saved, and what they say of one that embeds; older ones say nothing.
const KIND: &str = "model_type";
const EMBEDS: &str = "SentenceTransformer";

impl Recipe {
    /// Reads the files around an encoder whose hidden states have this width.
    pub(crate) fn read(directory: &Directory) -> Result<Self> {
        let mut recipe = Self {
            transformer: directory.clone(),
            bare: true,
            reading: Reading::default(),
            pooling: Pooling { modes: vec![PoolingMode::Mean], include_prompt: true },
            steps: vec![],
            prompts: Prompts::default(),
            dimensions: None,
            similarity: None,
        };
        let Some(modules) = directory.value(MODULES)? else {
            if is_causal(directory)? {
                recipe.pooling.modes = vec![PoolingMode::LastToken];
            }
            return Ok(recipe);
        };
        recipe.bare = false;
        if let Some(config) = directory.json(SETTINGS)? {
            if let Some(other) = config.text(KIND)?.filter(|kind| *kind != EMBEDS) {
                let hint = "a CrossEncoder reranks and embeds nothing; other kinds are not supported";
                return Err(config.unsupported(KIND, &other.into(), EMBEDS, hint));
            }
            // Sentence-transformers has these two in each of its models.
            recipe.prompts = Prompts::read(&config, &["query", "document"])?;
            recipe.dimensions = config.size("truncate_dim")?;
            recipe.similarity = config.text("similarity_fn_name")?.map(Into::into);
        }
        let wrong = |what: &str, hint: &str| directory.error(MODULES, what, Some(hint));
        let listed = "it lists objects with `type` and `path`, as sentence-transformers writes them";
        let order = "the order is Transformer, Pooling, and then Dense and Normalize";
        let Value::Array(modules) = modules else { return Err(wrong("is not a list of modules", listed)) };
        let mut pooled = false;
        let mut names = HashSet::new();
        for (at, module) in modules.iter().enumerate() {
            let text = |field: &str| module.get(field).and_then(Value::as_str);
            let Some(kind) = text("type") else { return Err(wrong(&format!("module {at} has no `type`"), listed)) };
            let Some(path) = text("path") else {
                let hint = "it is the folder of the module, empty for the directory itself";
                return Err(wrong(&format!("module {at} has no `path`"), hint));
            };
            let folder = directory.folder(path);
            // Sentence-transformers knows modules by their names, and of two it keeps one.
            if let Some(twice) = text("name").filter(|name| !names.insert(*name)) {
                let hint =
                    "which of them counts is not said; give each a name of its own, as in \"0\", \"1\" and \"2\"";
                return Err(wrong(&format!("two modules have the name `{twice}`"), hint));
            }
            // Another program's module of the same name does something else.
            let own = kind.strip_prefix("sentence_transformers.").and_then(|own| own.rsplit('.').next());
            match own.unwrap_or_default() {
                "Transformer" if at == 0 => {
                    recipe.reading = Reading::read(&folder, EMBED)?;
                    recipe.transformer = folder;
                }
                "Pooling" if at == 1 => {
                    recipe.pooling = read_pooling(&folder)?;
                    pooled = true;
                }
                "Dense" if pooled => recipe.steps.push(Step::Dense(Dense::read(&folder)?)),
                "Normalize" if pooled => {
                    // Its folder holds nothing as a rule, and not every program keeps empty folders.
                    folder.json("config.json")?.iter().try_for_each(check_names)?;
                    recipe.steps.push(Step::Normalize);
                }
                // Does nothing outside training.
                "Dropout" if pooled => {}
                "Transformer" | "Pooling" | "Dense" | "Normalize" | "Dropout" => {
                    let problem = format!("`{kind}` is module {at}, where it has no meaning");
                    return Err(wrong(&problem, order));
                }
                _ => {
                    let hint = "supported are Transformer, Pooling, Dense, Normalize of sentence_transformers";
                    return Err(wrong(&format!("module {at} is of type `{kind}`"), hint));
                }
            }
        }
        if !pooled {
            let hint = if modules.is_empty() {
                "it lists no modules: a Transformer and a Pooling at least"
            } else {
                "a reranker has none: it scores pairs of texts; an embedding model has one as module 1"
            };
            return Err(wrong("has no Pooling after a Transformer, so nothing makes one vector of a text", hint));
        }
        Ok(recipe)
    }
}

/// `config_sentence_transformers.json` of a reranker. As sentence-transformers has it, the file is read with `modules.json` alone,
/// and not of a model that was saved as something else.
pub(crate) fn settings_of_reranker(directory: &Directory) -> Result<Option<Object>> {
    if directory.value(MODULES)?.is_none() {
        return Ok(None);
    }
    let Some(config) = directory.json(SETTINGS)? else { return Ok(None) };
    let reranks = config.text(KIND)? == Some("CrossEncoder");
    Ok(reranks.then_some(config))
}

/// What a transformer is asked for: its task, what is taken of what it gives, and what the modules behind it call that.
pub(crate) type Task = [&'static str; 3];
const EMBED: Task = ["feature-extraction", "last_hidden_state", "token_embeddings"];

impl Reading {
    /// The file is called after other architectures too.
    pub(crate) fn read(folder: &Directory, task: Task) -> Result<Self> {
        for name in ["bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet"] {
            if let Some(config) = folder.json(&format!("sentence_{name}_config.json"))? {
                return Self::of(&config, task);
            }
        }
        Ok(Self::default())
    }

    /// What changes a vector is done as sentence-transformers 6.2 does it, or refused.
    fn of(config: &Object, [task, output, name]: Task) -> Result<Self> {
        let unsupported = |field: &str, found: &Value| {
            let hint = "supported are max_seq_length, do_lower_case, and arguments that change no result; \
                without this field results are others than the model was made for";
            Err(config.unsupported(field, found, "nothing: it is not supported", hint))
        };
        // Arguments of the functions that load, by their name of today and of before, which goes first. What is known says how
        // files are found, how a batch is padded, how fast it goes and how ids become text, and changes no vector; the dtype
        // is the caller's choice here.
        let known = ["cache_dir", "local_files_only", "revision", "subfolder", "token", "trust_remote_code"];
        let tokenizer =
            ["model_max_length", "truncation_side", "padding_side", "use_fast", "clean_up_tokenization_spaces"];
        let model = ["add_pooling_layer", "attn_implementation", "dtype", "torch_dtype", "use_safetensors"];
        let mut arguments = vec![];
        for (today, before, more) in [
            ("processor_kwargs", "tokenizer_args", &tokenizer[..]),
            ("model_kwargs", "model_args", &model),
            ("config_kwargs", "config_args", &["use_cache"]),
            ("processing_kwargs", "processing_kwargs", &[]),
        ] {
            let field = if config.map.contains_key(before) { before } else { today };
            let object = config.object(field)?;
            let is_known = |name: &str| more.contains(&name) || field != "processing_kwargs" && known.contains(&name);
            // A folder of its own for the model or the tokenizer; none is what everybody has.
            let elsewhere = |name: &str, found: &Value| name == "subfolder" && !found.is_null() && found != "";
            let odd = |(name, found): &(&String, &Value)| !is_known(name) || elsewhere(name, found);
            if let Some((name, found)) = object.map.iter().find(odd) {
                return unsupported(&format!("{field}.{name}"), found);
            }
            arguments.push(object);
        }
        for field in ["query_length", "document_length", "query_expansion", "tokenizer_name_or_path"] {
            if let Some(found) = config.map.get(field).filter(|found| !found.is_null()) {
                return unsupported(field, found);
            }
        }
        let expect = |field: &str, found: &Value, expected: Value| {
            let hint = "a model of another task or output is not supported";
            if *found == expected { Ok(()) } else { Err(config.unsupported(field, found, &expected.to_string(), hint)) }
        };
        if let Some(found) = config.map.get("transformer_task") {
            expect("transformer_task", found, task.into())?;
        }
        if let Some(modality) = config.map.get("modality_config") {
            // Texts would be messages, behind a chat template.
            if let Some(found) = modality.get("message") {
                return unsupported("modality_config.message", found);
            }
            let expected = json!({"method": "forward", "method_output_name": output});
            expect("modality_config.text", &modality["text"], expected)?;
            expect("module_output_name", config.map.get("module_output_name").unwrap_or(&Value::Null), name.into())?;
        }
        let tokenizer = &arguments[0];
        let limit = if tokenizer.map.contains_key("model_max_length") {
            Some(tokenizer.limit("model_max_length")?.unwrap_or(usize::MAX))
        } else {
            config.limit("max_seq_length")?
        };
        let side = cut_side(tokenizer)?;
        Ok(Self { limit, lower_case: config.flag("do_lower_case", false)?, side })
    }
}

/// Whether a bare directory holds a decoder that generates; sentence-transformers takes the last token of those.
fn is_causal(directory: &Directory) -> Result<bool> {
    let Some(config) = directory.json("config.json")? else { return Ok(false) };
    let architecture = config.map.get("architectures").and_then(|list| list.get(0)).and_then(Value::as_str);
    Ok(architecture.is_some_and(|name| name.ends_with("ForCausalLM")) && config.flag("is_causal", true)?)
}

fn read_config(folder: &Directory) -> Result<Object> {
    let hint = "a module's folder is part of the model; copy or download it whole";
    folder.json("config.json")?.ok_or_else(|| folder.error("config.json", "is missing", Some(hint)))
}

/// The hint where a model has another activation than those that there are.
pub(crate) const OTHER_ACTIVATION: &str =
    "take a model with one of these: with another activation than its own it gives other numbers";

/// The class of torch that a path like `torch.nn.modules.activation.Tanh` names.
pub(crate) fn of_torch(path: &str) -> Option<&str> {
    path.strip_prefix("torch.nn.").and_then(|path| path.rsplit('.').next())
}

/// A module that follows the pooling changes what that made.
fn check_names(config: &Object) -> Result<()> {
    for field in ["module_input_name", "module_output_name"] {
        if let Some(name) = config.text(field)?.filter(|name| *name != "sentence_embedding") {
            let hint = "a module that reads or writes anything but the vector of a text is not supported";
            return Err(config.unsupported(field, &name.into(), "\"sentence_embedding\"", hint));
        }
    }
    Ok(())
}

/// A pooling's configuration, as it is written today or as it was before.
fn read_pooling(folder: &Directory) -> Result<Pooling> {
    let config = read_config(folder)?;
    let modes = match config.map.get("pooling_mode").filter(|v| !v.is_null()) {
        Some(written) => read_modes(&config, written)?,
        None => read_old_modes(folder, &config)?,
    };
    Ok(Pooling { modes, include_prompt: config.flag("include_prompt", true)? })
}

/// `pooling_mode`: a name or a list of them.
fn read_modes(config: &Object, written: &Value) -> Result<Vec<PoolingMode>> {
    let names = match written {
        Value::Array(names) => names.as_slice(),
        one => std::slice::from_ref(one),
    };
    let named = |name: &Value| PoolingMode::ALL.into_iter().find(|mode| name.as_str() == Some(mode.name()));
    let modes: Option<Vec<_>> = names.iter().map(named).collect();
    modes.filter(|modes| !modes.is_empty()).ok_or_else(|| {
        let all = PoolingMode::ALL.map(PoolingMode::name).join(", ");
        let hint = "other poolings are not supported";
        config.unsupported("pooling_mode", written, &format!("one or several of {all}"), hint)
    })
}

/// A flag for each mode; the mean where none is set.
fn read_old_modes(folder: &Directory, config: &Object) -> Result<Vec<PoolingMode>> {
    let known = |key: &str| PoolingMode::ALL.iter().any(|mode| mode.old_name() == key);
    if let Some(unknown) = config.map.keys().find(|key| key.starts_with("pooling_mode_") && !known(key)) {
        let all = PoolingMode::ALL.map(PoolingMode::old_name).join(", ");
        let hint = format!("supported are {all}");
        return Err(folder.error("config.json", &format!("`{unknown}` is no pooling that there is"), Some(&hint)));
    }
    let mut modes = vec![];
    for mode in PoolingMode::ALL {
        if config.flag(mode.old_name(), false)? {
            modes.push(mode);
        }
    }
    Ok(if modes.is_empty() { vec![PoolingMode::Mean] } else { modes })
}

/// A projection of vectors.
#[derive(Debug)]
pub(crate) struct Dense {
    file: String,
    weight: Weight,
    bias: Option<Tensor>,
    activation: DenseActivation,
}

#[derive(Clone, Copy, Debug)]
enum DenseActivation {
    Identity,
    Tanh,
    Relu,
    Gelu,
    Sigmoid,
}

impl Dense {
    fn read(folder: &Directory) -> Result<Self> {
        let config = read_config(folder)?;
        let size = |field: &str| config.size(field)?.ok_or_else(|| config.missing(field));
        let (inner, outer) = (size("in_features")?, size("out_features")?);
        let activation = match config.text("activation_function")? {
            // What sentence-transformers takes where nothing is said.
            None => DenseActivation::Tanh,
            // Of other programs' activations sentence-transformers makes a tanh, with a warning.
            Some(path) => match of_torch(path) {
                Some("Identity") => DenseActivation::Identity,
                Some("Tanh") => DenseActivation::Tanh,
                Some("ReLU") => DenseActivation::Relu,
                Some("GELU") => DenseActivation::Gelu,
                Some("Sigmoid") => DenseActivation::Sigmoid,
                _ => {
                    let expected = "Identity, Tanh, ReLU, GELU or Sigmoid of torch.nn";
                    return Err(config.unsupported("activation_function", &path.into(), expected, OTHER_ACTIVATION));
                }
            },
        };
        if config.flag("use_residual", false)? {
            let expected = "false: a sum with its input is not supported";
            let hint = "take a model without it: the same weights without the sum give other vectors";
            return Err(config.unsupported("use_residual", &true.into(), expected, hint));
        }
        check_names(&config)?;
        let path = std::path::PathBuf::from(folder.name(WEIGHTS));
        if !path.is_file() {
            let hint = "weights are read from safetensors; convert pytorch_model.bin if that is what is there";
            return Err(folder.error(WEIGHTS, "is missing", Some(hint)));
        }
        let source = SafeTensors::open(path)?;
        let weight = source.tensor("linear.weight", &[outer, inner], &Device::Cpu, DType::F32)?;
        let bias = config.flag("bias", true)? && !config.map.get("bias").is_some_and(Value::is_null);
        if !bias && source.contains("linear.bias") {
            let problem = "it has `linear.bias`, but its config.json says that there is no bias";
            let hint = "the two are of different models; copy or download the model whole";
            return Err(folder.error(WEIGHTS, problem, Some(hint)));
        }
        let bias = bias.then(|| source.tensor("linear.bias", &[outer], &Device::Cpu, DType::F32)).transpose()?;
        Ok(Self { file: folder.name("config.json"), weight: Weight::from_tensor(&weight)?, bias, activation })
    }
}

impl Step {
    /// The width of its output for vectors of width `width`, if it can read them.
    pub(crate) fn width(&self, width: usize) -> Result<usize> {
        match self {
            Self::Dense(dense) if dense.weight.cols() != width => {
                let problem = format!("`in_features` is {}, but vectors have {width}", dense.weight.cols());
                let hint =
                    Some("a Dense reads what the modules before it make; copy or download the model whole".into());
                Err(Error::Directory { file: dense.file.clone(), problem, hint })
            }
            Self::Dense(dense) => Ok(dense.weight.rows()),
            Self::Normalize => Ok(width),
        }
    }

    /// Vectors `(n, width)` in `f32` on the CPU.
    pub(crate) fn run(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let dense = match self {
            Self::Dense(dense) => dense,
            Self::Normalize => return normalized(x),
        };
        let y = ops::linear(x, &dense.weight, dense.bias.as_ref())?;
        match dense.activation {
            DenseActivation::Identity => Ok(y),
            DenseActivation::Tanh => y.tanh(),
            DenseActivation::Relu => y.relu(),
            DenseActivation::Gelu => ops::gelu(&y, ops::Gelu::Exact),
            // σ(x) = ½(1 + tanh(x/2))
            DenseActivation::Sigmoid => ((y * 0.5)?.tanh()? + 1.0)? * 0.5,
        }
    }
}

/// The cosines between the rows of two matrices of vectors: `(n, d)` and `(m, d)` → `(n, m)`, in [−1, 1]; 0 with a vector of length 0.
///
/// ```
/// use candle_core::{Device, Tensor};
/// let queries = Tensor::new(&[[3f32, 4.0]], &Device::Cpu)?;
/// let documents = Tensor::new(&[[6f32, 8.0], [-4.0, 3.0]], &Device::Cpu)?;
/// assert_eq!(mc_embed::cosine_similarity(&queries, &documents)?.to_vec2::<f32>()?, [[1.0, 0.0]]);
/// # Ok::<(), mc_embed::Error>(())
/// ```
///
/// # Errors
/// If the vectors are not of the same number of dimensions.
pub fn cosine_similarity(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    Ok(normalized(a)?.matmul(&normalized(b)?.t()?)?)
}

/// Rows of length 1; those of length 0 stay.
pub(crate) fn normalized(x: &Tensor) -> candle_core::Result<Tensor> {
    let length = x.sqr()?.sum_keepdim(D::Minus1)?.sqrt()?;
    x.broadcast_div(&length.maximum(1e-12)?)
}
