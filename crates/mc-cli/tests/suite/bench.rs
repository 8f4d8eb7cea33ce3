//! `bench`: what it tells a script, and that what it times is the work.

use crate::place::{Place, Run};
use serde_json::Value;

fn bench(place: &Place, args: &str) -> Value {
    place.run(&format!("bench --model model --repeat 3 --json {args}")).ok().json().remove(0)
}

/// The median of a speed, in the middle of its range.
#[track_caller]
fn speed(report: &Value, key: &str) -> f64 {
    let median = report[format!("{key}_tokens_per_second")].as_f64().unwrap();
    let range = |i: usize| report[format!("{key}_range")][i].as_f64().unwrap();
    assert!(0.0 < range(0) && range(0) <= median && median <= range(1), "{report}");
    median
}

#[test]
fn generation_is_timed() {
    let place = Place::new();
    let report = bench(&place, "--prompt 64 --gen 24");
    speed(&report, "prefill");
    speed(&report, "decode");
    assert!(report["train_tokens_per_second"].is_null() && report["cache"] == true, "{report}");
    assert!(report["first_token_seconds"].as_f64().unwrap() > 0.0, "{report}");
    assert!(report["peak_memory_bytes"].as_u64().is_none_or(|n| n > 1 << 20), "{report}");
    let only_prompt = bench(&place, "--prompt 64 --gen 1");
    speed(&only_prompt, "prefill");
    assert!(only_prompt["decode_tokens_per_second"].is_null(), "{only_prompt}");
}

#[test]
fn the_cache_is_worth_something() {
    let place = Place::new();
    let with = speed(&bench(&place, "--prompt 200 --gen 9"), "decode");
    let report = bench(&place, "--prompt 200 --gen 9 --without-cache");
    let without = speed(&report, "decode");
    assert_eq!(report["cache"], false);
    assert!(with > 2.0 * without, "{with} tokens/s with the cache, {without} without");
}

#[test]
fn training_is_timed_and_trains() {
    let place = Place::new();
    let args = "--train --batch 2 --seq 24 --rank 4 --target q_proj,v_proj";
    let report = bench(&place, args);
    speed(&report, "train");
    assert!(report["prefill_tokens_per_second"].is_null(), "{report}");
    let loss = |report: &Value, key: &str| report[key].as_f64().unwrap();
    assert!(loss(&report, "last_loss") < loss(&report, "first_loss"), "{report}");
    // The first loss is that of the untouched model: it knows no rank. The tokens follow from the seed.
    let other = |args: &str| loss(&bench(&place, args), "first_loss");
    assert_eq!(loss(&report, "first_loss"), other(&args.replace("--rank 4", "--rank 2")));
    assert_ne!(loss(&report, "first_loss"), other(&format!("{args} --seed 1")));
    // Checkpointing changes the memory, not the result.
    let checkpointed = bench(&place, &format!("{args} --grad-checkpoint"));
    assert!((loss(&checkpointed, "last_loss") - loss(&report, "last_loss")).abs() < 1e-5, "{checkpointed}");
}

#[test]
fn a_person_reads_a_table_and_progress_is_apart() {
    let place = Place::new();
    // No tokenizer is needed.
    std::fs::remove_file(place.path("model/tokenizer.json")).unwrap();
    let call = "bench --model model --repeat 2 --prompt 8 --gen 4 --threads 1";
    let run = place.run(call).ok();
    for line in ["prefill of 8 tokens ", "decode of 4 tokens ", "start to first token ", "1 threads"] {
        assert!(run.stdout.contains(line), "{}", run.stdout);
    }
    assert!(run.stderr.contains("run 2/2: prefill ") && !run.stdout.contains("run 2/2"), "{}", run.stderr);
    let quiet: Run = place.run(&format!("{call} --quiet")).ok();
    assert_eq!(quiet.stderr, "");
    let train = place.run("bench --model model --repeat 1 --train --batch 1 --seq 8").ok();
    assert!(train.stdout.contains("training on 1 × 8 tokens ") && train.stdout.contains("loss, first"), "{train:?}");
}

#[test]
fn what_is_no_training_is_not_timed() {
    let place = Place::new();
    // Before any of them is made.
    place.set("model/config.json", "max_position_embeddings", Some(1_000_000.into()));
    let run = place.run("bench --model model --train --repeat 1 --batch 4096 --seq 1000000");
    assert!(run.status != 0 && run.stderr.contains("a batch of 4096000000 tokens takes at least"), "{run:?}");
    let path = place.path("model/model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    bytes[header..].fill(0xFF);
    std::fs::write(&path, bytes).unwrap();
    let run = place.run("bench --model model --train --repeat 1 --batch 1 --seq 8");
    let told = run.stderr.contains("the loss is NaN: what was timed is no training");
    assert!(run.status == 2 && told && run.stdout.is_empty(), "{run:?}");
}

#[test]
fn texts_are_timed() {
    let place = Place::with_encoder("bert-mean");
    std::fs::write(place.path("notes.txt"), "metal candle\nthe river below the bridge\n\n").unwrap();
    let report = bench(&place, "--texts notes.txt");
    for key in ["texts", "one_text"] {
        let range = |i: usize| report[format!("{key}_range")][i].as_f64().unwrap();
        assert!(0.0 < range(0) && range(0) <= range(1), "{report}");
    }
    assert!(report["texts"] == 3 && report["texts_per_second"].as_f64().unwrap() > 0.0, "{report}");
    let run = place.run("bench --model model --repeat 1 --texts notes.txt").ok();
    assert!(run.stdout.contains("texts per second, 3 texts") && run.stdout.contains("bert, mean pooling"), "{run:?}");
    std::fs::write(place.path("empty.txt"), "\n").unwrap();
    std::fs::write(place.path("latin.txt"), b"river\nfen\xeatre\n").unwrap();
    for (call, told) in [
        ("bench --texts notes.txt", "--texts without --model"),
        ("bench --model model --texts empty.txt", "empty.txt has no texts"),
        ("bench --model model --texts missing.txt", "missing.txt"),
        ("bench --model model --texts .", ". is a directory"),
        ("bench --model model --texts latin.txt", "latin.txt, line 2: not UTF-8 at byte 4"),
        ("bench --model model --texts notes.txt --train", "cannot be used with"),
    ] {
        let run = place.run(call);
        assert!(run.status == 2 && run.stderr.contains(told), "{call}: {run:?}");
    }
    std::fs::write(place.path("long.txt"), format!("{}\nriver\n", "river ".repeat(200))).unwrap();
    let run = place.run("bench --model model --repeat 3 --texts long.txt").ok();
    assert_eq!(run.stderr.matches(" cut at ").count(), 1, "{run:?}");
    assert!(run.stderr.contains("1 line cut at 48 tokens\n"), "{run:?}");
}
