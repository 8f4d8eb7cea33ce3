//! What a tokenizer's class says over tokenizer.json: its options, where they are not as the file has them.
//!
//! Vocabulary, pre-tokenizer and all else are the file's, which is what a model was trained with: transformers 5 makes some classes
//! anew, and then GPT2Tokenizer does not split numbers into digits where the file does (docs/adr/0012).

use tokenizers::{NormalizerWrapper, PreTokenizerWrapper, Result, Tokenizer};

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

/// A tokenizer's class, by its name without `Fast`, and the options that are set of it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Class {
    pub(crate) name: String,
    pub(crate) do_lower_case: Option<bool>,
    pub(crate) strip_accents: Option<bool>,
    pub(crate) tokenize_chinese_chars: Option<bool>,
    pub(crate) add_prefix_space: Option<bool>,
}

/// The name of the class that transformers reads a model's tokenizer by (`models/auto/tokenization_auto.py`): of some kinds of model
/// always the same, else what is written, else that of the kind of model.
pub(crate) fn name(written: Option<&str>, model_type: Option<&str>) -> String {
    let of_model = match model_type {
        Some("qwen2") => return "Qwen2Tokenizer".into(),
        Some("mistral" | "modernbert") => return String::new(),
        Some("bert" | "distilbert") => "BertTokenizer",
        Some("mpnet") => "MPNetTokenizer",
        Some("roberta") => "RobertaTokenizer",
        Some("qwen3") => "Qwen2Tokenizer",
        _ => "",
    };
    written.map_or(of_model, |written| written.strip_suffix("Fast").unwrap_or(written)).into()
}

impl Class {
    /// Whether a model is told of which part of a pair a token is, where tokenizer_config.json has no `model_input_names`.
    pub(crate) fn gives_types(&self) -> bool {
        WITH_TYPES.contains(&self.name.as_str())
    }

    /// Sets the options of `tokenizer`.
    pub(crate) fn apply(&self, tokenizer: &mut Tokenizer) -> Result<()> {
        match self.name.as_str() {
            "BertTokenizer"
            | "DistilBertTokenizer"
            | "ElectraTokenizer"
            | "LayoutLMTokenizer"
            | "LxmertTokenizer"
            | "MobileBertTokenizer"
            | "MPNetTokenizer"
            | "SqueezeBertTokenizer" => self.normalize_as_bert(tokenizer)?,
            "BartTokenizer"
            | "GPT2Tokenizer"
            | "GPTNeoXTokenizer"
            | "LEDTokenizer"
            | "LongformerTokenizer"
            | "MvpTokenizer"
            | "Qwen2Tokenizer"
            | "RobertaTokenizer" => self.prefix_space(tokenizer),
            _ => {}
        }
        Ok(())
    }

    /// An option that is not set has a value in these classes, whatever the file says.
    fn normalize_as_bert(&self, tokenizer: &mut Tokenizer) -> Result<()> {
        if let Some(NormalizerWrapper::BertNormalizer(written)) = tokenizer.get_normalizer() {
            let mut normalizer = *written;
            normalizer.handle_chinese_chars = self.tokenize_chinese_chars.unwrap_or(true);
            normalizer.strip_accents = self.strip_accents;
            normalizer.lowercase = self.do_lower_case.unwrap_or(true);
            tokenizer.with_normalizer(Some(normalizer))?;
        } else if self.do_lower_case.or(self.strip_accents).or(self.tokenize_chinese_chars).is_some() {
            self.unused("as tokenizer.json has no BertNormalizer");
        }
        Ok(())
    }

    fn prefix_space(&self, tokenizer: &mut Tokenizer) {
        let (Some(space), Some(written)) = (self.add_prefix_space, tokenizer.get_pre_tokenizer()) else { return };
        let differs = |part: &PreTokenizerWrapper| matches!(part, PreTokenizerWrapper::ByteLevel(b) if b.add_prefix_space != space);
        match written {
            PreTokenizerWrapper::ByteLevel(written) => {
                let mut bytes = *written;
                bytes.add_prefix_space = space;
                tokenizer.with_pre_tokenizer(Some(bytes));
            }
            PreTokenizerWrapper::Sequence(parts) if parts.as_ref().iter().any(differs) => {
                self.unused("as tokenizer.json splits a text before");
            }
            _ => {}
        }
    }

    fn unused(&self, why: &str) {
        tracing::warn!("tokenizer_config.json: options of `{}` are not used, {why}", self.name);
    }
}
