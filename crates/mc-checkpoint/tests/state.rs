//! Training state and atomic writes: what was saved comes back bit for bit, and a failure leaves the old file alone.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by a panic")]

use candle_core::{DType, Device, Tensor};
use mc_checkpoint::{TrainingState, save_safetensors, write_atomic};
use mc_testkit::random;
use std::{fs, io::Write};

fn state() -> TrainingState {
    TrainingState {
        step: (1 << 60) + 1,
        epoch: 3,
        batch: 17,
        seed: u64::MAX,
        meta: serde_json::json!({"best_loss": 0.1 + 0.2, "tiny": 5e-324, "losses": [1.000_000_000_000_000_2, 1e308], "s": "ü\u{0}"}),
        tensors: [
            ("q.lora_A", random(1, (4, 3), DType::F32)),
            ("m.q.lora_A", random(2, (4, 3), DType::F32)),
            ("v.q.lora_A", random(3, (4, 3), DType::F64)),
            ("nan", Tensor::new(&[f32::NAN, f32::INFINITY, -0.0, f32::MIN_POSITIVE / 8.], &Device::Cpu).unwrap()),
        ]
        .map(|(n, t)| (n.to_string(), t))
        .into(),
    }
}

#[test]
fn a_state_comes_back_bit_for_bit() {
    let dir = tempfile::tempdir().unwrap();
    let (first, second) = (dir.path().join("a"), dir.path().join("b"));
    state().save(&first).unwrap();
    let loaded = TrainingState::load(&first, &Device::Cpu).unwrap();
    assert_eq!((loaded.step, loaded.epoch, loaded.batch, loaded.seed), (state().step, 3, 17, u64::MAX));
    assert_eq!(loaded.meta, state().meta);
    assert_eq!(loaded.tensors.keys().collect::<Vec<_>>(), state().tensors.keys().collect::<Vec<_>>());
    let bits =
        |s: &TrainingState| s.tensors["nan"].to_vec1::<f32>().unwrap().iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(&loaded), bits(&state()));
    // Every other bit: saved again, the file is the same.
    loaded.save(&second).unwrap();
    assert_eq!(fs::read(first).unwrap(), fs::read(second).unwrap());
}

#[test]
fn other_versions_and_other_files_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.safetensors");
    let tensors = [("x".to_string(), random(1, 3, DType::F32))].into();
    let load = |json: &str| {
        save_safetensors(&path, &tensors, Some(("metal_candle_training_state", json))).unwrap();
        TrainingState::load(&path, &Device::Cpu).unwrap_err()
    };
    let error = load(r#"{"version": 2, "new": true}"#);
    assert!(error.to_string().ends_with("training state of version 2, expected 1"), "{error}");
    assert!(error.hint().unwrap().contains("release that wrote it"));
    for json in ["", "{}", r#"{"version": -1}"#, r#"{"version": 1}"#, r#"{"version": 1, "step": "x"}"#] {
        let message = load(json).to_string();
        assert!(message.contains("state.safetensors") && message.contains("line 1"), "{json}: {message}");
    }
    save_safetensors(&path, &tensors, None).unwrap();
    let message = TrainingState::load(&path, &Device::Cpu).unwrap_err().to_string();
    assert!(message.contains("not a training state"), "{message}");

    state().save(&path).unwrap();
    let bytes = fs::read(&path).unwrap();
    for length in [0, 7, 100, bytes.len() - 1] {
        fs::write(&path, &bytes[..length]).unwrap();
        let message = TrainingState::load(&path, &Device::Cpu).unwrap_err().to_string();
        assert!(message.contains("state.safetensors: "), "{message}");
    }
}

#[test]
fn a_failing_writer_leaves_the_old_file_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    fs::write(&path, "old").unwrap();
    let error = write_atomic(&path, |out| {
        out.write_all(&vec![b'x'; 3 << 20])?;
        Err(std::io::Error::other("disk on fire"))
    });
    assert_eq!(error.unwrap_err().to_string(), format!("{}: disk on fire", path.display()));
    assert_eq!(fs::read(&path).unwrap(), b"old");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "the temporary file is gone");

    // What candle cannot read back, here a tensor that its writer does not know, is such a failure too.
    let f8 = random(1, 2, DType::F32).to_dtype(DType::F8E4M3).unwrap();
    assert!(save_safetensors(&path, &[("w".to_string(), f8)].into(), None).is_err());
    assert_eq!(fs::read(&path).unwrap(), b"old");

    write_atomic(&path, |out| out.write_all(b"new")).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"new");
    assert!(write_atomic(dir.path().join("no/such/dir"), |_| Ok(())).is_err());
}
