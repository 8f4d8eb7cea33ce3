//! The commands that only read: `generate`, `eval`, `inspect`, and the help of all.

use crate::place::{FINETUNE, Place, Run};
use serde_json::{Value, json};
use std::process::Stdio;

const GENERATE: &str = "generate --model model --max-tokens 24";

fn generate(place: &Place, args: &[&str]) -> Value {
    let run = Run::of(place.command().args(GENERATE.split(' ')).arg("--json").args(args)).ok();
    run.json().remove(0)
}

#[test]
fn a_generation_is_one_object() {
    let place = Place::new();
    let one = generate(&place, &["--prompt", "The compiler", "--ignore-eos"]);
    assert_eq!((one["finish"].as_str(), one["tokens"].as_array().unwrap().len()), (Some("length"), 24));
    assert!(one["prompt_tokens"].as_u64().unwrap() > 0 && !one["text"].as_str().unwrap().is_empty());
    for speed in ["prefill_tokens_per_second", "decode_tokens_per_second"] {
        assert!(one[speed].as_f64().unwrap() > 0.0, "{one}");
    }
    // Streamed it is the same text, and a prompt on stdin is the same prompt.
    let args = [&GENERATE.split(' ').collect::<Vec<_>>()[..], &["--ignore-eos", "--prompt", "-", "--quiet"]].concat();
    let streamed = Run::of(place.command().args(args).write_stdin("The compiler\n")).ok();
    assert_eq!(streamed.stdout, format!("{}\n", one["text"].as_str().unwrap()));
    assert_eq!(streamed.stderr, "");
}

#[test]
fn a_stop_text_ends_it_and_is_not_part_of_it() {
    let place = Place::new();
    let whole = generate(&place, &["--prompt", "The compiler"])["text"].as_str().unwrap().to_string();
    let stop: String = whole.chars().skip(10).take(4).collect();
    let cut = generate(&place, &["--prompt", "The compiler", "--stop", "never there", "--stop", &stop]);
    assert_eq!(cut["finish"], "stop");
    assert_eq!(cut["text"].as_str().unwrap(), &whole[..whole.find(&stop).unwrap()]);
}

#[test]
fn the_same_seed_gives_the_same_text() {
    let place = Place::new();
    let text =
        |seed| generate(&place, &["--prompt", "The", "--temp", "1", "--top-p", "0.95", "--seed", seed])["text"].clone();
    assert_eq!(text("1"), text("1"));
    assert_ne!(text("1"), text("2"));
}

#[test]
fn a_chat_goes_through_the_template() {
    let place = Place::new();
    let plain = generate(&place, &["--prompt", "hello"]);
    let chat = generate(&place, &["--prompt", "hello", "--chat"]);
    assert!(chat["prompt_tokens"].as_u64() > plain["prompt_tokens"].as_u64());
}

#[test]
fn an_evaluation_is_the_mean_over_supervised_tokens() {
    let place = Place::with_adapter();
    let eval =
        |args: &str| place.run(&format!("eval --model model --data data.jsonl --json {args}")).ok().json().remove(0);
    let base = eval("");
    let (loss, perplexity) = (base["loss"].as_f64().unwrap(), base["perplexity"].as_f64().unwrap());
    assert!((loss.exp() / perplexity - 1.0).abs() < 1e-9 && loss > 1.0, "{base}");
    assert!(eval("--mask-prompt")["tokens"].as_u64() < base["tokens"].as_u64());
    assert!((eval("--batch-size 1")["loss"].as_f64().unwrap() - loss).abs() < 1e-4, "batches change nothing");
    assert_ne!(eval("--adapter adapter")["loss"], base["loss"]);
    let text = place.run("eval --model model --data data.jsonl --quiet").ok();
    assert!(text.stdout.starts_with(&format!("loss {loss:.4}  perplexity ")) && text.stderr.is_empty(), "{text:?}");
}

#[test]
fn models_and_adapters_are_inspected() {
    let place = Place::with_adapter();
    let one = |args: &str| place.run(args).ok().json().remove(0);
    let model = one("inspect model --json");
    assert_eq!(
        (&model["kind"], &model["model_type"], &model["hidden_size"]),
        (&json!("model"), &json!("qwen2"), &json!(192))
    );
    assert_eq!(model["sites"].as_array().unwrap().len(), 28);
    let mut embedded = one("inspect --json");
    embedded["name"] = json!("model");
    assert_eq!(embedded, model, "without a name it is the model inside the binary");
    let adapter = one("inspect adapter --json");
    assert_eq!((&adapter["kind"], &adapter["config"]["r"]), (&json!("adapter"), &json!(2)));
    assert_eq!(adapter["tensors"], 56);
    let text = place.run("inspect model").ok().stdout;
    assert!(text.starts_with("model: qwen2 model, ") && text.contains("q_proj"), "{text}");
    assert!(place.run("inspect model --sites").ok().stdout.contains("model.layers.3.mlp.down_proj 384 → 192"));
    assert!(place.run("inspect adapter").ok().stdout.starts_with("adapter: LoRA adapter, "));
}

#[test]
fn every_help_has_an_example() {
    let place = Place::new();
    for command in ["finetune", "generate", "eval", "embed", "index", "search", "inspect", "bench"] {
        let help = place.run(&format!("{command} --help")).ok().stdout;
        assert!(
            help.contains(&format!("Example:\n  metal-candle {command}"))
                || help.contains(&format!("Examples:\n  metal-candle {command}")),
            "{help}"
        );
        assert!(help.contains("Global options:"), "{help}");
    }
    let top = place.run("--help").ok().stdout;
    assert!(top.contains("metal-candle finetune") && top.contains("Exit status"), "{top}");
    assert!(place.run("--version").ok().stdout.starts_with("metal-candle "));
    let nothing = place.run("");
    assert!(nothing.status == 2 && nothing.stderr.contains("Usage:"), "{nothing:?}");
}

#[test]
fn a_reader_that_has_seen_enough_is_no_failure() {
    let place = Place::new();
    let train = &format!("{FINETUNE} --steps 2 --json");
    for args in
        [&format!("{GENERATE} --prompt The"), &format!("{GENERATE} --prompt The --json"), "inspect model", train]
    {
        let mut command = std::process::Command::new(assert_cmd::cargo::cargo_bin("metal-candle"));
        command.current_dir(place.path("")).args(args.split(' ')).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        let silent = ["error", "WARN", "pipe"].iter().all(|word| !stderr.contains(word));
        assert!(output.status.success() && silent, "{args}: {stderr}");
    }
    assert!(place.path("out/adapter_config.json").is_file(), "a run goes on without a reader");
}

#[test]
fn a_full_stdout_is_a_failure() {
    // Only Linux has a device that is always full.
    if !std::path::Path::new("/dev/full").exists() {
        return;
    }
    let place = Place::new();
    for args in [&format!("{GENERATE} --prompt The"), &format!("{GENERATE} --prompt The --json"), "inspect model"] {
        let mut command = std::process::Command::new(assert_cmd::cargo::cargo_bin("metal-candle"));
        let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
        let output = command.current_dir(place.path("")).args(args.split(' ')).stdout(full).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{args}: {stderr}");
        assert!(stderr.contains("error: stdout: ") && stderr.contains("\nhint: "), "{args}: {stderr}");
    }
}

#[test]
fn a_byte_order_mark_is_no_part_of_a_configuration() {
    let place = Place::new();
    let file = place.path("model/config.json");
    let marked = [b"\xef\xbb\xbf", std::fs::read(&file).unwrap().as_slice()].concat();
    std::fs::write(&file, marked).unwrap();
    place.run("inspect model").ok();
}
