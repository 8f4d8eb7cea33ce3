//! LoRA and DoRA adapters.
