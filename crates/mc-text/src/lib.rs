//! Tokenizers, chat templates and incremental detokenization. No tensors here.
