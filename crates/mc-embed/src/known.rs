//! Embedding models by name. Each is of an architecture and a pooling that are held against sentence-transformers.

use std::path::{Path, PathBuf};

/// Declares the models together with their ids, so that none can be left out of either.
macro_rules! models {
    ($($name:ident = $id:literal, $what:literal;)*) => {
        /// An embedding model on the hub whose architecture and pooling are held against sentence-transformers.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum EmbeddingModelType {
            $(#[doc = concat!("`", $id, "`: ", $what)] $name,)*
        }

        impl EmbeddingModelType {
            const ALL: &[Self] = &[$(Self::$name),*];

            /// The id on the Hugging Face hub.
            pub fn id(self) -> &'static str {
                match self {
                    $(Self::$name => $id,)*
                }
            }
        }
    };
}

models! {
    E5SmallV2 = "intfloat/e5-small-v2", "English, 384 dimensions.";
    E5BaseV2 = "intfloat/e5-base-v2", "English, 768 dimensions.";
    E5LargeV2 = "intfloat/e5-large-v2", "English, 1024 dimensions.";
    MultilingualE5Small = "intfloat/multilingual-e5-small", "94 languages, 384 dimensions.";
    MultilingualE5Base = "intfloat/multilingual-e5-base", "94 languages, 768 dimensions.";
    MultilingualE5Large = "intfloat/multilingual-e5-large", "94 languages, 1024 dimensions.";
    AllMiniLmL6V2 = "sentence-transformers/all-MiniLM-L6-v2", "English, 384 dimensions.";
    AllMiniLmL12V2 = "sentence-transformers/all-MiniLM-L12-v2", "English, 384 dimensions.";
    AllMpnetBaseV2 = "sentence-transformers/all-mpnet-base-v2", "English, 768 dimensions.";
    MultiQaDistilbertCosV1 = "sentence-transformers/multi-qa-distilbert-cos-v1", "English, 768 dimensions.";
    BgeM3 = "BAAI/bge-m3", "its dense vectors, in 100 languages, 1024 dimensions. Where the hub has its weights in \
        pytorch's own format alone, convert them to safetensors and open the directory.";
    BgeSmallEnV15 = "BAAI/bge-small-en-v1.5", "English, 384 dimensions.";
    BgeBaseEnV15 = "BAAI/bge-base-en-v1.5", "English, 768 dimensions.";
    BgeLargeEnV15 = "BAAI/bge-large-en-v1.5", "English, 1024 dimensions.";
    GteSmall = "thenlper/gte-small", "English, 384 dimensions.";
    GteBase = "thenlper/gte-base", "English, 768 dimensions.";
    GteModernBertBase = "Alibaba-NLP/gte-modernbert-base", "English, 768 dimensions.";
    ModernBertEmbedBase = "nomic-ai/modernbert-embed-base", "English, 768 dimensions.";
    Qwen3Embedding06B = "Qwen/Qwen3-Embedding-0.6B", "100 languages, 1024 dimensions.";
}

impl EmbeddingModelType {
    /// All of them.
    pub fn all() -> impl Iterator<Item = Self> {
        Self::ALL.iter().copied()
    }

    /// The model of this id, in any case of its letters.
    pub fn from_id(id: &str) -> Option<Self> {
        Self::all().find(|model| model.id().eq_ignore_ascii_case(id))
    }

    /// The prompts that the model was trained with and its directory does not name.
    pub(crate) fn prompts(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::E5SmallV2
            | Self::E5BaseV2
            | Self::E5LargeV2
            | Self::MultilingualE5Small
            | Self::MultilingualE5Base
            | Self::MultilingualE5Large => &[("query", "query: "), ("passage", "passage: ")],
            _ => &[],
        }
    }
}

/// What names an embedding model: a known one, an id on the hub, or a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelSource(pub(crate) PathBuf);

impl From<EmbeddingModelType> for ModelSource {
    fn from(model: EmbeddingModelType) -> Self {
        Self(model.id().into())
    }
}

macro_rules! from_name {
    ($($name:ty),*) => {$(
        impl From<$name> for ModelSource {
            fn from(name: $name) -> Self {
                Self(name.into())
            }
        }
    )*};
}
from_name!(&str, String, &Path, PathBuf, &PathBuf, &String);

#[cfg(test)]
mod tests {
    use super::*;

    /// The architecture and the pooling of each, by the golden model that has them.
    fn golden(model: EmbeddingModelType) -> &'static str {
        use EmbeddingModelType as T;
        match model {
            T::E5SmallV2
            | T::E5BaseV2
            | T::E5LargeV2
            | T::MultilingualE5Small
            | T::AllMiniLmL6V2
            | T::AllMiniLmL12V2
            | T::GteSmall
            | T::GteBase => "bert, mean",
            T::BgeSmallEnV15 | T::BgeBaseEnV15 | T::BgeLargeEnV15 => "bert, cls",
            T::MultilingualE5Base | T::MultilingualE5Large => "xlm-roberta, mean",
            T::BgeM3 => "xlm-roberta, cls",
            T::AllMpnetBaseV2 => "mpnet, mean",
            T::MultiQaDistilbertCosV1 => "distilbert, mean",
            T::GteModernBertBase => "modernbert, cls",
            T::ModernBertEmbedBase => "modernbert, mean",
            T::Qwen3Embedding06B => "qwen3, lasttoken",
        }
    }

    #[test]
    fn every_model_is_of_a_kind_that_is_held_to_golden_files() {
        let goldens = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/models");
        let described: Vec<String> = std::fs::read_dir(goldens)
            .unwrap()
            .map(|entry| crate::EmbeddingModel::from_pretrained(entry.unwrap().path(), candle_core::Device::Cpu))
            .map(|model| model.unwrap().describe())
            .collect();
        for model in EmbeddingModelType::all() {
            let kind = format!(": {} pooling", golden(model));
            assert!(described.iter().any(|golden| golden.contains(&kind)), "{model:?}: {kind} of {described:#?}");
        }
    }

    #[test]
    fn every_model_has_one_id() {
        for model in EmbeddingModelType::all() {
            assert!(mc_checkpoint::hub::is_repo_id(model.id()), "{model:?}");
            assert_eq!(EmbeddingModelType::from_id(&model.id().to_lowercase()), Some(model));
        }
        let ids: std::collections::BTreeSet<_> = EmbeddingModelType::all().map(EmbeddingModelType::id).collect();
        assert_eq!(ids.len(), EmbeddingModelType::all().count());
        assert_eq!(EmbeddingModelType::from_id("owner/other"), None);
        assert_eq!(EmbeddingModelType::E5BaseV2.prompts()[0], ("query", "query: "));
    }
}
