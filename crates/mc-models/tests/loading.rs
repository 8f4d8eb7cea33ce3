//! What loading costs and keeps: weights stay as they lie in the file.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

use candle_core::{DType, Device};
use mc_backend::computation::Products;
use mc_models::{Error, KVCache, KVCacheConfig, Model, ModelLoader, Pass, open_model};
use mc_testkit::golden;
use std::{
    fs::{self, File},
    io::{Seek, SeekFrom, Write},
    path::Path,
};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

#[test]
fn weights_keep_the_dtype_of_their_file() -> Result<()> {
    for (name, dtype) in [("qwen2-bf16", DType::BF16), ("qwen2", DType::F32)] {
        let model = ModelLoader::new().load(golden::dir(&format!("models/{name}")))?;
        assert_eq!(model.head().dtype(), dtype, "{name}");
        for index in 0..model.sites().len() {
            let projection = model.projection(index).unwrap();
            assert_eq!(projection.weight.dtype(), dtype, "{}", projection.site.path);
        }
        assert_eq!(model.dtype(), DType::F32);
    }
    Ok(())
}

#[test]
fn a_cache_stores_the_grouped_heads_only() -> Result<()> {
    let model = ModelLoader::new().load(golden::dir("models/qwen2-bf16"))?;
    let c = model.config();
    assert!(c.num_key_value_heads < c.num_attention_heads);
    let mut cache = KVCache::new(&*model, KVCacheConfig { batch_size: 3, initial_capacity: 4, max_length: 9 })?;
    let size = if model.computation().products == Products::BF16 { 2 } else { 4 };
    let per_token = 2 * size * 3 * c.num_hidden_layers * c.num_key_value_heads * c.head_dim;
    assert_eq!(cache.size_in_bytes(), 4 * per_token);
    let mut sizes = vec![];
    for _ in 0..9 {
        model.hidden(&[1, 2, 3], (3, 1), &mut Pass { cache: Some(&mut cache), ..Pass::default() })?;
        sizes.push(cache.size_in_bytes() / per_token);
    }
    assert_eq!(sizes, [4, 4, 4, 4, 8, 8, 8, 8, 9], "it doubles, and stops at what may ever be in it");
    Ok(())
}

/// A head that was trained by itself is not thrown away because the configuration still says that there is none.
#[test]
fn a_head_of_its_own_is_used_though_it_is_said_to_be_tied() -> Result<()> {
    let golden = golden::dir("models/llama");
    let model = ModelLoader::new().load(&golden)?;
    let logits = |model: &Model| {
        model.logits(&model.hidden(&[1, 2, 3], (1, 3), &mut Pass::default())?)?.flatten_all()?.to_vec1::<f32>()
    };
    let dir = tempfile::tempdir()?;
    fs::copy(golden.join("model.safetensors"), dir.path().join("model.safetensors"))?;
    let mut config = golden::json(golden.join("config.json"));
    config["tie_word_embeddings"] = true.into();
    fs::write(dir.path().join("config.json"), config.to_string())?;
    let again = ModelLoader::new().load(dir.path())?;
    assert_eq!(logits(&again)?, logits(&model)?);
    assert_eq!(again.config().tie_word_embeddings, Some(false));
    // The same numbers twice are one matrix.
    let mut tensors = candle_core::safetensors::load(golden.join("model.safetensors"), &Device::Cpu)?;
    tensors.insert("lm_head.weight".into(), tensors["model.embed_tokens.weight"].clone());
    candle_core::safetensors::save(&tensors, dir.path().join("model.safetensors"))?;
    assert_eq!(ModelLoader::new().load(dir.path())?.config().tie_word_embeddings, Some(true));
    Ok(())
}

/// A model of 512 MiB is ready without its weights being read: what is not used takes no memory.
#[test]
fn loading_maps_the_file() -> Result<()> {
    const HIDDEN: usize = 1024;
    const VOCABULARY: usize = 1 << 18;
    let dir = tempfile::tempdir()?;
    fs::write(
        dir.path().join("config.json"),
        r#"{"model_type": "llama", "vocab_size": 262144, "hidden_size": 1024, "intermediate_size": 2,
            "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 2,
            "tie_word_embeddings": true}"#,
    )?;
    let layer = |name: &str| format!("model.layers.0.{name}.weight");
    sparse_model(
        &dir.path().join("model.safetensors"),
        &[
            ("model.embed_tokens.weight".into(), vec![VOCABULARY, HIDDEN]),
            (layer("self_attn.q_proj"), vec![2, HIDDEN]),
            (layer("self_attn.k_proj"), vec![2, HIDDEN]),
            (layer("self_attn.v_proj"), vec![2, HIDDEN]),
            (layer("self_attn.o_proj"), vec![HIDDEN, 2]),
            (layer("mlp.gate_proj"), vec![2, HIDDEN]),
            (layer("mlp.up_proj"), vec![2, HIDDEN]),
            (layer("mlp.down_proj"), vec![HIDDEN, 2]),
            (layer("input_layernorm"), vec![HIDDEN]),
            (layer("post_attention_layernorm"), vec![HIDDEN]),
            ("model.norm.weight".into(), vec![HIDDEN]),
        ],
        // The last element of the embedding: 1 in bf16.
        (2 * VOCABULARY * HIDDEN - 2, &[0x80, 0x3f]),
    )?;
    let before = resident_bytes();
    let model = ModelLoader::new().load(dir.path())?;
    assert_eq!(format!("{model:?}"), "llama(1 blocks of 1024, vocabulary 262144; BF16, Cpu)");
    let last = model.embed(&[VOCABULARY as u32 - 1], (1, 1))?.flatten_all()?.to_vec1::<f32>()?;
    assert_eq!((last[0], last[HIDDEN - 2], last[HIDDEN - 1]), (0.0, 0.0, 1.0));
    if let (Some(before), Some(after)) = (before, resident_bytes()) {
        assert!(after < before + (64 << 20), "loading took {} MiB", (after - before) >> 20);
    }
    Ok(())
}

/// A bf16 safetensors file with holes where zeros are, and these bytes at this offset of its data.
fn sparse_model(path: &Path, tensors: &[(String, Vec<usize>)], (at, bytes): (usize, &[u8])) -> Result<()> {
    let mut header = serde_json::Map::new();
    let mut end = 0;
    for (name, shape) in tensors {
        let start = end;
        end += 2 * shape.iter().product::<usize>();
        let entry = serde_json::json!({"dtype": "BF16", "shape": shape, "data_offsets": [start, end]});
        header.insert(name.clone(), entry);
    }
    let mut header = serde_json::to_string(&header)?;
    header += &" ".repeat(header.len().next_multiple_of(8) - header.len());
    let mut file = File::create(path)?;
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(header.as_bytes())?;
    let data = 8 + header.len();
    file.set_len((data + end) as u64)?;
    file.seek(SeekFrom::Start((data + at) as u64))?;
    Ok(file.write_all(bytes)?)
}

/// Memory that this process holds, where the system says it.
fn resident_bytes() -> Option<usize> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<usize>().ok()? << 10)
}

#[test]
fn what_is_no_model_is_named() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let gguf = dir.path().join("model.GGUF");
    fs::write(&gguf, "GGUF")?;
    let file = dir.path().join("notes.txt");
    fs::write(&file, "notes")?;
    let open = |path: &Path| open_model(path, &mut |_| {}).unwrap_err();
    for (path, message) in [
        (gguf.as_path(), "GGUF models are not supported yet"),
        (&file, "is neither a directory nor a hub id"),
        (Path::new("no/such/place"), "is neither a directory nor a hub id"),
        (Path::new(""), "is neither a directory nor a hub id"),
    ] {
        let error = open(path);
        let text = error.to_string();
        assert!(text.contains(message) && text.contains(&path.display().to_string()), "{text}");
        assert!(!text.contains('\n') && error.hint().is_some(), "{text}");
    }
    let error = ModelLoader::new().load(dir.path()).unwrap_err();
    assert!(matches!(error, Error::Checkpoint(_)) && error.to_string().contains("no config.json"), "{error}");
    Ok(())
}

/// The configuration is refused before any weight is looked at.
#[test]
fn a_bad_configuration_names_its_file() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let config = dir.path().join("config.json");
    fs::write(&config, r#"{"model_type": "gpt2"}"#)?;
    let error = ModelLoader::new().load(dir.path()).unwrap_err();
    let expected = format!("{}: `model_type` is `gpt2`, supported are qwen2, llama, mistral, qwen3", config.display());
    assert_eq!(error.to_string(), expected);
    fs::write(&config, r#"{"model_type": "qwen2", "hidden_size": 0}"#)?;
    let error = ModelLoader::new().load(dir.path()).unwrap_err();
    let expected = format!("{}: `hidden_size` is 0, expected a whole number from 1 to 131072", config.display());
    assert_eq!(error.to_string(), expected);
    Ok(())
}
