//! Sentence embeddings: texts become vectors whose angles say how near their meanings are; and reranking, where a model
//! reads query and document together; and search, in vectors on disk and in documents.
//!
//! Reads the directories of sentence-transformers, and bare ones of an encoder. Knows nothing of architectures, training,
//! generation or the terminal.
//!
//! ```no_run
//! use candle_core::Device;
//! use mc_embed::{EmbeddingModel, EmbeddingModelType};
//! let model = EmbeddingModel::from_pretrained(EmbeddingModelType::E5SmallV2, Device::Cpu)?; // with the feature `hub` of mc-checkpoint
//! let documents = model.encode_document(&["Copper conducts heat.", "The harbour froze."])?; // (2, 384)
//! let query = model.encode_query(&["which metal is warm?"])?; // (1, 384)
//! let cosines = mc_embed::cosine_similarity(&query, &documents)?; // (1, 2)
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod batches;
mod cross_encoder;
mod directory;
pub mod documents;
mod embedding_model;
mod error;
pub mod index;
mod known;
mod modules;
mod pooling;
mod prompts;
mod tokens;

pub use cross_encoder::{CrossEncoder, Ranked};
pub use embedding_model::{Embedded, EmbeddingModel, EncodeOptions, Progress, Prompt};
pub use error::{Error, Result};
pub use known::{EmbeddingModelType, ModelSource};
pub use modules::cosine_similarity;
