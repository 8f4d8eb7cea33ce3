//! What a `config.json` says and leaves open, against the models that transformers makes of it (golden file of
//! mc-testkit).

use mc_models::ModelConfig;
use mc_testkit::golden;
use serde_json::Value;

#[test]
fn a_config_means_what_it_means_to_transformers() {
    let cases = golden::json(golden::dir("models").with_file_name("configs.json"));
    let cases = cases.as_array().unwrap();
    assert_eq!(cases.len(), 39);
    for case in cases {
        let file = case["config"].to_string();
        let mut expected = case["expected"].clone();
        let config = ModelConfig::from_json(&file, &case["config"]).unwrap();
        let frequencies = config.rope.inverse_frequencies(config.head_dim);
        let theirs = expected.as_object_mut().unwrap().remove("inverse_frequencies").unwrap();
        let theirs: Vec<f64> = theirs.as_array().unwrap().iter().map(|f| f.as_f64().unwrap()).collect();
        assert_eq!(frequencies.len(), theirs.len(), "{file}");
        for (pair, (f, e)) in frequencies.iter().zip(&theirs).enumerate() {
            // Both round in f32.
            assert!((f64::from(*f) / e - 1.0).abs() < 1e-6, "{file}: pair {pair}: {f:e}, expected {e:e}");
        }
        assert_eq!(fields(&config), expected, "{file}");
    }
}

fn fields(c: &ModelConfig) -> Value {
    serde_json::json!({
        "num_key_value_heads": c.num_key_value_heads,
        "head_dim": c.head_dim,
        "rms_norm_eps": c.rms_norm_eps,
        "max_position_embeddings": c.max_position_embeddings,
        "qkv_bias": c.qkv_bias,
        "o_bias": c.o_bias,
        "mlp_bias": c.mlp_bias,
        "qk_norm": c.qk_norm,
        "sliding_windows": c.sliding_windows,
    })
}
