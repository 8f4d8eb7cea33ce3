//! `finetune` from records to an adapter: its JSON lines, which scripts depend on, its files, and going on with a run.

use crate::place::{DATA, FINETUNE, Place, Run};
use serde_json::{Value, json};
use std::fs;

/// What an event is called.
fn name(event: &Value) -> &str {
    event["event"].as_str().unwrap()
}

/// The keys of an object, sorted.
fn keys(value: &Value) -> Vec<&str> {
    let mut keys: Vec<_> = value.as_object().unwrap().keys().map(String::as_str).collect();
    keys.sort_unstable();
    keys
}

fn bytes(place: &Place, file: &str) -> Vec<u8> {
    fs::read(place.path(file)).unwrap()
}

#[test]
fn a_run_tells_every_event_and_leaves_an_adapter() {
    let place = Place::new();
    fs::create_dir(place.path("dir")).unwrap();
    fs::write(place.path("dir/train.jsonl"), DATA).unwrap();
    fs::write(place.path("dir/valid.jsonl"), DATA.lines().next().unwrap()).unwrap();
    let args =
        "finetune --model model --data dir --output new/out --steps 3 --rank 2 --eval-every 2 --save-every 2 --json";
    let run = place.run(args).ok();
    let events = run.json();
    let names: Vec<_> = events.iter().map(name).collect();
    let expected = ["plan", "start", "step", "step", "eval", "saved", "step", "eval", "saved", "done", "sample"];
    assert_eq!(names, expected, "{}", run.stdout);
    let page = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/command-line.md")).unwrap();
    for event in &events {
        let row = |name: &str| page.lines().rfind(|line| line.starts_with(&format!("| `{name}`"))).unwrap();
        let told = |key: &&str| *key == "event" || row(name(event)).contains(&format!("`{key}`"));
        assert!(keys(event).iter().all(told), "{event}: {}", row(name(event)));
    }
    let all = |wanted: &str| events.iter().filter(|e| name(e) == wanted).cloned().collect::<Vec<_>>();

    let steps = all("step");
    for (i, step) in steps.iter().enumerate() {
        assert_eq!(step["step"], i + 1);
        for field in ["loss", "lr", "tokens", "tokens_per_second", "grad_norm"] {
            assert!(step[field].as_f64().unwrap() > 0.0, "{field}: {step}");
        }
        assert!(step.get("peak_memory_bytes").is_some());
    }
    assert!(steps[1]["lr"].as_f64() > steps[2]["lr"].as_f64(), "a cosine falls");
    for eval in all("eval") {
        let (loss, perplexity) = (eval["loss"].as_f64().unwrap(), eval["perplexity"].as_f64().unwrap());
        assert!((loss.exp() / perplexity - 1.0).abs() < 1e-9, "{eval}");
    }
    let saved = all("saved");
    assert_eq!(saved.last().unwrap()["path"], "new/out");
    let done = &all("done")[0];
    assert_eq!((&done["steps"], &done["stopped"], &done["skipped"]), (&json!(3), &json!(false), &json!(0)));
    assert_eq!(keys(&all("sample")[0]), ["after", "before", "event", "prompt"]);

    // Beside the adapter itself everything is under run/.
    let top: Vec<_> = place.files().into_iter().filter(|f| f.starts_with("new/") && !f.contains("/run/")).collect();
    assert_eq!(top, ["new/out/adapter_config.json", "new/out/adapter_model.safetensors"]);
    for file in [
        "state.safetensors",
        "metrics.jsonl",
        "loss.svg",
        "best/adapter_config.json",
        "checkpoints/2/adapter_config.json",
    ] {
        assert!(place.path("new/out/run").join(file).is_file(), "{file}");
    }
    let config: Value = serde_json::from_slice(&bytes(&place, "new/out/adapter_config.json")).unwrap();
    assert_eq!(
        (&config["r"], &config["base_model_name_or_path"], &config["peft_type"]),
        (&json!(2), &json!("model"), &json!("LORA"))
    );
    // What a script reads from stdout, the run keeps.
    let metrics = String::from_utf8(bytes(&place, "new/out/run/metrics.jsonl")).unwrap();
    assert!(metrics.lines().all(|line| run.stdout.contains(line)), "{metrics}");
    assert_eq!(metrics.lines().count(), expected.len() - 2, "without plan and sample");
}

#[test]
fn a_resumed_run_ends_as_the_one_that_was_never_stopped() {
    let place = Place::new();
    // A constant rate, for a cosine over 3 steps is another than one over 6.
    let train = |steps, output, more: &str| {
        let options = "--schedule constant --dropout 0.1 --seed 7";
        let args = FINETUNE.replace("--output out", &format!("--output {output}"));
        place.run(&format!("{args} --steps {steps} {options} {more}")).ok()
    };
    train(6, "whole", "");
    train(3, "parts", "");
    assert_ne!(bytes(&place, "whole/adapter_model.safetensors"), bytes(&place, "parts/adapter_model.safetensors"));
    let run = train(6, "parts", "--resume");
    assert!(run.stderr.contains("going on after step 3"), "{}", run.stderr);
    assert_eq!(bytes(&place, "whole/adapter_model.safetensors"), bytes(&place, "parts/adapter_model.safetensors"));
    let metrics = String::from_utf8(bytes(&place, "parts/run/metrics.jsonl")).unwrap();
    let steps: Vec<_> =
        metrics.lines().map(|l| serde_json::from_str::<Value>(l).unwrap()).filter(|e| name(e) == "step").collect();
    assert_eq!(steps.iter().map(|e| e["step"].as_u64().unwrap()).collect::<Vec<_>>(), [1, 2, 3, 4, 5, 6]);

    let run = train(6, "parts", "--resume");
    assert!(run.stderr.contains("no step is left to do"), "{}", run.stderr);
    assert!(!run.stderr.contains("tokens/s"), "{}", run.stderr);

    // With other data it is no longer the same run, and what is there stays.
    let before = bytes(&place, "parts/adapter_model.safetensors");
    fs::write(place.path("data.jsonl"), DATA.replace("docs", "text")).unwrap();
    let run = place.run(&format!("{} --steps 9 --seed 7 --resume", FINETUNE.replace("--output out", "--output parts")));
    assert_eq!(run.status, 2, "{}", run.stderr);
    assert!(run.stderr.contains("error: parts/run/state.safetensors: "), "{}", run.stderr);
    assert_eq!(bytes(&place, "parts/adapter_model.safetensors"), before);
}

#[test]
fn the_loss_falls_and_another_run_can_start_there() {
    let place = Place::new();
    let losses = |run: &Run| {
        run.json().iter().filter(|e| name(e) == "step").map(|e| e["loss"].as_f64().unwrap()).collect::<Vec<_>>()
    };
    let first = losses(
        &place.run(&format!("{FINETUNE} --lr 1e-2 --rank 4 --epochs 8 --json").replace("--rank 2 --lr 1e-3", "")).ok(),
    );
    assert!(first.last().unwrap() < &(first[0] / 2.0), "{first:?}");
    let second =
        place.run("finetune --model model --data data.jsonl --output more --init-adapter out --steps 2 --json").ok();
    assert!(losses(&second)[0] < first[0] / 2.0, "{:?} after {first:?}", losses(&second));
    let config: Value = serde_json::from_slice(&bytes(&place, "more/adapter_config.json")).unwrap();
    assert_eq!(config["r"], 4);
}

/// "Before" is what the run starts from.
#[test]
fn before_is_the_adapter_that_a_run_starts_from() {
    let place = Place::new();
    fs::create_dir(place.path("dir")).unwrap();
    for file in ["dir/train.jsonl", "dir/valid.jsonl"] {
        fs::write(place.path(file), DATA).unwrap();
    }
    let train = |args: &str| place.run(&format!("finetune --model model --data dir --lr 1e-2 --json {args}")).ok();
    let sample = |run: &Run, when: &str| run.json().iter().find(|e| name(e) == "sample").unwrap()[when].clone();
    let before = |run: &Run| {
        let line = run.stderr.lines().find_map(|line| line.strip_prefix("before: held-out loss ")).unwrap();
        line.split(',').next().unwrap().parse::<f64>().unwrap()
    };
    let after = |run: &Run| run.json().iter().find(|e| name(e) == "done").unwrap()["eval"]["loss"].as_f64().unwrap();
    let first = train("--output out --steps 4");
    assert!(after(&first) < before(&first) - 0.1, "{}", first.stderr);
    for more in ["--output more --init-adapter out --steps 1", "--output out --resume --steps 5"] {
        let run = train(more);
        assert!((before(&run) - after(&first)).abs() < 1e-4, "{more}: {} after {}", before(&run), after(&first));
        assert_eq!(sample(&run, "before"), sample(&first, "after"));
        assert_ne!(sample(&run, "before"), sample(&first, "before"));
    }
}

/// Good to train on, and nothing that could be asked: the run goes on without a sample.
#[test]
fn a_first_record_that_is_no_prompt_costs_only_the_sample() {
    let long = format!("{{\"prompt\": \"{}\", \"completion\": \" pwd\"}}\n", "Sort README.md ".repeat(2000));
    for (record, why) in [
        ("{\"prompt\": \"\", \"completion\": \"ls -la\"}\n", "the prompt is empty"),
        (long.as_str(), "expected at most"),
    ] {
        let place = Place::new();
        fs::write(place.path("data.jsonl"), format!("{record}{DATA}")).unwrap();
        let run = place.run(&format!("{FINETUNE} --steps 1 --json")).ok();
        assert!(run.stderr.contains("no sample is shown: ") && run.stderr.contains(why), "{}", run.stderr);
        assert!(!run.json().iter().any(|e| name(e) == "sample"), "{}", run.stdout);
        assert!(place.path("out/adapter_config.json").is_file());
    }
}

/// A run that died without a state has left its best adapter, which a new one must not remove.
#[test]
fn what_a_run_has_left_is_not_removed_by_another() {
    let place = Place::new();
    let best = place.path("out/run/best/adapter_config.json");
    fs::create_dir_all(best.parent().unwrap()).unwrap();
    fs::write(&best, "precious").unwrap();
    let run = place.run(&format!("{FINETUNE} --steps 1"));
    assert_eq!(run.status, 2, "{}", run.stderr);
    assert!(run.stderr.contains("out holds what a run has left") && run.stderr.contains("hint: "), "{}", run.stderr);
    assert!(!run.stderr.contains("--resume"), "there is no state: {}", run.stderr);
    assert_eq!(fs::read_to_string(best).unwrap(), "precious");
    // Nor where the directory is chosen.
    fs::create_dir_all(place.path("adapters/model/run/checkpoints/3")).unwrap();
    place.run("finetune --model model --data data.jsonl --steps 1").ok();
    assert!(place.path("adapters/model-2/adapter_config.json").is_file(), "{:?}", place.files());
    assert!(place.path("adapters/model/run/checkpoints/3").is_dir());
}

/// Llama's templates write the date. A run that goes on later has the texts that it began with.
#[test]
fn a_template_that_tells_the_time_tells_that_of_the_start() {
    let place = Place::new();
    let template = "{% for m in messages %}{{ strftime_now('%S') }} {{ m.content }}{% endfor %}";
    fs::write(place.path("model/chat_template.jinja"), template).unwrap();
    let record = r#"{"messages": [{"role": "user", "content": "Sort"}, {"role": "assistant", "content": " sort"}]}"#;
    fs::write(place.path("data.jsonl"), record).unwrap();
    place.run(&format!("{FINETUNE} --steps 1")).ok();
    std::thread::sleep(std::time::Duration::from_millis(1100));
    let run = place.run(&format!("{FINETUNE} --steps 2 --resume")).ok();
    assert!(run.stderr.contains("going on after step 1"), "{}", run.stderr);
}

#[test]
fn a_resumed_dry_run_checks_the_data_and_a_file_may_name_the_output() {
    let place = Place::new();
    place.run(&format!("{FINETUNE} --steps 1")).ok();
    fs::write(
        place.path("run.toml"),
        "output = \"out\"\nmodel = \"model\"\ndata = \"data.jsonl\"\nbatch-size = 2\nrank = 2\n",
    )
    .unwrap();
    let args = "finetune --config run.toml --steps 2 --resume --dry-run";
    let run = place.run(args).ok();
    assert!(run.stderr.contains("going on after step 1"), "{}", run.stderr);
    fs::write(place.path("data.jsonl"), DATA.replace("docs", "text")).unwrap();
    let run = place.run(args);
    assert_eq!(run.status, 2, "{}", run.stderr);
    assert!(run.stderr.contains("the training data are not those"), "{}", run.stderr);
}

#[test]
fn a_dry_run_says_what_would_be_and_writes_nothing() {
    let place = Place::new();
    let before = place.files();
    let run = place.run("finetune --dry-run --json").ok();
    assert_eq!(place.files(), before);
    let [plan] = run.json().try_into().unwrap();
    assert_eq!((name(&plan), &plan["model"], &plan["output"]), ("plan", &json!("embedded"), &json!("adapters/shell")));
    assert_eq!((&plan["rank"], &plan["alpha"], &plan["batch_size"]), (&json!(16), &json!(32.0), &json!(8)));
    assert!(plan["valid"]["records"].as_u64().unwrap() > 50);
    // Asked to be short, the embedded run gives up the epochs and the warmup that suit it.
    for short in ["--steps 3", "--epochs 1", "--batch-size 500 --epochs 1"] {
        place.run(&format!("finetune --dry-run {short}")).ok();
    }
}

#[test]
fn options_come_from_a_file_and_the_line_goes_before_it() {
    let place = Place::new();
    let toml = "model = \"model\"\ndata = \"data.jsonl\"\noutput = \"out\"\nsteps = 2\nbatch_size = 3\nrank = 4\nmask-prompt = true\n\
                schedule = \"linear\"\nlr = 0.01\n";
    fs::write(place.path("run.toml"), toml).unwrap();
    let plan =
        |args: &str| place.run(&format!("finetune --config run.toml --dry-run --json {args}")).ok().json().remove(0);
    let file = plan("");
    assert_eq!(
        (&file["steps"], &file["batch_size"], &file["rank"], &file["lr"]),
        (&json!(2), &json!(3), &json!(4), &json!(0.01))
    );
    let line = plan("--rank 5 --mask-prompt=false");
    assert_eq!((&line["rank"], &line["steps"]), (&json!(5), &json!(2)));
    // 6 records by 3: two steps per epoch, which the line asks for instead of the file's steps.
    assert_eq!(plan("--epochs 2")["steps"], json!(4));
    let supervised = |plan: &Value| plan["train"]["supervised_tokens"].as_u64().unwrap();
    assert!(supervised(&line) > supervised(&file));
}

#[test]
fn a_quiet_run_is_silent() {
    let place = Place::new();
    let run = place.run(&format!("{FINETUNE} --steps 1 --quiet")).ok();
    assert_eq!((run.stdout.as_str(), run.stderr.as_str()), ("", ""));
    let loud = place.run(&format!("{FINETUNE} --steps 1").replace("--output out", "--output loud")).ok();
    assert_eq!(loud.stdout, "", "stdout is for data");
    assert!(loud.stderr.contains("step 1/1: loss "), "{}", loud.stderr);
    assert!(loud.stderr.contains("adapter: loud "), "{}", loud.stderr);
}

#[cfg(unix)]
#[test]
fn the_next_command_works_as_it_is_printed() {
    let place = Place::new();
    fs::write(place.path("data.jsonl"), "{\"prompt\": \"Print 'it''s $HOME' =>\", \"completion\": \" echo\"}\n")
        .unwrap();
    let run = place.run(&format!("{FINETUNE} --steps 1").replace("--output out", "--output it's")).ok();
    let next = run.stderr.lines().find_map(|line| line.strip_prefix("next: ")).unwrap();
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", &format!("{next} --max-tokens 3 --json")]);
    let output = shell.current_dir(place.path("")).output().unwrap();
    assert!(output.status.success(), "{next}: {}", String::from_utf8_lossy(&output.stderr));
    let generation: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(generation["prompt_tokens"].as_u64().unwrap() > 3);
}

#[test]
fn options_that_do_nothing_are_told() {
    let place = Place::new();
    fs::write(place.path("data.jsonl"), "{\"text\": \"README\"}\n").unwrap();
    let run = place.run(&format!("{FINETUNE} --steps 1 --mask-prompt --eval-every 1")).ok();
    for line in ["--mask-prompt does nothing", "--eval-every does nothing", " --prompt 'your text'"] {
        assert!(run.stderr.contains(line), "{line}: {}", run.stderr);
    }
    let run = place.run("inspect model --threads 1").ok();
    assert!(run.stderr.contains("--threads change nothing"), "{}", run.stderr);
    let adapter = Place::with_adapter();
    adapter.set("adapter/adapter_config.json", "r", Some(json!(4)));
    let run = adapter.run("inspect adapter").ok();
    assert!(run.stderr.contains(", which is not of rank 4"), "{}", run.stderr);
    // Not the directory of that name.
    fs::create_dir(place.path("embedded")).unwrap();
    assert!(place.run("inspect").ok().stdout.starts_with("embedded: "));
}

/// A limit on the size of files stands for a full disk.
#[cfg(unix)]
#[test]
fn what_cannot_be_written_is_a_failure_and_no_adapter() {
    let place = Place::new();
    let program = assert_cmd::cargo::cargo_bin("metal-candle");
    let mut shell = assert_cmd::Command::new("sh");
    // A build that measures coverage writes files of its own, which are none of this test's business.
    let limits = "ulimit -f 8; trap '' XFSZ; export LLVM_PROFILE_FILE=/dev/null";
    let script = format!("{limits}; exec '{}' {FINETUNE} --steps 1", program.display());
    let run = Run::of(shell.args(["-c", &script]).current_dir(place.path("")));
    assert_eq!(run.status, 1, "{}", run.stderr);
    let lines: Vec<_> = run.stderr.lines().rev().take(2).collect();
    assert!(lines[1].starts_with("error: out/") && lines[0].starts_with("hint: "), "{}", run.stderr);
    let files = place.files();
    assert!(!files.iter().any(|f| f.contains("adapter_config.json") || f.contains(".tmp-")), "{files:?}");
}

#[test]
fn two_runs_never_share_a_directory() {
    let place = Place::new();
    // What another process holds while it runs.
    let hold = |dir: &str| {
        fs::create_dir_all(place.path(dir).join("run")).unwrap();
        let file = fs::File::create(place.path(dir).join("run/lock")).unwrap();
        file.lock().unwrap();
        file
    };
    let (named, default) = (hold("out"), hold("adapters/model"));
    let run = place.run(&format!("{FINETUNE} --steps 1"));
    assert_eq!(run.status, 2, "{}", run.stderr);
    assert!(run.stderr.contains("error: out: another run is writing there"), "{}", run.stderr);
    place.run("finetune --model model --data data.jsonl --steps 1").ok();
    assert!(place.path("adapters/model-2/adapter_config.json").is_file(), "{:?}", place.files());
    drop((named, default));
    place.run(&format!("{FINETUNE} --steps 1")).ok();
}

#[cfg(unix)]
#[test]
fn records_may_come_through_a_pipe() {
    let place = Place::new();
    let made = std::process::Command::new("mkfifo").arg(place.path("pipe")).status().unwrap();
    assert!(made.success());
    let pipe = place.path("pipe");
    let writer = std::thread::spawn(move || fs::write(pipe, DATA).unwrap());
    let run = place.run("finetune --model model --data pipe --output out --steps 1 --json").ok();
    writer.join().unwrap();
    let sample = run.json().into_iter().find(|e| name(e) == "sample").unwrap();
    assert_eq!(sample["prompt"], "Sort README.md =>");
}
