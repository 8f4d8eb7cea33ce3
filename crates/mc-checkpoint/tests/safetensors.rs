//! Safetensors files read and written: values, places in memory, shards, and bytes that nobody meant as such a file.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by a panic")]

use candle_core::{DType, Device, Tensor};
use mc_checkpoint::{MemorySource, SafeTensors, WeightSource, save_safetensors};
use mc_testkit::{max_abs_diff, random};
use proptest::prelude::*;
use std::{collections::BTreeMap, path::Path};

const CPU: Device = Device::Cpu;

fn sample() -> BTreeMap<String, Tensor> {
    let ids = mc_testkit::random_range(9, 0., 99., (3, 2), DType::U32);
    [
        ("a.norm", random(1, 5, DType::F32)),
        ("b.bf16", random(2, (3, 7), DType::BF16)),
        ("c.f16", random(3, (2, 3), DType::F16)),
        ("d.f64", random(4, (2, 2), DType::F64)),
        // Strided: columns of a wider matrix, transposed.
        ("e.strided", random(5, (4, 6), DType::F32).narrow(1, 1, 3).unwrap().t().unwrap()),
        ("f.ids", ids),
        ("g.scalar", random(6, (), DType::F32)),
        ("h.empty", Tensor::zeros((0, 3), DType::F32, &CPU).unwrap()),
    ]
    .map(|(n, t)| (n.to_string(), t))
    .into()
}

fn saved(dir: &Path) -> SafeTensors {
    let path = dir.join("model.safetensors");
    save_safetensors(&path, &sample(), Some(("format", "pt"))).unwrap();
    SafeTensors::open(path).unwrap()
}

#[test]
fn what_is_written_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let source = saved(dir.path());
    assert_eq!(source.metadata()["format"], "pt");
    assert_eq!(source.names(), sample().into_keys().collect::<Vec<_>>());
    for (name, tensor) in sample() {
        assert_eq!(source.shape(&name).unwrap(), tensor.dims());
        assert_eq!(source.dtype(&name), Some(tensor.dtype()));
        let read = source.tensor(&name, tensor.dims(), &CPU, tensor.dtype()).unwrap();
        assert_eq!(read.dtype(), tensor.dtype());
        assert!(tensor.elem_count() == 0 || max_abs_diff(&read, &tensor) == 0., "{name}");
    }
    // Candle's own reader agrees.
    let other = candle_core::safetensors::load(dir.path().join("model.safetensors"), &CPU).unwrap();
    assert!(max_abs_diff(&other["e.strided"], &sample()["e.strided"]) == 0.);
}

#[test]
fn equal_tensors_give_equal_bytes() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let bytes = [&one, &two].map(|dir| {
        saved(dir.path());
        std::fs::read(dir.path().join("model.safetensors")).unwrap()
    });
    assert_eq!(bytes[0], bytes[1]);
}

#[test]
fn both_sources_convert_alike() {
    let dir = tempfile::tempdir().unwrap();
    let file = saved(dir.path());
    let memory = MemorySource::new(sample().into_iter().collect());
    assert_eq!(file.names(), memory.names());
    for (name, tensor) in sample().iter().filter(|(_, t)| t.rank() == 2 && t.dtype().is_float() && t.elem_count() > 0) {
        let shape = tensor.dims2().unwrap();
        for dtype in [None, Some(DType::F32), Some(DType::BF16), Some(DType::F16)] {
            let expected = tensor.to_dtype(dtype.unwrap_or(tensor.dtype())).unwrap();
            for source in [&file as &dyn WeightSource, &memory] {
                let weight = source.weight(name, shape, &CPU, dtype).unwrap();
                assert_eq!((weight.rows(), weight.cols(), weight.dtype()), (shape.0, shape.1, expected.dtype()));
                assert!(max_abs_diff(&weight.to_tensor(DType::F64).unwrap(), &expected) == 0., "{name} {dtype:?}");
                let copy = source.tensor(name, tensor.dims(), &CPU, DType::F32).unwrap();
                assert!(max_abs_diff(&copy, &tensor.to_dtype(DType::F32).unwrap()) == 0., "{name}");
            }
        }
    }
}

#[test]
fn weights_stay_mapped_when_the_file_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let source = saved(dir.path());
    let weight = source.weight("b.bf16", (3, 7), &CPU, None).unwrap();
    drop(source);
    let other = [("b.bf16".to_string(), random(77, (3, 7), DType::BF16))].into();
    save_safetensors(dir.path().join("model.safetensors"), &other, None).unwrap();
    assert!(max_abs_diff(&weight.to_tensor(DType::F32).unwrap(), &sample()["b.bf16"]) == 0.);
}

#[test]
fn a_header_of_odd_length_is_read() {
    // Rows that are not aligned have to be copied; the values are the same.
    for pad in 0..9 {
        let header = format!(
            r#"{{"w":{{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]}},"__metadata__":null}}{}"#,
            " ".repeat(pad)
        );
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.extend(bytemuck::cast_slice(&[1.5f32, -8.0]));
        let source = SafeTensors::from_bytes("w", bytes).unwrap();
        let weight = source.weight("w", (1, 2), &CPU, None).unwrap();
        assert_eq!(weight.to_tensor(DType::F32).unwrap().to_vec2::<f32>().unwrap(), [[1.5, -8.0]]);
    }
}

#[test]
fn shards_are_one_source() {
    let dir = tempfile::tempdir().unwrap();
    let all = sample();
    let mut map = serde_json::Map::new();
    for (i, (name, tensor)) in all.iter().enumerate() {
        let shard = format!("model-{:05}-of-00002.safetensors", i % 2 + 1);
        map.insert(name.clone(), shard.into());
        // The first of each pair of loops writes the shard whole.
        if i < 2 {
            let part = all.iter().skip(i).step_by(2).map(|(n, t)| (n.clone(), t.clone())).collect();
            save_safetensors(dir.path().join(map[name].as_str().unwrap()), &part, None).unwrap();
        }
        assert!(tensor.rank() <= 2);
    }
    let index = dir.path().join("model.safetensors.index.json");
    std::fs::write(&index, serde_json::json!({"metadata": {"total_size": 1}, "weight_map": map}).to_string()).unwrap();
    let source = SafeTensors::open_sharded(&index).unwrap();
    assert_eq!(source.names(), all.keys().cloned().collect::<Vec<_>>());
    for (name, tensor) in all.iter().filter(|(_, t)| t.elem_count() > 0) {
        let read = source.tensor(name, tensor.dims(), &CPU, tensor.dtype()).unwrap();
        assert!(max_abs_diff(&read, tensor) == 0., "{name}");
    }
    // An error names the shard that holds the tensor.
    let error = source.tensor("b.bf16", &[1], &CPU, DType::F32).unwrap_err().to_string();
    assert!(error.contains("model-00002-of-00002.safetensors: tensor `b.bf16` is (3, 7), expected (1)"), "{error}");
}

#[test]
fn unreadable_dtypes_are_errors_only_when_asked_for() {
    let mut header = String::from(r#"{"w":{"dtype":"F32","shape":[1,1],"data_offsets":[0,4]}"#);
    let mut end = 4;
    for (dtype, size) in [("I64", 8), ("F8_E4M3", 1), ("F8_E5M2", 1), ("C64", 8), ("F4", 1), ("BOOL", 1), ("U32", 4)] {
        let shape = if dtype == "F4" { 2 } else { 1 };
        let offsets = [end, end + size];
        let info = serde_json::json!({"dtype": dtype, "shape": [shape, 1], "data_offsets": offsets});
        header.extend([",\"", dtype, "\":", &info.to_string()]);
        end += size;
    }
    header.push('}');
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + end, 1);
    let source = SafeTensors::from_bytes("q.safetensors", bytes).unwrap();
    assert!(source.weight("w", (1, 1), &CPU, None).is_ok());
    for name in source.names().iter().filter(|n| *n != "w") {
        let shape = source.shape(name).unwrap();
        for error in [
            source.tensor(name, &shape, &CPU, DType::F32).unwrap_err(),
            source.weight(name, (shape[0], 1), &CPU, None).unwrap_err(),
            source.weight(name, (shape[0], 1), &CPU, Some(DType::BF16)).unwrap_err(),
        ] {
            assert_eq!(error.to_string(), format!("q.safetensors: tensor `{name}` has dtype {name}, expected a float"));
        }
    }
    // Packed bits and ids can be had as what they are.
    assert_eq!(source.tensor("U32", &[1, 1], &CPU, DType::U32).unwrap().to_vec2::<u32>().unwrap(), [[0x0101_0101]]);
}

/// Asks a source for all that it says it has. Nothing may panic; values are whatever the bytes are.
fn exercise(source: &SafeTensors) {
    for name in source.names() {
        let shape = source.shape(&name).unwrap();
        for dtype in [DType::F32, DType::BF16, DType::U32] {
            let _ = source.tensor(&name, &shape, &CPU, dtype);
        }
        if let [rows, cols] = shape[..]
            && let Ok(weight) = source.weight(&name, (rows, cols), &CPU, None)
        {
            let _ = weight.to_tensor(DType::F32);
        }
    }
}

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(source) = SafeTensors::from_bytes("x", bytes) { exercise(&source) }
    }

    #[test]
    fn flipped_bits_never_panic(flips in prop::collection::vec((0usize..900, 0u8..8), 1..6), cut in 0usize..2000) {
        let dir = tempfile::tempdir().unwrap();
        let small = sample().into_iter().filter(|(n, _)| n < &"e".to_string()).collect();
        let path = dir.path().join("x.safetensors");
        save_safetensors(&path, &small, Some(("format", "pt"))).unwrap();
        let mut bytes = std::fs::read(path).unwrap();
        bytes.truncate(bytes.len().min(cut.max(8)));
        for (at, bit) in flips {
            let at = at % bytes.len();
            bytes[at] ^= 1 << bit;
        }
        if let Ok(source) = SafeTensors::from_bytes("x", bytes) { exercise(&source) }
    }

    /// Headers of the right form with numbers of any kind, as an attacker writes them.
    #[test]
    fn lying_headers_never_panic(
        dtype in prop::sample::select(vec!["F32", "BF16", "U8", "I64", "F4", "F6_E2M3"]),
        shape in prop::collection::vec(prop_oneof![0u64..5, any::<u64>(), Just(1 << 61)], 0..4),
        offsets in prop::collection::vec(prop_oneof![0u64..50, any::<u64>(), Just(u64::MAX)], 4),
        data in 0usize..64,
    ) {
        let entry = |s: u64, e: u64| serde_json::json!({"dtype": dtype, "shape": shape, "data_offsets": [s, e]});
        let header = serde_json::json!({"a": entry(offsets[0], offsets[1]), "b": entry(offsets[2], offsets[3])});
        let header = header.to_string();
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.resize(bytes.len() + data, 7);
        if let Ok(source) = SafeTensors::from_bytes("x", bytes) { exercise(&source) }
    }
}
