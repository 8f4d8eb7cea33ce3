//! What a tokenizer's class says over tokenizer.json. Knows the classes of the models that this project reads, of others the name.
//!
//! Transformers 5 makes a tokenizer of these classes anew: tokenizer.json gives vocabulary, merges and added tokens, and the class
//! the rest (`tokenization_utils_tokenizers.py`, `convert_to_native_format`; `models/*/tokenization_*.py`).

use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokenizers::models::ModelWrapper;
use tokenizers::normalizers::NormalizerWrapper;
use tokenizers::processors::PostProcessorWrapper;
use tokenizers::processors::roberta::RobertaProcessing;
use tokenizers::processors::template::{Template, TemplateProcessing};
use tokenizers::{Model, Result, Tokenizer};

/// The pattern of `models/qwen2/tokenization_qwen2.py`.
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Classes that transformers makes anew too, of models that this project does not read.
const OTHERS: [&str; 45] = [
    "AlbertTokenizer",
    "BarthezTokenizer",
    "BigBirdTokenizer",
    "BlenderbotTokenizer",
    "CLIPTokenizer",
    "CodeGenTokenizer",
    "CodeLlamaTokenizer",
    "CohereTokenizer",
    "ConvBertTokenizer",
    "DPRContextEncoderTokenizer",
    "DPRQuestionEncoderTokenizer",
    "DPRReaderTokenizer",
    "DebertaTokenizer",
    "DebertaV2Tokenizer",
    "EsmcTokenizer",
    "FunnelTokenizer",
    "GemmaTokenizer",
    "HerbertTokenizer",
    "LasrTokenizer",
    "LayoutLMv2Tokenizer",
    "LayoutLMv3Tokenizer",
    "LayoutXLMTokenizer",
    "LukeTokenizer",
    "MBart50Tokenizer",
    "MBartTokenizer",
    "MLukeTokenizer",
    "MarkupLMTokenizer",
    "NllbTokenizer",
    "NougatTokenizer",
    "OpenAIGPTTokenizer",
    "PegasusTokenizer",
    "Qwen3_5Tokenizer",
    "ReformerTokenizer",
    "RemBertTokenizer",
    "RoFormerTokenizer",
    "SeamlessM4TTokenizer",
    "Siglip2Tokenizer",
    "SplinterTokenizer",
    "T5Tokenizer",
    "Tipsv2Tokenizer",
    "UdopTokenizer",
    "VideoPrismTokenizer",
    "WhisperTokenizer",
    "XGLMTokenizer",
    "XLNetTokenizer",
];

/// Classes that give a model the token types, `Fast` left out: those whose `model_input_names` hold `token_type_ids`.
const WITH_TYPES: [&str; 16] = [
    "BertTokenizer",
    "CanineTokenizer",
    "ConvBertTokenizer",
    "DPRContextEncoderTokenizer",
    "DPRQuestionEncoderTokenizer",
    "DebertaTokenizer",
    "DebertaV2Tokenizer",
    "ElectraTokenizer",
    "FNetTokenizer",
    "LayoutLMTokenizer",
    "LayoutLMv2Tokenizer",
    "LxmertTokenizer",
    "MarkupLMTokenizer",
    "MobileBertTokenizer",
    "SqueezeBertTokenizer",
    "TapasTokenizer",
];

/// The class that takes tokenizer.json as it is.
const NONE: &str = "TokenizersBackend";

/// A tokenizer's class, by its name without `Fast`, and the options that are set of it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Class {
    pub(crate) name: String,
    pub(crate) do_lower_case: Option<bool>,
    pub(crate) strip_accents: Option<bool>,
    pub(crate) tokenize_chinese_chars: Option<bool>,
    pub(crate) add_prefix_space: Option<bool>,
    pub(crate) legacy: Option<bool>,
}

/// Classes that are made alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Bert,
    MpNet,
    Roberta,
    Gpt2,
    GptNeoX,
    Qwen2,
    Llama,
    XlmRoberta,
    Camembert,
}

/// The name of the class that transformers reads a model's tokenizer by (`models/auto/tokenization_auto.py`): of two kinds of model
/// that of the file or always the same, else what is written, else that of the kind of model.
pub(crate) fn name(written: Option<&str>, model_type: Option<&str>, tokenizer_json: &[u8]) -> String {
    let name = match (model_type, written) {
        (Some("qwen2"), _) => "Qwen2Tokenizer",
        (Some("mistral" | "modernbert"), _) => NONE,
        // Of Llama 3, whose configurations name this class too. Transformers looks for it anywhere in the file.
        (_, Some("LlamaTokenizer" | "LlamaTokenizerFast"))
            if std::str::from_utf8(tokenizer_json).is_ok_and(|json| json.contains(r#""ByteLevel""#)) =>
        {
            NONE
        }
        (_, Some(written)) => written.strip_suffix("Fast").unwrap_or(written),
        (Some("bert" | "distilbert"), None) => "BertTokenizer",
        (Some("mpnet"), None) => "MPNetTokenizer",
        (Some("roberta"), None) => "RobertaTokenizer",
        (Some("xlm-roberta"), None) => "XLMRobertaTokenizer",
        (Some("camembert"), None) => "CamembertTokenizer",
        (Some("qwen3"), None) => "Qwen2Tokenizer",
        _ => NONE,
    };
    name.into()
}

impl Class {
    /// Whether a model is told of which part of a pair a token is, where tokenizer_config.json has no `model_input_names`.
    pub(crate) fn gives_types(&self) -> bool {
        WITH_TYPES.contains(&self.name.as_str())
    }

    fn kind(&self) -> Option<Kind> {
        Some(match self.name.as_str() {
            "BertTokenizer"
            | "DistilBertTokenizer"
            | "ElectraTokenizer"
            | "LayoutLMTokenizer"
            | "LxmertTokenizer"
            | "MobileBertTokenizer"
            | "SqueezeBertTokenizer" => Kind::Bert,
            "MPNetTokenizer" => Kind::MpNet,
            "RobertaTokenizer" | "BartTokenizer" | "LEDTokenizer" | "LongformerTokenizer" | "MvpTokenizer" => {
                Kind::Roberta
            }
            "GPT2Tokenizer" => Kind::Gpt2,
            "GPTNeoXTokenizer" => Kind::GptNeoX,
            "Qwen2Tokenizer" => Kind::Qwen2,
            "LlamaTokenizer" => Kind::Llama,
            "XLMRobertaTokenizer" => Kind::XlmRoberta,
            "CamembertTokenizer" => Kind::Camembert,
            _ => return None,
        })
    }

    /// The special tokens that a tokenizer of this class has by name where none is written.
    pub(crate) fn special_tokens(&self) -> &'static [(&'static str, &'static str)] {
        match self.kind() {
            None => &[],
            Some(Kind::Bert) => &[
                ("unk_token", "[UNK]"),
                ("sep_token", "[SEP]"),
                ("pad_token", "[PAD]"),
                ("cls_token", "[CLS]"),
                ("mask_token", "[MASK]"),
            ],
            Some(Kind::MpNet) => &[
                ("bos_token", "<s>"),
                ("eos_token", "</s>"),
                ("sep_token", "</s>"),
                ("cls_token", "<s>"),
                ("unk_token", "[UNK]"),
                ("pad_token", "<pad>"),
                ("mask_token", "<mask>"),
            ],
            Some(Kind::Roberta | Kind::XlmRoberta | Kind::Camembert) => &[
                ("bos_token", "<s>"),
                ("eos_token", "</s>"),
                ("sep_token", "</s>"),
                ("cls_token", "<s>"),
                ("unk_token", "<unk>"),
                ("pad_token", "<pad>"),
                ("mask_token", "<mask>"),
            ],
            Some(Kind::Gpt2) => {
                &[("unk_token", "<|endoftext|>"), ("bos_token", "<|endoftext|>"), ("eos_token", "<|endoftext|>")]
            }
            Some(Kind::GptNeoX) => &[
                ("unk_token", "<|endoftext|>"),
                ("bos_token", "<|endoftext|>"),
                ("eos_token", "<|endoftext|>"),
                ("pad_token", "<|padding|>"),
            ],
            Some(Kind::Qwen2) => {
                &[("unk_token", "<|endoftext|>"), ("eos_token", "<|endoftext|>"), ("pad_token", "<|endoftext|>")]
            }
            Some(Kind::Llama) => &[("unk_token", "<unk>"), ("bos_token", "<s>"), ("eos_token", "</s>")],
        }
    }

    /// Puts the class's model options, normalizer, pre-tokenizer and decoder over those of `tokenizer`; where they do not fit,
    /// it is of no class from then on, with a warning.
    pub(crate) fn apply(&mut self, tokenizer: &mut Tokenizer, unk_token: Option<&str>) -> Result<()> {
        let Some(kind) = self.kind() else {
            if OTHERS.contains(&self.name.as_str()) {
                self.warn("is made anew by transformers, in a way that is not known here");
            }
            return Ok(());
        };
        match self.model(kind, tokenizer.get_model(), unk_token) {
            Ok(None) => {}
            Ok(Some(model)) => drop(tokenizer.with_model(model)),
            Err(problem) => {
                self.warn(problem);
                self.name = NONE.into();
                return Ok(());
            }
        }
        let [pre_tokenizer, decoder] = self.around(kind);
        let normalizer = self.normalizer(kind, tokenizer.get_normalizer())?;
        tokenizer.with_normalizer(normalizer)?;
        tokenizer.with_pre_tokenizer(Some(part::<tokenizers::PreTokenizerWrapper>(pre_tokenizer)?));
        tokenizer.with_decoder(Some(part::<tokenizers::DecoderWrapper>(decoder)?));
        Ok(())
    }

    fn warn(&self, problem: &str) {
        let name = &self.name;
        tracing::warn!(
            "tokenizer_config.json: `{name}` {problem}: ids are those of tokenizer.json, not always transformers'"
        );
    }

    /// The model as the class has it.
    fn model(&self, kind: Kind, model: &ModelWrapper, unk_token: Option<&str>) -> Fit {
        match (kind, model) {
            (Kind::Bert | Kind::MpNet, ModelWrapper::WordPiece(old)) => {
                let mut new = old.clone();
                unk_token.unwrap_or(&old.unk_token).clone_into(&mut new.unk_token);
                new.continuing_subword_prefix = "##".into();
                new.max_input_chars_per_word = 100;
                let same = new.unk_token == old.unk_token
                    && new.continuing_subword_prefix == old.continuing_subword_prefix
                    && new.max_input_chars_per_word == old.max_input_chars_per_word;
                Ok((!same).then_some(new.into()))
            }
            (Kind::Roberta | Kind::Gpt2 | Kind::GptNeoX | Kind::Qwen2 | Kind::Llama, ModelWrapper::BPE(old)) => {
                let affix = |affix: &Option<String>| affix.as_ref().is_some_and(|affix| !affix.is_empty());
                if affix(&old.continuing_subword_prefix) || affix(&old.end_of_word_suffix) {
                    return Err("has no prefix or suffix of subwords, and tokenizer.json has");
                }
                let llama = kind == Kind::Llama;
                let options =
                    (old.fuse_unk, old.byte_fallback, old.ignore_merges, old.unk_token.is_none(), old.dropout);
                if options == (llama, llama, false, true, None) {
                    return Ok(None);
                }
                let mut new = old.clone();
                (new.fuse_unk, new.byte_fallback, new.ignore_merges, new.unk_token, new.dropout) =
                    (llama, llama, false, None, None);
                Ok(Some(new.into()))
            }
            (Kind::XlmRoberta | Kind::Camembert, ModelWrapper::Unigram(unigram)) => {
                let unk_id = match kind {
                    Kind::XlmRoberta => 3,
                    _ => unk_token.and_then(|token| unigram.token_to_id(token)).unwrap_or(0),
                };
                // It does not say which it has: its answer to a character of no script does.
                let found = unigram.tokenize("\u{10fffd}").ok().and_then(|tokens| Some(tokens.first()?.id));
                if found != Some(unk_id) {
                    return Err("has another unknown token than tokenizer.json");
                }
                Ok(None)
            }
            _ => Err("has another model than tokenizer.json"),
        }
    }

    fn normalizer(&self, kind: Kind, written: Option<&NormalizerWrapper>) -> Result<Option<NormalizerWrapper>> {
        match kind {
            Kind::Bert | Kind::MpNet => part(json!({
                "type": "BertNormalizer",
                "clean_text": true,
                "handle_chinese_chars": self.tokenize_chinese_chars.unwrap_or(true),
                "strip_accents": self.strip_accents,
                "lowercase": self.do_lower_case.unwrap_or(true),
            }))
            .map(Some),
            Kind::GptNeoX | Kind::Qwen2 => part(json!({"type": "NFC"})).map(Some),
            Kind::Roberta | Kind::Gpt2 | Kind::Llama => Ok(None),
            // The only part of what is written that is kept.
            Kind::XlmRoberta | Kind::Camembert => {
                let all = match written {
                    Some(NormalizerWrapper::Sequence(all)) => all.as_ref(),
                    one => one.map(std::slice::from_ref).unwrap_or_default(),
                };
                Ok(all.iter().find(|one| matches!(one, NormalizerWrapper::Precompiled(_))).cloned())
            }
        }
    }

    /// Pre-tokenizer and decoder.
    fn around(&self, kind: Kind) -> [Value; 2] {
        let space = self.add_prefix_space.unwrap_or(matches!(kind, Kind::Llama | Kind::XlmRoberta | Kind::Camembert));
        let bytes = |use_regex| json!({"type": "ByteLevel", "add_prefix_space": space, "trim_offsets": true, "use_regex": use_regex});
        let metaspace =
            |scheme, split| json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": split});
        let scheme = match (space, kind) {
            (false, _) => "never",
            (true, Kind::Llama) if !self.legacy.unwrap_or(false) => "first",
            _ => "always",
        };
        let sequence = |parts: &[Value]| json!({"type": "Sequence", "pretokenizers": parts});
        match kind {
            Kind::Bert | Kind::MpNet => {
                [json!({"type": "BertPreTokenizer"}), json!({"type": "WordPiece", "prefix": "##", "cleanup": true})]
            }
            Kind::Roberta | Kind::Gpt2 | Kind::GptNeoX => [bytes(true), bytes(true)],
            Kind::Qwen2 => {
                let split =
                    json!({"type": "Split", "pattern": {"Regex": QWEN2}, "behavior": "Isolated", "invert": false});
                [sequence(&[split, bytes(false)]), bytes(true)]
            }
            Kind::Llama => {
                let mut decoders = vec![
                    json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
                    json!({"type": "ByteFallback"}),
                    json!({"type": "Fuse"}),
                ];
                if space {
                    decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
                }
                [metaspace(scheme, false), json!({"type": "Sequence", "decoders": decoders})]
            }
            Kind::XlmRoberta | Kind::Camembert => {
                [sequence(&[json!({"type": "WhitespaceSplit"}), metaspace(scheme, true)]), metaspace(scheme, true)]
            }
        }
    }

    /// What is put around texts, of the special tokens by name: by the class, or where tokenizer.json has nothing; `None` where it stays.
    pub(crate) fn post_processor(
        &self,
        written: Option<&PostProcessorWrapper>,
        token: impl Fn(&str) -> Option<(String, u32)>,
    ) -> Result<Option<PostProcessorWrapper>> {
        let kind = self.kind();
        let ends = match kind {
            Some(Kind::Bert | Kind::MpNet | Kind::Roberta) => token("cls_token").zip(token("sep_token")),
            Some(Kind::XlmRoberta | Kind::Camembert) => token("bos_token").zip(token("eos_token")),
            _ => None,
        };
        let Some((first, last)) = ends else {
            let none = written.is_none() || kind == Some(Kind::GptNeoX);
            return none.then(|| template(&["$A"], &["$A", "$B:1"], vec![])).transpose();
        };
        if matches!(kind, Some(Kind::MpNet | Kind::Roberta)) {
            let space = kind == Some(Kind::Roberta) && self.add_prefix_space.unwrap_or(false);
            return Ok(Some(RobertaProcessing::new(last, first).trim_offsets(true).add_prefix_space(space).into()));
        }
        let (open, close) = (first.0.as_str(), last.0.as_str());
        let single = [open, "$A", close];
        let second = &format!("{close}:1");
        let tokens = vec![first.clone(), last.clone()];
        if kind == Some(Kind::Bert) {
            return template(&single, &[open, "$A", close, "$B:1", second], tokens).map(Some);
        }
        template(&single, &[open, "$A", close, close, "$B", close], tokens).map(Some)
    }

    /// Whether the special tokens lose what else is said of them.
    pub(crate) fn plain_special_tokens(&self) -> bool {
        self.kind() == Some(Kind::Qwen2)
    }
}

/// A model in place of another, `None` if that may stay; an error says why none can be.
type Fit = std::result::Result<Option<ModelWrapper>, &'static str>;

fn part<T: DeserializeOwned>(json: Value) -> Result<T> {
    Ok(serde_json::from_value(json)?)
}

fn template(single: &[&str], pair: &[&str], tokens: Vec<(String, u32)>) -> Result<PostProcessorWrapper> {
    let pieces = |pieces: &[&str]| Template::try_from(pieces.to_vec());
    let processing = TemplateProcessing::builder()
        .try_single(pieces(single)?)?
        .try_pair(pieces(pair)?)?
        .special_tokens(tokens)
        .build()?;
    Ok(processing.into())
}
