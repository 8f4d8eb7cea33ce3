//! What the configuration of an encoder may say, and what its passes refuse. Numbers are held against
//! sentence-transformers in mc-embed.

use candle_core::{DType, Device, Tensor};
use mc_backend::computation::Products;
use mc_checkpoint::ModelDir;
use mc_models::{ENCODERS, ModelLoader, TextEncoder, Texts};
use mc_testkit::{Tolerance, assert_close};
use serde_json::{Value, json};
use std::{fs, path::Path};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn golden(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../mc-embed/tests/golden/models").join(name)
}

fn load(name: &str) -> Result<TextEncoder> {
    Ok(ModelLoader::new().load_encoder_dir(&ModelDir::open(golden(name))?)?)
}

/// What loading says if the configuration of a model has this field; null removes it.
fn changed(name: &str, field: &str, value: &Value) -> Result<std::result::Result<TextEncoder, mc_models::Error>> {
    let dir = tempfile::tempdir()?;
    fs::copy(golden(name).join("model.safetensors"), dir.path().join("model.safetensors"))?;
    let mut json: Value = serde_json::from_slice(&fs::read(golden(name).join("config.json"))?)?;
    json[field] = value.clone();
    fs::write(dir.path().join("config.json"), json.to_string())?;
    Ok(ModelLoader::new().load_encoder_dir(&ModelDir::open(dir.path())?))
}

#[track_caller]
fn check(name: &str, field: &str, value: &Value, expected: &str) {
    let found = match changed(name, field, value) {
        Ok(Err(error)) => error.to_string(),
        Ok(Ok(encoder)) => panic!("{name}: `{field}` {value} was read: {encoder:?}"),
        Err(error) => panic!("{error}"),
    };
    assert!(found.ends_with(expected), "{found}, expected {expected}");
}

#[test]
fn what_a_configuration_may_not_say() {
    let gelu = "expected \"gelu\", \"gelu_new\", \"gelu_fast\" or \"gelu_pytorch_tanh\"";
    check("bert-mean", "hidden_act", &json!("relu"), &format!("`hidden_act` is \"relu\", {gelu}"));
    check("distilbert-max", "activation", &json!("relu"), &format!("`activation` is \"relu\", {gelu}"));
    check("modernbert-bias", "hidden_activation", &json!("silu"), &format!("is \"silu\", {gelu}"));
    check("modernbert-bias", "hidden_activation", &json!("gelu_new"), "is by tanh, expected \"gelu\"");
    let kind = "`position_embedding_type` is \"relative_key\", expected \"absolute\"";
    check("bert-mean", "position_embedding_type", &json!("relative_key"), kind);
    check("bert-mean", "is_decoder", &json!(true), "`is_decoder` is true: this is no encoder");
    check("bert-mean", "is_causal", &json!(true), "`is_causal` is true: this is no encoder");
    check(
        "bert-mean",
        "num_attention_heads",
        &json!(3),
        "`num_attention_heads` is 3, which does not divide a width of 20",
    );
    check("modernbert-bias", "num_attention_heads", &json!(8), "is 8: heads of 3 cannot turn in pairs");
    check("mpnet-mean", "pad_token_id", &json!(0), "`pad_token_id` is 0, expected 1");
    check("mpnet-mean", "relative_attention_num_buckets", &json!(20), "is 20, expected 32");
    check("xlm-roberta-mean", "pad_token_id", &json!(81), "`pad_token_id` is 81, which leaves none of 82 positions");
    check("modernbert-weighted", "layer_types", &json!(["full_attention"]), "expected a list of 4");
    let quantized = "`quantization_config` is \"gptq\": quantized weights are not supported";
    check("bert-mean", "quantization_config", &json!({"quant_method": "gptq"}), quantized);
    for field in ["vocab_size", "hidden_size", "num_hidden_layers", "intermediate_size", "max_position_embeddings"] {
        check("bert-mean", field, &Value::Null, &format!("`{field}` is missing"));
        let found = changed("bert-mean", field, &json!(0)).unwrap().map_err(|e| e.to_string());
        assert!(found.is_err_and(|e| e.contains(&format!("`{field}` is 0, expected a whole number"))));
    }
    let expected =
        format!("`model_type` is `albert`, supported are {}, qwen2, llama, mistral, qwen3", ENCODERS.join(", "));
    check("bert-mean", "model_type", &json!("albert"), &expected);
    // The weights decide whether a size is right.
    check("bert-mean", "vocab_size", &json!(149), "is (150, 20), expected (149, 20)");
}

#[test]
fn what_a_pass_refuses() -> Result<()> {
    let refused =
        |encoder: &TextEncoder, ids: &[u32], lengths: &[usize], token_types: Option<&[u32]>, expected: &str| {
            let Err(error) = encoder.hidden(&Texts { ids, lengths, token_types }) else { panic!("{expected}") };
            assert!(error.to_string().contains(expected), "{error}, expected {expected}");
        };
    for name in ["bert-mean", "xlm-roberta-mean", "modernbert-weighted", "qwen3-last"] {
        let encoder = load(name)?;
        refused(&encoder, &[1, 2, 3], &[2], None, "texts of 2 tokens do not fill 3 ids");
        refused(&encoder, &[1, 2, 3], &[3, 0], None, "a text of 0 tokens");
        let most = encoder.max_tokens();
        refused(&encoder, &vec![2; most + 1], &[most + 1], None, &format!("a model that reads 1 to {most}"));
        refused(&encoder, &[2, 999], &[2], None, "token id 999 is not below the vocabulary");
        refused(&encoder, &[2, 3], &[2], Some(&[0]), "1 token types for 2 ids");
        assert_eq!(encoder.hidden(&Texts { ids: &vec![2; most], lengths: &[most], token_types: None })?.dim(0)?, most);
    }
    refused(&load("bert-mean")?, &[2, 3], &[2], Some(&[0, 2]), "token type 2 is not below the 2 of the model");
    refused(&load("xlm-roberta-mean")?, &[2, 3], &[2], Some(&[0, 1]), "token type 1 is not below the 1 of the model");
    refused(&load("modernbert-bias")?, &[2, 3], &[2], Some(&[0, 1]), "a modernbert has no token types");
    refused(&load("qwen3-last")?, &[2, 3], &[2], Some(&[0, 1]), "a qwen3 has no token types");
    assert_eq!(load("xlm-roberta-mean")?.max_tokens(), 80);
    Ok(())
}

/// Packed texts of every length, and each alone; token types that are asked for and are zero change nothing.
#[test]
fn a_text_does_not_see_the_others() -> Result<()> {
    for name in ["bert-mean", "mpnet-mean", "distilbert-max", "modernbert-weighted", "qwen3-last"] {
        let encoder = load(name)?;
        let lengths: Vec<usize> = vec![1, 60, 7, 1, 33, 50, 2];
        let ids: Vec<u32> = (0..lengths.iter().sum::<usize>() as u32).map(|i| i * 37 % 140).collect();
        let texts = Texts { ids: &ids, lengths: &lengths, token_types: None };
        let together = encoder.hidden(&texts)?;
        assert_eq!(together.dims(), [ids.len(), encoder.hidden_size()]);
        for segment in texts.segments() {
            let (ids, lengths) = (&ids[segment.clone()], &[segment.len()]);
            let alone = encoder.hidden(&Texts { ids, lengths, token_types: None })?;
            let part = together.narrow(0, segment.start, segment.len())?;
            assert_close(name, &part, &alone, Tolerance::absolute(2e-5));
        }
        let zeros = vec![0; ids.len()];
        let typed = encoder.hidden(&Texts { token_types: Some(&zeros), ..texts })?;
        assert_close(name, &typed, &together, Tolerance::absolute(0.0));
    }
    Ok(())
}

/// Names under which larger models keep an encoder, and those of norms before 2019.
#[test]
fn names_of_other_checkpoints() -> Result<()> {
    let texts = Texts { ids: &[2, 17, 90, 3], lengths: &[4], token_types: None };
    let expected = load("bert-mean")?.hidden(&texts)?;
    let weights = candle_core::safetensors::load(golden("bert-mean").join("model.safetensors"), &Device::Cpu)?;
    let dir = tempfile::tempdir()?;
    fs::copy(golden("bert-mean").join("config.json"), dir.path().join("config.json"))?;
    let old =
        |name: &str| name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta");
    let renamed = weights.iter().map(|(name, tensor)| (format!("bert.{}", old(name)), tensor.clone()));
    candle_core::safetensors::save(&renamed.collect(), dir.path().join("model.safetensors"))?;
    let found = ModelLoader::new().load_encoder(dir.path())?.hidden(&texts)?;
    assert_close("renamed", &found, &expected, Tolerance::absolute(0.0));
    Ok(())
}

#[test]
fn a_plain_encoder_is_of_the_dtype_asked_for() -> Result<()> {
    let encoder = load("bert-mean")?.plain(DType::F64)?;
    assert_eq!(encoder.dtype(), DType::F64);
    let hidden: Tensor = encoder.hidden(&Texts { ids: &[2, 3], lengths: &[2], token_types: None })?;
    assert_eq!(hidden.dtype(), DType::F64);
    let near = load("bert-mean")?.hidden(&Texts { ids: &[2, 3], lengths: &[2], token_types: None })?;
    assert_close("f64", &near, &hidden, Tolerance::absolute(1e-5));
    Ok(())
}

/// In bf16 matrices are what they are rounded to, and tables of words are what the file says.
#[test]
fn a_dtype_is_that_of_matrices_and_not_of_tables() -> Result<()> {
    let rounded = |x: &Tensor| x.to_dtype(DType::BF16)?.to_dtype(DType::F32);
    for name in ["bert-mean", "modernbert-bias"] {
        let file = candle_core::safetensors::load(golden(name).join("model.safetensors"), &Device::Cpu)?;
        let hidden = |rounds: &dyn Fn(&str) -> bool, dtype: DType| -> Result<(Vec<f32>, Products)> {
            let dir = tempfile::tempdir()?;
            fs::copy(golden(name).join("config.json"), dir.path().join("config.json"))?;
            let tensors = file.iter().map(|(name, x)| {
                let x = if rounds(name) { rounded(x)? } else { x.clone() };
                candle_core::Result::Ok((name.clone(), x))
            });
            let path = dir.path().join("model.safetensors");
            mc_checkpoint::save_safetensors(&path, &tensors.collect::<candle_core::Result<_>>()?, None)?;
            let encoder = ModelLoader::new().with_dtype(dtype).load_encoder_dir(&ModelDir::open(dir.path())?)?;
            let texts = Texts { ids: &[5, 9, 2, 7, 3], lengths: &[3, 2], token_types: None };
            Ok((encoder.hidden(&texts)?.flatten_all()?.to_vec1()?, encoder.computation().products))
        };
        let is_table = |name: &str| name.contains("embeddings.") && !name.contains("orm");
        let is_matrix = |name: &str| !is_table(name) && file[name].rank() == 2;
        let bf16 = hidden(&|_| false, DType::BF16)?;
        assert_eq!(bf16, hidden(&is_matrix, DType::BF16)?, "{name}: matrices are rounded");
        assert_ne!(bf16, hidden(&is_table, DType::BF16)?, "{name}: tables are not");
        assert_ne!(bf16, hidden(&|_| false, DType::F32)?, "{name}: it is another dtype");
        // What matrices are multiplied with is rounded where the CPU is faster so, and that is said.
        let (in_f32, products) = hidden(&is_matrix, DType::F32)?;
        assert_eq!((bf16.0 != in_f32, products), (bf16.1 != Products::F32, Products::F32), "{name}: inputs");
    }
    Ok(())
}
